"""How well predicted IoUs are calibrated, for users' prompts and for those made from the first mask.

    python benchmarks/calibration.py --data DATA --sources dsb2018 coco_mini_cc --json calibration.json

For each validation object: one click, three clicks, its box; then prompts made from the mask that came back. Of each,
the true IoU, the predicted one, their mean signed difference and the expected calibration error in 10 bins; and what it
brings to keep, of all those answers, the one with the highest predicted IoU. All at the model's input size, stride 4.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from refinesam.evaluation.calibration import calibration
from refinesam.files import write_json
from refinesam.models.build import normalise
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.promptable import PromptableModel
from refinesam.training.finetune.losses import hard_iou
from refinesam.training.finetune.prompts import SelfMade, self_made_prompt
from refinesam.training.finetune.validate import PROTOCOLS, WholeImages
from refinesam.training.sources.layouts import load_sources
from refinesam.weights import load_model

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


def choice(kinds: dict[str, Scores]) -> dict[str, float]:
    """Mean IoU of the answers with the highest score of all, and of the best ones."""
    predicted, true = (np.stack([getattr(scores, name) for scores in kinds.values()]) for name in ("predicted", "true"))
    chosen = true[predicted.argmax(axis=0), np.arange(true.shape[1])]
    return {"chosen": float(chosen.mean()), "best": float(true.max(axis=0).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", required=True)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--input-size", type=int, default=0, help="0: the weights' own")
    parser.add_argument("--images", type=int, default=12, help="of each source")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    model = load_model(arguments.weights)
    model.config = replace(model.config, input_size=arguments.input_size or model.config.input_size)
    folders = load_sources(arguments.data, tuple(arguments.sources), "val")
    samples = WholeImages(folders, model.config.input_size, arguments.images)
    result: dict[str, Any] = {}
    for protocol, kinds in scores_by_prompt(model, samples, torch.device("cpu")).items():
        rows = {
            kind: {
                "objects": len(scores.true),
                "iou": float(scores.true.mean()),
                "predicted": float(scores.predicted.mean()),
                "bias": scores.bias,
                "error": scores.error,
            }
            for kind, scores in kinds.items()
        }
        result[protocol] = {"prompts": rows, "of_all": choice(kinds)}
        for kind, row in rows.items():
            print(f"{protocol:13}{kind:20}", *(f"{name} {value:.3f}" for name, value in row.items()))
        print(f"{protocol:13}{'of all':20}", *(f"{k} {v:.3f}" for k, v in result[protocol]["of_all"].items()))
    if arguments.json:
        write_json(Path(arguments.json), result)


if __name__ == "__main__":
    main()
