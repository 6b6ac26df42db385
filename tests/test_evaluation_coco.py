"""COCO AP and AR: equal to plain pycocotools on documents made here, and malformed input named."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from planted_coco import made
from refinesam.errors import ConfigError, DatasetError
from refinesam.evaluation.coco import CocoScores, coco_scores
from refinesam.masks import encode_rle

# pycocotools divides by the count plus the smallest number above 1.
ONE = pytest.approx(1, abs=1e-9)
FIELDS = [field.name for field in dataclasses.fields(CocoScores) if field.name != "per_category"]


def plain(
    document: dict[str, Any],
    results: list[dict[str, Any]],
    iou_type: str = "segm",
    agnostic: bool = False,
    most: int = 100,
) -> tuple[list[float], Any]:
    """pycocotools as its own examples use it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        keys = {"segm": "bbox", "bbox": "segmentation"}
        found = truth.loadRes([{k: v for k, v in one.items() if k != keys[iou_type]} for one in results])
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.params.useCats = int(not agnostic)
        evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist(), evaluation.eval


def values(scores: CocoScores) -> list[float]:
    return [-1 if (value := getattr(scores, name)) is None else value for name in FIELDS]


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_pycocotools(iou_type: Any, agnostic: bool, seed: int) -> None:
    document, results = made(seed)
    scores = coco_scores(document, results, iou_type=iou_type, class_agnostic=agnostic)
    wanted, evaluated = plain(document, results, iou_type, agnostic)
    assert values(scores) == pytest.approx(wanted, abs=1e-9)
    assert 0.02 < wanted[0] < 0.95, "neither all right nor all wrong"
    assert min(wanted[3:6]) >= 0, "all sizes occur"
    if agnostic:
        assert scores.per_category == {}
        return
    assert list(scores.per_category) == ["cell", "cat", "none"]
    assert scores.per_category["none"] is None
    for index, name in enumerate(("cell", "cat")):
        assert scores.per_category[name] == pytest.approx(evaluated["precision"][:, :, index, 0, -1].mean(), abs=1e-9)


def test_only_the_best_detections_count() -> None:
    document, results = made(5, images=4, detections=150)
    few = coco_scores(document, results, max_detections=(1, 10, 20))
    wanted, _ = plain(document, results, most=20)
    # Plain pycocotools looks up its first number at 100 detections whatever was set, and finds none.
    assert values(few)[1:] == pytest.approx(wanted[1:], abs=1e-9)
    many = coco_scores(document, results)
    assert values(many) == pytest.approx(plain(document, results)[0], abs=1e-9)
    assert values(few)[8] < values(many)[8]


def test_files_and_values_give_the_same_and_input_stays_as_it_was(tmp_path: Path) -> None:
    document, results = made(1)
    before = copy.deepcopy((document, results))
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results))
    scores = coco_scores(document, results)
    assert coco_scores(tmp_path / "truth.json", str(tmp_path / "results.json")) == scores
    assert (document, results) == before


