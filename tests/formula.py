"""Weights and an image by formula, for comparisons with the reference implementations that need no weight file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def weight(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The value of one entry of a state dict."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("positional_encoding_gaussian_matrix"):
        return x
    if any(name in key for name in ("pos_embed", "rel_pos", "attention_biases")):
        return np.float32(0.1) * x
    if key.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(x)
    if len(shape) <= 1:
        of_a_norm = any(name in key for name in ("norm", ".bn.", "neck.1", "neck.3", "upscaling"))
        return 1 + np.float32(0.1) * x if of_a_norm and key.endswith("weight") else np.float32(0.05) * x
    if ("embed" in key and "patch" not in key) or key.endswith(("_token.weight", "_tokens.weight")):
        return x
    return (x / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict like the given one, by formula; integers stay as they are."""
    return {
        key: torch.from_numpy(np.asarray(weight(key, tuple(value.shape)), np.float32))
        if value.is_floating_point()
        else value
        for key, value in state_dict.items()
    }


def image(height: int = 480, width: int = 640) -> NDArray[np.uint8]:
    """Waves in red and green, a disk in blue."""
    y, x = np.mgrid[:height, :width]
    red = 127 + 100 * np.sin(x / 37) * np.cos(y / 53)
    green = 127 + 110 * np.sin((x + y) / 61 + 1)
    blue = np.where((x - 0.4 * width) ** 2 + (y - height / 2) ** 2 < (0.23 * height) ** 2, 220, 40)
    return np.clip(np.rint(np.stack([red, green, blue], axis=-1)), 0, 255).astype(np.uint8)
