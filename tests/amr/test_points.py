"""What a mask is measured by, and where its points lie (source paper, section XI)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from mask_arrays import any_mask, disc, rectangle
from refinesam.amr import boundary_points, centre_points, mask_quality
from refinesam.errors import ConfigError, PromptError

SQUARE_Q = math.pi / 4

# --- Mask quality -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "kappa", "compactness"),
    [
        pytest.param(np.zeros((7, 9), bool), 0, 0.0, id="empty"),
        pytest.param(np.zeros((0, 9), bool), 0, 0.0, id="no pixels at all"),
        pytest.param(rectangle(1, 1), 1, SQUARE_Q, id="one pixel"),
        pytest.param(rectangle(2, 2), 1, SQUARE_Q, id="2x2"),
        pytest.param(rectangle(9, 9), 1, SQUARE_Q, id="9x9"),
        # Outline through pixel centres: 10 x 30 gives area 9 * 29 and perimeter 2 * (9 + 29).
        pytest.param(rectangle(10, 30), 1, 4 * math.pi * 261 / 76**2, id="10x30"),
        pytest.param(rectangle(1, 12), 1, 0.0, id="1xN line"),
        pytest.param(rectangle(12, 1), 1, 0.0, id="Nx1 line"),
        # Two equal squares: twice the area, twice the perimeter.
        pytest.param(rectangle(5, 5) | rectangle(5, 5, left=20), 2, SQUARE_Q / 2, id="two squares"),
        # Areas 8 * 8 and 2 * 4, perimeters 32 and 12.
        pytest.param(rectangle(9, 9) | rectangle(3, 5, top=20), 2, 4 * math.pi * 72 / 44**2, id="two unequal blobs"),
        pytest.param(rectangle(1, 1) | rectangle(1, 1, left=9), 2, SQUARE_Q / 2, id="two single pixels"),
        pytest.param(rectangle(9, 9) & ~rectangle(3, 3, 6, 7), 1, SQUARE_Q, id="square with a hole"),
        pytest.param(np.ones((6, 6), bool), 1, SQUARE_Q, id="full"),
        pytest.param(np.ones((1, 1), bool), 1, SQUARE_Q, id="full, one pixel"),
        pytest.param(rectangle(6, 6, top=0, left=0), 1, SQUARE_Q, id="in the corner"),
        pytest.param(np.eye(4, dtype=bool), 4, 0.0, id="corner to corner is apart"),
        # A plus of five pixels: the outline is the diamond through the four tips, area 2, perimeter 4 sqrt(2).
        pytest.param(np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool), 1, SQUARE_Q, id="plus"),
    ],
)
def test_quality_by_hand(mask: np.ndarray, kappa: int, compactness: float) -> None:
    quality = mask_quality(mask)
    assert quality.kappa == kappa
    assert quality.compactness == pytest.approx(compactness, abs=1e-6)


def test_a_disc_is_compact_and_a_star_is_not() -> None:
    assert 0.85 < mask_quality(disc(25)).compactness < 1
    rows, columns = np.mgrid[-30:31, -30:31]
    star = np.hypot(rows, columns) < 16 + 12 * np.sin(7 * np.arctan2(rows, columns))
    assert mask_quality(star).compactness < 0.6


def test_a_ring_counts_as_its_outline() -> None:
    assert mask_quality(disc(25) & ~disc(15)) == mask_quality(disc(25))


@settings(max_examples=150, deadline=None)
@given(any_mask())
def test_quality_on_the_crop_is_that_of_the_whole_image(mask: np.ndarray) -> None:
    quality = mask_quality(mask)
    assert quality.kappa == scipy.ndimage.label(mask)[1]
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    perimeter = sum(cv2.arcLength(contour, True) for contour in contours)
    assert 0 <= quality.compactness <= 1 + 1e-9
    if perimeter:
        area = sum(cv2.contourArea(contour) for contour in contours)
        assert quality.compactness == pytest.approx(4 * math.pi * area / perimeter**2, rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(any_mask(12), st.integers(1, 40), st.integers(1, 40))
def test_where_an_object_lies_in_a_large_image_changes_nothing(mask: np.ndarray, top: int, left: int) -> None:
    # A background margin of one pixel keeps the object off the border in both images.
    small = np.pad(mask, 1)
    large = np.pad(mask, ((top, 90), (left, 80)))
    assert mask_quality(large) == mask_quality(small)
    shift = (left - 1, top - 1)
    for place in (centre_points, boundary_points):
        np.testing.assert_array_equal(place(large, 3), place(small, 3) + np.float32(shift))


@pytest.mark.parametrize("function", [mask_quality, centre_points, boundary_points])
def test_masks_of_any_layout_are_read_and_others_refused(function: Callable[[Any], Any]) -> None:
    mask = disc(12)
    expected = function(mask)
    readonly = mask.copy()
    readonly.flags.writeable = False
    for same in (mask.astype(np.uint8) * 255, mask.astype(np.int64), np.asfortranarray(mask), readonly):
        np.testing.assert_equal(function(same), expected)
    np.testing.assert_equal(function(mask[::-1, ::2]), function(np.ascontiguousarray(mask[::-1, ::2])))
    with pytest.raises(PromptError, match=r"shape \(H, W\), got shape \(1, 61, 61\)"):
        function(mask[None])
    with pytest.raises(PromptError, match="Threshold logits first"):
        function(mask.astype(np.float32))


@pytest.mark.parametrize(
    "call",
    [
        lambda mask: centre_points(mask, 0),
        lambda mask: centre_points(mask, 2, 1.0),
        lambda mask: boundary_points(mask, -1),
    ],
)
def test_bad_arguments_of_the_point_functions(call: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="give a"):
        call(disc(5))


# --- Points -----------------------------------------------------------------------------------------------------------


def naive_centre_points(mask: np.ndarray, count: int, depth: float) -> list[tuple[float, float]]:
    """The paper's centre strategy, one pixel at a time; outside the image is background."""
    padded = np.pad(mask, 1)
    background = np.argwhere(~padded)
    distance = {
        (row - 1, column - 1): math.sqrt(((background - (row, column)) ** 2).sum(axis=1).min())
        for row, column in np.argwhere(padded).tolist()
    }
    deepest = max(distance.values(), default=0)
    region = [pixel for pixel in distance if distance[pixel] > depth * deepest]  # row-major
    chosen: list[tuple[int, int]] = []
    while len(chosen) < min(count, len(region)):
        if not chosen:
            chosen.append(max(region, key=lambda pixel: distance[pixel]))
        else:
            done = list(chosen)
            chosen.append(
                max(region, key=lambda pixel: min((pixel[0] - r) ** 2 + (pixel[1] - c) ** 2 for r, c in done))
            )
    return [(column + 0.5, row + 0.5) for row, column in chosen]


