"""Masks found in parts of an image: placed, compared, thinned and joined across seams, the image never filled.

A mask is kept as a box and the pixels in it, so that a thousand of them in an image of 10,000 x 10,000 are no more than
what they cover. Large ones are kept at every second, fourth, ... pixel of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from refinesam.amr import Window
from refinesam.types import BoolArray, FloatArray

__all__ = ["Found", "crop_windows", "join_across_seams", "place", "thin"]

# Of a crop's share of the image, how much wider it is: what is small lies whole in one of them.
OVERLAP = 0.2
# Two parts of one object agree this well, in IoU, where their crops overlap.
LEAST_AGREEMENT = 0.6


@dataclass(frozen=True, eq=False)
class Found:
    """A mask somewhere in an image.

    Attributes:
        x0, y0: of its box, in steps.
        pixels: (h, w) bool, the mask at every `step`-th pixel of the image, cut to its box.
        step: pixels of the image from one of the mask's to the next.
        score: predicted IoU.
        point: (2,) float32, pixel x, y of the click that found it.
        window: the part of the image that the model saw.
        cut: which of the window's left, top, right and bottom sides cut the mask off, and are no sides of the image.
        logits: (h, w) low-resolution logits of the window, None where the mask is all that is kept.
        similarity: to examples, in [0, 1]; None where there were none.
    """

    x0: int
    y0: int
    pixels: BoolArray
    step: int
    score: float
    point: FloatArray
    window: Window
    cut: tuple[bool, bool, bool, bool] = (False, False, False, False)
    logits: FloatArray | None = None
    similarity: float | None = None

    @property
    def area(self) -> int:
        """Pixels of the image that it covers, to the step."""
        return int(np.count_nonzero(self.pixels)) * self.step**2

    @property
    def box(self) -> Window:
        """Its box in pixels of the image."""
        (height, width), step = self.pixels.shape, self.step
        return self.x0 * step, self.y0 * step, (self.x0 + width) * step, (self.y0 + height) * step

    def full(self, image_hw: tuple[int, int]) -> BoolArray:
        """Return the whole (H, W) mask; of one with a step above 1 every pixel is repeated."""
        mask = np.zeros(image_hw, np.bool_)
        x0, y0, x1, y1 = self.box
        pixels = self.pixels.repeat(self.step, 0).repeat(self.step, 1)
        mask[y0:y1, x0:x1] = pixels[: image_hw[0] - y0, : image_hw[1] - x0]
        return mask

    def within(self, window: Window, step: int) -> BoolArray:
        """Return the mask at every `step`-th pixel of a part of the image; `step` is a multiple of its own."""
        x0, y0, x1, y1 = (math.ceil(side / step) for side in window)
        part = np.zeros((max(0, y1 - y0), max(0, x1 - x0)), np.bool_)
        ratio = step // self.step
        pixels = self.pixels[-self.y0 % ratio :: ratio, -self.x0 % ratio :: ratio]
        left, top = math.ceil(self.x0 / ratio), math.ceil(self.y0 / ratio)
        a, b = max(left, x0), min(left + pixels.shape[1], x1)
        c, d = max(top, y0), min(top + pixels.shape[0], y1)
        if a < b and c < d:
            part[c - y0 : d - y0, a - x0 : b - x0] = pixels[c - top : d - top, a - left : b - left]
        return part


def crop_windows(image_hw: tuple[int, int], longest: int) -> list[Window]:
    """Cut an image into overlapping crops, at least two along each side.

    Args:
        image_hw: height and width of the image.
        longest: side of a crop in pixels at most, but for the overlap.
    """
    sides = []
    for side in image_hw:
        count = max(2, math.ceil(side / longest))
        length = min(side, math.ceil(side / count * (1 + OVERLAP)))
        sides.append([(start, start + length) for start in np.linspace(0, side - length, count).round().astype(int)])
    return [(int(x0), int(y0), int(x1), int(y1)) for y0, y1 in sides[0] for x0, x1 in sides[1]]


def place(
    mask: BoolArray, window: Window, step: int, image_hw: tuple[int, int], score: float, point: FloatArray
) -> Found | None:
    """Return a mask (h, w) of a window in its place in the image, None where it is empty."""
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    if not width:
        return None
    x0, y0, x1, y1 = window
    at_edge = (left == 0, top == 0, left + width == mask.shape[1], top + height == mask.shape[0])
    inner = (x0 > 0, y0 > 0, x1 < image_hw[1], y1 < image_hw[0])
    pixels = mask[top : top + height, left : left + width].copy()
    cut = tuple(edge and seam for edge, seam in zip(at_edge, inner, strict=True))
    return Found(x0 // step + left, y0 // step + top, pixels, step, score, point, window, cut)  # type: ignore[arg-type]


def _overlap(a: Window, b: Window) -> Window | None:
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _iou(a: Found, b: Found, window: Window) -> float:
    """IoU within a part of the image, at the coarser step of the two; 0 where both are empty."""
    step = max(a.step, b.step)
    one, other = a.within(window, step), b.within(window, step)
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 0.0


def thin(found: Sequence[Found], overlap_threshold: float) -> list[Found]:
    """Non-maximum suppression: of two masks whose IoU is higher, the one with the lower score goes.

    Returns:
        Those kept, by falling score.
    """
    kept: list[Found] = []
    areas, boxes = np.zeros(len(found)), np.zeros((len(found), 4))
    for one in sorted(found, key=lambda item: -item.score):
        area, box, count = one.area, one.box, len(kept)
        # The ratio of the areas bounds the IoU: few pairs are left to compare.
        alike = np.minimum(areas[:count], area) > overlap_threshold * np.maximum(areas[:count], area)
        apart = (boxes[:count, :2] >= box[2:]).any(1) | (boxes[:count, 2:] <= box[:2]).any(1)
        if any(_similar(one, kept[i], overlap_threshold) for i in np.flatnonzero(alike & ~apart)):
            continue
        areas[count], boxes[count] = area, box
        kept.append(one)
    return kept


def _similar(a: Found, b: Found, overlap_threshold: float) -> bool:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.box, b.box
    around = (min(ax0, bx0), min(ay0, by0), max(ax1, bx1), max(ay1, by1))
    return _iou(a, b, around) > overlap_threshold


def join_across_seams(found: Sequence[Found]) -> list[Found]:
    """Join masks that the sides of crops cut off with their other parts.

    Parts of one object lie in crops that overlap, and agree there; each is joined with the part in a crop that agrees
    with it best, if that one agrees best with it too. What stays cut off at any side is left out.

    Args:
        found: masks of crops with the same step.

    Returns:
        The masks that nothing cuts off, and those that were joined, scored by their parts' scores times their areas.
    """
    parts = [one for one in found if any(one.cut)]
    if not parts:
        return list(found)
    windows = sorted({one.window for one in parts})
    pairs: list[tuple[int, int]] = []
    joined: dict[int, set[Window]] = {i: set() for i in range(len(parts))}
    for one, other in combinations(windows, 2):
        if (shared := _overlap(one, other)) is None:
            continue
        here, there = ([i for i, part in enumerate(parts) if part.window == w] for w in (one, other))
        for i, k in _best_pairs(parts, here, there, shared):
            joined[i].add(other)
            joined[k].add(one)
            pairs.append((i, k))
    graph = coo_array((np.ones(len(pairs)), tuple(np.array(pairs, int).reshape(-1, 2).T)), shape=(len(parts),) * 2)
    _, groups = connected_components(graph, directed=False)
    whole = [one for one in found if not any(one.cut)]
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group).tolist()
        if all(_answered(parts[i], joined[i]) for i in members):
            whole.append(_union([parts[i] for i in members]))
    return whole


def _best_pairs(parts: Sequence[Found], here: list[int], there: list[int], shared: Window) -> list[tuple[int, int]]:
    ious = np.zeros((len(here), len(there)))
    for row, i in enumerate(here):
        for column, k in enumerate(there):
            if _overlap(parts[i].box, parts[k].box) is not None:
                ious[row, column] = _iou(parts[i], parts[k], shared)
    if not ious.size:
        return []
    best = ious.argmax(1)
    return [
        (here[row], there[column])
        for row, column in enumerate(best)
        if ious[row, column] >= LEAST_AGREEMENT and ious[:, column].argmax() == row
    ]


def _answered(part: Found, others: set[Window]) -> bool:
    """Whether a part goes on in another crop, beyond every side that cuts it off."""
    x0, y0, x1, y1 = part.window
    beyond = (
        any(other[0] < x0 for other in others),
        any(other[1] < y0 for other in others),
        any(other[2] > x1 for other in others),
        any(other[3] > y1 for other in others),
    )
    return all(goes_on for goes_on, cut in zip(beyond, part.cut, strict=True) if cut)


def _union(parts: Sequence[Found]) -> Found:
    boxes = np.array([part.box for part in parts])
    low, high = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
    around, step = (low[0], low[1], high[0], high[1]), parts[0].step
    pixels = parts[0].within(around, step)
    for part in parts[1:]:
        pixels |= part.within(around, step)
    score = float(np.average([part.score for part in parts], weights=[part.area for part in parts]))
    largest = max(parts, key=lambda part: part.area)
    joined = replace(largest, x0=low[0] // step, y0=low[1] // step, pixels=pixels, score=score, window=around)
    return replace(joined, cut=(False, False, False, False), logits=None)
