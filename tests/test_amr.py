"""Adaptive Mask Refinement against its description (source paper, section XI) and against hand-made decoders."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinesam.amr import (
    AMRConfig,
    MaskQuality,
    Rule,
    boundary_points,
    centre_points,
    choose_strategy,
    mask_quality,
    refine,
)
from refinesam.errors import ConfigError, PromptError
from refinesam.types import Prediction, Prompt

SQUARE_Q = math.pi / 4
# Those that place points; the consensus has tests of its own.
POINT_RULES = [rule for rule in get_args(Rule) if rule != "consensus"]
PROSE = AMRConfig(rule="paper_prose")


def rectangle(height: int, width: int, top: int = 3, left: int = 4, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def disc(radius: float, centre: tuple[int, int] = (30, 30), shape: tuple[int, int] = (61, 61)) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def any_mask(max_side: int = 24) -> st.SearchStrategy[np.ndarray]:
    """Noise, and noise dilated into blobs, of every shape from 1 x 1 on; empty and full ones among them."""
    noise = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=max_side))
    blobs = noise.map(lambda mask: scipy.ndimage.binary_closing(mask, iterations=1) | mask)
    return st.one_of(noise, blobs, noise.map(np.zeros_like), noise.map(np.ones_like))


# --- Mask quality -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "kappa", "compactness"),
    [
        pytest.param(np.zeros((7, 9), bool), 0, 0.0, id="empty"),
        pytest.param(np.zeros((0, 9), bool), 0, 0.0, id="no pixels at all"),
        pytest.param(rectangle(1, 1), 1, SQUARE_Q, id="one pixel"),
        pytest.param(rectangle(2, 2), 1, SQUARE_Q, id="2x2"),
        pytest.param(rectangle(9, 9), 1, SQUARE_Q, id="9x9"),
        # Outline through pixel centres: 10 x 30 gives area 9 * 29 and perimeter 2 * (9 + 29).
        pytest.param(rectangle(10, 30), 1, 4 * math.pi * 261 / 76**2, id="10x30"),
        pytest.param(rectangle(1, 12), 1, 0.0, id="1xN line"),
        pytest.param(rectangle(12, 1), 1, 0.0, id="Nx1 line"),
        # Two equal squares: twice the area, twice the perimeter.
        pytest.param(rectangle(5, 5) | rectangle(5, 5, left=20), 2, SQUARE_Q / 2, id="two squares"),
        # Areas 8 * 8 and 2 * 4, perimeters 32 and 12.
        pytest.param(rectangle(9, 9) | rectangle(3, 5, top=20), 2, 4 * math.pi * 72 / 44**2, id="two unequal blobs"),
        pytest.param(rectangle(1, 1) | rectangle(1, 1, left=9), 2, SQUARE_Q / 2, id="two single pixels"),
        pytest.param(rectangle(9, 9) & ~rectangle(3, 3, 6, 7), 1, SQUARE_Q, id="square with a hole"),
        pytest.param(np.ones((6, 6), bool), 1, SQUARE_Q, id="full"),
        pytest.param(np.ones((1, 1), bool), 1, SQUARE_Q, id="full, one pixel"),
        pytest.param(rectangle(6, 6, top=0, left=0), 1, SQUARE_Q, id="in the corner"),
        pytest.param(np.eye(4, dtype=bool), 4, 0.0, id="corner to corner is apart"),
        # A plus of five pixels: the outline is the diamond through the four tips, area 2, perimeter 4 sqrt(2).
        pytest.param(np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool), 1, SQUARE_Q, id="plus"),
    ],
)
def test_quality_by_hand(mask: np.ndarray, kappa: int, compactness: float) -> None:
    quality = mask_quality(mask)
    assert quality.kappa == kappa
    assert quality.compactness == pytest.approx(compactness, abs=1e-6)


def test_a_disc_is_compact_and_a_star_is_not() -> None:
    assert 0.85 < mask_quality(disc(25)).compactness < 1
    rows, columns = np.mgrid[-30:31, -30:31]
    star = np.hypot(rows, columns) < 16 + 12 * np.sin(7 * np.arctan2(rows, columns))
    assert mask_quality(star).compactness < 0.6


def test_a_ring_counts_as_its_outline() -> None:
    assert mask_quality(disc(25) & ~disc(15)) == mask_quality(disc(25))


@settings(max_examples=150, deadline=None)
@given(any_mask())
def test_quality_on_the_crop_is_that_of_the_whole_image(mask: np.ndarray) -> None:
    quality = mask_quality(mask)
    assert quality.kappa == scipy.ndimage.label(mask)[1]
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    perimeter = sum(cv2.arcLength(contour, True) for contour in contours)
    assert 0 <= quality.compactness <= 1 + 1e-9
    if perimeter:
        area = sum(cv2.contourArea(contour) for contour in contours)
        assert quality.compactness == pytest.approx(4 * math.pi * area / perimeter**2, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(any_mask(12), st.integers(1, 40), st.integers(1, 40))
def test_where_an_object_lies_in_a_large_image_changes_nothing(mask: np.ndarray, top: int, left: int) -> None:
    # A background margin of one pixel keeps the object off the border in both images.
    small = np.pad(mask, 1)
    large = np.pad(mask, ((top, 90), (left, 80)))
    assert mask_quality(large) == mask_quality(small)
    shift = (left - 1, top - 1)
    for place in (centre_points, boundary_points):
        np.testing.assert_array_equal(place(large, 3), place(small, 3) + np.float32(shift))


@pytest.mark.parametrize("function", [mask_quality, centre_points, boundary_points])
def test_masks_of_any_layout_are_read_and_others_refused(function: Callable[[Any], Any]) -> None:
    mask = disc(12)
    expected = function(mask)
    readonly = mask.copy()
    readonly.flags.writeable = False
    for same in (mask.astype(np.uint8) * 255, mask.astype(np.int64), np.asfortranarray(mask), readonly):
        np.testing.assert_equal(function(same), expected)
    np.testing.assert_equal(function(mask[::-1, ::2]), function(np.ascontiguousarray(mask[::-1, ::2])))
    with pytest.raises(PromptError, match=r"shape \(H, W\), got shape \(1, 61, 61\)"):
        function(mask[None])
    with pytest.raises(PromptError, match="Threshold logits first"):
        function(mask.astype(np.float32))


# --- Rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kappa", "compactness", "equation", "prose"),
    [
        (1, 0.9, "centre", "centre"),
        (1, 0.6, "centre", "centre"),  # "compact (compactness >= 0.6)"
        (1, 0.59, "boundary", "boundary"),
        (2, 0.9, "boundary", "centre"),
        (2, 0.6, "boundary", "centre"),
        (3, 0.1, "boundary", "centre"),
    ],
)
def test_both_readings_of_the_paper(kappa: int, compactness: float, equation: str, prose: str) -> None:
    quality = MaskQuality(kappa, compactness)
    assert choose_strategy(quality, AMRConfig(rule="paper_equation")) == equation
    assert choose_strategy(quality, AMRConfig(rule="paper_prose")) == prose
    assert choose_strategy(quality, AMRConfig(rule="centre")) == "centre"
    assert choose_strategy(quality, AMRConfig(rule="boundary")) == "boundary"


def test_every_named_rule_exists() -> None:
    for rule in POINT_RULES:
        assert choose_strategy(MaskQuality(1, 0.5), AMRConfig(rule=rule)) in ("centre", "boundary")
    with pytest.raises(ConfigError, match="places no points by strategy"):
        choose_strategy(MaskQuality(1, 0.5), AMRConfig(rule="consensus"))


def test_the_threshold_is_the_configured_one() -> None:
    quality = MaskQuality(1, 0.5)
    assert choose_strategy(quality, AMRConfig("paper_prose", compactness_threshold=0.6)) == "boundary"
    assert choose_strategy(quality, AMRConfig("paper_prose", compactness_threshold=0.5)) == "centre"


def test_the_papers_configuration() -> None:
    expected = AMRConfig("paper_equation", 0.6, 0.7, point_count=2, append=True, iterations=1, min_gain=None)
    assert AMRConfig.paper() == expected
    assert AMRConfig().rule == "consensus"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rule", "best", "paper_equation, paper_prose, centre, boundary"),
        ("rule", ["centre"], "choose one of"),
        ("rule", None, "choose one of"),
        ("compactness_threshold", -0.1, "from 0 to 1"),
        ("compactness_threshold", 1.1, "from 0 to 1"),
        ("compactness_threshold", float("nan"), "a number"),
        ("compactness_threshold", "0.6", "a number"),
        ("depth", 1.0, "below 1"),
        ("depth", -0.5, "below 1"),
        ("depth", True, "a number"),
        ("early_exit", 1.5, "from 0 to 1"),
        ("early_exit", None, "a number"),
        ("point_count", 0, "at least 1"),
        ("point_count", 2.0, "whole number"),
        ("point_count", True, "whole number"),
        ("iterations", 0, "at least 1"),
        ("iterations", None, "whole number"),
        ("min_gain", -0.01, "at least 0"),
        ("min_gain", float("inf"), "a number"),
        ("append", 1, "True or False"),
        ("zooms", 4, "give at most 8 numbers"),
        ("zooms", (2.0,) * 9, "give at most 8 numbers"),
        ("zooms", (2.0, 0.9), "at least 1 each"),
        ("zooms", ("2",), "at least 1 each"),
    ],
)
def test_bad_settings_are_named(name: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*{words}"):
        AMRConfig(**{name: value})


@pytest.mark.parametrize(
    "call",
    [
        lambda mask: centre_points(mask, 0),
        lambda mask: centre_points(mask, 2, 1.0),
        lambda mask: boundary_points(mask, -1),
    ],
)
def test_bad_arguments_of_the_point_functions(call: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="give a"):
        call(disc(5))


# --- Points -----------------------------------------------------------------------------------------------------------


def naive_centre_points(mask: np.ndarray, count: int, depth: float) -> list[tuple[float, float]]:
    """The paper's centre strategy, one pixel at a time; outside the image is background."""
    padded = np.pad(mask, 1)
    background = np.argwhere(~padded)
    distance = {
        (row - 1, column - 1): math.sqrt(((background - (row, column)) ** 2).sum(axis=1).min())
        for row, column in np.argwhere(padded).tolist()
    }
    deepest = max(distance.values(), default=0)
    region = [pixel for pixel in distance if distance[pixel] > depth * deepest]  # row-major
    chosen: list[tuple[int, int]] = []
    while len(chosen) < min(count, len(region)):
        if not chosen:
            chosen.append(max(region, key=lambda pixel: distance[pixel]))
        else:
            done = list(chosen)
            chosen.append(
                max(region, key=lambda pixel: min((pixel[0] - r) ** 2 + (pixel[1] - c) ** 2 for r, c in done))
            )
    return [(column + 0.5, row + 0.5) for row, column in chosen]


