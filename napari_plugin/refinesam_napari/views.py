"""What of a layer the viewer shows, and what its axes stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from refinesam import ConfigError
from refinesam_napari.geometry import FREE, Plane
from refinesam_napari.images import along_channels

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["guess_channel_axis", "plane_in_view", "stack_axes", "visible_rectangle"]

CHANNEL_LABELS = frozenset({"c", "ch", "channel", "channels"})
DEPTH_LABELS = frozenset({"z", "depth", "plane", "slice"})
TIME_LABELS = frozenset({"t", "time", "frame"})


def plane_in_view(
    layer: Image, dims_displayed: Sequence[int], point_world: Sequence[float], channel_axis: int | None
) -> Plane:
    """Return the plane of a layer that a viewer shows.

    Where the viewer stands outside the data, the nearest plane counts.

    Args:
        layer: its axes are the viewer's last ones.
        dims_displayed: the world axes that run down and across, `viewer.dims.displayed`.
        point_world: where the viewer stands on every world axis, `viewer.dims.point`.
        channel_axis: the layer's data axis that holds channels, or None.

    Raises:
        ConfigError: the viewer shows volumes, the channel axis, or an axis that the layer lacks.
    """
    if len(dims_displayed) != 2:
        raise ConfigError(
            f"The viewer shows {len(dims_displayed)} dimensions, prompts are set in planes: switch it to 2D."
        )
    lacking = len(point_world) - layer.ndim
    down, across = (axis - lacking for axis in dims_displayed)
    if min(down, across) < 0:
        raise ConfigError(
            f"The viewer shows axes {tuple(dims_displayed)} of {len(point_world)}; layer {layer.name!r} has only the "
            f"last {layer.ndim}: show two of these."
        )
    if channel_axis in (down, across):
        raise ConfigError(along_channels((down, across), channel_axis))
    point = list(point_world)
    for axis in dims_displayed:
        # napari slices without regard to where on the displayed axes it stands, which matters for a rotated layer.
        point[axis] = 0.0
    position = np.rint(np.nan_to_num(layer.world_to_data(point))).astype(int)
    position = np.clip(position, 0, np.array(layer.data.shape[: layer.ndim]) - 1)
    free = (down, across, channel_axis)
    return Plane((down, across), tuple(FREE if axis in free else int(index) for axis, index in enumerate(position)))


def guess_channel_axis(layer: Image) -> int | None:
    """Return the axis that is labelled as channels, None if none is or the layer is RGB."""
    return None if layer.rgb else _labelled(layer, range(layer.ndim), CHANNEL_LABELS)


def stack_axes(layer: Image, plane: Plane, channel_axis: int | None) -> list[int]:
    """Return the axes along which a plane has neighbours, the one that shows the same objects most likely first.

    That is the one labelled as depth, else the last that is not labelled as time, else time.
    """
    sizes = layer.data.shape
    others = [axis for axis in range(layer.ndim) if axis not in (*plane.axes, channel_axis) and sizes[axis] > 1]
    depth, time = (_labelled(layer, others, labels) for labels in (DEPTH_LABELS, TIME_LABELS))
    return sorted(others, key=lambda axis: (axis != depth, axis == time, -axis))


def visible_rectangle(layer: Image, plane: Plane) -> tuple[float, float, float, float] | None:
    """Return what of a plane the window shows, as x0, y0, x1, y1; None where that can't be told."""
    corners = layer.corner_pixels
    if corners.shape[0] < 2:
        return None
    factor = layer.downsample_factors[layer.data_level] if layer.multiscale else np.ones(corners.shape[1])
    (y0, x0), (y1, x1) = (corners * factor)[:, list(plane.axes)].tolist()
    return x0, y0, x1, y1


def _labelled(layer: Image, axes: Sequence[int], labels: frozenset[str]) -> int | None:
    return next((axis for axis in axes if layer.axis_labels[axis].strip().lower() in labels), None)
