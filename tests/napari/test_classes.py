"""Classes of objects in the real window: typed, given, changed, seen, undone, saved and exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from napari.utils.colormaps import CyclicLabelColormap
from pycocotools.coco import COCO
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QColor
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QColorDialog, QLineEdit
from skimage import data

from napari_gui import Gui
from refinesam import ConfigError
from refinesam_napari.class_controls import NEW_CLASS, NO_CLASS, WITHOUT_CLASS
from refinesam_napari.classes import CLASS_COLOURS, Classifying
from refinesam_napari.storage import read_session

HW = (170, 260)
PLACES = [(50, 48), (50, 105), (120, 105), (120, 45)]  # row and column in coins


@pytest.fixture
def gui(open_gui: Callable[..., Gui]) -> Gui:
    gui = open_gui(data.coins()[:170, :260])
    gui.controller.predictions.use_options(refine=False)
    gui.controller.view.prompts.use_points(True)
    return gui


def choose(gui: Gui, text: str) -> None:
    """Choose in the list of classes, as a user does: the signal that tells of it is the user's."""
    native = gui.widget.objects_panel.classes.choice.native
    native.setCurrentIndex(native.findText(text))
    gui.settle()


def type_name(name: str, key: Qt.Key = Qt.Key.Key_Return) -> None:
    """Type into the dialog that is about to open."""

    def type_it() -> None:
        field = QApplication.activeModalWidget().findChild(QLineEdit)
        field.selectAll()
        QTest.keyClicks(field, name)
        QTest.keyClick(field, key)

    QTimer.singleShot(200, type_it)


def new_class(gui: Gui, name: str) -> int:
    type_name(name)
    choose(gui, NEW_CLASS)
    key = gui.controller.workspace.document.class_named(name)
    assert key is not None
    return key


def add(gui: Gui, row: float, column: float) -> int:
    """Drag a box, add the object, return its id."""
    gui.key("U")
    gui.drag(gui.viewer.layers["image"], (row - 22, column - 22), (row + 22, column + 22), steps=3)
    gui.answer()
    before = set(gui.controller.workspace.document.objects)
    gui.key("N")
    gui.key("U")
    (object_id,) = set(gui.controller.workspace.document.objects) - before
    return object_id


def select(gui: Gui, *ids: int) -> None:
    listed = gui.widget.objects_panel.list
    listed.clearSelection()
    for index in range(listed.count()):
        if listed.item(index).data(Qt.ItemDataRole.UserRole) in ids:
            listed.item(index).setSelected(True)


def classes_of(gui: Gui) -> dict[int, str | None]:
    document = gui.controller.workspace.document
    found = {key: document.class_of(item) for key, item in document.objects.items()}
    return {key: None if made is None else made.name for key, made in found.items()}


def menu(gui: Gui, text: str) -> None:
    (action,) = (action for action in gui.widget.objects_panel.classes.menu.actions() if action.text() == text)
    action.trigger()
    gui.settle()


