"""Fixtures of the plugin's tests: the real napari, in a real window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtTest import QTest


@pytest.fixture(autouse=True)
def autosaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of a test gets among the user's autosaves."""
    folder = tmp_path / "autosaves"
    monkeypatch.setenv("REFINESAM_AUTOSAVE_DIR", str(folder))
    return folder


@pytest.fixture
def open_gui(make_napari_viewer: Callable[..., Any], qtbot: QtBot) -> Iterator[Callable[..., Any]]:
    """Open a window with an image and the widget."""
    from napari_gui import Gui

    def open_window(*images: Any, size: tuple[int, int] = (1400, 900), **settings: Any) -> Gui:
        viewer = make_napari_viewer(show=True)
        viewer.window.resize(*size)
        for image in images:
            viewer.add_image(image, **settings)
        _, widget = viewer.window.add_plugin_dock_widget("refinesam", "refinesam")
        qtbot.waitExposed(viewer.window._qt_window)
        QTest.qWait(300)
        viewer.reset_view()
        QTest.qWait(100)
        return Gui(viewer, widget, qtbot)

    yield open_window