def naive_boundary_points(mask: np.ndarray, count: int) -> list[tuple[float, float]]:
    """The paper's boundary strategy, on the whole image and in its own words."""
    original = mask.astype(np.uint8)
    boundary = cv2.dilate(original, np.ones((3, 3), np.uint8)) - original
    rows, columns = np.where(boundary > 0)
    if not len(rows):
        return []
    points = [
        (float(columns[index]) + 0.5, float(rows[index]) + 0.5)
        for index in np.linspace(0, len(rows) - 1, count, dtype=int)
    ]
    return list(dict.fromkeys(points))


@settings(max_examples=150, deadline=None)
@given(any_mask(16), st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.7, 0.9]))
def test_centre_points_are_the_papers(mask: np.ndarray, count: int, depth: float) -> None:
    assert [tuple(point) for point in centre_points(mask, count, depth).tolist()] == naive_centre_points(
        mask, count, depth
    )


@pytest.mark.parametrize("mask", [disc(20), disc(20) & ~disc(7), rectangle(30, 37), np.ones((33, 41), bool)])
def test_centre_points_are_the_papers_on_solid_shapes(mask: np.ndarray) -> None:
    assert [tuple(point) for point in centre_points(mask, 3).tolist()] == naive_centre_points(mask, 3, 0.7)


@settings(max_examples=150, deadline=None)
@given(any_mask(), st.integers(1, 5))
def test_boundary_points_are_the_papers(mask: np.ndarray, count: int) -> None:
    assert [tuple(point) for point in boundary_points(mask, count).tolist()] == naive_boundary_points(mask, count)


@settings(max_examples=150, deadline=None)
@given(any_mask(), st.integers(1, 6))
def test_points_lie_inside_the_image_and_where_they_should(mask: np.ndarray, count: int) -> None:
    for place, on_mask in ((centre_points, True), (boundary_points, False)):
        points = place(mask, count)
        assert points.dtype == np.float32
        assert points.shape[1:] == (2,)
        assert len(points) <= count
        assert len(np.unique(points, axis=0)) == len(points)
        np.testing.assert_array_equal(points, place(mask.copy(), count))
        columns, rows = np.floor(points).astype(int).T
        assert (points > 0).all()
        assert (points[:, 0] < mask.shape[1]).all()
        assert (points[:, 1] < mask.shape[0]).all()
        assert (mask[rows, columns] == on_mask).all()
    assert bool(len(centre_points(mask))) == mask.any()
    assert bool(len(boundary_points(mask))) == (mask.any() and not mask.all())


def test_points_by_hand() -> None:
    mask = rectangle(5, 5, top=10, left=20)
    # One deepest pixel (distance 3); every other has at most 2 < 0.7 * 3.
    assert centre_points(mask).tolist() == [[22.5, 12.5]]
    # At half of the depth the 3x3 middle remains, its first corner in row-major order is the farthest.
    assert centre_points(mask, depth=0.5).tolist() == [[22.5, 12.5], [21.5, 11.5]]
    # The ring is the 7x7 square's border: its first and last pixel.
    assert boundary_points(mask).tolist() == [[19.5, 9.5], [25.5, 15.5]]
    # A line: equally deep everywhere, so first pixel, then the farthest, its other end.
    assert centre_points(rectangle(1, 10)).tolist() == [[4.5, 3.5], [13.5, 3.5]]
    # Two equally deep discs: the second point goes to the other one.
    first, second = centre_points(disc(9, (15, 15), (31, 80)) | disc(9, (15, 60), (31, 80))).tolist()
    assert first == [15.5, 15.5]
    assert second[0] > 60


def test_outside_the_image_is_background() -> None:
    assert centre_points(np.ones((5, 5), bool), 1).tolist() == [[2.5, 2.5]]
    cut = rectangle(9, 9, top=31, left=10)  # touches the image's lower border
    assert centre_points(cut, 1).tolist() == [[14.5, 35.5]]
    assert boundary_points(np.ones((5, 5), bool)).shape == (0, 2)
    one_left = np.ones((3, 3), bool)
    one_left[1, 2] = False
    assert boundary_points(one_left, 2).tolist() == [[2.5, 1.5]]
