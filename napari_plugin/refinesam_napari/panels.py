"""The widget's parts for the image, the prompts and the objects."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from magicgui.widgets import CheckBox, Label, LineEdit
from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import QFileDialog, QListWidget, QListWidgetItem

from refinesam import ConfigError
from refinesam.hosts import known_weights
from refinesam_napari.controller import Controller
from refinesam_napari.controls import Panel, combo, confidence, form, row, show, words
from refinesam_napari.crops import CROP_MODES
from refinesam_napari.images import INTENSITIES
from refinesam_napari.inference import Candidates, Model
from refinesam_napari.predictions import EMBEDDINGS_FOLDER

if TYPE_CHECKING:
    from napari.layers import Labels

__all__ = ["ImagePanel", "ObjectsPanel", "PromptPanel"]

OWN_FILE = "own file ..."
DEVICES = ("auto", "cpu", "cuda")
CROP_WORDS = {"auto": "automatic", "whole": "whole image", "view": "what is in view"}
INTENSITY_WORDS = {
    "percentile": "automatic, without outliers",
    "minmax": "darkest to brightest pixel",
    "as_is": "as it is",
    "contrast_limits": "as the layer is shown",
}
ORIGIN_WORDS = {
    "prompts": "by clicks and boxes",
    "everything": "by segment everything",
    "similar": "like other objects",
    "propagated": "followed through the stack",
    "painted": "painted",
    "found": "was there before",
}
NO_CHANNELS, NEW_LAYER = "none", "a new layer"


class ImagePanel(Panel):
    """Which image is segmented, by which model, and what the model sees of it."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller, "Image and model")
        self._own_weights: list[str] = []
        self.image = combo(
            lambda _: [(layer.name, layer) for layer in controller.view.images()],
            "Image",
            "The layer to segment. Selecting an image in the list of layers chooses it, too.",
        )
        self.weights = combo(
            lambda _: [(name, name) for name in (*self._own_weights, *known_weights(), OWN_FILE)], "Model"
        )
        self.device, self.running_on = combo(DEVICES), Label(value="")
        tip = "What the model computes for an image (its embedding) is kept, also over a restart."
        self.keep_on_disk = CheckBox(text="remember images on disk", tooltip=tip)
        self.intensity = combo(
            [(INTENSITY_WORDS[name], name) for name in INTENSITIES],
            "Brightness",
            "How values that are not 8-bit are shown to the model. Automatic: percentiles 0.1 to 99.9.",
        )
        self.channel_axis = combo(self._channel_axes)
        self.channels = LineEdit(tooltip="One channel is seen gray; two as red, green; three as red, green, blue.")
        self.channels.native.setPlaceholderText("0 or 0,1 or 2,0,1")
        tip = "The part of a large image that the model sees at once."
        self.crop = combo([(CROP_WORDS[mode], mode) for mode in CROP_MODES], "Looks at", tip)
        self.sees = self.button(
            "Show what the model sees",
            "Add it as a layer",
            lambda: controller.predictions.show_what_the_model_sees(),
        )
        self._form = form(
            self.image,
            self.weights,
            row(self.device, self.running_on, label="Device"),
            row(self.keep_on_disk),
            self.intensity,
            row(self.channel_axis, self.channels, label="Channels"),
            self.crop,
        )
        self.fill(self._form, self.sees)
        self.on_change(self._choose_image, self.image)
        self.on_change(self._choose_model, self.weights, self.device, self.keep_on_disk)
        self.on_change(self._choose_settings, self.intensity, self.channel_axis)
        # magicgui tells of every letter.
        self.channels.native.editingFinished.connect(controller.tasks.attempting(self._choose_settings))
        self.on_change(lambda mode: controller.predictions.use_options(crop_mode=mode), self.crop)

    def _channel_axes(self, _: object) -> list[tuple[str, object]]:
        layer = None if self.controller.workspace is None else self.controller.workspace.image
        labels = [] if layer is None or layer.rgb else layer.axis_labels
        return [(NO_CHANNELS, NO_CHANNELS), *((f"axis {axis} ({label})", axis) for axis, label in enumerate(labels))]

    def update_shown(self) -> None:
        """Show the state of now."""
        workspace = self.controller.workspace
        images = self.controller.view.images()
        show(self.image, workspace.image if workspace and workspace.image in images else None, anew=True)
        self.setEnabled(workspace is not None)
        if workspace is None:
            return
        settings = workspace.settings
        show(self.intensity, settings.intensity)
        show(self.channel_axis, NO_CHANNELS if settings.channel_axis is None else settings.channel_axis, anew=True)
        if not self.channels.native.hasFocus():
            show(self.channels, ",".join(map(str, settings.channels)))
        self.channels.enabled = settings.channel_axis is not None
        self.running_on.value = self.controller.predictions.running_on

    def _choose_image(self, image: Any) -> None:
        self.controller.view.choose_image(image)
        self.controller.view.prompts.use_points(True)

    def _choose_model(self, _: object) -> None:
        if self.weights.value == OWN_FILE:
            path, _ = QFileDialog.getOpenFileName(self, "Weights", "", "Weights (*.safetensors *.pt *.pth *.zip)")
            if path and path not in self._own_weights:
                self._own_weights.insert(0, path)
            show(self.weights, path or self.controller.predictions.options.model.weights, anew=True)
        folder = EMBEDDINGS_FOLDER if self.keep_on_disk.value else None
        model = Model(str(self.weights.value), str(self.device.value), folder)
        self.controller.predictions.use_options(model=model)

    def _choose_settings(self, *_: object) -> None:
        workspace = self.controller.workspace
        if workspace is None:
            return
        axis = None if self.channel_axis.value == NO_CHANNELS else self.channel_axis.value
        settings = replace(
            workspace.settings,
            intensity=self.intensity.value,
            channel_axis=axis,
            channels=() if axis is None else _numbers(self.channels.value),
        )
        self.controller.view.use_settings(settings)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"Channels are {text!r}: give up to three whole numbers, as in 0 or 0,1 or 2,0,1.")
    return tuple(int(part) for part in parts)


