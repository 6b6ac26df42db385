"""Image after image of a folder, in the real window: files on disk, keys and buttons, and what is there on return."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qtpy.QtWidgets import QFileDialog
from skimage import data

from napari_gui import Gui
from refinesam_napari.folder import NO_IMAGE
from refinesam_napari.storage import read_session

COIN, OTHER_COIN = (50, 48), (50, 105)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two sizes whose names people count, one that is broken, and one that is none."""
    path = tmp_path / "images"
    path.mkdir()
    coins = data.coins()
    Image.fromarray(coins[:100, :130]).save(path / "c9.png")
    Image.fromarray(coins[:100, 10:140]).save(path / "c10.png")
    Image.fromarray(coins[:110, :150]).save(path / "c11.png")
    (path / "c9b.npy").write_bytes(b"broken")
    (path / "notes.txt").write_text("no image")
    return path


def open_folder(gui: Gui, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *a, **k: str(path))
    gui.widget.folder_panel.choose.native.click()
    gui.settle()


def go(gui: Gui, key: str, name: str) -> None:
    gui.key(key)
    gui.until(lambda: gui.controller.workspace is not None and gui.controller.workspace.image.name == name)
    gui.settle()


def image(gui: Gui) -> object:
    return gui.controller.workspace.image


def listed(gui: Gui) -> list[str]:
    native = gui.widget.folder_panel.image
    return [native.itemText(index) for index in range(native.count())]


