"""Simulated users: clicks, boxes and corrections lie where a user would put them, as often as configured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refinesam.training.finetune.config import PromptConfig
from refinesam.training.finetune.prompts import click_in, correction_clicks, first_prompt, jittered_box, prompt_length

PADDING, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3


def rectangle(x0: int, y0: int, x1: int, y1: int, side: int = 64) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def ring(side: int = 64) -> np.ndarray:
    y, x = np.indices((side, side)) + 0.5
    distance = np.hypot(x - side / 2, y - side / 2)
    return (distance < 0.4 * side) & (distance > 0.25 * side)


MASKS = {
    "rectangle": rectangle(10, 20, 40, 33),
    "ring": ring(),
    "one pixel": rectangle(5, 7, 6, 8),
    "corner pixel": rectangle(63, 63, 64, 64),
    "line": rectangle(0, 30, 64, 31),
    "whole": rectangle(0, 0, 64, 64),
    "all but a pixel": ~rectangle(3, 4, 4, 5),
}
each_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def under(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    x, y = np.floor(points).astype(int).T
    return mask[y, x]


# ---------------------------------------------------------------- clicks


@each_mask
def test_clicks_lie_at_the_centres_of_distinct_pixels_of_the_region(mask: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 100):
        points = click_in(mask, count, rng)
        assert points.shape == (min(count, mask.sum()), 2)
        assert points.dtype == np.float32
        assert under(points, mask).all()
        assert (points % 1 == 0.5).all()
        assert len({tuple(p) for p in points.tolist()}) == len(points)


def test_clicks_reach_every_pixel_alike() -> None:
    mask = rectangle(2, 3, 6, 5)
    rng = np.random.default_rng(1)
    hits = np.zeros(mask.shape, int)
    for _ in range(4000):
        x, y = click_in(mask, 1, rng)[0].astype(int)
        hits[y, x] += 1
    assert hits.sum() == hits[mask].sum()
    assert abs(hits[mask] / 4000 - 1 / 8).max() < 0.02


def test_an_empty_region_gets_no_click() -> None:
    assert click_in(np.zeros((4, 4), bool), 2, np.random.default_rng(0)).shape == (0, 2)


# ---------------------------------------------------------------- boxes


@each_mask
def test_boxes_have_an_area_inside_the_image(mask: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        x0, y0, x1, y1 = jittered_box(mask, rng)
        assert 0 <= x0 <= x1 - 1 <= 63, "at least a pixel wide"
        assert 0 <= y0 <= y1 - 1 <= 63


def test_half_of_the_boxes_are_tight_and_the_others_move_by_a_tenth_of_the_side() -> None:
    mask = rectangle(150, 200, 210, 240, side=400)
    rng = np.random.default_rng(3)
    moves = np.array([jittered_box(mask, rng) for _ in range(3000)]) - (150, 200, 210, 240)
    tight = (moves == 0).all(axis=1)
    assert tight.mean() == pytest.approx(0.5, abs=0.03)
    assert moves[~tight].std(axis=0) == pytest.approx([6, 4, 6, 4], rel=0.08)
    assert moves[~tight].mean(axis=0) == pytest.approx([0, 0, 0, 0], abs=0.6)


def test_no_corner_moves_further_than_20_pixels() -> None:
    mask = rectangle(100, 100, 900, 700, side=1024)
    rng = np.random.default_rng(4)
    moves = np.array([jittered_box(mask, rng) for _ in range(500)]) - (100, 100, 900, 700)
    assert abs(moves).max() == 20


# ---------------------------------------------------------------- first prompts


@each_mask
def test_a_first_prompt_is_laid_out_in_its_slots(mask: np.ndarray) -> None:
    config = PromptConfig(box_probability=0.5, box_and_clicks_probability=0.5, negative_probability=0.5, max_clicks=3)
    rng = np.random.default_rng(5)
    assert prompt_length(config) == 7
    for _ in range(200):
        points, labels = first_prompt(mask, config, rng)
        assert points.shape == (7, 2)
        assert (points.dtype, labels.dtype) == (np.float32, np.int64)
        assert labels[:2].tolist() in ([PADDING, PADDING], [TOP_LEFT, BOTTOM_RIGHT])
        assert set(labels[2:5].tolist()) <= {POSITIVE, PADDING}
        assert set(labels[5:].tolist()) <= {NEGATIVE, PADDING}
        assert ((labels == TOP_LEFT) | (labels == POSITIVE)).any(), "negative clicks alone are no prompt"
        assert under(points[labels == POSITIVE], mask).all()
        assert not under(points[labels == NEGATIVE], mask).any()
        assert (points[labels == PADDING] == -1).all()


def test_negative_clicks_lie_near_the_object() -> None:
    mask = rectangle(100, 120, 140, 140, side=256)
    rng = np.random.default_rng(6)
    config = PromptConfig(negative_probability=1)
    clicks = [p[labels == NEGATIVE] for p, labels in (first_prompt(mask, config, rng) for _ in range(300))]
    assert {len(c) for c in clicks} == {1, 2}
    x, y = np.concatenate(clicks).T
    assert x.min() >= 100 - 28 and x.max() <= 140 + 28
    assert y.min() >= 120 - 18 and y.max() <= 140 + 18


def test_negative_clicks_of_a_box_lie_in_it() -> None:
    mask = rectangle(100, 120, 140, 140, side=256)
    mask[120:130, 100:120] = False
    config = PromptConfig(negative_probability=1, box_probability=1)
    rng = np.random.default_rng(6)
    clicks = np.concatenate(
        [p[labels == NEGATIVE] for p, labels in (first_prompt(mask, config, rng) for _ in range(99))]
    )
    assert (clicks >= [100, 120]).all() and (clicks <= [120, 130]).all()


def test_an_object_that_fills_the_image_gets_no_negative_click() -> None:
    _, labels = first_prompt(MASKS["whole"], PromptConfig(negative_probability=1), np.random.default_rng(7))
    assert NEGATIVE not in labels


def test_shares_are_those_configured() -> None:
    config = PromptConfig(box_probability=0.3, box_and_clicks_probability=0.2, negative_probability=0.4, max_clicks=4)
    rng = np.random.default_rng(8)
    labels = np.array([first_prompt(MASKS["rectangle"], config, rng)[1] for _ in range(4000)])
    boxed = labels[:, 0] == TOP_LEFT
    positives = (labels == POSITIVE).sum(axis=1)
    assert boxed.mean() == pytest.approx(0.3, abs=0.03)
    assert (positives[boxed] > 0).mean() == pytest.approx(0.2, abs=0.04)
    assert (labels == NEGATIVE).any(axis=1).mean() == pytest.approx(0.4, abs=0.03)
    # Half of the draws are one click, the other half even over 1 to 4.
    shares = np.bincount(positives[~boxed], minlength=5)[1:] / (~boxed).sum()
    assert shares == pytest.approx([0.625, 0.125, 0.125, 0.125], abs=0.03)


@pytest.mark.parametrize(("probability", "boxed"), [(0.0, False), (1.0, True)])
def test_prompts_are_only_boxes_or_only_clicks_where_that_is_configured(probability: float, boxed: bool) -> None:
    config = PromptConfig(box_probability=probability, box_and_clicks_probability=0, negative_probability=0)
    rng = np.random.default_rng(9)
    for _ in range(50):
        _, labels = first_prompt(MASKS["ring"], config, rng)
        assert (TOP_LEFT in labels) == boxed
        assert (POSITIVE in labels) == (not boxed)


def test_first_prompts_follow_the_seed() -> None:
    config = PromptConfig(negative_probability=0.5)

    def draw(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.concatenate([first_prompt(MASKS["ring"], config, rng)[0] for _ in range(10)])

    assert np.array_equal(draw(1), draw(1))
    assert not np.array_equal(draw(1), draw(2))


# ---------------------------------------------------------------- corrections


def generators(count: int, seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + number) for number in range(count)]


def corrected(logits: torch.Tensor, target: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stride-4 cells (B, P, 2) x, y that were clicked, and the labels (B, P)."""
    points, labels = correction_clicks(logits, target, generators(len(logits), seed))
    assert points.shape == (*logits.shape[:2], 1, 2)
    assert labels.shape == (*logits.shape[:2], 1)
    assert labels.dtype == torch.int64
    assert points.min() >= 0 and points.max() < 4 * logits.shape[-1]
    return (points / 4).floor().long().squeeze(2), labels.squeeze(2)


