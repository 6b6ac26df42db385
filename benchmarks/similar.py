"""One example, all its likes: how many of an image's objects are found from one and from three of them.

    python benchmarks/similar.py --data DATA --json benchmarks/results/similar.json
    python benchmarks/similar.py --data DATA --split train --images 3     # where the settings were chosen
    python benchmarks/similar.py --data DATA --fit                        # near which the weights of similarity are

Examples are drawn from the annotated objects of the image itself, and neither they nor what is found of them count.
AP50 is over all masks of a source, ranked by similarity; of "everything", segment-everything's masks are ranked by
predicted IoU. The count error is the mean over images of |found - annotated| / annotated, for similarities of at least
the threshold, and for all masks of segment-everything. Images need two objects more than the most examples.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy.optimize import minimize

import refinesam
from refinesam import Prediction
from refinesam.evaluation.dataset import CocoImage, read_coco_folder
from refinesam.files import write_json
from refinesam.masks import decode_segmentation
from refinesam.rle import encode_rle
from refinesam.similar import SimilarMaskGenerator

SOURCES = (
    *("dsb2018", "monuseg", "coelho_nuclei", "mushrooms", "embryos", "emps", "nanoparticles", "powder_sem"),
    *("shrimp", "pills", "seedlings"),
)
# Sources whose licences allow what is learned from them to be shipped.
FITTED = (
    *("dsb2018", "mushrooms", "embryos", "emps", "nanoparticles", "powder_sem", "shrimp", "pills", "seedlings"),
    "harddrive_parts",
)
MOST_CLICKS = 100
EXAMPLES = (1, 3)
THRESHOLD = 0.5


def matched(found: list[Any], scores: list[float], truths: list[Any], examples: list[int]) -> dict[str, Any]:
    """Greedily matched at IoU 0.5, best first: scores of what counts, whether each is right, and objects that count."""
    ious = np.asarray(coco_mask.iou(found, truths, [0] * len(truths))) if found else np.zeros((0, len(truths)))
    free, rows = np.ones(len(truths), bool), []
    for i in np.argsort(-np.array(scores), kind="stable"):
        best = int(np.argmax(np.where(free, ious[i], -1)))
        right = bool(free[best] and ious[i, best] >= 0.5)
        free[best] &= not right
        # What is found of an example, once or again, tells nothing.
        if not (right and best in examples) and not (not right and ious[i, examples].max(initial=0) >= 0.5):
            rows.append((scores[i], right))
    return {"rows": rows, "objects": len(truths) - len(examples)}


def ap50(images: list[dict[str, Any]]) -> float:
    """COCO's average precision at IoU 0.5, of any number of masks an image."""
    rows = sorted((row for image in images for row in image["rows"]), key=lambda row: -row[0])
    right = np.cumsum([row[1] for row in rows])
    precision = np.maximum.accumulate((right / np.arange(1, len(rows) + 1))[::-1])[::-1]
    recall = right / sum(image["objects"] for image in images)
    at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0)[np.minimum(at, len(precision))].mean())


def count_error(images: list[dict[str, Any]], threshold: float) -> float:
    counted = [(sum(score >= threshold for score, _ in image["rows"]), image["objects"]) for image in images]
    return fmean(abs(found - objects) / objects for found, objects in counted)


def answered(predictions: list[Prediction], image: list[Any], examples: list[int], ranked_by: str) -> dict[str, Any]:
    masks = [dict(encode_rle(one.mask)) for one in predictions]
    return matched(masks, [float(getattr(one, ranked_by)) for one in predictions], image, examples)


def measured(session: Any, image: CocoImage) -> dict[str, Any]:
    encoded = session.encode(refinesam.read_image(image.path))
    masks = [decode_segmentation(one.segmentation, image.height, image.width) for one in image.objects]
    truths = [dict(encode_rle(mask)) for mask in masks]
    order = np.random.default_rng(image.image_id).permutation(len(masks)).tolist()
    row: dict[str, Any] = {}
    start = time.process_time()
    everything = session.segment_everything(encoded)
    row["everything"] = {"cpu_seconds": time.process_time() - start}
    for count in EXAMPLES:
        start = time.process_time()
        alike = session.segment_similar(encoded, [masks[i] for i in order[:count]])
        row[f"{count} examples"] = {"cpu_seconds": time.process_time() - start}
        row[f"{count} examples"] |= answered(alike, truths, order[:count], "similarity")
    row["everything"] |= answered(everything, truths, order[: max(EXAMPLES)], "score")
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {
            "images": len(rows),
            "objects": sum(row[name]["objects"] for row in rows),
            "ap50": ap50([row[name] for row in rows]),
            "count_error": count_error([row[name] for row in rows], 0 if name == "everything" else THRESHOLD),
            "cpu_seconds": fmean(row[name]["cpu_seconds"] for row in rows),
        }
        for name in rows[0]
    }


