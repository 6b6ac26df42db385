"""A few small images with boxes, and what compares results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from refinesam.images import write_png
from refinesam.jobs.folder import result_rows


def write_images(folder: Path, count: int, height: int = 40, width: int = 56) -> list[str]:
    """Write images of distinct content; every third in a folder of its own."""
    names = [f"{'deep/' if index % 3 == 0 else ''}{index:04d}.png" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        write_png(folder / name, np.kron(noise, np.ones((8, 8, 1), np.uint8)))
    return names


def coco_boxes(names: list[str], height: int = 40, width: int = 56) -> dict[str, Any]:
    """Two boxes an image, of two classes."""
    images = [{"id": i + 1, "file_name": name, "height": height, "width": width} for i, name in enumerate(names)]
    boxes = ([4.0, 6.0, 24.0, 20.0], [20.0, 2.0, 30.0, 30.0])
    annotations = [
        {"id": 2 * i + k, "image_id": i + 1, "category_id": 3 + k, "bbox": boxes[k], "segmentation": [], "iscrowd": 0}
        for i in range(len(names))
        for k in range(2)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    }


def without_seconds(output: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result_rows(output)]
