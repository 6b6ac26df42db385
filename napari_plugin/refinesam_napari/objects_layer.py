"""Committed objects as a napari Labels layer: the adapter's `labels_from_*`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refinesam import ConfigError
from refinesam_napari.document import Write
from refinesam_napari.geometry import Crop, Plane, PlaneMask
from refinesam_napari.placing import patch_of

if TYPE_CHECKING:
    from napari.layers import Labels

__all__ = ["ObjectsLayer", "ids_in"]

# Pixels a side that are planned and written at once.
BLOCK = 2048
# Pixels written at once of which napari may keep its own record, which takes twenty times their memory.
MOST_REMEMBERED = 1_000_000


class ObjectsLayer:
    """Reads and writes one Labels layer, and tells what the user painted in it."""

    def __init__(
        self,
        layer: Labels,
        on_paint: Callable[[tuple[Write, ...]], None],
        on_replace: Callable[[], None] = lambda: None,
        empty: bool = False,
    ) -> None:
        """Watch a layer.

        Args:
            layer: of an image's dimensions, of size 1 on its channel axis.
            on_paint: called with what was written after every stroke by the user.
            on_replace: called after the layer was given another array.
            empty: nothing is in the layer, so that it need not be read.
        """
        self.layer, self._on_paint, self._on_replace = layer, on_paint, on_replace
        self._quiet = self._undrawn = False
        # Box around all that was ever written of an object, so that it is found without searching a large image.
        self._extents: dict[int, tuple[slice, ...]] = {}
        self._masks: dict[tuple[int, Plane], PlaneMask] = {}
        # Ids that are in it already are never given to new objects.
        self.highest_before = 0 if empty else self._highest()
        layer.events.paint.connect(self._painted)
        layer.events.data.connect(self._replaced)
        layer.events.set_data.connect(self._refreshed)

    @property
    def array(self) -> Any:
        """The layer's pixels, of a pyramid those at full resolution."""
        return self.layer.data[0] if self.layer.multiscale else self.layer.data

    def release(self) -> None:
        """Stop watching."""
        self.layer.events.paint.disconnect(self._painted)
        self.layer.events.data.disconnect(self._replaced)
        self.layer.events.set_data.disconnect(self._refreshed)

    def _replaced(self, event: Any = None) -> None:
        """The layer holds another array."""
        self.highest_before = self._highest()
        self._extents.clear()
        self._masks.clear()
        self._on_replace()

    def _highest(self) -> int:
        return int(np.max(self.array)) if self.array.size else 0

    @property
    def boxes(self) -> dict[int, tuple[slice, ...]]:
        """The boxes around objects, as far as they are known."""
        return dict(self._extents)

    def know(self, boxes: Mapping[int, tuple[slice, ...]]) -> None:
        """Take note of the boxes around objects that are in the layer already, to find them without a search."""
        self._extents.update(boxes)

    def _refreshed(self, event: Any) -> None:
        """Values may have been changed in place, as by napari's own undo."""
        self._masks.clear()

    def mask_of(self, object_id: int, plane: Plane) -> PlaneMask:
        """Return the pixels of an object in a plane."""
        key = (object_id, plane)
        if key not in self._masks:
            self._masks[key] = self._find(object_id, plane)
        return self._masks[key]

    def _find(self, object_id: int, plane: Plane) -> PlaneMask:
        extent = self._extents.get(object_id)
        if extent is None:
            if object_id > self.highest_before:
                return PlaneMask(0, 0, np.zeros((0, 0), np.bool_))
            extent = tuple(slice(0, size) for size in self.array.shape)
        rows, columns = extent[plane.axes[0]], extent[plane.axes[1]]
        inside = self._plane_values(plane, rows, columns) == object_id
        crop = Crop(columns.start, rows.start, columns.stop, rows.stop)
        return PlaneMask.of(inside, crop)

    def _plane_values(self, plane: Plane, rows: slice, columns: slice) -> NDArray[Any]:
        values = np.asarray(self.array[plane.key(rows, columns)])
        return values.T if plane.transposed else values

    # -- writing ----------------------------------------------------------------------------------------------------

    def check_id(self, object_id: int) -> None:
        """Raise ConfigError if the layer's type of number is too small for an id."""
        largest = np.iinfo(self.array.dtype).max
        if object_id > largest:
            raise ConfigError(
                f"Object {object_id} does not fit into a labels layer of {self.array.dtype} (up to {largest}). "
                "Convert the layer to a wider type (right click: Convert data type), then go on."
            )

    def plans(self, object_id: int, masks: Mapping[Plane, PlaneMask], overwrite: bool) -> Iterator[Write]:
        """Plan to give an object new masks in some planes, block by block, so that each takes little memory."""
        for plane, mask in masks.items():
            old = self.mask_of(object_id, plane)
            for block in _blocks([part for part in (mask, old) if part.pixels.size]):
                write = self.plan(object_id, plane, mask.cut(block), old.cut(block), overwrite)
                if write is not None:
                    yield write

    def plan(self, object_id: int, plane: Plane, mask: PlaneMask, old: PlaneMask, overwrite: bool) -> Write | None:
        """Plan to give an object a mask in a plane, in place of its old one; None if that changes nothing.

        Args:
            object_id: its id.
            plane: where.
            mask: what it shall cover, as far as nothing else does.
            old: what it covers now.
            overwrite: it shall cover other objects too.

        Raises:
            ConfigError: the layer's type of number is too small for the id.
        """
        self.check_id(object_id)
        parts = [part for part in (mask, old) if part.pixels.size]
        if not parts:
            return None
        rows = slice(min(p.rows.start for p in parts), max(p.rows.stop for p in parts))
        columns = slice(min(p.columns.start for p in parts), max(p.columns.stop for p in parts))
        key = tuple(slice(k, k + 1) if isinstance(k, int) else k for k in plane.key(rows, columns))
        before = np.array(self.array[key])
        wanted = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
        if mask.pixels.size:
            y, x = mask.y0 - rows.start, mask.x0 - columns.start
            wanted[y : y + mask.pixels.shape[0], x : x + mask.pixels.shape[1]] = mask.pixels
        wanted_nd = patch_of(wanted, plane).astype(np.bool_)
        own = before == object_id
        free = wanted_nd if overwrite else wanted_nd & ((before == 0) | own)
        after = before.copy()
        after[own & ~wanted_nd] = 0
        after[free] = object_id
        changed = after != before
        return Write(key, changed, *_compact(changed, before, after)) if changed.any() else None

    def refresh(self) -> None:
        """Draw what napari was not told of."""
        if self._undrawn:
            self._undrawn = False
            self.layer.refresh(extent=False)

    def apply(self, writes: Sequence[Write]) -> None:
        """Write all that was planned, or nothing.

        Raises:
            ConfigError: the layer can't be written to; so do `undo` and `redo`.
        """
        self._all_or_nothing(writes, lambda write: self._set(write.key, write.mask, write.new), self._backward)

    def undo(self, writes: Sequence[Write]) -> None:
        """Take back what was written, the last first, where it still stands."""
        self._all_or_nothing(writes[::-1], self._backward, self._forward)

    def redo(self, writes: Sequence[Write]) -> None:
        """Write again what was taken back."""
        self._all_or_nothing(writes, self._forward, self._backward)

    def _backward(self, write: Write) -> None:
        self._set(write.key, *write.backward(np.asarray(self.array[write.key])))

    def _forward(self, write: Write) -> None:
        self._set(write.key, *write.forward(np.asarray(self.array[write.key])))

    def _all_or_nothing(
        self, writes: Iterable[Write], there: Callable[[Write], None], back: Callable[[Write], None]
    ) -> None:
        done: list[Write] = []
        try:
            for write in writes:
                done.append(write)  # One that fails half-way is taken back, too.
                there(write)
        except Exception as error:
            for write in reversed(done):
                with contextlib.suppress(Exception):
                    back(write)
            self.refresh()
            raise ConfigError(
                f"The labels layer {self.layer.name!r} can't be written to, so nothing was changed "
                f"({type(error).__name__}: {error}). Choose another layer under “into”, or a new one."
            ) from error
        self.refresh()

    def _set(self, key: tuple[slice, ...], where: NDArray[np.bool_], values: NDArray[Any] | int) -> None:
        count = np.count_nonzero(where)
        if not count:
            return
        before = np.asarray(self.array[key])
        new = values[where] if isinstance(values, np.ndarray) else values
        self._forget(before[where], new)
        # If the viewer stands outside the layer, napari has nothing to refresh, and would fail at it.
        if self.layer.multiscale or count > MOST_REMEMBERED or self.layer._slice.empty:
            # A mask, not indices, which take sixteen times the memory of the pixels.
            after = np.array(before)
            after[where] = new
            self.array[key] = after
            self._make_coarser(key)
            self._undrawn = self._undrawn or not self.layer._slice.empty
        else:
            indices = tuple(axis + part.start for axis, part in zip(np.nonzero(where), key, strict=True))
            self._quiet = True
            try:
                self.layer.data_setitem(indices, new)
            finally:
                self._quiet = False
        self._note(key, new)

    def _make_coarser(self, key: tuple[slice, ...]) -> None:
        """Bring the coarser levels of a pyramid in line with a box that was written."""
        if not self.layer.multiscale:
            return
        full = self.array
        for level in list(self.layer.data)[1:]:
            steps = [round(size / coarse) for size, coarse in zip(full.shape, level.shape, strict=True)]
            box = tuple(slice(part.start // step, -(-part.stop // step)) for part, step in zip(key, steps, strict=True))
            cells = tuple(
                slice(part.start * step, part.stop * step, step) for part, step in zip(box, steps, strict=True)
            )
            level[box] = full[cells]

    def _forget(self, *values: NDArray[Any] | int) -> None:
        """What was known of the masks of these ids doesn't hold any more."""
        changed = {object_id for part in values for object_id in ids_in(part)}
        self._masks = {key: mask for key, mask in self._masks.items() if key[0] not in changed}

    def _note(self, key: tuple[slice, ...], values: NDArray[Any] | int) -> None:
        for object_id in ids_in(values):
            if object_id > self.highest_before or object_id in self._extents:
                old = self._extents.get(object_id, key)
                self._extents[object_id] = tuple(
                    slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(old, key, strict=True)
                )

    # -- painting by hand -------------------------------------------------------------------------------------------

    def _painted(self, event: Any) -> None:
        if self._quiet:
            return
        writes = tuple(_writes_of(event.value))
        for write in writes:
            # napari tells of a fill before it writes it; who is told here may look at the pixels.
            values = np.array(self.array[write.key])
            np.copyto(values, write.new, where=write.mask, casting="unsafe")
            self.array[write.key] = values
            self._note(write.key, write.new)
            self._forget(write.old, write.new)
        self._on_paint(writes)


def ids_in(values: NDArray[Any] | int) -> list[int]:
    """Return which numbers there are."""
    if isinstance(values, int) or not values.size:
        return [values] if isinstance(values, int) else []
    # Sorting takes long, and most often there is one number.
    lowest, highest = int(values.min()), int(values.max())
    return [lowest] if lowest == highest else [int(value) for value in np.unique(values)]


def _blocks(masks: Sequence[PlaneMask]) -> Iterator[Crop]:
    """Divide what masks span into blocks."""
    if not masks:
        return
    top, bottom = min(mask.rows.start for mask in masks), max(mask.rows.stop for mask in masks)
    left, right = min(mask.columns.start for mask in masks), max(mask.columns.stop for mask in masks)
    for y in range(top, bottom, BLOCK):
        for x in range(left, right, BLOCK):
            yield Crop(x, y, min(x + BLOCK, right), min(y + BLOCK, bottom))


def _compact(
    changed: NDArray[np.bool_], old: NDArray[Any], new: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any] | int]:
    """Give back values from which nothing is lost where they changed, in as little memory as a single value takes."""
    values = new[changed]
    if (old == old.flat[0]).all():
        old = np.broadcast_to(np.array(old.flat[0]), old.shape)
    return old, int(values[0]) if (values == values[0]).all() else new


def _writes_of(atoms: Iterable[Any]) -> Iterator[Write]:
    """Turn what napari tells of a stroke into writes, one for each of its parts."""
    for atom in atoms:
        if hasattr(atom, "slice_key"):  # Brush, fill and polygon: a box, a mask in it, one new value.
            shape = tuple(part.stop - part.start for part in atom.slice_key)
            mask = np.ones(shape, np.bool_) if atom.mask is None else np.asarray(atom.mask, np.bool_)
            old = np.zeros(shape, np.asarray(atom.old_values).dtype)
            old[mask] = np.asarray(atom.old_values).ravel()
            yield Write(atom.slice_key, mask, old, int(atom.new_value))
        else:  # data_setitem: indices, old values, new values.
            indices, old_values, new_values = atom
            if not np.size(indices[0]):
                continue
            key = tuple(slice(int(np.min(axis)), int(np.max(axis)) + 1) for axis in indices)
            local = tuple(np.asarray(axis) - part.start for axis, part in zip(indices, key, strict=True))
            shape = tuple(part.stop - part.start for part in key)
            mask, old = np.zeros(shape, np.bool_), np.zeros(shape, np.asarray(old_values).dtype)
            mask[local], old[local] = True, old_values
            new = np.zeros_like(old)
            new[local] = new_values
            yield Write(key, mask, old, new)
