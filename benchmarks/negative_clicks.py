"""How often a negative click on a wrongly covered spot removes it.

    python benchmarks/negative_clicks.py --data DATA --json benchmarks/results/negative_clicks.json

For each object: predict from one click (and from its box); where the mask covers at least 20 pixels too many, click
"not on the object" in the middle of them, as a user would, with the previous logits fed back; count whether the clicked
pixel is gone, and what that does to the IoU. With --training-free the model is taken for one that was never trained on
negative clicks and takes no mask, as the released EfficientSAM, so that all are answered by subtraction.
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
from refinesam.evaluation.dataset import read_coco_folder
from refinesam.evaluation.protocols import prompt_for
from refinesam.files import write_json
from refinesam.masks import decode_segmentation, mask_iou
from refinesam.types import Prompt
from sources import FIRST_TWELVE

LEAST_WRONG_PIXELS = 20


def middle(region: np.ndarray) -> tuple[int, int]:
    """x, y of the pixel deepest inside a region."""
    distance = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x) - 1, int(y) - 1


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
    rows = []
    for source in arguments.sources:
        folder = read_coco_folder(
            arguments.data / source / "instances_val.json", arguments.data / source / "images"
        ).without_crowds()
        for image in folder.images[: arguments.images]:
            encoded = session.encode(refinesam.read_image(image.path))
            for one in image.objects[: arguments.objects]:
                truth = decode_segmentation(one.segmentation, image.height, image.width)
                for protocol in ("points-1", "box"):
                    prompt = prompt_for(protocol, truth, one.annotation_id)
                    first = encoded.predict(prompt)
                    wrong = first.mask & ~truth
                    if wrong.sum() < LEAST_WRONG_PIXELS:
                        continue
                    x, y = middle(wrong)
                    clicked = prompt.with_points([[x + 0.5, y + 0.5]], [0])
                    if session.capabilities.mask_prompt:
                        clicked = Prompt(clicked.points, clicked.labels, clicked.box, mask_logits=first.logits)
                    second = encoded.predict(clicked)
                    rows.append(
                        (protocol, not second.mask[y, x], mask_iou(first.mask, truth), mask_iou(second.mask, truth))
                    )
    result: dict[str, Any] = {"sources": arguments.sources}
    for protocol in ("points-1", "box"):
        chosen = [row for row in rows if row[0] == protocol]
        if chosen:
            result[protocol] = {
                "wrongly_covered_spots": len(chosen),
                "removed": fmean(row[1] for row in chosen),
                "iou_before": fmean(row[2] for row in chosen),
                "iou_after": fmean(row[3] for row in chosen),
            }
            print(protocol, {k: round(v, 3) for k, v in result[protocol].items()})
    if arguments.json:
        write_json(arguments.json, result, indent=1)


if __name__ == "__main__":
    main()
