"""Adaptive Mask Refinement (AMR): look at an object again, starting from its first mask, and keep the better mask.

On arrays and a ``decode`` callable, so it refines any SAM-like model. Nothing here is random. There are two families of
rules. The default, "consensus", looks at the object again, closer where it can, and lets the looks vote: see
`refinesam.second_looks` and `refinesam.consensus`.

The others are section XI of the source paper. Four steps: measure the mask (`mask_quality`), choose where to put points
(`choose_strategy`), place them (`centre_points`, `boundary_points`), decode again and keep the mask with the higher
predicted IoU. The paper contradicts itself on the second step, so both readings are rules of their own. Its equation
says ``Boundary if (kappa > 1) or (Q < 0.6), else Centre``; its prose says that a mask in several pieces gets centre
points ("If multiple components are detected, use Center Points Strategy"), and only then that an irregular one gets
boundary points. They differ exactly where kappa > 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np

from refinesam.consensus import Window
from refinesam.errors import ConfigError, PromptError
from refinesam.second_looks import Decode, SecondLooks, Zoom
from refinesam.topology import MaskQuality, boundary_points, centre_points, check_count, check_number, mask_quality
from refinesam.types import FloatArray, Prediction, Prompt, RefinementReport

__all__ = [
    "AMRConfig",
    "Decode",
    "MaskQuality",
    "Rule",
    "Strategy",
    "Window",
    "Zoom",
    "boundary_points",
    "centre_points",
    "choose_strategy",
    "mask_quality",
    "refine",
]

Strategy = Literal["centre", "boundary"]
Rule = Literal["consensus", "paper_equation", "paper_prose", "centre", "boundary"]

# Each look re-encodes a part of the image.
MOST_ZOOMS: Final = 8
# So that asking again costs at most a twentieth of encoding and decoding, on average over objects.
FAST_EXIT: Final = 0.75

# Each takes the mask's quality and whether Q is below the threshold.
_POINT_RULES: Final[dict[Rule, Callable[[MaskQuality, bool], Strategy]]] = {
    "paper_equation": lambda quality, irregular: "boundary" if quality.kappa > 1 or irregular else "centre",
    "paper_prose": lambda quality, irregular: "boundary" if quality.kappa <= 1 and irregular else "centre",
    "centre": lambda quality, irregular: "centre",
    "boundary": lambda quality, irregular: "boundary",
}


@dataclass(frozen=True)
class AMRConfig:
    """Settings of `refine`.

    The default is `full`: the consensus of the first look and of a closer look at the object, which encodes a part of
    the image and so costs as much as a new image; clicks are asked again before, to see where to look. `fast` encodes
    nothing, and asks again only where the first look's masks disagree. `paper` is the source paper's equation; its
    prose is ``rule="paper_prose"``.

    Attributes:
        rule: "consensus"; "paper_equation" or "paper_prose"; or the same points for every mask: "centre" or "boundary".
        compactness_threshold: Q below it counts as irregular, in [0, 1]; for the paper's rules.
        depth: centre points lie deeper than this share of the greatest depth, in [0, 1).
        point_count: points generated per pass, at least 1.
        append: add the points to the user's prompt; False: prompt with the generated points alone; not for "consensus".
        iterations: greatest number of passes, at least 1; not for "consensus".
        min_gain: a refined mask is kept when its score is higher by more than this, at least 0. None means 0.01 for
            "consensus", whose score is the expected IoU, and 0 for the others, whose score is the predicted IoU.
        zooms: for "consensus", the windows of the image that are re-encoded one after the other: the side of each over
            the longer side of the object, at least 1, as far as it is at most half of the image. Only for models that
            take masks as prompts.
        early_exit: for "consensus", in [0, 1]: the first mask is kept unasked where the masks of its look agree by more
            than this, in expected IoU. 1 asks always.

    Raises:
        ConfigError: a value that is of the wrong kind or out of range.
    """

    rule: Rule = "consensus"
    compactness_threshold: float = 0.6
    depth: float = 0.7
    point_count: int = 2
    append: bool = True
    iterations: int = 1
    min_gain: float | None = None
    zooms: Sequence[float] = (6.0,)
    early_exit: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        if self.rule not in get_args(Rule):
            raise ConfigError(f"rule is {self.rule!r}; choose one of {', '.join(get_args(Rule))}.")
        check_number("compactness_threshold", self.compactness_threshold, "from 0 to 1", lambda value: 0 <= value <= 1)
        check_number("depth", self.depth, "from 0 to below 1", lambda value: 0 <= value < 1)
        check_number("early_exit", self.early_exit, "from 0 to 1", lambda value: 0 <= value <= 1)
        if self.min_gain is not None:
            check_number("min_gain", self.min_gain, "of at least 0", lambda value: value >= 0)
        check_count("point_count", self.point_count)
        check_count("iterations", self.iterations)
        if not isinstance(self.append, bool):
            raise ConfigError(f"append is {self.append!r}; give True or False.")
        if not isinstance(self.zooms, tuple | list) or len(self.zooms) > MOST_ZOOMS:
            raise ConfigError(f"zooms is {self.zooms!r}; give at most {MOST_ZOOMS} numbers, such as (6, 3), or ().")
        for factor in self.zooms:
            check_number("zooms", factor, "of at least 1 each", lambda value: value >= 1)
        # JSON knows lists alone.
        object.__setattr__(self, "zooms", tuple(self.zooms))

    @classmethod
    def paper(cls) -> AMRConfig:
        """Return the source paper's algorithm as its equation states it (section XI-A).

        "Boundary if (kappa > 1) or (Q < 0.6), else Centre"; two "additional" points (abstract), hence appended; one
        second pass; "keep the mask with the higher decoder IoU score".
        """
        return cls(rule="paper_equation")

    @classmethod
    def fast(cls) -> AMRConfig:
        """Return the consensus of two looks at the whole image: one more decode at most, nothing re-encoded.

        The second asks by points in the first mask's middle, where the first look's masks disagree.
        """
        return cls(zooms=(), early_exit=FAST_EXIT)

    @classmethod
    def full(cls) -> AMRConfig:
        """Return the default, by its name: one closer look; an encode, and one decode or (for clicks) two."""
        return cls()

    @property
    def most_decodes(self) -> int:
        """Greatest number of prompts that `refine` asks to be decoded."""
        return 1 + len(self.zooms) if self.rule == "consensus" else self.iterations


_DEFAULT_CONFIG: Final = AMRConfig()


def choose_strategy(quality: MaskQuality, config: AMRConfig = _DEFAULT_CONFIG) -> Strategy:
    """Apply the configured rule to a mask's quality (source paper, section XI-A, "Strategy selection", and XI-B)."""
    if config.rule == "consensus":
        raise ConfigError("The rule 'consensus' places no points by strategy; choose another, such as 'paper_prose'.")
    return _POINT_RULES[config.rule](quality, quality.compactness < config.compactness_threshold)


