"""Losses against the texts they are from, written out pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from refinesam.training.finetune.losses import dice_loss, focal_loss, hard_iou, mask_loss

WEIGHTS = {
    "focal_weight": 20.0,
    "dice_weight": 1.0,
    "iou_weight": 0.7,
    "other_masks_weight": 0.3,
    "chosen_mask_weight": 0.2,
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_soft_focal(logits: np.ndarray, target: np.ndarray, gamma: float, alpha: float) -> float:
    """Quality focal loss (Li et al. 2020) with alpha: |t - p|^gamma times the cross-entropy of t and p."""
    losses = []
    for x, t in zip(logits.ravel(), target.ravel(), strict=True):
        p = sigmoid(x)
        cross_entropy = -(t * math.log(p) + (1 - t) * math.log(1 - p))
        losses.append((alpha * t + (1 - alpha) * (1 - t)) * abs(t - p) ** gamma * cross_entropy)
    return sum(losses) / len(losses)


def naive_hard_focal(logits: np.ndarray, target: np.ndarray, gamma: float, alpha: float) -> float:
    """Lin et al. 2017, equation 5: FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t)."""
    losses = []
    for x, t in zip(logits.ravel(), target.ravel(), strict=True):
        p_t = sigmoid(x) if t == 1 else 1 - sigmoid(x)
        alpha_t = alpha if t == 1 else 1 - alpha
        losses.append(-alpha_t * (1 - p_t) ** gamma * math.log(p_t))
    return sum(losses) / len(losses)


def naive_dice(logits: np.ndarray, target: np.ndarray) -> float:
    overlap = total = 0.0
    for x, t in zip(logits.ravel(), target.ravel(), strict=True):
        overlap += sigmoid(x) * t
        total += sigmoid(x) + t
    return 1 - (2 * overlap + 1) / (total + 1)


def naive_iou(logits: np.ndarray, target: np.ndarray) -> float:
    both = either = 0
    for x, t in zip(logits.ravel(), target.ravel(), strict=True):
        both += x > 0 and t > 0.5
        either += x > 0 or t > 0.5
    return both / either if either else 1.0


def random_pair(seed: int, *shape: int, hard: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    target = rng.random(shape)
    return torch.from_numpy(3 * rng.standard_normal(shape)), torch.from_numpy(np.rint(target) if hard else target)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.0, 0.5), (3.0, 0.9)])
@pytest.mark.parametrize("hard", [False, True])
def test_focal_loss_is_that_of_the_papers(hard: bool, gamma: float, alpha: float) -> None:
    logits, target = random_pair(1, 2, 3, 5, 4, hard=hard)
    found = focal_loss(logits, target, gamma, alpha)
    assert found.shape == (2, 3)
    for b, p in np.ndindex(2, 3):
        one = logits[b, p].numpy(), target[b, p].numpy(), gamma, alpha
        assert found[b, p].item() == pytest.approx(naive_soft_focal(*one), rel=1e-9)
        if hard:
            assert found[b, p].item() == pytest.approx(naive_hard_focal(*one), rel=1e-9)


def test_focal_loss_by_hand() -> None:
    # p = 0.5 on one pixel of the object: 0.25 * 0.5^2 * ln 2.
    assert focal_loss(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(0.0625 * math.log(2))


def test_focal_and_dice_stay_finite_for_logits_beyond_all_doubt() -> None:
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    (focal_loss(logits, target) + dice_loss(logits, target)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert focal_loss(logits, target).isfinite()


@pytest.mark.parametrize("hard", [False, True])
def test_dice_loss_is_one_minus_the_coefficient(hard: bool) -> None:
    logits, target = random_pair(2, 2, 3, 4, 6, hard=hard)
    found = dice_loss(logits, target)
    assert found.shape == (2, 3)
    for b, p in np.ndindex(2, 3):
        assert found[b, p].item() == pytest.approx(naive_dice(logits[b, p].numpy(), target[b, p].numpy()), rel=1e-9)


def test_dice_loss_at_its_ends() -> None:
    sure = torch.full((8, 8), 50.0)
    full, empty = torch.ones(8, 8), torch.zeros(8, 8)
    assert dice_loss(sure, full).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(-sure, empty).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(sure, empty).item() == pytest.approx(1 - 1 / 65)


def test_hard_iou_is_that_of_thresholded_masks() -> None:
    logits, target = random_pair(3, 2, 3, 5, 4)
    found = hard_iou(logits, target)
    assert found.shape == (2, 3)
    for b, p in np.ndindex(2, 3):
        assert found[b, p].item() == pytest.approx(naive_iou(logits[b, p].numpy(), target[b, p].numpy()), rel=1e-6)


@pytest.mark.parametrize(
    ("logit", "coverage", "iou"),
    [(-1, 0, 1), (0, 0.5, 0), (-1, 0.1, 0), (1, 0, 0), (-1, 1, 0), (1, 1, 1)],
    ids=["both empty", "half a pixel missed", "a sliver missed", "truth empty", "mask empty", "equal"],
)
def test_hard_iou_of_empty_and_full_masks(logit: float, coverage: float, iou: float) -> None:
    assert hard_iou(torch.full((4, 4), float(logit)), torch.full((4, 4), float(coverage))).item() == iou


def test_mask_loss_is_the_best_masks_with_a_share_of_all_and_the_iou_heads_error() -> None:
    logits, _ = random_pair(4, 2, 4, 3, 5, 6)
    _, target = random_pair(5, 2, 4, 5, 6)
    claimed = torch.from_numpy(np.random.default_rng(6).random((2, 4, 3)))
    found = mask_loss(logits, claimed, target, **WEIGHTS)

    best_losses, all_losses, chosen_losses, errors = [], [], [], []
    focal_of_best, dice_of_best, iou_of_best, iou_of_chosen, chosen = [], [], [], [], []
    for b, p in np.ndindex(2, 4):
        truth = target[b, p].numpy()
        focal = [naive_soft_focal(logits[b, p, c].numpy(), truth, 2.0, 0.25) for c in range(3)]
        dice = [naive_dice(logits[b, p, c].numpy(), truth) for c in range(3)]
        iou = [naive_iou(logits[b, p, c].numpy(), truth) for c in range(3)]
        losses = [20 * f + d for f, d in zip(focal, dice, strict=True)]
        best = losses.index(min(losses))
        claims = claimed[b, p].tolist()
        chosen.append(claims.index(max(claims)))
        best_losses.append(losses[best])
        chosen_losses.append(losses[chosen[-1]])
        all_losses += losses
        errors += [(c - i) ** 2 for c, i in zip(claims, iou, strict=True)]
        focal_of_best.append(focal[best])
        dice_of_best.append(dice[best])
        iou_of_best.append(iou[best])
        iou_of_chosen.append(iou[chosen[-1]])

    expected = np.mean(best_losses) + 0.3 * np.mean(all_losses) + 0.2 * np.mean(chosen_losses) + 0.7 * np.mean(errors)
    assert found.total.item() == pytest.approx(expected, rel=1e-6)
    assert found.focal.item() == pytest.approx(np.mean(focal_of_best), rel=1e-6)
    assert found.dice.item() == pytest.approx(np.mean(dice_of_best), rel=1e-6)
    assert found.iou_error.item() == pytest.approx(np.mean(errors), rel=1e-6)
    assert found.best_iou.item() == pytest.approx(np.mean(iou_of_best), rel=1e-6)
    assert found.chosen_iou.item() == pytest.approx(np.mean(iou_of_chosen), rel=1e-6)
    assert found.chosen.flatten().tolist() == chosen
    assert len(set(chosen)) > 1, "the test must be able to tell masks apart"


def test_the_merged_mask_has_a_loss_of_its_own_that_does_not_teach_the_scores() -> None:
    logits, _ = random_pair(4, 1, 2, 3, 5, 6)
    _, target = random_pair(5, 1, 2, 5, 6)
    claimed = torch.tensor([[[0.5, 0.52, 0.4], [0.7, 0.3, 0.69]]], dtype=torch.float64, requires_grad=True)
    without, found = (mask_loss(logits, claimed, target, iou_weight=0, merged_mask_weight=w) for w in (0.0, 0.6))
    losses = []
    for p in range(2):
        weights = np.exp(claimed[0, p].detach().numpy() / 0.05)
        merged = (weights[:, None, None] * logits[0, p].numpy()).sum(0) / weights.sum()
        truth = target[0, p].numpy()
        losses.append(20 * naive_soft_focal(merged, truth, 2.0, 0.25) + naive_dice(merged, truth))
    assert found.total.item() == pytest.approx(without.total.item() + 0.6 * np.mean(losses), rel=1e-5)
    assert found.best_iou == without.best_iou
    assert torch.equal(found.chosen, without.chosen)
    assert not torch.autograd.grad(found.total, claimed)[0].any()


def test_the_source_papers_loss_is_cross_entropy_and_dice_of_the_best_mask() -> None:
    logits, _ = random_pair(8, 1, 3, 3, 5, 6)
    _, target = random_pair(9, 1, 3, 5, 6)
    found = mask_loss(logits, torch.zeros(1, 3, 3), target, focal_weight=0, dice_weight=1, bce_weight=1, iou_weight=0)
    losses, best_bce = [], []
    for p in range(3):
        truth = target[0, p].numpy()
        probability = 1 / (1 + np.exp(-logits[0, p].numpy()))
        bce = -(truth * np.log(probability) + (1 - truth) * np.log(1 - probability)).mean((1, 2))
        both = [bce[c] + naive_dice(logits[0, p, c].numpy(), truth) for c in range(3)]
        losses.append(min(both))
        best_bce.append(bce[both.index(min(both))])
    assert found.total.item() == pytest.approx(np.mean(losses), rel=1e-6)
    assert found.bce.item() == pytest.approx(np.mean(best_bce), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_only_the_best_mask_learns_unless_others_have_a_share(share: float) -> None:
    target = torch.zeros(1, 1, 4, 4)
    target[..., :2] = 1
    logits = torch.stack([target * 2 - 1, 1 - target * 2, target * 0 + 1], dim=2).requires_grad_()
    mask_loss(logits, torch.zeros(1, 1, 3), target, iou_weight=0.0, other_masks_weight=share).total.backward()
    learns = [bool(logits.grad[0, 0, c].any()) for c in range(3)]
    assert learns == [True, share > 0, share > 0]


def test_the_iou_heads_error_teaches_the_head_and_not_the_masks() -> None:
    logits, target = random_pair(7, 1, 2, 3, 4, 4)
    logits, claimed = logits.requires_grad_(), torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    found = mask_loss(logits, claimed, target[:, :, 0], focal_weight=0, dice_weight=0, iou_weight=1)
    found.total.backward()
    assert not logits.grad.any()
    assert claimed.grad.any()
    assert not any(
        getattr(found, name).requires_grad for name in ("focal", "dice", "iou_error", "best_iou", "chosen_iou")
    )
