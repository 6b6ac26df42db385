"""Images to pretrain on, without labels: folders of any depth, and tar shards as WebDataset writes them.

Shards are read at random, see `refinesam.training.sources.shards`: an order of images is a function of seed and epoch
alone, so that a resumed run, and any number of processes, see what one uninterrupted process sees.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refinesam.errors import DatasetError, ImageError
from refinesam.images import read_image
from refinesam.training.sources.shards import SHARD_LIST, listed_shards, read_part, shard_members

__all__ = [
    "ImageFile",
    "ImageFiles",
    "files_below",
    "find_images",
    "read_image_at",
]

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif"}
)
EXAMPLES_IN_A_MESSAGE = 3


class ImageFile(NamedTuple):
    """One image, not yet read.

    name: below the data folder, with the name inside its shard. path: of the file or its shard. offset, size: of the
    image in the shard, in bytes; size -1 for a file of its own.
    """

    name: str
    path: str
    offset: int = 0
    size: int = -1


class ImageFiles(Sequence[ImageFile]):
    """The images of a data folder, in an order that depends on their names alone.

    Attributes:
        damaged_shards: why a shard could not be read, or not to its end; its other images are there.
    """

    def __init__(self, images: Sequence[ImageFile], damaged_shards: Sequence[str]) -> None:
        self.damaged_shards = tuple(damaged_shards)
        # In few large objects: millions of small ones would be copied into every worker process, one touch at a time.
        texts = [os.fsencode(f"{image.name}\0{image.path}") for image in images]
        self._text = b"".join(texts)
        self._ends = np.cumsum([len(text) for text in texts])
        self._place = np.array([(image.offset, image.size) for image in images], np.int64)
        # Images of one shard share a group; files on their own are a group each.
        groups: dict[str, int] = {}
        self._group = np.array([groups.setdefault(image.path, len(groups)) for image in images], np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ImageFile:  # type: ignore[override]  # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self._ends[index - 1] if index else 0
        name, path = os.fsdecode(self._text[start : self._ends[index]]).split("\0")
        offset, size = self._place[index].tolist()
        return ImageFile(name, path, offset, size)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Read an image, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it is damaged, or not there any more.
        """
        image = self[index]
        if image.size < 0:
            return read_image(image.path)
        return read_image_at(image.path, image.offset, image.size, image.name)

    def order(self, seed: int, epoch: int, window: int) -> NDArray[np.int64]:
        """Return the order in which an epoch takes the images: every index once.

        Files on their own are shuffled fully. Shards are shuffled, then the images among each `window` neighbours, so
        that reading stays mostly within a few shards.
        """
        rng = np.random.default_rng((seed, epoch))
        groups = int(self._group.max()) + 1
        by_group = np.argsort(rng.permutation(groups)[self._group], kind="stable")
        if groups == len(self):
            return by_group
        count = len(self)
        return by_group[np.lexsort((rng.random(count), np.arange(count) // window))]


def find_images(root: Path, folders: Sequence[str]) -> ImageFiles:
    """Find the images and tar shards in folders below a root, at any depth, known by their suffix, or listed.

    Hidden files and folders are left out, and links to folders are not followed.

    Args:
        root: the data folder.
        folders: below it; none means the root itself.

    Raises:
        DatasetError: a folder is missing, or holds no image.
    """
    images: dict[str, ImageFile] = {}  # by name: folders may overlap
    damaged: list[str] = []
    for folder in [root / name for name in folders] or [root]:
        below: list[ImageFile] = []
        if not folder.is_dir():
            raise DatasetError(
                f"There is no folder {folder}. Give the folder of the images, and data.folders below it."
            )
        for path in files_below(folder):
            name = path.relative_to(root).as_posix()
            if path.suffix.lower() == ".tar":
                below.extend(_members(str(path), name, damaged))
            elif path.name == SHARD_LIST:
                for url in listed_shards(path):
                    below.extend(_members(url, url, damaged))
            elif path.suffix.lower() in SUFFIXES:
                below.append(ImageFile(name, str(path)))
        if not below:
            shards = f" Shards that could not be read: {'; '.join(damaged[:EXAMPLES_IN_A_MESSAGE])}." if damaged else ""
            raise DatasetError(
                f"{folder} holds no image, at no depth.{shards} Images end in {', '.join(sorted(SUFFIXES))}; shards in "
                f".tar, uncompressed; remote ones are listed in {SHARD_LIST}."
            )
        images |= {image.name: image for image in below}
    return ImageFiles(list(images.values()), damaged)


def files_below(folder: Path) -> Iterator[Path]:
    """Give the files of a folder at any depth, in the order of their names; nothing hidden, and no links to folders."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def read_image_at(path: str, offset: int, size: int, name: str) -> NDArray[np.uint8]:
    """Read an image inside a shard, (H, W, 3) uint8 RGB.

    Args:
        path: of the shard, or its URL.
        offset: of the image in it, in bytes.
        size: of the image, in bytes.
        name: of the image, for messages.

    Raises:
        ImageError: it is damaged, or the shard is not there any more.
    """
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(read_part(path, offset, size))
            file.flush()
            return read_image(file.name)
    except OSError as error:
        raise ImageError(f"The shard of {name} cannot be read: {error}. Copy it again.") from error
    except ImageError as error:
        reason = str(error.__cause__ or "it is empty").rstrip(".")
        raise ImageError(f"{name} cannot be read: {reason}.") from error


def _members(shard: str, name: str, damaged: list[str]) -> Iterator[ImageFile]:
    """Give the images of a shard; one that breaks off keeps those before the break."""
    for member, offset, size in shard_members(shard, name, damaged):
        if os.path.splitext(member)[1].lower() in SUFFIXES:
            yield ImageFile(f"{name}/{member}", shard, offset, size)
