"""The consensus of several passes: what is asked of the model, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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
from refinesam.types import Prediction, Prompt

# --- What is asked of the model ---------------------------------------------------------------------------------------


@dataclass
class World:
    """Answers each prompt with the next masks of the whole image, in the image's frame or a window's."""

    answers: list[np.ndarray | Exception]
    predicted: np.ndarray = field(default_factory=lambda: scores(0.5, 0.9, 0.4))
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


def test_all_passes_in_turn() -> None:
    world = World([FIRST] + [BETTER] * 2)
    first = first_prediction()
    result = refine(first, world.answer, AMRConfig(zooms=(4, 2)), zoom=world.zoom)
    again, closer, nearer = world.prompts
    # The user's clicks fell anywhere on the object; the middle of the mask stands for it.
    np.testing.assert_array_equal(again.points, centre_points(FIRST[0]))
    # A window is around what most masks show so far.
    assert world.windows == [(70, 50, 151, 131), (85, 65, 146, 126)]
    np.testing.assert_array_equal(closer.points, CLICKS.points - [70, 50])
    np.testing.assert_array_equal(closer.mask, FIRST[0, 50:131, 70:151])
    np.testing.assert_array_equal(nearer.points, CLICKS.points - [85, 65])
    np.testing.assert_array_equal(nearer.mask, BETTER[0, 65:126, 85:146])
    np.testing.assert_array_equal(result.mask, BETTER[0])
    report = result.refinement
    assert report is not None
    assert (report.strategy, report.rule, report.kept, report.iterations) == ("zoom", "consensus", "refined", 3)
    assert (report.kappa, report.rejected) == (1, None)
    np.testing.assert_array_equal(report.points, centre_points(FIRST[0]))
    assert report.score_before == 0.5
    assert result.score == pytest.approx(report.score_after)
    # The second pass led to the windows and has no vote beside them.
    assert report.reason.startswith("The consensus of 3 passes gained 0.")
    assert report.reason.endswith(" expected IoU, so it was kept.")
    assert result.prompt is CLICKS
    # A window's logits are in another frame.
    np.testing.assert_array_equal(result.low_res_logits, np.zeros((1, 4, 4), np.float32))


def test_a_crop_is_around_what_the_second_pass_shows() -> None:
    """Of the first two masks the better one wins by the second pass's vote, so the window is around that."""
    masks = np.concatenate([FIRST, BETTER])
    world = World([BETTER] * 2)
    result = refine(first_prediction(masks), world.answer, AMRConfig(zooms=(2,)), zoom=world.zoom)
    assert world.windows == [(85, 65, 146, 126)]
    np.testing.assert_array_equal(world.prompts[1].mask, BETTER[0, 65:126, 85:146])
    np.testing.assert_array_equal(result.mask, BETTER[0])


def test_a_box_is_asked_again_in_the_window_alone() -> None:
    world = World([BETTER])
    report = refine(first_prediction(prompt=Prompt(box=[98, 78, 122, 102])), world.answer, zoom=world.zoom).refinement
    assert report is not None
    assert (report.iterations, len(world.windows)) == (1, 1)


def test_a_window_is_encoded_once() -> None:
    """Both windows around a large object are the largest there is."""
    large = square(50, 100, 100)[None]
    world = World([large] * 2)
    report = refine(first_prediction(large), world.answer, AMRConfig(zooms=(6, 5)), zoom=world.zoom).refinement
    assert report is not None
    assert (len(world.windows), report.iterations) == (1, 2)


