"""The draft's prompts as two napari layers, points and boxes, and back: the adapter's `prompt_from_*`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QTimer

from refinesam_napari.document import PlanePrompts, Point
from refinesam_napari.geometry import FREE, Plane
from refinesam_napari.placing import keeping_active, pixel_size, place_like, place_of

if TYPE_CHECKING:
    from napari.layers import Image, Points, Shapes
    from napari.viewer import Viewer

__all__ = ["PromptLayers"]

POSITIVE_COLOUR, NEGATIVE_COLOUR = "#2ecc40", "#ff4136"
BOX_COLOUR = "#ffdc00"
# Of the screen, whatever the zoom.
POINT_PIXELS, EDGE_PIXELS = 10, 2
# A click without a drag also leaves a rectangle, of no size to speak of.
LEAST_BOX = 2.0
DONE = ("added", "changed", "removed")


class PromptLayers:
    """Keeps a Points and a Shapes layer, of one image's dimensions, showing the prompts of a draft.

    Every point and box remembers the axes of the plane that it was made in, so prompts made in one orientation of a
    stack stay there when the view is turned.
    """

    def __init__(self, viewer: Viewer, on_edit: Callable[[str, dict[Plane, PlanePrompts]], None]) -> None:
        """Prepare; `follow` makes the layers.

        Args:
            viewer: the viewer.
            on_edit: called with what was done ("add point", ...) and all prompts, after each edit by the user.
        """
        self._viewer, self._on_edit = viewer, on_edit
        self.points: Points | None = None
        self.boxes: Shapes | None = None
        self.positive = True
        self._image: Image | None = None
        self._plane: Plane | None = None
        self._channel: tuple[int, int] | None = None
        self._quiet = False
        self._once_negative = False

    # -- layers -----------------------------------------------------------------------------------------------------

    def follow(self, image: Image, plane: Plane, channel: tuple[int, int] | None) -> None:
        """Belong to an image: make the layers where they are missing or of other dimensions, and place them like it.

        Args:
            image: whose data coordinates the prompts have.
            plane: in view; new prompts are made in planes parallel to it.
            channel: channel axis and the index on it that is in view.
        """
        self._image, self._plane, self._channel = image, plane, channel
        ndim = len(plane.position)
        with self.quiet(), keeping_active(self._viewer):
            for layer in (self.points, self.boxes):
                if layer is not None and layer.ndim != ndim and layer in self._viewer.layers:
                    self._viewer.layers.remove(layer)
            if self.boxes is None or self.boxes not in self._viewer.layers:
                self.boxes = self._new_boxes(ndim, image)
            if self.points is None or self.points not in self._viewer.layers:
                self.points = self._new_points(ndim, image)
            for layer in (self.points, self.boxes):
                place_like(layer, image)
        self.fit_to_zoom()
        self._set_defaults()

    def fit_to_zoom(self) -> None:
        """Draw points and edges as large on the screen as ever, and let clicks meet what is drawn."""
        if self.points is None or self.boxes is None:
            return
        pixel = pixel_size(self._viewer, self.points)
        with self.quiet():
            self.points.size = POINT_PIXELS * pixel
            self.points.current_size = POINT_PIXELS * pixel
            self.boxes.current_edge_width = EDGE_PIXELS * pixel
            if len(self.boxes.data):
                self.boxes.edge_width = [EDGE_PIXELS * pixel] * len(self.boxes.data)

    def remove(self) -> None:
        """Take the layers out of the viewer."""
        with self.quiet(), keeping_active(self._viewer):
            for layer in (self.points, self.boxes):
                if layer is not None and layer in self._viewer.layers:
                    self._viewer.layers.remove(layer)

    def ready(self, ndim: int) -> bool:
        """Whether both layers are there, of that many dimensions."""
        return all(
            layer is not None and layer in self._viewer.layers and layer.ndim == ndim
            for layer in (self.points, self.boxes)
        )

    def _new_points(self, ndim: int, image: Image) -> Points:
        layer = self._viewer.add_points(
            ndim=ndim,
            name="refinesam: points",
            features={"positive": np.zeros(0, bool), "axes": np.zeros(0, str)},
            border_color="white",
            face_color=POSITIVE_COLOUR,
            **place_of(image),
        )
        if self.points is not None:
            self.points.events.data.disconnect(self._on_points)
            self.points.mouse_drag_callbacks.remove(self._on_press)
        layer.events.data.connect(self._on_points)
        layer.mouse_drag_callbacks.insert(0, self._on_press)
        return layer

    def _new_boxes(self, ndim: int, image: Image) -> Shapes:
        layer = self._viewer.add_shapes(
            ndim=ndim,
            name="refinesam: boxes",
            features={"axes": np.zeros(0, str)},
            edge_color=BOX_COLOUR,
            face_color="transparent",
            **place_of(image),
        )
        if self.boxes is not None:
            self.boxes.events.data.disconnect(self._on_boxes)
        layer.events.data.connect(self._on_boxes)
        return layer

    @contextmanager
    def quiet(self) -> Generator[None]:
        """Change the layers without taking it for an edit by the user."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    @property
    def is_quiet(self) -> bool:
        """Whether the layers are being changed by the plugin."""
        return self._quiet

    # -- tools ------------------------------------------------------------------------------------------------------

    def use_points(self, positive: bool) -> None:
        """Let the next clicks add points of a sign."""
        if self.points is None:
            return
        self.positive = positive
        self._set_defaults()
        self._viewer.layers.selection.active = self.points
        self.points.mode = "add"

    def add_point(self, world: Sequence[float], positive: bool) -> None:
        """Add a point at a place in the world, as a click would, and let the next clicks do the same."""
        if self.points is None:
            return
        self.use_points(positive)
        self.points.add(self.points.world_to_data(world))
        self.use_points(True)

    def use_boxes(self) -> None:
        """Let the next drag draw a box."""
        if self.boxes is None:
            return
        self._viewer.layers.selection.active = self.boxes
        self.boxes.mode = "add_rectangle"

    def toggle_selected(self) -> bool:
        """Turn the sign of the selected points; False if none is selected."""
        if self.points is None or not self.points.selected_data or self._viewer.layers.selection.active != self.points:
            return False
        chosen = sorted(self.points.selected_data)
        features = self.points.features.copy()
        signs = features["positive"].to_numpy(bool).copy()
        signs[chosen] = ~signs[chosen]
        features["positive"] = signs
        with self.quiet():
            self.points.features = features
            self._colour_points()
        self._on_edit("turn point", self.read())
        return True

    def _set_defaults(self) -> None:
        """What the next point or box will be."""
        if self.points is None or self.boxes is None or self._plane is None:
            return
        axes = _axes_text(self._plane)
        with self.quiet():
            # A default that changes while something is selected would change what is selected.
            self.points.selected_data = set()
            self.points.feature_defaults = {"positive": self.positive, "axes": axes}
            self.points.current_face_color = POSITIVE_COLOUR if self.positive else NEGATIVE_COLOUR
            self.boxes.selected_data = set()
            self.boxes.feature_defaults = {"axes": axes}

    def _on_press(self, layer: Points, event: Any) -> None:
        """A click with Alt is a negative one, whatever the tool says."""
        self._positive_again()
        if layer.mode == "add" and "Alt" in event.modifiers and self.positive:
            self.positive = False
            self._set_defaults()
            self._once_negative = True

    # -- draft -> layers --------------------------------------------------------------------------------------------

    def show(self, draft: Mapping[Plane, PlanePrompts]) -> None:
        """Make the layers show a draft."""
        if self.points is None or self.boxes is None or any(len(p.position) != self.points.ndim for p in draft):
            return  # Of an image of other dimensions that is in view in 3D: `follow` makes layers for it later.
        points, features = [], []
        rectangles, rectangle_axes = [], []
        for plane, prompts in draft.items():
            for point in prompts.points:
                points.append(self._in_channel(plane.to_data(point.x, point.y)))
                features.append((point.positive, _axes_text(plane)))
            if prompts.box is not None:
                x0, y0, x1, y1 = prompts.box
                corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
                rectangles.append(np.array([self._in_channel(plane.to_data(x, y)) for x, y in corners]))
                rectangle_axes.append(_axes_text(plane))
        with self.quiet():
            self.points.selected_data = set()
            ndim = self.points.ndim
            self.points.data = np.array(points, float).reshape(-1, ndim)
            self.points.features = {
                "positive": np.array([sign for sign, _ in features], bool),
                "axes": np.array([axes for _, axes in features], str),
            }
            self._colour_points()
            self.boxes.selected_data = set()
            self.boxes.data = []
            if rectangles:
                self.boxes.add_rectangles(rectangles, edge_color=BOX_COLOUR, face_color="transparent")
            # Also when there are none: napari keeps the features of shapes that `data = []` took away.
            self.boxes.features = {"axes": np.array(rectangle_axes, str)}
        self.fit_to_zoom()
        self._set_defaults()

    def _in_channel(self, point: tuple[float, ...]) -> tuple[float, ...]:
        if self._channel is None:
            return point
        axis, index = self._channel
        return (*point[:axis], float(index), *point[axis + 1 :])

    def _colour_points(self) -> None:
        if self.points is not None and len(self.points.data):
            signs = self.points.features["positive"].to_numpy(bool)
            self.points.face_color = [POSITIVE_COLOUR if sign else NEGATIVE_COLOUR for sign in signs]

    # -- layers -> draft --------------------------------------------------------------------------------------------

    def read(self) -> dict[Plane, PlanePrompts]:
        """Return the prompts that the layers show. Of several boxes in a plane the newest counts."""
        draft: dict[Plane, PlanePrompts] = {}
        if self.points is None or self.boxes is None:
            return draft
        features = self.points.features
        signs, axes = features["positive"].to_numpy(bool), features["axes"].to_numpy(str)
        for data, sign, text in zip(self.points.data, signs, axes, strict=True):
            plane = self._plane_of(data, text)
            x, y = plane.to_plane(data)
            old = draft.get(plane, PlanePrompts())
            draft[plane] = PlanePrompts((*old.points, Point(x, y, bool(sign))), old.box)
        for corners, text in zip(self.boxes.data, self.boxes.features["axes"].to_numpy(str), strict=True):
            plane = self._plane_of(corners[0], text)
            xy = np.array([plane.to_plane(corner) for corner in corners])
            (x0, y0), (x1, y1) = xy.min(0).tolist(), xy.max(0).tolist()
            if min(x1 - x0, y1 - y0) >= LEAST_BOX:
                draft[plane] = PlanePrompts(draft.get(plane, PlanePrompts()).points, (x0, y0, x1, y1))
        return draft

    @property
    def has_strays(self) -> bool:
        """Whether there are boxes that `read` passes over, or prompts that it takes to another plane."""
        if self.points is None or self.boxes is None:
            return False
        boxed = sum(prompts.box is not None for prompts in self.read().values())
        places = [*self.points.data, *(corners[0] for corners in self.boxes.data)]
        axes = [*self.points.features["axes"], *self.boxes.features["axes"]]
        return len(self.boxes.data) > boxed or any(
            index not in (FREE, round(value))
            for data, text in zip(places, axes, strict=True)
            for index, value in zip(self._plane_of(data, text).position, data, strict=True)
        )

    def _plane_of(self, data: Iterable[float], text: str) -> Plane:
        assert self._image is not None
        down, across = (int(axis) for axis in text.split(","))
        free = {down, across} if self._channel is None else {down, across, self._channel[0]}
        # The viewer may stand outside this image, in one of another size: as in view, the nearest plane counts.
        last = [size - 1 for size in self._image.data.shape]
        nearest = [min(max(round(value), 0), last[axis]) for axis, value in enumerate(data)]
        return Plane((down, across), tuple(FREE if axis in free else index for axis, index in enumerate(nearest)))

    def _on_points(self, event: Any) -> None:
        if self._quiet or event.action not in DONE:
            return
        self._on_edit(f"{_verb(event.action)} point", self.read())
        if self._once_negative and event.action == "added":
            # Not now: napari is about to select the new point, and takes its sign for the next ones' then.
            QTimer.singleShot(0, self._positive_again)

    def _positive_again(self) -> None:
        if self._once_negative:
            self._once_negative = False
            self.positive = True
            self._set_defaults()

    def _on_boxes(self, event: Any) -> None:
        if self._quiet or event.action not in DONE:
            return
        self._on_edit(f"{_verb(event.action)} box", self.read())


def _axes_text(plane: Plane) -> str:
    return f"{plane.axes[0]},{plane.axes[1]}"


def _verb(action: str) -> str:
    return {"added": "add", "changed": "move", "removed": "remove"}[str(action)]
