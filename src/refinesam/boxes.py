"""The overlap of XYXY boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refinesam.errors import DatasetError

__all__ = ["box_iou"]


def box_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return the (N, M) intersections over unions of (N, 4) and (M, 4) XYXY boxes; 0 where a union has no area.

    Raises:
        DatasetError: not boxes of shape (N, 4), or not finite.
    """
    first, second = _boxes(a), _boxes(b)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    union = _areas(first)[:, None] + _areas(second)[None] - intersection
    ious: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return ious


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1))


def _boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    try:
        array: NDArray[np.float64] = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"Boxes must be numbers ({error}): give (N, 4) XYXY.") from error
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise DatasetError(f"Boxes need shape (N, 4), x0, y0, x1, y1 each, got {array.shape}: write one box as [box].")
    if not np.isfinite(array).all():
        raise DatasetError("Boxes hold NaN or infinity: remove those boxes first.")
    return array
