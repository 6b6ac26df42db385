"""Which image is segmented, in which plane, and the layers that belong to it: follows whatever the viewer does."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image
from qtpy.QtCore import QObject, QTimer, Signal

from refinesam import RefineSAMError
from refinesam_napari.geometry import Plane
from refinesam_napari.images import ImageSettings, ImageSnapshot
from refinesam_napari.placing import camera_of, is_kept_active, on_top
from refinesam_napari.preview import DISPLAY_ONLY, Preview
from refinesam_napari.prompt_layers import PromptLayers
from refinesam_napari.targets import is_ours, place_labels
from refinesam_napari.views import plane_in_view
from refinesam_napari.workspace import Workspace, shape_of
from refinesam_napari.workspaces import Workspaces, first_settings

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

__all__ = ["ImageView"]

# A hand that clicks moves the mouse no farther than this.
CLICK_PIXELS = 4
PLACE = ("scale", "translate", "rotate", "shear", "affine")


class ImageView(QObject):
    """The image in hand, the plane in view, and the layers of prompts, preview and objects.

    Layers are known by identity, never by name.

    Attributes:
        plane: in view; None where nothing can be prompted, as in 3D.
        prompts, preview: their layers.

    Signals:
        prompted: the user did something, which has a name, in the prompt layers, which hold these prompts now.
        left: what is computed for the image, or for its pixels of before, is not wanted any more.
        shown: a plane came into view, or is seen in another way.
    """

    prompted = Signal(str, object)
    left = Signal()
    shown = Signal()

    def __init__(self, viewer: Viewer, workspaces: Workspaces, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer, self._workspaces = viewer, workspaces
        self.plane: Plane | None = None
        self._following = False
        self.prompts = PromptLayers(viewer, self.prompted.emit)
        self.preview = Preview(viewer, lambda: [self.prompts.boxes, self.prompts.points])
        workspaces.labels_chosen.connect(self._draw_over)

    def pause(self) -> None:
        """Let go of the viewer; the layers of prompts and preview are taken out of it."""
        self._following = False
        for event, callback in self._events():
            event.disconnect(callback)
        self._watch(None)
        self._workspaces.current = None
        self.plane = None
        self.prompts.remove()
        self.preview.remove()

    def resume(self) -> None:
        """Follow the viewer, and go on with the image that was in hand last."""
        self._following = True
        for event, callback in self._events():
            event.connect(callback)
        self.choose_image(self.first_image())
        # Nothing need be pressed before the first click.
        self.prompts.use_points(True)

    # -- viewer -----------------------------------------------------------------------------------------------------

    def _events(self) -> list[tuple[Any, Callable[..., None]]]:
        layers, dims = self.viewer.layers, self.viewer.dims
        return [
            (layers.events.inserted, self._layer_added),
            (layers.events.removed, self._layer_removed),
            (layers.selection.events.active, self._active_changed),
            (dims.events.point, self._moved),
            (dims.events.order, self._moved),
            (dims.events.ndisplay, self._moved),
            (camera_of(self.viewer).events.zoom, self._zoomed),
        ]

    def _later(self, callback: Callable[[], None]) -> None:
        """Call when napari is done with what it tells of: layers added amid an event would upset it."""
        QTimer.singleShot(0, lambda: callback() if self._following else None)

    def _zoomed(self, event: Any) -> None:
        self.prompts.fit_to_zoom()
        self.preview.fit_to_zoom()

    def _draw_over(self, layer: Layer) -> None:
        """Draw what belongs to the image in hand after a layer: an opaque one would hide it."""
        workspace, preview, prompts = self._workspaces.current, self.preview, self.prompts
        objects = None if workspace is None or workspace.objects is None else workspace.objects.layer
        own = objects if objects is not layer and objects is not None and is_ours(objects) else None
        on_top(self.viewer, [own, preview.layer, preview.amr_points, prompts.boxes, prompts.points], layer)

    def images(self) -> list[Image]:
        """The layers that can be segmented: not those that the plugin made."""
        return [
            layer
            for layer in self.viewer.layers
            if type(layer) is Image and not DISPLAY_ONLY.items() <= layer.metadata.items()
        ]

    def first_image(self) -> Image | None:
        """The image to begin with: the one before the widget was closed, else the active one, else the topmost."""
        active = self.viewer.layers.selection.active
        images = self.images()
        before = self._workspaces.take_last_image()
        if before in images:
            return before
        return active if active in images else (images[-1] if images else None)

    def _layer_added(self, event: Any) -> None:
        layer = event.value
        if self._workspaces.current is None:
            self._later(self._begin)
        self._workspaces.take_back_objects(layer)
        self._workspaces.changed.emit()

    def _layer_removed(self, event: Any) -> None:
        layer = event.value
        if self._workspaces.current is not None and layer is self._workspaces.current.image:
            self.choose_image(None)
            self._later(self._begin)
        self._workspaces.layer_removed(layer)
        if layer in (self.prompts.points, self.prompts.boxes) and not self.prompts.is_quiet:
            # What lay in it is gone, which can be undone; to go on, an empty one is needed.
            self._later(self._restore_prompt_layers)
        self._workspaces.changed.emit()

    def _begin(self) -> None:
        if self._workspaces.current is None and (image := self.first_image()) is not None:
            self.choose_image(image)
            self.prompts.use_points(True)

    def _restore_prompt_layers(self) -> None:
        if self._workspaces.current is None or self.plane is None:
            return
        self._follow()
        self.prompted.emit("remove layer of prompts", self.prompts.read())

    def _active_changed(self, event: Any) -> None:
        layer = event.value
        if is_kept_active(self.viewer):
            return
        if layer in self.images() and (self._workspaces.current is None or layer is not self._workspaces.current.image):
            self._later(lambda: self._choose_if_active(layer))

    def _choose_if_active(self, layer: Image) -> None:
        if self.viewer.layers.selection.active is layer and layer in self.images():
            self.choose_image(layer)

    def go_to(self, plane: Plane) -> None:
        """Move the viewer's sliders to a plane."""
        workspace = self._workspaces.current
        if workspace is None:
            return
        world = workspace.image.data_to_world(plane.to_data(0.5, 0.5))
        offset = self.viewer.dims.ndim - len(world)
        for axis, index in enumerate(plane.position):
            if index >= 0:
                self.viewer.dims.set_point(axis + offset, world[axis])

    # -- image ------------------------------------------------------------------------------------------------------

    def choose_image(self, image: Image | None) -> None:
        """Segment this layer from now on."""
        self.left.emit()
        self._watch(image)
        if image is None:
            self._workspaces.current = self.plane = None
            self.preview.hide()
            self.prompts.show({})
        else:
            self._workspaces.current = self._workspaces.of(image)
            self.plane = None
            self.prompts.show({})
            # While another image was in hand, nobody followed this one.
            if self._workspaces.current.pixels is not image.data:
                self._pixels_changed()
            else:
                self._placed()
            self._draw_over(image)
        self._workspaces.changed.emit()

    def _watch(self, image: Image | None) -> None:
        """Follow changes of the image's pixels and place; no longer those of the one before."""
        for layer, callbacks in (
            (self._workspaces.current.image if self._workspaces.current else None, "disconnect"),
            (image, "connect"),
        ):
            if layer is None:
                continue
            getattr(layer.events.data, callbacks)(self._pixels_changed)
            if callbacks == "connect":
                layer.mouse_drag_callbacks.append(self._image_pressed)
            elif self._image_pressed in layer.mouse_drag_callbacks:
                layer.mouse_drag_callbacks.remove(self._image_pressed)
            for name in PLACE:
                getattr(getattr(layer.events, name), callbacks)(self._placed)

    def _image_pressed(self, layer: Image, event: Any) -> Generator[None]:
        """While the image is the active layer, a click in it is a prompt, too; a drag moves the view."""
        start, moved = np.asarray(event.pos), False
        positive, plain = "Alt" not in event.modifiers, all(key == "Alt" for key in event.modifiers)
        yield
        while event.type == "mouse_move":
            moved = moved or float(np.abs(np.asarray(event.pos) - start).max()) > CLICK_PIXELS
            yield
        if not moved and plain and self.plane is not None and layer.mode == "pan_zoom":
            self.prompts.add_point(event.position, positive)

    def use_settings(self, settings: ImageSettings) -> None:
        """See the image's pixels in another way.

        Raises:
            ConfigError: the image has no such channels.
        """
        workspace = self._workspaces.current
        if workspace is None or settings == workspace.settings:
            return
        ImageSnapshot.of(workspace.image, settings)
        if settings.channel_axis != workspace.settings.channel_axis:
            self._begin_anew(workspace, settings)
        else:
            workspace.settings = settings
        self._pixels_changed()

    def _begin_anew(self, workspace: Workspace, settings: ImageSettings) -> None:
        """Planes are others now, so nothing of before has a place any more; objects stay in their layer."""
        self._workspaces.current = self._workspaces.begin_anew(workspace.image, settings)
        self.plane = None
        self.prompts.show({})
        self._workspaces.edited.emit(self._workspaces.current)

    def _pixels_changed(self, event: Any = None) -> None:
        workspace = self._workspaces.current
        if workspace is None:
            return
        self.left.emit()
        image = workspace.image
        if shape_of(image) != workspace.shape:
            self._begin_anew(workspace, replace(first_settings(image), intensity=workspace.settings.intensity))
        else:
            workspace.pixels = image.data
            workspace.forget_predictions()
        self._placed()

    def _placed(self, event: Any = None) -> None:
        if self._workspaces.current is None:
            return
        workspace = self._workspaces.current
        if workspace.objects is not None and is_ours(workspace.objects.layer):
            place_labels(workspace.objects.layer, workspace.image, workspace.shape, workspace.settings.channel_axis)
        self._moved()

    def _moved(self, event: Any = None) -> None:
        """Show what belongs to the plane that is in view now."""
        workspace = self._workspaces.current
        if workspace is None:
            return
        if event is not None and not self.prompts.ready(len(workspace.shape)):
            self._later(self._moved)
            return
        dims = self.viewer.dims
        try:
            plane = plane_in_view(workspace.image, dims.displayed, dims.point, workspace.settings.channel_axis)
        except RefineSAMError:
            # In three dimensions nothing can be prompted; what is there stays to be looked at.
            self.plane = None
            self.preview.hide()
            self._workspaces.changed.emit()
            return
        turned = self.plane is None or plane.axes != self.plane.axes
        self.plane = plane
        self._follow()
        if turned or self.channel is not None:
            self.prompts.show(workspace.document.draft)
        self.shown.emit()

    def _follow(self) -> None:
        assert self._workspaces.current is not None and self.plane is not None
        self.prompts.follow(self._workspaces.current.image, self.plane, self.channel)

    @property
    def channel(self) -> tuple[int, int] | None:
        """The channel axis and the index on it that is in view."""
        workspace = self._workspaces.current
        if workspace is None or workspace.settings.channel_axis is None:
            return None
        axis = workspace.settings.channel_axis
        index = round(float(workspace.image.world_to_data(self.viewer.dims.point)[axis]))
        return axis, min(max(index, 0), workspace.shape[axis] - 1)
