"""Refinement by further looks at the object, and a consensus of what they show.

The first look is the prediction itself. Where its masks agree as they are, there may be no other. Else clicks are asked
again by other points, those in the middle of the first mask, since they may have fallen anywhere on the object. Then
comes a closer look: the part of the image around the mask found so far is encoded anew, where the model sees the object
larger, and asked by the user's prompt with that mask. There is no closer look where there is nothing to come closer to,
since the object fills the image or its pixels are not at hand; nor for a model that takes no mask as a prompt. Where
there was none, other prompts than clicks are asked again on the whole image, too; and where no point can be placed, the
mask's logits are fed back with the user's prompt. What the looks show is put to the vote (`refinesam.consensus`), where
a closer one counts several times and the second answer to clicks, which led there, no more; and the first mask stays
unless the vote's expected IoU is higher by a margin.

Predicted IoU is calibrated for first answers alone, so the score of a refined mask is the first mask's predicted IoU
plus the gain of expected IoU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np

from refinesam.consensus import Ballot, Decision, Window
from refinesam.errors import PromptError
from refinesam.topology import centre_points, mask_quality
from refinesam.types import BoolArray, FloatArray, Prediction, Prompt, RefinementReport
from refinesam.zoom import prompt_in_window, window_around

__all__ = ["Decode", "SecondLooks", "Zoom"]

Decode = Callable[[Prompt], Prediction]
# Encodes a window of the image and returns what decodes prompts in its frame.
Zoom = Callable[[Window], Decode]
Strategy = Literal["centre", "feedback", "zoom", "none"]

# Of expected IoU. Smaller gains are wrong more often than larger ones and hardly change the mean.
LEAST_GAIN: Final = 0.01
# In the vote, of a closer look, beside 1 of the first. `benchmarks/amr_study.py` has what it gains as an equal.
CLOSER_SAY: Final = 4.0


@dataclass(frozen=True)
class SecondLooks:
    """How to look again.

    Attributes:
        decode: answers a prompt on the whole image.
        zoom: re-encodes a window of it; None where the pixels are not at hand, then the whole image alone is used.
        factors: one window after the other, each side over the longer side of the object in it.
        mask_prompt: the model takes a mask as a prompt.
        max_points: most points of a prompt, a box counting as two; None means any number.
        point_count, depth: of the points in a mask's middle, see `refinesam.topology.centre_points`.
        min_gain: the least gain of expected IoU; None means `LEAST_GAIN`.
        early_exit: nothing is asked again where the first look's masks agree by more than this; 1 asks always.
    """

    decode: Decode
    zoom: Zoom | None
    factors: tuple[float, ...]
    mask_prompt: bool
    max_points: int | None
    point_count: int
    depth: float
    min_gain: float | None
    early_exit: float

    def refine(self, prediction: Prediction) -> Prediction:
        """Return the consensus of the looks, or the prediction itself, with a report either way."""
        looks = _Looks(prediction, LEAST_GAIN if self.min_gain is None else self.min_gain)
        if self.early_exit < 1 and looks.agreement > self.early_exit:
            return looks.settled(
                f"The masks of the first look agree by {looks.agreement:.4f}, so nothing was asked again."
            )
        clicks = _is_clicks(prediction.prompt)
        if clicks:
            self._look_again(looks)
        if self.zoom is not None and self.mask_prompt:
            for factor in self.factors:
                self._look_closer(looks, self.zoom, factor)
        if not clicks and not looks.taken:
            self._look_again(looks)
        if not looks.tried and self.mask_prompt:
            self._feed_back(looks)
        return looks.concluded()

    def _look_closer(self, looks: _Looks, zoom: Zoom, factor: float) -> None:
        prompt, mask = looks.prediction.prompt, looks.mask
        if mask is None or (window := window_around(mask, prompt, factor)) is None or window in looks.windows:
            return
        looks.windows.append(window)
        x0, y0, x1, y1 = window
        asked = prompt_in_window(prompt, window, mask)
        if not len(asked.positive_points):
            points = self._middle(mask[y0:y1, x0:x1], prompt)
            looks.points = points + np.array((x0, y0), np.float32)
            asked = asked.with_points(points)
        looks.ask("zoom", zoom(window), asked, window)

    def _look_again(self, looks: _Looks) -> None:
        mask, prompt = looks.prediction.mask, looks.prediction.prompt
        points = self._middle(mask, prompt)
        if len(points):
            looks.points = points
            looks.ask("centre", self.decode, _by_middle(prompt, points))

    def _feed_back(self, looks: _Looks) -> None:
        prediction, prompt = looks.prediction, looks.prediction.prompt
        fed = Prompt(prompt.points, prompt.labels, prompt.box, mask_logits=prediction.logits)
        looks.ask("feedback", self.decode, fed)

    def _middle(self, mask: BoolArray, prompt: Prompt) -> FloatArray:
        """Return points in the middle of a mask, as many as there is room for beside what is kept of the prompt."""
        kept = len(prompt.negative_points) if _is_clicks(prompt) else _slots(prompt)
        count = self.point_count if self.max_points is None else min(self.point_count, self.max_points - kept)
        return centre_points(mask, count, self.depth) if count > 0 else np.zeros((0, 2), np.float32)


def _by_middle(prompt: Prompt, points: FloatArray) -> Prompt:
    """Ask for the same object by the middle of its mask: instead of the positive clicks, or beside anything else."""
    if not _is_clicks(prompt):
        return prompt.with_points(points)
    negatives = prompt.negative_points
    return Prompt(points).with_points(negatives, np.zeros(len(negatives), np.int64))


def _is_clicks(prompt: Prompt) -> bool:
    """Whether clicks are all that is known of the object."""
    return prompt.box is None and prompt.mask is None and prompt.mask_logits is None


def _slots(prompt: Prompt) -> int:
    return len(prompt.points) + (0 if prompt.box is None else 2)


@dataclass(eq=False)
class _Looks:
    """The looks taken so far at one object."""

    prediction: Prediction
    min_gain: float
    ballot: Ballot = field(init=False)
    logits: list[FloatArray | None] = field(init=False)
    voting: int = field(init=False)
    windows: list[Window] = field(default_factory=list)
    closer: bool = False
    strategy: Strategy = "none"
    points: FloatArray = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    problem: str = ""
    taken: int = 0
    tried: int = 0
    _decided: Decision | None = None
    _up_to_date: bool = False

    def __post_init__(self) -> None:
        """Take the first look."""
        self._start()

    @property
    def decision(self) -> Decision | None:
        """What the looks so far decide, counted when it is asked for; None while no mask has a pixel."""
        if not self._up_to_date:
            self._decided, self._up_to_date = self.ballot.decide(), True
        return self._decided

    @property
    def agreement(self) -> float:
        """The first mask's expected IoU so far; 0 where a lone mask has none to agree with, or goes against a click."""
        first, decision = self.prediction, self.decision
        if decision is None or len(first.masks) < 2 or _missed(first.mask, first.prompt):
            return 0.0
        return decision.first_expected_iou

    @property
    def mask(self) -> BoolArray | None:
        """The mask found so far, None while there is none."""
        first, decision = self.prediction.mask, self.decision
        if decision is None:
            return None
        return first if first.any() and self._against(decision) else decision.mask

    def ask(self, strategy: Strategy, decode: Decode, prompt: Prompt, window: Window | None = None) -> None:
        """Look once more; note what the model refuses."""
        self.tried += 1
        try:
            prediction = decode(prompt)
        except PromptError as error:
            self.problem = f" The model refused a prompt: {error}"
            return
        if window is not None and not self.closer:
            self.closer = True
            self._start()
        self._add(prediction, window)
        self.strategy = strategy
        self.taken += 1

    def _start(self) -> None:
        """Let the first look alone vote."""
        self.ballot, self.logits, self.voting = Ballot(self.prediction.mask), [], 0
        self._add(self.prediction)

    def _add(self, prediction: Prediction, window: Window | None = None) -> None:
        whole = window is None
        self.ballot.add(prediction.masks, prediction.iou_predictions, window, 1 if whole else CLOSER_SAY)
        self.logits += [logits if whole else None for logits in prediction.low_res_logits]
        self.voting += 1
        self._up_to_date = False

    def settled(self, reason: str) -> Prediction:
        """Return the first prediction."""
        return self.prediction.with_refinement(self._report(reason))

    def concluded(self) -> Prediction:
        """Return the vote where it is better than the first mask, else the first prediction."""
        first, decision = self.prediction, self.decision
        if decision is None:
            return self.settled("No look found anything, so there is nothing to refine.")
        if not self.taken:
            return self.settled("There was nothing to try, so the first mask was kept.")
        if against := self._against(decision):
            return self.settled(f"{against}, so the first mask was kept.")
        refined = replace(
            first,
            masks=decision.mask[None],
            iou_predictions=np.array([self._score_after(decision)], np.float32),
            low_res_logits=self._nearest_logits(decision)[None],
        )
        reason = f"{self._name} gained {decision.gain:.4f} expected IoU, so it was kept."
        return refined.with_refinement(self._report(reason, refined=True))

    def _nearest_logits(self, decision: Decision) -> FloatArray:
        """Return the logits of the mask, decoded on the whole image, that comes nearest to the vote."""
        whole = [index for index, logits in enumerate(self.logits) if logits is not None]
        nearest = self.logits[max(whole, key=lambda index: float(decision.ious[index]))]
        assert nearest is not None
        return nearest

    def _score_after(self, decision: Decision) -> float:
        first = self.prediction.score
        return first + decision.gain if decision.gain <= 0 else max(first, min(1.0, first + decision.gain))

    def _against(self, decision: Decision) -> str:
        """Say why the vote should not replace the first mask, "" if it should."""
        prompt, first = self.prediction.prompt, self.prediction.mask
        if _missed(decision.mask, prompt) > _missed(first, prompt):
            return f"{self._name} goes against a click"
        if decision.gain <= self.min_gain:
            return f"{self._name} gained {decision.gain:.4f} expected IoU, no more than {self.min_gain:g}"
        return ""

    @property
    def _name(self) -> str:
        return f"The consensus of {self.voting} looks"

    def _report(self, reason: str, refined: bool = False) -> RefinementReport:
        first, decision = self.prediction, self.decision if self.taken else None
        quality = mask_quality(first.mask)
        self.points.flags.writeable = False
        if decision is not None:
            decision.mask.flags.writeable = False
        return RefinementReport(
            kappa=quality.kappa,
            compactness=quality.compactness,
            strategy=self.strategy,
            rule="consensus",
            points=self.points,
            score_before=first.score,
            score_after=math.nan if decision is None else self._score_after(decision),
            kept="refined" if refined else "first",
            reason=reason + self.problem,
            iterations=self.taken,
            rejected=None if refined or decision is None else decision.mask,
        )


def _missed(mask: BoolArray, prompt: Prompt) -> int:
    """Count the clicks that a mask goes against."""
    height, width = mask.shape
    columns, rows = np.clip(np.floor(prompt.points).astype(np.int64), 0, (width - 1, height - 1)).T
    return int((mask[rows, columns] != (prompt.labels == 1)).sum())
