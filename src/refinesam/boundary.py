"""Boundary IoU (Cheng et al. 2021): how well outlines agree, whatever the size of what they enclose."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from refinesam.errors import ConfigError, ImageError
from refinesam.rle import checked_mask

__all__ = ["boundary_iou"]


def boundary_iou(a: ArrayLike, b: ArrayLike, dilation_ratio: float = 0.02) -> float:
    """Return the IoU of the boundaries of two (H, W) masks; 0 where both are empty.

    A mask's boundary is the mask without what is left after d erosions by 3x3: its pixels at most d away from a pixel
    outside, diagonal steps counting as one. d = max(1, round(ratio x diagonal of the image)), and what lies beyond the
    image's border counts as outside (Cheng et al. 2021, "Boundary IoU", section 4, and the authors' own code).

    Args:
        a: (H, W) mask.
        b: (H, W) mask of the same image.
        dilation_ratio: d as a share of the image's diagonal, above 0 and at most 1; the authors use 0.02 for COCO.

    Raises:
        ImageError: not masks, or of different shapes.
        ConfigError: a ratio out of range.

    >>> boundary_iou([[1, 1, 0]], [[0, 1, 1]])
    0.3333333333333333
    """
    first, second = checked_mask(a), checked_mask(b)
    if first.shape != second.shape:
        raise ImageError(f"Masks of shapes {first.shape} and {second.shape} cannot be compared: resize one of them.")
    if not 0 < dilation_ratio <= 1:
        raise ConfigError(f"dilation_ratio is {dilation_ratio!r}; give a number above 0 and at most 1, as 0.02.")
    distance = max(1, round(dilation_ratio * math.hypot(*first.shape)))
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(first | second).view(np.uint8))
    box = np.s_[y : y + height, x : x + width]
    first_ring, second_ring = _boundary(first[box], distance), _boundary(second[box], distance)
    union = np.count_nonzero(first_ring | second_ring)
    return float(np.count_nonzero(first_ring & second_ring) / union) if union else 0.0


def _boundary(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Return the boundary of a mask that is cut to any box around it: what lies beyond counts as outside."""
    if not mask.any():
        return mask
    # OpenCV turns d erosions by 3x3 into one by (2 d + 1) x (2 d + 1).
    inner = cv2.erode(
        np.ascontiguousarray(mask).view(np.uint8),
        np.ones((3, 3), np.uint8),
        iterations=distance,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=[0],
    )
    return np.asarray(mask & (inner == 0))
