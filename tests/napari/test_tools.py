"""Segment everything, propagation, files: through the real window's buttons."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from qtpy.QtWidgets import QFileDialog
from skimage import data

from napari_gui import Gui
from refinesam import decode_rle
from refinesam_napari import propagation, stack
from refinesam_napari.document import Document
from refinesam_napari.storage import read_session

COIN, OTHER_COIN = (50, 48), (195, 215)


def moving_disk() -> NDArray[np.uint8]:
    """A disk that appears in slice 2, moves and grows, and is gone after slice 8."""
    y, x = np.mgrid[:96, :96]
    stack = np.full((12, 96, 96), 40, np.uint8)
    for z in range(2, 9):
        stack[z][(y - 48) ** 2 + (x - 30 - 4 * z) ** 2 < (12 + z) ** 2] = 200
    noise = np.random.default_rng(0).normal(0, 6, stack.shape)
    return np.clip(stack + noise, 0, 255).astype(np.uint8)


def two_coins(gui: Gui) -> NDArray[np.uint16]:
    image = gui.viewer.layers["image"]
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    gui.mask()
    gui.key("N")
    gui.key("U")
    gui.drag(image, (170, 190), (220, 240))
    gui.mask()
    gui.key("N")
    return gui.labels().copy()


def test_everything_is_found_filtered_accepted_and_discarded(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    panel, review = gui.widget.everything_panel, gui.widget.review
    panel.start.native.click()
    gui.until(lambda: review.candidates)
    count = len(review.candidates)
    assert count >= 5 and len(panel.list) == count
    layer = gui.viewer.layers["refinesam: candidates"]
    areas = sorted(candidate.mask.area for candidate in review.candidates.values())
    panel.least_area.value = areas[len(areas) // 4] + 1
    shown = review.shown
    assert 0 < len(shown) < count
    assert set(np.unique(layer.data)) - {0} <= set(shown)
    # A click chooses the candidate under it, and a button discards it.
    number = int(layer.data[tuple(np.argwhere(layer.data)[0])])
    gui.viewer.layers.selection.active = layer
    gui.click(layer, *map(float, np.argwhere(layer.data == number)[len(np.argwhere(layer.data == number)) // 2]))
    assert review.chosen == number and panel.chosen == [number]
    panel.discard.native.click()
    assert number not in review.candidates
    left = review.shown
    panel.accept_all.native.click()
    objects = gui.controller.workspace.document.objects
    assert 0 < len(objects) <= len(left) and all(item.origin == "everything" for item in objects.values())
    assert set(np.unique(gui.labels())) - {0} == set(objects)
    gui.settle()
    gui.key("Z", "control")
    assert not gui.labels().any() and not gui.controller.workspace.document.objects


def test_everything_can_be_cancelled(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.settle()
    gui.widget.everything_panel.start.native.click()
    gui.until(lambda: gui.widget._busy.isVisible())
    gui.widget.cancel.native.click()
    gui.settle()
    assert not gui.widget.review.candidates and not gui.widget._busy.isVisible()


def test_an_object_is_propagated_redone_and_undone(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(moving_disk(), axis_labels=("z", "y", "x"))
    image = gui.viewer.layers["image"]
    gui.viewer.dims.set_point(0, 5)
    gui.key("U")
    gui.drag(image, (5, 33, 35), (5, 63, 65))
    gui.mask()
    gui.widget.stack_panel.start.native.click()
    gui.settle()
    item = gui.controller.workspace.document.objects[1]
    truth = moving_disk() > 120
    labels = gui.labels() == 1
    assert item.origin == "propagated" and len(item.planes) >= 5
    for z in range(3, 8):
        overlap = (labels[z] & truth[z]).sum() / (labels[z] | truth[z]).sum()
        assert overlap > 0.5, z
    assert not labels[0].any() and not labels[11].any()
    before = labels.copy()
    # Once more from slice 4, downwards only: what lies above stays.
    gui.controller.edit_object(1)
    gui.viewer.dims.set_point(0, 4)
    gui.controller.view.prompts.use_points(True)
    gui.click(image, 4, 48, 46)
    gui.mask()
    panel = gui.widget.stack_panel
    panel.direction.native.setCurrentIndex(2)
    panel.start.native.click()
    gui.settle()
    after = gui.labels() == 1
    assert np.array_equal(after[5:], before[5:]) and after[3].any()
    gui.key("Z", "control")
    gui.key("Z", "control")
    assert np.array_equal(gui.labels() == 1, before)


def sphere() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A sphere of constant brightness through 11 slices, and its pixels."""
    z, y, x = np.mgrid[:11, :96, :96]
    inside = (y - 48) ** 2 + (x - 48) ** 2 + (4 * (z - 5)) ** 2 < 21**2
    noise = np.random.default_rng(0).normal(0, 6, inside.shape)
    return np.clip(np.where(inside, 200, 40) + noise, 0, 255).astype(np.uint8), inside


