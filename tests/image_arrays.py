"""Small images of random pixels, and what they become."""

from __future__ import annotations

import numpy as np

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (20, 30), np.uint8)
RGB8 = RNG.integers(0, 256, (20, 30, 3), np.uint8)
GRAY16 = RNG.integers(0, 65536, (20, 30), np.uint16)
RGB16 = RNG.integers(0, 65536, (20, 30, 3), np.uint16)


def scaled16(image: np.ndarray) -> np.ndarray:
    return np.floor(image / 65535 * 255 + 0.5).astype(np.uint8)


def three(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)
