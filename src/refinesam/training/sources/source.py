"""A source of training data: annotated images by number, each read when it is asked for.

Reading is by number, not one after the other, also from shards: image i is then the same whatever was read before it,
so that a resumed run, or one with other worker processes, sees what it would have seen. Storage that is slow at that is
best copied from once, or cached.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from refinesam.errors import DatasetError
from refinesam.evaluation.dataset import CocoFolder
from refinesam.images import read_image

__all__ = ["AnnotatedImage", "AnnotatedObject", "CocoSource", "Source", "check_size"]


class AnnotatedObject(NamedTuple):
    """One object: its `segmentation` as polygons or RLE, not yet decoded, and `bbox_xywh` in pixels."""

    segmentation: object
    bbox_xywh: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image, (H, W, 3) uint8 RGB, and its objects."""

    pixels: NDArray[np.uint8]
    objects: Sequence[AnnotatedObject]


class Source(Protocol):
    """Annotated images by number, in an order that depends on the files alone.

    Attributes:
        left_out: what is not among the images although it is in the folder, and why, one text for each kind.
    """

    left_out: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Name an image, for messages."""
        ...

    def read(self, index: int) -> AnnotatedImage:
        """Read an image.

        Raises:
            ImageError: the image cannot be read.
            DatasetError: its annotations cannot be read, or are for an image of another size.
        """
        ...


# An image's path, height and width, and the segmentation and box of each object.
Record = tuple[Path, int, int, tuple[tuple[object, tuple[float, float, float, float]], ...]]


class CocoSource:
    """The images of one annotation file in COCO's format; crowd regions and images of nothing else are left out."""

    def __init__(self, name: str, folder: CocoFolder) -> None:
        """Pack the annotations.

        Args:
            name: of the source, for messages.
            folder: its images.
        """
        self.source_name = name
        self.left_out: tuple[str, ...] = ()
        # In two large objects: the millions of small ones that annotations are would be copied into every worker
        # process, one touch at a time.
        packed = [
            pickle.dumps(
                (image.path, image.height, image.width, tuple((o.segmentation, o.bbox_xywh) for o in image.objects))
            )
            for image in folder.without_crowds().images
        ]
        self._records = b"".join(packed)
        self._ends = np.cumsum([len(record) for record in packed], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def name(self, index: int) -> str:
        """Name an image, for messages."""
        return f"{self.source_name}/{self._record(index)[0].name}"

    def read(self, index: int) -> AnnotatedImage:
        """Read an image.

        Raises:
            ImageError: it cannot be read.
            DatasetError: its size is not that of its annotations.
        """
        path, height, width, objects = self._record(index)
        pixels = read_image(path)
        check_size(pixels, height, width, str(path))
        return AnnotatedImage(pixels, [AnnotatedObject(*fields) for fields in objects])

    def _record(self, index: int) -> Record:
        """Return an image's path, height, width, and its objects' fields."""
        start = self._ends[index - 1] if index else 0
        record: Record = pickle.loads(memoryview(self._records)[start : self._ends[index]])
        return record


def check_size(pixels: NDArray[np.uint8], height: int, width: int, name: str) -> None:
    """Raise DatasetError unless an image (H, W, 3) has the size of its annotations, which else would lie elsewhere."""
    if pixels.shape[:2] != (height, width):
        raise DatasetError(
            f"{name} is {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height), its annotations are for "
            f"{width} x {height}. Put back the file that was annotated."
        )
