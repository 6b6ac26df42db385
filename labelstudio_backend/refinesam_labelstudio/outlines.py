"""Masks as outlines that Label Studio can show: one ring a part, holes cut open to the outline, few vertices.

Rings are (N, 2) float64 pixel (x, y) on pixel edges, closed without repeating the first vertex.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refinesam import decode_rle, polygons_from_mask
from refinesam_labelstudio.json_types import JsonObject

__all__ = ["mask_from_outline", "outlines_from_mask"]

Ring = NDArray[np.float64]

# Pixels, the least. Somewhat more than the steps of a slanted border, which then becomes a straight line: a disc of
# radius 400 has 228 vertices with a tolerance of 1, and 64 with this one.
TOLERANCE = 1.25
# Of the image's longer side: half a cell of the grid of 256 that masks are decoded on, by which they wave anyway.
OF_IMAGE = 1 / 512
# Of the square root of the mask's area, so that what is small in a large image keeps its form.
OF_OBJECT = 1 / 100
# Of the largest part's area; smaller parts are specks.
OF_LARGEST = 1 / 100
# Every vertex is an object in the annotator's browser, every part a row in its list.
MAX_PARTS = 100
MAX_HOLES = 100
# A simplified outline that agrees less with the exact one isn't used.
MIN_IOU = 0.95

logger = logging.getLogger(__name__)


def outlines_from_mask(
    mask: NDArray[np.bool_], tolerance: float | None = None, smallest_part: float | None = None
) -> list[Ring]:
    """Return one ring for each connected part of a mask, the largest first.

    A ring can't have holes. So each hole is joined to the outline by a cut without width, there and back: the ring
    encloses exactly the part without its holes, whether filled by the even-odd rule or by winding, as browsers do.

    Args:
        mask: (H, W) bool.
        tolerance: how far a simplified outline may lie from the exact one, in pixels; half of it, or none, is used
            where the mask would change by more than 5 %. 0 keeps every pixel. None goes by the sizes of image and
            mask: 1.25 pixels, more in images of more than 640.
        smallest_part: pixels; smaller parts (but for the largest) and holes are left out. None goes by the mask:
            (2 * tolerance)**2, and for parts a hundredth of the largest where that is more and the tolerance isn't 0.
            Of more than 100 parts, or 100 holes in a part, the largest stay, which is logged.
    """
    if tolerance is None:
        tolerance = max(TOLERANCE, min(OF_IMAGE * max(mask.shape), OF_OBJECT * float(mask.sum()) ** 0.5))
    parts = [(_area(part.exterior), part) for part in polygons_from_mask(mask)]
    parts.sort(key=lambda item: -item[0])
    smallest_hole = (2 * tolerance) ** 2 if smallest_part is None else smallest_part
    if smallest_part is None:
        smallest_part = max(smallest_hole, OF_LARGEST * parts[0][0]) if tolerance > 0 and parts else 0
    parts = parts[:1] + [item for item in parts[1:] if item[0] >= smallest_part]
    if len(parts) > MAX_PARTS:
        logger.warning("The mask has %d parts: the %d largest become polygons.", len(parts), MAX_PARTS)
    return [_outline(part.exterior, part.holes, tolerance, smallest_hole) for _, part in parts[:MAX_PARTS]]


def mask_from_outline(ring: Ring, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a filled ring as (H, W) bool, by the even-odd rule; it may reach outside the image."""
    height, width = image_hw
    # Vertices farther out than the image's size would take memory for nothing.
    return decode_rle(_filled(np.clip(ring, (-width, -height), (2 * width, 2 * height)), image_hw))


def _outline(exterior: Ring, holes: Sequence[Ring], tolerance: float, smallest_hole: float) -> Ring:
    holes = sorted((hole for hole in holes if _area(hole) >= smallest_hole), key=_area, reverse=True)
    if len(holes) > MAX_HOLES:
        logger.warning("A part of the mask has %d holes: the %d largest are cut out.", len(holes), MAX_HOLES)
        holes = holes[:MAX_HOLES]
    exact = _cut_open(exterior, holes)
    if tolerance <= 0:
        return exact
    corner = exterior.min(axis=0)
    width, height = (int(n) for n in exterior.max(axis=0) - corner)
    target = _filled(exact - corner, (height, width))
    for allowed in (tolerance, tolerance / 2):
        simple = _cut_open(_simplified(exterior, allowed), [_simplified(hole, allowed) for hole in holes])
        if coco_mask.iou([_filled(simple - corner, (height, width))], [target], [0])[0, 0] >= MIN_IOU:
            return simple
    return exact


def _simplified(ring: Ring, tolerance: float) -> Ring:
    """Return the ring with fewer vertices (Douglas and Peucker 1973), or as it is where nothing would be left of it."""
    simple: Ring = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(np.float64)
    return simple if len(simple) >= 3 else ring


def _cut_open(exterior: Ring, holes: Sequence[Ring]) -> Ring:
    """Join holes to the exterior, from left to right, so that what a hole's cut meets on its left is joined already."""
    ring = exterior
    for hole in sorted(holes, key=lambda hole: float(hole[:, 0].min())):
        ring = _with_hole(ring, hole)
    return np.asarray(ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)])


def _with_hole(ring: Ring, hole: Ring) -> Ring:
    """Cut from the hole's leftmost vertex straight to the left, to the first edge of the ring."""
    hole = np.roll(hole, -int(np.argmin(hole[:, 0])), axis=0)
    x, y = hole[0]
    start, stop = ring, np.roll(ring, -1, axis=0)
    rise = stop[:, 1] - start[:, 1]
    reached = (np.minimum(start[:, 1], stop[:, 1]) <= y) & (y <= np.maximum(start[:, 1], stop[:, 1])) & (rise != 0)
    slope = np.divide(stop[:, 0] - start[:, 0], rise, out=np.zeros_like(rise), where=rise != 0)
    at = start[:, 0] + slope * (y - start[:, 1])
    at[~(reached & (at <= x))] = -np.inf
    edge = int(np.argmax(at))
    # Simplified outlines can cross, and then nothing need lie on the left; a cut encloses nothing wherever it goes.
    meeting = (at[edge], y) if np.isfinite(at[edge]) else tuple(ring[edge])
    return np.vstack([ring[: edge + 1], [meeting], hole, hole[:1], [meeting], ring[edge + 1 :]])


def _area(ring: Ring) -> float:
    following = np.roll(ring, -1, axis=0)
    return abs(float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum())) / 2


def _filled(ring: Ring, image_hw: tuple[int, int]) -> JsonObject:
    rle: JsonObject = coco_mask.frPyObjects([ring.ravel().tolist()], *image_hw)[0]
    return rle