def naive_boundary_points(mask: np.ndarray, count: int) -> list[tuple[float, float]]:
    """The paper's boundary strategy, on the whole image and in its own words."""
    original = mask.astype(np.uint8)
    boundary = cv2.dilate(original, np.ones((3, 3), np.uint8)) - original
    rows, columns = np.where(boundary > 0)
    if not len(rows):
        return []
    points = [
        (float(columns[index]) + 0.5, float(rows[index]) + 0.5)
        for index in np.linspace(0, len(rows) - 1, count, dtype=int)
    ]
    return list(dict.fromkeys(points))


@settings(max_examples=150, deadline=None)
@given(any_mask(16), st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.7, 0.9]))
def test_centre_points_are_the_papers(mask: np.ndarray, count: int, depth: float) -> None:
    assert [tuple(point) for point in centre_points(mask, count, depth).tolist()] == naive_centre_points(
        mask, count, depth
    )


@pytest.mark.parametrize("mask", [disc(20), disc(20) & ~disc(7), rectangle(30, 37), np.ones((33, 41), bool)])
def test_centre_points_are_the_papers_on_solid_shapes(mask: np.ndarray) -> None:
    assert [tuple(point) for point in centre_points(mask, 3).tolist()] == naive_centre_points(mask, 3, 0.7)


