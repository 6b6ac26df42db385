"""A crop of the image around an object, and a prompt moved into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

from refinesam.masks import box_from_mask
from refinesam.types import BoolArray, Prediction, Prompt

__all__ = ["Decode", "Window", "Zoom", "prompt_in_window", "window_around"]

# A part of the image: x0, y0, x1, y1 in whole pixels.
Window = tuple[int, int, int, int]
Decode = Callable[[Prompt], Prediction]
# Encodes a window of the image and returns what decodes prompts in its frame.
Zoom = Callable[[Window], Decode]

# A window is at least so many pixels wide and high, where the image is.
LEAST_SIDE: Final = 48
# Of the image's area; a window of more would hardly enlarge the object.
MOST_OF_IMAGE: Final = 0.5
# A window's side over the longer side of the object in it: with less, what is around the object is out of sight.
LEAST_FACTOR: Final = 1.2


def window_around(mask: BoolArray, prompt: Prompt, factor: float) -> Window | None:
    """Return a square window around a mask and what the prompt says is on the object.

    It is moved into the image where it would reach beyond, and cut where the image is too narrow for it.

    Args:
        mask: (H, W), not empty.
        prompt: its positive points and its box lie in the window.
        factor: the window's side over the longer side of what it holds, at least 1; less where the window would take
            more than `MOST_OF_IMAGE` of the image.

    Returns:
        x0, y0, x1, y1 in whole pixels, or None where the object is too large for a crop to enlarge it.
    """
    height, width = mask.shape
    box = box_from_mask(mask)
    corners = [prompt.positive_points]
    corners += [found.reshape(2, 2) for found in (box, prompt.box) if found is not None]
    held = np.clip(np.concatenate(corners).astype(np.float64), 0, (width, height))
    low, high = held.min(axis=0), held.max(axis=0)
    longer = float((high - low).max())
    most = math.floor(math.sqrt(MOST_OF_IMAGE * width * height)) - 1
    side = max(min(factor * longer, most), LEAST_SIDE)
    # A pixel more than the side, lest rounding push a point out.
    size = np.minimum(math.ceil(side) + 1, (width, height))
    if side < min(factor, LEAST_FACTOR) * longer or size.prod() > MOST_OF_IMAGE * width * height:
        return None
    x0, y0 = np.clip(np.floor((low + high - size + 1) / 2), 0, (width, height) - size).astype(int).tolist()
    return x0, y0, x0 + int(size[0]), y0 + int(size[1])


def prompt_in_window(prompt: Prompt, window: Window, mask: BoolArray | None) -> Prompt:
    """Return a prompt in a window's frame, with a mask of the image as its mask prompt, or with none.

    Points outside the window are left out, a box is cut to it, and the prompt's own mask is replaced.
    """
    x0, y0, x1, y1 = window
    origin, size = np.array([x0, y0], np.float32), np.array([x1 - x0, y1 - y0], np.float32)
    points = prompt.points - origin
    inside = ((points >= 0) & (points < size)).all(axis=1)
    box = None if prompt.box is None else np.clip(prompt.box - np.tile(origin, 2), 0, np.tile(size, 2))
    return Prompt(
        points=points[inside],
        labels=prompt.labels[inside],
        box=box,
        mask=None if mask is None else mask[y0:y1, x0:x1],
    )
