"""Evaluation: failures that cost only themselves."""

from __future__ import annotations

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
    BoxFillerImage,
    annotation,
    coco,
    three_objects,
    write_folder,
)
from refinesam.amr import AMRConfig
from refinesam.errors import PromptError
from refinesam.evaluation.protocols import PROTOCOLS, evaluate
from refinesam.evaluation.running import EvaluationOutcome
from refinesam.types import Prediction, Prompt


def test_a_bad_image_costs_only_itself(tmp_path: Path) -> None:
    content = coco([annotation(i, SQUARE, image_id=1 + i // 2) for i in range(12)], images=6)
    content["images"][3] |= {"width": HEIGHT, "height": WIDTH}
    folder = write_folder(tmp_path, content)
    images = tmp_path / "images"
    (images / "1.png").unlink()
    (images / "2.png").write_bytes(b"")
    (images / "3.png").write_bytes((images / "6.png").read_bytes()[:-30])
    (images / "5.png").write_bytes(b"not an image")
    session, seen = BoxFiller(), []
    result = evaluate(session, folder, "box", on_image=lambda done, total: seen.append(done))
    assert [(failure.image_id, failure.annotation_id, failure.objects) for failure in result.failures] == [
        (number, None, 2) for number in (1, 2, 3, 4, 5)
    ]
    assert [record.annotation_id for record in result.records] == [10, 11]
    assert all(failure.reason and str(tmp_path) not in failure.reason for failure in result.failures)
    assert all(failure.file_name == f"{failure.image_id}.png" for failure in result.failures)
    assert "20 x 10 pixels" in result.failures[3].reason and "10 x 20" in result.failures[3].reason
    summary = result.summary()
    assert (summary["images"], summary["objects"], summary["objects_failed"], summary["miou"]) == (1, 2, 10, 1)
    assert (seen, session.encoded) == ([1, 2, 3, 4, 5, 6], 1)


BAD_SEGMENTATIONS: list[tuple[Any, str]] = [
    ([], "non-empty list of polygons"),
    ([[1, 2, 3, 4]], "three x, y pairs"),
    ([[1, 2, 3, 4, 5]], "three x, y pairs"),
    ([[1, 2, 3, "four", 5, 6]], "three x, y pairs"),
    ([1, 2, 3, 4, 5, 6], "three x, y pairs"),
    ([[1, 1, 1, 1, 1, 1]], "covers no pixel"),
    ([[1, 1, 5, 1, math.nan, 5]], "NaN"),
    ([[1e6, 1e6, 2e6, 1e6, 2e6, 2e6]], "far outside"),
    ({}, "'size'"),
    ({"size": [HEIGHT, WIDTH]}, "'counts'"),
    ({"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]}, "RLE's size"),
    ({"size": [HEIGHT, WIDTH], "counts": [0, 5]}, "add up to 5"),
    ({"size": [HEIGHT, WIDTH], "counts": "\x00\x01"}, "damaged"),
    ({"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}, "covers no pixel"),
    ({"size": [-1, WIDTH], "counts": [1]}, "two positive integers"),
    ({"size": [10**9, 10**9], "counts": [1]}, "exceeds"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bad_segmentation_costs_only_itself(protocol: Any, tmp_path: Path) -> None:
    bad = [
        annotation(i, SQUARE, segmentation=segmentation) for i, (segmentation, _) in enumerate(BAD_SEGMENTATIONS, 100)
    ]
    folder = write_folder(tmp_path, coco([annotation(1, SQUARE), *bad, annotation(2, CORNER)]))
    result = evaluate(BoxFiller(), folder, protocol)
    assert [record.annotation_id for record in result.records] == [1, 2]
    assert [(f.annotation_id, f.objects, f.image_id) for f in result.failures] == [(b["id"], 1, 1) for b in bad]
    for failure, (segmentation, reason) in zip(result.failures, BAD_SEGMENTATIONS, strict=True):
        assert reason in failure.reason, segmentation


def test_a_prompt_that_the_model_refuses_costs_only_itself(tmp_path: Path) -> None:
    class Picky(BoxFiller):
        def encode(self, image: np.ndarray) -> BoxFillerImage:
            return PickyImage(self, image.shape[:2])

    class PickyImage(BoxFillerImage):
        def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
            if len(self.session.prompts) == 1:
                self.session.prompts.append(prompt)
                raise PromptError("Too many points.")
            return super().predict(prompt)

    result = evaluate(Picky(), three_objects(tmp_path), "box")
    assert [record.annotation_id for record in result.records] == [1, 3]
    assert [(f.annotation_id, f.reason) for f in result.failures] == [(2, "Too many points.")]


def test_a_fault_of_the_program_is_not_taken_for_bad_data(tmp_path: Path) -> None:
    class Broken(BoxFiller):
        def encode(self, image: np.ndarray) -> BoxFillerImage:
            raise KeyError("model")

    with pytest.raises(KeyError, match="model"):
        evaluate(Broken(), three_objects(tmp_path), "box")


def test_when_everything_fails_the_summary_says_so(tmp_path: Path) -> None:
    folder = three_objects(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    result = evaluate(BoxFiller(), folder, "box", refine=AMRConfig())
    summary = result.summary()
    assert (summary["miou"], summary["miou_refined"], summary["change"], summary["images"]) == (None, None, None, 0)
    assert summary["median_milliseconds"] == {"encode": None, "decode": None, "refine": None}
    assert EvaluationOutcome(folder, result).document()["records"] == []
