"""SA-1B as it is published: beside every image `sa_N.jpg` its masks in `sa_N.json`, in folders or in tar shards.

Shards are never unpacked, and may be remote: see `refinesam.training.sources.shards`, and
`refinesam.training.sources.source` on reading at random.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from refinesam.errors import DatasetError
from refinesam.evaluation.json_fields import bbox_of, field_of, is_number, object_at
from refinesam.images import read_image
from refinesam.rle import shown
from refinesam.training.sources.image_files import files_below, read_image_at
from refinesam.training.sources.shards import SHARD_LIST, is_remote, listed_shards, read_part, shard_members
from refinesam.training.sources.source import AnnotatedImage, AnnotatedObject, check_size

__all__ = ["HELD_OUT", "LARGEST_MASK", "Pairs", "Sa1bSource", "find_pairs", "held_out"]

# SA-1B has no validation split: this share of the images, by their names, is never trained on.
HELD_OUT = 0.01
# SAM was not trained on masks that cover more of their image than this (Kirillov et al. 2023).
LARGEST_MASK = 0.9
IMAGE, ANNOTATIONS = ".jpg", ".json"
EXAMPLES_IN_A_MESSAGE = 3


@dataclass(frozen=True, eq=False)
class Pairs:
    """N images with a file of annotations each, not yet read.

    In few large arrays, about 45 bytes an image of a shard: SA-1B has 11 million. Forked worker processes share them.

    Attributes:
        containers: the folders, or the paths or URLs of the shards, that hold them.
        stems: (N,) bytes, names inside the container, without suffix.
        container: (N,) int32, indices of `containers`.
        place: (N, 4) int64, the image's offset and size in its shard, then the annotations', in bytes; None for files.
    """

    containers: tuple[str, ...]
    stems: NDArray[np.bytes_]
    container: NDArray[np.int32]
    place: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.stems)

    def chosen(self, which: NDArray[np.bool_]) -> Pairs:
        """Return the pairs where `which` (N,) is True."""
        place = None if self.place is None else self.place[which]
        return replace(self, stems=self.stems[which], container=self.container[which], place=place)


class Sa1bSource:
    """One split of a folder in SA-1B's layout.

    An image's annotations are read and checked when it is read itself. Masks that cover more than `LARGEST_MASK` of
    their image are left out.
    """

    def __init__(self, name: str, folder: Path, pairs: Pairs, left_out: Sequence[str] = ()) -> None:
        """Take pairs over.

        Args:
            name: of the source, for messages.
            folder: of the source.
            pairs: found in it, of one split.
            left_out: as in `refinesam.training.sources.source.Source`.
        """
        self.source_name, self.folder, self.pairs, self.left_out = name, folder, pairs, tuple(left_out)

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Name an image, for messages."""
        container, stem = self._where(index)
        if is_remote(container):
            return f"{container}/{stem}{IMAGE}"
        return (self.source_name / Path(container).relative_to(self.folder) / f"{stem}{IMAGE}").as_posix()

    def read(self, index: int) -> AnnotatedImage:
        """Read an image.

        Raises:
            ImageError: it cannot be read.
            DatasetError: its annotations cannot be read, break the format, or are for another image.
        """
        container, stem = self._where(index)
        where = f"{container}/{stem}{ANNOTATIONS}"
        height, width, objects = _annotations(self._json(index, container, stem, where), where, stem)
        if self.pairs.place is None:
            pixels = read_image(f"{container}/{stem}{IMAGE}")
        else:
            offset, size = self.pairs.place[index, :2].tolist()
            pixels = read_image_at(container, offset, size, f"{container}/{stem}{IMAGE}")
        check_size(pixels, height, width, f"{container}/{stem}{IMAGE}")
        return AnnotatedImage(pixels, objects)

    def _where(self, index: int) -> tuple[str, str]:
        """Return an image's container and its name in there, without suffix."""
        return self.pairs.containers[self.pairs.container[index]], os.fsdecode(bytes(self.pairs.stems[index]))

    def _json(self, index: int, container: str, stem: str, where: str) -> object:
        try:
            if self.pairs.place is None:
                content = Path(f"{container}/{stem}{ANNOTATIONS}").read_bytes()
            else:
                content = read_part(container, *self.pairs.place[index, 2:].tolist())
            loaded: object = json.loads(content)
            return loaded
        except OSError as error:
            raise DatasetError(f"{where} cannot be read: {error}. Copy it again.") from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where} is not JSON: {error}. Copy it again.") from error


