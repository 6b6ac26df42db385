"""Views for pretraining: random resized crops, each a function of the seed and its number alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NotRequired, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from refinesam.errors import DatasetError, ImageError
from refinesam.training.batches import StepShares, iterating
from refinesam.training.pretrain.config import ViewSection
from refinesam.training.sources.image_files import ImageFiles

__all__ = ["View", "Views", "fixed_view_batches", "random_resized_crop", "view_batches", "view_key"]

# A file can be damaged: then another image is drawn, but not for ever.
MAX_DRAWS = 50
CROP_TRIES = 10


class View(TypedDict):
    """One view of one image, or a batch of them.

    image: (3, S, S) uint8. damaged: the images that could not be read and that this one stands in for, one a line.
    target: (N, D) float16, from a cache.
    """

    image: Tensor
    damaged: str
    target: NotRequired[Tensor]


class Targets(Protocol):
    """Stored targets of fixed views."""

    def target(self, pair: int, key: int) -> NDArray[np.float16]:
        """Return the target (N, D) of view number `pair`; DatasetError unless it was made from the pixels of `key`."""
        ...


class Views(Dataset[View]):
    """Views by number, endlessly: epoch number // len(images), and in it the images in that epoch's order."""

    def __init__(self, images: ImageFiles, config: ViewSection, size: int, seed: int) -> None:
        self.images, self.config, self.size, self.seed = images, config, size, seed
        self.targets: Targets | None = None
        self._order: tuple[int, NDArray[np.int64]] | None = None

    @property
    def pairs(self) -> int:
        """How many different views there are if they are fixed: `fixed_views` of every image, one after the other."""
        return len(self.images) * self.config.fixed_views

    def __getitem__(self, number: int) -> View:
        epoch, place = divmod(number, len(self.images))
        index = int(self._epoch_order(epoch)[place])
        damaged: list[str] = []
        rng = np.random.default_rng((self.seed, number, 1))
        for _ in range(MAX_DRAWS):
            try:
                view = self._view(index, epoch, number)
            except (ImageError, DatasetError) as error:
                damaged.append(f"{self.images[index].name}: {error}".replace("\n", " "))
                index = int(rng.integers(len(self.images)))
                continue
            view["damaged"] = "\n".join(damaged)
            return view
        raise DatasetError(f"{MAX_DRAWS} images in a row could not be used; the last: {damaged[-1]} Check the data.")

    def fixed(self, pair: int) -> NDArray[np.uint8]:
        """Return view number `pair` of the fixed ones: (S, S, 3) uint8.

        It depends on the image's name, not on its place: images may be added without changing the others' views.

        Raises:
            ImageError: the image cannot be read.
        """
        index, turn = divmod(pair, self.config.fixed_views)
        digest = hashlib.blake2b(self.images[index].name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return self._draw(index, np.random.default_rng((self.seed, turn, int.from_bytes(digest))))

    def _view(self, index: int, epoch: int, number: int) -> View:
        if not self.config.fixed_views:
            pixels = self._draw(index, np.random.default_rng((self.seed, number)))
            return View(image=_channels_first(pixels), damaged="")
        pair = index * self.config.fixed_views + epoch % self.config.fixed_views
        pixels = self.fixed(pair)
        view = View(image=_channels_first(pixels), damaged="")
        if self.targets is not None:
            view["target"] = torch.from_numpy(self.targets.target(pair, view_key(pixels)))
        return view

    def _draw(self, index: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        image = self.images.read(index)
        left, top, width, height = random_resized_crop(image.shape[:2], self.config, rng)
        # Pillow's bicubic filter, as MAE uses it: it averages where it shrinks.
        resized = Image.fromarray(image).resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
        )
        pixels = np.asarray(resized)
        return np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)

    def _epoch_order(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self.images.order(self.seed, epoch, self.config.shuffle_window))
        return self._order[1]


def random_resized_crop(
    image_hw: tuple[int, ...], config: ViewSection, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop: its area uniformly, its width : height log-uniformly, its place uniformly.

    Where none of ten draws fits into the image, it is the largest crop around the centre within the range of ratios.

    Returns:
        Left, top, width, height in pixels.
    """
    height, width = image_hw
    low, high = config.crop_ratio
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*config.crop_area)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if w <= width and h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = max(1, min(width, round(height * high)))
    h = max(1, min(height, round(width / low)))
    return (width - w) // 2, (height - h) // 2, w, h


def view_key(pixels: NDArray[np.uint8]) -> int:
    """Name a view by its content, pixel for pixel: 63 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(pixels.tobytes(), digest_size=8).digest()) % (2**63 - 1) + 1


@contextmanager
def view_batches(
    views: Views, steps: tuple[int, int], batch_size: int, part: int, rank: int, processes: int
) -> Iterator[Iterator[View]]:
    """Give one process's views of the steps [first, last), in parts; worker processes end with the block.

    Args:
        views: the data set.
        steps: first, and the one after the last.
        batch_size: of all processes.
        part: views that are given at a time; divides batch_size / processes.
        rank: of this process.
        processes: how many there are.
    """
    numbers = StepShares(range(*steps), batch_size, rank, processes)
    with iterating(DataLoader(views, part, sampler=numbers, num_workers=views.config.workers)) as parts:
        yield parts


class _FixedViews(Dataset[NDArray[np.uint8] | None]):
    def __init__(self, views: Views) -> None:
        self.views = views

    def __getitem__(self, pair: int) -> NDArray[np.uint8] | None:
        try:
            return self.views.fixed(pair)
        except ImageError:
            return None


@contextmanager
def fixed_view_batches(views: Views, batches: list[list[int]]) -> Iterator[Iterator[list[NDArray[np.uint8] | None]]]:
    """Give fixed views by their numbers, (S, S, 3) each, None for those that cannot be read."""
    workers = views.config.workers
    loader = DataLoader(_FixedViews(views), batch_sampler=batches, num_workers=workers, collate_fn=list)
    with iterating(loader) as parts:
        yield parts


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