def test_nothing_is_printed_from_several_threads_either(capsys: pytest.CaptureFixture[str]) -> None:
    document, results = made(2, images=3)
    threads = [threading.Thread(target=coco_scores, args=(document, results)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("afterwards")
    assert capsys.readouterr().out == "afterwards\n"


def small() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One object and one result that is exactly it."""
    mask = np.zeros((40, 50), bool)
    mask[5:25, 10:40] = True
    segmentation = dict(encode_rle(mask))
    document = {
        "images": [{"id": 5, "file_name": "a.png", "height": 40, "width": 50}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 2,
                "segmentation": segmentation,
                "bbox": [10, 5, 30, 20],
                "area": 600,
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 2, "name": "cell"}],
    }
    return document, [{"image_id": 5, "category_id": 2, "segmentation": segmentation, "score": 0.5}]


def test_a_perfect_result_scores_one() -> None:
    document, results = small()
    scores = coco_scores(document, results)
    assert (scores.ap, scores.ap50, scores.ap75, scores.ar1, scores.ar100) == (ONE,) * 5
    assert (scores.ap_small, scores.ap_medium, scores.ap_large) == (ONE, None, None)
    assert scores.per_category == {"cell": ONE}


def test_an_annotation_with_id_0_can_be_matched() -> None:
    document, results = small()
    document["annotations"][0]["id"] = 0
    assert coco_scores(document, results).ap == ONE
    assert plain(document, results)[0][0] == 0, "the quirk this is about"


def test_areas_of_masks_come_from_masks() -> None:
    document, results = small()
    big = dict(encode_rle(np.ones((40, 50), bool)))
    # A false detection of 2000 pixels is ignored for small objects; its box says 4 pixels.
    results.append({"image_id": 5, "category_id": 2, "segmentation": big, "score": 0.9})
    without = coco_scores(document, results)
    assert without.ap_small == ONE
    assert coco_scores(document, [one | {"bbox": [0, 0, 2, 2]} for one in results]) == without


def test_no_result_scores_zero_and_no_object_nothing() -> None:
    document, results = small()
    scores = coco_scores(document, [])
    assert (scores.ap, scores.ar100, scores.ap_large, scores.per_category) == (0, 0, None, {"cell": 0})
    empty = coco_scores(document | {"annotations": []}, results)
    assert values(empty) == [-1] * 12
    assert empty.per_category == {"cell": None}
    assert values(coco_scores({"images": [], "annotations": []}, [])) == [-1] * 12


def test_what_other_tools_leave_out_is_filled_in() -> None:
    document, results = small()
    del document["categories"]
    assert coco_scores(document, results).per_category == {"2": ONE}
    del document["annotations"][0]["area"], document["annotations"][0]["iscrowd"]
    # The box of 600 pixels is small; the mask of 1200 is medium.
    tall = np.zeros((40, 50), bool)
    tall[:, 10:40] = True
    document["annotations"][0]["segmentation"] = results[0]["segmentation"] = dict(encode_rle(tall))
    scores = coco_scores(document, results)
    assert (scores.ap_small, scores.ap_medium) == (None, ONE)
    del document["annotations"][0]["segmentation"]
    boxes = coco_scores(document, [results[0] | {"bbox": [10, 5, 30, 20]}], iou_type="bbox")
    assert (boxes.ap, boxes.ap_small) == (ONE, ONE)


def test_categories_of_one_name_are_told_apart() -> None:
    document, results = small()
    document["categories"] += [{"id": 9, "name": "cell"}, {"id": 1, "name": "cat"}]
    assert coco_scores(document, results).per_category == {"cat": None, "cell (2)": ONE, "cell (9)": None}


def test_proposals_need_no_category() -> None:
    document, results = small()
    del results[0]["category_id"]
    assert coco_scores(document, results, class_agnostic=True).ap == ONE
    for odd in (77, "cell", [2], None):
        assert coco_scores(document, [results[0] | {"category_id": odd}], class_agnostic=True).ap == ONE
    with pytest.raises(DatasetError, match=r"results\[0\]\.category_id must be int, got nothing"):
        coco_scores(document, results)


REMOVED = object()
BAD_RESULTS: list[tuple[str, Any, str]] = [
    ("image_id", 6, r"results[1].image_id 6 is not the id of any image"),
    ("image_id", "5", "results[1].image_id must be int"),
    ("image_id", REMOVED, "results[1].image_id must be int, got nothing"),
    ("category_id", 3, "results[1].category_id 3 is not the id of any category"),
    ("category_id", None, "results[1].category_id must be int"),
    ("score", "high", "results[1].score must be int or float"),
    ("score", REMOVED, "results[1].score must be int or float, got nothing"),
    ("score", math.nan, "results[1].score must be a finite number"),
    ("score", True, "results[1].score must be int or float"),
    ("segmentation", REMOVED, "results[1].segmentation must be list or dict"),
    ("segmentation", [[1, 2, 3]], "results[1].segmentation: A polygon"),
    ("segmentation", {"size": [40, 50]}, "results[1].segmentation: An RLE"),
    ("segmentation", {"size": [50, 40], "counts": [0, 2000]}, "results[1].segmentation: The RLE's size"),
    ("segmentation", {"size": [40, 50], "counts": "22"}, "results[1].segmentation: The RLE's runs"),
    ("segmentation", {"size": [40, 50], "counts": "\x00"}, "results[1].segmentation: The RLE counts"),
    ("segmentation", {"size": [40, 50], "counts": ""}, "results[1].segmentation: The RLE's runs"),
]


@pytest.mark.parametrize(("key", "value", "named"), BAD_RESULTS)
def test_a_bad_result_is_named(key: str, value: Any, named: str, tmp_path: Path) -> None:
    document, results = small()
    bad = results[0] | {key: value}
    if value is REMOVED:
        del bad[key]
    with pytest.raises(DatasetError) as caught:
        coco_scores(document, [results[0], bad])
    assert named in str(caught.value)
    path = tmp_path / "found.json"
    path.write_text(json.dumps([results[0], bad]))
    with pytest.raises(DatasetError) as caught:
        coco_scores(document, path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("results", "named"),
    [
        ({}, "results must be a list"),
        ("none.json", "Cannot read none.json"),
        (7, "results must be a list"),
        ([7], "results[0] must be an object"),
    ],
)
def test_what_is_no_list_of_results_is_refused(results: Any, named: str) -> None:
    with pytest.raises(DatasetError) as caught:
        coco_scores(small()[0], results)
    assert named in str(caught.value)


BAD_TRUTHS: list[tuple[str, int, str, Any, str]] = [
    ("images", 0, "height", "40", "images[0].height must be int"),
    ("images", 0, "id", None, "images[0].id must be int"),
    ("annotations", 0, "image_id", 7, "annotations[0].image_id 7 is not the id of any"),
    ("annotations", 0, "category_id", 7, "annotations[0].category_id 7 is not the id of any"),
    ("annotations", 0, "segmentation", {"size": [4, 5], "counts": [20]}, "annotations[0].segmentation: The RLE's size"),
    ("annotations", 0, "area", math.nan, "annotations[0].area must be a finite number"),
    ("annotations", 0, "iscrowd", 3, "annotations[0].iscrowd must be 0 or 1"),
    ("annotations", 0, "bbox", [1, 2], "annotations[0].bbox must be four"),
    ("categories", 0, "id", "2", "categories[0].id must be int"),
]


@pytest.mark.parametrize(("part", "index", "key", "value", "named"), BAD_TRUTHS)
def test_bad_ground_truth_is_named(part: str, index: int, key: str, value: Any, named: str) -> None:
    document, results = small()
    document[part][index][key] = value
    with pytest.raises(DatasetError) as caught:
        coco_scores(document, results)
    assert f"the ground truth: {named}" in str(caught.value)


def test_twice_the_same_id_is_named() -> None:
    document, results = small()
    document["annotations"] *= 2
    with pytest.raises(DatasetError, match=r"annotations\[1\]\.id 1 is also that of annotations\[0\]"):
        coco_scores(document, results)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_detections": (1, 10)},
        {"max_detections": (10, 1, 100)},
        {"max_detections": (0, 1, 2)},
        {"max_detections": (1, 1, 2)},
        {"max_detections": (1, 2.5, 9)},
        {"iou_type": "keypoints"},
    ],
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        coco_scores(*small(), **settings)


def test_no_torch_is_imported() -> None:
    import subprocess
    import sys

    program = "import sys, refinesam.evaluation.coco, refinesam.boundary; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_both_programs_agree(iou_type: Any, agnostic: bool, seed: int) -> None:
    document, results = made(seed, images=6, detections=120)
    slow, fast = (
        coco_scores(document, results, iou_type=iou_type, class_agnostic=agnostic, backend=backend)
        for backend in ("pycocotools", "faster")
    )
    assert values(fast) == pytest.approx(values(slow), abs=1e-9)
    assert list(fast.per_category) == list(slow.per_category)
    known = [name for name, value in slow.per_category.items() if value is not None]
    assert [fast.per_category[name] for name in known] == pytest.approx([slow.per_category[name] for name in known])


def test_both_programs_agree_on_the_edges(capsys: pytest.CaptureFixture[str]) -> None:
    document, results = small()
    zero = copy.deepcopy(document)
    zero["annotations"][0]["id"] = 0
    cases = (
        (zero, results),
        (document, []),
        (document | {"annotations": []}, results),
        (document | {"annotations": []}, []),
    )
    for case in cases:
        assert values(coco_scores(*case, backend="faster")) == pytest.approx(values(coco_scores(*case)), abs=1e-9)
    assert capsys.readouterr().out == ""
