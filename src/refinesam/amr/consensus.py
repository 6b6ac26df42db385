"""Refinement by further passes at the object, a closer one in a crop above all, and a vote of all their masks.

`refine_by_consensus` has the steps. `decide`, `agreement` and `objection` hold what is decided by them; they are pure,
so that `benchmarks/amr_study.py` compares other settings on stored passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal

import numpy as np

from refinesam.amr.config import AMRConfig
from refinesam.amr.crop import Decode, Window, Zoom, prompt_in_window, window_around
from refinesam.amr.points import centre_points, mask_quality
from refinesam.amr.vote import TEMPERATURE, THRESHOLDS, Candidates, Decision, vote
from refinesam.errors import PromptError
from refinesam.types import BoolArray, FloatArray, Prediction, Prompt, RefinementReport

__all__ = ["agreement", "decide", "objection", "refine_by_consensus", "voting"]

Strategy = Literal["centre", "feedback", "zoom", "none"]

# Of expected IoU. Smaller gains are wrong more often than larger ones and hardly change the mean.
LEAST_GAIN: Final = 0.01
# In the vote, of a pass in a crop, beside 1 of the first. `benchmarks/amr_study.py` has what it gains as an equal.
CROP_WEIGHT: Final = 4.0


def refine_by_consensus(
    prediction: Prediction,
    decode: Decode,
    config: AMRConfig,
    *,
    max_points: int | None = None,
    mask_prompt: bool = True,
    zoom: Zoom | None = None,
) -> Prediction:
    """Refine a prediction's best mask by further passes, and keep what all masks agree on best.

    1. Where the first masks agree by more than ``config.early_exit``, keep the first one.
    2. Decode clicks again with other points, those in the middle of the first mask: the clicks may have fallen anywhere
       on the object.
    3. Encode a crop around the mask found so far, where the model sees the object larger, and decode the user's prompt
       with that mask in it; for every one of ``config.zooms``. Not where the object fills the image, where the pixels
       are not at hand, or for a model that takes no mask prompts.
    4. Without a pass in a crop, decode other prompts than clicks again, with points in the middle of the mask beside.
    5. Where no point could be placed, decode the user's prompt with the first mask's logits.
    6. Let all masks vote (`refinesam.amr.vote`). A crop has `CROP_WEIGHT`; where there is one, the passes on the whole
       image that led there have no vote.
    7. Keep the first mask unless the gain in expected IoU is above ``config.min_gain`` and no more clicks are missed.

    Predicted IoU is calibrated for first answers alone, so the score of a refined mask is the first mask's predicted
    IoU plus the gain in expected IoU.

    The arguments are those of `refinesam.amr.refine`, and the rule is "consensus".

    Returns:
        The refined prediction, or the first one. Its `refinement` gives kappa and Q of the first mask, the strategy of
        the last pass that was decoded, and the points that were placed last.
    """
    passes = _Passes(prediction, LEAST_GAIN if config.min_gain is None else config.min_gain)
    if config.early_exit < 1 and (agreed := agreement(prediction, passes.decision)) > config.early_exit:
        return _first(passes, f"The first masks agree by {agreed:.4f}, so no further pass was made.")
    clicks = _is_clicks(prediction.prompt)
    if clicks:
        passes = passes.with_pass(_pass_by_middle(passes, decode, config, max_points))
    if zoom is not None and mask_prompt:
        for factor in config.zooms:
            passes = passes.with_pass(_pass_in_crop(passes, zoom, factor, config, max_points))
    if not clicks and not passes.decoded:
        passes = passes.with_pass(_pass_by_middle(passes, decode, config, max_points))
    if not passes.tried and mask_prompt:
        passes = passes.with_pass(_pass_by_logits(passes, decode))
    return _better(passes)


def voting(passes: Sequence[Candidates]) -> list[Candidates]:
    """Return the passes that vote beside the first: those in crops, or all where there is none in a crop."""
    return [one for one in passes if one.window is not None] or list(passes)


def decide(
    first: Prediction,
    voters: Sequence[Candidates],
    temperature: float = TEMPERATURE,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Decision | None:
    """Let the first prediction and further passes vote, see `refinesam.amr.vote`; None where no mask has a pixel."""
    return vote(first.mask, [Candidates(first.masks, first.iou_predictions), *voters], temperature, thresholds)


def agreement(first: Prediction, decision: Decision | None) -> float:
    """Return how far the first masks agree, by a decision of theirs alone: the first one's expected IoU.

    It is 0 where a lone mask has none to agree with, or where the first mask goes against a click.
    """
    if decision is None or len(first.masks) < 2 or _missed(first.mask, first.prompt):
        return 0.0
    return decision.first_expected_iou


def objection(first: Prediction, decision: Decision, min_gain: float = LEAST_GAIN) -> str:
    """Say what keeps a decision from replacing the first mask, "" if nothing does."""
    if _missed(decision.mask, first.prompt) > _missed(first.mask, first.prompt):
        return "goes against a click"
    if decision.gain <= min_gain:
        return f"gained {decision.gain:.4f} expected IoU, no more than {min_gain:g}"
    return ""


def _missed(mask: BoolArray, prompt: Prompt) -> int:
    """Count the clicks that a mask goes against."""
    height, width = mask.shape
    columns, rows = np.clip(np.floor(prompt.points).astype(np.int64), 0, (width - 1, height - 1)).T
    return int((mask[rows, columns] != (prompt.labels == 1)).sum())


@dataclass(frozen=True, eq=False)
class _Pass:
    """One further decode: where it was made, the points that were placed for it, and what it answered or why not."""

    strategy: Strategy
    points: FloatArray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    window: Window | None = None
    result: Prediction | None = None
    problem: str = ""

    def asked(self, decode: Decode, prompt: Prompt) -> _Pass:
        """Return it with the answer to a prompt, or with what the model refused."""
        try:
            return replace(self, result=decode(prompt))
        except PromptError as error:
            return replace(self, problem=f" The model refused a prompt: {error}")


@dataclass(frozen=True, eq=False)
class _Passes:
    """The first prediction and the passes tried since."""

    first: Prediction
    min_gain: float
    tried: tuple[_Pass, ...] = ()

    def with_pass(self, one: _Pass | None) -> _Passes:
        return self if one is None else replace(self, tried=(*self.tried, one))

    @cached_property
    def decoded(self) -> tuple[tuple[_Pass, Prediction], ...]:
        return tuple((one, one.result) for one in self.tried if one.result is not None)

    @cached_property
    def voters(self) -> list[Candidates]:
        return voting(
            [
                Candidates(result.masks, result.iou_predictions, one.window, 1.0 if one.window is None else CROP_WEIGHT)
                for one, result in self.decoded
            ]
        )

    @cached_property
    def decision(self) -> Decision | None:
        return decide(self.first, self.voters)

    @property
    def mask(self) -> BoolArray | None:
        """The mask found so far, None while there is none."""
        first, decision = self.first.mask, self.decision
        if decision is None:
            return None
        return first if first.any() and objection(self.first, decision, self.min_gain) else decision.mask


def _pass_in_crop(
    passes: _Passes, zoom: Zoom, factor: float, config: AMRConfig, max_points: int | None
) -> _Pass | None:
    prompt, mask = passes.first.prompt, passes.mask
    if mask is None or (window := window_around(mask, prompt, factor)) is None:
        return None
    if any(window == one.window for one in passes.tried):
        return None
    x0, y0, x1, y1 = window
    asked = prompt_in_window(prompt, window, mask)
    if len(asked.positive_points):
        return _Pass("zoom", window=window).asked(zoom(window), asked)
    points = _middle(mask[y0:y1, x0:x1], prompt, config, max_points)
    placed = points + np.array((x0, y0), np.float32)
    return _Pass("zoom", placed, window).asked(zoom(window), asked.with_points(points))


def _pass_by_middle(passes: _Passes, decode: Decode, config: AMRConfig, max_points: int | None) -> _Pass | None:
    """Ask for the object by the middle of its mask: instead of the positive clicks, or beside anything else."""
    prompt = passes.first.prompt
    points = _middle(passes.first.mask, prompt, config, max_points)
    if not len(points):
        return None
    if _is_clicks(prompt):
        negatives = prompt.negative_points
        asked = Prompt(points).with_points(negatives, np.zeros(len(negatives), np.int64))
    else:
        asked = prompt.with_points(points)
    return _Pass("centre", points).asked(decode, asked)


def _pass_by_logits(passes: _Passes, decode: Decode) -> _Pass:
    prompt = passes.first.prompt
    asked = Prompt(prompt.points, prompt.labels, prompt.box, mask_logits=passes.first.logits)
    return _Pass("feedback").asked(decode, asked)


def _middle(mask: BoolArray, prompt: Prompt, config: AMRConfig, max_points: int | None) -> FloatArray:
    """Return points in the middle of a mask, as many as there is room for beside what is kept of the prompt."""
    kept = len(prompt.negative_points) if _is_clicks(prompt) else prompt.slots
    count = config.point_count if max_points is None else min(config.point_count, max_points - kept)
    return centre_points(mask, count, config.depth) if count > 0 else np.zeros((0, 2), np.float32)


def _is_clicks(prompt: Prompt) -> bool:
    """Whether clicks are all that is known of the object."""
    return prompt.box is None and prompt.mask is None and prompt.mask_logits is None


def _better(passes: _Passes) -> Prediction:
    """Return the decision where it is better than the first mask, else the first prediction."""
    first, decision = passes.first, passes.decision
    if decision is None:
        return _first(passes, "No pass found anything, so there is nothing to refine.")
    if not passes.decoded:
        return _first(passes, "There was nothing to try, so the first mask was kept.")
    name = f"The consensus of {1 + len(passes.voters)} passes"
    if against := objection(first, decision, passes.min_gain):
        return _first(passes, f"{name} {against}, so the first mask was kept.")
    refined = replace(
        first,
        masks=decision.mask[None],
        iou_predictions=np.array([_score_after(first.score, decision)], np.float32),
        low_res_logits=_nearest_logits(passes, decision)[None],
    )
    reason = f"{name} gained {decision.gain:.4f} expected IoU, so it was kept."
    return refined.with_refinement(_report(passes, reason, refined=True))


def _first(passes: _Passes, reason: str) -> Prediction:
    return passes.first.with_refinement(_report(passes, reason))


def _score_after(first: float, decision: Decision) -> float:
    return first + decision.gain if decision.gain <= 0 else max(first, min(1.0, first + decision.gain))


def _nearest_logits(passes: _Passes, decision: Decision) -> FloatArray:
    """Return the logits of the mask, decoded on the whole image, that comes nearest to the decision."""
    logits = list(passes.first.low_res_logits)
    if all(voter.window is None for voter in passes.voters):
        logits += [one for _, result in passes.decoded for one in result.low_res_logits]
    return np.asarray(logits[int(np.argmax(decision.ious[: len(logits)]))])


def _report(passes: _Passes, reason: str, refined: bool = False) -> RefinementReport:
    first, decision = passes.first, passes.decision if passes.decoded else None
    quality = mask_quality(first.mask)
    points = next((one.points for one in reversed(passes.tried) if len(one.points)), np.zeros((0, 2), np.float32))
    points.flags.writeable = False
    return RefinementReport(
        kappa=quality.kappa,
        compactness=quality.compactness,
        strategy=passes.decoded[-1][0].strategy if passes.decoded else "none",
        rule="consensus",
        points=points,
        score_before=first.score,
        score_after=math.nan if decision is None else _score_after(first.score, decision),
        kept="refined" if refined else "first",
        reason=reason + next((one.problem for one in reversed(passes.tried) if one.problem), ""),
        iterations=len(passes.decoded),
        rejected=None if refined or decision is None else decision.mask,
    )
