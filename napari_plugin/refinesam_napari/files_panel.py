"""The widget's part for files of the user: saved sessions, exports, and unsaved work of before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from magicgui.widgets import Label
from qtpy.QtWidgets import QFileDialog

from refinesam_napari.autosave import discard_autosave
from refinesam_napari.controller import Controller
from refinesam_napari.controls import Panel, combo, row, show
from refinesam_napari.files import Files

__all__ = ["FilesPanel"]

SESSION_FILES = "refinesam session (*.json)"


class FilesPanel(Panel):
    """Save, load, replay, export, restore. Dialogs are Qt's: magicgui's FileEdit is a field in the panel."""

    def __init__(self, controller: Controller, files: Files) -> None:
        super().__init__(controller, "Files")
        self.files = files
        self._image: Any = None
        self._left: list[tuple[str, object]] = []
        tip = "Prompts and masks as JSON"
        self.save = self.button("Save ...", tip, lambda: self._to("Save", "", "json", files.save))
        self.load = self.button("Load ...", "Prompts and masks from JSON", self._load)
        tip = "Compute all masks from their prompts again, with the model chosen now"
        self.replay = self.button("Replay prompts", tip, files.replay)
        self.tiff = self.button(
            "Labels as TIFF ...",
            "Export",
            lambda: self._to("Labels as TIFF", "_labels", "tif", files.export_tiff),
        )
        self.coco = self.button(
            "COCO JSON ...", "Export", lambda: self._to("COCO JSON", "_coco", "json", files.export_coco)
        )
        self.left = combo(lambda _: self._left, tip="When it was written last, the newest first")
        self.restore = self.button("Restore", "Load what was not saved when a viewer ended", self._restore)
        self.discard = self.button("Discard", "Delete this unsaved work for good", self._discard)
        self.unsaved = row(Label(value="Unsaved work of"), self.left, self.restore, self.discard)
        self._rows = row(self.save, self.load, self.replay), row(self.tiff, self.coco)
        self.fill(*self._rows, self.unsaved)

    def update_shown(self) -> None:
        """Show the state of now."""
        workspace = self.controller.workspace
        self.setEnabled(workspace is not None)
        image = None if workspace is None else workspace.image
        if image is not self._image:  # Looking into the folder takes time; do so once for an image.
            self._image = image
            self._look_for_unsaved()

    def _look_for_unsaved(self) -> None:
        seen, self._left = Counter[str](), []
        for path, when in self.files.left_behind():  # magicgui knows choices by their words.
            seen[when] += 1
            self._left.append((when if seen[when] == 1 else f"{when} ({seen[when]})", path))
        show(self.left, self._left[0][1] if self._left else None, anew=True)
        self.unsaved.visible = bool(self._left)

    def _to(self, title: str, ending: str, suffix: str, write: Callable[[str], None]) -> None:
        name = "session" if self._image is None else self._image.name
        path, _ = QFileDialog.getSaveFileName(self, title, f"{name}{ending}.{suffix}", f"*.{suffix}")
        if path:
            write(path)
            self.controller.tasks.tell(f"Written: {path}")

    def _load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load", "", SESSION_FILES)
        if path:
            self._tell_problems(self.files.load(path))

    def _restore(self) -> None:
        self._tell_problems(self.files.restore(self.left.value))
        self._look_for_unsaved()

    def _discard(self) -> None:
        discard_autosave(self.left.value)
        self._look_for_unsaved()

    def _tell_problems(self, problems: tuple[str, ...]) -> None:
        if problems:
            self.controller.tasks.told.emit("Left out, being damaged: " + "; ".join(problems), True)
