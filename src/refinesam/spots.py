"""The spot of a click off the object: what of a mask goes with it, and nothing else."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from refinesam.arrays import BoolArray, FloatArray

__all__ = ["CUT_REACH", "without_spot"]

# Of the way from a click to the nearest pixel off the mask: how far a spot is cut out unasked, and how far what a model
# gives up there is taken over. Chosen on training images.
CUT_REACH: Final = 0.5
GIVEN_UP_REACH: Final = 1.5


def without_spot(mask: BoolArray, point: FloatArray, given_up: BoolArray | None = None) -> BoolArray:
    """Return a mask without what lies under a click off the object.

    A model's own answer to such a click is another mask, which often lacks far more than was clicked at. So:

    1. The disc around the click goes, up to half of the way to the nearest pixel off the mask.
    2. What the model gives up goes, as far as it is in one piece with the clicked pixel and near the click.

    Args:
        mask: (H, W) bool.
        point: (2,) pixel (x, y) in the image.
        given_up: (H, W) bool, where the model's own answer to the click has nothing; None where it has no answer.
    """
    x, y = (int(value) for value in point)
    if not mask[y, x]:
        return mask
    to_border = _to_border(mask, x, y)
    reach = int(GIVEN_UP_REACH * to_border)
    top, left = max(0, y - reach), max(0, x - reach)
    around = np.s_[top : y + reach + 1, left : x + reach + 1]
    rows, columns = np.indices(mask[around].shape, dtype=np.float32)
    distance = np.hypot(rows - (y - top), columns - (x - left))
    spot = distance <= CUT_REACH * to_border
    if given_up is not None:
        near = mask[around] & given_up[around] & (distance <= GIVEN_UP_REACH * to_border)
        _, pieces = cv2.connectedComponents(near.astype(np.uint8), connectivity=8)
        clicked = pieces[y - top, x - left]
        spot |= near & (pieces == clicked)
    cut = mask.copy()
    cut[around] &= ~spot
    return cut


def _to_border(mask: BoolArray, x: int, y: int) -> float:
    """Distance in pixels from a pixel of a mask to the nearest one off it; beyond the image there is none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = max(0, rows[0] - 1), max(0, columns[0] - 1)
    part = mask[top : rows[-1] + 2, left : columns[-1] + 2].astype(np.uint8)
    distance = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[y - top, x - left]
    return min(float(distance), float(np.hypot(*mask.shape)))