def test_a_sphere_of_constant_brightness_does_not_fade(open_gui: Callable[..., Gui]) -> None:
    image, inside = sphere()
    gui = open_gui(image, axis_labels=("z", "y", "x"))
    gui.viewer.dims.set_point(0, 5)
    gui.key("U")
    gui.drag(gui.viewer.layers["image"], (5, 26, 26), (5, 70, 70))
    gui.mask()
    gui.widget.stack_panel.start.native.click()
    gui.settle()
    found = gui.labels() == 1
    # All but the poles, which have less than a third of the pixels of their neighbours; and that is what is told.
    assert found[1:10].any(axis=(1, 2)).all() and not found[[0, 10]].any()
    assert gui.widget.status.text().count("it shrinks from") == 2
    assert (found & inside).sum() / (found | inside).sum() > 0.9


def test_a_disk_is_followed_through_time(open_gui: Callable[..., Gui]) -> None:
    """With no axis but time; the axis can be chosen where there are several."""
    y, x = np.mgrid[:96, :128]
    inside = np.stack([(y - 48) ** 2 + (x - 30 - 5 * t) ** 2 < 14**2 for t in range(8)])
    frames = np.clip(np.where(inside, 200, 40) + np.random.default_rng(0).normal(0, 6, inside.shape), 0, 255)
    gui = open_gui(frames.astype(np.uint8), axis_labels=("t", "y", "x"))
    gui.settle()
    panel = gui.widget.stack_panel
    assert panel.isEnabled() and panel.axis.native.currentText() == "axis 0 (t)"
    gui.viewer.dims.set_point(0, 0)
    gui.key("U")
    gui.drag(gui.viewer.layers["image"], (0, 33, 15), (0, 63, 45))
    gui.mask()
    panel.start.native.click()
    gui.settle()
    found = gui.labels() == 1
    assert found.any(axis=(1, 2)).all()
    assert all((found[t] & inside[t]).sum() / (found[t] | inside[t]).sum() > 0.6 for t in range(8))
    both = open_gui(np.zeros((3, 4, 40, 50), np.uint8), axis_labels=("t", "z", "y", "x"))
    both.settle()
    panel = both.widget.stack_panel
    assert [panel.axis.native.itemText(i) for i in range(2)] == [
        "axis 1 (z)",
        "axis 0 (t)",
    ] and both.widget.stack.axis == 1
    panel.axis.native.setCurrentIndex(1)
    assert both.widget.stack.axis == 0


@pytest.mark.parametrize(("axis", "depth"), [("z", True), ("t", False), ("Time", False)])
def test_rules_for_sections_hold_in_depth_alone(
    open_gui: Callable[..., Gui], monkeypatch: pytest.MonkeyPatch, axis: str, depth: bool
) -> None:
    asked: list[bool] = []

    def recorded(*given: Any) -> Any:
        asked.append(given[3].depth)
        return propagation.propagate(*given)

    monkeypatch.setattr(stack, "propagate", recorded)
    gui = open_gui(sphere()[0], axis_labels=(axis, "y", "x"))
    gui.viewer.dims.set_point(0, 5)
    gui.key("U")
    gui.drag(gui.viewer.layers["image"], (5, 26, 26), (5, 70, 70))
    gui.mask()
    gui.widget.stack_panel.start.native.click()
    gui.settle()
    assert asked == [depth]


