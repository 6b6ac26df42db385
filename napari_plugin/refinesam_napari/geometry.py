"""Where things lie in an image of n dimensions: planes, crops of planes, and masks in them (numpy only).

Data coordinates are napari's: the centre of pixel i is at i. Inside a plane the core's convention holds: pixel (x, y)
with x across and y down, pixel (0, 0) covering [0, 1) x [0, 1). So x = column + 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FREE", "NO_MASK", "Crop", "Plane", "PlaneMask"]

# Stands in `Plane.position` for an axis on which the plane has no position.
FREE = -1


@dataclass(frozen=True, order=True)
class Plane:
    """A two-dimensional section of an image, as the viewer shows it.

    Attributes:
        axes: the data axes that run down and across.
        position: index on every data axis; `FREE` on the two of the plane and on the channel axis, since an object
            belongs to all channels.
    """

    axes: tuple[int, int]
    position: tuple[int, ...]

    def moved(self, axis: int, index: int) -> Plane:
        """Return the parallel plane at another index of one axis."""
        position = list(self.position)
        position[axis] = index
        return Plane(self.axes, tuple(position))

    def to_plane(self, point: Sequence[float]) -> tuple[float, float]:
        """Turn a point in data coordinates into the plane's (x, y)."""
        return float(point[self.axes[1]]) + 0.5, float(point[self.axes[0]]) + 0.5

    def to_data(self, x: float, y: float) -> tuple[float, ...]:
        """Turn the plane's (x, y) into a point in data coordinates; 0 on the channel axis."""
        point = [float(max(index, 0)) for index in self.position]
        point[self.axes[1]], point[self.axes[0]] = x - 0.5, y - 0.5
        return tuple(point)

    def key(self, rows: slice, columns: slice) -> tuple[slice | int, ...]:
        """Index of a rectangle of the plane in an array of the image's dimensions; index 0 on the channel axis.

        Of the result, `transposed` says whether rows and columns come out exchanged.
        """
        index: list[slice | int] = [max(i, 0) for i in self.position]
        index[self.axes[0]], index[self.axes[1]] = rows, columns
        return tuple(index)

    @property
    def transposed(self) -> bool:
        """Whether the axis that runs down comes after the one that runs across, as when axes were exchanged."""
        return self.axes[0] > self.axes[1]


@dataclass(frozen=True, order=True)
class Crop:
    """The rectangle of a plane that the model sees: [x0, x1) x [y0, y1) in full-resolution pixels, every `step`-th."""

    x0: int
    y0: int
    x1: int
    y1: int
    step: int = 1

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width of what is read, in pixels of the step."""
        return -(-(self.y1 - self.y0) // self.step), -(-(self.x1 - self.x0) // self.step)

    def contains(self, x: float, y: float) -> bool:
        """Whether a point of the plane lies inside."""
        return self.x0 <= x < self.x1 and self.y0 <= y < self.y1

    def to_crop(self, x: float, y: float) -> tuple[float, float]:
        """Turn the plane's (x, y) into the crop's, in pixels of the step."""
        return (x - self.x0) / self.step, (y - self.y0) / self.step


@dataclass(frozen=True, eq=False)
class PlaneMask:
    """A mask in a plane, cut to its bounding box. An empty mask has shape (0, 0).

    Attributes:
        y0, x0: its upper left pixel in the plane.
        pixels: (h, w) bool, read-only.
    """

    y0: int
    x0: int
    pixels: NDArray[np.bool_]

    @classmethod
    def of(cls, mask: NDArray[np.bool_], crop: Crop) -> PlaneMask:
        """Take a mask of a crop, (h, w) bool as the model gave it, to the plane at full resolution."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return cls(crop.y0, crop.x0, _frozen(np.zeros((0, 0), np.bool_)))
        top, left = int(rows[0]), int(columns[0])
        cut = mask[top : rows[-1] + 1, left : columns[-1] + 1]
        if crop.step > 1:
            cut = cut.repeat(crop.step, 0).repeat(crop.step, 1)
        y0, x0 = crop.y0 + top * crop.step, crop.x0 + left * crop.step
        # The last step of a crop may reach over its edge, and so over the image's.
        return cls(y0, x0, _frozen(cut[: crop.y1 - y0, : crop.x1 - x0].copy()))

    @property
    def area(self) -> int:
        """Pixels covered."""
        return int(np.count_nonzero(self.pixels))

    @property
    def rows(self) -> slice:
        """The rows of the plane that it spans."""
        return slice(self.y0, self.y0 + self.pixels.shape[0])

    @property
    def columns(self) -> slice:
        """The columns of the plane that it spans."""
        return slice(self.x0, self.x0 + self.pixels.shape[1])

    def on(self, hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the whole plane's mask, (H, W) bool."""
        return self._in(Crop(0, 0, hw[1], hw[0]))

    def cut(self, box: Crop) -> PlaneMask:
        """Return the part in a box, which shares its pixels."""
        top, left = max(self.y0, box.y0), max(self.x0, box.x0)
        bottom, right = min(self.rows.stop, box.y1), min(self.columns.stop, box.x1)
        if top >= bottom or left >= right:
            return NO_MASK
        return PlaneMask(top, left, self.pixels[top - self.y0 : bottom - self.y0, left - self.x0 : right - self.x0])

    def united(self, other: PlaneMask) -> PlaneMask:
        """Return what either covers."""
        if not (self.pixels.size and other.pixels.size):
            return self if self.pixels.size else other
        rows, columns = (self.rows, other.rows), (self.columns, other.columns)
        box = Crop(
            min(part.start for part in columns), min(part.start for part in rows),
            max(part.stop for part in columns), max(part.stop for part in rows),
        )  # fmt: skip
        return PlaneMask.of(self._in(box) | other._in(box), box)

    def without(self, other: PlaneMask) -> PlaneMask:
        """Return what this covers and the other does not."""
        box = Crop(self.columns.start, self.rows.start, self.columns.stop, self.rows.stop)
        return PlaneMask.of(self.pixels & ~other._in(box), box) if self.pixels.size and other.pixels.size else self

    def _in(self, box: Crop) -> NDArray[np.bool_]:
        """Return its pixels in a box, all others False."""
        whole = np.zeros((box.y1 - box.y0, box.x1 - box.x0), np.bool_)
        top, bottom = max(self.rows.start, box.y0), min(self.rows.stop, box.y1)
        left, right = max(self.columns.start, box.x0), min(self.columns.stop, box.x1)
        if top < bottom and left < right:
            whole[top - box.y0 : bottom - box.y0, left - box.x0 : right - box.x0] = self.pixels[
                top - self.y0 : bottom - self.y0, left - self.x0 : right - self.x0
            ]
        return whole


def _frozen(array: NDArray[np.bool_]) -> NDArray[np.bool_]:
    array.flags.writeable = False
    return array


# Covers nothing.
NO_MASK = PlaneMask(0, 0, _frozen(np.zeros((0, 0), np.bool_)))
