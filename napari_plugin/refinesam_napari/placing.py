"""Putting layers into the viewer, where an image's planes lie in the world."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from refinesam_napari.geometry import Plane, PlaneMask

if TYPE_CHECKING:
    from napari.layers import Image, Layer
    from napari.viewer import Viewer

__all__ = [
    "camera_of",
    "is_kept_active",
    "keeping_active",
    "on_top",
    "patch_of",
    "pixel_size",
    "place_like",
    "place_of",
    "place_patch",
    "set_changed",
]

PLACE = ("scale", "rotate", "shear", "translate", "affine", "units")
_keeping: WeakSet[Viewer] = WeakSet()


@contextmanager
def keeping_active(viewer: Viewer) -> Generator[None]:
    """Add or remove layers, which makes others the active one; what the user had selected stays selected."""
    selection = viewer.layers.selection
    active, outermost = selection.active, viewer not in _keeping
    _keeping.add(viewer)
    try:
        yield
        if active is not None and active in viewer.layers:
            selection.active = active
    finally:
        if outermost:
            _keeping.discard(viewer)


def is_kept_active(viewer: Viewer) -> bool:
    """Whether the active layer changes only for `keeping_active`, not because the user selected another."""
    return viewer in _keeping


def camera_of(viewer: Viewer) -> Any:
    """Return a viewer's camera, which has moved in napari 0.9."""
    return getattr(viewer, "scene", viewer).camera


def pixel_size(viewer: Viewer, layer: Layer) -> float:
    """How many of a layer's data pixels a pixel of the screen is."""
    return float(1 / (camera_of(viewer).zoom * abs(layer.scale[-1]) or 1))


def on_top(viewer: Viewer, layers: Iterable[Layer | None], of: Layer) -> None:
    """Draw layers after another, in their order."""
    for layer in layers:
        if layer in viewer.layers and viewer.layers.index(layer) < viewer.layers.index(of):
            with keeping_active(viewer):
                viewer.layers.move(viewer.layers.index(layer), len(viewer.layers))


def place_like(layer: Layer, image: Image, **instead: Any) -> None:
    """Give a layer of the image's dimensions the image's place in the world.

    Args:
        layer: to be placed.
        image: to be placed like.
        **instead: values of `PLACE` that are not the image's.
    """
    set_changed(layer, **place_of(image) | instead)


def place_of(image: Image) -> dict[str, Any]:
    """Return an image's place in the world, for a new layer: were its unit another at first, napari would warn."""
    return {name: getattr(image, name) for name in PLACE}


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
