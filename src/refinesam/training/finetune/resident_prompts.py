"""First prompts for many objects at once, as tensor operations: what `prompts.py` draws one by one."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from refinesam.models.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, PADDING, POSITIVE, TOP_LEFT
from refinesam.training.finetune.config import PromptConfig
from refinesam.training.finetune.prompts import MAX_NEGATIVES, PADDING_XY, prompt_length

__all__ = ["first_prompts"]


def first_prompts(masks: Tensor, config: PromptConfig, generator: Generator) -> tuple[Tensor, Tensor]:
    """Simulate a first prompt for each object, as `refinesam.training.finetune.prompts.first_prompt`.

    Args:
        masks: (N, S, S) bool. One that is empty gets no prompt.
        config: shares of boxes and clicks.
        generator: source of randomness, on the masks' device.

    Returns:
        points (N, T, 2) and labels (N, T), T = `prompt_length(config)`.
    """
    count, side, device = len(masks), masks.shape[-1], masks.device

    def chance(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator, device=device)

    points = torch.full((count, prompt_length(config), 2), PADDING_XY, device=device)
    labels = torch.full(points.shape[:2], PADDING, device=device)
    there = masks.flatten(1).any(1)
    tight = _boxes(masks)
    boxed = (chance() < config.box_probability) & there
    jittered = _jittered(tight, side, torch.randn(count, 4, generator=generator, device=device), chance())
    points[:, :2] = torch.where(boxed[:, None, None], jittered.unflatten(1, (2, 2)), points[:, :2])
    labels[:, :2] = torch.where(boxed[:, None], torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=device), PADDING)
    # One click is the commonest and the hardest prompt: half of the draws are that, the others even.
    clicks = torch.where(chance() < 0.5, 1, 1 + (chance() * config.max_clicks).long())
    clicked = there & (~boxed | (chance() < config.box_and_clicks_probability))
    _click(points, labels, slice(2, 2 + config.max_clicks), masks, clicks * clicked, POSITIVE, generator)
    if config.negative_probability:
        negatives = 1 + (chance() * MAX_NEGATIVES).long()
        wanted = there & (chance() < config.negative_probability)
        slots = slice(2 + config.max_clicks, 2 + config.max_clicks + MAX_NEGATIVES)
        _click(points, labels, slots, _surroundings(masks, tight, boxed), negatives * wanted, NEGATIVE, generator)
    return points, labels


def _boxes(masks: Tensor) -> Tensor:
    """Tight boxes XYXY (N, 4) of masks (N, S, S); of empty ones anything."""
    sides = []
    for dim in (1, 2):
        filled = masks.any(dim=dim).float()
        sides.append((filled.argmax(dim=1), filled.shape[1] - filled.flip(1).argmax(dim=1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def _jittered(boxes: Tensor, side: int, normal: Tensor, chance: Tensor) -> Tensor:
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    moved = (boxes + (0.1 * size * normal).clamp(-20, 20)).clamp(0, side)
    kept = (chance < 0.5) | ((moved[:, 2:] - moved[:, :2]) <= 1).any(dim=1)
    return torch.where(kept[:, None], boxes, moved)


def _surroundings(masks: Tensor, boxes: Tensor, boxed: Tensor) -> Tensor:
    """Pixels off the objects but near them; of a box those in it, unless its object fills it: (N, S, S)."""
    axis = torch.arange(masks.shape[-1], device=masks.device)

    def within(margin: Tensor) -> Tensor:
        low, high = boxes[:, :2] - margin, boxes[:, 2:] + margin
        in_x, in_y = ((axis >= low[:, i : i + 1]) & (axis < high[:, i : i + 1]) for i in (0, 1))
        return in_y.unsqueeze(2) & in_x.unsqueeze(1) & ~masks

    inside = within(torch.zeros_like(boxes[:, :2]))
    near = within((boxes[:, 2:] - boxes[:, :2]) // 2 + 8)
    return torch.where((boxed & inside.flatten(1).any(1))[:, None, None], inside, near)


def _click(
    points: Tensor, labels: Tensor, slots: slice, regions: Tensor, counts: Tensor, label: int, generator: Generator
) -> None:
    """Draw `counts` (N,) clicks from each of the regions (N, S, S) into the slots of points and labels."""
    weights = regions.flatten(1).float()
    counts = counts * (weights > 0).any(dim=1)
    # A row that gets no click still has to be drawn from.
    weights[:, 0] += counts == 0
    drawn = torch.multinomial(weights, slots.stop - slots.start, replacement=True, generator=generator)
    xy = torch.stack([drawn % regions.shape[-1], drawn // regions.shape[-1]], dim=-1) + 0.5
    used = torch.arange(drawn.shape[1], device=drawn.device) < counts[:, None]
    points[:, slots] = torch.where(used.unsqueeze(-1), xy, points[:, slots])
    labels[:, slots] = torch.where(used, label, labels[:, slots])
