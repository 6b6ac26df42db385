"""Labels layers that can't be written to, in the real window: nothing is lost, and the reason is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from napari.layers import Image, Labels
from qtpy.QtCore import Qt
from skimage import data

from napari_gui import Gui
from refinesam_napari import files as files_module
from refinesam_napari.targets import unfit

COIN, OTHER_COIN = (50, 48), (195, 215)
HW = data.coins().shape


def read_only(folder: Path) -> np.ndarray:
    np.save(folder / "labels.npy", np.zeros(HW, np.uint16))
    return np.load(folder / "labels.npy", mmap_mode="r")


def frozen_zarr(folder: Path) -> Any:
    zarr.save(str(folder / "labels.zarr"), np.zeros(HW, np.uint16))
    return zarr.open_array(str(folder / "labels.zarr"), mode="r")


def open_zarr(folder: Path) -> Any:
    zarr.save(str(folder / "labels.zarr"), np.zeros(HW, np.uint16))
    return zarr.open_array(str(folder / "labels.zarr"), mode="r+")


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (read_only, "its pixels are read-only"),
        (frozen_zarr, "its pixels are read-only"),
        (lambda folder: da.zeros(HW, dtype=np.uint16), "its pixels can't be changed"),
        (lambda folder: np.zeros((20, 30), np.uint16), r"its shape is \(20, 30\), but the image needs \(303, 384\)"),
        (lambda folder: np.zeros(HW, np.uint16), None),
        (open_zarr, None),
    ],
)
def test_into_offers_what_can_be_written_and_says_why_others_cannot(
    open_gui: Callable[..., Gui], tmp_path: Path, made: Callable[[Path], Any], reason: str | None
) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    layer = gui.viewer.add_labels(made(tmp_path), name="mine")
    gui.settle()
    panel = gui.widget.objects_panel.labels.native
    usable = bool(panel.model().item(1).flags() & Qt.ItemFlag.ItemIsEnabled)
    assert usable == (reason is None)
    panel.setCurrentIndex(1)
    objects = gui.controller.workspace.objects
    if reason is not None:
        gui.qtbot.waitUntil(lambda: "can't be added to 'mine'" in gui.widget.status.text())
        assert re.search(reason, gui.widget.status.text())
        assert re.search(reason, panel.itemData(1, Qt.ItemDataRole.ToolTipRole))
        assert objects is None and panel.currentIndex() == 0
        return
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *COIN)
    mask = gui.mask()
    gui.key("N")
    assert np.array_equal(np.asarray(layer.data) == 1, mask)
    gui.key("Z", "control")
    assert not np.asarray(layer.data).any()


def test_a_pyramid_of_labels_is_no_target() -> None:
    pyramid = Labels([np.zeros((40, 60), np.uint16), np.zeros((20, 30), np.uint16)], multiscale=True)
    assert "pyramid" in str(unfit(pyramid, Image(np.zeros((40, 60))), (40, 60), None))


def two_objects(gui: Gui) -> np.ndarray:
    image = gui.viewer.layers["image"]
    for where in (COIN, OTHER_COIN):
        gui.controller.view.prompts.use_points(True)
        gui.click(image, *where)
        gui.mask()
        gui.key("N")
    return gui.labels().copy()


def test_a_write_that_fails_changes_nothing_and_is_told(
    open_gui: Callable[..., Gui], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui = open_gui(data.coins())
    controller, widget = gui.controller, gui.widget
    two_objects(gui)
    widget.files.save(tmp_path / "work.json")
    gui.click(gui.viewer.layers["image"], 50, 110)
    gui.mask()

    def delete() -> None:
        widget.objects_panel.list.setCurrentRow(0)
        widget.objects_panel.delete.native.click()

    def fails(action: Callable[[], object]) -> None:
        before, document = gui.labels().copy(), controller.workspace.document
        steps, points = controller.workspace.history.steps, controller.view.prompts.points.data.copy()
        widget._told("", False)
        gui.labels().flags.writeable = False
        action()
        gui.until(lambda: "can't be written to" in widget.status.text())
        assert "color" in widget.status.styleSheet()
        assert controller.workspace.document is document and controller.workspace.history.steps == steps
        assert np.array_equal(gui.labels(), before) and np.array_equal(controller.view.prompts.points.data, points)
        gui.labels().flags.writeable = True

    fails(lambda: gui.key("N"))
    fails(delete)
    # Another model's masks lie elsewhere; the same model's are there already, and nothing would be written.
    replayed = files_module.replayed
    monkeypatch.setattr(
        files_module,
        "replayed",
        lambda *given: ((key, replace(mask, x0=mask.x0 + 1)) for key, mask in replayed(*given)),
    )
    fails(widget.files_panel.replay.native.click)
    fails(lambda: controller.tasks.attempt(lambda: widget.files.load(tmp_path / "work.json")))
    # It goes on as soon as the layer can be written to again.
    gui.key("N")
    assert sorted(controller.workspace.document.objects) == [1, 2, 3] and (gui.labels() == 3).any()
    fails(lambda: gui.key("Z", "control"))
    gui.key("Z", "control")
    assert not (gui.labels() == 3).any() and len(controller.view.prompts.points.data) == 1
    fails(lambda: gui.key("Z", "control shift"))


def test_a_write_that_fails_half_way_is_taken_back(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(np.stack([data.coins()] * 3))
    image = gui.viewer.layers["image"]
    for z in (0, 1, 2):
        gui.viewer.dims.set_point(0, z)
        gui.controller.view.prompts.use_points(True)
        gui.click(image, z, *COIN)
        gui.mask()
    gui.controller.workspaces.ensure_objects()
    layer = gui.controller.workspace.objects.layer
    layer.data[0, :40] = 3  # something in the way, which must not change either
    before, write = layer.data.copy(), layer.data_setitem

    def full_disk(indices: Any, value: Any, refresh: bool = True) -> None:
        if indices[0][0] == 1 and np.any(value):
            raise OSError(28, "No space left on device")
        write(indices, value, refresh)

    layer.data_setitem = full_disk
    gui.key("N")
    gui.until(lambda: "No space left on device" in gui.widget.status.text())
    assert np.array_equal(layer.data, before) and not gui.controller.workspace.document.objects
    assert len(gui.controller.workspace.document.draft) == 3


def test_what_nobody_foresaw_is_told_in_the_panel(
    open_gui: Callable[..., Gui], monkeypatch: pytest.MonkeyPatch
) -> None:
    gui = open_gui(data.coins())
    monkeypatch.setattr(gui.controller.workspace, "undo", lambda: {}["nothing"])
    gui.widget.objects_panel.undo.enabled = True
    for undo in (lambda: gui.key("Z", "control"), gui.widget.objects_panel.undo.native.click):
        gui.widget._told("", False)
        undo()
        assert "KeyError: 'nothing'" in gui.widget.status.text()
