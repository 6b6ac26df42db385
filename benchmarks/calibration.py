"""How well predicted IoUs are calibrated, for users' prompts and for those made from the first mask.

    python benchmarks/calibration.py --data DATA --sources dsb2018 coco_mini_cc --json calibration.json

For each validation object: one click, three clicks, its box; then prompts made from the mask that came back. Of each,
the true IoU, the predicted one, their mean signed difference and the expected calibration error in 10 bins; and what it
brings to keep, of all those answers, the one with the highest predicted IoU. All at the model's input size, stride 4.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refinesam.files import write_json
from refinesam.training.finetune.calibration import Scores, scores_by_prompt
from refinesam.training.finetune.validate import WholeImages
from refinesam.training.sources.layouts import load_sources
from refinesam.weights import load_model


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
