"""Pixels of one resolution from those of another: levels of a pyramid, and averages (numpy and OpenCV only)."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["averaged", "downsampling", "span"]

# OpenCV averages these as they are; others go through float64.
AVERAGED_AS_THEY_ARE = ("uint8", "uint16", "int16", "float32", "float64")


def downsampling(full: int, size: int) -> float:
    """How many pixels at full resolution one of a level covers."""
    ratio = full / size
    whole = max(1, round(ratio))
    # A pyramid of odd sizes is made with whole factors and leaves out or adds a last pixel.
    return float(whole) if abs(full / whole - size) < 1 else ratio


def span(start: int, stop: int, factor: float, size: int) -> tuple[slice, float]:
    """Return the pixels of a level that cover [start, stop) at full resolution, and where in them that begins."""
    first = min(int(start / factor), size - 1)
    last = min(max(math.ceil(stop / factor), first + 1), size)
    return slice(first, last), start / factor - first


def averaged(
    block: NDArray[Any], offset: tuple[float, float], ratio: tuple[float, float], hw: tuple[int, int]
) -> NDArray[Any]:
    """Bring a block of any type to a size, see `_resized`; booleans become floats, NaN are left out of the averages."""
    if block.dtype.kind in "iu":
        if block.dtype.name in AVERAGED_AS_THEY_ARE:
            return _resized(block, offset, ratio, hw)
        means = _resized(block.astype(np.float64), offset, ratio, hw)
        return np.asarray(np.rint(means), block.dtype)
    block = block.astype(block.dtype if block.dtype.name in AVERAGED_AS_THEY_ARE else np.float32, copy=False)
    finite = block[np.isfinite(block)]
    if not finite.size:
        return np.full((*hw, *block.shape[2:]), np.nan, block.dtype)
    # An infinity in an average would leave nothing of the rest; rounding may lead past the range, such as [0, 1].
    low, high = finite.min(), finite.max()
    missing = np.isnan(block)
    result = _resized(np.where(missing, low, np.clip(block, low, high)), offset, ratio, hw)
    if missing.any():
        share = _resized((~missing).astype(np.float64), offset, ratio, hw)
        result = np.where(share > 1e-6, low + (result - low) / np.maximum(share, 1e-6), np.nan)
    return np.asarray(np.clip(result, low, high))


def _resized(
    block: NDArray[Any], offset: tuple[float, float], ratio: tuple[float, float], hw: tuple[int, int]
) -> NDArray[Any]:
    """Average over what each pixel of the result covers; past the block's edges its last pixels go on.

    Args:
        block: (h, w) or (h, w, colours) of a type that OpenCV averages.
        offset: where the result begins in it, down and across.
        ratio: pixels of the block for one of the result, down and across.
        hw: size of the result.
    """
    # Whole pixels by area, which is exact; what is left, a shift and a factor below 2, by interpolation.
    whole = [max(1, int(pixels)) for pixels in ratio]
    height, width = (-(-size // pixels) for size, pixels in zip(block.shape, whole, strict=False))
    bottom, right = height * whole[0] - block.shape[0], width * whole[1] - block.shape[1]
    padded = cv2.copyMakeBorder(np.ascontiguousarray(block), 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    small = cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)
    (y, x), (dy, dx) = np.divide(offset, whole), np.divide(ratio, whole)
    to_small = np.array([[dx, 0, x + dx / 2 - 0.5], [0, dy, y + dy / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(small, to_small, hw[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE))
