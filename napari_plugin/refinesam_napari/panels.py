"""The widget's parts for the image and the prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from magicgui.widgets import CheckBox, Label, LineEdit
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog

from refinesam import ConfigError
from refinesam.hosts import known_weights
from refinesam_napari.controller import Controller
from refinesam_napari.controls import Panel, combo, confidence, form, row, show, show_in_order, words
from refinesam_napari.crops import CROP_MODES
from refinesam_napari.images import INTENSITIES
from refinesam_napari.inference import Candidates, Model
from refinesam_napari.predictions import EMBEDDINGS_FOLDER

__all__ = ["ImagePanel", "PromptPanel"]

OWN_FILE = "own file ..."
DEVICES = ("auto", "cpu", "cuda")
CROP_WORDS = {"auto": "automatic", "whole": "whole image", "view": "what is in view"}
INTENSITY_WORDS = {
    "percentile": "automatic, without outliers",
    "minmax": "darkest to brightest pixel",
    "as_is": "as it is",
    "contrast_limits": "as the layer is shown",
}
NO_CHANNELS = "none"


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
        self.weights = combo(lambda _: self._weights_choices(), "Model")
        self.about_weights = words()
        self.about_weights.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
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
            self.about_weights.native,
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
        self._show_weights()

    def _weights_choices(self) -> list[tuple[str, object]]:
        known = [
            (name if entry.is_here else f"{name} (download, {entry.size_words})", name)
            for name, entry in known_weights().items()
        ]
        return [*((path, path) for path in self._own_weights), *known, (OWN_FILE, OWN_FILE)]

    def _show_weights(self) -> None:
        chosen, choices = self.controller.predictions.options.model.weights, self._weights_choices()
        show_in_order(self.weights, choices, chosen)
        for index, (_, name) in enumerate(choices):
            self.weights.native.setItemData(index, _about(name), Qt.ItemDataRole.ToolTipRole)
        # The list may be wider than its place in the panel, so that no size is cut off.
        view = self.weights.native.view()
        view.setMinimumWidth(view.sizeHintForColumn(0) + view.verticalScrollBar().sizeHint().width())
        self.about_weights.value = _about(chosen)

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


def _about(weights: object) -> str:
    """Say what weights are good at, how large they are, whether they are here, their licence and what to cite."""
    entry = known_weights().get(str(weights))
    if entry is None:
        return ""
    return f"Good at: {entry.summary}." + (f"\nPlease cite: {entry.citation}." if entry.citation else "")


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
        tip = (
            "A part, the object, a group: take the next larger mask that the prompts may mean (comma: the next smaller)"
        )
        self.other = self.button("Other candidate  [.]", tip, lambda: controller.step_candidate(+1))
        tip = "Every click and every box is an object of its own, added at once; Alt-click first for what is off it"
        self.one_each = CheckBox(text="one object each  [Shift-N]", tooltip=tip)
        tip = "What refinement measured and decided: κ counts the parts, Q says how compact it is"
        self.details = CheckBox(text="details", tooltip=tip)
        self.told = words()
        self.told.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._tools = row(self.positive, self.negative, self.box)
        self._masks = row(self.refine, self.first)
        self._choices = row(self.one_each, self.other)
        self.fill(self._tools, self._masks, self._choices, self.told, self.details)
        self.on_change(controller.use_one_each, self.one_each)
        self.on_change(lambda on: predictions.use_options(refine=on), self.refine)
        self.on_change(lambda on: predictions.use_options(show_first=on), self.first)
        self.on_change(lambda on: self.update_shown(), self.details)

    def update_shown(self) -> None:
        """Show the state of now."""
        options, found = self.controller.predictions.options, self.controller.predictions.current
        show(self.refine, options.refine)
        show(self.first, options.show_first)
        show(self.one_each, options.one_each)
        self.first.enabled = options.refine
        self.setEnabled(self.controller.view.plane is not None)
        self.other.enabled = found is not None and len(found.offered(options.show_first).masks) > 1
        if found is None:
            each = "Every click and every box is added as an object of its own."
            self.told.value = each if options.one_each else "Click on an object, or draw a box around it."
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
