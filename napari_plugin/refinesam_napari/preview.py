"""The mask of the object in hand, and the points that refinement made: drawn, never edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refinesam_napari.geometry import Crop, Plane, PlaneMask
from refinesam_napari.placing import (
    keeping_active,
    on_top,
    patch_of,
    pixel_size,
    place_like,
    place_of,
    place_patch,
    set_changed,
)

if TYPE_CHECKING:
    from napari.layers import Image, Layer, Points
    from napari.viewer import Viewer

__all__ = ["DISPLAY_ONLY", "Preview"]

FILL, OUTLINE = 1, 2
COLOURS = {
    "refined": [[0, 0, 0, 0], [0.1, 0.75, 1, 0.35], [0.1, 0.85, 1, 1]],
    "first": [[0, 0, 0, 0], [1, 0.6, 0.1, 0.35], [1, 0.65, 0.1, 1]],
}
# Known from its first moment on, when the viewer tells everybody of the new layer.
DISPLAY_ONLY = {"refinesam": "display only"}
AMR_COLOUR, MARK_PIXELS = "#ff4bd8", 9


class Preview:
    """An image layer as small as the mask's bounding box, moved to its place: cheap however large the image is."""

    def __init__(self, viewer: Viewer, prompts: Callable[[], list[Layer | None]]) -> None:
        """Prepare.

        Args:
            viewer: the viewer.
            prompts: returns the layers that are drawn on top of masks.
        """
        self._viewer, self._prompts = viewer, prompts
        self.layer: Image | None = None
        self.amr_points: Points | None = None

    def show(
        self,
        image: Image,
        plane: Plane,
        mask: PlaneMask,
        colour: str,
        amr_points: list[tuple[float, float]],
        channel: tuple[int, int] | None,
    ) -> None:
        """Draw a mask in a plane of an image.

        Args:
            image: whose data coordinates the plane has.
            plane: where.
            mask: what; an empty one hides the preview.
            colour: "refined" or "first".
            amr_points: (x, y) in the plane, to be marked; none hides the marks.
            channel: channel axis and the index on it that is in view.
        """
        if not mask.pixels.size:
            self.hide()
            return
        pixels = patch_of(_outlined(mask.pixels), plane)
        if self.layer is None or self.layer not in self._viewer.layers or self.layer.ndim != pixels.ndim:
            with keeping_active(self._viewer):
                self._remove(self.layer)
                self.layer = self._new_layer(pixels, image)
        layer = self.layer
        layer.data = pixels
        place_patch(layer, image, plane, mask, channel)
        # For a new colormap the graphics driver compiles anew, which takes longer than the drawing.
        if layer.colormap.name != (name := f"refinesam {colour}"):
            layer.colormap = {"name": name, "colors": COLOURS[colour], "interpolation": "linear"}
        set_changed(layer, contrast_limits=(0, 2), visible=True)
        self._show_points(image, plane, amr_points, channel)

    def show_seen(
        self, image: Image, plane: Plane, crop: Crop, pixels: NDArray[np.uint8], channel: tuple[int, int] | None
    ) -> None:
        """Add what the model sees, (h, w, 3) RGB of a crop, as a layer at its place."""
        colours = np.stack([patch_of(pixels[..., index], plane) for index in range(3)], axis=-1)
        name = "refinesam: what the model sees"
        layer = self._viewer.add_image(colours, rgb=True, name=name, metadata=DISPLAY_ONLY, **place_of(image))
        # The centre of the first pixel of a step lies in the middle of those that it stands for.
        shift = (crop.step - 1) / 2
        corner = np.array(plane.to_data(crop.x0 + shift + 0.5, crop.y0 + shift + 0.5))
        if channel is not None:
            corner[channel[0]] = channel[1]
        scale = np.array(image.scale)
        scale[list(plane.axes)] *= crop.step
        place_like(layer, image, scale=scale, translate=np.asarray(image.affine.inverse(image.data_to_world(corner))))

    def hide(self) -> None:
        """Draw nothing."""
        for layer in (self.layer, self.amr_points):
            if layer is not None and layer in self._viewer.layers:
                set_changed(layer, visible=False)

    def fit_to_zoom(self) -> None:
        """Draw marks as large on the screen as ever."""
        if self.amr_points is not None and len(self.amr_points.data):
            self.amr_points.size = MARK_PIXELS * pixel_size(self._viewer, self.amr_points)

    def remove(self) -> None:
        """Take the layers out of the viewer."""
        with keeping_active(self._viewer):
            self._remove(self.layer)
            self._remove(self.amr_points)

    def _new_layer(self, pixels: NDArray[Any], image: Image) -> Image:
        layer = self._viewer.add_image(
            pixels,
            name="refinesam: preview",
            metadata=DISPLAY_ONLY,
            rgb=False,
            contrast_limits=(0, 2),
            blending="translucent_no_depth",
            interpolation2d="nearest",
            **place_of(image),
        )
        on_top(self._viewer, self._prompts(), layer)
        return layer

    def _show_points(
        self, image: Image, plane: Plane, points: list[tuple[float, float]], channel: tuple[int, int] | None
    ) -> None:
        ndim = len(plane.position)
        if self.amr_points is not None and (self.amr_points not in self._viewer.layers or self.amr_points.ndim != ndim):
            with keeping_active(self._viewer):
                self._remove(self.amr_points)
            self.amr_points = None
        if self.amr_points is None:
            if not points:
                return
            with keeping_active(self._viewer):
                self.amr_points = self._viewer.add_points(
                    ndim=ndim,
                    name="refinesam: AMR points",
                    symbol="cross",
                    face_color=AMR_COLOUR,
                    **place_of(image),
                )
                self.amr_points.editable = False
                on_top(self._viewer, self._prompts(), self.amr_points)
        data = np.array([plane.to_data(x, y) for x, y in points], float).reshape(-1, ndim)
        if channel is not None:
            data[:, channel[0]] = channel[1]
        place_like(self.amr_points, image)
        self.amr_points.data = data
        self.amr_points.selected_data = set()
        self.fit_to_zoom()
        set_changed(self.amr_points, visible=bool(points))

    def _remove(self, layer: Layer | None) -> None:
        if layer is not None and layer in self._viewer.layers:
            self._viewer.layers.remove(layer)


def _outlined(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Mark a mask's inside with 1 and its outermost pixels with 2."""
    pixels = mask.astype(np.uint8)
    inner = cv2.erode(pixels, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(np.where(inner, FILL, pixels * OUTLINE), np.uint8)
