"""Models in the widget: missing weights, an own file, embeddings on disk, 3D."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from qtpy.QtWidgets import QFileDialog
from skimage import data

from napari_gui import Gui
from refinesam_napari.inference import Model, sessions

COIN = (50, 48)


def choose_weights(gui: Gui, name: str) -> None:
    combo = gui.widget.image_panel.weights.native
    combo.setCurrentText(name)


def test_missing_weights_say_what_to_do_and_the_built_in_ones_go_on(
    open_gui: Callable[..., Gui], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gone.safetensors"
    gui = open_gui(data.coins())
    gui.settle()
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *a, **k: (str(path), ""))
    choose_weights(gui, "own file ...")
    assert gui.controller.predictions.options.model.weights == str(path)
    gui.until(lambda: str(path) in gui.widget.status.text())
    assert "color" in gui.widget.status.styleSheet()
    gui.settle()
    choose_weights(gui, "builtin")
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    assert gui.mask()[COIN]
    gui.until(lambda: gui.widget.image_panel.running_on.value)


def test_an_own_file_answers(open_gui: Callable[..., Gui], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes((files("refinesam") / "assets" / "builtin.safetensors").read_bytes())
    gui = open_gui(data.coins())
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    expected = gui.mask()
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *a, **k: (str(path), ""))
    choose_weights(gui, "own file ...")
    assert np.array_equal(gui.mask(), expected)
    assert gui.controller.predictions.current.request.model == Model(str(path))
    # Cancelling the dialog leaves the model as it was.
    monkeypatch.setattr(QFileDialog, "getOpenFileName", lambda *a, **k: ("", ""))
    choose_weights(gui, "own file ...")
    assert gui.controller.predictions.options.model.weights == str(path)


def test_embeddings_are_kept_on_disk_if_asked(
    open_gui: Callable[..., Gui], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "embeddings"
    monkeypatch.setattr("refinesam_napari.panels.EMBEDDINGS_FOLDER", folder)
    gui = open_gui(data.coins())
    # The crop of a closer look is encoded anew; the image is not.
    gui.controller.predictions.use_options(refine=False)
    gui.settle()
    assert not folder.exists()
    gui.widget.image_panel.keep_on_disk.value = True
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    expected = gui.mask()
    assert len(list(folder.iterdir())) == 1
    # A restart: another session, and an encoder that must not be asked.
    model = gui.controller.predictions.options.model
    monkeypatch.delitem(sessions._sessions, model)
    fresh = sessions.get(model)
    monkeypatch.setattr(fresh.model, "encode", lambda *a, **k: pytest.fail("the image was encoded again"))
    gui.controller.workspace.forget_predictions()
    gui.controller.predictions.refresh()
    assert np.array_equal(gui.mask(), expected)


def test_in_three_dimensions_nothing_is_prompted_and_nothing_is_lost(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(np.stack([data.coins()[:100, :100]] * 3))
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], float(gui.controller.view.plane.position[0]), *COIN)
    mask = gui.mask()
    gui.viewer.dims.ndisplay = 3
    assert gui.controller.view.plane is None and not gui.controller.view.preview.layer.visible
    assert not gui.widget.objects_panel.commit.enabled or gui.controller.workspace.document.draft
    gui.viewer.dims.ndisplay = 2
    gui.settle()
    assert np.array_equal(gui.mask(), mask) and gui.controller.view.preview.layer.visible
