"""Boundary IoU against its definition, written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinesam.boundary import boundary_iou
from refinesam.errors import ConfigError, ImageError


def naive_erosion(mask: np.ndarray) -> np.ndarray:
    """A pixel stays when its eight neighbours and itself are set; beyond the border nothing is."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.logical_and.reduce([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])


def naive_boundary_iou(a: np.ndarray, b: np.ndarray, ratio: float) -> float:
    boundaries = []
    for mask in (a, b):
        inner = mask
        for _ in range(max(1, round(ratio * math.hypot(*mask.shape)))):
            inner = naive_erosion(inner)
        boundaries.append(mask & ~inner)
    union = (boundaries[0] | boundaries[1]).sum()
    return float((boundaries[0] & boundaries[1]).sum() / union) if union else 0.0


def rectangles(rng: np.random.Generator, hw: tuple[int, int], largest: int) -> np.ndarray:
    """A few rectangles that overlap, leave holes and touch the border."""
    mask = np.zeros(hw, bool)
    for _ in range(int(rng.integers(1, 5))):
        y, x = rng.integers(hw[0]), rng.integers(hw[1])
        height, width = rng.integers(1, largest + 1, 2)
        mask[y : y + height, x : x + width] ^= True
    return mask


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    largest=st.sampled_from([1, 3, 30, 60]),
    ratio=st.sampled_from([0.001, 0.02, 0.1, 1.0]),
)
def test_it_equals_the_definition(seed: int, height: int, width: int, largest: int, ratio: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rectangles(rng, (height, width), largest) for _ in range(2))
    assert boundary_iou(a, b, ratio) == naive_boundary_iou(a, b, ratio)


@pytest.mark.parametrize("pixels", [[(0, 0)], [(29, 39)], [(7, 9), (7, 10)], [(7, 9), (8, 10), (9, 11)]])
def test_objects_of_few_pixels_are_all_boundary(pixels: list[tuple[int, int]]) -> None:
    a, b = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    for y, x in pixels:
        a[y, x] = True
    assert boundary_iou(a, a) == 1
    b[pixels[0]] = True
    assert boundary_iou(a, b) == boundary_iou(b, a) == 1 / len(pixels)
    assert boundary_iou(a, np.zeros_like(a)) == 0


def test_the_images_border_counts_as_outside() -> None:
    full = np.ones((100, 100), bool)
    inner = np.zeros((100, 100), bool)
    inner[3:97, 3:97] = True
    # round(0.02 x 141.4) = 3: the full mask's boundary is a frame of 3 pixels, the other's the next 3.
    assert boundary_iou(full, full) == 1
    assert boundary_iou(full, inner) == 0
    assert boundary_iou(full, inner, 6 / math.hypot(100, 100)) == (94**2 - 88**2) / (100**2 - 88**2 + 88**2 - 82**2)


def test_empty_masks_score_zero() -> None:
    empty = np.zeros((9, 9), bool)
    assert boundary_iou(empty, empty) == 0


def test_an_interior_hole_counts_more_than_in_iou() -> None:
    whole = np.zeros((200, 200), bool)
    whole[20:180, 20:180] = True
    holed = whole.copy()
    holed[95:105, 95:105] = False
    d = round(0.02 * math.hypot(200, 200))
    frame, ring = 160**2 - (160 - 2 * d) ** 2, (10 + 2 * d) ** 2 - 10**2
    assert boundary_iou(whole, holed) == frame / (frame + ring)


def test_numbers_and_any_memory_order_will_do() -> None:
    a = np.asfortranarray(rectangles(np.random.default_rng(3), (40, 30), 20))
    assert boundary_iou(a.astype(np.uint8), a[::1]) == 1
    assert boundary_iou(a[::2, ::-1], a[::2, ::-1].tolist()) == 1


@pytest.mark.parametrize("ratio", [0, -0.02, 1.5, math.nan])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="dilation_ratio"):
        boundary_iou([[1]], [[1]], ratio)


@pytest.mark.parametrize("masks", [([[1]], [[1, 0]]), ([1, 0], [1, 0]), ([[2]], [[1]])])
def test_what_is_no_pair_of_masks_is_refused(masks: Any) -> None:
    with pytest.raises(ImageError):
        boundary_iou(*masks)
