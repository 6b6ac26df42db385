"""The model's own choice of mask against the best of the candidates that people are offered.

    python benchmarks/candidates.py --data DATA --json benchmarks/results/candidates.json

For each object: answer a prompt, refine it, and compare the masks of `Prediction.candidates` with the ground truth,
before refinement and after. Reported are the mean IoU of the model's choice and of the best candidate, how many
candidates there are, and whether a smaller or a larger one is better by more than 0.01 than the choice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import refinesam
from refinesam import Prediction
from refinesam.evaluation.metrics import bootstrap_interval
from refinesam.evaluation.protocols import PromptProtocol, prompt_for
from refinesam.files import write_json
from refinesam.masks import mask_iou
from sources import FIRST_TWELVE, encoded_objects

PROTOCOLS: tuple[PromptProtocol, ...] = ("points-1", "random-2", "box")
BETTER = 0.01


def compared(prediction: Prediction, truth: np.ndarray) -> dict[str, float]:
    """What one prediction offers."""
    choice, area = mask_iou(prediction.mask, truth), int(prediction.mask.sum())
    ious = [(mask_iou(one.mask, truth), int(one.mask.sum())) for one in prediction.candidates]
    best, best_area = max([(choice, area), *ious])
    better = best > choice + BETTER
    return {
        "choice": choice,
        "best": best,
        "candidates": len(ious),
        "smaller_is_better": float(better and best_area < area),
        "larger_is_better": float(better and best_area > area),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=list(FIRST_TWELVE))
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--images", type=int, default=12, help="of each source")
    parser.add_argument("--objects", type=int, default=4, help="of each image")
    parser.add_argument("--json")
    given = parser.parse_args()
    session = refinesam.load(given.weights)
    rows: dict[tuple[str, str], list[tuple[str, dict[str, float]]]] = {}
    for source in given.sources:
        for image, encoded, coco_object, truth in encoded_objects(
            session, given.data / source, given.images, given.objects
        ):
            for protocol in PROTOCOLS:
                first = encoded.predict(prompt_for(protocol, truth, coco_object.annotation_id))
                for stage, prediction in (("first", first), ("refined", encoded.refine(first))):
                    row = f"{source}/{image.image_id}", compared(prediction, truth)
                    rows.setdefault((protocol, stage), []).append(row)
        print(source, len(rows[PROTOCOLS[0], "first"]), "objects so far", flush=True)
    result: dict[str, Any] = {"sources": given.sources, "images": given.images, "objects": given.objects}
    for (protocol, stage), chosen in rows.items():
        summary = {key: fmean(row[key] for _, row in chosen) for key in chosen[0][1]}
        gains: dict[str, list[float]] = {}
        for image, row in chosen:
            gains.setdefault(image, []).append(row["best"] - row["choice"])
        summary |= {"objects": len(chosen), "gain_interval": bootstrap_interval(list(gains.values()))}
        result.setdefault(protocol, {})[stage] = summary
        print(protocol, stage, {k: round(v, 3) if isinstance(v, float) else v for k, v in summary.items()})
    if given.json:
        write_json(given.json, result, indent=1)


if __name__ == "__main__":
    main()
