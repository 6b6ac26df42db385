"""The canvas that napari draws layers on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QMainWindow

if TYPE_CHECKING:
    from napari.viewer import Viewer
    from qtpy.QtWidgets import QWidget

__all__ = ["Canvas"]


class Canvas:
    """Makes the canvas's OpenGL context the current one before a layer goes.

    napari 0.9 frees what it drew of a layer as soon as the layer is removed, in whichever context is current. Outside
    of drawing that is the window's, as a rule; what is freed there is drawn with in the next frame, and the process
    crashes.

    Attributes:
        dock: a dock of the viewer's window, once there is one.
    """

    def __init__(self, viewer: Viewer) -> None:
        self._removing = viewer.layers.events.removing
        self._removing.connect(self._make_current)
        self.dock: QWidget | None = None

    def close(self) -> None:
        """Let go of the viewer."""
        self._removing.disconnect(self._make_current)

    def _make_current(self, event: Any) -> None:
        with suppress(RuntimeError):  # The window may be destroyed by now.
            window = None if self.dock is None else self.dock.parentWidget()
            if isinstance(window, QMainWindow):
                # Not what other plugins draw in docks of theirs.
                for canvas in window.centralWidget().findChildren(QOpenGLWidget):
                    canvas.makeCurrent()
