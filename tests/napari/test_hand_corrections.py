"""Paint belongs to the object: prompts, replay, propagation and files keep it. With the brush, in the real window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from napari_gui import Gui
from refinesam_napari.document import Correction, Write
from refinesam_napari.geometry import FREE, Crop, Plane, PlaneMask
from refinesam_napari.painting import corrections_of

COIN, BESIDE = (50, 48), (50, 85)


def brush(gui: Gui, label: int, *where: float, size: int = 9) -> NDArray[np.bool_]:
    """Dab once, by mouse; return the pixels that changed."""
    layer, before = gui.controller.workspace.objects.layer, gui.labels().copy()
    gui.viewer.layers.selection.active = layer
    layer.brush_size, layer.selected_label = size, label or 1
    layer.mode = "paint" if label else "erase"
    gui.click(layer, *where)
    layer.mode = "pan_zoom"
    return np.asarray(gui.labels() != before)


def corrected_coin(gui: Gui) -> NDArray[np.uint16]:
    """A coin by a click, with a dab erased from it and another added beside it."""
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.mask()
    gui.key("N")
    assert brush(gui, 0, *COIN).any() and brush(gui, 1, *BESIDE).any()
    labels = gui.labels().copy()
    assert labels[COIN] == 0 and labels[BESIDE] == 1
    return labels


def test_an_object_taken_in_hand_and_added_again_keeps_its_paint(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    labels = corrected_coin(gui)
    gui.key("K")
    gui.mask()
    assert "corrected by hand" in gui.widget.status.text()
    # The preview is what will be added.
    preview = gui.controller.view.preview.layer
    assert not preview.get_value(COIN, world=True) and preview.get_value(BESIDE, world=True)
    gui.key("N")
    assert np.array_equal(gui.labels(), labels)
    # With another mask, too.
    gui.key("K")
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], COIN[0] + 12, COIN[1] + 5)
    mask = gui.mask()
    gui.key("N")
    added, erased = (labels == 1) & ~mask, np.zeros_like(mask)
    erased[COIN] = True
    assert gui.labels()[BESIDE] == 1 and gui.labels()[COIN] == 0 and added[BESIDE]
    # Undo brings back what was, paint by paint.
    for _ in range(2 + 2 + 1):  # add, click, edit, add, edit
        gui.key("Z", "control")
    assert np.array_equal(gui.labels(), labels)
    gui.key("Z", "control")
    gui.key("Z", "control")
    assert gui.labels()[COIN] == 1 and gui.labels()[BESIDE] == 0
    gui.key("K")
    expected = gui.mask()
    gui.key("N")
    assert np.array_equal(gui.labels() == 1, expected)


def test_a_border_painted_between_two_objects_stays(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.mask()
    gui.key("N")
    taken = brush(gui, 2, *COIN)
    gui.controller.predictions.use_options(overwrite=True)
    gui.controller.edit_object(1)
    gui.mask()
    gui.key("N")
    assert np.array_equal(gui.labels() == 2, taken)


def test_replay_keeps_paint_and_takes_nothing_from_others(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    corrected_coin(gui)
    brush(gui, 7, COIN[0] + 10, COIN[1] + 10)  # over a part of the coin
    labels = gui.labels().copy()
    gui.widget.files_panel.replay.native.click()
    gui.settle()
    gui.until(lambda: "computed again" in gui.widget.status.text())
    assert np.array_equal(gui.labels(), labels) and (labels == 7).any()


def test_paint_goes_through_a_file_and_is_kept_by_the_next_commit(open_gui: Callable[..., Gui], tmp_path: Path) -> None:
    gui = open_gui(data.coins())
    labels = corrected_coin(gui)
    gui.widget.files.save(tmp_path / "work.json")
    other = open_gui(data.coins())
    other.widget.files.load(tmp_path / "work.json")
    other.key("K")
    other.mask()
    other.key("N")
    assert np.array_equal(other.labels(), labels)


def disk_stack() -> NDArray[np.uint8]:
    y, x = np.mgrid[:96, :96]
    inside = (y - 48) ** 2 + (x - 48) ** 2 < 18**2
    noise = np.random.default_rng(0).normal(0, 6, (9, 96, 96))
    return np.clip(np.where(inside, 200, 40) + noise, 0, 255).astype(np.uint8)


def test_propagation_keeps_paint_and_goes_on_from_it(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(disk_stack(), axis_labels=("z", "y", "x"))
    image = gui.viewer.layers["image"]
    gui.viewer.dims.set_point(0, 4)
    gui.key("U")
    gui.drag(image, (4, 28, 28), (4, 68, 68))
    gui.mask()
    gui.widget.stack_panel.start.native.click()
    gui.settle()
    assert (gui.labels() == 1).any(axis=(1, 2)).all()
    gui.viewer.dims.set_point(0, 6)
    brush(gui, 0, 6, 48, 48)
    brush(gui, 1, 6, 48, 80)
    gui.viewer.dims.set_point(0, 4)
    brush(gui, 0, 4, 40, 40)
    painted = gui.labels().copy()
    gui.controller.edit_object(1)
    gui.widget.stack_panel.start.native.click()
    gui.settle()
    assert np.array_equal(gui.labels()[[4, 6]], painted[[4, 6]])
    # A slice that was emptied by hand is where the object ends.
    gui.viewer.dims.set_point(0, 7)
    for row in range(24, 80, 8):
        for column in range(24, 80, 8):
            brush(gui, 0, 7, row, column, size=13)
    assert not gui.labels()[7].any()
    gui.widget.objects_panel.list.setCurrentRow(0)
    gui.widget.stack_panel.start.native.click()
    gui.settle()
    assert not gui.labels()[7:].any() and np.array_equal(gui.labels()[[4, 6]], painted[[4, 6]])


# ---------------------------------------------------------------- arithmetic


def mask_of(whole: NDArray[np.bool_]) -> PlaneMask:
    return PlaneMask.of(whole, Crop(0, 0, whole.shape[1], whole.shape[0]))


def test_masks_are_united_and_taken_away_as_sets_of_pixels() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        y, x = np.indices((12, 15))
        a, b = (
            (abs(y - random.integers(12)) < random.integers(5)) & (abs(x - random.integers(15)) < random.integers(5))
            for _ in range(2)
        )
        assert np.array_equal(mask_of(a).united(mask_of(b)).on((12, 15)), a | b)
        assert np.array_equal(mask_of(a).without(mask_of(b)).on((12, 15)), a & ~b)


@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (0, 2)])
def test_strokes_in_any_order_make_the_correction_between_first_and_last(axes: tuple[int, int]) -> None:
    """Dabs that overlap, in several planes: compared with the whole labels before and after."""
    random, shape = np.random.default_rng(1), (3, 8, 9)
    for _ in range(30):
        labels = random.integers(0, 3, shape)
        before, writes = labels.copy(), []
        for _ in range(4):
            low = [int(random.integers(size)) for size in shape]
            key = tuple(slice(a, min(a + int(random.integers(1, 4)), s)) for a, s in zip(low, shape, strict=True))
            mask, new = random.random(labels[key].shape) < 0.7, int(random.integers(3))
            writes.append(Write(key, mask, labels[key].copy(), new))
            labels[key][mask] = new
        found = corrections_of(writes, axes, None)
        (depth,) = {0, 1, 2} - set(axes)
        for object_id in (1, 2):
            for index in range(shape[depth]):
                plane = Plane(axes, tuple(index if axis == depth else FREE for axis in range(3)))
                was, now = (values.take(index, depth) == object_id for values in (before, labels))
                if plane.transposed:
                    was, now = was.T, now.T
                correction = found.get((object_id, plane), Correction())
                assert np.array_equal(correction.added.on(was.shape), now & ~was)
                assert np.array_equal(correction.erased.on(was.shape), was & ~now)
                assert np.array_equal(correction.of(mask_of(was)).on(was.shape), now)
