"""Adaptive Mask Refinement as the source paper describes it (section XI).

1. Measure the first mask: kappa, the number of its pieces, and Q, its compactness (`mask_quality`).
2. Choose a strategy by them (`choose_strategy`).
3. Place points in the middle of the mask or around it (`centre_points`, `boundary_points`).
4. Decode again with these points, and keep the mask with the higher predicted IoU (`refine_by_paper`).

The paper contradicts itself on the second step, so both readings are rules of their own. Its equation says ``Boundary
if (kappa > 1) or (Q < 0.6), else Centre``; its prose says that a mask in several pieces gets centre points ("If
multiple components are detected, use Center Points Strategy"), and only then that an irregular one gets boundary
points. They differ exactly where kappa > 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

import numpy as np

from refinesam.amr.config import AMRConfig, Rule
from refinesam.amr.crop import Decode
from refinesam.amr.points import MaskQuality, boundary_points, centre_points, mask_quality
from refinesam.errors import ConfigError, PromptError
from refinesam.types import FloatArray, Prediction, Prompt, RefinementReport

__all__ = ["Strategy", "choose_strategy", "refine_by_paper"]

Strategy = Literal["centre", "boundary"]

# Each takes the mask's quality and whether Q is below the threshold.
_STRATEGIES: Final[Mapping[Rule, Callable[[MaskQuality, bool], Strategy]]] = MappingProxyType(
    {
        "paper_equation": lambda quality, irregular: "boundary" if quality.kappa > 1 or irregular else "centre",
        "paper_prose": lambda quality, irregular: "boundary" if quality.kappa <= 1 and irregular else "centre",
        "centre": lambda quality, irregular: "centre",
        "boundary": lambda quality, irregular: "boundary",
    }
)


def choose_strategy(quality: MaskQuality, config: AMRConfig) -> Strategy:
    """Apply the configured rule to a mask's quality (source paper, section XI-A, "Strategy selection", and XI-B).

    Raises:
        ConfigError: the rule is "closer_look", which places no points by strategy.
    """
    if config.rule not in _STRATEGIES:
        raise ConfigError(f"The rule {config.rule!r} places no points by strategy; choose {' or '.join(_STRATEGIES)}.")
    return _STRATEGIES[config.rule](quality, quality.compactness < config.compactness_threshold)


def refine_by_paper(
    prediction: Prediction, decode: Decode, config: AMRConfig, *, max_points: int | None = None
) -> Prediction:
    """Refine a prediction's best mask by added points, and keep the mask with the higher predicted IoU.

    1. Every pass answers the user's prompt with points of its own, or the points alone, without the user's box or mask,
       where ``config.append`` is False.
    2. A further pass starts from the kept mask and replaces the points of the one before, so the prompt doesn't grow.
    3. Passes end when one gains nothing, its points were tried before, or ``config.iterations`` were made.

    The mask kept is never below the first in predicted IoU, and never empty where the first is not.

    The arguments are those of `refinesam.amr.refine`, and the rule is any but "closer_look".

    Returns:
        The prediction with the higher predicted IoU. Its `refinement` gives kappa and Q of the first mask, and the
        strategy and points of the last pass tried.
    """
    kept = prediction
    passes: list[_Pass] = []
    for _ in range(config.iterations):
        passes.append(_pass(kept, prediction.prompt, decode, config, max_points, passes))
        result = passes[-1].result
        if result is None or passes[-1].problem:
            break
        kept = result
    return kept.with_refinement(_report(prediction, kept, config, passes))


@dataclass(frozen=True, eq=False)
class _Pass:
    """What a pass saw, placed and got, and the sentence that says why the result was not kept ("" if it was)."""

    quality: MaskQuality
    strategy: Literal["centre", "boundary", "none"] = "none"
    points: FloatArray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    result: Prediction | None = None
    problem: str = ""


def _pass(
    kept: Prediction, prompt: Prompt, decode: Decode, config: AMRConfig, max_points: int | None, before: Sequence[_Pass]
) -> _Pass:
    quality = mask_quality(kept.mask)
    if not quality.kappa:
        return _Pass(quality, problem="The first mask is empty, so there is nothing to refine.")
    count = config.point_count
    if max_points is not None:
        count = min(count, max_points - (prompt.slots if config.append else 0))
    if count < 1:
        problem = f"The model takes at most {max_points} points and the prompt leaves no room for another."
        return _Pass(quality, problem=problem)
    strategy = choose_strategy(quality, config)
    centre = strategy == "centre"
    points = centre_points(kept.mask, count, config.depth) if centre else boundary_points(kept.mask, count)
    if not len(points):
        return _Pass(quality, problem="The mask fills the whole image, so no boundary point can lie outside it.")
    if any(np.array_equal(points, earlier.points) for earlier in before):
        return _Pass(quality, problem="A further pass would have repeated points that were tried before.")
    points.flags.writeable = False
    try:
        result = decode(prompt.with_points(points) if config.append else Prompt(points=points))
    except PromptError as error:
        problem = f"The model refused the {strategy} points, so the first mask was kept: {error}"
        return _Pass(quality, strategy, points, problem=problem)
    return _Pass(quality, strategy, points, result, _objection(result, kept, strategy, config.min_gain or 0))


def _objection(result: Prediction, kept: Prediction, strategy: Strategy, min_gain: float) -> str:
    """Say why a result should not replace what was kept so far, "" if it should."""
    if not result.mask.any():
        return f"The mask refined with {strategy} points is empty, so the first mask was kept."
    if result.score > kept.score + min_gain:
        return ""
    margin = f" by more than {min_gain:g}" if min_gain else ""
    scores = f"{kept.score:.4f} before, {result.score:.4f} after"
    return f"The {strategy} points did not raise the predicted IoU{margin} ({scores}), so the first mask was kept."


def _report(prediction: Prediction, kept: Prediction, config: AMRConfig, passes: Sequence[_Pass]) -> RefinementReport:
    first = passes[0].quality
    # A pass that could place nothing new says why the passes ended; what was tried is told by the one before it.
    last = next((one for one in reversed(passes) if one.strategy != "none"), passes[-1])
    score_after = math.nan if last.result is None else last.result.score
    reason, rejected = passes[-1].problem, None
    if kept is not prediction:
        score_after = kept.score
        strategy = next(one.strategy for one in passes if one.result is kept)
        reason = (
            f"The {strategy} points raised the predicted IoU from {prediction.score:.4f} to {kept.score:.4f}, "
            "so the refined mask was kept."
        )
    if last.result is not None and last.problem:
        rejected = last.result.mask.copy()
        rejected.flags.writeable = False
    return RefinementReport(
        kappa=first.kappa,
        compactness=first.compactness,
        strategy=last.strategy,
        rule=config.rule,
        points=last.points,
        score_before=prediction.score,
        score_after=score_after,
        kept="first" if kept is prediction else "refined",
        reason=reason,
        iterations=sum(one.result is not None for one in passes),
        rejected=rejected,
    )
