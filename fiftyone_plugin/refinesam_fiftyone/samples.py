"""Where a run's samples are kept: in a dataset, in the image slices of its groups, or as the frames of its videos.

FiftyOne keeps these differently. A dataset of groups shows one slice at a time, so all are reached through a flat view;
a view of frames is a dataset of its own, made for the view, whose fields must be written to the videos' frames as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import fiftyone as fo
from fiftyone.core.collections import SampleCollection
from fiftyone.core.video import FramesView

from refinesam import ConfigError, DatasetError

from .private import (
    add_fields,
    all_frames,
    backing_dataset,
    documents_of,
    is_patches,
    root_dataset,
    source_of,
    write_to_videos,
)

if TYPE_CHECKING:
    from pymongo.collection import Collection

    from .schema import FieldKind

__all__ = ["Place", "Target", "target_of"]


@dataclass(frozen=True)
class Place:
    """The fields of a dataset's samples, or of its videos' frames.

    Attributes:
        root: the dataset.
        frames: those of its videos' frames are meant.
    """

    root: fo.Dataset
    frames: bool = False

    def schema(self) -> dict[str, fo.Field]:
        """Return path -> field, of labels' attributes too."""
        if self.frames:
            return dict(self.root.get_frame_field_schema(flat=True) or {})
        return dict(self.root.get_field_schema(flat=True))

    def field(self, path: str) -> fo.Field | None:
        """Return a field or attribute, None if there is none."""
        return self.root.get_field(f"frames.{path}" if self.frames else path)

    def holds(self, paths: Iterable[str]) -> bool:
        """Return whether any document has a value at one of the paths, declared or not."""
        wanted = [{path: {"$exists": True}} for path in paths]
        return bool(wanted) and self.collection.find_one({"$or": wanted}, {"_id": True}) is not None

    @property
    def collection(self) -> Collection[Mapping[str, Any]]:
        """The documents in the database, of all slices of groups."""
        return documents_of(self.root, frames=self.frames)

    def texts(self, path: str, pattern: str) -> set[str]:
        """Return the texts at a path, of any document, that match a regular expression from their start on."""
        matching = self.collection.find({path: {"$regex": f"^{pattern}"}}, {path: True, "_id": False})
        return {text for document in matching for text in _texts(document) if re.match(pattern, text)}

    def declare(self, kinds: Mapping[str, FieldKind], infos: Mapping[str, Any]) -> None:
        """Add fields and attributes, path -> kind, each with an info."""
        _add(self.root, kinds, infos, frames=self.frames)

    def describe(self, infos: Mapping[str, Any]) -> None:
        """Give fields that are there an info."""
        for path, info in infos.items():
            field = self.root.get_field(f"frames.{path}" if self.frames else path)
            field.info = info
            field.save()

    def delete(self, paths: Sequence[str]) -> None:
        """Delete fields and attributes with their values."""
        if paths:
            (self.root.delete_frame_fields if self.frames else self.root.delete_sample_fields)(list(paths))

    def clear(self, names: Sequence[str]) -> None:
        """Set whole fields to None in every sample."""
        if names:
            (self.root.clear_frame_fields if self.frames else self.root.clear_sample_fields)(list(names))


@dataclass(frozen=True)
class Target(Place):
    """The samples that somebody asked for, and all those that are kept with them.

    Attributes:
        samples: all samples of the dataset, flat and unfiltered: what is read and written.
        asked: the collection that was asked for, its label filters too.
    """

    samples: SampleCollection = None
    asked: SampleCollection = None

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the samples that were asked for; of patches, those of the samples that they are cut from."""
        name = ("frame_id" if self.frames else "sample_id") if is_patches(self.asked) else "id"
        return list(dict.fromkeys(self.asked.values(name)))

    def select(self, ids: Sequence[str]) -> SampleCollection:
        """Return some samples, whole, in this order."""
        return self.samples.select(list(ids), ordered=True)

    def view(self) -> SampleCollection:
        """Return the samples that were asked for, whole."""
        return self.samples if self.asked is self.samples else self.select(self.ids)

    def set_values(self, name: str, values: Mapping[str, Any]) -> None:
        """Set a field of some samples, by their ids."""
        # Of frames, those of the view alone are written to the videos.
        where = self.samples.select(list(values)) if self.frames else self.samples
        where.set_values(name, dict(values), key_field="id")

    def written(self, names: Iterable[str], ids: Sequence[str]) -> None:
        """Say that fields of some samples were written past FiftyOne."""
        if self.frames and ids:
            write_to_videos(self.samples, names, ids)

    def field(self, path: str) -> fo.Field | None:
        """Return a field or attribute, None if there is none."""
        return self.samples.get_field(path)

    def declare(self, kinds: Mapping[str, FieldKind], infos: Mapping[str, Any]) -> None:
        """Add fields to the samples and, if they are frames, to the view's own dataset."""
        super().declare(kinds, infos)
        if self.frames:
            _add(backing_dataset(self.samples), kinds, infos)

    def delete(self, paths: Sequence[str]) -> None:
        """Delete fields and attributes with their values."""
        known = super().schema()
        super().delete([path for path in paths if path in known])
        if self.frames:
            generated = backing_dataset(self.samples)
            own = generated.get_field_schema(flat=True)
            if declared := [path for path in paths if path in own]:
                generated.delete_sample_fields(declared)

    def clear(self, names: Sequence[str]) -> None:
        """Set whole fields to None in every sample."""
        super().clear(names)
        if self.frames and names:
            backing_dataset(self.samples).clear_sample_fields(list(names))


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts inside documents and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _add(
    dataset: fo.Dataset, kinds: Mapping[str, FieldKind], infos: Mapping[str, Any], *, frames: bool = False
) -> None:
    labels = {p: fo.EmbeddedDocumentField(k, info=infos[p]) for p, k in kinds.items() if issubclass(k, fo.Label)}
    plain = {path: kind(info=infos[path]) for path, kind in kinds.items() if path not in labels}
    # What has attributes comes first.
    for fields in (labels, plain):
        if fields:
            add_fields(dataset, fields, frames=frames)


def target_of(samples: SampleCollection) -> Target:
    """Return the place of a collection's samples.

    Args:
        samples: a dataset or view of images, patches, groups (their image slices are meant) or frames.

    Raises:
        ConfigError: a collection of something else.
        DatasetError: groups without an image.
    """
    if not isinstance(samples, SampleCollection):
        raise ConfigError(f"Samples are needed, a FiftyOne dataset or view; got {type(samples).__name__}.")
    source = source_of(samples) if is_patches(samples) else samples
    root = root_dataset(samples)
    if isinstance(source, FramesView):
        return Target(root, True, all_frames(source), samples)
    if root.media_type == "group":
        if "image" not in root.group_media_types.values():
            raise DatasetError("None of the groups' slices has images: refinesam segments images.")
        flat = samples.select_group_slices(media_type="image") if samples.media_type == "group" else samples
        return Target(root, False, root.select_group_slices(media_type="image"), flat)
    return Target(root, False, root, samples)
