"""Prompts made from a first mask: the box, points and logits that refinement would ask with next."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from refinesam.amr.points import boundary_points, centre_points
from refinesam.training.finetune.prompts import SELF_MADE, SelfMade, self_made_prompt, self_made_prompts

PADDING, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3
# A box, a click on and one off the object, and padding.
POINTS = np.array([[3, 4], [30, 40], [10.5, 12.5], [50.5, 60.5], [0, 0]], np.float32)
LABELS = np.array([TOP_LEFT, BOTTOM_RIGHT, POSITIVE, NEGATIVE, PADDING])


def two_parts() -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[10:21, 8:30] = mask[40:44, 31:50] = True
    return mask


def given(points: np.ndarray, labels: np.ndarray) -> set[tuple[float, ...]]:
    """What a prompt says: x, y and label of every point that is no padding."""
    return {(*xy, label) for xy, label in zip(points.tolist(), labels.tolist(), strict=True) if label != PADDING}


USER = given(POINTS, LABELS)
CLICKS = {point for point in USER if point[2] < TOP_LEFT}
OWN_BOX = {(8.0, 10.0, TOP_LEFT), (50.0, 44.0, BOTTOM_RIGHT)}
CENTRE = {(*xy, POSITIVE) for xy in centre_points(two_parts()).tolist()}
BOUNDARY = {(*xy, POSITIVE) for xy in boundary_points(two_parts()).tolist()}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("own_box", OWN_BOX),
        ("own_box_and_clicks", OWN_BOX | CLICKS),
        ("centre", USER | CENTRE),
        ("boundary", USER | BOUNDARY),
        ("centre_alone", CENTRE),
        ("boundary_alone", BOUNDARY),
        ("unchanged", USER),
    ],
)
def test_each_kind_says_what_its_name_says(kind: SelfMade, expected: set[tuple[float, ...]]) -> None:
    points, labels = self_made_prompt(two_parts(), POINTS, LABELS, kind)
    assert (points.shape, labels.shape) == ((7, 2), (7,))
    assert (points.dtype, labels.dtype) == (POINTS.dtype, LABELS.dtype)
    assert given(points, labels) == expected


def test_every_kind_is_tested() -> None:
    assert len(SELF_MADE) == 7
    assert len({frozenset(given(*self_made_prompt(two_parts(), POINTS, LABELS, kind))) for kind in SELF_MADE}) == 7


def test_the_users_prompt_stays_as_it_was() -> None:
    points, labels = POINTS.copy(), LABELS.copy()
    for kind in SELF_MADE:
        self_made_prompt(two_parts(), points, labels, kind)
    assert np.array_equal(points, POINTS)
    assert np.array_equal(labels, LABELS)


@pytest.mark.parametrize("kind", SELF_MADE)
def test_an_empty_mask_leaves_the_prompt_as_it_is(kind: SelfMade) -> None:
    assert given(*self_made_prompt(np.zeros((64, 64), bool), POINTS, LABELS, kind)) == USER


def test_a_full_mask_has_no_boundary_and_leaves_the_prompt_as_it_is() -> None:
    full = np.ones((64, 64), bool)
    for kind in ("boundary", "boundary_alone"):
        assert given(*self_made_prompt(full, POINTS, LABELS, kind)) == USER


def test_a_mask_of_one_pixel_gives_one_point() -> None:
    pixel = np.zeros((64, 64), bool)
    pixel[20, 30] = True
    assert given(*self_made_prompt(pixel, POINTS, LABELS, "centre_alone")) == {(30.5, 20.5, POSITIVE)}
    assert given(*self_made_prompt(pixel, POINTS, LABELS, "own_box")) == {
        (30.0, 20.0, TOP_LEFT),
        (31.0, 21.0, BOTTOM_RIGHT),
    }


# ---------------------------------------------------------------- batches


def batch(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth masks (3, count, 16, 16), every one another, with the prompt above for each."""
    noise = torch.randn(3, count, 4, 4, generator=torch.Generator().manual_seed(seed))
    logits = F.interpolate(noise, size=(16, 16), mode="bicubic")
    points = torch.from_numpy(POINTS).expand(3, count, -1, -1)
    return logits, points, torch.from_numpy(LABELS).expand(3, count, -1)


def generators(seed: int) -> list[torch.Generator]:
    """One for each image of `batch`."""
    return [torch.Generator().manual_seed(1000 * seed + number) for number in range(3)]


def test_every_prompt_is_made_of_its_own_mask_in_pixels_of_the_input_and_all_kinds_occur_alike() -> None:
    logits, points, labels = batch(140)
    made, made_labels, _ = self_made_prompts(logits, points, labels, 0.0, generators(1))
    assert (made.shape, made_labels.shape) == ((3, 140, 7, 2), (3, 140, 7))
    kinds: Counter[str] = Counter()
    for b, p in np.ndindex(3, 140):
        mask = (F.interpolate(logits[None, None, b, p], size=(64, 64), mode="bilinear")[0, 0] > 0).numpy()
        found = given(made[b, p].numpy(), made_labels[b, p].numpy())
        fitting = [kind for kind in SELF_MADE if given(*self_made_prompt(mask, POINTS, LABELS, kind)) == found]
        assert fitting
        kinds[fitting[0]] += 1
    assert all(30 < kinds[kind] < 100 for kind in SELF_MADE), kinds


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_logits_are_fed_back_as_often_as_configured_and_always_with_an_unchanged_prompt(share: float) -> None:
    logits, points, labels = batch(100)
    made, made_labels, fed = self_made_prompts(logits, points, labels, share, generators(2))
    assert made.shape[:2] == fed.shape[:2] == (3, 100)
    number = {True: 0, False: 0}
    for b, p in np.ndindex(3, 100):
        back = bool(fed[b, p].any())
        assert torch.equal(fed[b, p], logits[b, p] * back)
        if given(made[b, p].numpy(), made_labels[b, p].numpy()) == USER:
            assert back
        else:
            number[back] += 1
    assert abs(number[True] / sum(number.values()) - share) < 0.12


def test_what_is_made_follows_the_generator() -> None:
    def draw(seed: int) -> torch.Tensor:
        return self_made_prompts(*batch(20), 0.3, generators(seed))[1]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
