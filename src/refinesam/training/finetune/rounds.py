"""The rounds of one training step: first prompts, often second ones that follow from the answers, and their loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from refinesam.models.build import normalise
from refinesam.models.mask_decoder import merged_mask
from refinesam.models.prompt_encoder import PADDING
from refinesam.models.promptable import PromptableModel
from refinesam.training.finetune.config import FinetuneConfig, OptimConfig
from refinesam.training.finetune.data import Sample
from refinesam.training.finetune.losses import MaskLoss, mask_loss
from refinesam.training.finetune.prompts import correction_clicks, self_made_prompts

__all__ = ["REPORTED", "Draws", "Rounds", "round_losses"]

# What a step tells of its first round, in this order.
REPORTED = ("total", "focal", "dice", "bce", "iou_error", "best_iou", "chosen_iou")


@dataclass(frozen=True)
class Draws:
    """What is random in the rounds of some images of a step.

    Attributes:
        kind, variation: in [0, 1), the same for the whole batch: which second round there is, and whether it has the
            earlier logits alone.
        generators: one for each image.
    """

    kind: float
    variation: float
    generators: Sequence[torch.Generator]

    @classmethod
    def of(cls, seed: int, step: int, batch_size: int, places: range, device: str | torch.device = "cpu") -> Draws:
        """Draw for the images at some places of a step's whole batch.

        All follows from seed, step and place: resumption, another number of processes or of accumulated parts changes
        nothing. Another kind of device draws other numbers.
        """
        kind, variation = torch.rand(2, generator=torch.Generator().manual_seed(seed * 1_000_003 + step)).tolist()
        seeds = (
            np.random.SeedSequence((seed, step * batch_size + place)).generate_state(1, np.uint64)[0]
            for place in places
        )
        return cls(kind, variation, [torch.Generator(device).manual_seed(int(number) >> 1) for number in seeds])


class Rounds(nn.Module):
    """A model and its training step as one forward pass, which is what gradients can be exchanged around."""

    def __init__(self, model: PromptableModel, config: FinetuneConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Sample, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the scalar of all rounds to differentiate, and `REPORTED` of the first round without gradient."""
        first, total = round_losses(self.model, batch, self.config, draws)
        return total, torch.stack([getattr(first, name).float() for name in REPORTED]).detach()


def round_losses(
    model: PromptableModel, batch: Sample, config: FinetuneConfig, draws: Draws
) -> tuple[MaskLoss, Tensor]:
    """Ask a model a batch's first prompts, and by chance what follows from its answers.

    A second round is what a user does about the mask that the IoU head chooses (a click where it is wrong), or what
    refinement makes of it, which doesn't know the object: there the masks' loss counts less, and the IoU head learns
    what its own prompts are worth. A model without mask prompts gets the points alone.

    Args:
        model: in training mode.
        batch: B images with P prompts each, on the model's device.
        config: what the rounds are and how they weigh.
        draws: of these B images.

    Returns:
        The first round's loss, and the scalar of all rounds to differentiate.
    """
    prompts, optim, can = config.prompts, config.optim, model.config.capabilities
    target, points, labels = batch["target"], batch["points"], batch["labels"]
    pixels = normalise(batch["image"])
    with torch.autocast(pixels.device.type, enabled=False) if config.precision == "bf16_decoder" else nullcontext():
        features = model.encode(pixels)
    logits, iou = model.decode(features, points, labels)
    first = _loss(logits, iou, target, optim)
    if draws.kind >= prompts.correction_probability + prompts.self_probability:
        return first, first.total
    shown = _shown(logits.detach().float(), iou.detach(), first, optim)
    mask_weight, fed_back = 1.0, can.mask_prompt
    if draws.kind < prompts.correction_probability:
        clicks, click_labels = correction_clicks(shown, target, draws.generators, can.negative_points)
        points, labels = torch.cat([points, clicks], dim=2), torch.cat([labels, click_labels], dim=2)
        if draws.variation < prompts.logits_only_probability:
            labels = torch.full_like(labels, PADDING)
        fed_back = can.mask_prompt and draws.variation <= 1 - prompts.points_only_probability
    else:
        mask_weight = optim.self_mask_weight
        points, labels, shown = self_made_prompts(
            shown, points, labels, prompts.self_logits_probability, draws.generators
        )
    logits, iou = model.decode(features, points, labels, shown if fed_back else None)
    return first, first.total + _loss(logits, iou, target, optim, mask_weight).total


def _shown(logits: Tensor, iou: Tensor, loss: MaskLoss, optim: OptimConfig) -> Tensor:
    """Return the mask that a user sees, (B, P, h, w) logits: the merged one of a model that learns to merge."""
    if optim.merged_mask_weight:
        return merged_mask(logits, iou)
    return logits.take_along_dim(loss.chosen[..., None, None, None], dim=2).squeeze(2)


def _loss(logits: Tensor, iou: Tensor, target: Tensor, optim: OptimConfig, mask_weight: float = 1.0) -> MaskLoss:
    return mask_loss(
        logits.float(),
        iou.float(),
        target,
        focal_weight=mask_weight * optim.focal_weight,
        dice_weight=mask_weight * optim.dice_weight,
        bce_weight=mask_weight * optim.bce_weight,
        iou_weight=optim.iou_weight,
        other_masks_weight=optim.other_masks_weight,
        chosen_mask_weight=optim.chosen_mask_weight,
        merged_mask_weight=optim.merged_mask_weight,
    )
