"""The Labels layers that hold committed objects: made, chosen, lost and found again."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING

from napari.layers import Labels
from qtpy.QtCore import QObject, Signal

from refinesam import ConfigError
from refinesam_napari.document import Document, History, Write
from refinesam_napari.objects_layer import ObjectsLayer
from refinesam_napari.preview import DISPLAY_ONLY
from refinesam_napari.targets import new_labels, unfit
from refinesam_napari.workspace import Workspace

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

__all__ = ["Committed"]


class Committed(QObject):
    """The workspaces of a viewer's images, and the layers of their objects.

    Signals:
        changed: something that a widget shows has changed.
        edited: the document of the workspace that it carries changed.
        losing: the objects of the workspace that it carries are about to be let go, since their layer was removed.
    """

    changed = Signal()
    edited = Signal(object)
    losing = Signal(object)

    def __init__(self, viewer: Viewer, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.workspace: Workspace | None = None
        self._workspaces: weakref.WeakKeyDictionary[Layer, Workspace] = weakref.WeakKeyDictionary()
        # Objects' layers that were removed, with the history that belongs to them: they may come back.
        self._removed: weakref.WeakKeyDictionary[Layer, tuple[Workspace, History]] = weakref.WeakKeyDictionary()

    def objects_returned(self) -> None:
        """For the subclass: the layer of objects, with their history, is back."""
        raise NotImplementedError

    def ensure_objects(self) -> ObjectsLayer:
        """Return the layer of committed objects, made when the first is committed.

        Raises:
            ConfigError: there is not enough memory.
        """
        workspace = self.workspace
        assert workspace is not None
        if workspace.objects is None:
            shape, channel_axis = workspace.shape, workspace.settings.channel_axis
            layer = new_labels(self.viewer, workspace.image, shape, channel_axis)
            workspace.objects = self._objects(workspace, layer)
        return workspace.objects

    def targets(self) -> dict[Labels, str | None]:
        """The viewer's Labels layers, and why objects of the image can't be committed to them, None if they can."""
        workspace = self.workspace
        if workspace is None:
            return {}
        return {
            layer: unfit(layer, workspace.shape, workspace.settings.channel_axis)
            for layer in self.viewer.layers
            if isinstance(layer, Labels) and not DISPLAY_ONLY.items() <= layer.metadata.items()
        }

    def use_labels(self, layer: Labels) -> None:
        """Commit objects into an existing Labels layer.

        Raises:
            ConfigError: it can't hold the image's objects.
        """
        workspace = self.workspace
        if workspace is None:
            return
        reason = self.targets().get(layer, "it is not in the viewer any more")
        if reason is not None:
            raise ConfigError(f"Objects can't be added to {layer.name!r}: {reason}.")
        if workspace.objects is not None:
            self.let_go_of_objects(workspace)
        workspace.objects = self._objects(workspace, layer)
        self.changed.emit()

    def _objects(self, workspace: Workspace, layer: Labels) -> ObjectsLayer:
        return ObjectsLayer(layer, lambda writes: self._painted(workspace, layer, writes))

    def let_go_of_objects(self, workspace: Workspace) -> None:
        """The objects' layer is gone, and they with it; the prompts in hand stay."""
        assert workspace.objects is not None
        self.losing.emit(workspace)
        workspace.objects.release()
        self._removed[workspace.objects.layer] = (workspace, workspace.history)
        workspace.objects = None
        draft = workspace.document.draft
        workspace.history = History(Document(draft=draft))
        # No edit: closing the viewer comes this way, too, and must not empty the autosave.
        self.changed.emit()

    def take_back_objects(self, layer: Layer) -> None:
        """The objects' layer of before is back, unless others took its place; prompts made meanwhile stay in hand."""
        if layer not in self._removed:
            return
        workspace, history = self._removed.pop(layer)
        if workspace.objects is not None or self._workspaces.get(workspace.image) is not workspace:
            return
        workspace.objects = self._objects(workspace, layer)
        draft, workspace.history = workspace.document.draft, history
        if draft != history.document.draft:
            history.do("keep prompts", replace(history.document, draft=draft, editing=None))
        if workspace is self.workspace:
            self.objects_returned()

    def _painted(self, workspace: Workspace, layer: Labels, writes: tuple[Write, ...]) -> None:
        # Not only in the plane in view: the labels of any image can be painted in, and in 3D too.
        lacking = self.viewer.dims.ndim - layer.ndim
        down, across = (axis - lacking for axis in self.viewer.dims.displayed[-2:])
        workspace.painted(writes, (down, across))
        self.edited.emit(workspace)
        self.changed.emit()
