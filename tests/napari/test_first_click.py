"""Nothing need be pressed before the first click, however the image came into the window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from qtpy.QtTest import QTest
from skimage import data

from napari_gui import Gui

COIN, OTHER_COIN = (50, 48), (195, 215)


def test_the_first_click_after_opening_segments(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.click(gui.viewer.layers["image"], *COIN)
    assert gui.mask()[COIN] and gui.controller.view.preview.layer.visible
    gui.key("N")
    gui.click(gui.viewer.layers["image"], *OTHER_COIN)
    assert gui.mask()[OTHER_COIN]


def test_an_image_that_is_opened_after_the_widget(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui()
    image = gui.viewer.add_image(data.coins(), name="image")
    gui.settle()
    QTest.qWait(100)
    gui.click(image, *COIN)
    assert gui.mask()[COIN]
    # So is one that is chosen in the list of layers, which leaves it the active one: its contrast can be set.
    other = gui.viewer.add_image(data.coins()[::-1].copy(), name="other")
    gui.settle()
    assert gui.viewer.layers.selection.active is other and gui.controller.workspace.image is other
    row, column = data.coins().shape[0] - 1 - COIN[0], COIN[1]
    where = gui.controller.view.prompts.points.data
    gui.drag(other, (100, 100), (140, 160))
    assert len(where) == 0 and not gui.controller.workspace.document.draft  # a drag moves the view
    gui.viewer.reset_view()
    gui.click(other, row, column)
    assert gui.mask()[row, column]
    gui.click(other, row + 8, column)
    points = gui.controller.workspace.document.draft[gui.controller.view.plane].points
    assert len(points) == 2 and all(point.positive for point in points)


def test_alt_click_on_the_active_image_is_negative(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.click(image, *COIN)
    edge = tuple(map(int, np.argwhere(gui.mask())[-1]))
    gui.viewer.layers.selection.active = image
    gui.click(image, *edge, modifiers="alt")
    gui.click(image, COIN[0] + 3, COIN[1])
    points = gui.controller.workspace.document.draft[gui.controller.view.plane].points
    assert [point.positive for point in points] == [True, False, True]


def test_a_click_of_another_layer_or_with_another_key_is_no_prompt(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.viewer.layers.selection.active = image
    gui.click(image, *COIN, modifiers="shift")
    mine = gui.viewer.add_points(np.zeros((1, 2)), name="mine")
    gui.viewer.layers.selection.active = mine
    gui.click(image, *COIN)
    assert not gui.controller.workspace.document.draft
