"""What a negative click does to a mask: whether its spot is gone, and what else.

    python benchmarks/negative_clicks.py --data DATA --json benchmarks/results/negative_clicks.json

For each object: predict from one click (and from its box), then click "not on the object", once each:

- middle: in the middle of what the mask covers too much, at least 20 pixels, as a user would;
- wrong: on any wrongly covered pixel, most of which lie at the rim;
- rim: one to three pixels outside the object's rim, whether it is covered or not.

Counted are the clicked pixels that are gone, the change of the IoU and its worst fall, and how often it falls by more
than 0.01. With --training-free the model is taken for one that was never trained on negative clicks and takes no mask,
as the released EfficientSAM.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np

import refinesam
from refinesam.evaluation.protocols import prompt_for
from refinesam.files import write_json
from refinesam.masks import mask_iou
from sources import FIRST_TWELVE, encoded_objects

LEAST_WRONG_PIXELS = 20


def middle(region: np.ndarray) -> tuple[int, int]:
    """x, y of the pixel deepest inside a region."""
    distance = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x) - 1, int(y) - 1


def clicks_for(mask: np.ndarray, truth: np.ndarray, chance: np.random.Generator) -> dict[str, tuple[int, int]]:
    """x, y of a negative click of each kind, as far as there is a place for it."""
    wrong = mask & ~truth
    distance = cv2.distanceTransform((~truth).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    clicks = {"middle": middle(wrong)} if wrong.sum() >= LEAST_WRONG_PIXELS else {}
    for kind, places in (("wrong", wrong), ("rim", (distance >= 1) & (distance <= 3))):
        ys, xs = np.nonzero(places)
        if len(ys):
            index = int(chance.integers(len(ys)))
            clicks[kind] = int(xs[index]), int(ys[index])
    return clicks


def summary(rows: list[tuple[str, bool, float, float]]) -> dict[str, Any]:
    changes = [after - before for _, _, before, after in rows]
    return {
        "clicks": len(rows),
        "removed": fmean(row[1] for row in rows),
        "iou_before": fmean(row[2] for row in rows),
        "iou_after": fmean(row[3] for row in rows),
        "worst_fall": max(0.0, -min(changes)),
        "fell_by_more_than_0.01": fmean(change < -0.01 for change in changes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=list(FIRST_TWELVE))
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--images", type=int, default=8, help="of each source")
    parser.add_argument("--objects", type=int, default=8, help="of each image")
    parser.add_argument("--training-free", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    session = refinesam.load(arguments.weights)
    if arguments.training_free:
        session.model.capabilities = replace(session.capabilities, negative_points=False, mask_prompt=False)
    chance = np.random.default_rng(0)
    rows: dict[str, dict[str, list[tuple[str, bool, float, float]]]] = {}
    for source in arguments.sources:
        for _, encoded, coco_object, truth in encoded_objects(
            session, arguments.data / source, arguments.images, arguments.objects
        ):
            for protocol in ("points-1", "box"):
                prompt = prompt_for(protocol, truth, coco_object.annotation_id)
                first = encoded.predict(prompt)
                for kind, (x, y) in clicks_for(first.mask, truth, chance).items():
                    second = encoded.predict(prompt.with_points([[x + 0.5, y + 0.5]], [0]))
                    row = source, not second.mask[y, x], mask_iou(first.mask, truth), mask_iou(second.mask, truth)
                    rows.setdefault(protocol, {}).setdefault(kind, []).append(row)
    result: dict[str, Any] = {
        "sources": arguments.sources,
        "images": arguments.images,
        "objects": arguments.objects,
        "training_free": arguments.training_free,
    }
    for protocol, kinds in rows.items():
        result[protocol] = {kind: summary(chosen) for kind, chosen in kinds.items()}
        for kind, chosen in kinds.items():
            of_nuclei = [row for row in chosen if row[0] == "dsb2018"]
            if of_nuclei:
                result[protocol][f"{kind}, dsb2018"] = summary(of_nuclei)
        for kind, numbers in result[protocol].items():
            print(protocol, kind, {k: round(v, 4) for k, v in numbers.items()})
    if arguments.json:
        write_json(arguments.json, result, indent=1)


if __name__ == "__main__":
    main()
