"""The dock is closed and opened again, by its buttons, in the real window."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
from napari.layers import Labels
from PyQt6 import sip
from qtpy.QtGui import QOpenGLContext
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtTest import QTest
from skimage import data

from napari_gui import Gui

COIN, OTHER_COIN = (50, 48), (195, 215)


def close(gui: Gui) -> None:
    """Press the cross of the dock."""
    dock = gui.widget.parent()
    dock.title.close_button.click()
    QTest.qWait(50)


def hide(gui: Gui) -> None:
    """Press the button of the dock that hides it."""
    gui.widget.parent().title.hide_button.click()
    QTest.qWait(50)


def show(gui: Gui) -> None:
    """Choose the dock in the window's menu."""
    gui.widget.parent().toggleViewAction().trigger()
    QTest.qWait(100)


def reopen(gui: Gui) -> Gui:
    _, widget = gui.viewer.window.add_plugin_dock_widget("refinesam", "refinesam")
    QTest.qWait(100)
    return Gui(gui.viewer, widget, gui.qtbot)


def names(gui: Gui) -> list[str]:
    return [layer.name for layer in gui.viewer.layers]


def erase(gui: Gui, layer: Labels) -> None:
    """Take some pixels of the coin away by hand."""
    gui.viewer.layers.selection.active = layer
    layer.selected_label, layer.brush_size, layer.mode = 0, 9, "erase"
    gui.click(layer, *COIN)