def test_save_load_and_replay_to_the_bit(
    open_gui: Callable[..., Gui], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui = open_gui(data.coins())
    labels = two_coins(gui)
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], 50, 110)
    draft_mask = gui.mask()
    path = tmp_path / "session.json"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *a, **k: (str(path), ""))
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *a, **k: (str(path), ""))
    gui.widget.files_panel.save.native.click()
    assert json.loads(path.read_text())["format"] == "refinesam-napari"
    other = open_gui(data.coins())
    other.widget.files_panel.load.native.click()
    assert np.array_equal(other.labels(), labels)
    assert np.array_equal(other.mask(), draft_mask)
    other.widget.files_panel.replay.native.click()
    other.settle()
    assert np.array_equal(other.labels(), labels) and "computed again" in other.widget.status.text()
    # What is lost in another way than by hand comes back.
    other.labels()[40:60, 40:60] = 0
    other.controller.workspace.objects.layer.refresh()
    other.widget.files_panel.replay.native.click()
    other.settle()
    assert np.array_equal(other.labels(), labels)


def test_a_session_of_another_image_is_refused(
    open_gui: Callable[..., Gui], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui = open_gui(data.coins())
    two_coins(gui)
    gui.widget.files.save(tmp_path / "coins.json")
    other = open_gui(data.cell())
    panel = other.widget.files_panel
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *a, **k: (str(tmp_path / "coins.json"), ""))
    panel.load.native.click()
    assert "Choose the image that it was made on" in other.widget.status.text()
    assert other.controller.workspace.document == Document()


