"""What "segment everything" finds, how much of it is right, and what it costs: before and now; and how to set it.

    python benchmarks/everything.py measure --data DATA --json benchmarks/results/everything.json
    python benchmarks/everything.py tune --data DATA     # on training images: run it when the weights change

"before" are the settings of version 0.1 (24 x 24 clicks, predicted IoU 0.35, stability 0.75), "now" the defaults, and
"recall" what `refinesam evaluate --proposals` takes. Before and now are run in turns on each image, and their CPU
seconds counted with the image's encoding; both decode with today's decoder. Precision is the share of masks with an IoU
of 0.5 with something annotated: where not everything is annotated, as in most photographs, it is too low.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

import refinesam
from refinesam import AutomaticMaskGenerator
from refinesam.automatic import FLOOR
from refinesam.evaluation.dataset import read_coco_folder
from refinesam.evaluation.proposals import RECALL_SETTINGS, proposal_scores
from refinesam.files import write_json
from refinesam.masks import decode_segmentation
from refinesam.rle import encode_rle

PHOTOGRAPHS = ("coco_mini_cc", "feral_cats", "davis16val", "fashion_ccp")
MICROGRAPHS = ("dsb2018", "monuseg", "embryos", "nanoparticles")
# Of the image; a person would expect objects of this size to be found.
LARGE = 0.02
BEFORE = {"points_per_side": 24, "iou_threshold": 0.35, "stability_threshold": 0.75, "crops": False}
SETTINGS: dict[str, dict[str, Any]] = {"before": BEFORE | {"skip_covered": False}, "now": {}}
RECALL = {
    "recall, before": SETTINGS["before"] | {"iou_threshold": 0.0, "stability_threshold": 0.0, "overlap_threshold": 0.9},
    "recall": dict(RECALL_SETTINGS),
}
OTHERS = {"now, with crops": {"crops": True}, "now, no click left out": {"skip_covered": False}}


class Remembered:
    """Decodes each click of an image once: other filters need no other masks."""

    def __init__(self, decode: Callable[..., Any]) -> None:
        self.decode, self.known = decode, dict[Any, Any]()

    def __call__(self, features: Any, image_hw: Any, points: Any) -> Any:
        keys = [(id(features), *point) for point in points.tolist()]
        if missing := [i for i, key in enumerate(keys) if key not in self.known]:
            decoded = self.decode(features, image_hw, points[missing])
            self.known.update(zip((keys[i] for i in missing), zip(*decoded, strict=True), strict=True))
        return tuple(torch.stack(parts) for parts in zip(*(self.known[key] for key in keys), strict=True))


def images_of(
    data: Path, source: str, split: str, count: int
) -> Iterator[tuple[dict[str, Any], np.ndarray, list[Any]]]:
    """Images with their annotations, as COCO has them, in an order that doesn't change."""
    images = read_coco_folder(data / source / f"instances_{split}.json", data / source / "images").images
    for index in np.random.default_rng(0).permutation(len(images))[:count]:
        image = images[index]
        # Polygons and uncompressed runs, too, become what pycocotools compares.
        truths = [
            {
                "segmentation": encode_rle(decode_segmentation(one.segmentation, image.height, image.width)),
                "area": one.area,
                "bbox": list(one.bbox_xywh),
                "iscrowd": int(one.is_crowd),
            }
            for one in image.objects
        ]
        yield {"height": image.height, "width": image.width}, refinesam.read_image(image.path), truths


def judged(found: list[dict[str, Any]], truth: list[Any], area: int) -> dict[str, Any]:
    """How many large objects are found at IoU 0.5, and how many masks are of something annotated."""
    wanted = [one["segmentation"] for one in truth if not one.get("iscrowd")]
    ious = np.zeros((len(found), len(wanted)))
    if found and wanted:
        ious = np.asarray(coco_mask.iou([one["segmentation"] for one in found], wanted, [0] * len(wanted)))
    # One by one: pycocotools 2.0.11 can't take more than 255 at a time.
    large = np.array([coco_mask.area(one) > LARGE * area for one in wanted], bool)
    return {
        "masks": len(found),
        "right": int((ious.max(1, initial=0) >= 0.5).sum()),
        "large": int(large.sum()),
        "large_found": int((ious.max(0, initial=0)[large] >= 0.5).sum()),
    }


def everything_in(session: Any, pixels: np.ndarray, settings: dict[str, Any], image_id: int) -> list[dict[str, Any]]:
    predictions = session.segment_everything(pixels, **settings)
    return [
        {"image_id": image_id, "category_id": 1, "segmentation": dict(encode_rle(one.mask)), "score": one.score}
        for one in predictions
    ]