def _annotations(content: object, where: str, stem: str) -> tuple[int, int, list[AnnotatedObject]]:
    """Check one image's annotations; returns its height, width and objects."""
    image = field_of(content, "image", dict, where)
    height, width = (field_of(image, key, int, f"{where}: image") for key in ("height", "width"))
    if height < 1 or width < 1:
        raise DatasetError(f"{where}: image has height {height} and width {width}; both must be at least 1.")
    expected, given = f"{PurePosixPath(stem).name}{IMAGE}", field_of(image, "file_name", str, f"{where}: image")
    if PurePosixPath(given).name != expected:
        raise DatasetError(
            f"{where}: image.file_name is {shown(given)}, but {expected} lies beside it: put back its own annotations."
        )
    objects = []
    for index, raw in enumerate(field_of(content, "annotations", list, where)):
        place = f"{where}: annotations[{index}]"
        annotated = AnnotatedObject(field_of(raw, "segmentation", dict, place), bbox_of(raw, place))
        area = object_at(raw, place).get("area")
        if not is_number(area) or area < 0:
            raise DatasetError(f"{place}.area must be a finite number of pixels, 0 or more, got {shown(area)}.")
        if area <= LARGEST_MASK * height * width:
            objects.append(annotated)
    return height, width, objects


def find_pairs(folder: Path) -> tuple[Pairs, list[str]]:
    """Find SA-1B's pairs in a folder, at any depth: as files, or in tar shards, there or listed.

    Images without annotations, annotations without image, and what lies beyond a break of a shard are left out.

    Returns:
        The pairs by container and name, and a text for each kind of thing that was left out.

    Raises:
        DatasetError: there are files as well as shards, which could be the same images twice; or a list of shards, an
            index or what opens a remote shard is amiss.
    """
    # Of each shard its path or URL, and its name for messages.
    listing, shards, damaged = _Listing(), list[tuple[str, str]](), list[str]()
    for parent, paths in itertools.groupby(files_below(folder), key=attrgetter("parent")):
        names = [path.name for path in paths]
        local = [parent / name for name in names if name.lower().endswith(".tar")]
        shards += [(str(shard), shard.relative_to(folder).as_posix()) for shard in local]
        shards += [(url, url) for url in (listed_shards(parent / SHARD_LIST) if SHARD_LIST in names else ())]
        listing.add(str(parent), dict.fromkeys(names, (0, 0)))
    if not shards:
        return listing.pairs(with_places=False), listing.left_out()
    if listing.containers:
        raise DatasetError(
            f"{folder} holds images of SA-1B as files, in {listing.containers[0]}, and tar shards, such as "
            f"{shards[0][0]}: move one kind elsewhere, or each into a source of its own."
        )
    listing = _Listing()
    for shard, name in shards:
        members = shard_members(shard, name, damaged)
        listing.add(shard, {member: (offset, size) for member, offset, size in members})
    return listing.pairs(with_places=True), damaged + listing.left_out()


class _Listing:
    """Gathers pairs, container by container."""

    def __init__(self) -> None:
        self.containers: list[str] = []
        self._stems: list[NDArray[np.bytes_]] = [np.empty(0, "S1")]
        self._places: list[NDArray[np.int64]] = [np.empty((0, 4), np.int64)]
        self._alone: list[str] = []
        self._alone_count = 0

    def add(self, container: str, files: Mapping[str, tuple[int, int]]) -> None:
        """Take the pairs among a container's files, given by name with offset and size."""
        named = [name for name in files if name.rpartition("/")[2].startswith("sa_")]
        images, annotations = (
            {name.removesuffix(suffix) for name in named if name.endswith(suffix)} for suffix in (IMAGE, ANNOTATIONS)
        )
        self._alone_count += len(images ^ annotations)
        self._alone += [f"{container}/{stem}" for stem in sorted(images ^ annotations)[:EXAMPLES_IN_A_MESSAGE]]
        if stems := sorted(images & annotations):
            self.containers.append(container)
            self._stems.append(np.array([os.fsencode(stem) for stem in stems]))
            places = [files[stem + IMAGE] + files[stem + ANNOTATIONS] for stem in stems]
            self._places.append(np.array(places, np.int64))

    def pairs(self, with_places: bool) -> Pairs:
        """Return all pairs."""
        numbers = np.arange(len(self.containers), dtype=np.int32)
        container = np.repeat(numbers, [len(stems) for stems in self._stems[1:]])
        places = np.concatenate(self._places) if with_places else None
        return Pairs(tuple(self.containers), np.concatenate(self._stems), container, places)

    def left_out(self) -> list[str]:
        """Return a text about images and annotations that lack each other, if there are any."""
        if not self._alone:
            return []
        some = ", ".join(self._alone[:EXAMPLES_IN_A_MESSAGE])
        return [f"{self._alone_count} images or annotations that lack the other, such as {some}"]


def held_out(stems: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    """Return which images are for validation alone: about `HELD_OUT` of them, by a digest of their names.

    Of two or more names at least one is held out, and one is not. But for that a name is judged alone, so that images
    that are added later move none across.

    Args:
        stems: (N,) bytes, names without suffix; folders in them don't count.

    Returns:
        (N,) bool.
    """
    names = (stem.rpartition(b"/")[2] for stem in stems)
    digests = (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) for name in names)
    values = np.fromiter(digests, np.uint64, len(stems))
    distinct = np.unique(values)
    if len(distinct) < 2:
        return np.zeros(len(stems), np.bool_)
    share = int(np.searchsorted(distinct, np.uint64(HELD_OUT * 2**64)))
    return np.asarray(values < distinct[min(max(share, 1), len(distinct) - 1)])
