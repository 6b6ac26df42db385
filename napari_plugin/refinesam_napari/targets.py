"""Labels layers that objects can be committed to: which of the user's can, and new ones."""

from __future__ import annotations

import colorsys
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.utils.colormaps import CyclicLabelColormap, label_colormap
from numpy.typing import NDArray

from refinesam import ConfigError
from refinesam_napari.placing import keeping_active, place_like, place_of

if TYPE_CHECKING:
    from napari.layers import Image, Labels
    from napari.viewer import Viewer

__all__ = ["is_ours", "label_colours", "labels_shape", "lies_on", "new_labels", "place_labels", "unfit"]

# Layers that the plugin made for objects: only these does it move, and they follow their image.
OURS = {"refinesam": "objects"}
# Hues of the preview, after refinement and before it, and how far others keep from them (1 is once around); least
# saturation and brightness.
PREVIEW_HUES, HUES_APART, LEAST_COLOUR = (0.53, 0.1), 0.07, 0.4
# Pixels a side beyond which labels are drawn by parts, and those of the coarsest level at most. Graphics cards draw up
# to 16,384 a side, and napari copies all of it at each change.
MOST_DRAWN, COARSEST = 16_384, 2048
# Of a pixel, by which labels may lie beside their image.
APART = 0.01


def unfit(labels: Labels, image: Image, shape: tuple[int, ...], channel_axis: int | None) -> str | None:
    """Say why a Labels layer can't hold the objects of an image of this shape, None if it can."""
    if labels.multiscale and not is_ours(labels):
        return "it is a pyramid, which napari can't edit: keep its full resolution alone"
    given, needed = tuple(labels.data.shape), labels_shape(shape, channel_axis)
    if given != needed:
        return f"its shape is {given}, but the image needs {needed}"
    if is_ours(labels):
        return _unwritable(labels.data[0] if labels.multiscale else labels.data)
    if not lies_on(labels, image, channel_axis):
        return f"it lies elsewhere than the image ({_difference(labels, image)}): give it the image's place"
    return _unwritable(labels.data)


def is_ours(layer: Labels) -> bool:
    """Whether the plugin made a layer for objects."""
    return bool(OURS.items() <= layer.metadata.items())


def lies_on(labels: Labels, image: Image, channel_axis: int | None) -> bool:
    """Whether labels of an image's shape lie on it in the world, pixel by pixel; the channel axis doesn't count."""
    last = np.array(labels.data.shape) - 1
    counted = [axis for axis in range(labels.ndim) if axis != channel_axis]
    for corner in np.ndindex(*(2,) * labels.ndim):
        point = np.where(corner, last, 0)
        back = np.asarray(image.world_to_data(labels.data_to_world(point)))
        if np.abs(back - point)[counted].max() > APART:
            return False
    return True


def _difference(labels: Labels, image: Image) -> str:
    names = ("scale", "translate", "rotate", "shear", "affine")
    others = [name for name in names if not np.allclose(getattr(labels, name), getattr(image, name))]
    if not {*others} <= {"scale", "translate"}:
        return ", ".join(others)
    values = [(name, *(np.round(getattr(layer, name), 3).tolist() for layer in (labels, image))) for name in others]
    return ", ".join(f"{name} {here} instead of {there}" for name, here, there in values)


def _unwritable(data: Any) -> str | None:
    if isinstance(data, np.ndarray):
        writeable = data.flags.writeable
    elif hasattr(data, "read_only"):  # zarr
        writeable = not data.read_only
    else:
        return f"its pixels can't be changed in place ({type(data).__name__}): copy them into a new layer"
    return None if writeable else "its pixels are read-only: open the file for writing, or copy them into a new layer"


def new_labels(viewer: Viewer, image: Image, shape: tuple[int, ...], channel_axis: int | None) -> Labels:
    """Add an empty Labels layer for an image's objects.

    On the channel axis it has size 1, stretched over all channels: an object belongs to each of them. Of a very large
    image it is a pyramid, so that napari draws what is in view alone; in a pyramid nobody can paint.

    Raises:
        ConfigError: there is not enough memory.
    """
    try:
        # Untouched pages of zeros take no memory, so a large image costs only what is segmented of it.
        levels = [np.zeros(size, np.uint16) for size in _levels(labels_shape(shape, channel_axis))]
    except MemoryError as error:
        raise ConfigError(f"Labels of shape {shape} don't fit into memory; crop the image first.") from error
    with keeping_active(viewer):
        layer = viewer.add_labels(
            levels if len(levels) > 1 else levels[0],
            multiscale=len(levels) > 1,
            name=f"{image.name} objects",
            metadata=OURS,
            colormap=CyclicLabelColormap(colors=label_colours()),
            **place_of(image),
        )
        place_labels(layer, image, shape, channel_axis)
    return layer


def _levels(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of the levels that labels need: one, unless they are too large to be drawn whole."""
    levels = [shape]
    while max(levels[-1]) > (MOST_DRAWN if len(levels) == 1 else COARSEST):
        step = 2 ** len(levels)
        # Only long axes: there are few planes, and each is drawn for itself.
        levels.append(tuple(-(-size // step) if size > COARSEST else size for size in shape))
    return levels


@functools.cache
def label_colours() -> NDArray[np.float32]:
    """Return napari's colours of labels, (N, 4) RGBA, without those that the preview or a gray image has.

    For them napari imports scikit-image and SciPy: call it on another thread first, or the window waits.
    """

    def stands_out(colour: list[float]) -> bool:
        hue, saturation, value = colorsys.rgb_to_hsv(*colour[:3])
        return min(saturation, value) > LEAST_COLOUR and all(
            abs((hue - taken + 0.5) % 1 - 0.5) > HUES_APART for taken in PREVIEW_HUES
        )

    colours = np.asarray(label_colormap().colors)
    return colours[[stands_out(colour) for colour in colours.tolist()]]


def place_labels(layer: Labels, image: Image, shape: tuple[int, ...], channel_axis: int | None) -> None:
    """Give a Labels layer its image's place in the world."""
    place_like(layer, image)
    if channel_axis is None:
        return
    channels = shape[channel_axis]
    centre = np.zeros(len(shape))
    centre[channel_axis] = (channels - 1) / 2
    scale = np.array(layer.scale)
    scale[channel_axis] *= channels
    layer.scale = scale
    layer.translate = np.asarray(image.affine.inverse(image.data_to_world(centre)))


def labels_shape(shape: tuple[int, ...], channel_axis: int | None) -> tuple[int, ...]:
    """Return the shape of the labels of an image: of size 1 on its channel axis."""
    return tuple(1 if axis == channel_axis else size for axis, size in enumerate(shape))
