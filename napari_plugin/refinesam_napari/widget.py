"""The dock widget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QScrollArea, QSizePolicy, QVBoxLayout, QWidget

import napari
from refinesam_napari.canvas import Canvas
from refinesam_napari.controller import Controller
from refinesam_napari.controls import Panel
from refinesam_napari.engine import Progress
from refinesam_napari.files import Files
from refinesam_napari.files_panel import FilesPanel
from refinesam_napari.folder import FolderPanel, ImageFolder
from refinesam_napari.keys import KEYS, Keys
from refinesam_napari.objects_panel import ObjectsPanel
from refinesam_napari.panels import ImagePanel, PromptPanel
from refinesam_napari.review import EverythingPanel, Review
from refinesam_napari.stack import Stack, StackPanel

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["RefineSAMWidget", "segment_layer"]

# Shorter work than this is done before a progress bar could be read.
PROGRESS_AFTER_MS = 150


class RefineSAMWidget(QWidget):
    """Click to mask while you look: prompts, refinement, objects, stacks, files."""

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        self._dock: QObject | None = None
        super().__init__()
        self.canvas = Canvas(unwrapped(napari_viewer))
        self.controller = Controller(unwrapped(napari_viewer), self)
        self.keys = Keys(self.controller)
        self.image_panel = ImagePanel(self.controller)
        self.prompt_panel = PromptPanel(self.controller)
        self.objects_panel = ObjectsPanel(self.controller)
        self.files = Files(self.controller)
        self.stack = Stack(self.controller)
        self.review = Review(self.controller)
        self.folder = ImageFolder(self.controller, self.files, self.review.clear)
        self.folder_panel = FolderPanel(self.controller, self.folder)
        self.everything_panel = EverythingPanel(self.controller, self.review, lambda: self.objects_panel.selected)
        self.stack_panel = StackPanel(self.controller, self.stack, lambda: self.objects_panel.chosen)
        self.files_panel = FilesPanel(self.controller, self.files)
        self.panels: list[Panel] = [
            self.folder_panel,
            self.image_panel,
            self.prompt_panel,
            self.objects_panel,
            self.stack_panel,
            self.everything_panel,
            self.files_panel,
        ]
        self.progress = QProgressBar()
        self.cancel = self.prompt_panel.button("Cancel", "Give up what is being computed", self.controller.cancel)
        self.status = QLabel("")
        self.status.setWordWrap(True)
        # An address or a path in it is there to be copied.
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._busy = QWidget()
        busy = QHBoxLayout(self._busy)
        busy.setContentsMargins(0, 0, 0, 0)
        busy.addWidget(self.progress, 1)
        busy.addWidget(self.cancel.native)
        self._busy.setVisible(False)
        self._lay_out()
        # Many signals, one update.
        self._update = QTimer(self, singleShot=True, interval=0)
        self._update.timeout.connect(self._update_shown)
        self._show_busy = QTimer(self, singleShot=True, interval=PROGRESS_AFTER_MS)
        self._show_busy.timeout.connect(lambda: self._busy.setVisible(True))
        self.controller.workspaces.changed.connect(self._update.start)
        self.controller.tasks.progressed.connect(self._progressed)
        self.controller.tasks.finished.connect(self._finished)
        self.controller.tasks.told.connect(self._told)
        # What went wrong is no news any more when something was done since, or an answer came.
        self.controller.workspaces.edited.connect(self._forget_error)
        self.controller.predictions.arrived.connect(self._forget_error)
        controller, files, canvas = self.controller, self.files, self.canvas
        # Of a destroyed widget no method can be called any more, so not a bound one.
        self.destroyed.connect(lambda: _end(files, controller, canvas))
        self._update_shown()

    def event(self, event: QEvent) -> bool:
        """End with the dock: napari takes the widget out of it, and does not destroy it."""
        if event.type() == QEvent.Type.ParentChange:
            if self.parent() is None and self._dock is not None:
                self.pause()
                self.controller.close()
                self.canvas.close()
            self._dock = self.parent()
            if self._dock is not None:
                self.canvas.dock = self._dock
                self._dock.installEventFilter(self)
        return bool(super().event(event))

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: N802  # Qt's name
        """Pause while the dock is hidden: by its button or the menu, not because another tab or window covers it."""
        if watched is self._dock and event.type() == QEvent.Type.HideToParent:
            self.pause()
        elif watched is self._dock and event.type() == QEvent.Type.ShowToParent:
            self.controller.resume()
        return bool(super().eventFilter(watched, event))

    def pause(self) -> None:
        """Give back keys and layers; prompts and objects are there again when the widget is shown or opened again."""
        if self.controller.tasks.is_active:
            self.keys.release()
            self.review.clear()
            self.objects_panel.classes.colours.restore()
            self.files.flush()
            self.controller.pause()

    def _lay_out(self) -> None:
        content = QWidget()
        layout = QVBoxLayout(content)
        for panel in self.panels:
            layout.addWidget(panel)
        keys = QLabel("<br>".join(f"<b>{key}</b>: {words}" for key, (words, _) in KEYS.items()))
        keys.setWordWrap(True)
        layout.addWidget(keys)
        layout.addStretch(1)
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(content)
        outer = QVBoxLayout(self)
        outer.addWidget(scroll, 1)
        outer.addWidget(self._busy)
        outer.addWidget(self.status)
        self.setMinimumWidth(content.minimumSizeHint().width() + 40)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)

    def _update_shown(self) -> None:
        if not self.controller.tasks.is_active:
            return
        self.keys.bind()
        for panel in self.panels:
            panel.update_shown()

    def _progressed(self, progress: Progress) -> None:
        self.progress.setRange(0, progress.total)
        self.progress.setValue(progress.done)
        self.progress.setFormat(f"{progress.text} %p%")
        if not self._busy.isVisible() and not self._show_busy.isActive():
            self._show_busy.start()

    def _finished(self) -> None:
        if not self.controller.computing:
            self._show_busy.stop()
            self._busy.setVisible(False)

    def _forget_error(self) -> None:
        if self.status.styleSheet():
            self._told("", False)

    def _told(self, text: str, error: bool) -> None:
        self.status.setText(text)
        self.status.setStyleSheet("color: #ff6b6b" if error else "")


def _end(files: Files, controller: Controller, canvas: Canvas) -> None:
    files.close()
    controller.close()
    canvas.close()


def segment_layer(viewer: napari.Viewer, layer: Image) -> None:
    """Open the widget on a layer: the command in the layers' menu."""
    dock, widget = unwrapped(viewer).window.add_plugin_dock_widget("refinesam", "refinesam")
    dock.show()  # It may be there already, and hidden.
    widget.controller.view.choose_image(unwrapped(layer))
    widget.controller.view.prompts.use_points(True)


def unwrapped(proxied: Any) -> Any:
    """Return what napari wraps for plugins: it wraps anew on every access, and layers are known by identity here."""
    return getattr(proxied, "__wrapped__", proxied)
