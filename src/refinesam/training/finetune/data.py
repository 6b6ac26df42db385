"""Annotated images as training samples: crops, augmentation, targets and first prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from refinesam.errors import ConfigError, DatasetError, ImageError
from refinesam.masks import decode_segmentation
from refinesam.training.batches import StepShares, iterating
from refinesam.training.finetune.augment import augment_colors, flip_and_turn
from refinesam.training.finetune.config import DataConfig, PromptConfig
from refinesam.training.finetune.prompts import first_prompt, prompt_length
from refinesam.training.sources.source import Source

__all__ = [
    "MIN_PIXELS",
    "Crop",
    "PromptedCrops",
    "Sample",
    "batches_from",
    "choose_crop",
    "fit_image",
    "fit_to_square",
    "source_probabilities",
    "stride4_coverage",
]

# An object that covers less of the model's input than this teaches nothing: a single stride-4 pixel has 16.
MIN_PIXELS = 12
# A crop can miss every object, and a file can be damaged: then another draw is made, but not for ever.
MAX_DRAWS = 50
# Most objects of an image that are looked at for one sample, which bounds its cost in crowded images.
MAX_OBJECTS = 40


class Sample(TypedDict):
    """One image with P prompted objects, or a batch of them.

    image: (3, S, S) uint8. target: (P, S/4, S/4) float32 coverage. points: (P, T, 2). labels: (P, T). damaged: the
    images that could not be used and that this one stands in for, with the reason, one a line.
    """

    image: torch.Tensor
    target: torch.Tensor
    points: torch.Tensor
    labels: torch.Tensor
    damaged: str


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


def fit_to_square(array: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Stretch (H, W) or (H, W, 3) to a square, as `refinesam.models.frames.Frame` does for the hybrid variants."""
    shrinking = array.shape[0] * array.shape[1] > size**2
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(array, (size, size), interpolation=method), np.uint8)


def fit_image(image: NDArray[np.uint8], size: int, family: str) -> NDArray[np.uint8]:
    """Stretch (H, W, 3) to a square, as `refinesam.models.frames.Frame` does for a family, here with rounded values.

    Raises:
        ConfigError: a family whose images are not stretched.
    """
    if family == "hybrid":
        return fit_to_square(image, size)
    if family == "efficientsam":
        return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), np.uint8)
    raise ConfigError(f"The family {family!r} does not stretch images to the square: choose hybrid or efficientsam.")