@settings(max_examples=150, deadline=None)
@given(any_mask(), st.integers(1, 5))
def test_boundary_points_are_the_papers(mask: np.ndarray, count: int) -> None:
    assert [tuple(point) for point in boundary_points(mask, count).tolist()] == naive_boundary_points(mask, count)


@settings(max_examples=150, deadline=None)
@given(any_mask(), st.integers(1, 6))
def test_points_lie_inside_the_image_and_where_they_should(mask: np.ndarray, count: int) -> None:
    for place, on_mask in ((centre_points, True), (boundary_points, False)):
        points = place(mask, count)
        assert points.dtype == np.float32
        assert points.shape[1:] == (2,)
        assert len(points) <= count
        assert len(np.unique(points, axis=0)) == len(points)
        np.testing.assert_array_equal(points, place(mask.copy(), count))
        columns, rows = np.floor(points).astype(int).T
        assert (points > 0).all()
        assert (points[:, 0] < mask.shape[1]).all()
        assert (points[:, 1] < mask.shape[0]).all()
        assert (mask[rows, columns] == on_mask).all()
    assert bool(len(centre_points(mask))) == mask.any()
    assert bool(len(boundary_points(mask))) == (mask.any() and not mask.all())


def test_points_by_hand() -> None:
    mask = rectangle(5, 5, top=10, left=20)
    # One deepest pixel (distance 3); every other has at most 2 < 0.7 * 3.
    assert centre_points(mask).tolist() == [[22.5, 12.5]]
    # At half of the depth the 3x3 middle remains, its first corner in row-major order is the farthest.
    assert centre_points(mask, depth=0.5).tolist() == [[22.5, 12.5], [21.5, 11.5]]
    # The ring is the 7x7 square's border: its first and last pixel.
    assert boundary_points(mask).tolist() == [[19.5, 9.5], [25.5, 15.5]]
    # A line: equally deep everywhere, so first pixel, then the farthest, its other end.
    assert centre_points(rectangle(1, 10)).tolist() == [[4.5, 3.5], [13.5, 3.5]]
    # Two equally deep discs: the second point goes to the other one.
    first, second = centre_points(disc(9, (15, 15), (31, 80)) | disc(9, (15, 60), (31, 80))).tolist()
    assert first == [15.5, 15.5]
    assert second[0] > 60


