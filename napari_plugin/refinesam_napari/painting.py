"""What a stroke in the labels did to which objects, plane by plane (numpy only)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refinesam_napari.document import Correction, Write
from refinesam_napari.geometry import FREE, Crop, Plane, PlaneMask

__all__ = ["corrections_of"]


def corrections_of(
    writes: Sequence[Write], axes: tuple[int, int], channel_axis: int | None
) -> dict[tuple[int, Plane], Correction]:
    """Return what a stroke added to objects and erased from them.

    Args:
        writes: of one stroke, in order; dabs of a brush overlap.
        axes: the data axes that run down and across.
        channel_axis: the one that objects don't have a place on, or None.

    Returns:
        By object id and plane; only what the stroke changed from its first dab to its last.
    """
    corrections: dict[tuple[int, Plane], Correction] = {}
    parts: dict[Plane, list[tuple[slice, slice, Write, tuple[int | slice, ...]]]] = {}
    for write in writes:
        for plane, local in _planes_of(write, axes, channel_axis):
            parts.setdefault(plane, []).append((write.key[axes[0]], write.key[axes[1]], write, local))
    for plane, touching in parts.items():
        y0, x0 = min(rows.start for rows, *_ in touching), min(columns.start for _, columns, *_ in touching)
        y1, x1 = max(rows.stop for rows, *_ in touching), max(columns.stop for _, columns, *_ in touching)
        before = np.zeros((y1 - y0, x1 - x0), touching[0][2].old.dtype)
        after, touched = before.copy(), np.zeros(before.shape, np.bool_)
        for rows, columns, write, local in touching:
            window = slice(rows.start - y0, rows.stop - y0), slice(columns.start - x0, columns.stop - x0)
            mask, old = _section(write.mask, local, plane), _section(write.old, local, plane)
            new = write.new if isinstance(write.new, int) else _section(write.new, local, plane)
            np.copyto(before[window], old, where=mask & ~touched[window])
            np.copyto(after[window], new, where=mask, casting="unsafe")
            touched[window] |= mask
        crop, changed = Crop(x0, y0, x1, y1), touched & (before != after)
        for object_id in np.union1d(before[changed], after[changed]).tolist():
            if object_id:
                added, erased = changed & (after == object_id), changed & (before == object_id)
                corrections[object_id, plane] = Correction(PlaneMask.of(added, crop), PlaneMask.of(erased, crop))
    return corrections


def _planes_of(
    write: Write, axes: tuple[int, int], channel_axis: int | None
) -> Iterator[tuple[Plane, tuple[int | slice, ...]]]:
    """The planes that a write touches, and where in its box they lie."""
    ranges = [
        [FREE] if axis in {*axes, channel_axis} else range(part.start, part.stop) for axis, part in enumerate(write.key)
    ]
    for position in product(*ranges):
        local = [
            slice(None) if axis in axes else 0 if index == FREE else index - part.start
            for axis, (index, part) in enumerate(zip(position, write.key, strict=True))
        ]
        yield Plane(axes, tuple(position)), tuple(local)


def _section(values: NDArray[Any], local: tuple[int | slice, ...], plane: Plane) -> NDArray[Any]:
    section = values[local]
    return section.T if plane.transposed else section
