"""Which mask agrees best with all that were decoded: a weighted vote and a minimum Bayes risk choice.

1. Weigh every mask: the softmax of the predicted IoUs within its decode, times the weight of the decode. Predicted IoU
   can't be compared between prompts, since it rises with every point, right or wrong.
2. Add the weighted masks up, and cut the sum at several thresholds. What is left are the candidates, with the first
   mask beside them.
3. Take each candidate's *expected IoU*: the weighted mean of its IoU with all masks, as if each were the truth with the
   probability of its weight.
4. Choose the candidate with the highest one.

Only masks are used, no logits: their scale differs from model to model. Expected IoU says which mask is better, not how
good it is: decodes that err alike agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from refinesam.amr.crop import Window
from refinesam.types import BoolArray, FloatArray

__all__ = ["Candidates", "Decision", "vote"]

# Of the softmax over predicted IoUs of one decode: a mask 0.1 below the best has 0.37 of its weight.
TEMPERATURE: Final = 0.1
# Shares of the votes that make a pixel foreground, the one preferred in a tie first.
THRESHOLDS: Final = (0.5, 0.45, 0.4, 0.35, 0.55)
# Expected IoUs are computed on a grid of at most this many cells a side, which is as exact as they need to be.
GRID_SIDE: Final = 160


@dataclass(frozen=True, eq=False)
class Candidates:
    """The masks of one decode.

    Attributes:
        masks: (C, h, w), in the image's frame or in that of a crop.
        scores: (C,) predicted IoUs; a NaN never outweighs a number.
        window: where the masks lie in the image; None means that they cover it.
        weight: of the decode among all, above 0.
    """

    masks: BoolArray
    scores: FloatArray
    window: Window | None = None
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Decision:
    """What a vote decides.

    Attributes:
        mask: (H, W) bool, read-only, the cut of the votes with the highest expected IoU.
        expected_iou: its expected IoU.
        first_expected_iou: that of the first mask.
        ious: (N,) its IoU with every mask that voted, in their order.
    """

    mask: BoolArray
    expected_iou: float
    first_expected_iou: float
    ious: FloatArray

    @property
    def gain(self) -> float:
        """By how much its expected IoU is above that of the first mask."""
        return self.expected_iou - self.first_expected_iou


# A mask cut to its pixels, x and y of its first pixel in the image, and its weight.
_Placed = tuple[BoolArray, int, int, float]


def vote(
    first: BoolArray,
    voters: Sequence[Candidates],
    temperature: float = TEMPERATURE,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Decision | None:
    """Vote, and compare what the votes leave with the first mask.

    Args:
        first: (H, W); it competes with the cuts of the votes, and has no vote but by being among the voters' masks.
        voters: what was decoded. Their order counts where votes lie on a threshold, by the last digit of the sum.
        temperature: of the weights of one decode's masks, above 0.
        thresholds: shares of the votes that make a pixel foreground, the one preferred in a tie first.

    Returns:
        The decision, or None where no mask has a pixel.
    """
    placed = [one for voter in voters for one in _placed(voter, temperature)]
    region = _region(first, placed)
    if region is None:
        return None
    x0, y0, x1, y1 = region
    votes = np.zeros((y1 - y0, x1 - x0), np.float32)
    stride = max(1, math.ceil(max(votes.shape) / GRID_SIDE))
    grid = (slice(None, None, stride), slice(None, None, stride))
    cells = np.zeros((len(placed), votes[grid].size), np.float32)
    weights = np.array([weight for *_, weight in placed], np.float32)
    weights /= weights.sum()
    for (mask, left, top, _), weight, row in zip(placed, weights, cells, strict=True):
        pasted = np.zeros(votes.shape, np.bool_)
        pasted[top - y0 : top - y0 + mask.shape[0], left - x0 : left - x0 + mask.shape[1]] = mask
        votes += weight * pasted
        row[:] = pasted[grid].ravel()
    cuts = [first[y0:y1, x0:x1], *(votes > threshold for threshold in thresholds)]
    ious = _ious(np.stack([cut[grid].ravel() for cut in cuts]).astype(np.float32), cells)
    expected = ious @ weights
    best = 1 + int(np.argmax(expected[1:]))
    mask = np.zeros(first.shape, np.bool_)
    mask[y0:y1, x0:x1] = cuts[best]
    mask.flags.writeable = False
    return Decision(mask, float(expected[best]), float(expected[0]), ious[best])


def _placed(voter: Candidates, temperature: float) -> list[_Placed]:
    left, top = (0, 0) if voter.window is None else voter.window[:2]
    placed = []
    for mask, weight in zip(voter.masks, _weights(voter.scores, temperature), strict=True):
        # An empty one has a vote too, and expects nothing of any mask.
        x0, y0, x1, y1 = _box(mask)
        placed.append((mask[y0:y1, x0:x1], left + x0, top + y0, voter.weight * weight))
    return placed


def _region(first: BoolArray, placed: Sequence[_Placed]) -> Window | None:
    """Return the box around all masks."""
    boxes = [(x, y, x + mask.shape[1], y + mask.shape[0]) for mask, x, y, _ in placed if mask.size]
    if first.any():
        boxes.append(_box(first))
    if not boxes:
        return None
    low, high = np.min(boxes, axis=0), np.max(boxes, axis=0)
    return int(low[0]), int(low[1]), int(high[2]), int(high[3])


def _box(mask: BoolArray) -> Window:
    """Return the box around a mask, without area for an empty one; several times as fast as in NumPy."""
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return left, top, left + width, top + height


def _weights(scores: FloatArray, temperature: float) -> list[float]:
    """Return the softmax of the predicted IoUs of one decode."""
    numbers = np.where(np.isnan(scores), -np.inf, scores).astype(np.float64)
    best = numbers.max()
    if not np.isfinite(best):
        return [1 / len(numbers)] * len(numbers)
    weights = np.exp((numbers - best) / temperature)
    return [float(weight) for weight in weights / weights.sum()]


def _ious(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the (M, N) IoUs of masks (M, cells) and (N, cells) of zeros and ones; 0 where both are empty."""
    intersections = a @ b.T
    unions = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - intersections
    return np.asarray(np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0), np.float32)
