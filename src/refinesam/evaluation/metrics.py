"""What evaluation counts: COCO's object sizes, mean IoU, and the paired change with its bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, get_args

import numpy as np

from refinesam.errors import ConfigError

__all__ = [
    "CHANGE_THRESHOLD",
    "SIZES",
    "MeanIoU",
    "PairedChange",
    "Size",
    "bootstrap_interval",
    "mean_or_none",
    "paired_change",
    "size_of",
]

Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = get_args(Size)
# COCO's edges, in pixels of mask area.
SMALL_BELOW, MEDIUM_BELOW = 32**2, 96**2

# A change of an object's IoU up to this counts as none.
CHANGE_THRESHOLD = 0.01

# Random numbers drawn at a time, which bounds the memory that the bootstrap takes.
DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class MeanIoU:
    """Mean IoU over objects, every object counting the same; None where there is none to average.

    Attributes:
        objects: how many objects.
        miou: of the mask chosen by predicted IoU.
        miou_oracle: of the best of the model's masks, as if the choice were always right.
        miou_refined: of the mask after Adaptive Mask Refinement; None without it.
    """

    objects: int
    miou: float | None
    miou_oracle: float | None
    miou_refined: float | None


@dataclass(frozen=True)
class PairedChange:
    """How IoU changed from one mask to another of the same objects.

    Attributes:
        mean: mean of after - before over objects.
        interval: its 95 % interval, see `bootstrap_interval`; None for fewer than two images.
        helped: share of objects whose IoU rose by more than `CHANGE_THRESHOLD`.
        hurt: share of objects whose IoU fell by more than `CHANGE_THRESHOLD`.
        unchanged: share of the others.
    """

    mean: float
    interval: tuple[float, float] | None
    helped: float
    hurt: float
    unchanged: float


def size_of(area: float) -> Size:
    """Return COCO's size of an object: small below 32^2 pixels, large from 96^2 on, medium between.

    >>> size_of(1023), size_of(1024), size_of(9216)
    ('small', 'medium', 'large')
    """
    if area < SMALL_BELOW:
        return "small"
    return "medium" if area < MEDIUM_BELOW else "large"


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing: JSON has no NaN."""
    return fmean(values) if values else None


def bootstrap_interval(
    values_by_image: Sequence[Sequence[float]], *, confidence: float = 0.95, resamples: int = 5_000, seed: int = 0
) -> tuple[float, float] | None:
    """Return the percentile bootstrap interval of a mean over objects, resampled by image (Efron 1979).

    Objects of one image are alike, so whole images are drawn with replacement; drawing objects would give an interval
    too narrow. For differences of two methods on the same objects this is the paired bootstrap.

    Args:
        values_by_image: one sequence of values per image; images without values are left out.
        confidence: between 0 and 1.
        resamples: how often the images are drawn, at least 1.
        seed: of the draws, so that the same values always give the same interval.

    Returns:
        Lower and upper end, or None for fewer than two images: they say nothing about how images differ.

    Raises:
        ConfigError: confidence or resamples out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ConfigError(
            f"confidence is {confidence} and resamples is {resamples}; give a confidence between 0 and 1 and at "
            "least 1 resample."
        )
    images = [np.asarray(values, np.float64) for values in values_by_image if len(values)]
    if len(images) < 2:
        return None
    sums = np.array([values.sum() for values in images])
    counts = np.array([len(values) for values in images])
    rng = np.random.default_rng(seed)
    rows = max(1, DRAWS_AT_ONCE // len(images))
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(len(images), size=(min(rows, resamples - start), len(images)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail]).tolist()
    return low, high


def paired_change(changes_by_image: Mapping[int, Sequence[float]], *, seed: int = 0) -> PairedChange | None:
    """Summarise changes of IoU, after - before, given by image; None when there are none."""
    changes = [change for image in changes_by_image.values() for change in image]
    if not changes:
        return None
    helped = sum(change > CHANGE_THRESHOLD for change in changes)
    hurt = sum(change < -CHANGE_THRESHOLD for change in changes)
    return PairedChange(
        mean=math.fsum(changes) / len(changes),
        interval=bootstrap_interval(list(changes_by_image.values()), seed=seed),
        helped=helped / len(changes),
        hurt=hurt / len(changes),
        unchanged=(len(changes) - helped - hurt) / len(changes),
    )
