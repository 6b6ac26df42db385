"""The widget's parts for the image, the prompts and the objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFileDialog,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from refinesam import ConfigError
from refinesam_napari.answers import EMBEDDINGS_FOLDER
from refinesam_napari.controller import Controller
from refinesam_napari.crops import CROP_MODES
from refinesam_napari.images import INTENSITIES
from refinesam_napari.inference import Model

if TYPE_CHECKING:
    from napari.layers import Labels

__all__ = ["ImagePanel", "ObjectsPanel", "PromptPanel", "button", "confidence"]

WEIGHTS = ("builtin", "efficientsam_ti", "efficientsam_s", "sam_vit_b", "sam_vit_l", "sam_vit_h")
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
    "propagated": "followed through the stack",
    "painted": "painted",
    "found": "was there before",
}


def button(controller: Controller, text: str, tip: str, clicked: Callable[[], object]) -> QPushButton:
    """Make a button; what goes wrong with a click is told."""
    made = QPushButton(text)
    made.setToolTip(tip)
    made.clicked.connect(controller.attempting(lambda checked: clicked()))
    return made


def confidence(score: float) -> str:
    """Put a predicted IoU into words."""
    return f"confidence {min(max(score, 0), 1):.0%}"


def combo() -> QComboBox:
    """Make a list to choose from that stays narrow, however long the names of layers are."""
    made = QComboBox()
    made.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    made.setMinimumContentsLength(8)
    return made


def row(*widgets: QWidget) -> QWidget:
    """Put widgets side by side."""
    holder = QWidget()
    layout = QHBoxLayout(holder)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return holder


class ImagePanel(QGroupBox):
    """Which image is segmented, by which model, and what the model sees of it."""

    def __init__(self, controller: Controller) -> None:
        super().__init__("Image and model")
        self.controller = controller
        self.image = combo()
        self.image.setToolTip("The layer to segment. Selecting an image in the list of layers chooses it, too.")
        self.image.activated.connect(controller.attempting(self._choose_image))
        self.weights = combo()
        self.weights.addItems([*WEIGHTS, OWN_FILE])
        self.weights.activated.connect(controller.attempting(self._choose_model))
        self.device = combo()
        self.device.addItems(DEVICES)
        self.device.activated.connect(controller.attempting(self._choose_model))
        self.running_on = QLabel("")
        self.keep_on_disk = QCheckBox("remember images on disk")
        self.keep_on_disk.setToolTip(
            "What the model computes for an image (its embedding) is kept, also over a restart."
        )
        self.keep_on_disk.toggled.connect(controller.attempting(self._choose_model))
        self.intensity = combo()
        for name in INTENSITIES:
            self.intensity.addItem(INTENSITY_WORDS[name], name)
        self.intensity.setToolTip(
            "How values that are not 8-bit are shown to the model. Automatic: percentiles 0.1 to 99.9."
        )
        self.intensity.activated.connect(controller.attempting(self._choose_settings))
        self.channel_axis = combo()
        self.channel_axis.activated.connect(controller.attempting(self._choose_settings))
        self.channels = QLineEdit()
        self.channels.setPlaceholderText("0 or 0,1 or 2,0,1")
        self.channels.setToolTip("One channel is seen gray; two as red, green; three as red, green, blue.")
        self.channels.editingFinished.connect(controller.attempting(self._choose_settings))
        self.crop = combo()
        for mode in CROP_MODES:
            self.crop.addItem(CROP_WORDS[mode], mode)
        self.crop.setToolTip("The part of a large image that the model sees at once.")
        self.crop.activated.connect(
            controller.attempting(lambda index: controller.use_options(crop_mode=self.crop.currentData()))
        )
        self.sees = button(controller, "Show what the model sees", "Add it as a layer", self._show_seen)
        form = QFormLayout(self)
        form.addRow("Image", self.image)
        form.addRow("Model", self.weights)
        form.addRow("Device", row(self.device, self.running_on))
        form.addRow("", self.keep_on_disk)
        form.addRow("Brightness", self.intensity)
        form.addRow("Channels", row(self.channel_axis, self.channels))
        form.addRow("Looks at", self.crop)
        form.addRow(self.sees)
        self._weights = controller.options.model.weights

    def update_shown(self) -> None:
        """Show the state of now."""
        controller, workspace = self.controller, self.controller.workspace
        images = controller.images()
        with QSignalBlocker(self.image):
            self.image.clear()
            for layer in images:
                self.image.addItem(layer.name)
            self.image.setCurrentIndex(images.index(workspace.image) if workspace and workspace.image in images else -1)
        self.setEnabled(workspace is not None)
        if workspace is None:
            return
        settings, layer = workspace.settings, workspace.image
        self.intensity.setCurrentIndex(self.intensity.findData(settings.intensity))
        with QSignalBlocker(self.channel_axis):
            self.channel_axis.clear()
            self.channel_axis.addItem("none", None)
            for axis in range(0 if layer.rgb else layer.ndim):
                self.channel_axis.addItem(f"axis {axis} ({layer.axis_labels[axis]})", axis)
            self.channel_axis.setCurrentIndex(self.channel_axis.findData(settings.channel_axis))
        if not self.channels.hasFocus():
            self.channels.setText(",".join(map(str, settings.channels)))
        self.channels.setEnabled(settings.channel_axis is not None)
        self.running_on.setText(controller.running_on)

    def _choose_image(self, index: int) -> None:
        self.controller.choose_image(self.controller.images()[index])
        self.controller.prompts.use_points(True)

    def _choose_model(self, *_: object) -> None:
        weights = self.weights.currentText()
        if weights == OWN_FILE:
            path, _ = QFileDialog.getOpenFileName(self, "Weights", "", "Weights (*.safetensors *.pt *.pth *.zip)")
            if path:
                self.weights.insertItem(0, path)
            self.weights.setCurrentText(path or self._weights)
            weights = self.weights.currentText()
        self._weights = weights
        folder = EMBEDDINGS_FOLDER if self.keep_on_disk.isChecked() else None
        self.controller.use_options(model=Model(weights, self.device.currentText(), folder))

    def _choose_settings(self, *_: object) -> None:
        workspace = self.controller.workspace
        if workspace is None:
            return
        axis = self.channel_axis.currentData()
        settings = replace(
            workspace.settings,
            intensity=self.intensity.currentData(),
            channel_axis=axis,
            channels=() if axis is None else _numbers(self.channels.text()),
        )
        self.controller.use_settings(settings)

    def _show_seen(self) -> None:
        self.controller.show_what_the_model_sees()


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"Channels are {text!r}: give up to three whole numbers, as in 0 or 0,1 or 2,0,1.")
    return tuple(int(part) for part in parts)


class PromptPanel(QGroupBox):
    """Tools, refinement, and what came of the prompts."""

    def __init__(self, controller: Controller) -> None:
        super().__init__("Prompts")
        self.controller = controller
        prompts = controller.prompts
        self.positive = button(
            controller, "+ point", "Click on the object (W turns the sign)", lambda: prompts.use_points(True)
        )
        self.negative = button(
            controller,
            "\u2212 point",
            "Click off the object; Alt-click does so with any tool",
            lambda: prompts.use_points(False),
        )
        self.box = button(controller, "box", "Drag a box around the object (U)", prompts.use_boxes)
        self.refine = QCheckBox("refine the outline  [G]")
        self.refine.setChecked(controller.options.refine)
        self.refine.toggled.connect(controller.attempting(lambda on: controller.use_options(refine=on)))
        self.first = QCheckBox("before refinement  [H]")
        self.first.toggled.connect(controller.attempting(lambda on: controller.use_options(show_first=on)))
        self.details = QCheckBox("details")
        self.details.setToolTip("What refinement measured and decided: κ counts the parts, Q says how compact it is")
        self.details.toggled.connect(controller.attempting(lambda on: self.update_shown()))
        self.told = QLabel("")
        self.told.setWordWrap(True)
        self.told.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        layout = QVBoxLayout(self)
        layout.addWidget(row(self.positive, self.negative, self.box))
        layout.addWidget(row(self.refine, self.first))
        layout.addWidget(self.told)
        layout.addWidget(self.details)

    def update_shown(self) -> None:
        """Show the state of now."""
        options, found = self.controller.options, self.controller.current_answer
        for box, value in ((self.refine, options.refine), (self.first, options.show_first)):
            with QSignalBlocker(box):
                box.setChecked(value)
        self.first.setEnabled(options.refine)
        self.setEnabled(self.controller.plane is not None)
        if found is None:
            self.told.setText("Click on an object, or draw a box around it.")
            return
        mask = found.first if options.show_first else found.mask
        score = found.first_score if options.show_first else found.score
        lines = [f"{mask.area:,} pixels, {confidence(score)}"]
        if found.told() and not options.show_first:
            lines.append(found.told())
        if found.negatives == "subtracted":
            lines.append("What lies under the clicks off the object was taken away.")
        if self.details.isChecked():
            lines.append(found.details())
        self.told.setText("\n".join(lines))


class ObjectsPanel(QGroupBox):
    """Committed objects, and the steps back and forth."""

    def __init__(self, controller: Controller) -> None:
        super().__init__("Objects")
        self.controller = controller
        self.commit = button(controller, "Add object  [N]", "Put the mask into the labels", controller.commit)
        self.discard = button(controller, "Drop prompts  [Q]", "Drop the prompts in hand", controller.discard)
        self.undo = button(controller, "Undo", "Ctrl-Z", controller.undo)
        self.redo = button(controller, "Redo", "Ctrl-Shift-Z", controller.redo)
        self.labels = combo()
        self.labels.setToolTip("The labels layer that objects are added to; what it holds already stays.")
        self.labels.activated.connect(controller.attempting(self._choose_labels))
        self.overwrite = QCheckBox("overwrite others")
        self.overwrite.toggled.connect(controller.attempting(lambda on: controller.use_options(overwrite=on)))
        self._targets: list[Labels | None] = []
        self._listed: tuple[list[tuple[int, str]], int | None] = [], None
        self.list = QListWidget()
        self.list.setMaximumHeight(150)
        self.list.itemDoubleClicked.connect(controller.attempting(lambda item: self._edit()))
        self.edit = button(
            controller, "Edit", "Take the object's prompts in hand again (J, K: previous, next)", self._edit
        )
        self.delete = button(controller, "Delete", "Delete the object and its pixels", self._delete)
        layout = QVBoxLayout(self)
        layout.addWidget(row(self.commit, self.discard))
        layout.addWidget(row(self.undo, self.redo))
        layout.addWidget(row(QLabel("into"), self.labels, self.overwrite))
        layout.addWidget(self.list)
        layout.addWidget(row(self.edit, self.delete))

    @property
    def chosen(self) -> int | None:
        """Id of the object that is selected in the list."""
        item = self.list.currentItem()
        return None if item is None else int(item.data(Qt.ItemDataRole.UserRole))

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
            made.setEnabled(name is not None)
            made.setText(verb if name is None else f"{verb}: {name}")
        self.commit.setEnabled(bool(document and document.draft))
        self.discard.setEnabled(bool(document and (document.draft or document.editing)))

    def _show_list(self, entries: list[tuple[int, str]], chosen: int | None) -> None:
        if (entries, chosen) == self._listed:
            return  # There may be thousands.
        self._listed = entries, chosen
        with QSignalBlocker(self.list):
            self.list.clear()
            for object_id, words in entries:
                entry = QListWidgetItem(words)
                entry.setData(Qt.ItemDataRole.UserRole, object_id)
                self.list.addItem(entry)
                if object_id == chosen:
                    self.list.setCurrentItem(entry)

    def _show_labels(self) -> None:
        objects = None if self.controller.workspace is None else self.controller.workspace.objects
        self._targets = [] if objects is not None else [None]
        with QSignalBlocker(self.labels):
            self.labels.clear()
            if objects is None:
                self.labels.addItem("a new layer")
            for layer, reason in self.controller.targets().items():
                self._targets.append(layer)
                self.labels.addItem(layer.name if reason is None else f"{layer.name} (can't be used)")
                index = self.labels.count() - 1
                self.labels.setItemData(index, reason, Qt.ItemDataRole.ToolTipRole)
                model = self.labels.model()
                if reason is not None and isinstance(model, QStandardItemModel):
                    model.item(index).setEnabled(False)
            if objects is not None and objects.layer in self._targets:
                self.labels.setCurrentIndex(self._targets.index(objects.layer))

    def _choose_labels(self, index: int) -> None:
        workspace, layer = self.controller.workspace, self._targets[index]
        if workspace is None or layer is None or (workspace.objects is not None and workspace.objects.layer is layer):
            return
        try:
            self.controller.use_labels(layer)
        finally:
            self._show_labels()

    def _edit(self) -> None:
        if self.chosen is not None:
            self.controller.edit_object(self.chosen)

    def _delete(self) -> None:
        if self.chosen is not None:
            self.controller.delete(self.chosen)
