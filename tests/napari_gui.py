"""A hand on the real napari window: mouse and key events on its canvas, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from napari.layers import Layer
from napari.viewer import Viewer
from numpy.typing import NDArray
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from refinesam_napari.controller import Controller
from refinesam_napari.inference import PlanePrediction
from refinesam_napari.widget import RefineSAMWidget

MODIFIERS = {
    "": Qt.KeyboardModifier.NoModifier,
    "alt": Qt.KeyboardModifier.AltModifier,
    "control": Qt.KeyboardModifier.ControlModifier,
    "shift": Qt.KeyboardModifier.ShiftModifier,
    "control shift": Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier,
}
PATIENCE_MS = 60_000  # of waiting for something that will come; the machine may be busy


@dataclass
class Gui:
    """A viewer with the plugin's widget in it."""

    viewer: Viewer
    widget: RefineSAMWidget
    qtbot: QtBot

    @property
    def controller(self) -> Controller:
        return self.widget.controller

    @property
    def canvas(self) -> object:
        return self.viewer.window._qt_viewer.canvas

    def position(self, layer: Layer, *data: float) -> QPoint:
        """Where a point in a layer's displayed data coordinates (row, column) is on the canvas widget."""
        visual = self.canvas.layer_to_visual[layer]
        order = layer._slice_input.displayed
        displayed = [data[axis] for axis in order] if len(data) > 2 else list(data)
        x, y = visual.node.get_transform("visual", "canvas").map([*displayed[::-1], 0, 1])[:2]
        return QPoint(round(x), round(y))

    def mouse(self, kind: str, where: QPoint, modifiers: str = "") -> None:
        native = self.canvas.native
        types = {
            "press": QMouseEvent.Type.MouseButtonPress,
            "release": QMouseEvent.Type.MouseButtonRelease,
            "move": QMouseEvent.Type.MouseMove,
        }
        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        event = QMouseEvent(
            types[kind],
            QPointF(where),
            QPointF(native.mapToGlobal(where)),
            none if kind == "move" else left,
            none if kind == "release" else left,
            MODIFIERS[modifiers],
        )
        QApplication.sendEvent(native, event)

    def click(self, layer: Layer, *data: float, modifiers: str = "") -> None:
        where = self.position(layer, *data)
        self.mouse("press", where, modifiers)
        self.mouse("release", where, modifiers)
        QApplication.processEvents()

    def segment(self, layer: Layer, *data: float) -> NDArray[np.bool_]:
        """Click on an object, wait for its mask, and add it."""
        self.controller.view.prompts.use_points(True)
        self.click(layer, *data)
        mask = self.mask()
        self.key("N")
        return mask

    def drag(self, layer: Layer, start: tuple[float, ...], end: tuple[float, ...], steps: int = 10) -> None:
        a, b = self.position(layer, *start), self.position(layer, *end)
        self.mouse("press", a)
        for step in range(1, steps + 1):
            self.mouse(
                "move", QPoint(*(round(p + (q - p) * step / steps) for p, q in ((a.x(), b.x()), (a.y(), b.y()))))
            )
            QTest.qWait(15)
        self.mouse("release", b)
        QApplication.processEvents()

    def key(self, text: str, modifiers: str = "") -> None:
        key = getattr(Qt.Key, f"Key_{text.upper() if len(text) == 1 else text}")
        QTest.keyClick(self.canvas.native, key, MODIFIERS[modifiers])
        QApplication.processEvents()

    def until(self, condition: Callable[[], object]) -> None:
        self.qtbot.waitUntil(lambda: bool(condition()), timeout=PATIENCE_MS)

    def settle(self) -> None:
        """Wait until nothing is computed any more."""
        time.sleep(0.01)
        self.until(lambda: not self.controller.busy)
        QTest.qWait(50)

    def answer(self) -> PlanePrediction:
        """Wait for the answer to the prompts in view, and for its refinement."""
        self.until(lambda: self.controller.predictions.is_complete)
        found = self.controller.predictions.current
        assert found is not None
        QTest.qWait(50)
        return found

    def mask(self) -> NDArray[np.bool_]:
        """The mask that is previewed, in the whole plane."""
        workspace, plane = self.controller.workspace, self.controller.view.plane
        assert workspace is not None and plane is not None
        found = self.answer()
        shown = found.first if self.controller.predictions.options.show_first else found.mask
        return shown.on(found.request.image.plane_hw(plane))

    def labels(self) -> NDArray[np.uint16]:
        workspace = self.controller.workspace
        assert workspace is not None and workspace.objects is not None
        return np.asarray(workspace.objects.layer.data)

    def pixels(self) -> NDArray[np.uint8]:
        """What is on the canvas now, (h, w, 3)."""
        QApplication.processEvents()
        return self.viewer.screenshot(canvas_only=True, flash=False)[..., :3]

    def colour_at(self, layer: Layer, *data: float) -> NDArray[np.uint8]:
        where = self.position(layer, *data)
        ratio = self.canvas.native.devicePixelRatioF()
        return self.pixels()[round(where.y() * ratio), round(where.x() * ratio)]
