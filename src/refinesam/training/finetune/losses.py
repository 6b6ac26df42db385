"""The losses of both published finetunings, on the best of the masks, and squared error on the IoU prediction.

SAM (Kirillov et al. 2023) weighs focal and dice loss 20 : 1; the source paper adds binary cross-entropy and dice.

Targets are soft: the share of a stride-4 pixel that the object covers, so that a boundary inside a pixel is learnt too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from refinesam.models.mask_decoder import merged_mask

__all__ = ["MaskLoss", "dice_loss", "focal_loss", "hard_iou", "mask_loss"]


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss (Lin et al. 2017) for soft targets, mean over pixels.

    |t - p|^gamma weighs the cross-entropy (Li et al. 2020, quality focal loss); for hard targets this is the usual
    (1 - p_t)^gamma. alpha weighs the object, 1 - alpha the background.

    Args:
        logits: (..., h, w).
        target: (..., h, w) in [0, 1].
        gamma: focusing exponent.
        alpha: weight of the object's pixels.

    Returns:
        (...) one loss per mask.
    """
    return _focal(_cross_entropy(logits, target), logits, target, gamma, alpha)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of every pixel, (..., h, w)."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _focal(cross_entropy: Tensor, logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    weight = (target - logits.sigmoid()).abs() ** gamma * (alpha * target + (1 - alpha) * (1 - target))
    return (weight * cross_entropy).mean(dim=(-2, -1))


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - dice coefficient of (..., h, w) probabilities and soft targets, smoothed by one pixel: (...)."""
    p = logits.sigmoid()
    overlap = 2 * (p * target).sum(dim=(-2, -1))
    total = p.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1))
    return 1 - (overlap + 1) / (total + 1)


def hard_iou(logits: Tensor, target: Tensor) -> Tensor:
    """IoU of thresholded masks (..., h, w) with thresholded targets: (...).

    If both are empty it is 1 where there is no object at all, and 0 where there is one that fills no pixel by half.
    """
    mask, truth = logits > 0, target > 0.5
    union = (mask | truth).sum(dim=(-2, -1))
    overlap = (mask & truth).sum(dim=(-2, -1))
    nothing = (target <= 0).flatten(-2).all(-1)
    return torch.where(union > 0, overlap / union.clamp(min=1), nothing.to(logits.dtype))


@dataclass(frozen=True)
class MaskLoss:
    """A batch's loss and what it is made of.

    Attributes:
        total: scalar to differentiate.
        focal, dice, bce, iou_error: scalars without gradient, of the best masks.
        best_iou: scalar, mean true IoU of the best of the masks.
        chosen_iou: scalar, mean true IoU of the mask that the IoU head would choose.
        chosen: (B, P) index of that mask.
    """

    total: Tensor
    focal: Tensor
    dice: Tensor
    bce: Tensor
    iou_error: Tensor
    best_iou: Tensor
    chosen_iou: Tensor
    chosen: Tensor


def mask_loss(
    logits: Tensor,
    iou_predictions: Tensor,
    target: Tensor,
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    bce_weight: float = 0.0,
    iou_weight: float = 1.0,
    other_masks_weight: float = 0.0,
    chosen_mask_weight: float = 0.0,
    merged_mask_weight: float = 0.0,
) -> MaskLoss:
    """Loss of the mask that is best by it, plus the IoU head's error.

    The defaults are SAM's (Kirillov et al. 2023, appendix A), 20 focal + dice; focal 0, dice 1, bce 1 and iou 0 are
    the source paper's (section on finetuning).

    Args:
        logits: (B, P, C, h, w).
        iou_predictions: (B, P, C).
        target: (B, P, h, w) in [0, 1].
        focal_weight: weight of the focal loss.
        dice_weight: weight of the dice loss.
        bce_weight: weight of the binary cross-entropy.
        iou_weight: weight of the IoU head's squared error, over all masks.
        other_masks_weight: share of the mean loss over all masks; keeps those rarely best from going astray.
        chosen_mask_weight: share of the loss of the mask that the IoU head would choose, the one that users see: of
            what an ambiguous prompt may mean, it should be the likeliest.
        merged_mask_weight: share of the loss of the merged mask, the hybrid model's answer; not for the scores.
    """
    truth, weights = target.unsqueeze(2).expand_as(logits), (focal_weight, dice_weight, bce_weight)
    per_mask, focal, dice, bce = _of_each(logits, truth, weights)
    best = per_mask.argmin(dim=-1, keepdim=True)
    with torch.no_grad():
        true_iou = hard_iou(logits, truth)
        chosen = iou_predictions.argmax(dim=-1, keepdim=True)
    iou_error = ((iou_predictions - true_iou) ** 2).mean()
    total = (
        per_mask.gather(-1, best).mean()
        + other_masks_weight * per_mask.mean()
        + chosen_mask_weight * per_mask.gather(-1, chosen).mean()
        + iou_weight * iou_error
    )
    if merged_mask_weight:
        merged = merged_mask(logits, iou_predictions.detach())
        total = total + merged_mask_weight * _of_each(merged, target, weights)[0].mean()
    focal, dice, bce = (part.gather(-1, best).mean().detach() for part in (focal, dice, bce))
    best_iou, chosen_iou = (true_iou.gather(-1, index).mean() for index in (best, chosen))
    return MaskLoss(total, focal, dice, bce, iou_error.detach(), best_iou, chosen_iou, chosen.squeeze(-1))


def _of_each(
    logits: Tensor, truth: Tensor, weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted loss of every mask (..., h, w), and the focal, dice and cross-entropy losses that it is made of."""
    # Once for both losses that are made of it: it is over every pixel of every mask.
    cross_entropy = _cross_entropy(logits, truth)
    focal, dice, bce = _focal(cross_entropy, logits, truth), dice_loss(logits, truth), cross_entropy.mean(dim=(-2, -1))
    return weights[0] * focal + weights[1] * dice + weights[2] * bce, focal, dice, bce
