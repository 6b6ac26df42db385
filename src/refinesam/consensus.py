"""Which mask agrees best with everything that was decoded: a vote and a minimum Bayes risk choice.

Predicted IoU can't be compared between prompts, since it rises with every point, right or wrong. So it is used only
where it is good, to weigh the masks of one decode against each other; what a whole decode has to say is told from
outside. A mask's score is its *expected IoU*: the weighted mean of its IoU with all decoded masks, as if each were the
truth with the probability of its weight. The candidates are the first mask and what the weighted votes leave at several
thresholds; the one with the highest expected IoU is chosen (the minimum Bayes risk decision). Masks alone are looked
at, no logits: their scale differs from model to model.

Expected IoU says which mask is better, not how good it is: looks that err alike agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from refinesam.types import BoolArray, FloatArray

__all__ = ["Ballot", "Decision", "Window"]

# x0, y0, x1, y1 in whole pixels of the image.
Window = tuple[int, int, int, int]

# Of the softmax over predicted IoUs of one decode: a mask 0.1 below the best has 0.37 of its weight.
TEMPERATURE: Final = 0.1
# Shares of the votes that make a pixel foreground, the one preferred in a tie first.
THRESHOLDS: Final = (0.5, 0.45, 0.4, 0.35, 0.55)
# Expected IoUs are computed on a grid of at most this many cells a side, which is as exact as they need to be.
GRID_SIDE: Final = 160


@dataclass(frozen=True, eq=False)
class Decision:
    """What a ballot decides.

    Attributes:
        mask: (H, W) bool, the vote with the highest expected IoU.
        expected_iou: its expected IoU.
        first_expected_iou: that of the first mask.
        ious: (N,) its IoU with every mask that was added, in that order.
    """

    mask: BoolArray
    expected_iou: float
    first_expected_iou: float
    ious: FloatArray

    @property
    def gain(self) -> float:
        """By how much its expected IoU is above that of the first mask."""
        return self.expected_iou - self.first_expected_iou


class Ballot:
    """Masks of several decodes of one object, and their weights."""

    def __init__(
        self, first: BoolArray, temperature: float = TEMPERATURE, thresholds: tuple[float, ...] = THRESHOLDS
    ) -> None:
        """Start from the first mask.

        Args:
            first: (H, W); it competes with the votes, and is no vote itself.
            temperature: of the weights of one decode's masks, above 0.
            thresholds: shares of the votes that make a pixel foreground, the one preferred in a tie first.
        """
        self.first, self._temperature, self._thresholds = first, temperature, thresholds
        self._masks: list[tuple[BoolArray, int, int, float]] = []

    def add(self, masks: BoolArray, scores: FloatArray, window: Window | None = None, say: float = 1) -> None:
        """Add one decode.

        Args:
            masks: (C, h, w), in the image's frame or in that of a window.
            scores: (C,) predicted IoUs; a NaN never outweighs a number.
            window: where the masks lie in the image; None means that they cover it.
            say: weight of the decode among all, above 0.
        """
        left, top = (0, 0) if window is None else window[:2]
        for mask, weight in zip(masks, _weights(scores, self._temperature), strict=True):
            # An empty one has a say too, and expects nothing of any mask.
            x0, y0, x1, y1 = _box(mask)
            self._masks.append((mask[y0:y1, x0:x1], left + x0, top + y0, say * weight))

    def decide(self) -> Decision | None:
        """Vote, and compare what the votes leave with the first mask; None where no mask has a pixel."""
        region = self._region()
        if region is None:
            return None
        x0, y0, x1, y1 = region
        votes = np.zeros((y1 - y0, x1 - x0), np.float32)
        stride = max(1, math.ceil(max(votes.shape) / GRID_SIDE))
        grid = (slice(None, None, stride), slice(None, None, stride))
        cells = np.zeros((len(self._masks), votes[grid].size), np.float32)
        weights = np.array([weight for *_, weight in self._masks], np.float32)
        weights /= weights.sum()
        for (mask, left, top, _), weight, row in zip(self._masks, weights, cells, strict=True):
            pasted = np.zeros(votes.shape, np.bool_)
            pasted[top - y0 : top - y0 + mask.shape[0], left - x0 : left - x0 + mask.shape[1]] = mask
            votes += weight * pasted
            row[:] = pasted[grid].ravel()
        options = [self.first[y0:y1, x0:x1], *(votes > threshold for threshold in self._thresholds)]
        candidates = np.stack([option[grid].ravel() for option in options]).astype(np.float32)
        ious = _ious(candidates, cells)
        expected = ious @ weights
        best = 1 + int(np.argmax(expected[1:]))
        mask = np.zeros(self.first.shape, np.bool_)
        mask[y0:y1, x0:x1] = options[best]
        return Decision(mask, float(expected[best]), float(expected[0]), ious[best])

    def _region(self) -> Window | None:
        """Return the box around all masks."""
        boxes = [(x, y, x + mask.shape[1], y + mask.shape[0]) for mask, x, y, _ in self._masks if mask.size]
        if self.first.any():
            boxes.append(_box(self.first))
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
