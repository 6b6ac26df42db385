"""LVIS AP against its rules written out, and both programs that count against each other."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from planted_coco import blob
from refinesam.errors import ConfigError, DatasetError, MissingExtraError
from refinesam.evaluation.coco import coco_scores
from refinesam.evaluation.lvis import LvisScores, lvis_scores
from refinesam.masks import decode_rle, encode_rle, mask_iou

CATEGORIES = {1: "r", 2: "c", 3: "f", 5: "f", 6: "r"}
THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))


def made(seed: int, images: int = 10, detections: int = 16) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """LVIS annotations and results with categories present, absent, unknown and not complete; category 6 is empty."""
    rng = np.random.default_rng(seed)
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": str(number), "frequency": f} for number, f in CATEGORIES.items()],
    }
    results: list[dict[str, Any]] = []
    hw = (110, 130)
    for image_id in range(1, images + 1):
        kinds = rng.permutation([1, 2, 3, 5])
        masks = [
            (int(rng.choice(kinds[:2])), blob(rng, hw, rng.choice([8, 30, 70]))) for _ in range(rng.integers(1, 6))
        ]
        present = {number for number, _ in masks}
        document["images"].append(
            {
                "id": image_id,
                "height": hw[0],
                "width": hw[1],
                "neg_category_ids": [int(kinds[2])],
                "not_exhaustive_category_ids": [number for number in present if rng.random() < 0.4],
            }
        )
        for number, mask in masks:
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": number,
                    "segmentation": dict(encode_rle(mask)),
                    "bbox": [0, 0, 1, 1],
                    "area": float(mask.sum()),
                }
            )
        for _ in range(detections):
            number, mask = masks[rng.integers(len(masks))]
            mask = np.roll(mask, rng.integers(-2, 3, 2), axis=(0, 1)) if rng.random() < 0.6 else blob(rng, hw, 40)
            number = number if rng.random() < 0.6 else int(rng.choice(list(CATEGORIES)))
            score = round(float(rng.random()), 2)
            one = {"image_id": image_id, "category_id": number, "segmentation": dict(encode_rle(mask)), "score": score}
            results.append(one)
    return document, results


def naive_recall_and_precision(
    document: dict[str, Any],
    results: list[dict[str, Any]],
    number: int,
    area: tuple[float, float],
    at: float,
    most: int,
) -> tuple[float, list[float]] | None:
    """One category's recall and 101 precisions at one IoU: the rules, one after the other."""
    outcomes: list[tuple[float, bool]] = []  # score, hit
    positives = 0
    for image in document["images"]:
        found = [one for one in results if one["image_id"] == image["id"]]
        found = sorted(found, key=lambda one: -one["score"])[:most]
        objects = [one for one in document["annotations"] if one["image_id"] == image["id"]]
        if number not in image["neg_category_ids"] and number not in {one["category_id"] for one in objects}:
            continue
        objects = [one for one in objects if one["category_id"] == number]
        counts = [area[0] <= one["area"] <= area[1] for one in objects]
        positives += sum(counts)
        taken = [False] * len(objects)
        for detection in (one for one in found if one["category_id"] == number):
            mask = decode_rle(detection["segmentation"])
            ious = [mask_iou(mask, decode_rle(one["segmentation"])) for one in objects]
            # Objects of this size first; of several the best, of equals the last, as in COCO.
            match = None
            for wanted in (True, False):
                free = [i for i in range(len(objects)) if counts[i] is wanted and not taken[i] and ious[i] >= at]
                if match is None and free:
                    match = max(reversed(free), key=lambda i: ious[i])
            if match is not None:
                taken[match] = True
                if counts[match]:
                    outcomes.append((detection["score"], True))
            elif area[0] <= mask.sum() <= area[1] and number not in image["not_exhaustive_category_ids"]:
                outcomes.append((detection["score"], False))
    if not positives:
        return None
    outcomes.sort(key=lambda outcome: -outcome[0])
    hits = np.cumsum([hit for _, hit in outcomes])
    recall = hits / positives
    precision = hits / np.arange(1, len(hits) + 1)
    levels = [max(precision[recall >= level], default=0.0) for level in np.linspace(0, 1, 101)]
    return (float(recall[-1]) if len(hits) else 0.0), levels


