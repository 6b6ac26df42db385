"""Masks and predicted IoUs for tests of refinement."""

from __future__ import annotations

from typing import get_args

import numpy as np
import scipy.ndimage
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinesam.amr import Rule

# Those that place points; the closer look has tests of its own.
POINT_RULES = [rule for rule in get_args(Rule) if rule != "closer_look"]


def square(top: int, left: int, side: int, shape: tuple[int, int] = (200, 300)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def rectangle(height: int, width: int, top: int = 3, left: int = 4, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def disc(radius: float, centre: tuple[int, int] = (30, 30), shape: tuple[int, int] = (61, 61)) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


def any_mask(max_side: int = 24) -> st.SearchStrategy[np.ndarray]:
    """Noise, and noise dilated into blobs, of every shape from 1 x 1 on; empty and full ones among them."""
    noise = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=max_side))
    blobs = noise.map(lambda mask: scipy.ndimage.binary_closing(mask, iterations=1) | mask)
    return st.one_of(noise, blobs, noise.map(np.zeros_like), noise.map(np.ones_like))
