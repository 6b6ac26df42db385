"""What the window shows and says: sizes, order and colours of layers; words for what went wrong."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from napari.layers import Layer
from PIL import Image
from pycocotools.coco import COCO
from qtpy.QtTest import QTest
from skimage import data

from napari_gui import Gui
from refinesam_napari.inference import Model, sessions

COIN, OTHER_COIN = (50, 48), (195, 215)


def is_green(colours: np.ndarray) -> np.ndarray:
    red, green, blue = (colours[..., channel].astype(int) for channel in range(3))
    return np.asarray((green > 150) & (green > red + 60) & (green > blue + 60))


def test_an_error_is_forgotten_when_something_is_done_since(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    for then in (lambda: gui.click(image, *COIN), lambda: gui.key("N"), lambda: gui.key("Z", "control")):
        gui.controller.tasks.tell_error(ValueError("something old"))
        assert "something old" in gui.widget.status.text() and gui.widget.status.styleSheet()
        then()
        assert "something old" not in gui.widget.status.text() and not gui.widget.status.styleSheet()
        gui.settle()


def test_a_click_outside_the_image_is_no_prompt_and_says_so(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    panel = gui.widget.prompt_panel
    assert "refinement measured" in panel.details.tooltip and "object of its own" in panel.one_each.tooltip
    image = gui.viewer.layers["image"]
    gui.click(image, -12, 100)
    gui.until(lambda: "outside the image" in gui.widget.status.text())
    gui.until(lambda: len(gui.controller.view.prompts.points.data) == 0)
    assert not gui.controller.workspace.document.draft and not gui.widget.status.styleSheet()
    gui.controller.view.prompts.use_boxes()
    gui.drag(image, (-40, 100), (-5, 160))
    gui.until(lambda: len(gui.controller.view.prompts.boxes.data) == 0)
    gui.settle()
    assert not gui.controller.workspace.document.draft
    # What reaches into the image counts.
    gui.drag(image, (-10, 20), (85, 90))
    assert gui.mask().any()


@pytest.mark.parametrize(("side", "scale"), [(400, 1.0), (6000, 0.5)])
def test_points_are_as_large_on_the_screen_at_every_zoom(
    open_gui: Callable[..., Gui], side: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui = open_gui(np.zeros((side, side), np.uint8), scale=(scale, scale))
    image, middle = gui.viewer.layers["image"], (side / 2, side / 2)
    gui.controller.predictions.refresh = lambda: None  # nobody asks a model here
    gui.click(image, *middle)
    gui.controller.view.prompts.points.selected_data = set()
    camera = gui.viewer.scene.camera
    for factor in (1.0, 4.0, 0.5):
        camera.zoom *= factor
        QTest.qWait(50)
        area = is_green(gui.pixels()).sum()
        assert 25 < area < 90, f"{area} green pixels after zooming by {factor}"


def test_prompts_are_drawn_over_labels(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    image = gui.viewer.layers["image"]
    gui.click(image, *COIN)
    gui.mask()
    gui.key("N")
    mine = gui.viewer.add_labels(np.full(data.coins().shape, 5, np.uint8), name="mine", opacity=1)
    gui.controller.workspaces.use_labels(mine)
    for name in ("refinesam: boxes", "refinesam: points", "refinesam: preview"):
        assert gui.viewer.layers.index(gui.viewer.layers[name]) > gui.viewer.layers.index(mine)
    gui.controller.view.prompts.use_points(True)
    gui.click(image, *OTHER_COIN)
    gui.controller.view.prompts.points.selected_data = set()
    assert is_green(gui.colour_at(image, *OTHER_COIN))


def test_labels_have_none_of_the_previews_colours(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.mask()
    preview = gui.controller.view.preview.layer.colormap.colors[2]
    gui.key("N")
    colours = gui.controller.workspace.objects.layer.colormap.map(np.arange(1, 300))
    (hue, *_), hues = colorsys.rgb_to_hsv(*preview[:3]), [colorsys.rgb_to_hsv(*colour[:3])[0] for colour in colours]
    assert min(abs((other - hue + 0.5) % 1 - 0.5) for other in hues) > 0.06
    assert len({tuple(colour) for colour in colours.tolist()}) > 50


def test_channels_that_are_no_numbers_say_what_is_needed(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(np.zeros((2, 60, 70), np.uint8), axis_labels=("c", "y", "x"))
    gui.settle()
    panel = gui.widget.image_panel
    for text, words in (("0;1", "give up to three whole numbers"), ("7", "axis 0 holds channels 0 to 1")):
        panel.channels.value = text
        panel.channels.native.editingFinished.emit()
        assert words in gui.widget.status.text() and "int()" not in gui.widget.status.text()
    assert gui.controller.workspace.settings.channels == (0, 1)


class OutOfMemoryError(RuntimeError):
    """As torch's for a GPU, which this machine may lack."""


