"""Masks and predicted IoUs for tests of refinement."""

from __future__ import annotations

import numpy as np


def square(top: int, left: int, side: int, shape: tuple[int, int] = (200, 300)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)
