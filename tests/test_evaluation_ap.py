"""Noisy boxes, the choice among masks, boundary IoU in records, mask AP of prompted models, AR of proposals."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation_fakes import (
    HEIGHT,
    WIDTH,
    BoxFiller,
    BoxFillerImage,
    annotation,
    coco,
    prediction,
    rectangle,
    write_folder,
)
from planted_coco import made
from refinesam.amr import AMRConfig
from refinesam.boundary import boundary_iou
from refinesam.errors import ConfigError, DatasetError, PromptError
from refinesam.evaluation.coco import coco_scores
from refinesam.evaluation.dataset import CocoFolder, read_coco_folder
from refinesam.evaluation.lvis import LvisScores
from refinesam.evaluation.mask_ap import evaluation_ap, mask_ap, segment_detections
from refinesam.evaluation.proposals import RECALL_SETTINGS, proposal_scores, propose
from refinesam.evaluation.protocols import chosen, evaluate, prompt_for
from refinesam.evaluation.running import EvaluationOutcome
from refinesam.images import write_png
from refinesam.masks import decode_rle, encode_rle
from refinesam.types import Prediction, Prompt

ONE = pytest.approx(1, abs=1e-9)

# ---------------------------------------------------------------- noisy boxes

PINNED = [2.570169, 1.999584, 13.090904, 8.240932]


def noisy(mask: np.ndarray, number: int, seed: int = 0) -> np.ndarray:
    prompt = prompt_for("noisy-box", mask, number, seed)
    prompt.check_inside(mask.shape)
    assert prompt.box is not None and not len(prompt.points)
    return prompt.box


def test_sides_move_by_a_tenth_of_their_length() -> None:
    mask = rectangle(150, 100, 250, 140, (400, 500))
    moved = np.array([noisy(mask, number) for number in range(800)]) - (150, 100, 250, 140)
    # Standard deviations of 10 and 4 pixels; a sample of 800 lies within 15 % of them, and its mean near 0.
    assert moved.std(axis=0) == pytest.approx([10, 4, 10, 4], rel=0.15)
    assert np.abs(moved.mean(axis=0)).max() < 1.5
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.15, "each side for itself"


def test_noise_ends_at_20_pixels_and_at_the_image() -> None:
    large = rectangle(300, 300, 900, 900, (1200, 1200))
    moved = np.array([noisy(large, number) for number in range(60)]) - (300, 300, 900, 900)
    assert np.abs(moved).max() == 20
    full = np.ones((50, 70), bool)
    boxes = np.array([noisy(full, number) for number in range(60)])
    assert (boxes >= 0).all() and (boxes <= (70, 50, 70, 50)).all() and len(np.unique(boxes)) > 20


def test_the_noisy_box_of_a_pixel_has_an_area() -> None:
    boxes = np.array([noisy(rectangle(7, 3, 8, 4), number) for number in range(200)])
    assert (boxes[:, :2] < boxes[:, 2:]).all()


def test_noise_is_fixed_by_annotation_and_seed() -> None:
    mask = rectangle(3, 2, 12, 8)
    assert noisy(mask, 7).tolist() == noisy(mask, 7).tolist()
    assert noisy(mask, 7).tolist() != noisy(mask, 8).tolist()
    assert noisy(mask, 7).tolist() != noisy(mask, 7, seed=1).tolist()


def test_noise_is_the_same_on_every_machine() -> None:
    # Results are compared between releases: when this changes, every published result has to be measured again.
    assert noisy(rectangle(3, 2, 12, 8), 7) == pytest.approx(PINNED, abs=1e-5)


# ---------------------------------------------------------------- the mask that counts, boundary IoU, kept masks


def answer(masks: list[np.ndarray], scores: list[float], **prompt: Any) -> Prediction:
    return prediction(masks, scores, Prompt(**prompt))


def test_the_mask_that_counts() -> None:
    empty, part, whole = np.zeros((HEIGHT, WIDTH), bool), rectangle(2, 2, 5, 5), rectangle(2, 2, 8, 8)
    found = answer([empty, part, whole], [0.9, 0.5, 0.1], box=[2, 2, 9, 8])
    assert (chosen(found), chosen(found, "box")) == (0, 2)
    with pytest.raises(ConfigError, match="choose is 'largest'"):
        chosen(found, "largest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the prompts have none"):
        chosen(answer([empty], [0.5], points=[[1, 1]]), "box")


SQUARE = rectangle(2, 2, 6, 6)
CORNER = SQUARE & ~rectangle(4, 4, 6, 6)


def objects(tmp_path: Path) -> CocoFolder:
    crowd = annotation(4, rectangle(0, 0, 20, 10), iscrowd=1)
    both = [annotation(1, SQUARE), annotation(2, CORNER, category_id=2), crowd]
    return write_folder(tmp_path, coco([*both, annotation(3, CORNER, image_id=2)], images=3))


def test_the_box_can_choose_instead_of_the_score(tmp_path: Path) -> None:
    folder = objects(tmp_path)
    session = BoxFiller((0.3, 0.5), refined_score=0.2)
    result = evaluate(session, folder, "box", choose="box", refine=AMRConfig())
    assert [record.chosen for record in result.records] == [0, 0, 0]
    # What was chosen is what is refined: its 0.3 is not beaten by 0.2.
    assert {record.refined.kept for record in result.records if record.refined} == {"first"}
    assert result.records[0].refined.iou == 1  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="the prompts have none"):
        evaluate(session, folder, "points-1", choose="box")


def test_records_carry_the_boundary_iou(tmp_path: Path) -> None:
    result = evaluate(BoxFiller((0.5, 0.9)), objects(tmp_path), "box", refine=AMRConfig())
    left = rectangle(2, 2, 4, 6)
    assert [record.boundary_iou for record in result.records] == [
        boundary_iou(left, SQUARE),
        boundary_iou(left, CORNER),
        boundary_iou(left, CORNER),
    ]
    summary = result.summary()
    assert summary["boundary_iou"] == pytest.approx(np.mean([r.boundary_iou for r in result.records]))
    assert result.records[0].boundary_iou != result.records[0].iou
    assert summary["boundary_iou_refined"] == summary["boundary_iou"], "0.8 does not beat 0.9"
    assert evaluate(BoxFiller(), objects(tmp_path / "b"), "box").summary()["boundary_iou_refined"] is None


def test_masks_are_kept_when_asked_and_left_out_of_the_json(tmp_path: Path) -> None:
    folder = objects(tmp_path)
    kept = evaluate(BoxFiller((0.5, 0.9), 0.95), folder, "box", refine=AMRConfig(), keep_masks=True)
    first, refined = kept.coco_results(), kept.coco_results(refined=True)
    assert (decode_rle(first[0]["segmentation"]) == rectangle(2, 2, 4, 6)).all()
    assert (decode_rle(refined[0]["segmentation"]) == SQUARE).all()
    assert [one["score"] for one in (first[0], refined[0])] == pytest.approx([0.9, 0.95])
    assert [(one["image_id"], one["category_id"]) for one in first] == [(1, 1), (1, 2), (2, 1)]
    plain = evaluate(BoxFiller((0.5, 0.9), 0.95), folder, "box", refine=AMRConfig())
    assert kept.rows()[0].keys() == plain.rows()[0].keys()
    assert "mask" not in json.loads(json.dumps(EvaluationOutcome(folder, kept).document()))["records"][0]
    for bad in (plain.coco_results, evaluate(BoxFiller(), folder, "box", keep_masks=True).coco_results):
        with pytest.raises(ConfigError, match="keep_masks"):
            bad(refined=True)


# ---------------------------------------------------------------- mask AP


def annotations_of(tmp_path: Path) -> Path:
    return tmp_path / "a.json"


def test_ap_of_an_evaluation(tmp_path: Path) -> None:
    folder = objects(tmp_path)
    result = evaluate(BoxFiller((0.5, 0.9), 0.95), folder, "box", refine=AMRConfig(), keep_masks=True)
    scores = evaluation_ap(result, annotations_of(tmp_path))
    document = json.loads(annotations_of(tmp_path).read_text())
    assert scores.first == coco_scores(document, result.coco_results())
    assert scores.refined == coco_scores(document, result.coco_results(refined=True))
    assert scores.refined.per_category["cell"] > scores.first.per_category["cell"]  # type: ignore[union-attr, operator]
    assert (scores.prompts, scores.images) == ("ground truth, box", 2)
    json.dumps(scores.summary())
    with pytest.raises(ConfigError, match="keep_masks"):
        evaluation_ap(evaluate(BoxFiller(), folder, "box"), annotations_of(tmp_path))


def test_an_image_that_cannot_be_read_does_not_count(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, coco([annotation(1, SQUARE), annotation(2, SQUARE, image_id=2)], images=2))
    whole = evaluate(BoxFiller(), folder, "box", keep_masks=True)
    assert evaluation_ap(whole, annotations_of(tmp_path)).first.ap == ONE
    (tmp_path / "images" / "2.png").unlink()
    part = evaluation_ap(evaluate(BoxFiller(), folder, "box", keep_masks=True), annotations_of(tmp_path))
    assert (part.first.ap, part.images) == (ONE, 1)
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(DatasetError, match="No image could be evaluated"):
        evaluation_ap(evaluate(BoxFiller(), folder, "box", keep_masks=True), annotations_of(tmp_path))


@pytest.mark.parametrize(
    ("part", "key", "value", "named"),
    [
        ("images", "id", "1", r"images\[0\]\.id must be int"),
        ("annotations", "image_id", [1], r"annotations\[0\]\.image_id must be int"),
        ("annotations", "category_id", 9, r"annotations\[0\]\.category_id 9 is not the id"),
    ],
)
def test_ground_truth_is_checked_when_it_is_scored(part: str, key: str, value: Any, named: str, tmp_path: Path) -> None:
    result = evaluate(BoxFiller(), objects(tmp_path), "box", keep_masks=True)
    document = json.loads(annotations_of(tmp_path).read_text())
    document[part][0][key] = value
    with pytest.raises(DatasetError, match=named):
        evaluation_ap(result, document)


def test_an_object_that_the_model_refused_is_missed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, coco([annotation(1, SQUARE), annotation(2, rectangle(8, 2, 12, 6))]))

    class Picky(BoxFiller):
        def encode(self, image: np.ndarray) -> BoxFillerImage:
            return PickyImage(self, image.shape[:2])

    class PickyImage(BoxFillerImage):
        def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
            if prompt.box[0] > 5:  # type: ignore[index]
                raise PromptError("No.")
            return super().predict(prompt)

    scores = evaluation_ap(evaluate(Picky(), folder, "box", keep_masks=True), annotations_of(tmp_path))
    assert scores.first.ar100 == pytest.approx(1 / 2)


def test_a_broken_score_counts_as_the_lowest(tmp_path: Path) -> None:
    folder = objects(tmp_path)
    result = evaluate(BoxFiller((math.nan, 0.2)), folder, "box", keep_masks=True)
    assert {one["score"] for one in result.coco_results()} == {0.0}
    assert evaluation_ap(result, annotations_of(tmp_path)).first.ap is not None


def boxes(folder: CocoFolder) -> list[dict[str, Any]]:
    """A detector that finds everything, and one thing on the image without objects."""
    found = [
        {"image_id": image.image_id, "category_id": one.category_id, "bbox": list(one.bbox_xywh), "score": 0.6}
        for image in folder.images
        for one in image.objects
        if not one.is_crowd
    ]
    return [*found, {"image_id": 3, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.9}]


def test_a_detectors_boxes_become_masks(tmp_path: Path) -> None:
    objects(tmp_path)
    folder = read_coco_folder(annotations_of(tmp_path), tmp_path / "images", keep_empty=True)
    assert [image.image_id for image in folder.images] == [1, 2, 3]
    session = BoxFiller((0.3, 0.5), refined_score=0.8)
    found = segment_detections(session, folder, boxes(folder), refine=AMRConfig())
    assert session.encoded == 3
    assert [one["score"] for one in found.first] == [0.6, 0.6, 0.6, 0.9], "the detector's"
    assert [one["category_id"] for one in found.first] == [1, 2, 1, 1]
    assert (decode_rle(found.first[0]["segmentation"]) == SQUARE).all(), "chosen by the box"
    document = json.loads(annotations_of(tmp_path).read_text())
    scores = mask_ap(found, annotations_of(tmp_path), prompts="boxes.json")
    assert scores.first == coco_scores(document, list(found.first))
    assert found.refined is not None and scores.refined == coco_scores(document, list(found.refined))
    assert (scores.prompts, scores.images) == ("boxes.json", 3)
    # The false alarm on the image without objects costs precision.
    right = coco_scores(document, list(found.first[:3])).ap
    assert scores.first.ap < right  # type: ignore[operator]
    by_score = segment_detections(session, folder, boxes(folder), choose="score")
    assert (decode_rle(by_score.first[0]["segmentation"]) == rectangle(2, 2, 4, 6)).all()
    assert by_score.refined is None and mask_ap(by_score, document).refined is None


def test_only_the_best_boxes_and_first_images_are_prompted(tmp_path: Path) -> None:
    objects(tmp_path)
    folder = read_coco_folder(annotations_of(tmp_path), tmp_path / "images", keep_empty=True)
    detections = boxes(folder)
    detections[1]["score"] = 0.7
    session = BoxFiller()
    found = segment_detections(session, folder, detections, most_boxes=1, limit_images=1)
    assert [(one["image_id"], one["score"]) for one in found.first] == [(1, 0.7)]
    assert found.images == {1}
    assert mask_ap(found, annotations_of(tmp_path)).images == 1


def test_detections_that_fail_cost_only_themselves(tmp_path: Path) -> None:
    objects(tmp_path)
    folder = read_coco_folder(annotations_of(tmp_path), tmp_path / "images", keep_empty=True)
    detections = boxes(folder)
    detections[1]["bbox"] = [3, 3, 0, 5]
    (tmp_path / "images" / "3.png").write_bytes(b"")
    found = segment_detections(BoxFiller(), folder, detections)
    assert [(f.image_id, f.reason[:10]) for f in found.failures][0] == (1, "results[1]")
    assert [f.image_id for f in found.failures] == [1, 3]
    assert (len(found.first), found.images) == (2, {1, 2})


def test_a_malformed_detection_costs_only_itself(tmp_path: Path) -> None:
    objects(tmp_path)
    folder = read_coco_folder(annotations_of(tmp_path), tmp_path / "images", keep_empty=True)
    detections = boxes(folder)
    path = tmp_path / "found.json"
    path.write_text(json.dumps([detections[0] | {"bbox": [1, 2, 3]}, *detections[1:], 7]))
    found = segment_detections(BoxFiller(), folder, path)
    assert len(found.first) == len(detections) - 1
    assert [(f.file_name, f.reason[:12]) for f in found.failures] == [
        ("found.json", "results[0].b"),
        ("found.json", f"results[{len(detections)}] m"),
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_id": 4}, "results[0].image_id 4"),
        ({"category_id": 9}, "results[0].category_id 9"),
        ({"bbox": [1, 2, 3]}, "results[0].bbox"),
        ({"score": math.inf}, "results[0].score"),
    ],
)
def test_bad_detections_are_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder, session = objects(tmp_path), BoxFiller()
    with pytest.raises(DatasetError) as caught:
        segment_detections(session, folder, [boxes(folder)[0] | change])
    assert named in str(caught.value)
    assert session.encoded == 0


def test_detection_settings_are_checked(tmp_path: Path) -> None:
    folder = objects(tmp_path)
    for settings in ({"most_boxes": 0}, {"choose": "first"}, {"limit_images": -1}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            segment_detections(BoxFiller(), folder, boxes(folder)[:1], **settings)  # type: ignore[arg-type]


def test_an_lvis_file_is_read_and_scored(tmp_path: Path) -> None:
    content = coco([annotation(1, SQUARE), annotation(2, CORNER, category_id=2)])
    for category in content["categories"]:
        category["frequency"] = "r"
    for image in content["images"]:
        del image["file_name"]
        image |= {
            "coco_url": "http://images.cocodataset.org/val2017/1.png",
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        }
    for one in content["annotations"]:
        del one["iscrowd"]
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    (tmp_path / "a.json").write_text(json.dumps(content))
    write_png(tmp_path / "images" / "val2017" / "1.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    write_png(tmp_path / "images" / "1.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    for folder in (tmp_path / "images", tmp_path / "images" / "val2017"):
        result = evaluate(BoxFiller(), read_coco_folder(tmp_path / "a.json", folder), "box", keep_masks=True)
        scores = evaluation_ap(result, tmp_path / "a.json", lvis=True)
        assert isinstance(scores.first, LvisScores)
        assert (scores.first.per_category[1], scores.first.ap_frequent) == (ONE, None)


# ---------------------------------------------------------------- proposals


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_recall_of_proposals_equals_pycocotools(iou_type: Any) -> None:
    document, results = made(1, images=5, detections=300)
    results = [one | {"category_id": 1} for one in results]
    scores = proposal_scores(document, results, iou_type=iou_type)
    other = {"segm": "bbox", "bbox": "segmentation"}[iou_type]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        found = truth.loadRes([{key: one[key] for key in one if key != other} for one in results])
        evaluation = COCOeval(truth, found, iou_type)
        evaluation.params.useCats, evaluation.params.maxDets = 0, [10, 100, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(scores.summary().values()) == pytest.approx(evaluation.stats[6:].tolist(), abs=1e-9)
    assert min(evaluation.stats[9:]) >= 0, "all sizes occur"
    assert 0 < scores.ar10 < scores.ar100 < scores.ar1000 < 1  # type: ignore[operator]
    fast = proposal_scores(document, results, iou_type=iou_type, backend="faster")
    assert list(fast.summary().values()) == pytest.approx(list(scores.summary().values()), abs=1e-9)
    without = [{key: one[key] for key in one if key != "category_id"} for one in results]
    assert proposal_scores(document, without, iou_type=iou_type) == scores


class Proposer(BoxFiller):
    """Finds two squares in every image."""

    def iterate_everything(self, image: Any, **settings: Any) -> Iterator[Prediction]:
        assert isinstance(image, BoxFillerImage) and settings == {
            **RECALL_SETTINGS,
            "points_per_side": 3,
            "overlap_threshold": 0.7,
        }
        prompt = Prompt(points=[[1, 1]])
        yield prediction([SQUARE], [0.9], prompt)
        yield prediction([rectangle(9, 2, 12, 5)], [math.nan], prompt)


def test_everything_is_proposed_on_every_image(tmp_path: Path) -> None:
    objects(tmp_path)
    folder = read_coco_folder(annotations_of(tmp_path), tmp_path / "images", keep_empty=True)
    (tmp_path / "images" / "2.png").unlink()
    found = propose(Proposer(), folder, points_per_side=3, overlap_threshold=0.7)
    assert [one["image_id"] for one in found.results] == [1, 1, 3, 3]
    assert [one["score"] for one in found.results] == pytest.approx([0.9, 0.0, 0.9, 0.0])
    assert (decode_rle(found.results[0]["segmentation"]) == SQUARE).all()
    assert found.images == {1, 3}
    assert [failure.image_id for failure in found.failures] == [2]
    document = json.loads(annotations_of(tmp_path).read_text())
    assert proposal_scores(document, list(found.results)).ar1000_small > 0  # type: ignore[operator]
    assert encode_rle(SQUARE) == found.results[0]["segmentation"]