def test_the_score_is_the_first_ones_and_the_gain() -> None:
    world = World([BETTER])
    result = refine(first_prediction(), world.answer, AMRConfig(zooms=()))
    # Two passes of the same weight: at a tie the vote leaves what both have, and more from 0.45 on.
    report = result.refinement
    assert report is not None
    assert (report.kept, report.score_before) == ("first", 0.5)
    # The second pass finds nothing, and has no vote once there is one in a crop, which counts four times.
    world = World([np.zeros_like(FIRST), BETTER])
    result = refine(first_prediction(), world.answer, AMRConfig(zooms=(6,)), zoom=world.zoom)
    overlap = (20 / 30) ** 2
    gain = (4 + overlap) / 5 - (1 + 4 * overlap) / 5
    np.testing.assert_array_equal(result.mask, BETTER[0])
    assert result.score == pytest.approx(0.5 + gain)
    sure = Prediction(FIRST, scores(0.95), np.zeros((1, 4, 4), np.float32), CLICKS)
    world = World([BETTER] * 2)
    assert refine(sure, world.answer, AMRConfig(zooms=(6,)), zoom=world.zoom).score == 1


def test_the_fast_preset_asks_once_and_encodes_nothing() -> None:
    world = World([BETTER], predicted=scores(0.9))
    report = refine(first_prediction(), world.answer, AMRConfig.fast(), zoom=world.zoom).refinement
    assert report is not None
    assert (report.strategy, report.iterations, len(world.prompts), world.windows) == ("centre", 1, 1, [])
    np.testing.assert_array_equal(world.prompts[0].points, centre_points(FIRST[0]))
    np.testing.assert_array_equal(report.points, centre_points(FIRST[0]))


def test_masks_that_agree_are_left_alone() -> None:
    alike, unlike = np.concatenate([FIRST, BETTER]), np.concatenate([FIRST, np.ones_like(FIRST)])
    # Two masks of equal weight: the first agrees with itself, and with the other as far as they overlap.
    agreement = (1 + (20 / 30) ** 2) / 2
    cases = [(alike, agreement - 0.01, 0), (alike, agreement + 0.01, 1), (unlike, agreement - 0.01, 1)]
    # A single mask has none to agree with, and one that goes against a click is not left alone.
    for masks, early_exit, asked in [*cases, (FIRST, 0.0, 1)]:
        world = World([BETTER])
        first = first_prediction(masks)
        result = refine(first, world.answer, AMRConfig(zooms=(), early_exit=early_exit))
        report = result.refinement
        assert report is not None
        assert (len(world.prompts), report.iterations) == (asked, asked)
        if not asked:
            assert result.masks is first.masks
            assert (report.kept, report.strategy, report.rejected) == ("first", "none", None)
            assert report.reason == "The first masks agree by 0.7222, so no further pass was made."
            assert math.isnan(report.score_after)
    astray = first_prediction(alike, CLICKS.with_points([[10, 12]]))
    world = World([BETTER])
    refine(astray, world.answer, AMRConfig(zooms=(), early_exit=0))
    assert len(world.prompts) == 1


def test_an_object_that_fills_the_image_gets_no_crop() -> None:
    large = square(10, 10, 180)[None]
    world = World([large])
    report = refine(first_prediction(large), world.answer, zoom=world.zoom).refinement
    assert report is not None
    assert (report.strategy, report.iterations, world.windows) == ("centre", 1, [])


def test_without_pixels_there_is_no_crop() -> None:
    world = World([BETTER])
    report = refine(first_prediction(), world.answer).refinement
    assert report is not None
    assert (report.strategy, report.iterations) == ("centre", 1)


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(box=[98, 78, 122, 102]),
        Prompt(points=[[110, 90]], box=[98, 78, 122, 102]),
        Prompt(points=[[110, 90]], mask=FIRST[0]),
        Prompt(points=[[110, 90]], mask_logits=np.zeros((4, 4), np.float32)),
    ],
    ids=["box", "box and click", "mask", "logits"],
)
def test_beside_a_box_or_a_mask_the_points_are_added(prompt: Prompt) -> None:
    world = World([BETTER])
    refine(first_prediction(prompt=prompt), world.answer, AMRConfig.fast())
    (asked,) = world.prompts
    np.testing.assert_array_equal(asked.points, np.concatenate([prompt.points, centre_points(FIRST[0])]))
    for name in ("box", "mask", "mask_logits"):
        np.testing.assert_array_equal(getattr(asked, name), getattr(prompt, name))


