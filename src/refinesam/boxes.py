"""XYXY boxes: overlap and non-maximum suppression. Malformed boxes raise DatasetError."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refinesam.errors import ConfigError, DatasetError
from refinesam.rle import shown

__all__ = ["box_iou", "nms"]


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


def nms(boxes_xyxy: ArrayLike, scores: ArrayLike, iou_threshold: float) -> NDArray[np.int64]:
    """Return the indices of the boxes that survive greedy non-maximum suppression, best score first.

    A box is dropped when its IoU with a better surviving one exceeds `iou_threshold`. Equal scores keep their order,
    so the result is the same every time.

    Args:
        boxes_xyxy: (N, 4) XYXY.
        scores: (N,), NaN not allowed.
        iou_threshold: in [0, 1].

    Raises:
        DatasetError: boxes or scores of another shape, or not finite boxes, or NaN scores.
        ConfigError: a threshold outside [0, 1].
    """
    boxes = _boxes(boxes_xyxy)
    try:
        ranking: NDArray[np.float64] = np.asarray(scores, np.float64)
    except (TypeError, ValueError):
        ranking = np.full(1, np.nan)
    if ranking.shape != (len(boxes),) or np.isnan(ranking).any():
        raise DatasetError(f"{len(boxes)} boxes need as many numbers as scores, got {shown(scores)}: give one each.")
    if not 0 <= iou_threshold <= 1:
        raise ConfigError(f"The NMS threshold must lie in [0, 1], got {iou_threshold}: 0.7 is usual.")
    remaining = np.argsort(-ranking, kind="stable")
    kept: list[int] = []
    while remaining.size:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        remaining = remaining[box_iou(boxes[best][None], boxes[remaining])[0] <= iou_threshold]
    return np.array(kept, np.int64)


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
