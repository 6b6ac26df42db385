"""COCO's run-length encoding, and the checks that masks and sizes from outside go through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

from refinesam.errors import DatasetError, ImageError
from refinesam.types import BoolArray

__all__ = ["Rle", "checked_mask", "checked_size", "decode_rle", "encode_rle", "runs_from_compressed", "shown"]

# Annotations come from files: a size beyond this would exhaust memory before anything looks wrong.
MAX_MASK_PIXELS = 2**30
# Compressed counts spend five bits on a character; a run below 2**31 needs at most seven.
MAX_COUNT_CHARACTERS = 7


class Rle(TypedDict):
    """COCO's compressed run-length encoding, ready for JSON: size is [height, width], counts is ASCII."""

    size: list[int]
    counts: str


def encode_rle(mask: ArrayLike) -> Rle:
    """Encode an (H, W) mask as compressed COCO RLE.

    Raises:
        ImageError: not a mask: another shape, no pixels, or values other than 0 and 1.

    >>> encode_rle([[0, 1], [0, 1]])
    {'size': [2, 2], 'counts': '22'}
    """
    array = checked_mask(mask)
    encoded = coco_mask.encode(np.asfortranarray(array, np.uint8))
    return {"size": [array.shape[0], array.shape[1]], "counts": encoded["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, object]) -> BoolArray:
    """Decode COCO RLE, compressed (str or bytes) or not (list of run lengths), to (H, W) bool.

    The run lengths are checked here and expanded by numpy: the C library reads beyond its memory on damaged ones.

    Raises:
        DatasetError: missing keys, a size that is none, or runs that are damaged or do not add up to the size.
    """
    height, width = checked_size(_entry(rle, "size"))
    counts = _entry(rle, "counts")
    runs = runs_from_compressed(counts) if isinstance(counts, str | bytes) else _runs_from_list(counts)
    if runs.size and runs.min() < 0:
        raise DatasetError(
            f"RLE run lengths must be 0 or more, got {runs.min()}: the counts are damaged, export again."
        )
    # The greatest run is looked at first, because a sum of damaged runs can overflow.
    if not runs.size or runs.max() > height * width or runs.sum() != height * width:
        raise DatasetError(
            f"The RLE's runs add up to {sum(runs.tolist())} pixels, but its size {height} x {width} (height x width) "
            f"has {height * width}: check that the counts are whole and the size is [height, width]."
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def _entry(rle: object, key: str) -> object:
    if not isinstance(rle, Mapping) or key not in rle:
        raise DatasetError(f"An RLE is a mapping with the keys 'size' and 'counts', got {shown(rle)}: add {key!r}.")
    return rle[key]


def checked_size(size: object) -> tuple[int, int]:
    """Return (height, width), or raise DatasetError unless they are two positive integers of a bearable product."""
    numbers = list(size) if isinstance(size, list | tuple | np.ndarray) else []
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in numbers)
    if len(numbers) != 2 or not whole:
        raise DatasetError(
            f"A mask's size must be two positive integers, [height, width], got {shown(size)}: correct it."
        )
    height, width = int(numbers[0]), int(numbers[1])
    if height * width > MAX_MASK_PIXELS:
        raise DatasetError(
            f"A mask of {height} x {width} pixels exceeds {MAX_MASK_PIXELS}: check the size, or tile the image."
        )
    return height, width


def _runs_from_list(counts: object) -> NDArray[np.int64]:
    try:
        array = np.asarray(counts if isinstance(counts, list | tuple | np.ndarray) else None)
    except (ValueError, OverflowError):
        array = np.asarray(None)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DatasetError(
            f"RLE counts must be a string or a flat list of integers, got {shown(counts)}: export again."
        )
    return array.astype(np.int64)


def runs_from_compressed(counts: str | bytes) -> NDArray[np.int64]:
    """Unpack COCO's string: base-32 digits, lowest first, from the third run on as the difference to two runs before.

    A character is 48 + digit + 32 when more follow; bit 16 of the last digit is the sign.
    """
    data = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    digits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not digits.size:
        return digits
    ends = np.flatnonzero(digits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if digits.min() < 0 or digits.max() > 63 or digits[-1] & 32 or (ends - starts).max() >= MAX_COUNT_CHARACTERS:
        raise DatasetError(
            f"The RLE counts {shown(counts)} are not COCO's compressed form: they are damaged or cut off, export the "
            "annotation again, or give the run lengths as a list."
        )
    lengths = ends - starts + 1
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((digits & 31) << shifts, starts)
    runs -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def checked_mask(mask: ArrayLike) -> BoolArray:
    """Return an (H, W) bool mask, or raise ImageError for another shape or values other than 0 and 1."""
    try:
        array = np.asarray(mask)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that takes part in training
        raise ImageError(
            f"The mask is not an array ({error}): give (H, W) booleans, of a tensor tensor.detach().cpu().numpy()."
        ) from error
    if array.ndim != 2 or array.size == 0:
        raise ImageError(f"A mask has shape (H, W) and pixels, got {array.shape}: give one mask at a time.")
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf" or not np.isin(array, (0, 1)).all():
        raise ImageError(f"A mask holds True/False or 1/0, got other values of {array.dtype}: threshold it, mask > 0.")
    return array.astype(np.bool_)


def shown(value: object) -> str:
    """Return a value as an error message quotes it: its repr, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
