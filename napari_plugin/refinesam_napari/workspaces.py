"""The Labels layers that hold committed objects: made, chosen, lost and found again."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from napari.layers import Labels
from qtpy.QtCore import QObject, Signal

from refinesam import ConfigError
from refinesam_napari.attached import Attached
from refinesam_napari.document import Classes, Document, History, Write
from refinesam_napari.engine import Work
from refinesam_napari.images import ImageSettings, ImageSnapshot
from refinesam_napari.objects_layer import ObjectsLayer
from refinesam_napari.preview import DISPLAY_ONLY
from refinesam_napari.scanning import Box, Objects, objects_in
from refinesam_napari.targets import is_ours, labels_shape, lies_on, new_labels, place_labels, unfit
from refinesam_napari.tasks import Tasks
from refinesam_napari.views import guess_channel_axis
from refinesam_napari.workspace import Workspace

if TYPE_CHECKING:
    from napari.layers import Image, Layer
    from napari.viewer import Viewer
    from napari.window import Window

__all__ = ["Workspaces", "first_settings"]

# Pixels of labels that are read in no time.
MOST_READ_AT_ONCE = 2**24


@dataclass(eq=False)
class _Kept:
    """What a viewer keeps while the widget is closed.

    Attributes:
        workspaces: by image layer.
        removed: objects' layers that were removed, with the history that belongs to them and where their objects
            were: they may come back.
        image: the one in hand last.
        classes: of the image in hand last, and the key of its current one.
        on_edit: told of what the user paints into the labels, by the widget that is open.
    """

    workspaces: Attached[Layer, Workspace] = field(default_factory=Attached)
    removed: Attached[Layer, tuple[Workspace, History, dict[int, Box]]] = field(default_factory=Attached)
    image: weakref.ref[Image] | None = None
    classes: tuple[Classes, int | None] = field(default_factory=lambda: ({}, None))
    on_edit: Callable[[Workspace], None] | None = None


_kept: Attached[Window, _Kept] = Attached()


class Workspaces(QObject):
    """The workspaces of a viewer's images, and the layers of their objects.

    Signals:
        changed: something that a widget shows has changed.
        edited: the document of the workspace that it carries changed.
        losing: what was made in the workspace that it carries may be about to go, since one of its layers was removed.
        returned: the layer of the current objects, with their history, is back.
        labels_chosen: objects go into the Labels layer that it carries from now on.
    """

    changed = Signal()
    edited = Signal(object)
    losing = Signal(object)
    returned = Signal()
    labels_chosen = Signal(object)

    def __init__(self, viewer: Viewer, tasks: Tasks, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer, self._tasks = viewer, tasks
        self._current: Workspace | None = None
        self._kept = _kept.setdefault(viewer.window, _Kept())
        self._workspaces, self._removed = self._kept.workspaces, self._kept.removed

    @property
    def current(self) -> Workspace | None:
        """That of the image in hand, None without one."""
        return self._current

    @current.setter
    def current(self, workspace: Workspace | None) -> None:
        """Go on with another image; classes come along."""
        if self._current is not None:
            self._kept.classes = self._current.document.classes, self._current.current_class
        if workspace is not None and workspace is not self._current:
            known = workspace.document.classes
            workspace.take_classes(*self._kept.classes)
            came = {key: made for key, made in workspace.document.classes.items() if key not in known}
            workspace.first_classes = {**workspace.first_classes, **came}
        self._current = workspace

    def pause(self) -> None:
        """Let go of the viewer; what was made stays for `resume`, of this widget or the next."""
        image = None if self.current is None else self.current.image
        self._kept.image, self._kept.on_edit = None if image is None else weakref.ref(image), None

    def resume(self) -> None:
        """Take over what was left: layers may have gone meanwhile."""
        self._kept.on_edit = self._edited_by_hand
        for workspace in self:
            if workspace.objects is not None and workspace.objects.layer not in self.viewer.layers:
                self.let_go_of_objects(workspace)
            # Masks that were still awaited when the widget was closed never came.
            items = workspace.document.objects.values()
            workspace.found({item.id: item.planes for item in items if workspace.has_pixels(item)})

    def __iter__(self) -> Iterator[Workspace]:
        return iter(list(self._workspaces.values()))

    def of(self, image: Image) -> Workspace:
        """Return what was made of an image: a new workspace, if nothing was yet."""
        if image not in self._workspaces:
            self._workspaces[image] = Workspace(image, first_settings(image))
        return self._workspaces[image]

    def begin_anew(self, image: Image, settings: ImageSettings) -> Workspace:
        """Return a new workspace of an image, in place of the one before; objects stay in their layer."""
        before = self._workspaces.get(image)
        if before is not None and before.objects is not None:
            before.objects.release()
        self._workspaces[image] = Workspace(image, settings)
        return self._workspaces[image]

    def forget(self, image: Image) -> None:
        """Let go of what was made of an image, which is in a file, and of the image's memory."""
        workspace = self._workspaces.pop(image, None)
        if workspace is not None and workspace.objects is not None:
            workspace.objects.release()

    def take_last_image(self) -> Image | None:
        """Return the image that was in hand before the widget was closed, once."""
        image, self._kept.image = None if self._kept.image is None else self._kept.image(), None
        return image

    def layer_removed(self, layer: Layer) -> None:
        """Let go of objects whose layer is gone; what was made of an image that is gone can be restored on another."""
        for workspace in self:
            if workspace.objects is not None and layer is workspace.objects.layer:
                self.let_go_of_objects(workspace)
        made = self._workspaces.get(layer)
        if made is not None and made.history.undo_name is None and made.history.redo_name is None:
            del self._workspaces[layer]
        elif made is not None:
            self.losing.emit(made)

    def _edited_by_hand(self, workspace: Workspace) -> None:
        self.edited.emit(workspace)
        self.changed.emit()

    def ensure_objects(self) -> ObjectsLayer:
        """Return the layer of committed objects, where its image is; made when the first is committed.

        Raises:
            ConfigError: there is not enough memory, or the user's layer was moved.
        """
        workspace = self.current
        assert workspace is not None
        image, shape, channel_axis = workspace.image, workspace.shape, workspace.settings.channel_axis
        if workspace.objects is None:
            layer = new_labels(self.viewer, image, shape, channel_axis)
            workspace.objects = self._objects(workspace, layer, empty=True)
            self.labels_chosen.emit(layer)
        elif is_ours(layer := workspace.objects.layer):
            place_labels(layer, image, shape, channel_axis)
        elif not lies_on(layer, image, channel_axis):
            reason = unfit(layer, image, shape, channel_axis)
            raise ConfigError(f"Nothing was changed, since {layer.name!r} can't be used: {reason}.")
        return workspace.objects

    def targets(self) -> dict[Labels, str | None]:
        """The viewer's Labels layers, and why objects of the image can't be committed to them, None if they can."""
        workspace = self.current
        if workspace is None:
            return {}
        return {
            layer: self._taken(layer) or unfit(layer, workspace.image, workspace.shape, workspace.settings.channel_axis)
            for layer in self.viewer.layers
            if isinstance(layer, Labels) and not DISPLAY_ONLY.items() <= layer.metadata.items()
        }

    def _taken(self, layer: Labels) -> str | None:
        """Say which other image's objects a layer holds: two would give out the same numbers."""
        holder = self._holder(layer)
        if holder is None or holder.image not in self.viewer.layers:
            return None
        return f"it holds the objects of {holder.image.name!r}: choose another layer for these first"

    def _holder(self, layer: Labels) -> Workspace | None:
        others = (other for other in self._workspaces.values() if other is not self.current)
        return next((other for other in others if other.objects is not None and other.objects.layer is layer), None)

    def _check_labels(self, layer: Labels) -> None:
        """Raise ConfigError if a Labels layer can't hold the image's objects."""
        reason = self.targets().get(layer, "it is not in the viewer any more")
        if reason is not None:
            raise ConfigError(f"Objects can't be added to {layer.name!r}: {reason}.")

    def use_labels(self, layer: Labels, there: Objects | None = None) -> None:
        """Commit objects into an existing Labels layer; what it holds are objects like others from then on.

        Args:
            layer: the layer.
            there: what it holds; it is read if that is None, a large one in the background.

        Raises:
            ConfigError: it can't hold the image's objects.
        """
        workspace = self.current
        if workspace is None:
            return
        self._check_labels(layer)
        if there is None and math.prod(layer.data.shape) > MOST_READ_AT_ONCE:
            self._read_first(workspace, layer)
            return
        for other in (workspace, self._holder(layer)):
            if other is not None and other.objects is not None:
                self.let_go_of_objects(other)
        self._removed.pop(layer, None)
        workspace.objects = self._objects(workspace, layer, empty=there is not None)
        if there is not None:
            workspace.objects.highest_before = max(there, default=0)
        self._find_objects(workspace, anew=True, there=there)
        self.labels_chosen.emit(layer)
        self.changed.emit()

    def _read_first(self, workspace: Workspace, layer: Labels) -> None:
        """Read labels in the background, and use them then; once more, if they were painted meanwhile."""
        pixels, axes, changed = layer.data, _displayed_axes(self.viewer, layer), threading.Event()
        layer.events.paint.connect(changed.set)
        layer.events.data.connect(changed.set)

        def read(work: Work) -> Objects:
            return objects_in(pixels, axes, workspace.channel_axis, work.step(f"Reading {layer.name!r}"))

        def deliver(there: Objects) -> None:
            layer.events.paint.disconnect(changed.set)
            layer.events.data.disconnect(changed.set)
            if self.current is workspace:
                self.use_labels(layer, None if changed.is_set() else there)

        self._tasks.run(read, deliver)

    def _objects(self, workspace: Workspace, layer: Labels, empty: bool = False) -> ObjectsLayer:
        kept, viewer = self._kept, weakref.ref(self.viewer)

        # Not methods: the user may paint while the widget is closed.
        def painted(writes: tuple[Write, ...]) -> None:
            if (of := viewer()) is not None:
                workspace.painted(writes, _displayed_axes(of, layer))
            if kept.on_edit is not None:
                kept.on_edit(workspace)

        def replaced() -> None:
            if (of := viewer()) is not None:
                _find_objects(workspace, _displayed_axes(of, layer))
            if kept.on_edit is not None:
                kept.on_edit(workspace)

        return ObjectsLayer(layer, painted, replaced, empty)

    def _find_objects(self, workspace: Workspace, anew: bool = False, there: Objects | None = None) -> None:
        assert workspace.objects is not None
        _find_objects(workspace, _displayed_axes(self.viewer, workspace.objects.layer), anew, there)

    def let_go_of_objects(self, workspace: Workspace) -> None:
        """The objects' layer is gone, and they with it; the prompts in hand stay."""
        assert workspace.objects is not None
        self.losing.emit(workspace)
        workspace.objects.release()
        self._removed[workspace.objects.layer] = (workspace, workspace.history, workspace.objects.boxes)
        workspace.objects = None
        draft = workspace.document.draft
        workspace.history = History(Document(draft=draft, classes=workspace.document.classes))
        # No edit: closing the viewer comes this way, too, and must not empty the autosave.
        self.changed.emit()

    def take_back_objects(self, layer: Layer) -> None:
        """The objects' layer of before is back, unless others took its place; prompts made meanwhile stay in hand."""
        if layer not in self._removed:
            return
        workspace, history, boxes = self._removed.pop(layer)
        if workspace.objects is not None or self._workspaces.get(workspace.image) is not workspace:
            return
        workspace.objects = self._objects(workspace, layer, empty=layer.multiscale)
        workspace.objects.know(boxes)
        draft, classes, workspace.history = workspace.document.draft, workspace.document.classes, history
        workspace.take_classes(classes, workspace.class_id)
        if not layer.multiscale:  # Nobody but us can have changed a pyramid.
            self._find_objects(workspace)
        if draft != history.document.draft:
            history.do("keep prompts", replace(history.document, draft=draft, editing=None))
        if workspace is self.current:
            self.returned.emit()