def test_outside_the_image_is_background() -> None:
    assert centre_points(np.ones((5, 5), bool), 1).tolist() == [[2.5, 2.5]]
    cut = rectangle(9, 9, top=31, left=10)  # touches the image's lower border
    assert centre_points(cut, 1).tolist() == [[14.5, 35.5]]
    assert boundary_points(np.ones((5, 5), bool)).shape == (0, 2)
    one_left = np.ones((3, 3), bool)
    one_left[1, 2] = False
    assert boundary_points(one_left, 2).tolist() == [[2.5, 1.5]]


# --- Refinement -------------------------------------------------------------------------------------------------------

USER = Prompt(points=[[20, 20], [5, 50]], labels=[1, 0])


def prediction_of(mask: np.ndarray, score: float, prompt: Prompt = USER) -> Prediction:
    """Three masks of which the second is the best."""
    masks = np.stack([np.zeros_like(mask), mask, ~mask])
    scores = np.array([score - 0.2, score, score - 0.1], np.float32)
    return Prediction(masks, scores, np.zeros((3, 4, 4), np.float32), prompt)


class Decoder:
    """Answers with the given (mask, score) pairs in turn, or raises what it is given; remembers the prompts."""

    def __init__(self, *answers: tuple[np.ndarray, float] | Exception) -> None:
        self.answers = list(answers)
        self.prompts: list[Prompt] = []

    def __call__(self, prompt: Prompt) -> Prediction:
        self.prompts.append(prompt)
        answer = self.answers[len(self.prompts) - 1]
        if isinstance(answer, Exception):
            raise answer
        return prediction_of(*answer, prompt)