def stride4_coverage(soft_mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the share of every 4 x 4 block that an (S, S) mask of 0..255 covers: (S/4, S/4) in [0, 1]."""
    side = soft_mask.shape[0] // 4
    # In whole numbers, which is exact and takes a tenth of the time of a mean over both axes.
    rows = soft_mask.reshape(side, 4, -1).sum(axis=1, dtype=np.uint16)
    sums = rows[:, 0::4] + rows[:, 1::4] + rows[:, 2::4] + rows[:, 3::4]
    return np.asarray(sums.astype(np.float32) / 16 / 255)


class PromptedCrops(Dataset[Sample]):
    """Endless samples: index i is always the same sample, so that a resumed run sees what it would have seen."""

    def __init__(
        self,
        sources: Sequence[Source],
        input_size: int,
        data: DataConfig,
        prompts: PromptConfig,
        seed: int,
        *,
        family: str = "hybrid",
    ) -> None:
        """Prepare to draw.

        Args:
            sources: as `load_sources` gives them, those that `data` names.
            input_size: S, side of the model's input in pixels.
            data: how sources and crops are drawn.
            prompts: how users are simulated.
            seed: of the samples.
            family: of the model, which decides how images are resized; masks are resized alike for all.
        """
        self.sources, self.input_size, self.data, self.prompts = sources, input_size, data, prompts
        self.seed, self.family = seed, family
        self.source_probabilities = source_probabilities([len(source) for source in sources], data)

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        damaged: list[str] = []
        for _ in range(MAX_DRAWS):
            source = self.sources[int(rng.choice(len(self.sources), p=self.source_probabilities))]
            number = int(rng.integers(len(source)))
            try:
                sample = self._draw(source, number, rng)
            except (ImageError, DatasetError) as error:
                damaged.append(f"{source.name(number)}: {error}".replace("\n", " "))
                continue
            if sample is not None:
                sample["damaged"] = "\n".join(damaged)
                return sample
        reason = f"the last damaged file: {damaged[-1]}" if damaged else f"none covered {MIN_PIXELS} pixels of its crop"
        raise DatasetError(f"{MAX_DRAWS} draws found no usable object; {reason}. Check the images and their masks.")

    def _draw(self, source: Source, number: int, rng: np.random.Generator) -> Sample | None:
        annotated = source.read(number)
        image, objects = annotated.pixels, annotated.objects
        if not objects:
            return None
        height, width = image.shape[:2]
        order = rng.permutation(len(objects))
        crop = choose_crop(objects[order[0]].bbox_xywh, height, width, self.data.zoom_probability, rng)
        masks: list[NDArray[np.uint8]] = []
        for index in order[:MAX_OBJECTS]:
            if len(masks) == self.prompts.per_image:
                break
            if not _overlaps(objects[index].bbox_xywh, crop):
                continue
            mask = crop.of(decode_segmentation(objects[index].segmentation, height, width))
            soft = fit_to_square(mask.astype(np.uint8) * 255, self.input_size)
            if np.count_nonzero(soft > 127) >= MIN_PIXELS:
                masks.append(soft)
        if not masks:
            return None
        pixels, masks = flip_and_turn(fit_image(crop.of(image), self.input_size, self.family), masks, rng)
        return self._prompted(augment_colors(pixels, rng), masks, rng)

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
            damaged="",
        )


def source_probabilities(counts: Sequence[int], data: DataConfig) -> NDArray[np.float64]:
    """How often each source is drawn, from the numbers of their images."""
    weights = np.array(counts, np.float64) ** data.sampling_power
    if data.source_weights:
        weights *= [data.source_weights.get(name, 1.0) for name in data.sources]
    return np.asarray(weights / weights.sum())


def choose_crop(
    bbox_xywh: tuple[float, float, float, float],
    height: int,
    width: int,
    zoom_probability: float,
    rng: np.random.Generator,
) -> Crop:
    """Crop around an object, anything from a close-up to the whole image; or take (nearly) the whole image."""
    x, y, w, h = bbox_xywh
    if rng.random() < zoom_probability:
        # Log-uniform in size: close-ups are as frequent as wide views.
        smallest = min(1.0, max(1.3 * max(w / width, h / height), 0.15))
        scale = float(np.exp(rng.uniform(np.log(smallest), 0.0)))
    else:
        scale = float(rng.uniform(0.85, 1.0)) if rng.random() < 0.5 else 1.0
    stretch = float(np.exp(rng.uniform(-0.2, 0.2))) if scale < 1 else 1.0
    crop_w = int(np.clip(round(width * scale * stretch), 16, width))
    crop_h = int(np.clip(round(height * scale / stretch), 16, height))
    return Crop(_start(x + w / 2, crop_w, width, rng), _start(y + h / 2, crop_h, height, rng), crop_w, crop_h)


def _start(centre: float, crop: int, full: int, rng: np.random.Generator) -> int:
    """Place a crop so that it contains the centre of an object."""
    low, high = max(0, int(np.ceil(centre)) - crop), min(full - crop, int(centre))
    return int(rng.integers(low, high + 1)) if high >= low else max(0, min(full - crop, low))


def _overlaps(bbox_xywh: tuple[float, float, float, float], crop: Crop) -> bool:
    x, y, w, h = bbox_xywh
    return x < crop.x + crop.width and crop.x < x + w and y < crop.y + crop.height and crop.y < y + h


@contextmanager
def batches_from(
    samples: PromptedCrops, steps: range, batch_size: int, workers: int, rank: int = 0, processes: int = 1
) -> Iterator[Iterator[Sample]]:
    """Give one process's share of each step's batch; the worker processes end with the block.

    Args:
        samples: the data set.
        steps: to be given.
        batch_size: of all processes; a multiple of `processes`.
        workers: that prepare samples; 0 prepares them in this process.
        rank: of this process.
        processes: how many there are.
    """
    numbers = StepShares(steps, batch_size, rank, processes)
    with iterating(DataLoader(samples, batch_size // processes, sampler=numbers, num_workers=workers)) as batches:
        yield batches