def test_closing_gives_back_keys_and_layers_and_reopening_continues(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    first = gui.segment(image, *COIN)
    gui.click(image, *OTHER_COIN)
    second = gui.mask()
    labels, objects = gui.labels(), gui.controller.workspace.objects.layer
    before, opened = labels.copy(), names(gui)
    close(gui)
    assert names(gui) == ["image", "image objects"]
    for target in (gui.viewer, image, objects):
        assert not {"N", "Q", "J", "G"} & {str(key) for key in target.keymap}
    for key in "NQJKGH":
        gui.key(key)
    gui.key("Z", "control")
    gui.click(image, *OTHER_COIN)
    assert np.array_equal(labels, before)

    again = reopen(gui)
    assert sorted(names(again)) == sorted(opened) and again.widget is not gui.widget
    assert len(again.controller.view.prompts.points.data) == 1 and np.array_equal(again.mask(), second)
    assert again.widget.objects_panel.list.count() == 1
    again.key("N")
    assert np.array_equal(labels == 1, first) and np.array_equal(labels == 2, second & ~first)
    for _ in range(4):
        again.key("Z", "control")
    assert not labels.any() and not again.controller.workspace.document.draft
    # As often as one likes.
    for _ in range(2):
        close(again)
        again = reopen(again)
    again.controller.view.prompts.use_points(True)
    again.click(image, *COIN)
    assert again.mask()[COIN]
    assert sorted(names(again)) == sorted(opened)


def test_what_is_done_while_it_is_closed_is_known_afterwards(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    other = gui.viewer.add_image(data.coins()[::-1].copy(), name="other")
    gui.controller.view.choose_image(image)
    gui.segment(image, *COIN)
    layer = gui.controller.workspace.objects.layer
    close(gui)
    erase(gui, layer)
    corrected = layer.data.copy()
    assert corrected[COIN] == 0
    again = reopen(gui)
    assert again.controller.workspace.image is image  # which was in hand, though it is not the topmost
    again.key("K")
    again.mask()
    again.key("N")
    assert np.array_equal(again.labels(), corrected)
    for _ in range(3):
        again.key("Z", "control")
    assert again.labels()[COIN] == 1
    # Layers that went meanwhile are missed.
    close(again)
    # A window without the plugin crashes sometimes when layers are removed.
    again.viewer.window._qt_window.findChild(QOpenGLWidget).makeCurrent()
    again.viewer.layers.remove(layer)
    again.viewer.layers.remove(image)
    last = reopen(again)
    assert last.controller.workspace.image is other and last.controller.workspace.objects is None
    last.viewer.layers.append(layer)
    last.viewer.layers.append(image)
    last.controller.view.choose_image(image)
    last.settle()
    assert last.widget.objects_panel.list.count() == 1  # and known again when they return


def test_what_was_drawn_of_a_removed_layer_is_freed_in_the_canvas_s_context(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    canvas = gui.widget.window().findChild(QOpenGLWidget)
    contexts: list[int] = []

    def note(event: object) -> None:
        current = QOpenGLContext.currentContext()
        contexts.append(0 if current is None else sip.unwrapinstance(current))

    gui.viewer.layers.events.removed.connect(note)
    following = len(gui.viewer.layers.events.removing.callbacks)
    other = gui.viewer.add_image(data.coins(), name="other")
    gui.until(lambda: gui.controller.workspace.image is other)
    gui.viewer.layers.remove(other)
    close(gui)
    assert contexts == [sip.unwrapinstance(canvas.context())] * 3  # the image, points and boxes
    assert len(gui.viewer.layers.events.removing.callbacks) == following - 1


def test_closing_while_something_is_computed_ends_it(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.widget.everything_panel.start.native.click()
    gui.until(lambda: gui.widget._busy.isVisible())
    close(gui)
    assert not gui.controller.tasks.busy and "refinesam: candidates" not in names(gui)
    again = reopen(gui)
    again.controller.view.prompts.use_points(True)
    again.click(again.viewer.layers["image"], *COIN)
    assert again.mask()[COIN]


def test_an_object_whose_mask_is_awaited_leaves_no_ghost(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.controller.view.prompts.points.add(COIN)
    gui.key("N")
    assert gui.controller.busy and list(gui.controller.workspace.document.objects) == [1]
    close(gui)
    again = reopen(gui)
    assert not again.controller.workspace.document.objects and again.widget.objects_panel.list.count() == 0
    again.key("Z", "control")
    again.key("Z", "control")
    assert len(again.controller.view.prompts.points.data) == 1 and again.mask()[COIN]


def test_the_autosave_goes_on_over_a_closed_dock(open_gui: Callable[..., Gui], autosaves: Path) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    gui.mask()
    gui.key("N")
    close(gui)
    again = reopen(gui)
    assert not again.widget.files_panel.restore.visible
    again.controller.view.prompts.use_points(True)
    again.click(image, *OTHER_COIN)
    again.widget.files.flush()
    assert len(list(autosaves.glob("*.json"))) == 1


def test_hiding_gives_back_keys_and_layers_and_showing_continues(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image, widget = gui.viewer.layers["image"], gui.widget
    gui.controller.predictions.use_options(show_first=True)
    gui.click(image, *COIN)
    first = gui.mask()
    gui.key("N")
    gui.click(image, *OTHER_COIN)
    second = gui.mask()
    labels, objects = gui.labels(), gui.controller.workspace.objects.layer
    before, opened = labels.copy(), sorted(names(gui))
    for _ in range(2):
        hide(gui)
        assert not widget.isVisible() and names(gui) == ["image", "image objects"]
        for target in (gui.viewer, image, objects):
            assert not {"N", "Q", "J", "G"} & {str(key) for key in target.keymap}
        for key in "NQJKGH":
            gui.key(key)
        gui.key("Z", "control")
        gui.click(image, *OTHER_COIN)
        gui.viewer.layers.selection.active = image
        gui.click(image, *OTHER_COIN)
        assert np.array_equal(labels, before) and not gui.controller.busy
        show(gui)
        assert widget.isVisible() and sorted(names(gui)) == opened
        # Also what was chosen in the panels.
        assert gui.controller.predictions.options.show_first and widget.objects_panel.list.count() == 1
        assert len(gui.controller.view.prompts.points.data) == 1 and np.array_equal(gui.mask(), second)
    gui.key("N")
    assert np.array_equal(labels == 1, first) and np.array_equal(labels == 2, second & ~first)
    for _ in range(4):
        gui.key("Z", "control")
    assert not labels.any() and not gui.controller.workspace.document.draft
    hide(gui)
    gui.widget.parent().title.close_button.click()  # as when the viewer ends
    assert names(gui) == ["image", "image objects"]


def test_what_is_done_while_it_is_hidden_is_known_afterwards(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.segment(image, *COIN)
    layer = gui.controller.workspace.objects.layer
    hide(gui)
    erase(gui, layer)
    assert layer.data[COIN] == 0
    show(gui)
    gui.key("Z", "control")
    assert gui.labels()[COIN] == 1
    hide(gui)
    gui.viewer.layers.remove(layer)
    gui.viewer.layers.remove(image)
    other = gui.viewer.add_image(data.coins()[::-1].copy(), name="other")
    QTest.qWait(50)
    assert names(gui) == ["other"]
    show(gui)
    assert gui.controller.workspace.image is other and gui.widget.objects_panel.list.count() == 0
    gui.click(other, other.data.shape[0] - 1 - COIN[0], COIN[1])
    assert gui.mask().any()


def test_what_was_computed_when_it_was_hidden_does_not_come_later(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.widget.everything_panel.start.native.click()
    gui.until(lambda: gui.widget._busy.isVisible())
    hide(gui)
    show(gui)
    gui.settle()
    assert "refinesam: candidates" not in names(gui) and not gui.widget.review.candidates
    gui.controller.view.prompts.points.add(COIN)
    gui.key("N")
    assert gui.controller.busy and list(gui.controller.workspace.document.objects) == [1]
    hide(gui)
    show(gui)
    gui.settle()
    assert not gui.controller.workspace.document.objects and gui.widget.objects_panel.list.count() == 0


def test_a_dock_behind_another_tab_goes_on(open_gui: Callable[..., Gui]) -> None:
    from qtpy.QtWidgets import QLabel

    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    other = gui.viewer.window.add_dock_widget(QLabel("another"), name="another", tabify=True)
    other.raise_()
    QTest.qWait(100)
    gui.click(image, *COIN)
    gui.mask()
    gui.key("N")
    assert gui.labels()[COIN] == 1


def test_the_layers_menu_shows_a_hidden_dock(open_gui: Callable[..., Gui]) -> None:
    from refinesam_napari.widget import segment_layer

    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    hide(gui)
    segment_layer(gui.viewer, image)
    QTest.qWait(100)
    assert gui.widget.isVisible()
    gui.click(image, *COIN)
    assert gui.mask()[COIN]


def test_a_closed_viewer_is_forgotten(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.segment(gui.viewer.layers["image"], *COIN)
    gone = [weakref.ref(one) for one in (gui.controller, gui.viewer.layers["image"], gui.controller.workspace)]
    gui.viewer.close()
    del gui
    QTest.qWait(50)
    gc.collect()
    assert [one() for one in gone] == [None, None, None], "its images and masks take no memory any more"


def test_removed_layers_are_forgotten_when_nobody_holds_them(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.segment(gui.viewer.layers["image"], *COIN)
    gone = [weakref.ref(one) for one in (gui.viewer.layers["image"], gui.controller.workspace)]
    gui.viewer.layers.clear()
    gui.viewer.add_image(data.coins(), name="next")
    gui.settle()
    gc.collect()
    assert [one() for one in gone] == [None, None]