@torch.inference_mode()
def decoded(session: Any, image: CocoImage, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode random clicks of a search: what similarity is made of (K, 5), and whether each mask is right (K,)."""
    encoded = session.encode(refinesam.read_image(image.path))
    masks = np.stack([decode_segmentation(one.segmentation, image.height, image.width) for one in image.objects])
    random = np.random.default_rng(image.image_id)
    search = SimilarMaskGenerator(session, encoded, list(masks[random.choice(len(masks), count, replace=False)]))
    windows = search._windows(encoded)
    features, right = [], []
    for window in random.permutation(windows)[:2].tolist():
        view, (x0, y0, x1, y1) = search._view(encoded, tuple(window)), window
        clicks = random.permutation(np.concatenate(search._phases(view)))[:MOST_CLICKS]
        for start in range(0, len(clicks), search.prompts_per_batch):
            batch = clicks[start : start + search.prompts_per_batch]
            logits, iou = search.model.decode_points(view.part.features, view.part.image_hw, batch)
            logits, iou = logits.flatten(0, 1), iou.flatten().clamp(0, 1)
            likeness = search._likeness(search._looks(view, (logits > 0).float()), search.positive)
            features.append(torch.cat([iou[:, None], likeness], 1).numpy())
            found = search.model.upsample(logits.numpy(), (y1 - y0, x1 - x0)).reshape(len(logits), -1)
            shared = found.astype(np.float32) @ masks[:, y0:y1, x0:x1].reshape(len(masks), -1).T.astype(np.float32)
            union = found.sum(1)[:, None] + masks.sum((1, 2)) - shared
            right.append((shared / union.clip(1)).max(1) >= 0.5)
    return np.concatenate(features or [np.zeros((0, 5))]), np.concatenate(right or [np.zeros(0, bool)])


def fit(session: Any, data: Path, images_each: int) -> None:
    """Fit a logistic regression without negative weights, in which each image counts the same, and print it."""
    parts = []
    for source in FITTED:
        folder = read_coco_folder(data / source / "instances_train.json", data / source / "images").without_crowds()
        images = [one for one in folder.images if len(one.objects) >= max(EXAMPLES)]
        for number, i in enumerate(np.random.default_rng(1).permutation(len(images))[:images_each]):
            parts.append(decoded(session, images[i], EXAMPLES[number % len(EXAMPLES)]))
        print(source, sum(len(right) for _, right in parts), flush=True)
    parts = [(features, right) for features, right in parts if len(right)]
    inputs = np.concatenate([np.c_[features, np.ones(len(features))] for features, _ in parts])
    signs = np.concatenate([np.where(right, 1.0, -1.0) for _, right in parts])
    shares = np.concatenate([np.full(len(right), 1 / len(right) / len(parts)) for _, right in parts])
    loss = lambda weights: float(shares @ np.logaddexp(0, -signs * (inputs @ weights)))  # noqa: E731
    found = minimize(loss, np.zeros(6), bounds=[(0, None)] * 5 + [(None, None)])
    print(f"{len(signs)} masks of {len(parts)} images: weights {found.x.round(2).tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--images", type=int, default=3, help="of each source, and four times as many of dsb2018")
    parser.add_argument("--sources", nargs="*", default=SOURCES)
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--fit", action="store_true", help="of the weights of similarity, on training images")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    session = refinesam.load(arguments.weights, device="cpu", threads=1, cache_bytes=0)
    if arguments.fit:
        fit(session, arguments.data, arguments.images)
        return
    content: dict[str, Any] = {"weights": Path(arguments.weights).name, "split": arguments.split, "sources": {}}
    for source in arguments.sources:
        folder = read_coco_folder(
            arguments.data / source / f"instances_{arguments.split}.json", arguments.data / source / "images"
        ).without_crowds()
        images = [one for one in folder.images if len(one.objects) >= max(EXAMPLES) + 2]
        most = arguments.images * (4 if source == "dsb2018" else 1)
        chosen = np.random.default_rng(0).permutation(len(images))[:most]
        rows = [measured(session, images[i]) for i in chosen]
        content["sources"][source] = summary(rows) if rows else None
        print(source, *(content["sources"][source] or {"no image has so many objects": ""}).items(), sep="\n  ")
        if arguments.split == "train":
            errors = {t: round(fmean(count_error([row[f"{n} examples"] for row in rows], t) for n in EXAMPLES), 3)
                      for t in (0.3, 0.4, 0.5, 0.6, 0.7) if rows}  # fmt: skip
            print("  count errors by threshold", errors, flush=True)
        if arguments.json:
            write_json(arguments.json, content, indent=1)


if __name__ == "__main__":
    main()
