"""A mode in which every click and every box is an object of its own, with real mouse and keys."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from skimage import data

from napari_gui import Gui

COINS = [(50, 48), (50, 105), (120, 105)]  # row and column
BOXED = [(120, 45), (50, 170)]


def test_every_click_and_every_box_is_an_object(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins()[:170, :260])
    image, workspace = gui.viewer.layers["image"], gui.controller.workspace
    prompts = gui.controller.view.prompts
    prompts.use_points(True)
    gui.click(image, *COINS[0])
    gui.key("N", "shift")
    assert gui.widget.prompt_panel.one_each.value is False or workspace.document.objects, "what was in hand is added"
    gui.settle()
    assert list(workspace.document.objects) == [1] and gui.widget.prompt_panel.one_each.value

    # Two at once: nobody waits for the answers.
    workspace.class_id = workspace.add_class("coin")
    for coin in COINS[1:]:
        gui.click(image, *coin)
    gui.until(lambda: len(workspace.document.objects) == 3)
    gui.settle()
    labels = gui.labels()
    assert [int(labels[coin]) for coin in COINS] == [1, 2, 3] and not workspace.document.draft
    assert len(prompts.points.data) == 0 and gui.controller.predictions.current is None
    objects = workspace.document.objects.values()
    assert [item.score is not None and item.score > 0.5 for item in objects] == [True] * 3
    assert [workspace.document.class_of(item) is not None for item in objects] == [False, True, True]
    refined = [next(iter(item.prompts.values())).refine for item in objects]
    assert refined == [True] * 3

    # One step each.
    gui.key("Z", "control")
    assert list(workspace.document.objects) == [1, 2] and not workspace.document.draft and not (gui.labels() == 3).any()
    gui.key("Z", "control shift")
    assert np.array_equal(gui.labels(), labels)

    # Boxes, one after the other.
    gui.key("U")
    for row, column in BOXED:
        gui.drag(image, (row - 24, column - 24), (row + 24, column + 24), steps=4)
    gui.until(lambda: len(workspace.document.objects) == 5)
    gui.settle()
    assert [int(gui.labels()[place]) for place in BOXED] == [4, 5] and len(prompts.boxes.data) == 0
    x0, y0, x1, y1 = next(iter(workspace.document.objects[5].prompts.values())).box
    assert np.allclose([x0, y0, x1, y1], [146.5, 26.5, 194.5, 74.5], atol=1.5)

    # What other objects cover already is no object, and said.
    prompts.use_points(True)
    gui.click(image, *COINS[0])
    gui.until(lambda: "was not added" in gui.widget.status.text())
    assert len(workspace.document.objects) == 5

    # An object in hand is corrected, and the mode goes on after it.
    gui.controller.edit_object(1)
    prompts.use_points(True)
    gui.click(image, COINS[0][0] + 5, COINS[0][1] + 5)
    gui.settle()
    assert len(workspace.document.objects) == 5 and workspace.document.editing == 1
    gui.key("N")
    gui.key("N", "shift")
    gui.click(image, 120, 170)
    gui.answer()
    assert len(workspace.document.objects) == 5 and workspace.document.draft, "as ever"


def test_a_click_off_the_object_comes_first(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins()[:100, :130])
    image, workspace = gui.viewer.layers["image"], gui.controller.workspace
    gui.controller.view.prompts.use_points(True)
    gui.widget.prompt_panel.one_each.native.click()
    gui.click(image, 50, 105, modifiers="alt")
    gui.settle()
    assert not workspace.document.objects and len(workspace.document.draft) == 1
    gui.click(image, *COINS[0])
    gui.until(lambda: workspace.document.objects)
    gui.settle()
    (asked,) = workspace.document.objects[1].prompts.values()
    assert [point.positive for point in asked.points] == [False, True] and not workspace.document.draft
    assert gui.labels()[COINS[0]] == 1 and gui.labels()[50, 105] == 0
