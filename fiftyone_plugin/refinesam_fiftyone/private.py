"""What the plugin needs of FiftyOne that FiftyOne's public face lacks; no other module uses a private name of it.

Each function says why. FiftyOne may rename such a part in any release, which is then told as `FiftyOneVersionError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import fiftyone as fo
from bson import json_util
from fiftyone.core.collections import SampleCollection
from fiftyone.core.video import FramesView

from refinesam import RefineSAMError

if TYPE_CHECKING:
    from pymongo.collection import Collection

__all__ = [
    "FiftyOneVersionError",
    "add_fields",
    "all_frames",
    "backing_dataset",
    "documents_of",
    "id_of",
    "is_patches",
    "root_dataset",
    "source_of",
    "stages_of",
    "view_of_stages",
    "write_to_videos",
]


class FiftyOneVersionError(RefineSAMError, ImportError):
    """The FiftyOne that is installed lacks a private part that the plugin needs."""

    def __init__(self, name: str) -> None:
        """Name the part."""
        super().__init__(
            f"FiftyOne {fo.__version__} has no {name}, which this refinesam needs: install a FiftyOne of the version "
            'that refinesam was made for (pip install "fiftyone==1.22.*"), or a newer refinesam.'
        )
        self.name = name


def root_dataset(samples: SampleCollection) -> fo.Dataset:
    """Return the dataset that a collection is derived from: of frames and patches, too, that of their samples.

    Publicly a view has the name of its dataset alone, and of frames and patches that is a generated one.
    """
    return _part(samples, "_root_dataset")


def backing_dataset(samples: SampleCollection) -> fo.Dataset:
    """Return the dataset whose documents a collection reads: of frames, the one that was generated for their view.

    Fields that a run adds to the videos' frames must be declared there, too.
    """
    return _part(samples, "_dataset")


def is_patches(samples: SampleCollection) -> bool:
    """Whether a collection is of patches; FiftyOne has several classes of them."""
    return bool(_part(samples, "_is_patches"))


def source_of(patches: SampleCollection) -> SampleCollection:
    """Return the samples or frames that patches were cut from."""
    return _part(patches, "_source_collection")


def stages_of(view: fo.DatasetView) -> str:
    """Return what a view is made of, as JSON; a view has no public form that another process could read."""
    return str(json_util.dumps(_part(view, "_serialize")(include_uuids=False)))


def view_of_stages(dataset: fo.Dataset, stages: str) -> fo.DatasetView:
    """Return the view of a dataset that `stages_of` described."""
    view: fo.DatasetView = _part(fo.DatasetView, "_build")(dataset, json_util.loads(stages))
    return view


def all_frames(frames: FramesView) -> FramesView:
    """Return a view of frames without its stages: every frame of its dataset, from which it can select again."""
    return _part(frames, "_base_view")


def documents_of(dataset: fo.Dataset, *, frames: bool = False) -> Collection[Mapping[str, Any]]:
    """Return MongoDB's collection of a dataset's samples, or of its videos' frames, of all slices of groups.

    FiftyOne writes field by field; a run writes all fields of a sample at once, and only if nobody else changed it.
    """
    collection: Collection[Mapping[str, Any]] = _part(dataset, "_frame_collection" if frames else "_sample_collection")
    return collection


def add_fields(dataset: fo.Dataset, fields: Mapping[str, fo.Field], *, frames: bool = False) -> None:
    """Add fields and attributes, path -> field, to a dataset's samples or to its videos' frames, all at once.

    One by one, as `add_sample_field` does it, each takes a tenth of a second.
    """
    _part(dataset, "_merge_frame_field_schema" if frames else "_merge_sample_field_schema")(dict(fields))


def id_of(dataset: fo.Dataset) -> str:
    """Return a dataset's id, which a renamed dataset keeps and a clone does not have."""
    return str(_part(dataset, "_doc").id)


def write_to_videos(frames: FramesView, names: Iterable[str], ids: Sequence[str]) -> None:
    """Copy fields of some frames, which were written past FiftyOne, from a view's dataset to the videos.

    `FramesView.save` would copy those of all frames.
    """
    _part(frames, "_sync_source")(fields=list(names), ids=list(ids))


def _part(owner: object, name: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise FiftyOneVersionError(f"{type(owner).__name__}.{name}") from error
