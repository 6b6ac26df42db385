"""The arrays that prompts and predictions hold: checked, copied and read-only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refinesam.errors import PromptError

__all__ = [
    "BoolArray",
    "FloatArray",
    "IntArray",
    "box_array",
    "frozen",
    "iou_array",
    "logits_array",
    "mask_array",
    "points_and_labels",
    "read_only",
]

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array itself, to which nothing can be written any more."""
    array.flags.writeable = False
    return array


def read_only(array: ArrayLike) -> NDArray[Any]:
    """Return an array that nothing can be written to: itself where that is so already, else a copy."""
    array = np.asarray(array)
    return frozen(array.copy()) if array.flags.writeable else array


def iou_array(values: FloatArray) -> FloatArray:
    """Return predicted IoUs in [0, 1]; those above 1, which a model may predict, keep their order just below it.

    What is infinite is no IoU and becomes NaN.
    """
    values = np.where(np.isfinite(values), values, np.float32(np.nan))
    clipped = np.clip(values, 0, 1)
    for rank, index in enumerate(np.argsort(-np.where(values > 1, values, 0), kind="stable")[: (values > 1).sum()]):
        clipped[index] -= rank * np.finfo(np.float32).eps
    return clipped


def _numbers(value: ArrayLike, what: str) -> FloatArray:
    try:
        array = np.array(np.asarray(value), dtype=np.float32)
    except RuntimeError as error:  # torch's, for a tensor that takes part in training
        raise PromptError(f"{what} cannot be read ({error}): give tensor.detach().cpu().numpy().") from error
    except (TypeError, ValueError) as error:
        raise PromptError(f"{what} must be numbers, got {value!r}.") from error
    if array.size and not np.isfinite(array).all():
        raise PromptError(f"{what} must be finite, got {array.tolist()}.")
    return array


def points_and_labels(points: ArrayLike | None, labels: ArrayLike | None) -> tuple[FloatArray, IntArray]:
    """Return points (N, 2) and their labels (N,), 1 for each that has none."""
    if points is None:
        if labels is not None and np.size(labels):
            raise PromptError(f"Labels {labels!r} were given without points.")
        return frozen(np.zeros((0, 2), np.float32)), frozen(np.zeros(0, np.int64))
    array = _numbers(points, "Points")
    if array.size == 0:
        array = array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise PromptError(f"Points must have shape (N, 2), one (x, y) each, got shape {array.shape}.")
    if labels is None:
        return frozen(array), frozen(np.ones(len(array), np.int64))
    label_numbers = np.asarray(_numbers(labels, "Labels"))
    if label_numbers.shape != (len(array),):
        raise PromptError(
            f"{len(array)} point(s) need labels of shape ({len(array)},), got shape {label_numbers.shape}."
        )
    if not np.isin(label_numbers, (0, 1)).all():
        raise PromptError(f"Labels must be 1 (on the object) or 0 (not on the object), got {label_numbers.tolist()}.")
    return frozen(array), frozen(label_numbers.astype(np.int64))


def box_array(box: ArrayLike) -> FloatArray:
    """Return a box (4,) XYXY with its corners sorted."""
    array = _numbers(box, "A box")
    if array.shape == (1, 4):
        array = array[0]
    if array.shape != (4,):
        raise PromptError(f"A box is four numbers x0, y0, x1, y1, got shape {array.shape}. One box per prompt.")
    x0, x1 = sorted(array[[0, 2]].tolist())
    y0, y1 = sorted(array[[1, 3]].tolist())
    if x0 == x1 or y0 == y1:
        raise PromptError(f"Box {array.tolist()} has no area: x0 < x1 and y0 < y1 are needed.")
    return frozen(np.array([x0, y0, x1, y1], np.float32))


def mask_array(mask: ArrayLike) -> BoolArray:
    """Return a mask (H, W)."""
    try:
        array = np.array(np.asarray(mask))  # in two steps: a tensor's own copying warns
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(
            f"A mask prompt must be an array (H, W), got {type(mask).__name__} ({error}); of a tensor give "
            "tensor.detach().cpu().numpy()."
        ) from error
    if array.ndim != 2 or array.size == 0:
        raise PromptError(f"A mask prompt must have shape (H, W) and pixels, got shape {array.shape}.")
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise PromptError("A mask prompt holds True/False or 1/0; for logits of a prediction use mask_logits.")
    return frozen(array.astype(np.bool_))


def logits_array(mask_logits: ArrayLike) -> FloatArray:
    """Return low-resolution logits (h, w)."""
    array = _numbers(mask_logits, "mask_logits")
    if array.ndim != 2 or array.size == 0:
        raise PromptError(
            f"mask_logits must have shape (h, w), one mask of an earlier prediction, got shape {array.shape}."
        )
    return frozen(array)
