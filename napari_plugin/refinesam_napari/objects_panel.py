"""The widget's part for committed objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, Label
from qtpy.QtCore import QItemSelectionModel, QSignalBlocker, Qt
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import QListWidget, QListWidgetItem

from refinesam_napari.class_controls import ClassControls, swatch
from refinesam_napari.controller import Controller
from refinesam_napari.controls import Panel, combo, confidence, row, show

if TYPE_CHECKING:
    from napari.layers import Labels

__all__ = ["ObjectsPanel"]

ORIGIN_WORDS = {
    "prompts": "by clicks and boxes",
    "everything": "by segment everything",
    "similar": "like other objects",
    "propagated": "followed through the stack",
    "painted": "painted",
    "found": "was there before",
}
NEW_LAYER = "a new layer"


class ObjectsPanel(Panel):
    """Committed objects, their classes, and the steps back and forth."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller, "Objects")
        self.commit = self.button("Add object  [N]", "Put the mask into the labels", controller.commit)
        self.discard = self.button("Drop prompts  [Q]", "Drop the prompts in hand", controller.discard)
        self.undo = self.button("Undo", "Ctrl-Z", controller.undo)
        self.redo = self.button("Redo", "Ctrl-Shift-Z", controller.redo)
        self._reasons: dict[Labels, str | None] = {}
        tip = "The labels layer that objects are added to; what it holds already stays."
        self.labels = combo(self._targets, tip=tip)
        self.overwrite = CheckBox(text="overwrite others")
        self._listed: tuple[list[tuple[int, str, str | None]], int | None] = [], None
        # magicgui's Select takes several at once, and knows no double click.
        self.list = QListWidget()
        self.list.setMaximumHeight(150)
        self.list.setSelectionMode(QListWidget.SelectionMode.ExtendedSelection)
        self.list.itemDoubleClicked.connect(controller.tasks.attempting(lambda item: self._edit()))
        self.edit = self.button("Edit", "Take the object's prompts in hand again (J, K: previous, next)", self._edit)
        self.delete = self.button("Delete", "Delete the selected objects and their pixels", self._delete)
        self.classes = ClassControls(self, lambda: self.selected)
        self._rows = (
            row(self.commit, self.discard),
            row(self.undo, self.redo),
            row(Label(value="into"), self.labels, self.overwrite),
            row(self.edit, self.delete, self.classes.give),
        )
        self.fill(*self._rows[:3], self.classes.row, self.list, self._rows[3])
        self.on_change(self._choose_labels, self.labels)
        self.on_change(lambda on: controller.predictions.use_options(overwrite=on), self.overwrite)

    @property
    def chosen(self) -> int | None:
        """Id of the object that is selected in the list."""
        item = self.list.currentItem()
        return None if item is None else int(item.data(Qt.ItemDataRole.UserRole))

    @property
    def selected(self) -> list[int]:
        """Ids of all objects that are selected in the list."""
        return [int(item.data(Qt.ItemDataRole.UserRole)) for item in self.list.selectedItems()]

    def update_shown(self) -> None:
        """Show the state of now."""
        workspace = self.controller.workspace
        self.setEnabled(workspace is not None)
        document = None if workspace is None else workspace.document
        chosen = self.chosen if document is None or document.editing is None else document.editing
        entries: list[tuple[int, str, str | None]] = []
        for object_id, item in sorted(document.objects.items()) if document else ():
            score = "" if item.score is None else f", {confidence(item.score)}"
            planes = f", {len(item.planes)} slices" if len(item.planes) > 1 else ""
            editing = "  (editing)" if document and document.editing == object_id else ""
            its_class = document.class_of(item) if document else None
            named = "" if its_class is None else f"{its_class.name}, "
            text = f"{object_id}: {named}{ORIGIN_WORDS[item.origin]}{planes}{score}{editing}"
            entries.append((object_id, text, None if its_class is None else its_class.colour))
        self._show_list(entries, chosen)
        self.classes.update_shown()
        self._show_labels()
        history = None if workspace is None else workspace.history
        for made, name, verb in (
            (self.undo, history.undo_name if history else None, "Undo"),
            (self.redo, history.redo_name if history else None, "Redo"),
        ):
            made.enabled = name is not None
            made.text = verb if name is None else f"{verb}: {name}"
        self.commit.enabled = bool(document and document.draft)
        self.discard.enabled = bool(document and (document.draft or document.editing))

    def _show_list(self, entries: list[tuple[int, str, str | None]], chosen: int | None) -> None:
        if (entries, chosen) == self._listed:
            return  # There may be thousands.
        # What is selected stays so, unless the choice is another.
        selected = set(self.selected) if chosen == self.chosen else {chosen}
        self._listed = entries, chosen
        swatches = {colour: swatch(colour) for _, _, colour in entries if colour is not None}
        with QSignalBlocker(self.list):
            self.list.clear()
            for object_id, text, colour in entries:
                entry = QListWidgetItem(text)
                if colour is not None:
                    entry.setIcon(swatches[colour])
                entry.setData(Qt.ItemDataRole.UserRole, object_id)
                self.list.addItem(entry)
                if object_id == chosen:
                    self.list.setCurrentItem(entry, QItemSelectionModel.SelectionFlag.NoUpdate)
                if object_id in selected:
                    entry.setSelected(True)

    @property
    def _layer(self) -> Labels | None:
        workspace = self.controller.workspace
        return None if workspace is None or workspace.objects is None else workspace.objects.layer

    def _targets(self, _: object) -> list[tuple[str, object]]:
        layers = [
            (layer.name if reason is None else f"{layer.name} (can't be used)", layer)
            for layer, reason in self._reasons.items()
        ]
        return [(NEW_LAYER, NEW_LAYER), *layers] if self._layer is None else layers

    def _show_labels(self) -> None:
        self._reasons, layer = self.controller.workspaces.targets(), self._layer
        show(self.labels, NEW_LAYER if layer is None else layer if layer in self._reasons else None, anew=True)
        # magicgui has no choices that are shown, but can't be chosen.
        native, model = self.labels.native, self.labels.native.model()
        for index in range(native.count()):
            reason = self._reasons.get(native.itemData(index))
            native.setItemData(index, reason, Qt.ItemDataRole.ToolTipRole)
            if isinstance(model, QStandardItemModel):
                model.item(index).setEnabled(reason is None)

    def _choose_labels(self, layer: Any) -> None:
        if self.controller.workspace is None or layer == NEW_LAYER or layer is self._layer:
            return
        try:
            self.controller.workspaces.use_labels(layer)
        finally:
            self._show_labels()

    def _edit(self) -> None:
        if self.chosen is not None:
            self.controller.edit_object(self.chosen)

    def _delete(self) -> None:
        for object_id in self.selected:
            self.controller.delete(object_id)