def test_the_work_on_each_image_is_there_again_on_return(
    open_gui: Callable[..., Gui], folder: Path, autosaves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui = open_gui()
    open_folder(gui, folder, monkeypatch)
    assert image(gui).name == "c9" and listed(gui) == ["c9.png", "c9b.npy", "c10.png", "c11.png"]
    workspace = gui.controller.workspace
    workspace.add_class("coin")
    mask = gui.segment(image(gui), *COIN)
    first, old = image(gui), weakref.ref(image(gui))
    gui.click(first, *OTHER_COIN)  # in hand when the image is left
    gui.settle()
    draft = dict(workspace.document.draft)
    del first, workspace

    # The broken one is passed over, and told; nothing of the first image is left in the window, nor in memory.
    go(gui, "PageDown", "c10")
    assert "c9b.npy can't be opened" in gui.widget.status.text()
    layers = gui.viewer.layers
    names = {layer.name for layer in layers}
    assert layers.index(image(gui)) < layers.index(gui.controller.view.prompts.points), "a click is seen"
    assert not {"c9", "c9 objects"} & names and not gui.controller.workspace.document.objects
    assert gui.widget.objects_panel.classes.choice.native.currentText() == "coin"
    assert listed(gui) == ["✓ c9.png", "c9b.npy", "c10.png", "c11.png"]
    gui.settle()
    gc.collect()
    assert old() is None
    second = gui.segment(image(gui), COIN[0], COIN[1] - 10)
    gui.widget.folder_panel.next.native.click()
    gui.until(lambda: image(gui).name == "c11")
    gui.settle()
    gui.key("PageDown")
    assert "This is the last image" in gui.widget.status.text() and image(gui).name == "c11"

    # Nothing was done here, so there is nothing to mark, or to write.
    go(gui, "PageUp", "c10")
    assert np.array_equal(gui.labels() == 1, second)
    assert listed(gui) == ["✓ c9.png", "c9b.npy", "✓ c10.png", "c11.png"]
    gui.key("Z", "control")
    assert np.array_equal(gui.labels() == 1, second), "the return can't be undone"
    gui.key("PageUp")
    gui.until(lambda: image(gui).name == "c9")
    gui.settle()
    document = gui.controller.workspace.document
    assert np.array_equal(gui.labels() == 1, mask) and document.class_of(document.objects[1]).name == "coin"
    assert {plane: prompts.points for plane, prompts in document.draft.items()} == {
        plane: prompts.points for plane, prompts in draft.items()
    }
    gui.answer()  # and it goes on from there
    gui.key("N")
    assert len(gui.controller.workspace.document.objects) == 2
    assert sorted(file.name for file in (folder / "refinesam").iterdir()) == ["c10.png.json", "c9.png.json"]
    assert not autosaves.exists() or not list(autosaves.iterdir()), "the sessions are the place of the work"

    # Chosen in the list, and all that was done is undone there: the mark goes.
    native = gui.widget.folder_panel.image
    native.setCurrentIndex(native.findText("✓ c10.png"))
    gui.until(lambda: image(gui).name == "c10")
    gui.settle()
    gui.widget.objects_panel.list.selectAll()
    gui.widget.objects_panel.delete.native.click()
    go(gui, "PageUp", "c9")
    assert listed(gui) == ["✓ c9.png", "c9b.npy", "c10.png", "c11.png"]
    assert len(read_session(folder / "refinesam" / "c9.png.json").document.objects) == 2


def test_masks_that_are_awaited_and_the_closing_window_lose_nothing(
    open_gui: Callable[..., Gui], folder: Path, autosaves: Path
) -> None:
    gui = open_gui()
    gui.viewer.open(folder / "c9.png", plugin="napari")
    gui.settle()
    gui.controller.view.prompts.use_points(True)
    gui.click(image(gui), *COIN)
    gui.key("N")  # before the answer
    gui.key("PageDown")  # the folder of the image in view
    gui.until(lambda: image(gui).name == "c10")
    saved = read_session(folder / "refinesam" / "c9.png.json")
    assert [mask.area > 300 for mask in saved.masks.values()] == [True]
    gui.settle()
    assert not autosaves.exists() or not list(autosaves.iterdir()), "it is where it belongs now"
    gui.segment(image(gui), COIN[0], COIN[1] - 10)
    gui.viewer.window.remove_dock_widget("all")
    gui.viewer.close()
    assert len(read_session(folder / "refinesam" / "c10.png.json").document.objects) == 1
    assert not autosaves.exists() or not list(autosaves.iterdir())


def test_what_cannot_be_restored_is_kept_beside_the_new_work(
    open_gui: Callable[..., Gui], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = folder / "refinesam"
    sessions.mkdir()
    (sessions / "c10.png.json").write_text("{ damaged")
    gui = open_gui()
    open_folder(gui, folder, monkeypatch)
    go(gui, "PageDown", "c10")
    assert "was not restored in full" in gui.widget.status.text()
    go(gui, "PageDown", "c11")
    assert (sessions / "c10.png.json").read_text() == "{ damaged", "nothing was done, nothing is written"
    go(gui, "PageUp", "c10")
    gui.segment(image(gui), *COIN)
    go(gui, "PageDown", "c11")
    assert (sessions / "c10.png.1.json").read_text() == "{ damaged"
    assert len(read_session(sessions / "c10.png.json").document.objects) == 1
    # So is what somebody else wrote since it was read.
    go(gui, "PageUp", "c10")
    other = json.loads((sessions / "c10.png.json").read_text()) | {"settings": {}}
    (sessions / "c10.png.json").write_text(json.dumps(other))
    os.utime(sessions / "c10.png.json", ns=(1, 1))
    gui.segment(image(gui), *OTHER_COIN)
    assert gui.widget.files.flush()
    assert json.loads((sessions / "c10.png.2.json").read_text())["settings"] == {}
    assert len(read_session(sessions / "c10.png.json").document.objects) == 2


def test_an_image_is_not_left_while_its_work_cannot_be_written(
    open_gui: Callable[..., Gui], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gui = open_gui(data.coins()[:100, :130])
    gui.key("PageDown")
    assert "is in no file" in gui.widget.status.text()
    assert listed(gui) == [NO_IMAGE]
    empty = folder.parent / "empty"
    empty.mkdir()
    open_folder(gui, empty, monkeypatch)
    assert "no images in" in gui.widget.status.text() and gui.widget.folder.path is None
    open_folder(gui, folder, monkeypatch)
    assert image(gui).name == "c9" and "image" in gui.viewer.layers, "what is in no file stays"
    (folder / "refinesam").write_text("a file where the folder should be")
    mask = gui.segment(image(gui), *COIN)
    gui.key("PageDown")
    gui.settle()
    assert image(gui).name == "c9" and "can't be" in gui.widget.status.text()
    (folder / "refinesam").unlink()
    go(gui, "PageDown", "c10")
    go(gui, "PageUp", "c9")
    assert np.array_equal(gui.labels() == 1, mask)


def test_where_nobody_may_write_sessions_are_among_the_users_data(
    open_gui: Callable[..., Gui], folder: Path, autosaves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    gui = open_gui()
    open_folder(gui, folder, monkeypatch)
    gui.segment(image(gui), *COIN)
    go(gui, "PageDown", "c10")
    (written,) = autosaves.parent.glob("napari_folders/images.*/c9.png.json")
    assert len(read_session(written).document.objects) == 1 and not (folder / "refinesam").exists()
    go(gui, "PageUp", "c9")
    assert len(gui.controller.workspace.document.objects) == 1
