"""How far predicted IoUs can be trusted: of users' prompts, and of those that refinement makes from the first mask.

Whoever keeps the better of two masks by their scores needs scores that mean the same whatever the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from refinesam.evaluation.calibration import calibration
from refinesam.models.build import normalise
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.promptable import PromptableModel
from refinesam.training.finetune.losses import hard_iou
from refinesam.training.finetune.prompts import SelfMade, self_made_prompt
from refinesam.training.finetune.validate import PROTOCOLS, WholeImages

__all__ = ["SECOND_PROMPTS", "Scores", "scores_by_prompt"]

FIRST: Final = "first"
SECOND_PROMPTS: Final[tuple[SelfMade, ...]] = ("own_box", "own_box_and_clicks", "centre", "boundary")


@dataclass(frozen=True, eq=False)
class Scores:
    """Of the chosen masks of N objects: predicted IoUs (N,), and true ones (N,) at stride 4; N at least 1."""

    predicted: NDArray[np.float64]
    true: NDArray[np.float64]

    @property
    def bias(self) -> float:
        """Mean of predicted minus true IoU: above 0 where masks are overrated."""
        return float((self.predicted - self.true).mean())

    @property
    def error(self) -> float:
        """The expected calibration error, see `refinesam.evaluation.calibration`."""
        error = calibration(self.predicted.tolist(), self.true.tolist()).error
        assert error is not None, "there is an object"
        return error


@torch.no_grad()
def scores_by_prompt(
    model: PromptableModel, samples: WholeImages, device: torch.device
) -> dict[str, dict[str, Scores]]:
    """Ask a model in evaluation mode every protocol of the validation, then what refinement makes of each answer.

    Returns:
        By protocol of `refinesam.training.finetune.validate`, then by prompt: "first", and each of `SECOND_PROMPTS`.
        The scores of one protocol have their objects in the same order. Empty, if there is no object.
    """
    gathered: dict[str, dict[str, list[tuple[Tensor, Tensor]]]] = {name: {} for name in PROTOCOLS}
    for index in range(len(samples)):
        sample = samples[index]
        if not len(sample["target"]):
            continue
        features = model.encode(normalise(sample["image"].to(device)))
        target = sample["target"].to(device)
        for name, slots in PROTOCOLS.items():
            points, labels = sample["points"][:, slots], sample["labels"][:, slots]
            of_protocol = gathered[name]
            shown, predicted = _answer(model, features, points, labels)
            of_protocol.setdefault(FIRST, []).append((predicted, hard_iou(shown, target)))
            masks = (F.interpolate(shown[None], scale_factor=4, mode="bilinear")[0] > 0).cpu().numpy()
            for kind in SECOND_PROMPTS:
                prompts = zip(masks, points.numpy(), labels.numpy(), strict=True)
                made = [self_made_prompt(*parts, kind) for parts in prompts]
                second = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
                again, predicted = _answer(model, features, *second)
                of_protocol.setdefault(kind, []).append((predicted, hard_iou(again, target)))
    return {name: {kind: _scores(parts) for kind, parts in kinds.items()} for name, kinds in gathered.items() if kinds}


def _answer(model: PromptableModel, features: ImageFeatures, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chosen masks' logits (P, h, w) and predicted IoUs (P,) for prompts (P, T, 2) with labels (P, T)."""
    device = features.embedding.device
    logits, iou = model.decode(features, points[None].to(device), labels[None].to(device))
    best = iou.argmax(-1, keepdim=True)
    chosen = logits.take_along_dim(best[..., None, None], dim=2)
    return chosen[0, :, 0].float(), iou.take_along_dim(best, dim=-1)[0, :, 0]


def _scores(parts: list[tuple[Tensor, Tensor]]) -> Scores:
    predicted, true = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    return Scores(predicted, true)
