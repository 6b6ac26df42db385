"""A closer look: what is asked of the model, and which of the two masks is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FloodModel
from mask_arrays import scores, square
from refinesam.amr import AMRConfig, Decode, Window, centre_points, refine
from refinesam.errors import PromptError
from refinesam.session import Session
from refinesam.types import Prediction, Prompt, RefinementReport

# --- What is asked of the model ---------------------------------------------------------------------------------------


@dataclass
class World:
    """Answers each prompt with the next masks of the whole image, in the image's frame or a window's."""

    answers: list[np.ndarray | Exception]
    predicted: np.ndarray = field(default_factory=lambda: scores(0.9, 0.5, 0.4))
    prompts: list[Prompt] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)

    def answer(self, prompt: Prompt, window: Window | None = None) -> Prediction:
        answer = self.answers[len(self.prompts)]
        self.prompts.append(prompt)
        if isinstance(answer, Exception):
            raise answer
        if window is not None:
            x0, y0, x1, y1 = window
            prompt.check_inside((y1 - y0, x1 - x0))
            answer = answer[:, y0:y1, x0:x1]
        logits = np.full((len(answer), 4, 4), len(self.prompts), np.float32)
        return Prediction(answer, self.predicted[: len(answer)], logits, prompt)

    def zoom(self, window: Window) -> Decode:
        self.windows.append(window)
        return lambda prompt: self.answer(prompt, window)


CLICKS = Prompt(points=[[110, 90], [105, 85]])
FIRST, BETTER = square(80, 100, 20)[None], square(80, 100, 30)[None]


def first_prediction(masks: np.ndarray = FIRST, prompt: Prompt = CLICKS) -> Prediction:
    return Prediction(masks, scores(*[0.5] * len(masks)), np.zeros((len(masks), 4, 4), np.float32), prompt)


def look(world: World, first: Prediction, config: AMRConfig | None = None, **settings: Any) -> RefinementReport:
    report = refine(first, world.answer, config, zoom=world.zoom, **settings).refinement
    assert report is not None
    return report


def test_the_object_is_asked_for_in_a_crop_of_its_own() -> None:
    world = World([BETTER])
    first = first_prediction()
    result = refine(first, world.answer, AMRConfig(crop_factor=4), zoom=world.zoom)
    assert world.windows == [(70, 50, 151, 131)]
    (asked,) = world.prompts
    middle = centre_points(FIRST[0])
    np.testing.assert_array_equal(asked.points, np.concatenate([CLICKS.points, middle]) - [70, 50])
    np.testing.assert_array_equal(asked.labels, [1, 1, 1, 1])
    np.testing.assert_array_equal(asked.mask, FIRST[0, 50:131, 70:151])
    np.testing.assert_array_equal(result.mask, BETTER[0])
    report = result.refinement
    assert report is not None
    assert (report.strategy, report.rule, report.kept, report.iterations) == ("zoom", "closer_look", "refined", 1)
    assert (report.kappa, report.rejected) == (1, None)
    np.testing.assert_array_equal(report.points, middle)
    assert (report.score_before, report.score_after) == (0.5, pytest.approx(0.9))
    assert result.score == pytest.approx(0.9)
    assert report.reason == (
        "A closer look, in a crop of 81 x 81 pixels, changed 500 pixels of a mask of 400 (IoU of the two masks 0.44; "
        "predicted IoU 0.50 before, 0.90 after). Its mask was kept."
    )
    assert result.prompt is CLICKS
    # The crop's logits are in another frame.
    np.testing.assert_array_equal(result.low_res_logits, np.zeros((1, 4, 4), np.float32))


def test_the_logits_are_those_of_the_nearest_first_mask() -> None:
    masks = np.concatenate([FIRST, BETTER])
    logits = np.stack([np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)])
    first = Prediction(masks, scores(0.5, 0.4), logits, CLICKS)
    result = refine(first, World([BETTER]).answer, zoom=World([BETTER]).zoom)
    np.testing.assert_array_equal(result.low_res_logits, logits[1:])


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(box=[98, 78, 122, 102]),
        Prompt(points=[[110, 90], [10, 12]], labels=[1, 0], box=[98, 78, 122, 102]),
        Prompt(points=[[110, 90]], mask=BETTER[0]),
        Prompt(points=[[110, 90]], mask_logits=np.zeros((4, 4), np.float32)),
    ],
    ids=["box", "box and clicks", "mask", "logits"],
)
def test_the_prompt_moves_into_the_crop(prompt: Prompt) -> None:
    world = World([FIRST])
    look(world, first_prediction(prompt=prompt), AMRConfig(crop_factor=4))
    (asked,) = world.prompts
    x0, y0, x1, y1 = world.windows[0]
    inside = [point for point in prompt.points.tolist() if x0 <= point[0] < x1 and y0 <= point[1] < y1]
    np.testing.assert_array_equal(asked.points, np.array([*inside, *centre_points(FIRST[0]).tolist()]) - [x0, y0])
    np.testing.assert_array_equal(asked.mask, FIRST[0, y0:y1, x0:x1])
    assert asked.mask_logits is None
    if prompt.box is not None:
        np.testing.assert_array_equal(asked.box, prompt.box - [x0, y0, x0, y0])


@pytest.mark.parametrize(("max_points", "placed"), [(2, 0), (3, 1), (4, 2), (None, 2)])
def test_no_more_points_than_the_model_takes(max_points: int | None, placed: int) -> None:
    world = World([BETTER])
    report = look(world, first_prediction(), max_points=max_points)
    assert len(world.prompts[0].points) == 2 + placed
    np.testing.assert_array_equal(report.points, centre_points(FIRST[0], placed) if placed else np.zeros((0, 2)))


def kept_first(report: RefinementReport, words: str) -> None:
    assert (report.kept, report.strategy, report.iterations, report.rejected) == ("first", "none", 0, None)
    assert math.isnan(report.score_after)
    assert words in report.reason


def test_where_there_is_no_closer_look() -> None:
    large, nothing = square(10, 10, 180)[None], np.zeros_like(FIRST)
    world = World([])
    kept_first(look(world, first_prediction(large)), "fills so much of the image")
    kept_first(look(world, first_prediction(nothing)), "first mask is empty")
    kept_first(
        look(world, first_prediction(), mask_prompt=False), "it needs the mask as a prompt, and this model takes none"
    )
    without_pixels = refine(first_prediction(), world.answer).refinement
    assert without_pixels is not None
    kept_first(without_pixels, "pixels are not at hand")
    assert (world.windows, world.prompts) == ([], [])


def test_a_model_without_mask_prompts_is_asked_again_after_a_box() -> None:
    world, prompt = World([FIRST]), Prompt(box=[98, 78, 122, 102])
    report = look(world, first_prediction(prompt=prompt), mask_prompt=False, max_points=6)
    assert (report.strategy, report.kept) == ("zoom", "refined")
    (asked,) = world.prompts
    x0, y0, *_ = world.windows[0]
    assert asked.mask is None and asked.mask_logits is None
    np.testing.assert_array_equal(asked.points, centre_points(FIRST[0]) - [x0, y0])
    np.testing.assert_array_equal(asked.box, prompt.box - [x0, y0, x0, y0])
    report = look(World([BETTER]), first_prediction(prompt=prompt), mask_prompt=False)
    assert "something else (IoU with the first mask 0.44, below 0.8)" in report.reason


def test_the_fast_preset_asks_again_on_the_whole_image_after_a_box() -> None:
    nearly, prompt = square(80, 100, 22)[None], Prompt(points=[[110, 90]], box=[98, 78, 122, 102])
    world, first = World([nearly]), first_prediction(prompt=prompt)
    result = refine(first, world.answer, AMRConfig.fast(), zoom=world.zoom)
    (asked,) = world.prompts
    np.testing.assert_array_equal(asked.mask_logits, first.logits)
    np.testing.assert_array_equal(asked.box, prompt.box)
    np.testing.assert_array_equal(asked.points, np.concatenate([prompt.points, centre_points(FIRST[0])]))
    np.testing.assert_array_equal(result.mask, nearly[0])
    assert result.refinement is not None
    assert result.refinement.strategy == "feedback"
    assert result.refinement.reason.startswith("A second look changed 84 pixels of a mask of 400 (")
    assert world.windows == []
    kept_first(look(World([]), first_prediction(), AMRConfig.fast()), "without a box")
    kept_first(look(World([]), first, AMRConfig.fast(), mask_prompt=False), "this model takes none")


def test_a_refused_prompt_keeps_the_first_mask() -> None:
    first = first_prediction()
    world = World([PromptError("No masks here.")])
    result = refine(first, world.answer, zoom=world.zoom)
    assert result.masks is first.masks
    assert result.refinement is not None
    kept_first(result.refinement, "The model refused the prompt of the closer look: No masks here.")
    with pytest.raises(RuntimeError, match="out of memory"):
        look(World([RuntimeError("out of memory")]), first)


BOX = Prompt(box=[98, 78, 132, 112])


@pytest.mark.parametrize(
    ("prompt", "other", "config", "words"),
    [
        (CLICKS, np.zeros_like(FIRST), AMRConfig(), "it found nothing"),
        (CLICKS, square(100, 120, 20)[None], AMRConfig(), "it goes against a click"),
        (
            CLICKS,
            square(80, 100, 38)[None],
            AMRConfig(),
            "it is about something else (IoU with the first mask 0.28, below 0.3)",
        ),
        (CLICKS, BETTER, AMRConfig(least_agreement=0.5), "it is about something else"),
        (CLICKS, BETTER, AMRConfig(min_gain=0.5), "its predicted IoU is not higher by more than 0.5"),
        (CLICKS, BETTER, AMRConfig(), ""),
        (CLICKS, BETTER, AMRConfig(min_gain=0.3), ""),
        (BOX, BETTER, AMRConfig(), ""),
        (Prompt(mask=FIRST[0]), BETTER, AMRConfig(), ""),
        (BOX, square(80, 100, 22)[None], AMRConfig(), ""),
    ],
)
def test_what_keeps_the_first_mask(prompt: Prompt, other: np.ndarray, config: AMRConfig, words: str) -> None:
    world, first = World([other]), first_prediction(prompt=prompt)
    result = refine(first, world.answer, config, zoom=world.zoom)
    report = result.refinement
    assert report is not None
    assert report.score_after == pytest.approx(0.9)
    if words:
        assert f"The first mask was kept, because {words}" in report.reason
        assert result.masks is first.masks
        np.testing.assert_array_equal(report.rejected, other[0])
        assert report.rejected is not None and not report.rejected.flags.writeable
    else:
        assert report.kept == "refined"
        np.testing.assert_array_equal(result.mask, other[0])


# --- Whatever the masks -----------------------------------------------------------------------------------------------


@dataclass
class Noise:
    """Answers with blobs that depend on the prompt alone, and checks the prompt."""

    shape: tuple[int, int]
    max_points: int | None
    seed: int
    decoded: int = 0

    def answer(self, prompt: Prompt, hw: tuple[int, int] | None = None) -> Prediction:
        hw = hw or self.shape
        prompt.check_inside(hw)
        assert self.max_points is None or len(prompt.points) + 2 * (prompt.box is not None) <= self.max_points
        self.decoded += 1
        rng = np.random.default_rng((self.seed, self.decoded))
        noise = rng.random((3, *hw)) < rng.uniform(0, 1, (3, 1, 1))
        masks = np.stack([scipy.ndimage.binary_opening(mask) for mask in noise])
        logits = np.where(masks[:, :1, :1], 1, -1).astype(np.float32)
        return Prediction(masks, rng.random(3).astype(np.float32), logits, prompt)

    def zoom(self, window: Window) -> Decode:
        x0, y0, x1, y1 = window
        return lambda prompt: self.answer(prompt, (y1 - y0, x1 - x0))


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    seed=st.integers(0, 10**6),
    config=st.builds(
        AMRConfig,
        crop_factor=st.one_of(st.none(), st.floats(1, 9)),
        min_gain=st.sampled_from([None, 0.0, 0.02]),
        least_agreement=st.sampled_from([0.0, 0.3, 0.8]),
        point_count=st.integers(1, 3),
    ),
    max_points=st.one_of(st.none(), st.integers(2, 6)),
    mask_prompt=st.booleans(),
    data=st.data(),
)
def test_whatever_the_masks(
    shape: tuple[int, int],
    seed: int,
    config: AMRConfig,
    max_points: int | None,
    mask_prompt: bool,
    data: st.DataObject,
) -> None:
    x = data.draw(st.floats(0, shape[1], exclude_max=True, width=32))
    y = data.draw(st.floats(0, shape[0], exclude_max=True, width=32))
    prompt = data.draw(st.sampled_from([Prompt([[x, y]]), Prompt(box=[x - 3, y - 3, x + 7, y + 9])]))
    runs = []
    for _ in range(2):
        world = Noise(shape, max_points, seed)
        first = world.answer(prompt)
        result = refine(first, world.answer, config, max_points=max_points, mask_prompt=mask_prompt, zoom=world.zoom)
        report = result.refinement
        assert report is not None
        assert world.decoded - 1 == report.iterations <= 1
        assert (report.kept == "first") == (result.masks is first.masks)
        assert result.mask.any() or not first.mask.any()
        assert result.mask.shape == shape
        assert result.low_res_logits.shape == (len(result.masks), 1, 1)
        assert report.score_before == pytest.approx(first.score)
        if report.kept == "refined":
            assert result.score == pytest.approx(report.score_after)
            assert config.min_gain is None or report.score_after > first.score + config.min_gain
        assert (report.points >= 0).all()
        assert (report.points < shape[::-1]).all()
        runs.append((result.mask.tolist(), report.to_dict()))
    assert runs[0] == runs[1]


# --- On a session -----------------------------------------------------------------------------------------------------


def patch_image() -> np.ndarray:
    image = np.zeros((120, 160, 3), np.uint8)
    image[40:60, 50:80] = 100
    return image


def test_a_session_zooms_into_its_own_copy_of_the_image() -> None:
    image, model = patch_image(), FloodModel(mask_prompt=True)
    encoded = Session(model).encode(image)
    image[:] = 100  # what the caller does to its array later is no matter
    first = encoded.predict(Prompt(points=[[60, 50]]))
    refined = encoded.refine(first)
    assert refined.refinement is not None
    assert (refined.refinement.strategy, refined.refinement.iterations) == ("zoom", 1)
    np.testing.assert_array_equal(refined.mask, patch_image()[..., 0] == 100)
    assert model.encoded == 2
    assert [prompt.mask is None for prompt in model.decoded] == [True, False]
    assert encoded.pixels is not None
    assert not encoded.pixels.flags.writeable