def test_objects_get_a_class_that_can_be_changed_undone_and_exported(
    gui: Gui, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = gui.widget.objects_panel
    bare = add(gui, *PLACES[0])
    assert panel.classes.choice.native.currentText() == NO_CLASS and classes_of(gui) == {bare: None}
    new_class(gui, "nucleus")
    first = add(gui, *PLACES[1])
    new_class(gui, "debris")
    native = panel.classes.choice.native
    assert [native.itemText(i) for i in range(native.count())] == [NO_CLASS, "nucleus", "debris", NEW_CLASS]
    second, third = add(gui, *PLACES[2]), add(gui, *PLACES[3])
    assert classes_of(gui) == {bare: None, first: "nucleus", second: "debris", third: "debris"}
    assert "debris, by clicks" in panel.list.item(second - 1).text() and not panel.list.item(second - 1).icon().isNull()

    # Several at once, in one step that is undone as one.
    choose(gui, "nucleus")
    select(gui, bare, second)
    panel.classes.give.native.click()
    gui.settle()
    changed = {bare: "nucleus", first: "nucleus", second: "nucleus", third: "debris"}
    assert classes_of(gui) == changed and sorted(panel.selected) == [bare, second]
    gui.key("Z", "control")
    assert classes_of(gui) == {bare: None, first: "nucleus", second: "debris", third: "debris"}
    gui.key("Z", "control shift")
    assert classes_of(gui) == changed

    # What an object is stays when its outline is changed.
    choose(gui, "debris")
    gui.controller.edit_object(first)
    gui.click(gui.viewer.layers["image"], PLACES[1][0] + 2, PLACES[1][1] + 2)
    gui.answer()
    gui.key("N")
    assert classes_of(gui)[first] == "nucleus"

    # The new name is typed, the old one comes back with undo, and the class stays the one of new objects.
    type_name("dirt")
    menu(gui, "Rename ...")
    monkeypatch.setattr(QColorDialog, "getColor", lambda *a, **k: QColor("#123456"))
    menu(gui, "Colour ...")
    workspace = gui.controller.workspace
    dirt = workspace.document.classes[workspace.current_class]
    assert (dirt.name, dirt.colour) == ("dirt", "#123456") and classes_of(gui)[third] == "dirt"
    gui.key("Z", "control")
    gui.key("Z", "control")
    assert workspace.document.classes[workspace.current_class].name == "debris"
    gui.key("Z", "control shift")
    gui.settle()
    assert panel.classes.choice.native.currentText() == "dirt"

    # A session holds them, and so does the COCO export.
    gui.widget.files.save(tmp_path / "s.json")
    read = read_session(tmp_path / "s.json").document
    assert [made.name for made in read.classes.values()] == ["nucleus", "dirt"]
    gui.widget.files.export_coco(tmp_path / "c.json")
    coco = COCO(str(tmp_path / "c.json"))
    names = {one["object_id"]: coco.cats[one["category_id"]]["name"] for one in coco.anns.values()}
    assert names == classes_of(gui) and sorted(one["name"] for one in coco.cats.values()) == ["dirt", "nucleus"]

    # Loaded where there is another class and another order, they are the same classes by name.
    menu(gui, "Remove")
    assert classes_of(gui) == {**changed, third: None}
    new_class(gui, "vessel")
    gui.widget.files.load(tmp_path / "s.json")
    assert classes_of(gui) == {**changed, third: "dirt"}
    assert {made.name for made in workspace.document.classes.values()} == {"nucleus", "dirt", "vessel"}
    gui.settle()
    assert panel.classes.choice.native.currentText() == "vessel"


def test_objects_are_seen_by_class_and_labels_get_their_own_colours_back(gui: Gui) -> None:
    panel = gui.widget.objects_panel
    bare = add(gui, *PLACES[0])
    key = new_class(gui, "nucleus")
    classed = add(gui, *PLACES[1])
    layer, image = gui.controller.workspace.objects.layer, gui.viewer.layers["image"]
    own = layer.colormap
    layer.opacity = 1.0
    panel.classes.by_class.native.click()
    gui.settle()

    def at(object_id: int) -> list[int]:
        rows, columns = np.nonzero(gui.labels() == object_id)
        middle = len(rows) // 2
        return gui.colour_at(image, rows[middle], columns[middle]).tolist()

    def rgb(colour: str) -> list[int]:
        return list(QColor(colour).getRgb()[:3])

    assert np.allclose(at(bare), rgb(WITHOUT_CLASS), atol=3)
    assert np.allclose(at(classed), rgb(CLASS_COLOURS[0]), atol=3)
    gui.controller.workspace.recolour_class(key, "#00ff00")
    gui.controller.predictions.after_step()
    gui.settle()
    assert np.allclose(at(classed), rgb("#00ff00"), atol=3)
    panel.classes.by_class.native.click()
    gui.settle()
    assert layer.colormap is own and isinstance(own, CyclicLabelColormap)
    # Hidden with the panel, and the layer is its own again.
    panel.classes.by_class.native.click()
    gui.settle()
    assert layer.colormap is not own
    gui.widget.pause()
    assert layer.colormap is own


def test_classes_come_along_to_the_next_image_and_outlive_the_layer(gui: Gui) -> None:
    new_class(gui, "nucleus")
    other = gui.viewer.add_image(np.zeros(HW, np.uint8), name="other")
    gui.settle()
    workspace = gui.controller.workspace
    assert workspace.image is other and not workspace.holds_work, "nothing was done here yet"
    choice = gui.widget.objects_panel.classes.choice.native
    assert choice.currentText() == "nucleus" and not workspace.history.undo_name
    new_class(gui, "debris")
    assert workspace.holds_work
    gui.viewer.layers.selection.active = gui.viewer.layers["image"]
    gui.settle()
    assert choice.currentText() == "debris"
    gui.key("Z", "control")
    assert choice.findText("debris") >= 0, "that was a step of the other image"
    made = add(gui, *PLACES[0])
    gui.viewer.layers.remove(gui.controller.workspace.objects.layer)
    gui.settle()
    assert not gui.controller.workspace.document.objects and choice.findText("debris") >= 0
    assert made == 1


def test_a_name_is_needed_that_no_other_class_has(gui: Gui) -> None:
    new_class(gui, "nucleus")
    for name, told in (
        ("nucleus", "There is a class 'nucleus' already"),
        ("  ", "has no name"),
        (NO_CLASS, "can't be"),
    ):
        type_name(name)
        choose(gui, NEW_CLASS)
        assert told in gui.widget.status.text()
        assert gui.widget.objects_panel.classes.choice.native.currentText() == "nucleus"
    type_name("never", Qt.Key.Key_Escape)
    choose(gui, NEW_CLASS)
    assert [made.name for made in gui.controller.workspace.document.classes.values()] == ["nucleus"]
    gui.widget.objects_panel.classes.give.native.click()
    assert "No object is selected" in gui.widget.status.text()


def test_classes_of_a_file_that_says_too_little_are_kept(tmp_path: Path) -> None:
    plane = {"axes": [0, 1], "position": [-1, -1]}
    item = {"id": 1, "origin": "painted", "score": None, "planes": [plane], "prompts": [], "masks": []}
    written = {
        "format": "refinesam-napari", "version": 3, "image": {"name": "a", "shape": [9, 9]}, "settings": {},
        "editing": None, "draft": [], "objects": [item],
    }  # fmt: skip
    path = tmp_path / "s.json"
    path.write_text(json.dumps(written))
    old = read_session(path)
    assert not old.problems and not old.document.classes and old.document.objects[1].class_id is None
    named = [{**item, "class_name": "a"}, {**item, "id": 2, "class_name": "b"}]
    table = [{"name": "a", "colour": "#112233"}, {"name": "a", "colour": "#000000"}, {"name": "c", "colour": "red"}]
    path.write_text(json.dumps({**written, "version": 4, "objects": named, "classes": table}))
    read = read_session(path)
    assert len(read.problems) == 2 and "classes[1]" in read.problems[0] and "classes[2]" in read.problems[1]
    found = [read.document.class_of(item) for item in read.document.objects.values()]
    assert [(made.name, made.colour) for made in found] == [("a", "#112233"), ("b", CLASS_COLOURS[0])]


def test_new_classes_have_colours_of_their_own() -> None:
    made = Classifying()
    for number in range(len(CLASS_COLOURS) + 1):
        made.add_class(str(number))
    colours = [one.colour for one in made.document.classes.values()]
    assert len(set(colours[:-1])) == len(CLASS_COLOURS) and colours[-1] in CLASS_COLOURS
    with pytest.raises(ConfigError, match="There is a class '3' already"):
        made.add_class(" 3 ")
