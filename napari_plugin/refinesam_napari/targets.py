"""Labels layers that objects can be committed to: which of the user's can, and new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refinesam import ConfigError
from refinesam_napari.placing import keeping_active, place_like, place_of

if TYPE_CHECKING:
    from napari.layers import Image, Labels
    from napari.viewer import Viewer

__all__ = ["new_labels", "place_labels", "unfit"]


def unfit(labels: Labels, shape: tuple[int, ...], channel_axis: int | None) -> str | None:
    """Say why a Labels layer can't hold the objects of an image of this shape, None if it can."""
    if labels.multiscale:
        return "it is a pyramid, which napari can't edit: keep its full resolution alone"
    found, needed = tuple(labels.data.shape), _labels_shape(shape, channel_axis)
    if found != needed:
        return f"its shape is {found}, but the image needs {needed}"
    return _unwritable(labels.data)


def _unwritable(data: Any) -> str | None:
    writeable = data.flags.writeable if isinstance(data, np.ndarray) else not getattr(data, "read_only", False)
    if not writeable:
        return "its pixels are read-only: open the file for writing, or copy them into a new layer"
    if isinstance(data, np.ndarray):
        return None
    pixel = tuple(np.zeros(1, int) for _ in data.shape)
    try:
        data[pixel] = np.asarray(data[pixel])
    except Exception as error:
        return f"its pixels can't be changed ({type(error).__name__}): copy them into a new layer"
    return None


def new_labels(viewer: Viewer, image: Image, shape: tuple[int, ...], channel_axis: int | None) -> Labels:
    """Add an empty Labels layer for an image's objects.

    On the channel axis it has size 1, stretched over all channels: an object belongs to each of them.

    Raises:
        ConfigError: there is not enough memory.
    """
    try:
        # Untouched pages of zeros take no memory, so a large image costs only what is segmented of it.
        data = np.zeros(_labels_shape(shape, channel_axis), np.uint16)
    except MemoryError as error:
        raise ConfigError(f"Labels of shape {shape} don't fit into memory; crop the image first.") from error
    with keeping_active(viewer):
        layer = viewer.add_labels(data, name=f"{image.name} objects", **place_of(image))
        place_labels(layer, image, shape, channel_axis)
    return layer


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


def _labels_shape(shape: tuple[int, ...], channel_axis: int | None) -> tuple[int, ...]:
    return tuple(1 if axis == channel_axis else size for axis, size in enumerate(shape))