def refine(
    prediction: Prediction,
    decode: Decode,
    config: AMRConfig = _DEFAULT_CONFIG,
    *,
    max_points: int | None = None,
    mask_prompt: bool = True,
    zoom: Zoom | None = None,
) -> Prediction:
    """Refine a prediction's best mask, keeping whichever mask scores higher.

    The rule "consensus" looks at the object again and lets the looks vote, see `refinesam.second_looks`: the mask kept
    is never below the first in expected IoU, and what it gains is added to the first mask's predicted IoU.

    The other rules generate positive clicks. Every pass answers the user's prompt plus its own points (or its points
    alone, without the user's box or mask, when ``config.append`` is False); a further pass starts from the kept mask
    and replaces the points of the one before, so the prompt doesn't grow. Passes end when one gains nothing or its
    points were tried before. The mask kept is never below the first in predicted IoU. A refined mask that is empty is
    never kept, whatever its score.

    Args:
        prediction: what to refine; its prompt counts as the user's.
        decode: answers a prompt on the same image. A PromptError that it raises ends the passes, or costs the look it
            was for, and its message is part of the reason; anything else that it raises passes through.
        config: the rule and its settings.
        max_points: how many points the model takes in all, None for no limit. Every click of the prompt counts as one
            and a box as two; generated points that don't fit are left out.
        mask_prompt: whether the model takes masks and logits as prompts; for "consensus", which without them has no
            closer looks.
        zoom: encodes a window (x0, y0, x1, y1) of the image and returns what decodes prompts in the window's frame; for
            "consensus". Without it there are no closer looks.

    Returns:
        The prediction with the higher score, with the prompt that obtained it. Its `refinement` gives kappa and Q of
        the first mask, and the strategy and points of the last pass tried.
    """
    if config.rule == "consensus":
        asked = (tuple(config.zooms), mask_prompt, max_points, config.point_count, config.depth)
        return SecondLooks(decode, zoom, *asked, config.min_gain, config.early_exit).refine(prediction)
    kept = prediction
    attempts: list[_Attempt] = []
    for _ in range(config.iterations):
        attempt = _attempt(kept, prediction.prompt, decode, config, max_points, attempts)
        attempts.append(attempt)
        if attempt.result is None or attempt.problem:
            break
        kept = attempt.result
    return kept.with_refinement(_report(prediction, kept, config, attempts))


