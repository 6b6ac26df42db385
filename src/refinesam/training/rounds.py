"""The rounds of one training step: first prompts, often second ones that follow from the answers, and their loss."""

from __future__ import annotations

import torch
from torch import Tensor

from refinesam.models.build import normalise
from refinesam.models.prompt_encoder import PADDING
from refinesam.models.promptable import PromptableModel
from refinesam.training.config import FinetuneConfig, OptimConfig
from refinesam.training.data import Sample
from refinesam.training.losses import MaskLoss, mask_loss
from refinesam.training.prompts import correction_clicks, self_made_prompts

__all__ = ["round_losses"]


def round_losses(
    model: PromptableModel, batch: Sample, config: FinetuneConfig, generator: torch.Generator, device: torch.device
) -> tuple[MaskLoss, Tensor]:
    """Ask a model a batch's first prompts, and by chance what follows from its answers.

    A second round is what a user does about the mask that the IoU head chooses (a click where it is wrong), or what
    refinement makes of it, which doesn't know the object: there the masks' loss counts less, and the IoU head learns
    what its own prompts are worth.

    Args:
        model: in training mode, on the device.
        batch: B images with P prompts each.
        config: what the rounds are and how they weigh.
        generator: source of randomness, on the CPU.
        device: where to compute.

    Returns:
        The first round's loss, and the scalar of all rounds to differentiate.
    """
    prompts, optim = config.prompts, config.optim
    target, points, labels = (batch[k].to(device) for k in ("target", "points", "labels"))
    features = model.encode(normalise(batch["image"].to(device)))
    logits, iou = model.decode(features, points, labels)
    first = _loss(logits, iou, target, optim)
    chance = torch.rand(2, generator=generator).tolist()
    if chance[0] >= prompts.correction_probability + prompts.self_probability:
        return first, first.total
    shown = logits.detach().float().take_along_dim(first.chosen[..., None, None, None], dim=2).squeeze(2)
    mask_weight = 1.0
    if chance[0] < prompts.correction_probability:
        clicks, click_labels = correction_clicks(shown, target, generator)
        points, labels = torch.cat([points, clicks], dim=2), torch.cat([labels, click_labels], dim=2)
        if chance[1] < prompts.logits_only_probability:
            labels = torch.full_like(labels, PADDING)
    else:
        mask_weight = optim.self_mask_weight
        points, labels, shown = self_made_prompts(shown, points, labels, prompts.self_logits_probability, generator)
    logits, iou = model.decode(features, points, labels, shown)
    return first, first.total + _loss(logits, iou, target, optim, mask_weight).total


def _loss(logits: Tensor, iou: Tensor, target: Tensor, optim: OptimConfig, mask_weight: float = 1.0) -> MaskLoss:
    return mask_loss(
        logits.float(),
        iou.float(),
        target,
        focal_weight=mask_weight * optim.focal_weight,
        dice_weight=mask_weight * optim.dice_weight,
        iou_weight=optim.iou_weight,
        other_masks_weight=optim.other_masks_weight,
        chosen_mask_weight=optim.chosen_mask_weight,
    )