def test_corrections_lie_in_the_error_region_with_the_right_label() -> None:
    rng = torch.Generator().manual_seed(10)
    logits, target = torch.randn(4, 25, 16, 16, generator=rng), torch.rand(4, 25, 16, 16, generator=rng)
    cells, labels = corrected(logits, target)
    for b, p in np.ndindex(4, 25):
        x, y = cells[b, p]
        shown, truth = bool(logits[b, p, y, x] > 0), bool(target[b, p, y, x] > 0.5)
        assert shown != truth
        assert labels[b, p] == (POSITIVE if truth else NEGATIVE)
    assert set(labels.flatten().tolist()) == {POSITIVE, NEGATIVE}


def test_a_single_wrong_pixel_is_always_found_however_large_the_object() -> None:
    target = torch.ones(1, 1000, 64, 64)
    logits = torch.full_like(target, 3.0)
    target[:, :, 40, 7] = 0
    cells, labels = corrected(logits, target)
    assert (cells == torch.tensor([7, 40])).all()
    assert (labels == NEGATIVE).all()


def test_corrections_reach_the_whole_error_region() -> None:
    target = torch.zeros(1, 600, 8, 8)
    target[:, :, 2:4, 1:5] = 1
    cells, _ = corrected(torch.full_like(target, -1.0), target)
    found = np.unique(cells[0].numpy(), axis=0, return_counts=True)[1]
    assert len(found) == 8
    assert abs(found / 600 - 1 / 8).max() < 0.05


