"""Simulated prompts: boxes with jitter, clicks on and off the object, corrections, and what refinement makes of a mask.

Follows SAM's training (Kirillov et al. 2023, appendix A): box or clicks first, box corners jittered by 10 % of the side
and at most 20 px, then clicks drawn from the error region with the previous logits fed back. Users know the object;
Adaptive Mask Refinement and self-prompting only know the model's first mask, be it right or wrong. A model that never
saw their prompts takes every further point for right and overrates its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from refinesam.amr.points import boundary_points, centre_points
from refinesam.models.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, PADDING, POSITIVE, TOP_LEFT
from refinesam.training.finetune.config import PromptConfig

__all__ = [
    "SELF_MADE",
    "SelfMade",
    "click_in",
    "correction_clicks",
    "first_prompt",
    "jittered_box",
    "prompt_length",
    "self_made_prompt",
    "self_made_prompts",
]

MAX_NEGATIVES = 2
SelfMade = Literal["own_box", "own_box_and_clicks", "centre", "boundary", "centre_alone", "boundary_alone", "unchanged"]
SELF_MADE: Final[tuple[SelfMade, ...]] = get_args(SelfMade)
# Where the released EfficientSAM was trained to find its padding; the other models do not look.
PADDING_XY = -1.0
# Slots that a self-made prompt adds: for a box's corners, or for as many points as refinement places.
ADDED = 2


def prompt_length(config: PromptConfig) -> int:
    """Slots that a first prompt needs: two for a box, the clicks, the negative clicks if there are any."""
    return 2 + config.max_clicks + (MAX_NEGATIVES if config.negative_probability else 0)


def click_in(region: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw clicks uniformly from a region's pixels, at pixel centres: (count, 2) x, y; fewer if it has fewer pixels."""
    indices = np.flatnonzero(region)
    chosen = rng.choice(indices, size=min(count, len(indices)), replace=False)
    y, x = np.divmod(chosen, region.shape[1])
    return np.stack([x, y], axis=1).astype(np.float32) + 0.5