def test_clicks_off_the_object_stay() -> None:
    world = World([BETTER])
    refine(first_prediction(prompt=CLICKS.with_points([[10, 12]], [0])), world.answer, AMRConfig.fast())
    (asked,) = world.prompts
    np.testing.assert_array_equal(asked.points, np.concatenate([centre_points(FIRST[0]), [[10, 12]]]))
    assert asked.labels.tolist() == [1, 1, 0]


def test_without_room_for_a_point_the_logits_are_fed_back() -> None:
    world, first = World([BETTER]), first_prediction(prompt=Prompt(box=[98, 78, 122, 102]))
    report = refine(first, world.answer, AMRConfig.fast(), max_points=2).refinement
    assert report is not None
    assert (report.strategy, report.iterations, report.points.shape) == ("feedback", 1, (0, 2))
    (asked,) = world.prompts
    np.testing.assert_array_equal(asked.mask_logits, first.logits)
    np.testing.assert_array_equal(asked.box, first.prompt.box)
    assert not len(asked.points)


def test_a_box_alone_gets_points_in_the_middle_of_a_crop() -> None:
    world = World([BETTER])
    prompt = Prompt(box=[98, 78, 122, 102])
    report = refine(first_prediction(prompt=prompt), world.answer, AMRConfig(zooms=(4,)), zoom=world.zoom).refinement
    assert report is not None
    x0, y0, *_ = world.windows[0]
    (asked,) = world.prompts
    np.testing.assert_array_equal(asked.points, centre_points(FIRST[0]) - [x0, y0])
    np.testing.assert_array_equal(asked.box, prompt.box - [x0, y0, x0, y0])
    np.testing.assert_array_equal(asked.mask, FIRST[0, 42:139, 62:159])
    np.testing.assert_array_equal(report.points, centre_points(FIRST[0]))


def test_a_model_without_mask_prompts() -> None:
    world = World([BETTER])
    report = refine(first_prediction(), world.answer, zoom=world.zoom, mask_prompt=False, max_points=6).refinement
    assert report is not None
    assert (report.strategy, report.iterations, world.windows) == ("centre", 1, [])
    (asked,) = world.prompts
    np.testing.assert_array_equal(asked.points, centre_points(FIRST[0]))
    np.testing.assert_array_equal(report.points, centre_points(FIRST[0]))
    assert asked.mask_logits is None
    assert asked.mask is None


@pytest.mark.parametrize(("max_points", "placed"), [(1, 0), (2, 1), (3, 2), (None, 2)])
def test_no_more_points_than_the_model_takes(max_points: int | None, placed: int) -> None:
    world = World([BETTER])
    first = first_prediction(prompt=CLICKS.with_points([[10, 12]], [0]))
    report = refine(first, world.answer, mask_prompt=False, max_points=max_points).refinement
    assert report is not None
    assert [len(prompt.points) for prompt in world.prompts] == ([1 + placed] if placed else [])
    np.testing.assert_array_equal(report.points, centre_points(FIRST[0])[:placed])
    if not placed:
        assert (report.strategy, report.kept) == ("none", "first")
        assert report.reason == "There was nothing to try, so the first mask was kept."


def test_a_refused_prompt_costs_its_own_pass_alone() -> None:
    two = AMRConfig(zooms=(4, 2), min_gain=0)
    world = World([FIRST, PromptError("No masks here."), BETTER])
    report = refine(first_prediction(), world.answer, two, zoom=world.zoom).refinement
    assert report is not None
    assert (report.kept, report.iterations) == ("refined", 2)
    assert report.reason.endswith("so it was kept. The model refused a prompt: No masks here.")
    refused = World([PromptError("No masks here.")] * 3)
    first = first_prediction()
    result = refine(first, refused.answer, two, zoom=refused.zoom)
    assert result.masks is first.masks
    assert len(refused.prompts) == 3
    report = result.refinement
    assert report is not None
    assert (report.kept, report.strategy, report.iterations, report.rejected) == ("first", "none", 0, None)
    assert math.isnan(report.score_after)
    assert report.reason.endswith("so the first mask was kept. The model refused a prompt: No masks here.")
    with pytest.raises(RuntimeError, match="out of memory"):
        refine(first, World([RuntimeError("out of memory")]).answer)


