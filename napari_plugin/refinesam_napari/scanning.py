"""Which objects an array of labels holds already, and where (numpy and scipy only)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from refinesam_napari.geometry import FREE, Plane

__all__ = ["Box", "Objects", "objects_in"]

Box = tuple[slice, ...]
Objects = dict[int, tuple[Box, list[Plane]]]
# Pixels read at once.
MOST_READ = 2**22
# Up to here a table with a row for every number from 1 is smaller than what sorting the pixels needs.
MOST_NUMBERS = 1_000_000


def objects_in(
    labels: Any,
    axes: tuple[int, int],
    channel_axis: int | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Objects:
    """Find the objects of labels, reading a plane, or a part of a large one, at a time.

    Args:
        labels: integers, anything that is sliced like a numpy array; 0 and negative numbers are no objects.
        axes: the data axes that run down and across.
        channel_axis: the one of size 1 that objects have no place on, or None.
        on_progress: called with how many parts were read, and how many there are; what it raises ends the search.

    Returns:
        By id: the box around all its pixels, and the planes in which it has some.
    """
    objects: Objects = {}
    height, width = (labels.shape[axis] for axis in axes)
    most = max(1, MOST_READ // max(width, 1))
    parts = [slice(row, min(row + most, height)) for row in range(0, height, most)]
    planes = list(_planes(labels.shape, axes, channel_axis))
    for done, (plane, part) in enumerate(product(planes, parts)):
        on_progress(done, len(planes) * len(parts))
        key = plane.key(part, slice(0, width))
        section = np.asarray(labels[key])
        for object_id, (rows, columns) in _boxes(section.T if plane.transposed else section):
            place: list[slice] = [slice(k, k + 1) if isinstance(k, int) else k for k in key]
            place[axes[0]], place[axes[1]] = slice(rows.start + part.start, rows.stop + part.start), columns
            box, where = objects.get(object_id, (tuple(place), []))
            united = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, place, strict=True))
            if plane not in where[-1:]:
                where.append(plane)
            objects[object_id] = tuple(united), where
    return objects


def _planes(shape: tuple[int, ...], axes: tuple[int, int], channel_axis: int | None) -> Iterator[Plane]:
    free = {*axes, channel_axis}
    for position in np.ndindex(*(1 if axis in free else size for axis, size in enumerate(shape))):
        yield Plane(axes, tuple(FREE if axis in free else index for axis, index in enumerate(position)))


def _boxes(section: NDArray[Any]) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Find the boxes of the numbers above 0 in a plane."""
    if not section.size or (highest := int(section.max())) < 1:
        return
    numbers: NDArray[Any] | range = range(highest + 1)
    if highest > MOST_NUMBERS:
        numbers, inverse = np.unique(section, return_inverse=True)
        section = inverse.reshape(section.shape).astype(np.int32) + 1
        numbers = np.concatenate([[0], numbers])
    elif section.min() < 0:
        section = np.maximum(section, 0)
    for index, box in enumerate(ndimage.find_objects(section), start=1):
        if box is not None and int(numbers[index]) > 0:
            yield int(numbers[index]), box
