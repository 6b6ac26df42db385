"""COCO-format folders as training samples: crops, augmentation, targets and first prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from refinesam.errors import DatasetError, ImageError
from refinesam.evaluation.dataset import CocoFolder, CocoImage, read_coco_folder
from refinesam.images import read_image
from refinesam.masks import decode_segmentation
from refinesam.training.augment import augment_colors, flip_and_turn
from refinesam.training.config import DataConfig, PromptConfig
from refinesam.training.prompts import first_prompt, prompt_length

__all__ = [
    "MIN_PIXELS",
    "PromptedCrops",
    "Sample",
    "batches_from",
    "fit_to_square",
    "load_sources",
    "read_pixels",
    "stride4_coverage",
]

# An object that covers less of the model's input than this teaches nothing: a single stride-4 pixel has 16.
MIN_PIXELS = 12
# A crop can miss every object, and a file can be damaged: then another draw is made, but not for ever.
MAX_DRAWS = 50
# Most objects of an image that are looked at for one sample, which bounds its cost in crowded images.
MAX_OBJECTS = 40


class Sample(TypedDict):
    """One image with P prompted objects.

    image: (3, S, S) uint8. target: (P, S/4, S/4) float32 coverage. points: (P, T, 2). labels: (P, T).
    """

    image: torch.Tensor
    target: torch.Tensor
    points: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image, in pixels: left, top, width, height."""

    x: int
    y: int
    width: int
    height: int

    def of(self, array: NDArray[Any]) -> NDArray[Any]:
        """Cut the rectangle out of an (H, W, ...) array."""
        return array[self.y : self.y + self.height, self.x : self.x + self.width]


def load_sources(root: Path, config: DataConfig, split: str) -> list[CocoFolder]:
    """Read `root/SOURCE/instances_{split}.json` of every source; crowd regions and images of nothing else are left out.

    Raises:
        DatasetError: a source is missing, its annotations are malformed, or it has no object.
    """
    folders = []
    for source in config.sources:
        folder = read_coco_folder(root / source / f"instances_{split}.json", root / source / "images")
        folder = folder.without_crowds()
        if not folder.images:
            raise DatasetError(f"Source {source!r} has no {split} image with an object; leave it out of data.sources.")
        folders.append(folder)
    return folders


def read_pixels(record: CocoImage) -> NDArray[np.uint8]:
    """Read an image, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it cannot be read.
        DatasetError: its size is not that of its annotations, which would then lie elsewhere.
    """
    pixels = read_image(record.path)
    if pixels.shape[:2] != (record.height, record.width):
        raise DatasetError(
            f"{record.path} is {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height), its annotations are for "
            f"{record.width} x {record.height}. Put back the file that was annotated."
        )
    return pixels