def test_a_mask_that_loses_a_click_is_not_kept() -> None:
    away = square(100, 120, 20)[None]
    world = World([away] * 2)
    result = refine(first_prediction(), world.answer, AMRConfig(zooms=(6,)), zoom=world.zoom)
    report = result.refinement
    assert report is not None
    np.testing.assert_array_equal(result.mask, FIRST[0])
    assert report.score_after > report.score_before
    assert report.reason == "The consensus of 2 passes goes against a click, so the first mask was kept."
    np.testing.assert_array_equal(report.rejected, away[0])


def test_the_least_gain_asked_for() -> None:
    for least, kept in ((0.4, "first"), (0.3, "refined")):
        world = World([BETTER] * 2)
        config = AMRConfig(min_gain=least, zooms=(6,))
        report = refine(first_prediction(), world.answer, config, zoom=world.zoom).refinement
        assert report is not None
        assert report.kept == kept
        assert ("gained 0.3333 expected IoU, no more than 0.4, so the first" in report.reason) == (kept == "first")
        assert (report.rejected is None) == (kept == "refined")
        assert report.rejected is None or not report.rejected.flags.writeable


def test_small_gains_are_not_worth_a_change() -> None:
    first = square(80, 100, 60)[None]
    nearly = first.copy()
    nearly[0, 80] = False
    for least, kept in ((None, "first"), (0, "refined")):
        world = World([nearly] * 2)
        config = AMRConfig(min_gain=least, zooms=(2,))
        report = refine(first_prediction(first), world.answer, config, zoom=world.zoom).refinement
        assert report is not None
        assert report.kept == kept


def test_another_mask_than_the_best_can_rescue_an_empty_one() -> None:
    masks = np.concatenate([np.zeros_like(FIRST), FIRST])
    first = Prediction(masks, scores(0.9, 0.6), np.zeros((2, 4, 4), np.float32), CLICKS)
    result = refine(first, World([FIRST]).answer)
    np.testing.assert_array_equal(result.mask, FIRST[0])
    nothing = World([np.zeros_like(FIRST)])
    report = refine(first_prediction(np.zeros_like(FIRST)), nothing.answer, zoom=nothing.zoom).refinement
    assert report is not None
    assert (report.kept, report.kappa, report.rejected) == ("first", 0, None)
    assert report.reason.startswith("No pass found anything")
    assert nothing.windows == []


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
        zooms=st.lists(st.floats(1, 9), max_size=3),
        min_gain=st.sampled_from([None, 0.0, 0.02]),
        early_exit=st.sampled_from([0.0, 0.5, 1.0]),
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
        assert world.decoded - 1 == report.iterations <= 1 + len(config.zooms)
        assert (report.kept == "first") == (result.masks is first.masks)
        assert result.mask.any() or not first.mask.any()
        assert result.mask.shape == shape
        assert result.low_res_logits.shape == (len(result.masks), 1, 1)
        assert report.score_before == pytest.approx(first.score)
        if report.kept == "refined":
            assert result.score == pytest.approx(report.score_after)
            assert report.score_after >= min(1, first.score + (config.min_gain or 0)) - 1e-6
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
    assert (refined.refinement.strategy, refined.refinement.iterations) == ("zoom", 2)
    np.testing.assert_array_equal(refined.mask, patch_image()[..., 0] == 100)
    assert model.encoded == 2
    assert [prompt.mask is None for prompt in model.decoded] == [True, True, False]
    encoded.refine(first, AMRConfig.fast())
    assert model.encoded == 2
    assert encoded.pixels is not None
    assert not encoded.pixels.flags.writeable