@dataclass(frozen=True, eq=False)
class _Attempt:
    """One pass: what it saw, placed and got, and the sentence that says why the result was not kept ("" if it was)."""

    quality: MaskQuality
    strategy: Literal["centre", "boundary", "none"] = "none"
    points: FloatArray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    result: Prediction | None = None
    problem: str = ""


def _attempt(
    kept: Prediction, prompt: Prompt, decode: Decode, config: AMRConfig, max_points: int | None, tried: list[_Attempt]
) -> _Attempt:
    quality = mask_quality(kept.mask)
    if not quality.kappa:
        return _Attempt(quality, problem="The first mask is empty, so there is nothing to refine.")
    count = config.point_count
    if max_points is not None:
        taken = len(prompt.points) + (0 if prompt.box is None else 2)
        count = min(count, max_points - (taken if config.append else 0))
    if count < 1:
        problem = f"The model takes at most {max_points} points and the prompt leaves no room for another."
        return _Attempt(quality, problem=problem)
    strategy = choose_strategy(quality, config)
    centre = strategy == "centre"
    points = centre_points(kept.mask, count, config.depth) if centre else boundary_points(kept.mask, count)
    if not len(points):
        return _Attempt(quality, problem="The mask fills the whole image, so no boundary point can lie outside it.")
    if any(np.array_equal(points, attempt.points) for attempt in tried):
        return _Attempt(quality, problem="A further pass would have repeated points that were tried before.")
    points.flags.writeable = False
    try:
        result = decode(prompt.with_points(points) if config.append else Prompt(points=points))
    except PromptError as error:
        problem = f"The model refused the {strategy} points, so the first mask was kept: {error}"
        return _Attempt(quality, strategy, points, problem=problem)
    return _Attempt(quality, strategy, points, result, _objection(result, kept, strategy, config))


def _objection(result: Prediction, kept: Prediction, strategy: Strategy, config: AMRConfig) -> str:
    if not result.mask.any():
        return f"The mask refined with {strategy} points is empty, so the first mask was kept."
    least = config.min_gain or 0
    if result.score > kept.score + least:
        return ""
    margin = f" by more than {least:g}" if least else ""
    scores = f"{kept.score:.4f} before, {result.score:.4f} after"
    return f"The {strategy} points did not raise the predicted IoU{margin} ({scores}), so the first mask was kept."


def _report(prediction: Prediction, kept: Prediction, config: AMRConfig, attempts: list[_Attempt]) -> RefinementReport:
    first = attempts[0].quality
    # A pass that could place nothing new says why the passes ended; what was tried is told by the one before it.
    last = next((attempt for attempt in reversed(attempts) if attempt.strategy != "none"), attempts[-1])
    score_after = math.nan if last.result is None else last.result.score
    reason, rejected = attempts[-1].problem, None
    if kept is not prediction:
        score_after = kept.score
        strategy = next(attempt.strategy for attempt in attempts if attempt.result is kept)
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
        iterations=sum(attempt.result is not None for attempt in attempts),
        rejected=rejected,
    )
