"""A small FiftyOne dataset whose evaluation is known: ground truth, and a run's masks planted in every bucket.

Everything that evaluation must find is computed here from the planted masks in plain numpy, before FiftyOne sees them.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import numpy as np
from numpy.typing import NDArray

from refinesam_fiftyone.labels import detection_from_mask, keypoint_from_points, label_id
from refinesam_fiftyone.record import declare
from refinesam_fiftyone.runs import register_run
from refinesam_fiftyone.samples import target_of
from refinesam_fiftyone.schema import Fields, Settings

Mask = NDArray[np.bool_]

TRUTH_FIELD = "ground_truth"
CLASSES = ("cat", "dog", "boat")
# Height, width: of different sizes, most of them not square; the first is large enough for COCO's three sizes.
IMAGE_SIZES = ((170, 240), (64, 80), (80, 64), (72, 72), (64, 96), (96, 70))
CELL = 16
KINDS = (
    "helped",
    "hurt",
    "no_change",
    "both_failed",
    "empty_amr",
    "one_pixel",
    "three_pixels",
    "border",
    "off_image",
    "empty_both",
)


@dataclass(frozen=True)
class Expected:
    """What evaluating one prompt must give."""

    kind: str
    sample: int
    label: str
    bucket: str
    base_iou: float
    amr_iou: float
    rejected_iou: float | None
    disagreement: float
    size: str
    truth: Mask
    baseline: Mask
    amr: Mask


@dataclass(frozen=True)
class Planted:
    """The dataset, its run, and for each prompt (its id is the ground truth label's) what must come out."""

    dataset: Any
    run: Fields
    expected: dict[str, Expected]

    @property
    def buckets(self) -> dict[str, int]:
        """How many objects each bucket must have."""
        found = [one.bucket for one in self.expected.values()]
        return {bucket: found.count(bucket) for bucket in ("amr_helped", "amr_hurt", "no_change", "both_failed")}


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union, 0 of two empty masks."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def bucket_of(base: float, amr: float) -> str:
    """The bucket by its definition: failed below 0.5, changed by more than 0.01."""
    if base < 0.5 and amr < 0.5:
        return "both_failed"
    if amr - base > 0.01:
        return "amr_helped"
    return "amr_hurt" if base - amr > 0.01 else "no_change"


def plant(
    name: str,
    folder: Path,
    *,
    samples: int = 6,
    seed: int = 0,
    settings: Settings | None = None,
    run_key: str = "refinesam",
    metadata: bool = True,
) -> Planted:
    """Make the dataset `name`; images and mask files go to `folder`."""
    rng = np.random.default_rng(seed)
    dataset, run = fo.Dataset(name), Fields(run_key)
    settings = settings or Settings(prompts="boxes", prompt_field=TRUTH_FIELD, truth_field=TRUTH_FIELD)
    register_run(dataset, run, settings)
    declare(target_of(dataset), run, run.kinds)
    expected: dict[str, Expected] = {}
    made = []
    for index in range(samples):
        image_hw = IMAGE_SIZES[index % len(IMAGE_SIZES)]
        path = folder / name / f"image_{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8))
        sample = fo.Sample(filepath=str(path))
        if metadata:
            sample.metadata = fo.ImageMetadata(width=image_hw[1], height=image_hw[0], num_channels=3)
        # Every second sample keeps its masks in files.
        mask_folder = folder / name / "masks" if index % 2 else None
        _plant_sample(sample, index, image_hw, run, rng, expected, mask_folder)
        made.append(sample)
    dataset.add_samples(made)
    dataset.add_dynamic_sample_fields(fields=[TRUTH_FIELD])
    return Planted(dataset, run, expected)


@contextmanager
def evaluated_plant(folder: Path) -> Iterator[Planted]:
    """Make and evaluate a small dataset of an own name; it goes with the block."""
    from refinesam_fiftyone.evaluation import evaluate

    planted = plant(f"planted-{uuid.uuid4().hex[:8]}", folder, samples=4)
    evaluate(planted.dataset, run_key=planted.run.key)
    yield planted
    planted.dataset.delete()


@lru_cache(maxsize=1)
def _evaluated() -> Planted:
    from refinesam_fiftyone.evaluation import evaluate

    folder = Path(tempfile.mkdtemp(prefix="refinesam-planted-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    planted = plant("planted-and-evaluated", folder)
    evaluate(planted.dataset)
    return planted


def evaluated_copy(name: str) -> Planted:
    """Copy a dataset that was planted and evaluated; much quicker than both, but its mask files are all copies'."""
    planted = _evaluated()
    return Planted(planted.dataset.clone(name), planted.run, planted.expected)


def _plant_sample(
    sample: fo.Sample,
    index: int,
    image_hw: tuple[int, int],
    run: Fields,
    rng: np.random.Generator,
    expected: dict[str, Expected],
    mask_folder: Path | None,
) -> None:
    truths, layers, points = [], {"baseline": [], "amr": [], "rejected": []}, []
    for number, (kind, truth, baseline, amr, rejected) in enumerate(_objects(index, image_hw)):
        prompt_id = label_id("truth", str(sample.filepath), str(number))
        label = CLASSES[(index + number) % len(CLASSES)]
        truths.append(_truth(truth, kind, prompt_id, label, number))
        one = _expectation(kind, index, label, truth, baseline, amr, rejected)
        expected[prompt_id] = one
        holes = int(kind == "both_failed")
        shared = {
            "label": label,
            "prompt_id": prompt_id,
            "kappa": int(cv2.connectedComponents(baseline.astype(np.uint8))[0]) - 1,
            "compactness": float(rng.uniform(0.1, 1.0)),
            "holes": holes,
            "strategy": "centre" if number % 2 else "boundary",
            "kept": "first" if rejected is not None else "refined",
            "reason": "planted",
        }
        for role, mask in (("baseline", baseline), ("amr", amr), ("rejected", rejected)):
            if mask is None:
                continue
            mask_path = None if mask_folder is None else mask_folder / f"{prompt_id}_{role}.png"
            predicted = float(np.clip(iou(mask, truth) + rng.normal(0, 0.08), 0, 1))
            own_id = label_id(run.key, prompt_id, role)
            layers[role].append(
                detection_from_mask(mask, mask_path=mask_path, id=own_id, predicted_iou=predicted, **shared)
            )
        centre = np.argwhere(truth).mean(axis=0)[::-1]
        points.append(
            keypoint_from_points(
                np.array([centre]),
                image_hw,
                id=label_id(run.key, prompt_id, "points"),
                prompt_id=prompt_id,
                label=label,
            )
        )
    sample[TRUTH_FIELD] = fo.Detections(detections=truths)
    for role, detections in layers.items():
        sample[run.masks(role)] = fo.Detections(detections=detections)  # type: ignore[arg-type]
    sample[run.points] = fo.Keypoints(keypoints=points)
    sample[run.failures] = fo.Classifications(classifications=[])
    sample[run.digest] = f"planted-{index}"


def _expectation(
    kind: str, index: int, label: str, truth: Mask, baseline: Mask, amr: Mask, rejected: Mask | None
) -> Expected:
    base, refined = iou(baseline, truth), iou(amr, truth)
    pixels = int(truth.sum())
    return Expected(
        kind=kind,
        sample=index,
        label=label,
        bucket=bucket_of(base, refined),
        base_iou=base,
        amr_iou=refined,
        rejected_iou=None if rejected is None else iou(rejected, truth),
        disagreement=1 - iou(baseline, amr) if baseline.any() or amr.any() else 0.0,
        size="small" if pixels < 32**2 else "medium" if pixels < 96**2 else "large",
        truth=truth,
        baseline=baseline,
        amr=amr,
    )


def _objects(index: int, image_hw: tuple[int, int]) -> Iterator[tuple[str, Mask, Mask, Mask, Mask | None]]:
    """Yield kind, truth, baseline, amr and rejected masks; each object has a cell of the image to itself."""

    def box(top: int, left: int, height: int, width: int) -> Mask:
        mask = np.zeros(image_hw, np.bool_)
        mask[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = True
        return mask

    columns = (image_hw[1] // CELL) if index else 4
    empty = np.zeros(image_hw, np.bool_)
    for number, kind in enumerate(KINDS):
        y, x = CELL * (number // columns), CELL * (number % columns)
        y, x = y + 2 + (index + number) % 3, x + 2 + index % 2
        truth = box(y, x, 10, 10)
        rough, close, wrong = box(y, x, 10, 6), box(y, x, 10, 9), box(y, x, 2, 10)
        if kind == "helped":
            yield kind, truth, rough, close, None
        elif kind == "hurt":
            yield kind, truth, close, rough, None
        elif kind == "no_change":
            yield kind, truth, close, close, truth.copy()
        elif kind == "both_failed":
            ring = box(y, x, 4, 4)
            ring[y + 1 : y + 3, x + 1 : x + 3] = False
            yield kind, truth, wrong, ring, None
        elif kind == "empty_amr":
            yield kind, truth, close, empty, None
        elif kind == "one_pixel":
            yield kind, box(y, x, 1, 1), box(y, x, 1, 2), box(y, x, 1, 1), None
        elif kind == "three_pixels":
            yield kind, box(y, x, 1, 3), box(y, x, 1, 3), box(y, x, 2, 3), None
        elif kind == "border":
            y = CELL * -(-len(KINDS) // columns) + 2
            yield kind, box(y, -3, 9, 8), box(y, 0, 9, 4), box(y, 0, 8, 5), None
        elif kind == "off_image":
            bottom = image_hw[0] - 6
            yield kind, box(bottom, x, 10, 10), box(bottom, x, 6, 7), box(bottom + 1, x, 5, 10), None
        else:
            yield kind, box(y, x, 4, 4), empty, empty, None
    if index == 0:
        yield "medium", box(4, 70, 50, 50), box(4, 70, 50, 40), box(4, 70, 50, 49), None
        yield "large", box(60, 80, 100, 120), box(60, 80, 100, 118), box(60, 80, 80, 120), None


def _truth(mask: Mask, kind: str, own_id: str, label: str, number: int) -> fo.Detection:
    """The ground truth label: most with the unrounded box of a COCO import, one reaching beyond the image."""
    rows, columns = mask.shape
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1
    part = mask[top:bottom, left:right]
    if kind == "off_image":
        # Four rows of the object lie below the image.
        part = np.ones((part.shape[0] + 4, part.shape[1]), np.bool_)
        bottom += 4
    shift = 0.0 if kind == "off_image" else (0.0, 0.3, -0.4)[number % 3]
    box = [left + shift, top - shift, right - left + shift / 2, bottom - top - shift / 2]
    relative = [box[0] / columns, box[1] / rows, box[2] / columns, box[3] / rows]
    return fo.Detection(id=own_id, label=label, bounding_box=relative, mask=part.copy())
