"""Augmentation of training crops: flips and turns, colour, blur and noise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["augment_colors", "draw_curves", "flip_and_turn"]

Pixels = NDArray[np.uint8]


def flip_and_turn(image: Pixels, masks: list[Pixels], rng: np.random.Generator) -> tuple[Pixels, list[Pixels]]:
    """Mirror at random; turn by quarters less often, since most photographs are upright."""
    if rng.random() < 0.5:
        image, masks = image[:, ::-1], [m[:, ::-1] for m in masks]
    if rng.random() < 0.3:
        turns = int(rng.integers(1, 4))
        image, masks = np.rot90(image, turns), [np.rot90(m, turns) for m in masks]
    return image, masks


def draw_curves(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a gain, a gamma and, rarely, an inversion: what each level becomes by channel, (256, 3) in [0, 1]."""
    levels = np.arange(256, dtype=np.float32) / 255
    table = np.empty((256, 3), np.float32)
    brightness, contrast, gamma = rng.uniform(-0.2, 0.2), np.exp(rng.uniform(-0.4, 0.4)), np.exp(rng.uniform(-0.4, 0.4))
    inverted = rng.random() < 0.07
    for channel in range(3):
        tint = rng.uniform(-0.08, 0.08)
        curve = np.clip((levels**gamma - 0.5) * contrast + 0.5 + brightness + tint, 0, 1)
        table[:, channel] = 1 - curve if inverted else curve
    return table


def augment_colors(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Change (S, S, 3) colours strongly: gain and gamma per channel, gray, inversion, blur, noise."""
    table = draw_curves(rng)
    lut = np.rint(table * 255).astype(np.uint8)
    image = np.stack([lut[:, c][image[..., c]] for c in range(3)], axis=-1)
    if rng.random() < 0.15:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.uint8)
    elif rng.random() < 0.1:
        image = np.ascontiguousarray(image[..., rng.permutation(3)])
    if rng.random() < 0.12:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.5, 1.8))), np.uint8)
    if rng.random() < 0.15:
        noise = rng.normal(0, float(rng.uniform(3, 15)), image.shape).astype(np.float32)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image
