"""Labels of the user's own as targets: their objects, their place, and whose they are. In the real window."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.layers import Labels
from numpy.typing import NDArray
from skimage import data

from napari_gui import Gui
from refinesam import decode_rle
from refinesam_napari import workspaces
from refinesam_napari.geometry import FREE, Plane
from refinesam_napari.scanning import objects_in

COIN, OTHER_COIN = (50, 48), (195, 215)
HW = data.coins().shape


def choose(gui: Gui, name: str) -> None:
    gui.settle()
    panel = gui.widget.objects_panel
    panel.update_shown()
    index = [
        panel.labels.native.itemText(i).removesuffix(" (can't be used)") for i in range(panel.labels.native.count())
    ].index(name)
    panel.labels.native.setCurrentIndex(index)
    gui.settle()


def add(gui: Gui, *where: float) -> NDArray[np.bool_]:
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.controller.workspace.image, *where)
    mask = gui.mask()
    gui.key("N")
    return mask


def two_squares(dtype: str = "int32", high: int = 70_000) -> NDArray[np.int32]:
    labels = np.zeros(HW, dtype)
    labels[150:170, 20:40], labels[200:220, 300:330] = 4, high
    return labels


# ---------------------------------------------------------------- found


def test_what_labels_hold_already_are_objects(open_gui: Callable[..., Gui], tmp_path: Path) -> None:
    gui = open_gui(data.coins())
    layer = gui.viewer.add_labels(two_squares(), name="mine")
    choose(gui, "mine")
    panel = gui.widget.objects_panel
    assert [panel.list.item(i).text().split(":")[0] for i in range(panel.list.count())] == ["4", "70000"]
    assert gui.controller.workspace.document.objects[4].origin == "found"
    add(gui, *COIN)
    assert layer.data[COIN] == 70_001
    # They are exported ...
    gui.widget.files.export_coco(tmp_path / "coco.json")
    exported = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert {item["object_id"] for item in exported} == {4, 70_000, 70_001}
    for item in exported:
        assert np.array_equal(decode_rle(item["segmentation"]), layer.data == item["object_id"])
    # ... saved and loaded ...
    before = layer.data.copy()
    gui.widget.files.save(tmp_path / "work.json")
    gui.widget.files.load(tmp_path / "work.json")
    assert np.array_equal(layer.data, before)
    # ... edited by prompts, which replaces what they were in this slice ...
    gui.controller.edit_object(4)
    assert "already in the labels" in gui.widget.status.text()
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *OTHER_COIN)
    mask = gui.mask()
    gui.key("N")
    assert np.array_equal(layer.data == 4, mask)
    gui.key("Z", "control")
    assert np.array_equal(layer.data, before)
    # ... painted in, far from where they were, and deleted.
    gui.controller.discard()
    layer.selected_label, layer.brush_size = 4, 5
    layer.paint((280, 10), 4)
    assert gui.controller.delete(4) is None
    assert not (layer.data == 4).any() and (layer.data == 70_000).sum() == 600


def test_the_users_pixels_are_never_lost_to_undo(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.viewer.add_labels(two_squares(), name="mine")
    choose(gui, "mine")
    add(gui, *COIN)
    for _ in range(5):
        gui.key("Z", "control")
    assert np.array_equal(gui.labels(), two_squares()) and sorted(gui.controller.workspace.document.objects) == [
        4,
        70_000,
    ]


def test_labels_that_another_plugin_replaces_are_read_anew(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    add(gui, *COIN)
    layer = gui.controller.workspace.objects.layer
    layer.data = two_squares("uint16", 9)
    gui.settle()
    assert sorted(gui.controller.workspace.document.objects) == [4, 9]
    layer.data = np.zeros_like(layer.data)
    gui.settle()
    assert not gui.controller.workspace.document.objects and gui.widget.objects_panel.list.count() == 0


def test_found_objects_of_a_stack_are_propagated_from_their_slices(open_gui: Callable[..., Gui]) -> None:
    y, x = np.mgrid[:96, :96]
    inside = (y - 48) ** 2 + (x - 48) ** 2 < 18**2
    noise = np.random.default_rng(0).normal(0, 6, (5, 96, 96))
    gui = open_gui(np.clip(np.where(inside, 200, 40) + noise, 0, 255).astype(np.uint8), axis_labels=("z", "y", "x"))
    labels = np.zeros((5, 96, 96), np.uint8)
    labels[2][inside] = 3
    gui.viewer.add_labels(labels, name="mine")
    choose(gui, "mine")
    assert gui.controller.workspace.document.objects[3].planes == (Plane((1, 2), (2, FREE, FREE)),)
    gui.widget.objects_panel.list.setCurrentRow(0)
    gui.widget.stack_panel.start.native.click()
    gui.settle()
    assert (gui.labels() == 3).any(axis=(1, 2)).all()


@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("high", [3, 2_000_000_000])
def test_objects_are_found_as_a_search_pixel_by_pixel_finds_them(axes: tuple[int, int], high: int) -> None:
    values = np.array([0, 0, 1, 2, high, -5], np.int64)
    labels = np.random.default_rng(0).choice(
        values, (3, 1 if axes == (2, 3) else 6, 5, 4), p=[0.5, 0.3, 0.05, 0.05, 0.05, 0.05]
    )
    channel_axis = 1 if axes == (2, 3) else None
    found = objects_in(labels, axes, channel_axis)
    assert sorted(found) == sorted({int(value) for value in np.unique(labels) if value > 0})
    for object_id, (box, planes) in found.items():
        where = np.argwhere(labels == object_id)
        assert box == tuple(slice(int(a), int(b) + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
        positions = {tuple(FREE if k in (*axes, channel_axis) else int(i) for k, i in enumerate(row)) for row in where}
        assert {plane.position for plane in planes} == positions and len(planes) == len(positions)


# ---------------------------------------------------------------- large ones


def large() -> NDArray[np.uint16]:
    labels = np.zeros((4200, 4200), np.uint16)
    labels[10:40, 20:60], labels[1000:3000, 2000:2020], labels[4190:, 4190:] = 4, 9, 7
    return labels


def choose_large(gui: Gui, labels: NDArray[np.uint16]) -> Labels:
    """Begin to use labels, and wait until the panel says that they are read."""
    layer = gui.viewer.add_labels(labels, name="mine")
    gui.settle()
    gui.controller.workspaces.use_labels(layer)
    assert gui.controller.busy and gui.controller.workspace.objects is None
    return layer


def test_large_labels_are_read_in_the_background(open_gui: Callable[..., Gui], monkeypatch: pytest.MonkeyPatch) -> None:
    threads, told = [], []

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return objects_in(*arguments)

    monkeypatch.setattr(workspaces, "objects_in", watched)
    gui = open_gui(np.zeros((4200, 4200), np.uint8))
    gui.controller.tasks.progressed.connect(lambda progress: told.append(progress.text))
    layer = choose_large(gui, large())
    gui.settle()
    assert threads and threading.main_thread() not in threads and "Reading 'mine'" in told
    workspace = gui.controller.workspace
    assert workspace.objects.layer is layer and sorted(workspace.document.objects) == [4, 7, 9]
    assert workspace.next_id() == 10 and np.array_equal(layer.data, large())
    plane = Plane((0, 1), (FREE, FREE))
    assert np.array_equal(workspace.mask_of(9, plane).on((4200, 4200)), large() == 9)
    gui.controller.delete(9)
    assert not (layer.data == 9).any()
    gui.key("Z", "control")
    assert np.array_equal(layer.data, large())


def test_what_is_painted_while_large_labels_are_read_counts(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(np.zeros((4200, 4200), np.uint8))
    layer = choose_large(gui, large())
    layer.selected_label, layer.brush_size = 12, 30
    layer.paint((100, 100), 12)
    layer.data_setitem(np.nonzero(large() == 4), 0)
    gui.until(lambda: gui.controller.workspace.objects is not None)
    assert sorted(gui.controller.workspace.document.objects) == [7, 9, 12]


@pytest.mark.parametrize("end", ["cancel", "pause"])
def test_labels_whose_reading_ends_early_stay_the_users_own(open_gui: Callable[..., Gui], end: str) -> None:
    gui = open_gui(np.zeros((4200, 4200), np.uint8))
    layer = choose_large(gui, large())
    (gui.controller.cancel if end == "cancel" else gui.widget.pause)()
    gui.controller.resume()
    gui.settle()
    assert gui.controller.workspace.objects is None and not gui.controller.workspace.document.objects
    assert np.array_equal(layer.data, large())
    gui.controller.workspaces.use_labels(layer)
    gui.settle()
    assert sorted(gui.controller.workspace.document.objects) == [4, 7, 9]


def test_large_labels_are_read_by_parts() -> None:
    labels = np.zeros((2, 3000, 9000), np.uint16)
    labels[0, 10:2900, 50], labels[1, 2990:, 8990:] = 3, 3
    tracemalloc.start()
    found = objects_in(labels, (1, 2), None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    box, planes = found[3]
    assert box == (slice(0, 2), slice(10, 3000), slice(50, 9000)) and [p.position[0] for p in planes] == [0, 1]
    assert peak < 8 * 2**22


# ---------------------------------------------------------------- place


def test_labels_that_lie_elsewhere_are_refused_and_stay_where_they_are(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins(), scale=(0.5, 0.5))
    layer = gui.viewer.add_labels(two_squares(), name="mine", translate=(0, 300))
    choose(gui, "mine")
    assert gui.controller.workspace.objects is None
    text = gui.widget.status.text()
    assert "scale [1.0, 1.0] instead of [0.5, 0.5], translate [0.0, 300.0] instead of [0.0, 0.0]" in text
    assert np.array_equal(layer.translate, (0, 300)) and np.array_equal(layer.data, two_squares())
    # With the image's place it can be used; the user may move it away again, and it stays there.
    layer.scale, layer.translate = (0.5, 0.5), (0, 0)
    choose(gui, "mine")
    assert gui.controller.workspace.objects.layer is layer
    layer.translate = (0, 40)
    image = gui.viewer.layers["image"]
    image.translate = (3, 0)
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    gui.mask()
    gui.key("N")
    assert "lies elsewhere" in gui.widget.status.text() and np.array_equal(layer.translate, (0, 40))
    assert np.array_equal(layer.data, two_squares()) and len(gui.controller.view.prompts.points.data) == 1
    layer.translate = (3, 0)
    gui.key("N")
    world = image.data_to_world(COIN)
    assert layer.get_value(world, world=True) == 70_001


def test_labels_of_our_own_follow_their_image(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    add(gui, *COIN)
    layer = gui.controller.workspace.objects.layer
    layer.translate = (0, 300)
    add(gui, *OTHER_COIN)
    assert layer.get_value(OTHER_COIN, world=True) == 2


# ---------------------------------------------------------------- whose


def test_one_layer_is_not_shared_by_two_images(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    add(gui, *COIN)
    shared = gui.controller.workspace.objects.layer
    other = gui.viewer.add_image(data.coins()[::-1].copy(), name="other")
    gui.settle()
    assert gui.controller.workspace.image is other
    choose(gui, "image objects")
    assert gui.controller.workspace.objects is None
    assert "it holds the objects of 'image'" in gui.widget.status.text()
    add(gui, 40, 60)
    assert gui.controller.workspace.objects.layer is not shared
    # Given free by its image, it can be had, with what is in it.
    gui.controller.view.choose_image(image)
    gui.viewer.add_labels(np.zeros(HW, np.uint8), name="free")
    choose(gui, "free")
    gui.controller.view.choose_image(other)
    choose(gui, "image objects")
    assert gui.controller.workspace.objects.layer is shared
    before = shared.data.copy()
    assert gui.controller.workspace.document.objects.keys() == {1}
    add(gui, *OTHER_COIN)
    for _ in range(4):
        gui.key("Z", "control")
    assert np.array_equal(shared.data, before) and before.any()


def test_a_layer_whose_image_is_gone_can_be_had(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    add(gui, *COIN)
    shared = gui.controller.workspace.objects.layer
    before = shared.data.copy()
    gui.viewer.add_image(data.coins()[::-1].copy(), name="other")
    gui.settle()
    gui.viewer.layers.remove(image)
    choose(gui, "image objects")
    assert gui.controller.workspace.objects.layer is shared
    gui.viewer.layers.append(image)
    gui.controller.view.choose_image(image)
    gui.settle()
    assert gui.controller.workspace.objects is None and np.array_equal(shared.data, before)
