"""A closer look at an object: the window of the image around it, and a prompt moved into that window."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from refinesam.consensus import Window
from refinesam.masks import box_from_mask
from refinesam.types import BoolArray, Prompt

__all__ = ["prompt_in_window", "window_around"]

# A window is at least so many pixels wide and high, where the image is.
LEAST_SIDE: Final = 48
# A window that takes more of the image than this shows nothing closer.
MOST_OF_IMAGE: Final = 0.7


def window_around(mask: BoolArray, prompt: Prompt, factor: float) -> Window | None:
    """Return a square window, cut to the image, around a mask and what the prompt says is on the object.

    Args:
        mask: (H, W), not empty.
        prompt: its positive points and its box lie in the window.
        factor: the window's side over the longer side of what it holds, at least 1.

    Returns:
        x0, y0, x1, y1 in whole pixels, or None where the window would hold most of the image.
    """
    height, width = mask.shape
    box = box_from_mask(mask)
    corners = [prompt.positive_points]
    corners += [found.reshape(2, 2) for found in (box, prompt.box) if found is not None]
    held = np.clip(np.concatenate(corners).astype(np.float64), 0, (width, height))
    low, high = held.min(axis=0), held.max(axis=0)
    half = max(factor * float((high - low).max()), LEAST_SIDE) / 2
    middle = (low + high) / 2
    x0, y0 = (max(0, math.floor(value)) for value in middle - half)
    x1, y1 = min(width, math.floor(middle[0] + half) + 1), min(height, math.floor(middle[1] + half) + 1)
    if (x1 - x0) * (y1 - y0) > MOST_OF_IMAGE * width * height:
        return None
    return x0, y0, x1, y1


def prompt_in_window(prompt: Prompt, window: Window, mask: BoolArray) -> Prompt:
    """Return a prompt in a window's frame, with a mask of the image as its mask prompt.

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
        mask=mask[y0:y1, x0:x1],
    )