def test_a_better_mask_is_kept_with_the_prompt_that_obtained_it() -> None:
    first, decode = prediction_of(disc(20), 0.5), Decoder((disc(24), 0.8))
    result = refine(first, decode, PROSE)
    points = centre_points(disc(20))
    np.testing.assert_array_equal(result.mask, disc(24))
    np.testing.assert_array_equal(result.prompt.points, np.concatenate([USER.points, points]))
    assert result.prompt.labels.tolist() == [1, 0, 1, 1]
    assert first.refinement is None
    report = result.refinement
    assert report is not None
    assert (report.kappa, report.compactness) == (1, mask_quality(disc(20)).compactness)
    assert (report.strategy, report.rule, report.kept, report.iterations) == ("centre", "paper_prose", "refined", 1)
    np.testing.assert_array_equal(report.points, points)
    assert (report.score_before, report.score_after) == pytest.approx((0.5, 0.8))
    assert report.rejected is None
    assert report.reason == (
        "The centre points raised the predicted IoU from 0.5000 to 0.8000, so the refined mask was kept."
    )


@pytest.mark.parametrize("score", [0.5, 0.3, float("nan")])
def test_a_mask_that_is_not_better_is_rejected_and_reported(score: float) -> None:
    first = prediction_of(disc(20), 0.5)
    result = refine(first, Decoder((disc(24), score)), PROSE)
    assert result.masks is first.masks
    assert result.prompt is USER
    report = result.refinement
    assert report is not None
    assert (report.kept, report.strategy, report.iterations) == ("first", "centre", 1)
    assert report.score_after == pytest.approx(score, nan_ok=True)
    assert report.rejected is not None
    if not math.isnan(score):
        np.testing.assert_array_equal(report.rejected, disc(24))
        assert f"(0.5000 before, {score:.4f} after), so the first mask was kept." in report.reason
    for array in (report.rejected, report.points):
        assert not array.flags.writeable


@pytest.mark.parametrize(("score", "kept"), [(0.55, "first"), (0.7, "refined")])
def test_the_least_gain_asked_for(score: float, kept: str) -> None:
    result = refine(prediction_of(disc(20), 0.5), Decoder((disc(24), score)), AMRConfig("paper_prose", min_gain=0.1))
    assert result.refinement is not None
    assert result.refinement.kept == kept
    assert ("by more than 0.1" in result.refinement.reason) == (kept == "first")


def test_the_rules_lead_to_different_points() -> None:
    pieces = disc(9, (15, 15)) | disc(9, (45, 45))
    for rule, place in (("paper_equation", boundary_points), ("paper_prose", centre_points)):
        decode = Decoder((disc(24), 0.9))
        report = refine(prediction_of(pieces, 0.5), decode, AMRConfig(rule=rule)).refinement
        assert report is not None
        assert (report.rule, report.kappa) == (rule, 2)
        assert report.strategy == place.__name__.removesuffix("_points")
        np.testing.assert_array_equal(decode.prompts[0].points[2:], place(pieces))


def test_appended_points_leave_the_rest_of_the_prompt_alone() -> None:
    user = Prompt(points=[[20, 20]], box=[10, 10, 50, 50], mask_logits=np.ones((4, 4)))
    decode = Decoder((disc(24), 0.9))
    refine(prediction_of(disc(20), 0.5, user), decode, PROSE)
    np.testing.assert_array_equal(decode.prompts[0].points[:1], user.points)
    np.testing.assert_array_equal(decode.prompts[0].box, user.box)
    np.testing.assert_array_equal(decode.prompts[0].mask_logits, user.mask_logits)


def test_points_alone_replace_the_prompt() -> None:
    user = Prompt(points=[[20, 20]], labels=[0], box=[10, 10, 50, 50])
    decode = Decoder((disc(24), 0.9))
    result = refine(prediction_of(disc(20), 0.5, user), decode, AMRConfig("paper_prose", append=False))
    np.testing.assert_array_equal(decode.prompts[0].points, centre_points(disc(20)))
    assert decode.prompts[0].labels.tolist() == [1, 1]
    assert decode.prompts[0].box is None
    assert result.prompt is decode.prompts[0]


