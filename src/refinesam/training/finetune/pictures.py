"""Pictures of what a model in training does with validation images, to be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from refinesam.images import write_png
from refinesam.models.build import normalise
from refinesam.models.prompt_encoder import BOTTOM_RIGHT, POSITIVE, TOP_LEFT
from refinesam.models.promptable import PromptableModel
from refinesam.overlay import draw_mask, draw_prompt
from refinesam.training.finetune.validate import PROTOCOLS, WholeImages
from refinesam.types import Prompt

__all__ = ["draw_predictions"]

TRUTH_COLOR = (0, 190, 170)
# Pictures are a look, not a record: larger inputs are not drawn larger.
SIDE = 320


@torch.no_grad()
def draw_predictions(
    model: PromptableModel, samples: WholeImages, count: int, device: torch.device, path: Path
) -> None:
    """Draw one object of some images a row: the annotated mask, then the chosen one for each protocol of validation.

    Args:
        model: in evaluation mode.
        samples: validation images; those drawn are spread evenly over them, so that every source has its turn.
        count: rows; fewer if there are fewer images with objects.
        device: where to compute.
        path: of the PNG, replaced atomically; its folder is made.
    """
    rows: list[NDArray[np.uint8]] = []
    usable = (sample for index in _spread(len(samples)) if len((sample := samples[index])["target"]))
    for _, sample in zip(range(count), usable, strict=False):
        pixels = _resized(sample["image"][0].float()).byte().permute(1, 2, 0).numpy()
        panels = [draw_mask(pixels, _resized(sample["target"][:1])[0].numpy() > 0.5, TRUTH_COLOR)]
        features = model.encode(normalise(sample["image"].to(device)))
        scale = pixels.shape[0] / sample["image"].shape[-1]
        for slots in PROTOCOLS.values():
            points, labels = sample["points"][None, :1, slots], sample["labels"][None, :1, slots]
            logits, iou = model.decode(features, points.to(device), labels.to(device))
            chosen = logits[0, 0, int(iou[0, 0].argmax())].float().cpu()
            panel = draw_mask(pixels, _resized(chosen[None])[0].numpy() > 0)
            panels.append(draw_prompt(panel, _prompt(points[0, 0], labels[0, 0]), scale=scale))
        rows.append(np.concatenate(panels, axis=1))
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, np.concatenate(rows))


def _spread(count: int) -> list[int]:
    """Give 0 to count - 1 in an order whose starts are spread evenly: by the golden ratio."""
    return sorted(range(count), key=lambda index: (index * 0.6180339887498949) % 1)


def _resized(maps: torch.Tensor) -> torch.Tensor:
    """Resize (C, h, w) maps bilinearly to the pictures' side."""
    return F.interpolate(maps[None], size=(SIDE, SIDE), mode="bilinear")[0]


def _prompt(points: torch.Tensor, labels: torch.Tensor) -> Prompt:
    corners = [points[labels == label] for label in (TOP_LEFT, BOTTOM_RIGHT)]
    box = torch.cat(corners).flatten().numpy() if all(len(corner) for corner in corners) else None
    return Prompt(points=points[labels == POSITIVE].numpy(), box=box)
