"""Negative clicks at an object's rim: the spot goes, and nothing else is lost."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from skimage import data

import refinesam
from refinesam import Prompt, mask_iou
from refinesam.spots import without_spot

# Boxes x0, y0, x1, y1 around coins.
COINS = [(25, 27, 73, 73), (72, 32, 110, 66), (190, 170, 240, 222), (292, 40, 340, 84)]


@pytest.fixture(scope="module", params=[True, False], ids=["trained", "untrained"])
def encoded(request: pytest.FixtureRequest) -> refinesam.EncodedImage:
    session = refinesam.load("builtin", device="cpu")
    if not request.param:
        session.model.capabilities = replace(session.capabilities, negative_points=False, mask_prompt=False)
    return session.encode(data.coins())


@pytest.mark.parametrize("box", COINS)
def test_a_box_and_a_negative_click_at_the_rim(encoded: refinesam.EncodedImage, box: tuple[int, ...]) -> None:
    first = encoded.predict(Prompt(box=box)).mask
    assert first.sum() > 500
    for inside, wanted in ((False, 2), (True, 1)):
        distance = cv2.distanceTransform((first == inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        rows, columns = np.nonzero(np.rint(distance) == wanted)
        for index in np.linspace(0, len(rows) - 1, 4).astype(int):
            x, y = int(columns[index]), int(rows[index])
            after = encoded.predict(Prompt(points=[[x + 0.5, y + 0.5]], labels=[0], box=box)).mask
            assert not after[y, x]
            assert mask_iou(first, after) >= (0.99 if inside else 1)


def test_a_mask_that_fills_the_image_has_no_border_there() -> None:
    mask = np.ones((20, 30), bool)
    assert not without_spot(mask, np.array([15.0, 10.0], np.float32)).any()
    mask[:, 20:] = False
    rows, columns = np.indices(mask.shape)
    cut = without_spot(mask, np.array([0.5, 10.5], np.float32))
    assert np.array_equal(cut, mask & ~(np.hypot(rows - 10, columns) <= 10))


def test_what_is_given_up_elsewhere_stays() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 5:55] = True
    given_up = np.zeros_like(mask)
    given_up[10:30, 10:20] = True  # the clicked part
    given_up[12:16, 24:28] = True  # in reach, but another piece
    rows, columns = np.indices(mask.shape)
    distance = np.hypot(rows - 20, columns - 15)
    cut = without_spot(mask, np.array([15.0, 20.0], np.float32), given_up)
    gone = (distance <= 5) | ((columns >= 10) & (columns < 20) & (distance <= 15))
    assert np.array_equal(cut, mask & ~gone)
    assert np.array_equal(without_spot(mask, np.array([2.0, 2.0], np.float32), given_up), mask)
