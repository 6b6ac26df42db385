"""The npe2 manifest: valid, and everything that it names can be run from napari's menus."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
from npe2 import PluginManifest
from skimage import data

from napari_gui import Gui


def test_the_manifest_is_valid() -> None:
    command = [sys.executable, "-m", "npe2", "validate", "refinesam"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout


def test_every_command_can_be_imported() -> None:
    manifest = PluginManifest.from_distribution("refinesam")
    commands = {command.id: command for command in manifest.contributions.commands}
    assert len(commands) >= 6
    for command in commands.values():
        module, name = command.python_name.split(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_all_sample_data_open(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui()
    manifest = PluginManifest.from_distribution("refinesam")
    for sample in manifest.contributions.sample_data:
        layers = gui.viewer.open_sample("refinesam", sample.key)
        assert layers and all(np.asarray(layer.data).size for layer in layers)
        gui.settle()
        # The newest image was opened while there was another: it is chosen by selecting it.
        gui.viewer.layers.selection.active = layers[0]
        gui.settle()
        assert gui.controller.workspace.image is layers[0] and gui.controller.view.plane is not None
        gui.viewer.layers.clear()
        gui.settle()


def test_the_command_of_the_layers_menu_opens_the_widget_on_the_layer(open_gui: Callable[..., Gui]) -> None:
    from napari._app_model import get_app_model

    gui = open_gui(data.coins())
    other = gui.viewer.add_image(data.cell(), name="cell")
    gui.controller.view.choose_image(gui.viewer.layers["image"])
    gui.viewer.layers.selection.active = other
    gui.controller.view.choose_image(gui.viewer.layers["image"])
    get_app_model().commands.execute_command("refinesam.segment_layer").result()
    gui.settle()
    assert gui.controller.workspace.image is other
