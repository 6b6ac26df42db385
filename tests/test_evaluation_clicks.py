"""Number of clicks: where the next one goes, when clicking ends, what is counted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation_fakes import HEIGHT, WIDTH, annotation, coco, prediction, rectangle, write_folder
from refinesam.errors import ConfigError, DatasetError, PromptError
from refinesam.evaluation.click_report import Click, ClickEvaluation, ClickRecord
from refinesam.evaluation.clicks import count_clicks, next_click
from refinesam.evaluation.dataset import CocoFolder
from refinesam.evaluation.metrics import bootstrap_interval
from refinesam.types import Capabilities, Prediction, Prompt

ALL = Capabilities(negative_points=True, mask_prompt=True, max_points=None, input_size=64)


@dataclasses.dataclass
class Stamper:
    """Covers a square of side 5 around each positive click and nothing around each negative one."""

    capabilities: Capabilities = ALL
    prompts: list[Prompt] = dataclasses.field(default_factory=list)

    def encode(self, image: np.ndarray) -> StampedImage:
        return StampedImage(self, image.shape[:2])


@dataclasses.dataclass
class StampedImage:
    session: Stamper
    hw: tuple[int, int]

    def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
        self.session.prompts.append(prompt)
        mask = np.zeros(self.hw, bool)
        for (x, y), label in zip(prompt.points.astype(int).tolist(), prompt.labels.tolist(), strict=True):
            mask[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = label == 1
        answer = prediction([~mask, mask], [0.2, 0.7], prompt)
        number = len(self.session.prompts)
        return dataclasses.replace(answer, low_res_logits=np.stack([np.zeros((4, 4)), np.full((4, 4), number)]))


def folder_of(path: Path, *masks: np.ndarray) -> CocoFolder:
    return write_folder(path, coco([annotation(i, mask) for i, mask in enumerate(masks, start=1)]))


# ---------------------------------------------------------------- where the next click goes


def naive_next_click(truth: np.ndarray, mask: np.ndarray, clicked: np.ndarray) -> Click | None:
    """All distances to every pixel outside the error, the border's surroundings included."""
    best, found = 0, None
    for positive, error in ((False, mask & ~truth), (True, truth & ~mask)):
        padded = np.pad(error, 1)
        outside = np.argwhere(~padded) - 1
        for row, column in np.argwhere(error & ~clicked):
            squared = ((outside - (row, column)) ** 2).sum(axis=1).min()
            if squared > best:
                best, found = squared, Click(column + 0.5, row + 0.5, positive)
    return found


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 14), width=st.integers(1, 14), density=st.floats(0, 0.9))
def test_the_next_click_is_the_deepest_wrong_pixel(seed: int, height: int, width: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    truth, mask = np.zeros((height, width), bool), np.zeros((height, width), bool)
    for target in (truth, mask):
        for _ in range(2):
            y, x = rng.integers(height), rng.integers(width)
            target[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] ^= True
    clicked = rng.random((height, width)) < density
    assert next_click(truth, mask, clicked) == naive_next_click(truth, mask, clicked)


def test_the_first_click_is_the_objects_centre() -> None:
    truth, nothing = rectangle(3, 2, 10, 9), np.zeros((HEIGHT, WIDTH), bool)
    assert next_click(truth, nothing, nothing) == Click(6.5, 5.5, True)
    # At the image's border the object ends.
    corner = rectangle(0, 0, 5, 5)
    assert next_click(corner, nothing, nothing) == Click(2.5, 2.5, True)


def test_errors_are_weighed_and_clicked_pixels_left_out() -> None:
    truth, mask = rectangle(0, 0, 3, 3), rectangle(10, 0, 15, 5)
    clicked = np.zeros_like(truth)
    assert next_click(truth, mask, clicked) == Click(12.5, 2.5, False)
    clicked[2, 12] = True
    assert next_click(truth, mask, clicked) == Click(11.5, 1.5, False), "the first of those around it"
    assert next_click(mask, truth, np.zeros_like(truth)) == Click(12.5, 2.5, True)
    assert next_click(truth, truth, np.zeros_like(truth)) is None
    assert next_click(truth, mask, truth | mask) is None
    # As deep as each other: the negative one.
    assert next_click(truth, rectangle(10, 0, 13, 3), np.zeros_like(truth)) == Click(11.5, 1.5, False)


# ---------------------------------------------------------------- clicking


def test_clicks_are_made_until_the_mask_is_good(tmp_path: Path) -> None:
    # 10 x 5: the first stamp, at (2, 2), covers the left half; the second the right one.
    session = Stamper()
    result = count_clicks(session, folder_of(tmp_path, rectangle(0, 0, 10, 5)), thresholds=(0.5, 0.9))
    (record,) = result.records
    assert record.clicks == (Click(2.5, 2.5, True), Click(7.5, 2.5, True))
    assert record.ious == (0.5, 1)
    assert (record.clicks_to(0.5), record.clicks_to(0.9), record.stopped) == (1, 2, "reached")
    assert [len(prompt.points) for prompt in session.prompts] == [1, 2], "every prompt holds all clicks"
    assert session.prompts[0].mask_logits is None
    assert session.prompts[1].mask_logits is not None and session.prompts[1].mask_logits.tolist() == [[1] * 4] * 4


def test_too_much_is_clicked_away(tmp_path: Path) -> None:
    session = Stamper()
    truth = rectangle(4, 3, 7, 6)
    result = count_clicks(session, folder_of(tmp_path, truth), max_clicks=3)
    (record,) = result.records
    assert record.clicks[0] == Click(5.5, 4.5, True)
    assert not any(click.positive for click in record.clicks[1:2])
    assert session.prompts[1].labels.tolist() == [1, 0]
    assert record.stopped == "clicks" and len(record.ious) == 3


@pytest.mark.parametrize(("can", "asked", "fed"), [(True, True, True), (True, False, False), (False, True, False)])
def test_logits_are_fed_back_where_the_model_takes_them(tmp_path: Path, can: bool, asked: bool, fed: bool) -> None:
    session = Stamper(dataclasses.replace(ALL, mask_prompt=can))
    folder = folder_of(tmp_path, rectangle(0, 0, 10, 5))
    result = count_clicks(session, folder, feed_back=asked)
    assert result.fed_back is fed
    assert [prompt.mask_logits is not None for prompt in session.prompts] == [False, fed]


def test_a_model_of_few_points_gets_no_more(tmp_path: Path) -> None:
    wide = rectangle(0, 0, 20, 5)
    few = Stamper(dataclasses.replace(ALL, max_points=2))
    (record,) = count_clicks(few, folder_of(tmp_path, wide)).records
    assert (record.stopped, len(record.clicks), record.clicks_to(0.85)) == ("points", 2, None)


def test_negative_clicks_that_are_decoded_apart_take_no_place(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, rectangle(4, 3, 7, 6))
    counts = []
    for negative_points in (True, False):
        session = Stamper(dataclasses.replace(ALL, max_points=1, negative_points=negative_points))
        (record,) = count_clicks(session, folder, max_clicks=2).records
        counts.append((len(record.clicks), record.stopped))
    assert counts == [(1, "points"), (2, "clicks")]


def test_what_fails_costs_only_itself(tmp_path: Path) -> None:
    class Picky(Stamper):
        def encode(self, image: np.ndarray) -> StampedImage:
            return PickyImage(self, image.shape[:2])

    class PickyImage(StampedImage):
        def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
            if prompt.points[0].tolist() == [12.5, 2.5]:
                raise PromptError("Not there.")
            return super().predict(prompt)

    content = coco([annotation(i, rectangle(x, 0, x + 5, 5)) for i, x in ((1, 0), (2, 10), (3, 5))], images=2)
    content["annotations"].append(annotation(4, rectangle(0, 0, 5, 5), image_id=2))
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    content["annotations"].append(annotation(5, rectangle(0, 0, 5, 5), segmentation=empty))
    content["annotations"].append(annotation(6, rectangle(0, 0, 20, 5), iscrowd=1))
    folder = write_folder(tmp_path, content)
    (tmp_path / "images" / "2.png").unlink()
    seen: list[tuple[int, int]] = []
    result = count_clicks(Picky(), folder, on_image=lambda *done: seen.append(done))
    assert [record.annotation_id for record in result.records] == [1, 3]
    assert [(f.annotation_id, f.objects) for f in result.failures] == [(2, 1), (5, 1), (None, 1)]
    assert "covers no pixel" in result.failures[1].reason
    assert seen == [(1, 2), (2, 2)]
    assert result.summary()["objects_failed"] == 3


@pytest.mark.parametrize(
    "bad",
    [{"max_clicks": 0}, {"max_clicks": 2.5}, {"thresholds": ()}, {"thresholds": (0.5, 1.2)}, {"limit_images": 0}],
)
def test_settings_are_checked(bad: dict[str, Any], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, rectangle(0, 0, 5, 5))
    with pytest.raises(ConfigError, match=next(iter(bad))):
        count_clicks(Stamper(), folder, **bad)


def test_nothing_to_click_on_is_refused() -> None:
    with pytest.raises(DatasetError, match="nothing to evaluate"):
        count_clicks(Stamper(), CocoFolder((), {}))


# ---------------------------------------------------------------- what is counted


def record(image_id: int, number: int, ious: tuple[float, ...], area: int = 50) -> ClickRecord:
    clicks = tuple(Click(0.5, 0.5, True) for _ in ious)
    return ClickRecord(image_id, number, 1, area, ious, clicks, "clicks", 1.0)


def test_the_summary_by_hand() -> None:
    records = (record(1, 1, (0.2, 0.86, 0.95)), record(1, 2, (0.9,), 2000), record(2, 3, (0.1, 0.2, 0.3, 0.4)))
    result = ClickEvaluation(4, (0.85, 0.9), True, {1: "cell"}, records, (), (1.0, 2.0))
    summary = result.summary()
    at_85, at_90 = summary["thresholds"]["0.85"], summary["thresholds"]["0.9"]
    assert (at_85["noc"], at_85["never"], at_85["objects"]) == (pytest.approx((2 + 1 + 4) / 3), pytest.approx(1 / 3), 3)
    assert at_90["noc"] == pytest.approx((3 + 1 + 4) / 3)
    assert at_85["noc_interval"] == pytest.approx(bootstrap_interval([[2, 1], [4]]))
    assert summary["miou_by_click"] == pytest.approx(
        [(0.2 + 0.9 + 0.1) / 3, (0.86 + 0.9 + 0.2) / 3, (0.95 + 0.9 + 0.3) / 3, (0.95 + 0.9 + 0.4) / 3]
    )
    assert summary["per_size"]["medium"]["0.9"]["noc"] == 1
    assert summary["per_size"]["large"]["0.9"] == {"objects": 0, "noc": None, "noc_interval": None, "never": None}
    content = json.loads(json.dumps({"summary": summary, "records": result.rows()}, allow_nan=False))
    assert content["summary"] == json.loads(json.dumps(summary))
    assert content["records"][0]["ious"] == [0.2, 0.86, 0.95]
    assert content["records"][1]["size"] == "medium"


def test_a_summary_of_nothing_has_no_numbers() -> None:
    summary = ClickEvaluation(2, (0.9,), False, {}, (), (), ()).summary()
    assert (summary["thresholds"]["0.9"]["noc"], summary["miou_by_click"]) == (None, [None, None])
