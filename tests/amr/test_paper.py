"""Adaptive Mask Refinement against its description (source paper, section XI) and against hand-made decoders."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mask_arrays import POINT_RULES, disc, rectangle
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

PROSE = AMRConfig(rule="paper_prose")
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
        choose_strategy(MaskQuality(1, 0.5), AMRConfig(rule="closer_look"))


def test_the_threshold_is_the_configured_one() -> None:
    quality = MaskQuality(1, 0.5)
    assert choose_strategy(quality, AMRConfig("paper_prose", compactness_threshold=0.6)) == "boundary"
    assert choose_strategy(quality, AMRConfig("paper_prose", compactness_threshold=0.5)) == "centre"


# --- A pass -----------------------------------------------------------------------------------------------------------


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
