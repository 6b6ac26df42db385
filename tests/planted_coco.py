"""COCO documents and results made from random masks: all sizes, crowds, ties, misses, duplicates."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from refinesam.masks import encode_rle, polygons_from_mask


def blob(rng: np.random.Generator, hw: tuple[int, int], largest: float) -> np.ndarray:
    """An ellipse somewhere in the image, perhaps cut by its border."""
    mask = np.zeros(hw, np.uint8)
    centre = (int(rng.integers(hw[1])), int(rng.integers(hw[0])))
    axes = tuple(int(v) for v in rng.uniform(1, largest, 2))
    cv2.ellipse(mask, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return mask.astype(bool)


def polygons(mask: np.ndarray) -> list[list[float]]:
    return [polygon.exterior.ravel().tolist() for polygon in polygons_from_mask(mask)]


def made(seed: int = 0, images: int = 12, detections: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and results of all sizes, with crowds, ties, misses, duplicates and a category without objects."""
    rng = np.random.default_rng(seed)
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in ((1, "cell"), (3, "cat"), (7, "none"))],
    }
    results = []
    for image_id in range(1, images + 1):
        hw = (int(rng.integers(120, 260)), int(rng.integers(120, 260)))
        document["images"].append({"id": image_id, "file_name": f"{image_id}.png", "height": hw[0], "width": hw[1]})
        masks = [blob(rng, hw, rng.choice([6, 30, 90])) for _ in range(int(rng.integers(0, 7)))]
        for mask in masks:
            crowd = bool(rng.random() < 0.15)
            rows, columns = np.nonzero(mask)
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice([1, 3])),
                    "segmentation": dict(encode_rle(mask)) if crowd or rng.random() < 0.5 else polygons(mask),
                    "bbox": [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1],
                    "area": float(mask.sum()),
                    "iscrowd": int(crowd),
                }
            )
        for _ in range(detections):
            mask = blob(rng, hw, 40)
            if masks and rng.random() < 0.7:
                mask = np.roll(masks[rng.integers(len(masks))], rng.integers(-3, 4, 2), axis=(0, 1))
            rows, columns = np.nonzero(mask)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": int(rng.choice([1, 3, 7], p=[0.5, 0.4, 0.1])),
                    "segmentation": dict(encode_rle(mask)),
                    "bbox": [float(columns.min()), float(rows.min()), float(np.ptp(columns)), float(np.ptp(rows))],
                    # One decimal: many ties.
                    "score": round(float(rng.random()), 1),
                }
            )
    return document, results