@pytest.mark.parametrize("error", [OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), MemoryError()])
def test_too_little_memory_comes_with_advice(
    open_gui: Callable[..., Gui], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    gui = open_gui(data.coins())
    gui.settle()

    def fails(*arguments: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(sessions.get(Model()), "encode", fails)
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.until(lambda: "not enough memory" in gui.widget.status.text())
    assert "device “cpu”" in gui.widget.status.text() and "CUDA" not in gui.widget.status.text()


# pycocotools with a numpy that is newer than it is.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("slices", [1, 4])
def test_coco_names_the_file_that_the_image_came_from(
    open_gui: Callable[..., Gui], tmp_path: Path, slices: int
) -> None:
    pixels = data.coins() if slices == 1 else np.stack([data.coins()] * slices)
    tifffile.imwrite(tmp_path / "photo.tif", pixels, photometric="minisblack")
    gui = open_gui()
    (image,) = gui.viewer.open(tmp_path / "photo.tif", plugin="napari")
    image.name = "renamed"
    if pixels.ndim == 3:
        image.axis_labels = ("z", "y", "x")
    exported = segmented(gui, image, tmp_path)
    assert {item["file_name"] for item in exported["images"]} == {"photo.tif"}
    assert [item["slice"] for item in exported["images"]] == ([{"z": 0}, {"z": 2}] if slices > 1 else [{}])
    # COCO's own reader keeps the slices apart.
    coco = COCO(tmp_path / "coco.json")
    masks = {image_id: coco.annToMask(coco.imgToAnns[image_id][0]) for image_id in coco.imgs}
    assert len(masks) == (2 if slices > 1 else 1) and all(mask[COIN] for mask in masks.values())


@pytest.mark.parametrize("ending", ["tif", "png"])
def test_a_stack_of_several_files_has_not_the_name_of_the_first(
    open_gui: Callable[..., Gui], tmp_path: Path, ending: str
) -> None:
    for index in range(3):
        Image.fromarray(data.coins()).save(tmp_path / f"photo{index}.{ending}")
    gui = open_gui()
    paths = [str(tmp_path / f"photo{index}.{ending}") for index in range(3)]
    (image,) = gui.viewer.open(paths, stack=True, plugin="napari")
    image.name, image.axis_labels = "cells", ("z", "y", "x")
    exported = segmented(gui, image, tmp_path)
    assert {item["file_name"] for item in exported["images"]} == {"cells_z000", "cells_z002"}
    assert [item["slice"] for item in exported["images"]] == [{"z": 0}, {"z": 2}]


def segmented(gui: Gui, image: Layer, folder: Path) -> dict[str, Any]:
    """Segment a coin, in a stack in its first and third slice, and export."""
    gui.settle()
    for z in (0, 2):
        if image.ndim == 3:
            gui.viewer.dims.set_point(0, z)
        gui.click(image, *((z, *COIN) if image.ndim == 3 else (COIN[0], COIN[1] + z)))
        gui.mask()
    gui.key("N")
    gui.widget.files.export_coco(folder / "coco.json")
    exported: dict[str, Any] = json.loads((folder / "coco.json").read_text())
    return exported


def test_the_panel_speaks_plainly_and_has_details_on_demand(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.answer()
    gui.key("N")
    QTest.qWait(50)
    from qtpy.QtWidgets import QAbstractButton, QGroupBox, QLabel

    shown = [w.text() for kind in (QLabel, QAbstractButton) for w in gui.widget.findChildren(kind)]
    shown += [w.title() for w in gui.widget.findChildren(QGroupBox)]
    shown += [gui.widget.objects_panel.list.item(0).text()]
    for jargon in ("IoU", "κ", "embedding", "AMR", "percentile", "RLE"):
        assert not [text for text in shown if jargon in text], jargon
