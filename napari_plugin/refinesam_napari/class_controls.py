"""The panel's controls for classes, and objects in the colours of their classes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, Label
from napari.utils.colormaps import DirectLabelColormap
from napari.utils.colormaps.standardize_color import transform_color
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QColorDialog, QHBoxLayout, QInputDialog, QMenu, QPushButton, QWidget

from refinesam import ConfigError
from refinesam_napari.controls import Panel, combo, show_in_order
from refinesam_napari.workspace import Workspace

if TYPE_CHECKING:
    from napari.layers import Labels

__all__ = ["ClassColours", "ClassControls", "swatch"]

NO_CLASS, NEW_CLASS = "(none)", "new class ..."
# Of objects without a class, where objects have the colours of their classes.
WITHOUT_CLASS = "#b0b0b0"
SWATCH_PIXELS = 12


class ClassControls:
    """Choose the class of new objects, edit the classes, give one to the selected objects, see them by class.

    Attributes:
        choice: the class of new objects.
        menu: what can be done with the chosen class.
        give: a button for the selected objects.
        by_class: whether objects are shown in the colours of their classes.
    """

    def __init__(self, panel: Panel, selected: Callable[[], Sequence[int]]) -> None:
        self._panel, self._controller, self._selected = panel, panel.controller, selected
        self.colours = ClassColours()
        tip = "The class of new objects; “new class ...” adds one"
        self.choice = combo(self._choices, tip=tip)
        self.by_class = CheckBox(text="colours", tooltip="Show objects in the colours of their classes")
        self.give = panel.button("Give class", "Give the class chosen above to the selected objects", self._give)
        self.menu = QMenu(panel)
        attempting = self._controller.tasks.attempting
        for text, action in (("Rename ...", self._rename), ("Colour ...", self._recolour), ("Remove", self._remove)):
            self.menu.addAction(text).triggered.connect(attempting(lambda checked, action=action: action()))
        # magicgui's buttons have no menus.
        self.edit = QPushButton("Change", toolTip="Rename, recolour or remove the class")
        self.edit.setMenu(self.menu)
        self._label, self.row = Label(value="class"), QWidget()
        layout = QHBoxLayout(self.row)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._label.native)
        layout.addWidget(self.choice.native, 1)
        layout.addWidget(self.edit)
        layout.addWidget(self.by_class.native)
        panel.on_change(self._choose, self.choice)
        panel.on_change(lambda on: self.update_shown(), self.by_class)

    @property
    def _workspace(self) -> Workspace | None:
        return self._controller.workspace

    def _choices(self, _: object) -> list[tuple[str, object]]:
        workspace = self._workspace
        classes = {} if workspace is None else workspace.document.classes
        return [(NO_CLASS, NO_CLASS), *((made.name, key) for key, made in classes.items()), (NEW_CLASS, NEW_CLASS)]

    def update_shown(self) -> None:
        """Show the state of now."""
        workspace = self._workspace
        current = None if workspace is None else workspace.current_class
        show_in_order(self.choice, self._choices(None), NO_CLASS if current is None else current)
        for index, made in enumerate(workspace.document.classes.values() if workspace is not None else (), start=1):
            self.choice.native.setItemIcon(index, swatch(made.colour))
        self.edit.setEnabled(current is not None)
        if self.by_class.value:
            self.colours.show(workspace)
        else:
            self.colours.restore()

    def _choose(self, choice: Any) -> None:
        workspace = self._workspace
        if workspace is None:
            return
        if choice != NEW_CLASS:
            workspace.class_id = None if choice == NO_CLASS else choice
            self.update_shown()
            return
        try:
            name = self._ask("New class", "")
            if name is not None:
                workspace.add_class(name)
                self._controller.predictions.after_step()
        finally:
            self.update_shown()

    def _ask(self, title: str, name: str) -> str | None:
        """Have a name typed; None if the user thought better of it."""
        name, given = QInputDialog.getText(self._panel, title, "Name", text=name)
        if given and name.strip() in (NO_CLASS, NEW_CLASS):
            raise ConfigError(f"{name.strip()!r} can't be the name of a class: choose another one.")
        return name if given else None

    def _chosen(self) -> tuple[Workspace, int]:
        workspace = self._workspace
        if workspace is None or workspace.current_class is None:
            raise ConfigError("No class is chosen: choose the one that you mean first.")
        return workspace, workspace.current_class

    def _rename(self) -> None:
        workspace, class_id = self._chosen()
        name = self._ask("Rename the class", workspace.document.classes[class_id].name)
        if name is not None:
            workspace.rename_class(class_id, name)
            self._controller.predictions.after_step()

    def _recolour(self) -> None:
        workspace, class_id = self._chosen()
        before = QColor(workspace.document.classes[class_id].colour)
        colour = QColorDialog.getColor(before, self._panel, "Colour of the class")
        if colour.isValid():
            workspace.recolour_class(class_id, colour.name())
            self._controller.predictions.after_step()

    def _remove(self) -> None:
        workspace, class_id = self._chosen()
        workspace.remove_class(class_id)
        self._controller.predictions.after_step()

    def _give(self) -> None:
        workspace, selected = self._workspace, self._selected()
        if workspace is None:
            return
        if not selected:
            raise ConfigError("No object is selected: select objects in the list (Ctrl-click for more than one).")
        if workspace.give_class(selected, workspace.current_class):
            self._controller.predictions.after_step()


@dataclass(eq=False)
class _Coloured:
    """A layer's own colours, those that it was given, and what these were made of."""

    own: Any
    given: DirectLabelColormap | None = None
    made_of: dict[int, str] = field(default_factory=dict)


class ClassColours:
    """Shows objects in the colours of their classes, and gives layers their own colours back."""

    def __init__(self) -> None:
        self._coloured: weakref.WeakKeyDictionary[Labels, _Coloured] = weakref.WeakKeyDictionary()

    def show(self, workspace: Workspace | None) -> None:
        """Show an image's objects by class."""
        if workspace is None or workspace.objects is None:
            return
        layer, document = workspace.objects.layer, workspace.document
        classes = {key: document.class_of(item) for key, item in document.objects.items()}
        colours = {key: made.colour for key, made in classes.items() if made is not None}
        state = self._coloured.setdefault(layer, _Coloured(layer.colormap))
        if state.given is None or state.made_of != colours:
            by_name = {name: transform_color(name)[0] for name in {WITHOUT_CLASS, *colours.values()}}
            shown = {None: by_name[WITHOUT_CLASS], 0: transform_color("transparent")[0]}
            shown |= {key: by_name[colour] for key, colour in colours.items()}
            state.given, state.made_of = DirectLabelColormap(color_dict=shown), colours
            layer.colormap = state.given

    def restore(self) -> None:
        """Give all layers their own colours back, unless they were given others since."""
        for layer, state in list(self._coloured.items()):
            if layer.colormap is state.given:
                layer.colormap = state.own
        self._coloured.clear()


def swatch(colour: str) -> QIcon:
    """Return a square of a colour, "#rrggbb"."""
    pixels = QPixmap(SWATCH_PIXELS, SWATCH_PIXELS)
    pixels.fill(QColor(colour))
    return QIcon(pixels)