def jittered_box(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Tight box (4,) of a mask that is not empty, each corner moved by noise of 10 % of the side, at most 20 px.

    Half of the boxes stay exact: people who draw boxes with care, and detectors, are users too.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = np.array([x, y, x + width, y + height], np.float32)
    if rng.random() < 0.5:
        return box
    side = np.array([width, height, width, height], np.float32)
    noise = np.clip(rng.normal(size=4) * 0.1 * side, -20, 20)
    size = np.array([mask.shape[1], mask.shape[0]] * 2, np.float32)
    moved = np.clip(box + noise, 0, size).astype(np.float32)
    return moved if (moved[2:] - moved[:2] > 1).all() else box


def _surroundings(mask: NDArray[np.bool_], boxed: bool) -> NDArray[np.bool_]:
    """Pixels off the object but near it, where a negative click tells something: of a box, those in it."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    dx, dy = (0, 0) if boxed and not mask[y : y + height, x : x + width].all() else (width // 2 + 8, height // 2 + 8)
    near = np.zeros_like(mask)
    near[max(0, y - dy) : y + height + dy, max(0, x - dx) : x + width + dx] = True
    return near & ~mask


def first_prompt(
    mask: NDArray[np.bool_], config: PromptConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Simulate a first prompt for one object.

    Args:
        mask: (S, S), not empty.
        config: shares of boxes and clicks.
        rng: source of randomness.

    Returns:
        points (T, 2) and labels (T,), T = `prompt_length(config)`, padded with label -1 at (-1, -1).
    """
    points = np.full((prompt_length(config), 2), PADDING_XY, np.float32)
    labels = np.full(len(points), PADDING, np.int64)
    boxed = rng.random() < config.box_probability
    if boxed:
        points[:2] = jittered_box(mask, rng).reshape(2, 2)
        labels[:2] = TOP_LEFT, BOTTOM_RIGHT
    if not boxed or rng.random() < config.box_and_clicks_probability:
        # One click is the commonest and the hardest prompt: half of the draws are that, the others even.
        count = 1 if rng.random() < 0.5 else int(rng.integers(1, config.max_clicks + 1))
        clicks = click_in(mask, count, rng)
        points[2 : 2 + len(clicks)] = clicks
        labels[2 : 2 + len(clicks)] = POSITIVE
    if rng.random() < config.negative_probability:
        clicks = click_in(_surroundings(mask, boxed), int(rng.integers(1, MAX_NEGATIVES + 1)), rng)
        start = 2 + config.max_clicks
        points[start : start + len(clicks)] = clicks
        labels[start : start + len(clicks)] = NEGATIVE
    return points, labels


def correction_clicks(
    logits: Tensor, target: Tensor, generators: Sequence[torch.Generator], negatives: bool = True
) -> tuple[Tensor, Tensor]:
    """Draw one click per mask from the pixels where it is wrong.

    Args:
        logits: (B, P, h, w) of the mask shown to the user.
        target: (B, P, h, w) coverage in [0, 1], not all zero.
        generators: source of randomness of each image, on the device of the logits.
        negatives: whether the model takes clicks off the object; without, only what the mask misses is wrong.

    Returns:
        points (B, P, 1, 2) in pixels of the model's input (stride 4), labels (B, P, 1): 1 where the object was missed,
        0 where the mask covers too much. A mask without any error gets a click on its object.
    """
    coverage = target.flatten(2)
    truth = coverage > 0.5
    covered = (logits > 0).flatten(2)
    wrong = covered != truth if negatives else truth & ~covered
    correct = ~wrong.any(-1, keepdim=True)
    # Without an error the object itself is clicked, or what there is of one that fills no pixel by half.
    on_object = torch.where(truth.any(-1, keepdim=True), truth.float(), coverage)
    weights = torch.where(correct, on_object, wrong.float())
    drawn = [
        (torch.multinomial(row, 1, generator=g), torch.rand(len(row), 1, 2, generator=g, device=row.device))
        for row, g in zip(weights, generators, strict=True)
    ]
    index, jitter = (torch.stack(part) for part in zip(*drawn, strict=True))
    width = logits.shape[-1]
    xy = torch.stack([index % width, index // width], dim=-1).float()
    labels = torch.where(truth.gather(2, index) | correct, POSITIVE, NEGATIVE)
    return (xy + jitter) * 4, labels


def self_made_prompt(
    mask: NDArray[np.bool_], points: NDArray[np.float32], labels: NDArray[np.int64], kind: SelfMade
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Make the prompt that follows from a first mask: its box, or points as `refinesam.amr` places them.

    Args:
        mask: (S, S), the first mask.
        points: (T, 2), what the user gave, in pixels of the mask.
        labels: (T,).
        kind: "own_box" is the mask's box alone, "own_box_and_clicks" has the user's clicks with it. "centre" and
            "boundary" append positive points to the user's prompt, with "_alone" they replace it. "unchanged" is the
            user's prompt once more, to be asked with the first mask's logits.

    Returns:
        points (T + 2, 2) and labels (T + 2,), padded with label -1 at (-1, -1). Where nothing follows from the mask,
        which is empty or leaves no room around it, the prompt is unchanged.
    """
    length = len(points)
    points = np.concatenate([points, np.full((ADDED, 2), PADDING_XY, np.float32)])
    labels = np.concatenate([labels, np.full(ADDED, PADDING)])
    if kind == "unchanged" or not mask.any():
        return points, labels
    if kind in ("own_box", "own_box_and_clicks"):
        replaced = (labels >= TOP_LEFT) | (kind == "own_box")
        labels[replaced], points[replaced] = PADDING, PADDING_XY
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        points[length:] = [[x, y], [x + width, y + height]]
        labels[length:] = TOP_LEFT, BOTTOM_RIGHT
        return points, labels
    place = centre_points if kind in ("centre", "centre_alone") else boundary_points
    placed = place(mask, ADDED)
    if len(placed):
        if kind in ("centre_alone", "boundary_alone"):
            labels[:], points[:] = PADDING, PADDING_XY
        points[length : length + len(placed)] = placed
        labels[length : length + len(placed)] = POSITIVE
    return points, labels


def self_made_prompts(
    logits: Tensor,
    points: Tensor,
    labels: Tensor,
    logits_probability: float,
    generators: Sequence[torch.Generator],
) -> tuple[Tensor, Tensor, Tensor]:
    """Make a prompt of a random kind from each first mask, see `self_made_prompt`.

    Args:
        logits: (B, P, h, w) of the first masks, at stride 4.
        points: (B, P, T, 2), the prompts that they answer.
        labels: (B, P, T).
        logits_probability: share of prompts that come with the first mask's logits; unchanged ones always do.
        generators: source of randomness of each image, on the device of the logits.

    Returns:
        points (B, P, T + 2, 2), labels (B, P, T + 2), and logits (B, P, h, w) to feed back, zero where there are none.
    """
    count = logits.shape[1]
    device = logits.device
    drawn = [
        (
            torch.randint(len(SELF_MADE), (count,), generator=g, device=device),
            torch.rand(count, generator=g, device=device),
        )
        for g in generators
    ]
    kinds, chances = (torch.stack(part) for part in zip(*drawn, strict=True))
    fed = chances < logits_probability
    fed |= kinds == SELF_MADE.index("unchanged")
    # At the input's resolution: a point just off the mask is then not 4 pixels away from it.
    masks = (F.interpolate(logits, scale_factor=4, mode="bilinear") > 0).flatten(0, 1).cpu().numpy()
    given = zip(masks, points.flatten(0, 1).cpu().numpy(), labels.flatten(0, 1).cpu().numpy(), strict=True)
    made = [
        self_made_prompt(*parts, SELF_MADE[kind]) for parts, kind in zip(given, kinds.flatten().tolist(), strict=True)
    ]
    new_points, new_labels = (torch.from_numpy(np.stack(part)).to(logits.device) for part in zip(*made, strict=True))
    shape = logits.shape[:2]
    feedback = logits * fed[..., None, None]
    return new_points.unflatten(0, shape), new_labels.unflatten(0, shape), feedback