def fit_to_square(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Stretch (H, W) or (H, W, 3) to a square, as `refinesam.models.frames.Frame` does for the hybrid variants."""
    shrinking = array.shape[0] * array.shape[1] > size**2
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(array, (size, size), interpolation=method), np.uint8)


def stride4_coverage(soft_mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the share of every 4 x 4 block that an (S, S) mask of 0..255 covers: (S/4, S/4) in [0, 1]."""
    side = soft_mask.shape[0] // 4
    coverage: NDArray[np.float32] = soft_mask.reshape(side, 4, side, 4).mean(axis=(1, 3), dtype=np.float32) / 255
    return coverage


class PromptedCrops(Dataset[Sample]):
    """Endless samples: index i is always the same sample, so that a resumed run sees what it would have seen."""

    def __init__(
        self,
        folders: list[CocoFolder],
        input_size: int,
        data: DataConfig,
        prompts: PromptConfig,
        seed: int,
        length: int,
    ) -> None:
        self.folders, self.input_size, self.data, self.prompts = folders, input_size, data, prompts
        self.seed, self.length = seed, length
        weights = np.array([len(f.images) for f in folders], np.float64) ** data.sampling_power
        self.source_probabilities = weights / weights.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        error: Exception | None = None
        for _ in range(MAX_DRAWS):
            try:
                sample = self._draw(rng)
            except (ImageError, DatasetError) as caught:
                error = caught
                continue
            if sample is not None:
                return sample
        reason = f"the last damaged file said: {error}" if error else f"none covered {MIN_PIXELS} pixels of its crop"
        raise DatasetError(f"{MAX_DRAWS} draws found no usable object; {reason}. Check the images and their masks.")

    def _draw(self, rng: np.random.Generator) -> Sample | None:
        folder = self.folders[int(rng.choice(len(self.folders), p=self.source_probabilities))]
        record = folder.images[int(rng.integers(len(folder.images)))]
        image = read_pixels(record)
        height, width = image.shape[:2]
        order = rng.permutation(len(record.objects))
        crop = self._choose_crop(record.objects[order[0]].bbox_xywh, height, width, rng)
        masks: list[NDArray[np.uint8]] = []
        for index in order[:MAX_OBJECTS]:
            if len(masks) == self.prompts.per_image:
                break
            coco_object = record.objects[index]
            if not _overlaps(coco_object.bbox_xywh, crop):
                continue
            mask = crop.of(decode_segmentation(coco_object.segmentation, height, width))
            soft = fit_to_square(mask.astype(np.uint8) * 255, self.input_size)
            if np.count_nonzero(soft > 127) >= MIN_PIXELS:
                masks.append(soft)
        if not masks:
            return None
        pixels, masks = flip_and_turn(fit_to_square(crop.of(image), self.input_size), masks, rng)
        return self._prompted(augment_colors(pixels, rng), masks, rng)

    def _choose_crop(
        self, bbox_xywh: tuple[float, float, float, float], height: int, width: int, rng: np.random.Generator
    ) -> Crop:
        """Crop around an object, anything from a close-up to the whole image; or take (nearly) the whole image."""
        x, y, w, h = bbox_xywh
        if rng.random() < self.data.zoom_probability:
            # Log-uniform in size: close-ups are as frequent as wide views.
            smallest = min(1.0, max(1.3 * max(w / width, h / height), 0.15))
            scale = float(np.exp(rng.uniform(np.log(smallest), 0.0)))
        else:
            scale = float(rng.uniform(0.85, 1.0)) if rng.random() < 0.5 else 1.0
        stretch = float(np.exp(rng.uniform(-0.2, 0.2))) if scale < 1 else 1.0
        crop_w = int(np.clip(round(width * scale * stretch), 16, width))
        crop_h = int(np.clip(round(height * scale / stretch), 16, height))
        left = _start(x + w / 2, crop_w, width, rng)
        top = _start(y + h / 2, crop_h, height, rng)
        return Crop(left, top, crop_w, crop_h)

    def _prompted(self, pixels: NDArray[np.uint8], masks: list[NDArray[np.uint8]], rng: np.random.Generator) -> Sample:
        count, side = self.prompts.per_image, self.input_size // 4
        points = np.zeros((count, prompt_length(self.prompts), 2), np.float32)
        labels = np.zeros((count, prompt_length(self.prompts)), np.int64)
        target = np.zeros((count, side, side), np.float32)
        for i in range(count):
            # With fewer objects than prompts, an object is prompted again in another way.
            soft = masks[i % len(masks)]
            points[i], labels[i] = first_prompt(soft > 127, self.prompts, rng)
            target[i] = stride4_coverage(soft)
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            target=torch.from_numpy(target),
            points=torch.from_numpy(points),
            labels=torch.from_numpy(labels),
        )


def _start(centre: float, crop: int, full: int, rng: np.random.Generator) -> int:
    """Place a crop so that it contains the centre of an object."""
    low, high = max(0, int(np.ceil(centre)) - crop), min(full - crop, int(centre))
    return int(rng.integers(low, high + 1)) if high >= low else max(0, min(full - crop, low))


def _overlaps(bbox_xywh: tuple[float, float, float, float], crop: Crop) -> bool:
    x, y, w, h = bbox_xywh
    return x < crop.x + crop.width and crop.x < x + w and y < crop.y + crop.height and crop.y < y + h


@contextmanager
def batches_from(samples: PromptedCrops, first: int, batch_size: int, workers: int) -> Iterator[Iterator[Sample]]:
    """Give the batches from sample `first` on; the worker processes end with the block, also when an error leaves it.

    Left alone, they would live as long as the error's traceback, which holds the loader's iterator.
    """
    loader = DataLoader(samples, batch_size, sampler=range(first, len(samples)), num_workers=workers)
    batches = iter(loader)
    try:
        yield batches
    finally:
        getattr(batches, "_shutdown_workers", lambda: None)()