def naive_scores(document: dict[str, Any], results: list[dict[str, Any]], most: int) -> dict[str, float | None]:
    table = defaultdict(list)
    for k, area in enumerate(AREAS):
        for number, frequency in CATEGORIES.items():
            for at in THRESHOLDS:
                one = naive_recall_and_precision(document, results, number, area, at, most)
                if one is None:
                    continue
                size = ("", "_small", "_medium", "_large")[k]
                table[f"ar{size}"].append(one[0])
                table[f"ap{size}"].extend(one[1])
                if k == 0:
                    table[{"r": "ap_rare", "c": "ap_common", "f": "ap_frequent"}[frequency]].extend(one[1])
                    if at in (0.5, 0.75):
                        table[f"ap{round(at * 100)}"].extend(one[1])
    names = [field.name for field in dataclasses.fields(LvisScores) if field.name != "per_category"]
    return {name: float(np.mean(table[name])) if table[name] else None for name in names}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [300, 7])
def test_scores_follow_the_rules(seed: int, most: int) -> None:
    document, results = made(seed)
    scores = dataclasses.asdict(lvis_scores(document, results, max_detections=most))
    per_category = scores.pop("per_category")
    wanted = naive_scores(document, results, most)
    assert scores == {
        name: value if value is None else pytest.approx(value, abs=1e-9) for name, value in wanted.items()
    }
    assert 0.05 < wanted["ap"] < 0.95  # type: ignore[operator]
    assert per_category[6] is None
    known = [value for value in per_category.values() if value is not None]
    assert np.mean(known) == pytest.approx(wanted["ap"], abs=1e-9)


def test_each_rule_changes_the_result() -> None:
    document, results = made(0)

    def ap(negatives: list[int] | None, *, complete: bool) -> float:
        changed = copy.deepcopy(document)
        for image in changed["images"]:
            image["neg_category_ids"] = image["neg_category_ids"] if negatives is None else negatives
            image["not_exhaustive_category_ids"] = [] if complete else image["not_exhaustive_category_ids"]
        found = lvis_scores(changed, results).ap
        assert found is not None
        return found

    # From left to right more detections count as wrong.
    assert ap([], complete=False) > ap(list(CATEGORIES), complete=False) > ap(list(CATEGORIES), complete=True)
    assert ap([], complete=False) > ap([], complete=True) > ap(list(CATEGORIES), complete=True)
    known = copy.deepcopy(document)
    for image in known["images"]:
        image.update(neg_category_ids=list(CATEGORIES), not_exhaustive_category_ids=[])
    assert lvis_scores(known, results).ap == pytest.approx(coco_scores(known, results).ap, abs=1e-9), "then it is COCO"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_both_programs_agree_on_lvis(seed: int, iou_type: Any) -> None:
    document, results = made(seed)
    rng = np.random.default_rng(seed)
    for one in (*document["annotations"], *results):
        one["bbox"] = rng.integers(1, 40, 4).tolist()
    slow, fast = (
        dataclasses.asdict(lvis_scores(document, results, iou_type=iou_type, backend=backend))
        for backend in ("pycocotools", "faster")
    )
    for name, value in slow.items():
        assert fast[name] == (value if value is None else pytest.approx(value, abs=1e-9)), name


def test_nothing_found_scores_zero() -> None:
    document, _ = made(0)
    scores = lvis_scores(document, [])
    assert (scores.ap, scores.ar) == (0, 0)


def test_a_backend_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    document, results = made(0)

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.import_module("refinesam.evaluation.matching"), "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"faster-coco-eval .*refinesam\[eval\]"):
        lvis_scores(document, results, backend="faster")


BAD: list[tuple[str, int, str, Any, str]] = [
    ("images", 2, "neg_category_ids", None, r"images\[2\]\.neg_category_ids must be list"),
    ("images", 2, "neg_category_ids", [4], r"images\[2\]\.neg_category_ids holds 4"),
    ("images", 0, "not_exhaustive_category_ids", ["1"], r"images\[0\]\.not_exhaustive_category_ids holds '1'"),
    ("categories", 1, "frequency", "often", r"categories\[1\]\.frequency must be r, c or f"),
    ("categories", 1, "frequency", 3, r"categories\[1\]\.frequency must be str"),
]


@pytest.mark.parametrize(("part", "index", "key", "value", "named"), BAD)
def test_what_lvis_adds_is_checked(part: str, index: int, key: str, value: Any, named: str) -> None:
    document, results = made(0)
    document[part][index][key] = value
    with pytest.raises(DatasetError, match=named):
        lvis_scores(document, results)


def test_a_coco_file_is_refused() -> None:
    document, results = made(0)
    del document["categories"]
    with pytest.raises(DatasetError, match="give an LVIS file"):
        lvis_scores(document, results)


@pytest.mark.parametrize(
    "settings", [{"max_detections": 0}, {"max_detections": True}, {"backend": "gpu"}, {"iou_type": "masks"}]
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        lvis_scores(*made(0), **settings)