def test_exports_hold_the_same_pixels(open_gui: Callable[..., Gui], tmp_path: Path) -> None:
    gui = open_gui(data.coins())
    labels = two_coins(gui)
    gui.widget.files.export_tiff(tmp_path / "labels.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "labels.tif"), labels)
    gui.widget.files.export_coco(tmp_path / "coco.json")
    document = json.loads((tmp_path / "coco.json").read_text())
    assert len(document["annotations"]) == 2
    for annotation in document["annotations"]:
        assert np.array_equal(decode_rle(annotation["segmentation"]), labels == annotation["object_id"])


def test_autosave_follows_and_is_restored(open_gui: Callable[..., Gui], autosaves: Path) -> None:
    gui = open_gui(data.coins())
    labels = two_coins(gui)
    gui.widget.files.flush()
    (path,) = autosaves.glob("*.json")
    assert len(read_session(path).document.objects) == 2
    # As if that viewer's process had been killed: its file is nobody's any more.
    orphan = path.with_name(path.name.replace(str(path.name.split(".")[-3]), "999999999"))
    path.rename(orphan)
    other = open_gui(data.coins())
    panel = other.widget.files_panel
    assert panel.restore.visible
    panel.restore.native.click()
    assert np.array_equal(other.labels(), labels)
    assert not orphan.exists()
    gui.until(lambda: not panel.restore.visible)


def test_what_was_made_of_a_removed_image_is_offered_when_it_is_opened_again(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.segment(gui.viewer.layers["image"], *COIN)
    made = gui.labels()
    gui.viewer.layers.clear()
    assert not gui.widget.files_panel.restore.visible
    gui.viewer.add_image(data.coins(), name="image")
    gui.until(lambda: gui.widget.files_panel.restore.visible)
    gui.widget.files_panel.restore.native.click()
    gui.until(lambda: gui.controller.workspace.objects is not None)
    assert np.array_equal(gui.labels(), made)


def left_behind(path: Path, number: int, when: float) -> Path:
    """A copy of an autosave as another process would have left it, written at some time."""
    copy = path.with_name(f"image.99999999{number}.abc{number}.json")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (when, when))
    return copy


def test_the_newest_is_offered_first_in_local_time_and_can_be_discarded(
    open_gui: Callable[..., Gui], autosaves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        gui = open_gui(data.coins())
        labels = two_coins(gui)
        gui.widget.files.flush()
        (path,) = autosaves.glob("*.json")
        now = time.time() // 60 * 60
        newest, older = left_behind(path, 1, now - 60), left_behind(path, 2, now - 86_400)
        ancient = left_behind(path, 3, now - 31 * 86_400)
        other = open_gui(data.coins())
        panel = other.widget.files_panel
        offered = [panel.left.native.itemText(i) for i in range(panel.left.native.count())]
        assert offered == [f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M}" for when in (now - 60, now - 86_400)]
        assert not ancient.exists()
        panel.restore.native.click()
        assert np.array_equal(other.labels(), labels) and not newest.exists() and older.exists()
        assert panel.left.native.count() == 1 and panel.unsaved.visible
        panel.discard.native.click()
        assert not older.exists() and not panel.unsaved.visible
    finally:
        monkeypatch.undo()
        time.tzset()


def test_unsaved_work_does_not_pile_up(open_gui: Callable[..., Gui], autosaves: Path) -> None:
    gui = open_gui(data.coins())
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.widget.files.flush()
    (path,) = autosaves.glob("*.json")
    copies = [left_behind(path, number, time.time() - 60 * number) for number in range(1, 15)]
    other = open_gui(data.coins())
    assert other.widget.files_panel.left.native.count() == 10
    assert [copy.exists() for copy in copies] == [True] * 10 + [False] * 4
    # What was undone wholly is nothing to be restored.
    gui.mask()
    gui.key("N")
    gui.key("Z", "control")
    gui.key("Z", "control")
    gui.widget.files.close()
    assert not path.exists()


def test_objects_whose_layer_is_removed_stay_restorable(open_gui: Callable[..., Gui], autosaves: Path) -> None:
    gui = open_gui(data.coins())
    two_coins(gui)
    gui.viewer.layers.remove(gui.controller.workspace.objects.layer)
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.widget.files.flush()
    counts = sorted(len(read_session(path).document.objects) for path in autosaves.glob("*.json"))
    assert counts == [0, 2]


def test_an_edit_is_autosaved_though_another_image_is_chosen_at_once(
    open_gui: Callable[..., Gui], autosaves: Path
) -> None:
    gui = open_gui(data.coins())
    other = gui.viewer.add_image(data.cell(), name="cell")
    gui.controller.view.choose_image(gui.viewer.layers["image"])
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.controller.view.choose_image(other)
    gui.widget.files.flush()
    (path,) = autosaves.glob("image.*.json")
    assert len(read_session(path).document.draft) == 1
    assert not list(autosaves.glob("cell.*.json"))
    # What was saved leaves no autosave behind, however short ago the edit was.
    gui.controller.view.choose_image(gui.viewer.layers["image"])
    gui.click(gui.viewer.layers["image"], *OTHER_COIN)
    gui.widget.files.save(path.parent.parent / "saved.json")
    gui.widget.files.flush()
    assert not list(autosaves.glob("*.json"))


def test_closing_the_viewer_at_once_leaves_the_last_step_in_the_autosave(
    open_gui: Callable[..., Gui], autosaves: Path
) -> None:
    gui = open_gui(data.coins())
    labels = two_coins(gui)
    gui.viewer.layers.clear()  # as napari does when it closes
    gui.settle()
    gui.widget.files.flush()
    (path,) = autosaves.glob("*.json")
    saved = read_session(path)
    assert sorted(saved.document.objects) == [1, 2]
    for (object_id, _), mask in saved.masks.items():
        assert np.array_equal(mask.on(labels.shape), labels == object_id)