def first_settings(image: Image) -> ImageSettings:
    """Up to three channels are seen as colours, of more the first alone."""
    axis = guess_channel_axis(image)
    if axis is None:
        return ImageSettings()
    count = ImageSnapshot.of(image, ImageSettings(channel_axis=axis)).shape[axis]
    return ImageSettings(channel_axis=axis, channels=tuple(range(count)) if count <= 3 else (0,))


def _displayed_axes(viewer: Viewer, layer: Labels) -> tuple[int, int]:
    """The layer's axes that run down and across: also of a layer that is not in view, and in 3D."""
    lacking = viewer.dims.ndim - layer.ndim
    down, across = (axis - lacking for axis in viewer.dims.displayed[-2:])
    return (down, across) if min(down, across) >= 0 else (layer.ndim - 2, layer.ndim - 1)


def _find_objects(
    workspace: Workspace, axes: tuple[int, int], anew: bool = False, there: Objects | None = None
) -> None:
    """Bring the document in line with what is in the labels."""
    objects = workspace.objects
    assert objects is not None
    if tuple(objects.array.shape) != labels_shape(workspace.shape, workspace.channel_axis):
        return
    if there is None:
        there = objects_in(objects.array, axes, workspace.channel_axis)
    objects.know({object_id: box for object_id, (box, _) in there.items()})
    workspace.found({object_id: planes for object_id, (_, planes) in there.items()}, anew)
