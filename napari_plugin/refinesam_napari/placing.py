"""Putting layers where an image's planes lie in the world."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refinesam_napari.geometry import Plane, PlaneMask

if TYPE_CHECKING:
    from napari.layers import Image, Layer

__all__ = ["patch_of", "place_like", "place_patch", "set_changed"]

PLACE = ("scale", "rotate", "shear", "translate", "affine", "units")


def place_like(layer: Layer, image: Image, **instead: Any) -> None:
    """Give a layer of the image's dimensions the image's place in the world.

    Args:
        layer: to be placed.
        image: to be placed like.
        **instead: values of `PLACE` that are not the image's.
    """
    set_changed(layer, **{name: getattr(image, name) for name in PLACE} | instead)


def set_changed(layer: Layer, **values: Any) -> None:
    """Set attributes of a layer where they differ: napari draws and measures all layers anew for each that is set."""
    for name, value in values.items():
        if not np.array_equal(getattr(layer, name), value):
            setattr(layer, name, value)


def patch_of(pixels: NDArray[Any], plane: Plane) -> NDArray[Any]:
    """Give rows and columns (h, w) of a plane the image's dimensions: 1 on all axes but the plane's."""
    turned = pixels.T if plane.transposed else pixels
    shape = [1] * len(plane.position)
    shape[plane.axes[0]], shape[plane.axes[1]] = pixels.shape
    return turned.reshape(shape)


def place_patch(layer: Layer, image: Image, plane: Plane, mask: PlaneMask, channel: tuple[int, int] | None) -> None:
    """Move a layer that holds a patch of a plane to where the patch lies in an image."""
    corner = np.array(plane.to_data(mask.x0 + 0.5, mask.y0 + 0.5))
    if channel is not None:
        corner[channel[0]] = channel[1]
    # A layer's own translation comes before its affine transform.
    place_like(layer, image, translate=np.asarray(image.affine.inverse(image.data_to_world(corner))))
