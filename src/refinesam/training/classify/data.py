"""Labelled images: folders of classes, annotated objects, or whole sources as classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from refinesam.errors import DatasetError, ImageError
from refinesam.evaluation.dataset import CocoFolder, read_coco_folder
from refinesam.images import read_image
from refinesam.training.classify.config import LabelledSection
from refinesam.training.pretrain.config import ViewSection
from refinesam.training.pretrain.data import random_resized_crop
from refinesam.training.sources.image_files import find_images

__all__ = ["DAMAGED", "Labelled", "LabelledImages", "image_batches", "read_labelled"]

# Label of an image that could not be read: it is neither trained on nor counted.
DAMAGED = -1
# What a crop shows around an object, as a share of its longer side.
MARGIN = 0.1


@dataclass(frozen=True)
class Labelled:
    """One image, or the crop around one object of it.

    Attributes:
        path: of the image.
        label: number of its class.
        bbox_xywh: of the object, in pixels; None for the whole image.
    """

    path: Path
    label: int
    bbox_xywh: tuple[float, float, float, float] | None = None


def read_labelled(
    root: Path, config: LabelledSection
) -> tuple[tuple[str, ...], dict[Literal["train", "val"], list[Labelled]]]:
    """Find the labelled images of both splits.

    Returns:
        The classes' names, in the order of their labels: those that "train" has, sorted. And the images.

    Raises:
        DatasetError: a folder or file is missing or malformed, a split is empty, or "val" has a class of its own.
    """
    named = {split: _named(root, config, split) for split in ("train", "val")}
    classes = tuple(sorted({name for name, _ in named["train"]}))
    if alien := sorted({name for name, _ in named["val"]} - set(classes)):
        raise DatasetError(f"The validation images of {', '.join(alien[:3])} have no training image; leave them out.")
    if len(classes) < 2:
        raise DatasetError(f"{root} has the classes {', '.join(classes) or 'none'}; two or more are needed.")
    number = {name: label for label, name in enumerate(classes)}
    train, val = (
        [Labelled(image.path, number[name], image.bbox_xywh) for name, image in named[split]]
        for split in ("train", "val")
    )
    return classes, {"train": train, "val": val}


def _named(root: Path, config: LabelledSection, split: str) -> list[tuple[str, Labelled]]:
    if config.kind == "folders":
        # The first part of the name below the split is the class.
        files = find_images(root / split, ())
        labelled = [(file.name.partition("/")[0], Labelled(Path(file.path), 0)) for file in files if "/" in file.name]
    else:
        if not config.sources:
            raise DatasetError(f"data.kind = {config.kind!r} needs data.sources, folders of {root}.")
        labelled = []
        for source in config.sources:
            folder = read_coco_folder(root / source / f"instances_{split}.json", root / source / "images")
            labelled.extend(
                _objects(folder.without_crowds())
                if config.kind == "objects"
                else ((source, Labelled(image.path, 0)) for image in folder.images)
            )
    if not labelled:
        raise DatasetError(f"{root} has no labelled {split} image of the kind {config.kind!r}.")
    return labelled


def _objects(folder: CocoFolder) -> Iterator[tuple[str, Labelled]]:
    names: Mapping[int, str] = folder.categories
    for image in folder.images:
        for its in image.objects:
            if min(its.bbox_xywh[2:]) >= 1:
                yield names.get(its.category_id, str(its.category_id)), Labelled(image.path, 0, its.bbox_xywh)


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Images as (3, S, S) uint8 with their labels, whole or randomly cropped.

    A damaged one is black and has the label `DAMAGED`.
    """

    def __init__(
        self, images: Sequence[Labelled], size: int, seed: int = 0, least_crop_area: float | None = None
    ) -> None:
        """Choose images and how they are seen.

        Args:
            images: the images.
            size: S, the side of the square that they are stretched to.
            seed: of the crops; another one gives others.
            least_crop_area: share of the area that a random crop has at least; None shows all of every image.
        """
        self.images, self.size, self.seed = images, size, seed
        self.crops = None if least_crop_area is None else ViewSection(crop_area=(least_crop_area, 1.0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        labelled = self.images[index]
        try:
            image = _shown(read_image(labelled.path), labelled.bbox_xywh)
        except ImageError:
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), DAMAGED
        height, width = image.shape[:2]
        box, mirrored = (0, 0, width, height), False
        if self.crops is not None:
            rng = np.random.default_rng((self.seed, index))
            x, y, w, h = random_resized_crop((height, width), self.crops, rng)
            box, mirrored = (x, y, x + w, y + h), bool(rng.random() < 0.5)
        pixels = np.asarray(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC, box=box))
        pixels = pixels[:, ::-1] if mirrored else pixels
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), labelled.label


def _shown(image: NDArray[np.uint8], bbox_xywh: tuple[float, float, float, float] | None) -> NDArray[np.uint8]:
    """Cut out a square around an object, as far as the image goes."""
    if bbox_xywh is None:
        return image
    x, y, w, h = bbox_xywh
    half = max(w, h) * (0.5 + MARGIN)
    left, right = (int(np.clip(edge, 0, image.shape[1])) for edge in (x + w / 2 - half, np.ceil(x + w / 2 + half)))
    top, bottom = (int(np.clip(edge, 0, image.shape[0])) for edge in (y + h / 2 - half, np.ceil(y + h / 2 + half)))
    if left >= right or top >= bottom:
        raise ImageError(f"The box {bbox_xywh} lies outside of its image. Correct the annotation.")
    return np.ascontiguousarray(image[top:bottom, left:right])


def image_batches(
    images: LabelledImages, batch_size: int, workers: int, order: Sequence[int] | None = None
) -> DataLoader[tuple[Tensor, int]]:
    """Give images and labels in batches, (B, 3, S, S) and (B,), in an order; none is the data set's own."""
    return DataLoader(images, batch_size, sampler=range(len(images)) if order is None else order, num_workers=workers)
