"""Datasets of flat rectangles, and the model that segments them exactly, for runs that a test makes from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import numpy as np

from fakes import FloodModel
from refinesam import Session
from refinesam_fiftyone.schema import Settings

BOXES = Settings("boxes", prompt_field="truth", truth_field="truth")
HW = (48, 64)


def write_image(path: Path, seed: int) -> None:
    """Two flat rectangles on a flat ground, in grey values of their own."""
    image = np.full((*HW, 3), 10 + seed, np.uint8)
    image[8:20, 6:30], image[25:40, 35:60] = 100 + seed, 200
    cv2.imwrite(str(path), image)


def truth() -> fo.Detections:
    """Both rectangles, with masks."""
    boxes = [[6 / 64, 8 / 48, 24 / 64, 12 / 48], [35 / 64, 25 / 48, 25 / 64, 15 / 48]]
    sizes = [(12, 24), (15, 25)]
    return fo.Detections(
        detections=[
            fo.Detection(label=name, bounding_box=box, mask=np.ones(size, bool))
            for name, box, size in zip(("cat", "dog"), boxes, sizes, strict=True)
        ]
    )


def fill(dataset: Any, folder: Path, count: int) -> None:
    """Add samples, each with an image of its own."""
    samples = []
    for index in range(count):
        path = folder / f"{index}.png"
        write_image(path, index)
        samples.append(fo.Sample(str(path), truth=truth()))
    dataset.add_samples(samples)


def session() -> Session:
    """A session of a model of its own."""
    return Session(FloodModel(negative_points=True, max_points=None))


def documents(dataset: Any) -> list[dict[str, Any]]:
    """All that the database has of the samples, without the time of the last change."""
    found = list(dataset._sample_collection.find().sort("_id"))
    return [{name: value for name, value in one.items() if name != "last_modified_at"} for one in found]