class PromptPanel(Panel):
    """Tools, refinement, and what came of the prompts."""

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller, "Prompts")
        prompts, predictions = controller.view.prompts, controller.predictions
        tip = "Click on the object (W turns the sign)"
        self.positive = self.button("+ point", tip, lambda: prompts.use_points(True))
        tip = "Click off the object; Alt-click does so with any tool"
        self.negative = self.button("\u2212 point", tip, lambda: prompts.use_points(False))
        self.box = self.button("box", "Drag a box around the object (U)", prompts.use_boxes)
        self.refine = CheckBox(value=predictions.options.refine, text="refine the outline  [G]")
        self.first = CheckBox(text="before refinement  [H]")
        tip = "What refinement measured and decided: κ counts the parts, Q says how compact it is"
        tip = (
            "A part, the object, a group: take the next larger mask that the prompts may mean (comma: the next smaller)"
        )
        self.other = self.button("Other candidate  [.]", tip, lambda: controller.step_candidate(+1))
        self.details = CheckBox(text="details", tooltip=tip)
        self.told = words()
        self.told.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._tools = row(self.positive, self.negative, self.box)
        self._masks = row(self.refine, self.first)
        self.fill(self._tools, self._masks, self.other, self.told, self.details)
        self.on_change(lambda on: predictions.use_options(refine=on), self.refine)
        self.on_change(lambda on: predictions.use_options(show_first=on), self.first)
        self.on_change(lambda on: self.update_shown(), self.details)

    def update_shown(self) -> None:
        """Show the state of now."""
        options, found = self.controller.predictions.options, self.controller.predictions.current
        show(self.refine, options.refine)
        show(self.first, options.show_first)
        self.first.enabled = options.refine
        self.setEnabled(self.controller.view.plane is not None)
        self.other.enabled = found is not None and len(found.offered(options.show_first).masks) > 1
        if found is None:
            self.told.value = "Click on an object, or draw a box around it."
            return
        mask, score = found.shown(options.show_first)
        lines = [f"{mask.area:,} pixels, {confidence(score)}"]
        if candidates := _candidates(found.offered(options.show_first), found.request.prompts.candidate):
            lines.append(candidates)
        if found.is_refined(options.show_first):
            lines.append(found.told())
        if found.negatives == "subtracted":
            lines.append("The spots of the clicks off the object were cut out.")
        if self.details.value:
            lines.append(found.details())
        self.told.value = "\n".join(lines)


def _candidates(offered: Candidates, choice: int | None) -> str:
    """Say which mask of how many is shown, and the scores of all, by size; "" where there is no choice."""
    if len(offered.masks) < 2 or (index := offered.index(choice)) is None:
        return ""
    scores = (f"{'▸' if at == index else ''}{score:.2f}" for at, score in enumerate(offered.scores))
    return f"Candidate {index + 1} of {len(offered.masks)} by size, predicted IoU {' · '.join(scores)}"


class ObjectsPanel(Panel):
    """Committed objects, and the steps back and forth."""

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
        self._listed: tuple[list[tuple[int, str]], int | None] = [], None
        # magicgui's Select takes several at once, and knows no double click.
        self.list = QListWidget()
        self.list.setMaximumHeight(150)
        self.list.setSelectionMode(QListWidget.SelectionMode.ExtendedSelection)
        self.list.itemDoubleClicked.connect(controller.tasks.attempting(lambda item: self._edit()))
        self.edit = self.button("Edit", "Take the object's prompts in hand again (J, K: previous, next)", self._edit)
        self.delete = self.button("Delete", "Delete the selected objects and their pixels", self._delete)
        self._rows = (
            row(self.commit, self.discard),
            row(self.undo, self.redo),
            row(Label(value="into"), self.labels, self.overwrite),
            row(self.edit, self.delete),
        )
        self.fill(*self._rows[:3], self.list, self._rows[3])
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
        entries: list[tuple[int, str]] = []
        for object_id, item in sorted(document.objects.items()) if document else ():
            score = "" if item.score is None else f", {confidence(item.score)}"
            planes = f", {len(item.planes)} slices" if len(item.planes) > 1 else ""
            editing = "  (editing)" if document and document.editing == object_id else ""
            entries.append((object_id, f"{object_id}: {ORIGIN_WORDS[item.origin]}{planes}{score}{editing}"))
        self._show_list(entries, chosen)
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

    def _show_list(self, entries: list[tuple[int, str]], chosen: int | None) -> None:
        if (entries, chosen) == self._listed:
            return  # There may be thousands.
        # Others go on being selected, unless the choice is another.
        selected = set(self.selected) if chosen in self.selected else set()
        self._listed = entries, chosen
        with QSignalBlocker(self.list):
            self.list.clear()
            for object_id, text in entries:
                entry = QListWidgetItem(text)
                entry.setData(Qt.ItemDataRole.UserRole, object_id)
                self.list.addItem(entry)
                if object_id == chosen:
                    self.list.setCurrentItem(entry)
            for index in range(self.list.count()) if selected else ():
                listed = self.list.item(index)
                if int(listed.data(Qt.ItemDataRole.UserRole)) in selected:
                    listed.setSelected(True)

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