@pytest.mark.parametrize(
    ("max_points", "user_points", "box", "append", "generated"),
    [
        (None, 9, True, True, 2),
        (6, 2, True, True, 2),
        (6, 3, True, True, 1),
        (6, 4, True, True, 0),
        (6, 4, False, True, 2),
        (6, 5, False, True, 1),
        (6, 6, False, True, 0),
        (6, 7, False, True, 0),
        (6, 6, True, False, 2),
        (1, 6, True, False, 1),
    ],
)
def test_no_more_points_than_the_model_takes(
    max_points: int | None, user_points: int, box: bool, append: bool, generated: int
) -> None:
    points = np.arange(2 * user_points).reshape(-1, 2)
    user = Prompt(points=points, box=[10, 10, 50, 50] if box else None)
    decode = Decoder((disc(24), 0.9))
    result = refine(
        prediction_of(disc(20), 0.5, user), decode, AMRConfig("paper_prose", append=append), max_points=max_points
    )
    report = result.refinement
    assert report is not None
    assert report.points.shape == (generated, 2)
    assert len(decode.prompts) == report.iterations == (1 if generated else 0)
    if generated:
        np.testing.assert_array_equal(report.points, centre_points(disc(20))[:generated])
        assert len(decode.prompts[0].points) == generated + (user_points if append else 0)
    else:
        assert (report.strategy, report.kept) == ("none", "first")
        assert math.isnan(report.score_after)
        assert "at most 6 points" in report.reason
        assert report.kappa == 1


@pytest.mark.parametrize(
    ("mask", "config", "reason"),
    [
        (np.zeros((61, 61), bool), PROSE, "empty"),
        (np.ones((61, 61), bool), AMRConfig(rule="boundary"), "fills the whole image"),
    ],
)
def test_nothing_to_try(mask: np.ndarray, config: AMRConfig, reason: str) -> None:
    decode = Decoder()
    report = refine(prediction_of(mask, 0.5), decode, config).refinement
    assert report is not None
    assert (report.strategy, report.kept, report.iterations) == ("none", "first", 0)
    assert report.points.shape == (0, 2)
    assert report.rejected is None
    assert reason in report.reason
    assert report.to_dict()["score_after"] is None


@pytest.mark.parametrize("mask", [np.ones((61, 61), bool), rectangle(1, 1), rectangle(6, 6, top=0, left=0)])
def test_full_tiny_and_border_masks_are_refined(mask: np.ndarray) -> None:
    report = refine(prediction_of(mask, 0.5), Decoder((disc(20, shape=mask.shape), 0.6)), PROSE).refinement
    assert report is not None
    assert (report.strategy, report.kept) == ("centre", "refined")


def test_an_empty_mask_never_replaces_the_first_whatever_its_score() -> None:
    def decode(prompt: Prompt) -> Prediction:
        masks = np.zeros((1, 61, 61), bool)
        return Prediction(masks, np.ones(1, np.float32), np.zeros((1, 4, 4), np.float32), prompt)

    result = refine(prediction_of(disc(20), 0.5), decode, PROSE)
    assert result.mask.any()
    assert result.refinement is not None
    assert result.refinement.kept == "first"
    assert "is empty" in result.refinement.reason


def test_a_refused_prompt_keeps_the_first_mask() -> None:
    first = prediction_of(disc(20), 0.5)
    result = refine(first, Decoder(PromptError("The model takes six points.")), PROSE)
    report = result.refinement
    assert report is not None
    assert result.masks is first.masks
    assert (report.kept, report.strategy, report.iterations) == ("first", "centre", 0)
    assert math.isnan(report.score_after)
    assert report.reason.endswith("so the first mask was kept: The model takes six points.")
    np.testing.assert_array_equal(report.points, centre_points(disc(20)))


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        refine(prediction_of(disc(20), 0.5), Decoder(RuntimeError("out of memory")), PROSE)


# --- Iterations -------------------------------------------------------------------------------------------------------

