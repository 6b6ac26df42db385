"""Which part of a plane the model sees (no napari)."""

from __future__ import annotations

import math
from typing import Literal, get_args

from refinesam import ConfigError, ImageError
from refinesam_napari.document import PlanePrompts
from refinesam_napari.geometry import Crop

__all__ = ["CROP_MODES", "CropMode", "choose_crop"]

CropMode = Literal["auto", "whole", "view"]
CROP_MODES: tuple[CropMode, ...] = get_args(CropMode)

# A plane up to this size is not worth a choice: a model of 1024 pixels a side loses a third of its resolution, the
# built-in one of 320 reads no less than from a crop of `SIDE` around a middling object.
WHOLE_SIDE = 1536
SIDE = 1024
# "whole" and "view" read at most this many pixels a side.
MOST_READ = 2048
# Of the prompts (a box) or of the crop's side (points only) around the prompts in a new crop.
MARGIN = 0.25
# Of the crop's side, to keep a crop. Smaller than what any new crop leaves, so that one is kept to begin with.
KEPT_MARGIN = 0.1

# x0, y0, x1, y1 in the plane.
Rectangle = tuple[float, float, float, float]


def choose_crop(
    plane_hw: tuple[int, int],
    prompts: PlanePrompts,
    previous: Crop | None,
    mode: CropMode,
    view: Rectangle | None = None,
) -> Crop:
    """Choose what the model sees: always inside the plane, never empty, and with all prompts that lie in the plane.

    Args:
        plane_hw: height and width of the plane.
        prompts: what is asked. Points outside the plane, and the parts of a box there, don't count.
        previous: what the model saw last for this object, or None.
        mode: "auto": a plane of up to `WHOLE_SIDE` whole; of a larger one a square of 1024, 2048, ... pixels around
            the prompts, read at 1024, or the previous crop while the prompts lie well inside it. "whole": the whole
            plane. "view": what is visible, and what of the prompts is not.
        view: the visible rectangle x0, y0, x1, y1 in the plane, for "view". May reach outside the plane.

    Raises:
        ImageError: the plane has no pixels.
        ConfigError: an unknown mode, or "view" without a view.
    """
    height, width = plane_hw
    if min(height, width) < 1:
        raise ImageError(f"The plane has no pixels (height {height}, width {width}): choose a layer that has some.")
    if mode not in CROP_MODES:
        raise ConfigError(f"Unknown crop mode {mode!r}: choose one of {', '.join(CROP_MODES)}.")
    whole = Crop(0, 0, width, height, _step(max(plane_hw)))
    if mode == "whole":
        return whole
    extent = _extent(plane_hw, prompts)
    if mode == "view":
        if view is None:
            raise ConfigError('Crop mode "view" needs the visible rectangle: pass view=(x0, y0, x1, y1).')
        return _visible(plane_hw, view, extent) or whole
    if max(plane_hw) <= WHOLE_SIDE:
        return whole
    if previous is not None and _keeps(previous, plane_hw, extent):
        return previous
    return _around(plane_hw, extent or (width / 2, height / 2, width / 2, height / 2), prompts.box is not None)


def _step(side: int) -> int:
    """Return the power of two, as the levels of a pyramid have it, that reads a side at `MOST_READ` or less."""
    step = 1
    while side > MOST_READ * step:
        step *= 2
    return step


def _extent(plane_hw: tuple[int, int], prompts: PlanePrompts) -> Rectangle | None:
    """Return what the prompts span inside the plane; a point spans its pixel."""
    height, width = plane_hw
    spans: list[Rectangle] = [
        (math.floor(point.x), math.floor(point.y), math.floor(point.x) + 1, math.floor(point.y) + 1)
        for point in prompts.points
        if 0 <= point.x < width and 0 <= point.y < height
    ]
    if prompts.box is not None:
        spans += _clipped(prompts.box, plane_hw)
    return _union(spans) if spans else None


def _clipped(rectangle: Rectangle, plane_hw: tuple[int, int]) -> list[Rectangle]:
    """Return the part inside the plane, nothing where there is none."""
    height, width = plane_hw
    x0, y0, x1, y1 = rectangle
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return []
    return [(max(x0, 0), max(y0, 0), min(x1, width), min(y1, height))]


def _union(rectangles: list[Rectangle]) -> Rectangle:
    x0, y0, x1, y1 = zip(*rectangles, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def _visible(plane_hw: tuple[int, int], view: Rectangle, extent: Rectangle | None) -> Crop | None:
    height, width = plane_hw
    shown = _clipped(view, plane_hw) + ([extent] if extent is not None else [])
    if not shown:
        return None
    x0, y0, x1, y1 = _union(shown)
    # Of the view's own size, not of its part inside: so a crop stays while the view is moved a little, even over the
    # plane's border. A power of two, so that it stays while the view is zoomed a little, and that steps divide it.
    size = max(view[2] - view[0], view[3] - view[1], 8)
    unit = 2 ** math.floor(math.log2(size / 8))
    left, top = math.floor(x0 / unit) * unit, math.floor(y0 / unit) * unit
    right, bottom = min(math.ceil(x1 / unit) * unit, width), min(math.ceil(y1 / unit) * unit, height)
    return Crop(left, top, right, bottom, _step(max(right - left, bottom - top)))


def _keeps(crop: Crop, plane_hw: tuple[int, int], extent: Rectangle | None) -> bool:
    """Whether what the prompts span lies well inside a crop of the plane."""
    height, width = plane_hw
    if not (0 <= crop.x0 < crop.x1 <= width and 0 <= crop.y0 < crop.y1 <= height):
        return False
    if extent is None:
        return True
    return _holds(crop.x0, crop.x1, extent[0], extent[2], KEPT_MARGIN * (crop.x1 - crop.x0), width) and _holds(
        crop.y0, crop.y1, extent[1], extent[3], KEPT_MARGIN * (crop.y1 - crop.y0), height
    )


def _around(plane_hw: tuple[int, int], extent: Rectangle, boxed: bool) -> Crop:
    """Return the smallest of the squares that hold the prompts with their margin, or the whole plane."""
    (height, width), (x0, y0, x1, y1) = plane_hw, extent
    side = SIDE
    while True:
        step = side // SIDE
        left, right = _placed(x0, x1, side, step, width)
        top, bottom = _placed(y0, y1, side, step, height)
        # A box says how large the object is; points don't.
        across, down = (MARGIN * (x1 - x0), MARGIN * (y1 - y0)) if boxed else (MARGIN * side, MARGIN * side)
        if _holds(left, right, x0, x1, across, width) and _holds(top, bottom, y0, y1, down, height):
            return Crop(left, top, right, bottom, step)
        side *= 2


def _placed(low: float, high: float, side: int, step: int, size: int) -> tuple[int, int]:
    """Return where a crop begins and ends on an axis of some size: about the middle of [low, high).

    It begins at multiples of a quarter of its side, so that neighbouring clicks find the same crop in the cache; the
    last one ends with the axis, and is up to a step shorter to begin where a step does.
    """
    if side >= size:
        return 0, size
    quarter = side // 4
    start = math.floor(((low + high - side) / 2) / quarter + 0.5) * quarter
    last = -(-(size - side) // step) * step
    start = min(max(start, 0), last)
    return start, min(start + side, size)


def _holds(start: int, stop: int, low: float, high: float, margin: float, size: int) -> bool:
    """Whether [start, stop) holds [low, high) with a margin, or up to the ends of an axis of some size."""
    return start <= max(low - margin, 0) and min(high + margin, size) <= stop
