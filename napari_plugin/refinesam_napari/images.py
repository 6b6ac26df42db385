"""From a napari image layer and a plane of it to what the model sees: (h, w, 3) uint8 RGB, read lazily."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

import refinesam
from refinesam import ConfigError, ImageError
from refinesam_napari.geometry import FREE, Crop, Plane

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = [
    "INTENSITIES",
    "CropReader",
    "ImageSettings",
    "ImageSnapshot",
    "Intensity",
    "along_channels",
]

# The core's policies, and what the layer shows.
Intensity = Literal["percentile", "minmax", "as_is", "contrast_limits"]
INTENSITIES: tuple[Intensity, ...] = get_args(Intensity)

READER_ENTRIES = 8
# OpenCV averages these as they are; others go through float64.
AVERAGED_AS_THEY_ARE = ("uint8", "uint16", "int16", "float32", "float64")


@dataclass(frozen=True)
class ImageSettings:
    """How an image's values become the model's colours.

    Attributes:
        intensity: "percentile", "minmax" or "as_is", as `refinesam.as_rgb` has them, which leave 8-bit data unchanged;
            or "contrast_limits": the layer's contrast limits become 0 and 255 for any data, its gamma is ignored.
        channel_axis: data axis that holds channels; None for an RGB layer and for an image without channels.
        channels: up to three indices on that axis: one becomes gray, two red and green, three red, green and blue;
            none stands for the first. Except under "contrast_limits" each is scaled on its own, since fluorescence
            channels have unrelated ranges.

    Raises:
        ConfigError: an unknown policy, a negative axis or index, too many channels, or channels without an axis.
    """

    intensity: Intensity = "percentile"
    channel_axis: int | None = None
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.intensity not in INTENSITIES:
            raise ConfigError(f"Unknown intensity policy {self.intensity!r}: choose one of {', '.join(INTENSITIES)}.")
        if self.channel_axis is not None and self.channel_axis < 0:
            raise ConfigError(f"channel_axis={self.channel_axis}: count data axes from 0, the first one.")
        if len(self.channels) > 3 or any(index < 0 for index in self.channels):
            raise ConfigError(f"channels={self.channels}: choose at most three indices from 0 on.")
        if self.channels and self.channel_axis is None:
            raise ConfigError(f"channels={self.channels} without a channel_axis: name the axis, or leave them out.")


@dataclass(frozen=True, eq=False)
class ImageSnapshot:
    """An image layer as it was: made in the GUI's thread, read in any, without touching the layer.

    The data are shared, not copied: what is changed in place is seen by the next read.

    Attributes:
        levels: the data at full resolution, and of multiscale data the coarser levels after it. Anything that has a
            shape and a dtype and takes slices, such as numpy, dask and zarr arrays.
        rgb: whether a last axis, which no shape and no plane here counts, holds RGB or RGBA.
        contrast_limits: the values that the layer shows darkest and brightest.
        axis_labels: the layer's, by data axis.
        settings: how values become colours.
    """

    levels: tuple[Any, ...] = field(repr=False)
    rgb: bool
    contrast_limits: tuple[float, float]
    axis_labels: tuple[str, ...]
    settings: ImageSettings

    @classmethod
    def of(cls, layer: Image, settings: ImageSettings) -> ImageSnapshot:
        """Take a layer's.

        Raises:
            ConfigError: the layer has no such channel axis or channels.
        """
        levels = tuple(layer.data) if layer.multiscale else (layer.data,)
        low, high = layer.contrast_limits
        snapshot = cls(levels, bool(layer.rgb), (float(low), float(high)), tuple(layer.axis_labels), settings)
        snapshot._check_channels()
        return snapshot

    @property
    def ndim(self) -> int:
        """Number of data axes."""
        return len(self.levels[0].shape) - self.rgb

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the data axes at full resolution."""
        return tuple(int(size) for size in self.levels[0].shape[: self.ndim])

    def plane_hw(self, plane: Plane) -> tuple[int, int]:
        """Height and width of a plane at full resolution."""
        return self.shape[plane.axes[0]], self.shape[plane.axes[1]]

    def read(self, plane: Plane, crop: Crop) -> NDArray[np.uint8]:
        """Read what the model is to see, and no more of the data than that.

        A step above 1 averages the pixels that it joins; NaN among them are left out. Multiscale data are read at the
        coarsest level that still has the crop's resolution. "percentile" and "minmax" take their range over the crop
        as it is returned: the whole image's would cost reading all of it.

        Args:
            plane: of this image.
            crop: inside the plane.

        Returns:
            (h, w, 3) RGB of size `crop.hw`, the caller's own.

        Raises:
            ImageError: a crop that is empty or reaches outside, or no finite value in it.
            ConfigError: the plane is another image's, or lies along the channel axis.
        """
        self._check(plane, crop)
        block, offset, factors = self._block(plane, crop)
        ratio = crop.step / factors[0], crop.step / factors[1]
        if block.shape[:2] != crop.hw or any(offset) or any(pixels != 1 for pixels in ratio):
            block = _averaged(block, offset, ratio, crop.hw)
        if self.settings.channel_axis is None or block.ndim == 2:
            rgb = self._as_rgb(block)
            # Eight-bit RGB passes through the core without a copy, and would change with the layer.
            return rgb.copy() if np.may_share_memory(rgb, block) else rgb
        colors = [self._as_rgb(block[..., i])[..., 0] for i in range(block.shape[2])]
        blank = [np.zeros(crop.hw, np.uint8)] * (3 - len(colors))
        return np.stack([*colors, *blank], axis=-1)

    def _check_channels(self) -> None:
        axis = self.settings.channel_axis
        if axis is None:
            return
        if self.rgb:
            raise ConfigError(f"channel_axis={axis}, but the layer is RGB: its colours are its channels, give None.")
        if axis >= self.ndim:
            raise ConfigError(f"channel_axis={axis}, but the image has axes 0 to {self.ndim - 1} (shape {self.shape}).")
        if max(self.settings.channels, default=0) >= self.shape[axis]:
            raise ConfigError(
                f"channels={self.settings.channels}, but axis {axis} holds channels 0 to {self.shape[axis] - 1}: "
                "choose among these."
            )

    def _check(self, plane: Plane, crop: Crop) -> None:
        if len(plane.position) != self.ndim:
            raise ConfigError(
                f"The plane has {len(plane.position)} axes, the image {self.ndim} (shape {self.shape}): make the plane "
                "from this image's layer."
            )
        if self.settings.channel_axis in plane.axes:
            raise ConfigError(along_channels(plane.axes, self.settings.channel_axis))
        height, width = self.plane_hw(plane)
        if crop.step < 1 or not (0 <= crop.x0 < crop.x1 <= width and 0 <= crop.y0 < crop.y1 <= height):
            raise ImageError(
                f"{crop} is empty or not inside the plane (width {width}, height {height}): "
                "give 0 <= x0 < x1 <= width, 0 <= y0 < y1 <= height and a step from 1."
            )

    def _block(self, plane: Plane, crop: Crop) -> tuple[NDArray[Any], tuple[float, float], tuple[float, float]]:
        """Read a crop's rectangle of the fitting level.

        Returns:
            (h, w) or (h, w, colours) pixels of the level; where in them the crop begins, down and across; how many
            pixels at full resolution one of theirs covers, down and across.
        """
        level = self._level(plane, crop.step)
        sizes = level.shape[: self.ndim]
        factors = [_downsampling(full, size) for full, size in zip(self.shape, sizes, strict=True)]
        down, across = plane.axes
        rows, top = _span(crop.y0, crop.y1, factors[down], sizes[down])
        columns, left = _span(crop.x0, crop.x1, factors[across], sizes[across])
        position = tuple(
            index if index == FREE else min(int((index + 0.5) / factor), size - 1)
            for index, factor, size in zip(plane.position, factors, sizes, strict=True)
        )
        axes, key = [down, across], list(Plane(plane.axes, position).key(rows, columns))
        chosen: Sequence[int] = ()
        if self.rgb:
            axes.append(self.ndim)
            key.append(slice(0, 3))
        elif self.settings.channel_axis is not None:
            # One slice, which every kind of array takes; its step passes over channels in between where it can.
            channels = self.settings.channels or (0,)
            first, step = min(channels), math.gcd(*(index - min(channels) for index in channels)) or 1
            axes.append(self.settings.channel_axis)
            key[self.settings.channel_axis] = slice(first, max(channels) + 1, step)
            chosen = [(index - first) // step for index in channels]
        block = np.asarray(level[tuple(key)])
        block = block.transpose([sorted(axes).index(axis) for axis in axes])
        if chosen:
            block = block[..., chosen] if len(chosen) > 1 else block[..., 0]
        native = block.astype(block.dtype.newbyteorder("="), copy=False)
        return native, (top, left), (factors[down], factors[across])

    def _level(self, plane: Plane, step: int) -> Any:
        """Return the coarsest level that has at least as many pixels as the plane read with a step."""
        return next(
            level
            for level in reversed(self.levels)
            # Rounded down, as many pyramids are made: 1001, 500, 250.
            if all(level.shape[axis] >= self.shape[axis] // step for axis in plane.axes)
        )

    def _as_rgb(self, block: NDArray[Any]) -> NDArray[np.uint8]:
        if self.settings.intensity == "contrast_limits":
            low, high = self.contrast_limits
        elif self.levels[0].dtype == np.bool_:
            low, high = 0.0, 1.0  # they may have been averaged since
        else:
            return refinesam.as_rgb(block, intensity=self.settings.intensity)
        shown = np.clip((block.astype(np.float64) - low) / (high - low or 1.0), 0, 1)
        return refinesam.as_rgb(shown, intensity="as_is")


class CropReader:
    """Reads crops, and keeps the last few of data that are slow to read; thread-safe.

    numpy arrays are read every time, so what is changed in them in place is seen at once. Of dask, zarr and other
    arrays a change in place is not seen until `forget`.
    """

    def __init__(self, entries: int = READER_ENTRIES) -> None:
        self._most = entries
        self._lock = threading.Lock()
        # The levels are kept with the pixels, so that no new array gets the id of one in a key.
        self._entries: OrderedDict[Hashable, tuple[tuple[Any, ...], NDArray[np.uint8]]] = OrderedDict()

    def read(self, snapshot: ImageSnapshot, plane: Plane, crop: Crop) -> NDArray[np.uint8]:
        """Return `snapshot.read(plane, crop)`, read-only if it is kept; see there for errors."""
        if any(isinstance(level, np.ndarray) for level in snapshot.levels):
            return snapshot.read(plane, crop)
        limits = snapshot.contrast_limits if snapshot.settings.intensity == "contrast_limits" else None
        key = (tuple(map(id, snapshot.levels)), snapshot.rgb, snapshot.settings, limits, plane, crop)
        with self._lock:
            entries = self._entries
            if key in entries:
                entries.move_to_end(key)
                return entries[key][1]
        pixels = snapshot.read(plane, crop)
        pixels.flags.writeable = False
        with self._lock:
            # Into the entries of before: forgotten meanwhile, they don't come back.
            entries[key] = snapshot.levels, pixels
            while len(entries) > self._most:
                entries.popitem(last=False)
        return pixels

    def forget(self) -> None:
        """Drop what is kept, because data were changed in place."""
        with self._lock:
            self._entries = OrderedDict()


def along_channels(axes: tuple[int, int], channel_axis: int | None) -> str:
    """Say what is wrong with a plane that lies along the channel axis."""
    return f"The plane lies along axes {axes}, of which {channel_axis} holds channels: show two others."


def _downsampling(full: int, size: int) -> float:
    """How many pixels at full resolution one of a level covers."""
    ratio = full / size
    whole = max(1, round(ratio))
    # A pyramid of odd sizes is made with whole factors and leaves out or adds a last pixel.
    return float(whole) if abs(full / whole - size) < 1 else ratio


def _span(start: int, stop: int, factor: float, size: int) -> tuple[slice, float]:
    """Return the pixels of a level that cover [start, stop) at full resolution, and where in them that begins."""
    first = min(int(start / factor), size - 1)
    last = min(max(math.ceil(stop / factor), first + 1), size)
    return slice(first, last), start / factor - first


def _averaged(
    block: NDArray[Any], offset: tuple[float, float], ratio: tuple[float, float], hw: tuple[int, int]
) -> NDArray[Any]:
    """Bring a block of any type to a size, see `_resized`; booleans become floats, NaN are left out of the averages."""
    if block.dtype.kind in "iu":
        if block.dtype.name in AVERAGED_AS_THEY_ARE:
            return _resized(block, offset, ratio, hw)
        means = _resized(block.astype(np.float64), offset, ratio, hw)
        return np.asarray(np.rint(means), block.dtype)
    block = block.astype(block.dtype if block.dtype.name in AVERAGED_AS_THEY_ARE else np.float32, copy=False)
    finite = block[np.isfinite(block)]
    if not finite.size:
        return np.full((*hw, *block.shape[2:]), np.nan, block.dtype)
    # An infinity in an average would leave nothing of the rest; rounding may lead past the range, such as [0, 1].
    low, high = finite.min(), finite.max()
    missing = np.isnan(block)
    result = _resized(np.where(missing, low, np.clip(block, low, high)), offset, ratio, hw)
    if missing.any():
        share = _resized((~missing).astype(np.float64), offset, ratio, hw)
        result = np.where(share > 1e-6, low + (result - low) / np.maximum(share, 1e-6), np.nan)
    return np.asarray(np.clip(result, low, high))


def _resized(
    block: NDArray[Any], offset: tuple[float, float], ratio: tuple[float, float], hw: tuple[int, int]
) -> NDArray[Any]:
    """Average over what each pixel of the result covers; past the block's edges its last pixels go on.

    Args:
        block: (h, w) or (h, w, colours) of a type that OpenCV averages.
        offset: where the result begins in it, down and across.
        ratio: pixels of the block for one of the result, down and across.
        hw: size of the result.
    """
    # Whole pixels by area, which is exact; what is left, a shift and a factor below 2, by interpolation.
    whole = [max(1, int(pixels)) for pixels in ratio]
    height, width = (-(-size // pixels) for size, pixels in zip(block.shape, whole, strict=False))
    bottom, right = height * whole[0] - block.shape[0], width * whole[1] - block.shape[1]
    padded = cv2.copyMakeBorder(np.ascontiguousarray(block), 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    small = cv2.resize(padded, (width, height), interpolation=cv2.INTER_AREA)
    (y, x), (dy, dx) = np.divide(offset, whole), np.divide(ratio, whole)
    to_small = np.array([[dx, 0, x + dx / 2 - 0.5], [0, dy, y + dy / 2 - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(small, to_small, hw[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE))