def test_a_mask_without_error_gets_a_click_on_its_object() -> None:
    target = torch.full((1, 300, 8, 8), 0.4)
    target[:, :, 5, 2:4] = 0.9
    cells, labels = corrected(target - 0.5, target)
    assert (labels == POSITIVE).all()
    assert {tuple(c) for c in cells[0].tolist()} == {(2, 5), (3, 5)}


def test_an_object_that_fills_no_pixel_by_half_is_clicked_where_it_is() -> None:
    target = torch.zeros(1, 200, 8, 8)
    target[:, :, 3, 4], target[:, :, 3, 5] = 0.3, 0.1
    cells, labels = corrected(torch.full_like(target, -2.0), target)
    assert (labels == POSITIVE).all()
    assert {tuple(c) for c in cells[0].tolist()} == {(4, 3), (5, 3)}
    assert (cells[0, :, 0] == 4).float().mean() > 0.6, "in proportion to the coverage"


def test_masks_are_corrected_each_by_its_own_errors() -> None:
    target = torch.zeros(1, 2, 8, 8)
    target[0, 0, 1, 1] = target[0, 1, 6, 6] = 1
    logits = torch.full_like(target, -1.0)
    logits[0, 1, 6, 6], logits[0, 1, 0, 7] = 1, 1
    cells, labels = corrected(logits, target)
    assert cells[0].tolist() == [[1, 1], [7, 0]]
    assert labels[0].tolist() == [POSITIVE, NEGATIVE]


def test_an_images_corrections_do_not_depend_on_the_others_of_its_batch() -> None:
    rng = torch.Generator().manual_seed(12)
    logits, target = torch.randn(3, 5, 16, 16, generator=rng), torch.rand(3, 5, 16, 16, generator=rng)
    whole = correction_clicks(logits, target, generators(3, 1))
    alone = correction_clicks(logits[1:2], target[1:2], generators(3, 1)[1:2])
    assert torch.equal(whole[0][1:2], alone[0])
    assert torch.equal(whole[1][1:2], alone[1])


def test_without_negative_clicks_only_what_was_missed_is_corrected() -> None:
    target = torch.zeros(1, 200, 8, 8)
    target[:, :, 2:4, 1:5] = 1
    logits = torch.full_like(target, 1.0)
    logits[:, :100, 2, 1] = -1  # missed in the first half; the second covers the object, and all else
    points, labels = correction_clicks(logits, target, generators(1, 0), negatives=False)
    cells = (points / 4).floor().long().squeeze(2)
    assert (labels == POSITIVE).all()
    assert (cells[0, :100] == torch.tensor([1, 2])).all()
    assert {tuple(c) for c in cells[0, 100:].tolist()} == {(x, y) for x in range(1, 5) for y in (2, 3)}


def test_corrections_follow_the_generator() -> None:
    rng = torch.Generator().manual_seed(11)
    logits, target = torch.randn(2, 5, 16, 16, generator=rng), torch.rand(2, 5, 16, 16, generator=rng)

    def draw(seed: int) -> torch.Tensor:
        return correction_clicks(logits, target, generators(2, seed))[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
