"""The masks of samples, read from the database in batches, each as the small part of the image that it covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
from numpy.typing import NDArray

from refinesam import ImageError

from .labels import placed_mask
from .samples import Target
from .schema import Failure

__all__ = ["Region", "StoredLabel", "StoredSample", "iou", "overlap", "read_samples", "region_of"]

_ATTRIBUTES = ("id", "label", "bounding_box", "mask", "mask_path", "empty", "prompt_id", "predicted_iou")


@dataclass(frozen=True, eq=False)
class Region:
    """A mask as the part of the image that it covers.

    Attributes:
        top: first row of the part.
        left: first column of the part.
        part: (h, w) bool, (0, 0) for an empty mask.
        area: pixels of the mask.
    """

    top: int
    left: int
    part: NDArray[np.bool_]
    area: int

    def frame(self, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask in the image's frame, (H, W) bool."""
        result = np.zeros(image_hw, np.bool_)
        result[self.top : self.top + self.part.shape[0], self.left : self.left + self.part.shape[1]] = self.part
        return result

    def covers(self, x: float, y: float) -> bool:
        """Whether the mask has the pixel that holds the point (x, y)."""
        row, column = int(np.floor(y)) - self.top, int(np.floor(x)) - self.left
        rows, columns = self.part.shape
        return 0 <= row < rows and 0 <= column < columns and bool(self.part[row, column])


def region_of(mask: NDArray[np.bool_]) -> Region:
    """Return a mask of the image, (H, W), as the part that it covers."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Region(0, 0, np.zeros((0, 0), np.bool_), 0)
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return Region(int(rows[0]), int(columns[0]), part, int(np.count_nonzero(part)))


def iou(a: Region, b: Region) -> float:
    """Return the intersection over union of two masks of one image, in its pixels; 0 where both are empty."""
    common = _common(a, b)
    union = a.area + b.area - common
    return common / union if union else 0.0


def overlap(a: Region, b: Region) -> float:
    """Return what share of the smaller one of two masks lies in the other; 0 where one is empty."""
    smaller = min(a.area, b.area)
    return _common(a, b) / smaller if smaller else 0.0


def _common(a: Region, b: Region) -> int:
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.part.shape[0], b.top + b.part.shape[0])
    right = min(a.left + a.part.shape[1], b.left + b.part.shape[1])
    if top < bottom and left < right:
        first = a.part[top - a.top : bottom - a.top, left - a.left : right - a.left]
        second = b.part[top - b.top : bottom - b.top, left - b.left : right - b.left]
        return int(np.count_nonzero(first & second))
    return 0


@dataclass(frozen=True, eq=False)
class StoredLabel:
    """One label of a Detections field.

    Attributes:
        position: of the label in its field.
        region: its mask; None if it has none, or none that can be read.
        problem: why the mask cannot be read, else None.
    """

    id: str
    position: int
    label: str | None
    bounding_box: Sequence[float]
    prompt_id: str | None
    predicted_iou: float | None
    region: Region | None
    problem: str | None = None


@dataclass(frozen=True, eq=False)
class StoredSample:
    """One sample's labels.

    Attributes:
        modified: when the sample was last written, as the database has it.
        image_hw: height and width in pixels; (0, 0) and no labels for a sample that cannot be read.
        failure: what is wrong with the whole sample and why, else None.
        labels: Detections field -> its labels.
        others: further path -> its value.
    """

    id: str
    filepath: str
    modified: datetime | None
    image_hw: tuple[int, int]
    failure: tuple[Failure, str] | None
    labels: Mapping[str, list[StoredLabel]]
    others: Mapping[str, Any] = field(default_factory=dict)


def read_samples(
    target: Target, ids: Sequence[str], fields: Sequence[str], *, others: Sequence[str] = (), batch_size: int = 32
) -> Iterator[list[StoredSample]]:
    """Yield samples in batches, with the labels and masks of some Detections fields; nothing else is loaded.

    Values are read instead of FiftyOne's own documents, which take ten times as long to make as masks to compare. A
    sample that the database cannot give back, such as one with a damaged mask in it, has a problem and no labels.
    """
    paths = ["id", "filepath", "last_modified_at", "metadata.width", "metadata.height", *others]
    for name in fields:
        paths += [p for a in _ATTRIBUTES if target.field(p := f"{name}.detections.{a}") is not None]
    for start in range(0, len(ids), batch_size):
        yield list(_read(target, ids[start : start + batch_size], fields, list(others), paths))


def _read(
    target: Target, ids: Sequence[str], fields: Sequence[str], others: Sequence[str], paths: Sequence[str]
) -> Iterator[StoredSample]:
    try:
        columns = target.select(ids).values(list(paths))
    except Exception as error:  # Whatever decoding a damaged document raises; the database's absence ends the next try.
        if len(ids) > 1:
            for sample_id in ids:
                yield from _read(target, [sample_id], fields, others, paths)
            return
        path = target.select(ids).values("filepath")[0]
        reason = f"The database cannot give the sample's labels back ({error}): compare again."
        yield StoredSample(ids[0], path, None, (0, 0), ("unreadable_mask", reason), {name: [] for name in fields})
        return
    for values in zip(*columns, strict=True):
        row = dict(zip(paths, values, strict=True))
        image_hw, failure = _size(row)
        labels = {name: [] if failure else _labels(row, name, image_hw) for name in fields}
        yield StoredSample(
            row["id"],
            row["filepath"],
            row["last_modified_at"],
            image_hw,
            failure,
            labels,
            {name: row[name] for name in others},
        )


def _size(row: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[Failure, str] | None]:
    height, width = row["metadata.height"], row["metadata.width"]
    if height and width:
        return (int(height), int(width)), None
    name = Path(row["filepath"]).name
    if not Path(row["filepath"]).is_file():
        return (0, 0), ("missing_file", f"There is no file {name}: restore it, or remove the sample.")
    try:
        metadata = fo.ImageMetadata.build_for(row["filepath"])
        return (int(metadata.height), int(metadata.width)), None
    except (OSError, ValueError, TypeError):
        return (0, 0), ("unreadable_image", f"The size of the image {name} cannot be read: restore the file.")


def _labels(row: Mapping[str, Any], name: str, image_hw: tuple[int, int]) -> list[StoredLabel]:
    columns = {attribute: row.get(f"{name}.detections.{attribute}") for attribute in _ATTRIBUTES}
    return [
        _label(position, {a: None if v is None else v[position] for a, v in columns.items()}, image_hw)
        for position in range(len(columns["id"] or ()))
    ]


def _label(position: int, values: Mapping[str, Any], image_hw: tuple[int, int]) -> StoredLabel:
    region, problem = None, None
    try:
        placed = placed_mask(
            values["bounding_box"] or (0.0, 0.0, 0.0, 0.0),
            image_hw,
            mask=values["mask"],
            mask_path=values["mask_path"],
            empty=bool(values["empty"]),
        )
        if placed is not None:
            region = Region(*placed, int(np.count_nonzero(placed[2])))
    except ImageError as error:
        problem = str(error)
    return StoredLabel(
        id=values["id"],
        position=position,
        label=values["label"],
        bounding_box=values["bounding_box"] or (0.0, 0.0, 0.0, 0.0),
        prompt_id=values["prompt_id"],
        predicted_iou=values["predicted_iou"],
        region=region,
        problem=problem,
    )