def summary(rows: list[dict[str, Any]], truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    scores = proposal_scores(truth, results)
    masks = sum(row["masks"] for row in rows)
    return {
        "images": len(rows),
        "ar100": scores.ar100,
        "ar1000": scores.ar1000,
        "large_objects": sum(row["large"] for row in rows),
        "large_found": sum(row["large_found"] for row in rows),
        "precision": fmean(row["right"] / row["masks"] for row in rows if row["masks"]) if masks else None,
        "empty_share": fmean(not row["masks"] for row in rows),
        "masks_per_image": masks / len(rows),
        "cpu_seconds": fmean(row["cpu_seconds"] for row in rows) if "cpu_seconds" in rows[0] else None,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    session = refinesam.load(arguments.weights, device="cpu", threads=1, cache_bytes=0)
    decode = session.model.decode_points
    timed = SETTINGS | ({name: OTHERS[name] for name in OTHERS} if arguments.others else {})
    content: dict[str, Any] = {"weights": Path(arguments.weights).name, "split": arguments.split, "kinds": {}}
    for kind, sources in (("photographs", PHOTOGRAPHS), ("micrographs", MICROGRAPHS)):
        truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
        rows: dict[str, list[dict[str, Any]]] = {}
        results: dict[str, list[dict[str, Any]]] = {}
        for source in sources:
            if arguments.sources and source not in arguments.sources:
                continue
            for image, pixels, truths in images_of(arguments.data, source, arguments.split, arguments.images):
                number = len(truth["images"]) + 1
                truth["images"].append(image | {"id": number})
                for one in truths:
                    own = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": 1}
                    truth["annotations"].append(one | own)
                for name, settings in timed.items():
                    start = time.process_time()
                    found = everything_in(session, pixels, settings, number)
                    row = {"source": source, "cpu_seconds": time.process_time() - start}
                    rows.setdefault(name, []).append(row | judged(found, truths, pixels[..., 0].size))
                    results.setdefault(name, []).extend(found)
                if arguments.recall:
                    session.model.decode_points = Remembered(decode)
                    for name, settings in RECALL.items():
                        found = everything_in(session, pixels, settings, number)
                        rows.setdefault(name, []).append(judged(found, truths, pixels[..., 0].size))
                        results.setdefault(name, []).extend(found)
                    session.model.decode_points = decode
                content["kinds"][kind] = {
                    name: summary(rows[name], truth, results[name]) | {"by_image": rows[name]} for name in rows
                }
                print(kind, source, *(f"{name}: {rows[name][-1]}" for name in rows), sep="\n  ", flush=True)
                if arguments.json:
                    write_json(arguments.json, content, indent=1)
    return content


def tune(arguments: argparse.Namespace) -> dict[str, Any]:
    """Masks, precision and recall by the share of the best predicted IoUs, and by the least predicted IoU."""
    session = refinesam.load(arguments.weights, device="cpu", threads=1, cache_bytes=0)
    decode = session.model.decode_points
    tried = {f"{share} of the best": (FLOOR, share) for share in (0.5, 0.6, 0.65, 0.7, 0.75)}
    tried |= {f"at least {least}": (least, 0.0) for least in (0.3, 0.4, 0.5, 0.6)}
    content: dict[str, Any] = {}
    for kind, sources in (("photographs", PHOTOGRAPHS), ("micrographs", MICROGRAPHS)):
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tried}
        for source in sources:
            for _, pixels, truths in images_of(arguments.data, source, "train", arguments.images):
                session.model.decode_points = Remembered(decode)
                encoded = session.encode(pixels)
                for name, (least, share) in tried.items():
                    generator = AutomaticMaskGenerator(session)
                    generator.iou_threshold, generator.share_of_best = least, share
                    found = [{"segmentation": encode_rle(one.mask)} for one in generator.generate(encoded)]
                    rows[name].append(judged(found, truths, pixels[..., 0].size))
        content[kind] = {
            name: {
                "masks_per_image": fmean(row["masks"] for row in of),
                "precision": fmean(row["right"] / max(1, row["masks"]) for row in of),
                "found": fmean(row["right"] for row in of),
                "large_found": sum(row["large_found"] for row in of) / max(1, sum(row["large"] for row in of)),
                "empty_share": fmean(not row["masks"] for row in of),
            }
            for name, of in rows.items()
        }
        for name, row in content[kind].items():
            print(f"{kind:12}{name:20}", *(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    if arguments.json:
        write_json(arguments.json, content, indent=1)
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "tune"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--images", type=int, default=10, help="of each source")
    parser.add_argument("--sources", nargs="*", help="of those that the script knows; all by default")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--recall", action="store_true", help="also the settings that count recall alone")
    parser.add_argument("--others", action="store_true", help="also crops, and no click left out")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    (measure if arguments.what == "measure" else tune)(arguments)


if __name__ == "__main__":
    main()
