"""Take the pictures of docs/napari.md from the real napari, with real mouse and key events.

    make screenshots

Without a screen: xvfb-run --auto-servernum --server-args="-screen 0 1600x1000x24" python docs/napari_screenshots.py
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from napari.layers import Layer
from PIL import Image
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QScrollArea, QWidget

import napari
from refinesam_napari.widget import RefineSAMWidget

PICTURES = Path(__file__).parent / "napari"
PATIENCE_S = 120


class Window:
    """A napari window with the widget, and a hand on its mouse."""

    def __init__(self, sample: str) -> None:
        self.viewer = napari.Viewer(show=True)
        self.viewer.window.resize(1500, 940)
        self.layer: Layer = self.viewer.open_sample("refinesam", sample)[0]
        _, self.widget = self.viewer.window.add_plugin_dock_widget("refinesam", "refinesam")
        assert isinstance(self.widget, RefineSAMWidget)
        QTest.qWait(800)
        self.viewer.reset_view()
        QTest.qWait(300)

    @property
    def native(self) -> object:
        return self.viewer.window._qt_viewer.canvas.native

    def place(self, row: float, column: float) -> QPoint:
        visual = self.viewer.window._qt_viewer.canvas.layer_to_visual[self.layer]
        x, y = visual.node.get_transform("visual", "canvas").map([column, row, 0, 1])[:2]
        return QPoint(round(x), round(y))

    def mouse(self, kind: QEvent.Type, where: QPoint, modifiers: Qt.KeyboardModifier) -> None:
        left, none = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton
        button = none if kind == QEvent.Type.MouseMove else left
        held = none if kind == QEvent.Type.MouseButtonRelease else left
        position, on_screen = QPointF(where), QPointF(self.native.mapToGlobal(where))
        QApplication.sendEvent(self.native, QMouseEvent(kind, position, on_screen, button, held, modifiers))

    def click(self, row: float, column: float, alt: bool = False) -> None:
        modifiers = Qt.KeyboardModifier.AltModifier if alt else Qt.KeyboardModifier.NoModifier
        for kind in (QEvent.Type.MouseButtonPress, QEvent.Type.MouseButtonRelease):
            self.mouse(kind, self.place(row, column), modifiers)
        self.wait()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        none = Qt.KeyboardModifier.NoModifier
        self.mouse(QEvent.Type.MouseButtonPress, self.place(*start), none)
        for step in range(1, 11):
            where = [a + (b - a) * step / 10 for a, b in zip(start, end, strict=True)]
            self.mouse(QEvent.Type.MouseMove, self.place(*where), none)
            QTest.qWait(15)
        self.mouse(QEvent.Type.MouseButtonRelease, self.place(*end), none)
        self.wait()

    def key(self, key: Qt.Key) -> None:
        QTest.keyClick(self.native, key)
        self.wait()

    def wait(self, until: Callable[[], object] | None = None) -> None:
        QTest.qWait(150)
        end = time.monotonic() + PATIENCE_S
        while self.widget.controller.busy or (until is not None and not until()):
            assert time.monotonic() < end, "the window never came to rest"
            QTest.qWait(50)
        QTest.qWait(300)

    def shoot(self, name: str) -> None:
        picture = Image.fromarray(self.viewer.screenshot(canvas_only=False, flash=False)[..., :3])
        PICTURES.mkdir(exist_ok=True)
        picture.save(PICTURES / f"{name}.png", optimize=True)
        print(PICTURES / f"{name}.png", picture.size)

    def close(self) -> None:
        self.viewer.close()
        QTest.qWait(200)


def coins() -> None:
    window = Window("coins")
    window.wait()
    window.widget.controller.view.prompts.use_points(True)
    window.click(50, 48)
    window.key(Qt.Key.Key_N)
    window.key(Qt.Key.Key_U)
    window.drag((170, 190), (220, 240))
    window.shoot("box")
    window.key(Qt.Key.Key_N)
    window.widget.everything_panel.start.native.click()
    window.wait(lambda: window.widget.review.candidates)
    scroll(window, window.widget.everything_panel)
    window.shoot("everything")
    window.widget.review.clear()
    window.widget.objects_panel.list.selectAll()
    window.widget.everything_panel.similar.native.click()
    window.wait(lambda: window.widget.review.candidates)
    window.shoot("similar")
    window.close()


def cell() -> None:
    window = Window("cell")
    window.wait()
    window.widget.controller.view.prompts.use_points(True)
    window.click(389, 428)
    window.click(389, 300, alt=True)
    window.shoot("clicks")
    window.close()


def classes() -> None:
    window = Window("coins")
    window.wait()
    controller = window.widget.controller
    controller.view.prompts.use_points(True)
    controller.use_one_each(True)
    places = {"small coin": [(57, 100), (53, 275), (125, 336)], "large coin": [(44, 335), (119, 270), (187, 346)]}
    for name, spots in places.items():
        controller.workspace.add_class(name)
        for coin in spots:
            window.click(*coin)
    window.widget.objects_panel.classes.by_class.native.click()
    window.wait()
    scroll(window, window.widget.objects_panel)
    window.shoot("classes")
    window.close()


def stack() -> None:
    window = Window("nuclei_stack")
    window.viewer.dims.set_point(0, 12 * 2.0)
    window.wait()
    labels_row, labels_column = brightest(window)
    window.widget.controller.view.prompts.use_points(True)
    window.click(labels_row, labels_column)
    scroll(window, window.widget.stack_panel)
    window.widget.stack_panel.start.native.click()
    window.wait()
    window.shoot("stack")
    window.close()


def brightest(window: Window) -> tuple[float, float]:
    """The middle of the brightest blurred spot of the slice: inside a nucleus."""
    blurred = cv2.GaussianBlur(window.layer.data[12].astype(np.float32), (0, 0), 5)
    row, column = np.unravel_index(int(blurred.argmax()), blurred.shape)
    return float(row), float(column)


def scroll(window: Window, panel: QWidget) -> None:
    area = window.widget.findChild(QScrollArea)
    area.verticalScrollBar().setValue(panel.y() - 250)
    QTest.qWait(200)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        # What the user left behind is nobody else's business.
        os.environ["REFINESAM_AUTOSAVE_DIR"] = folder
        coins()
        cell()
        classes()
        stack()
