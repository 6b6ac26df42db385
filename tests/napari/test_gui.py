"""Clicks, drags and keys in the real window; pixels of labels and of the canvas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from skimage import data

from napari_gui import Gui

COIN = (50, 48)  # row and column in the middle of a coin
OTHER_COIN = (195, 215)


def test_click_previews_a_mask_and_paints_it(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.controller.view.prompts.use_points(True)
    before = gui.colour_at(image, *COIN)
    gui.click(image, *COIN)
    mask = gui.mask()
    assert mask[COIN] and 300 < mask.sum() < 10_000
    assert gui.controller.view.preview.layer.visible
    after = gui.colour_at(image, *COIN)
    assert not np.array_equal(before, after)
    outside = (5, 190)
    assert not mask[outside]


def test_alt_click_is_negative_and_removes_what_it_points_at(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.controller.view.prompts.use_points(True)
    gui.drag_box = None
    gui.click(image, *COIN)
    first = gui.mask()
    rows, columns = np.nonzero(first)
    edge = (int(rows[-1]), int(columns[-1]))
    gui.click(image, *edge, modifiers="alt")
    prompts = gui.controller.workspace.document.draft[gui.controller.view.plane]
    assert [point.positive for point in prompts.points] == [True, False]
    assert not gui.mask()[edge]
    # The next click without Alt is positive again.
    gui.click(image, COIN[0] + 3, COIN[1])
    prompts = gui.controller.workspace.document.draft[gui.controller.view.plane]
    assert [point.positive for point in prompts.points] == [True, False, True]


def test_box_drag_commit_undo_redo_delete_by_keys(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.key("U")
    gui.drag(image, (170, 190), (220, 240))
    mask = gui.mask()
    x0, y0, x1, y1 = gui.controller.workspace.document.draft[gui.controller.view.plane].box
    assert np.allclose([x0, y0, x1, y1], [190.5, 170.5, 240.5, 220.5], atol=1.5)
    assert mask[OTHER_COIN] and mask[175:215, 195:235].mean() > 0.6
    gui.key("N")
    assert np.array_equal(gui.labels() == 1, mask)
    assert not gui.controller.workspace.document.draft
    assert len(gui.controller.view.prompts.boxes.data) == 0
    gui.key("Z", "control")
    assert not gui.labels().any()
    assert len(gui.controller.view.prompts.boxes.data) == 1
    gui.key("Z", "control shift")
    assert np.array_equal(gui.labels() == 1, mask)
    gui.widget.objects_panel.list.setCurrentRow(0)
    gui.widget.objects_panel.delete.native.click()
    assert not gui.labels().any()
    gui.key("Z", "control")
    assert np.array_equal(gui.labels() == 1, mask)


def test_next_object_never_overwrites_unless_asked(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.key("U")
    gui.drag(image, (170, 190), (220, 240))
    first = gui.mask()
    gui.key("N")
    gui.drag(image, (150, 170), (225, 245))
    second = gui.mask()
    assert (first & second).any()
    gui.key("N")
    labels = gui.labels()
    assert np.array_equal(labels == 1, first) and np.array_equal(labels == 2, second & ~first)
    gui.key("Z", "control")
    gui.controller.predictions.use_options(overwrite=True)
    gui.key("N")
    assert np.array_equal(gui.labels() == 2, second)
    gui.key("Z", "control")
    assert np.array_equal(gui.labels() == 1, first)


def test_keys_toggle_refinement_and_show_before_and_after(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    refined = gui.answer()
    assert refined.report is not None
    panel, compactness = gui.widget.prompt_panel, f"Q {refined.report.compactness:.2f}"
    assert "confidence" in panel.told.value and compactness not in panel.told.value
    panel.details.value = True
    assert compactness in panel.told.value and "predicted IoU" in panel.told.value
    preview = gui.controller.view.preview
    assert preview.layer.colormap.name == "refinesam refined"
    gui.key("H")
    assert gui.controller.predictions.options.show_first and preview.layer.colormap.name == "refinesam first"
    gui.key("H")
    assert preview.layer.colormap.name == "refinesam refined"
    gui.key("G")
    plain = gui.answer()
    assert plain.report is None and preview.layer.colormap.name == "refinesam first"
    assert np.array_equal(plain.first.pixels, refined.first.pixels)


def test_points_that_refinement_adds_are_marked(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    refined = gui.answer()
    assert refined.report is not None and len(refined.report.points)
    marks = gui.controller.view.preview.amr_points
    assert marks.visible and len(marks.data) == len(refined.report.points)
    gui.key("H")
    assert not marks.visible
    gui.key("H")
    assert marks.visible
    gui.key("G")
    assert gui.answer().report is None and not marks.visible


def test_editing_an_object_again_replaces_its_pixels(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    gui.mask()
    gui.key("N")
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *OTHER_COIN)
    gui.mask()
    gui.key("N")
    gui.key("K")  # the first object
    document = gui.controller.workspace.document
    assert document.editing == 1 and len(gui.controller.view.prompts.points.data) == 1
    gui.controller.view.prompts.use_points(True)
    gui.click(image, COIN[0] + 8, COIN[1] + 5)
    changed = gui.mask()
    other = gui.labels() == 2
    gui.key("N")
    assert np.array_equal(gui.labels() == 1, changed & ~other)
    assert np.array_equal(gui.labels() == 2, other)
    assert len(gui.controller.workspace.document.objects) == 2


def test_commit_before_the_answer_is_there_loses_nothing(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    gui.key("N")  # at once
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *OTHER_COIN)
    second = gui.mask()
    gui.until(lambda: gui.labels().any())
    assert gui.labels()[COIN] == 1 and second[OTHER_COIN] and not second[COIN]
    gui.key("N")
    gui.until(lambda: (gui.labels() == 2).any())
    for _ in range(4):
        gui.key("Z", "control")
    assert not gui.labels().any()
    for _ in range(4):
        gui.key("Z", "control shift")
    assert gui.labels()[COIN] == 1 and gui.labels()[OTHER_COIN] == 2


@pytest.mark.parametrize("at_once", [False, True])
def test_the_same_coin_twice_is_one_object(open_gui: Callable[..., Gui], at_once: bool) -> None:
    gui = open_gui(data.coins())
    image, workspace = gui.viewer.layers["image"], gui.controller.workspace
    for _ in range(2):
        workspace.forget_predictions()
        gui.controller.view.prompts.use_points(True)
        gui.controller.view.prompts.points.add(COIN)
        if not at_once:
            gui.mask()
        gui.key("N")
        gui.settle()
    gui.until(lambda: "other objects cover it already" in gui.widget.status.text())
    assert list(workspace.document.objects) == [1] and gui.widget.objects_panel.list.count() == 1
    if at_once:
        gui.key("Z", "control")
    # The prompts are not lost: with leave to overwrite they make an object.
    assert len(gui.controller.view.prompts.points.data) == 1
    gui.mask()
    gui.widget.objects_panel.overwrite.value = True
    gui.key("N")
    assert gui.controller.workspace.document.objects.keys() == {2} and gui.labels()[COIN] == 2
    assert image in gui.viewer.layers


def test_painting_by_hand_is_in_the_same_history(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    mask = gui.segment(image, *COIN)
    layer = gui.controller.workspace.objects.layer
    gui.viewer.layers.selection.active = layer
    layer.selected_label, layer.brush_size, layer.mode = 7, 11, "paint"
    gui.click(layer, 150, 150)
    painted = gui.labels() == 7
    assert painted.sum() > 50 and 7 in gui.controller.workspace.document.objects
    gui.key("Z", "control")
    assert not (gui.labels() == 7).any() and np.array_equal(gui.labels() == 1, mask)
    gui.key("Z", "control shift")
    assert np.array_equal(gui.labels() == 7, painted)


def test_objects_go_into_labels_that_were_there(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    there = np.zeros(image.data.shape, np.int32)
    there[:60, :45] = 5  # covers half of the coin
    layer = gui.viewer.add_labels(there.copy(), name="mine")
    gui.settle()
    panel = gui.widget.objects_panel
    assert [panel.labels.native.itemText(i) for i in range(panel.labels.native.count())] == ["a new layer", "mine"]
    panel.labels.native.setCurrentIndex(1)
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    mask = gui.mask()
    gui.key("N")
    assert gui.controller.workspace.objects.layer is layer
    assert np.array_equal(layer.data == 6, mask & (there == 0)) and np.array_equal(layer.data == 5, there == 5)
    gui.key("Z", "control")
    assert np.array_equal(layer.data, there)
