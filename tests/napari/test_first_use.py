"""The first use of a model: the list says what it is, a download can be watched and cancelled, hints come once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from qtpy.QtCore import Qt
from skimage import data

from file_server import FileServer
from napari_gui import Gui
from refinesam import registry
from refinesam_napari.hints import PhotographHint
from refinesam_napari.inference import Model, sessions

NAME = "efficientsam_ti"
COIN = (50, 48)
WHOLE = (files("refinesam") / "assets" / "builtin.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is downloaded before, and no model of an earlier test is loaded."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("REFINESAM_CACHE", str(folder))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    kept = {model: session for model, session in sessions._sessions.items() if model.weights == "builtin"}
    monkeypatch.setattr(sessions, "_sessions", kept)
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Has the weights of that name; in truth the built-in ones, since those are here."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "ti.pt").write_bytes(WHOLE)
    with FileServer(folder) as serving:
        entry = replace(
            registry.REGISTRY[NAME],
            url=f"{serving.url}/ti.pt",
            digest=f"sha256:{hashlib.sha256(WHOLE).hexdigest()}",
            variant=registry.REGISTRY["builtin"].variant,
        )
        monkeypatch.setattr(registry, "REGISTRY", MappingProxyType({**registry.REGISTRY, NAME: entry}))
        yield serving


@pytest.fixture
def hint(monkeypatch: pytest.MonkeyPatch) -> PhotographHint:
    """A hint that was not given yet."""
    fresh = PhotographHint()
    for module in ("predictions", "review", "controller"):
        monkeypatch.setattr(f"refinesam_napari.{module}.photograph_hint", fresh)
    return fresh


def files_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def listed(gui: Gui) -> dict[str, str]:
    native = gui.widget.image_panel.weights.native
    role = Qt.ItemDataRole.ToolTipRole
    return {native.itemText(index): native.itemData(index, role) for index in range(native.count())}


def is_half_downloaded(gui: Gui) -> bool:
    bar = gui.widget.progress
    shown = bar.isVisible() and NAME in bar.format() and bar.maximum() > 0
    return bool(shown and 0.3 < bar.value() / bar.maximum() < 0.7)


def test_the_list_says_what_models_are_for_and_what_is_here(open_gui: Callable[..., Gui], cache: Path) -> None:
    gui = open_gui(data.coins())
    gui.settle()
    about = gui.widget.image_panel.about_weights
    assert "23 MB, comes with refinesam; licence: Apache-2.0" in about.value and "Please cite" not in about.value
    shown = listed(gui)
    assert list(shown)[:2] == ["builtin", f"{NAME} (download, about 41 MB)"]
    assert "vit_l_lm (download, about 1249 MB)" in shown and list(shown)[-1] == "own file ..."
    assert shown["builtin"] == about.value and not shown["own file ..."]
    for words in ("Good at: cells and nuclei", "not downloaded yet", "CC-BY-4.0", "Please cite: Archit et al. 2025"):
        assert words in shown["vit_l_lm (download, about 1249 MB)"]
    # Wide enough for the longest line, though the list in the panel is narrow.
    view = gui.widget.image_panel.weights.native.view()
    assert view.minimumWidth() >= view.sizeHintForColumn(0) > gui.widget.image_panel.weights.native.minimumWidth()
    # A file that was put there by hand is as good as a download.
    cache.mkdir()
    registry.REGISTRY[NAME].path.write_bytes(b"anything")
    gui.widget.image_panel.update_shown()
    assert "about 41 MB, downloaded; licence: Apache-2.0" in listed(gui)[NAME]
    assert gui.widget.image_panel.weights.value == "builtin"


def test_a_download_is_watched_cancelled_and_begun_anew(
    open_gui: Callable[..., Gui], server: FileServer, cache: Path
) -> None:
    gui = open_gui(data.coins())
    gui.settle()
    server.going_on.clear()
    gui.widget.image_panel.weights.value = NAME
    gui.until(lambda: is_half_downloaded(gui))
    (partial,) = files_in(cache)
    assert partial.startswith(".") and not registry.REGISTRY[NAME].is_here
    # The server still holds the other half back: cancelling waits for nobody.
    gui.widget.cancel.native.click()
    gui.settle()
    assert not gui.widget.progress.isVisible() and "Cancelled" in gui.widget.status.text()
    assert "not downloaded yet" in gui.widget.image_panel.about_weights.value
    # A click wants the model again, while the first download still hangs.
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.until(lambda: len(server.requests) == 2 and is_half_downloaded(gui))
    server.going_on.set()
    assert gui.mask()[COIN]
    assert gui.controller.predictions.current.request.model == Model(NAME)
    gui.until(lambda: files_in(cache) == ["ti.pt"])
    assert (cache / "ti.pt").read_bytes() == WHOLE
    gui.until(lambda: "about 41 MB, downloaded" in gui.widget.image_panel.about_weights.value)
    assert gui.widget.image_panel.weights.native.currentText() == NAME
    assert not gui.widget.progress.isVisible() and len(server.requests) == 2


def test_clicks_wait_for_the_download_and_begin_no_other(
    open_gui: Callable[..., Gui], server: FileServer, cache: Path
) -> None:
    # So large that every click has a crop of its own, and the next one takes the place of the one before.
    gui = open_gui(np.tile(data.coins(), (6, 6)))
    gui.settle()
    server.going_on.clear()
    gui.widget.image_panel.weights.value = NAME
    gui.controller.view.prompts.use_points(True)
    image = gui.viewer.layers["image"]
    for row, column in (COIN, (1700, 2200), (200, 2100)):
        gui.click(image, row, column)
        gui.until(lambda: is_half_downloaded(gui))
    gui.key("N")  # The object comes when the model is there.
    server.going_on.set()
    gui.settle()
    gui.until(lambda: gui.labels().any())
    assert server.requests == ["GET /ti.pt"] and files_in(cache) == ["ti.pt"]


def test_choosing_another_model_ends_the_download(
    open_gui: Callable[..., Gui], server: FileServer, cache: Path
) -> None:
    gui = open_gui(data.coins())
    gui.settle()
    server.going_on.clear()
    gui.widget.image_panel.weights.value = NAME
    gui.until(lambda: is_half_downloaded(gui))
    gui.widget.image_panel.weights.value = "builtin"
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    assert gui.mask()[COIN]
    server.going_on.set()
    gui.until(lambda: files_in(cache) == [])


def test_objects_that_wait_for_a_cancelled_download_are_not_lost_silently(
    open_gui: Callable[..., Gui], server: FileServer
) -> None:
    gui = open_gui(data.coins())
    gui.settle()
    server.going_on.clear()
    gui.widget.image_panel.weights.value = NAME
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    gui.until(lambda: is_half_downloaded(gui))
    gui.key("N")
    gui.widget.cancel.native.click()
    gui.until(lambda: f"The download of {NAME} was cancelled" in gui.widget.status.text())
    gui.settle()
    gui.controller.undo()
    assert gui.controller.workspace.document.draft


def test_without_network_the_manual_step_is_said_and_works(
    open_gui: Callable[..., Gui], server: FileServer, cache: Path
) -> None:
    gui = open_gui(data.coins())
    gui.settle()
    server.failures = 1
    gui.widget.image_panel.weights.value = NAME
    gui.until(lambda: "could not be downloaded" in gui.widget.status.text())
    entry = registry.REGISTRY[NAME]
    assert str(entry.url) in gui.widget.status.text() and str(entry.path) in gui.widget.status.text()
    # The address is there to be copied.
    assert gui.widget.status.textInteractionFlags() & Qt.TextInteractionFlag.TextSelectableByMouse
    assert files_in(cache) == []
    entry.path.write_bytes(WHOLE)
    server.failures = 1000
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *COIN)
    assert gui.mask()[COIN] and len(server.requests) == 1


def hinted(gui: Gui) -> bool:
    return f"choose {NAME} under Model" in gui.widget.status.text()


def click(gui: Gui, *place: int) -> None:
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers[0], *place)
    gui.mask()
    gui.settle()


def test_photographs_hint_once_at_better_weights(open_gui: Callable[..., Gui], hint: PhotographHint) -> None:
    gui = open_gui(data.astronaut())
    gui.settle()
    assert not hinted(gui)
    click(gui, 150, 220)
    assert hinted(gui) and "(about 41 MB to download)" in gui.widget.status.text()
    assert not gui.widget.status.styleSheet()
    gui.controller.tasks.tell("")
    click(gui, 350, 220)
    gui.key("N")
    gui.widget.everything_panel.start.native.click()
    gui.settle()
    assert "candidates" in gui.widget.status.text() and not hinted(gui)


def test_the_hint_knows_what_is_here_already(open_gui: Callable[..., Gui], hint: PhotographHint, cache: Path) -> None:
    cache.mkdir()
    registry.REGISTRY[NAME].path.write_bytes(b"anything")
    gui = open_gui(data.astronaut()[:300, :300])
    gui.settle()
    gui.widget.everything_panel.start.native.click()
    gui.settle()
    assert "candidates" in gui.widget.status.text()
    assert hinted(gui) and "which is here already" in gui.widget.status.text()
    assert "download" not in gui.widget.status.text()


def test_one_object_each_hints_too(open_gui: Callable[..., Gui], hint: PhotographHint) -> None:
    gui = open_gui(data.astronaut())
    gui.settle()
    gui.controller.use_one_each(True)
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers[0], 150, 220)
    gui.until(lambda: hinted(gui))


def gray_as_rgb() -> np.ndarray:
    """A micrograph as lossy files keep it: three channels that hardly differ."""
    noise = np.random.default_rng(0).integers(-4, 5, (*data.coins().shape, 3))
    return np.clip(data.coins()[..., None] + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("image", [data.coins(), gray_as_rgb()], ids=["gray", "gray as RGB"])
def test_gray_images_never_hint(open_gui: Callable[..., Gui], hint: PhotographHint, image: np.ndarray) -> None:
    gui = open_gui(image)
    click(gui, *COIN)
    gui.widget.everything_panel.start.native.click()
    gui.settle()
    assert not hinted(gui) and not hint._told


def test_other_weights_hint_at_nothing(open_gui: Callable[..., Gui], hint: PhotographHint, server: FileServer) -> None:
    gui = open_gui(data.astronaut())
    gui.widget.image_panel.weights.value = NAME
    click(gui, 150, 220)
    assert not hinted(gui) and not hint._told


def test_channels_of_fluorescence_are_no_photograph(open_gui: Callable[..., Gui], hint: PhotographHint) -> None:
    channels = np.moveaxis(data.astronaut()[:200, :200], -1, 0)
    gui = open_gui(channels, axis_labels=("c", "y", "x"))
    gui.settle()
    assert len(gui.controller.workspace.settings.channels) == 3
    gui.widget.everything_panel.start.native.click()
    gui.settle()
    assert "candidates" in gui.widget.status.text() and not hinted(gui) and not hint._told
