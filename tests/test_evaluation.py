"""Evaluation: mIoU by hand, results as a file, and the real session."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation_fakes import (
    CORNER,
    HEIGHT,
    SQUARE,
    WIDTH,
    BoxFiller,
    annotation,
    coco,
    rectangle,
    three_objects,
    write_folder,
)
from refinesam.amr import AMRConfig
from refinesam.errors import ConfigError, DatasetError
from refinesam.evaluation.dataset import CocoFolder
from refinesam.evaluation.protocols import evaluate, prompt_for
from refinesam.evaluation.running import EvaluationOutcome
from refinesam.files import write_json
from refinesam.images import write_png
from refinesam.session import Session
from refinesam.types import Capabilities, Prompt

# ---------------------------------------------------------------- evaluation


def test_miou_is_that_of_the_mask_chosen_by_predicted_iou(tmp_path: Path) -> None:
    folder = three_objects(tmp_path)
    inside = evaluate(BoxFiller((0.9, 0.5)), folder, "box").summary()
    assert inside["miou"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3, abs=1e-12)
    left = evaluate(BoxFiller((0.5, 0.9)), folder, "box")
    assert [record.ious for record in left.records] == [
        pytest.approx((1, 1 / 2)),
        pytest.approx((3 / 4, 8 / 12)),
        pytest.approx((3 / 4, 8 / 12)),
    ]
    assert [record.chosen for record in left.records] == [1, 1, 1]
    assert left.records[0].predicted_ious == pytest.approx((0.5, 0.9))
    summary = left.summary()
    assert summary["miou"] == pytest.approx((1 / 2 + 8 / 12 + 8 / 12) / 3, abs=1e-12)
    assert summary["miou_oracle"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3, abs=1e-12)
    assert (summary["images"], summary["objects"], summary["objects_failed"]) == (2, 3, 0), "the crowd is left out"
    assert (summary["miou_refined"], summary["change"], summary["kept_refined"], summary["refine"]) == (None,) * 4
    assert summary["miou_interval"] == pytest.approx((7 / 12, 8 / 12), abs=1e-12), "images of 2 and 1 objects"


def test_per_category_means(tmp_path: Path) -> None:
    by_name = {
        one["name"]: (one["id"], one["objects"], one["miou"])
        for one in evaluate(BoxFiller(), three_objects(tmp_path), "box").summary()["per_category"]
    }
    assert by_name == {"cell": (1, 2, pytest.approx(7 / 8)), "cat": (2, 1, pytest.approx(3 / 4))}


def test_per_size_means_at_the_edges(tmp_path: Path) -> None:
    hw = (200, 200)
    full = [rectangle(0, 0, 33, 31, hw), rectangle(0, 0, 32, 32, hw), rectangle(0, 0, 96, 96, hw)]
    almost = rectangle(100, 100, 196, 196, hw)
    almost[199 - 4, 199 - 4] = False
    content = coco([annotation(i, mask) for i, mask in enumerate([*full, almost])], hw=hw)
    # What the file says about the area doesn't count, the mask does.
    content["annotations"][0]["area"] = 10**6
    result = evaluate(BoxFiller(), write_folder(tmp_path, content, hw), "box")
    assert [(record.area, record.size) for record in result.records] == [
        (1023, "small"),
        (1024, "medium"),
        (9216, "large"),
        (9215, "medium"),
    ]
    per_size = result.summary()["per_size"]
    assert {size: one["objects"] for size, one in per_size.items()} == {"small": 1, "medium": 2, "large": 1}
    assert per_size["medium"]["miou"] == pytest.approx((1 + 9215 / 9216) / 2, abs=1e-12)
    assert per_size["large"]["miou"] == 1


def test_refinement_is_measured_on_the_same_objects(tmp_path: Path) -> None:
    session, config = BoxFiller((0.3, 0.5), refined_score=0.8), AMRConfig(rule="centre")
    result = evaluate(session, three_objects(tmp_path), "box", refine=config)
    assert session.configs == [config] * 3
    refined = result.records[0].refined
    assert refined is not None
    assert (refined.iou, refined.rejected_iou, refined.kept) == (1, None, "refined")
    assert (refined.strategy, refined.kappa, refined.compactness) == ("boundary", 1, 0.5)
    assert refined.predicted_iou == pytest.approx(0.8)
    summary = result.summary()
    gains = [1 / 2, 3 / 4 - 8 / 12, 3 / 4 - 8 / 12]
    assert summary["miou"] == pytest.approx((1 / 2 + 8 / 12 + 8 / 12) / 3, abs=1e-12)
    assert summary["miou_refined"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3, abs=1e-12)
    change = summary["change"]
    assert change["mean"] == pytest.approx(sum(gains) / 3, abs=1e-12)
    assert (change["helped"], change["hurt"], change["unchanged"]) == (1, 0, 0)
    # Resampling two images of two and one objects: one extreme is the first image twice, the other the second.
    assert change["interval"] == pytest.approx([gains[2], (gains[0] + gains[1]) / 2], abs=1e-12)
    assert (summary["kept_refined"], summary["refine"]["rule"]) == (1, "centre")
    assert summary["per_category"][1]["miou_refined"] == pytest.approx(3 / 4)


def test_a_rejected_candidate_counts_only_for_the_oracle(tmp_path: Path) -> None:
    session = BoxFiller((0.3, 0.9), refined_score=0.1)
    result = evaluate(session, three_objects(tmp_path), "box", refine=AMRConfig())
    summary = result.summary()
    assert summary["miou_refined"] == summary["miou"] == pytest.approx((1 / 2 + 8 / 12 + 8 / 12) / 3)
    assert summary["miou_refined_oracle"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    assert summary["change"]["unchanged"] == 1
    assert summary["kept_refined"] == 0
    assert [record.refined.rejected_iou for record in result.records if record.refined] == [1, 3 / 4, 3 / 4]


def test_clicks_reach_the_model_as_the_protocol_says(tmp_path: Path) -> None:
    folder, session = three_objects(tmp_path), BoxFiller((0.9, 0.5))
    result = evaluate(session, folder, "points-3", seed=5)
    wanted = [prompt_for("points-3", mask, i, 5) for i, mask in ((1, SQUARE), (2, CORNER), (3, CORNER))]
    assert [p.points.tolist() for p in session.prompts] == [p.points.tolist() for p in wanted]
    assert [record.iou for record in result.records] == pytest.approx([3 / 16, 3 / 12, 3 / 12])
    assert evaluate(BoxFiller(), folder, "points-3", seed=5) == result
    other = BoxFiller()
    evaluate(other, folder, "points-3", seed=6)
    assert [p.points.tolist() for p in other.prompts] != [p.points.tolist() for p in wanted]


def test_each_image_is_encoded_once_and_reported(tmp_path: Path) -> None:
    session, seen = BoxFiller(), []
    folder = three_objects(tmp_path)
    result = evaluate(session, folder, "box", on_image=lambda done, total: seen.append((done, total)))
    assert session.encoded == len(result.encode_milliseconds) == 2
    assert seen == [(1, 2), (2, 2)]
    limited = evaluate(BoxFiller(), folder, "box", limit_images=1)
    assert [record.annotation_id for record in limited.records] == [1, 2]
    assert limited.summary()["miou_interval"] is None


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
def test_a_limit_that_is_none_is_refused(limit: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit_images"):
        evaluate(BoxFiller(), three_objects(tmp_path), "box", limit_images=limit)


def test_settings_are_checked_before_any_work(tmp_path: Path) -> None:
    folder, session = three_objects(tmp_path), BoxFiller()
    with pytest.raises(ConfigError, match="protocol 'boxes'"):
        evaluate(session, folder, "boxes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed"):
        evaluate(session, folder, "box", seed=-3)
    with pytest.raises(DatasetError, match="nothing to evaluate"):
        evaluate(session, CocoFolder((), {}), "box")
    assert session.encoded == 0


# ---------------------------------------------------------------- results as a file


def test_json_holds_summary_and_records(tmp_path: Path) -> None:
    folder = three_objects(tmp_path)
    result = evaluate(BoxFiller((0.3, 0.5)), folder, "box", refine=AMRConfig(), seed=4)
    path = tmp_path / "new" / "out.json"
    write_json(path, EvaluationOutcome(folder, result).document())
    content = json.loads(path.read_text("utf-8"))
    assert content["summary"] == json.loads(json.dumps(result.summary()))
    assert (content["summary"]["protocol"], content["summary"]["seed"]) == ("box", 4)
    assert content["summary"]["median_milliseconds"]["refine"] >= 0
    assert [record["annotation_id"] for record in content["records"]] == [1, 2, 3]
    first = content["records"][0]
    assert (first["iou"], first["oracle_iou"], first["size"], first["refined"]["iou"]) == (0.5, 1, "small", 1)
    assert [path.name for path in path.parent.iterdir()] == ["out.json"], "no temporary file is left"


def test_a_model_that_predicts_nan_still_gives_json(tmp_path: Path) -> None:
    folder = three_objects(tmp_path)
    result = evaluate(BoxFiller((math.nan, math.inf)), folder, "box")
    write_json(tmp_path / "out.json", EvaluationOutcome(folder, result).document())

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert content["records"][0]["predicted_ious"] == [None, None]


# ---------------------------------------------------------------- the real session


class PixelValueModel:
    """Answers a click with all pixels of its value: exact where an object has a value of its own."""

    name = "pixel value"
    capabilities = Capabilities(negative_points=False, mask_prompt=False, max_points=6, input_size=64)

    def encode(self, image: np.ndarray, on_progress: object = None) -> np.ndarray:
        return image[..., 0].astype(np.int64)

    def decode(
        self, features: np.ndarray, image_hw: tuple[int, int], prompt: Prompt, multimask_output: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        x, y = prompt.points.astype(int).T
        covered = np.isin(features, features[y, x])
        # The more clicks the surer, as real models are.
        return np.where(covered, 4.0, -4.0)[None].astype(np.float32), np.array([0.1 * len(x)], np.float32)

    def upsample(self, low_res_logits: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
        return low_res_logits > 0

    def value_at(self, low_res_logits: np.ndarray, image_hw: tuple[int, int], points: np.ndarray) -> np.ndarray:
        x, y = points.astype(int).T
        return low_res_logits[:, y, x]


def test_the_real_session_and_refinement(tmp_path: Path) -> None:
    truth, twin = rectangle(2, 2, 8, 8), rectangle(12, 3, 15, 6)
    folder = write_folder(tmp_path, coco([annotation(1, truth), annotation(2, twin)]))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[truth | twin] = 200
    write_png(tmp_path / "images" / "1.png", pixels)
    result = evaluate(Session(PixelValueModel()), folder, "random-2", refine=AMRConfig(rule="boundary"))
    assert [record.iou for record in result.records] == pytest.approx([36 / 45, 9 / 45]), "both have the same value"
    for record in result.records:
        # Boundary points lie outside, so the refined mask is the whole image, and four clicks claim more than two.
        assert record.refined is not None
        assert (record.refined.kappa, record.refined.strategy, record.refined.kept) == (2, "boundary", "refined")
        assert record.refined.iou == pytest.approx(record.area / 200)
    assert result.summary()["change"]["hurt"] == 1