THREE = AMRConfig("paper_prose", iterations=3)


def test_each_pass_starts_from_the_kept_mask_and_the_users_prompt() -> None:
    decode = Decoder((disc(12), 0.6), (disc(12, (40, 40)), 0.7), (disc(25), 0.8))
    result = refine(prediction_of(disc(20), 0.5), decode, THREE)
    report = result.refinement
    assert report is not None
    for prompt, seen in zip(decode.prompts, (disc(20), disc(12), disc(12, (40, 40))), strict=True):
        np.testing.assert_array_equal(prompt.points, np.concatenate([USER.points, centre_points(seen)]))
    np.testing.assert_array_equal(result.mask, disc(25))
    np.testing.assert_array_equal(report.points, decode.prompts[2].points[2:])
    assert (report.kept, report.iterations) == ("refined", 3)
    assert (report.score_before, report.score_after) == pytest.approx((0.5, 0.8))
    assert report.compactness == mask_quality(disc(20)).compactness


def test_passes_end_when_nothing_is_gained() -> None:
    decode = Decoder((disc(12), 0.6), (disc(25), 0.6))
    result = refine(prediction_of(disc(20), 0.5), decode, THREE)
    report = result.refinement
    assert report is not None
    np.testing.assert_array_equal(result.mask, disc(12))
    assert result.prompt is decode.prompts[0]
    assert (report.kept, report.iterations, report.score_after) == ("refined", 2, pytest.approx(0.6))
    assert report.rejected is not None
    np.testing.assert_array_equal(report.rejected, disc(25))
    assert "from 0.5000 to 0.6000" in report.reason


def test_passes_end_when_the_points_repeat() -> None:
    decode = Decoder((disc(20), 0.6))  # the same mask, so the same points
    report = refine(prediction_of(disc(20), 0.5), decode, THREE).refinement
    assert report is not None
    assert (report.kept, report.strategy, report.iterations, report.rejected) == ("refined", "centre", 1, None)
    np.testing.assert_array_equal(report.points, centre_points(disc(20)))


def test_a_refusal_in_a_later_pass_keeps_what_was_gained() -> None:
    decode = Decoder((disc(12), 0.6), PromptError("No."))
    result = refine(prediction_of(disc(20), 0.5), decode, THREE)
    assert result.refinement is not None
    np.testing.assert_array_equal(result.mask, disc(12))
    assert (result.refinement.kept, result.refinement.iterations) == ("refined", 1)
    assert result.refinement.score_after == pytest.approx(0.6)


@settings(max_examples=150, deadline=None)
@given(
    masks=st.integers(1, 12).flatmap(
        lambda side: st.lists(hnp.arrays(np.bool_, (side, 13 - side)), min_size=4, max_size=4)
    ),
    scores=st.lists(st.floats(-1, 2, width=32), min_size=4, max_size=4),
    rule=st.sampled_from(POINT_RULES),
    append=st.booleans(),
    iterations=st.integers(1, 3),
    max_points=st.one_of(st.none(), st.integers(0, 7)),
)
def test_never_worse_by_its_own_score_and_deterministic(
    masks: list[np.ndarray],
    scores: list[float],
    rule: Rule,
    append: bool,
    iterations: int,
    max_points: int | None,
) -> None:
    config = AMRConfig(rule=rule, append=append, iterations=iterations)
    height, width = masks[0].shape
    user = Prompt(points=[[0.5, 0.5]])
    runs = []
    for _ in range(2):
        decode = Decoder(*zip(masks[1:], scores[1:], strict=True))
        first = prediction_of(masks[0], scores[0], user)
        result = refine(first, decode, config, max_points=max_points)
        report = result.refinement
        assert report is not None
        assert result.score >= first.score
        assert (report.kept == "first") == (result.masks is first.masks)
        assert report.kept == "first" or report.score_after == result.score > first.score
        assert report.reason
        for prompt in decode.prompts:
            prompt.check_inside((height, width))
            assert max_points is None or len(prompt.points) <= max_points
        runs.append((result.mask.tolist(), report.to_dict()))
    assert runs[0] == runs[1]
