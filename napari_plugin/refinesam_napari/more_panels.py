"""The widget's parts for segment-everything, stacks and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QGroupBox,
    QLabel,
    QListWidget,
    QListWidgetItem,
    QSpinBox,
    QVBoxLayout,
)

from refinesam_napari.autosave import discard_autosave
from refinesam_napari.controller import Controller
from refinesam_napari.files import Files
from refinesam_napari.panels import ObjectsPanel, button, confidence, row
from refinesam_napari.review import Filters, Review
from refinesam_napari.stack import Stack

__all__ = ["EverythingPanel", "FilesPanel", "StackPanel"]

DIRECTIONS = {"both ways": "both", "up from here": "up", "down from here": "down"}
SESSION_FILES = "refinesam session (*.json)"


class EverythingPanel(QGroupBox):
    """Segment everything, then accept or discard."""

    def __init__(self, controller: Controller, review: Review) -> None:
        super().__init__("Segment everything")
        self.controller, self.review = controller, review
        self.start = button(controller, "Segment everything", "In the plane in view", review.start)
        self.score = QDoubleSpinBox(maximum=1.0, singleStep=0.05, decimals=2)
        self.least_area = QSpinBox(maximum=2**31 - 1, singleStep=50)
        self.greatest_area = QSpinBox(maximum=2**31 - 1, singleStep=500)
        self.greatest_area.setSpecialValueText("no limit")
        for box in (self.score, self.least_area, self.greatest_area):
            box.valueChanged.connect(controller.attempting(self._filter))
        self.list = QListWidget()
        self.list.setMaximumHeight(120)
        self.list.setSelectionMode(QListWidget.SelectionMode.ExtendedSelection)
        self.accept_all = button(
            controller, "Accept all shown", "Make objects of them, the best first", self._accept_all
        )
        self.accept = button(
            controller, "Accept", "Make an object of the chosen ones", lambda: review.accept(self.chosen)
        )
        self.discard = button(controller, "Discard", "Drop the chosen ones", lambda: review.discard(self.chosen))
        self.clear = button(controller, "Drop all", "Drop all candidates", review.clear)
        form = QFormLayout()
        form.addRow("Least confidence", self.score)
        form.addRow("Least area, px", self.least_area)
        form.addRow("Greatest area, px", self.greatest_area)
        layout = QVBoxLayout(self)
        layout.addWidget(self.start)
        layout.addLayout(form)
        layout.addWidget(self.list)
        layout.addWidget(row(self.accept_all, self.accept, self.discard, self.clear))
        review.changed.connect(self.update_shown)

    @property
    def chosen(self) -> list[int]:
        """Numbers of the candidates selected in the list."""
        return [int(item.data(Qt.ItemDataRole.UserRole)) for item in self.list.selectedItems()]

    def update_shown(self) -> None:
        """Show the state of now."""
        self.setEnabled(self.controller.plane is not None)
        review, selected = self.review, set(self.chosen)
        if review.chosen is not None:
            selected = {review.chosen}
        with QSignalBlocker(self.list):
            self.list.clear()
            for number in review.shown:
                candidate = review.candidates[number]
                item = QListWidgetItem(f"{number}: {confidence(candidate.score)}, {candidate.mask.area:,} px")
                item.setData(Qt.ItemDataRole.UserRole, number)
                self.list.addItem(item)
                if number in selected:
                    item.setSelected(True)
                    self.list.scrollToItem(item)
        for made in (self.accept_all, self.accept, self.discard, self.clear):
            made.setEnabled(bool(review.candidates))

    def _filter(self, *_: object) -> None:
        self.review.use_filters(Filters(self.score.value(), self.least_area.value(), self.greatest_area.value()))

    def _accept_all(self) -> None:
        self.review.accept(self.review.shown)


class StackPanel(QGroupBox):
    """Propagate an object through the stack."""

    def __init__(self, controller: Controller, stack: Stack, objects: ObjectsPanel) -> None:
        super().__init__("Stack (3D, time)")
        self.controller, self.stack, self.objects = controller, stack, objects
        self.axis = QComboBox()
        self.axis.setToolTip("From one slice to the next in depth, or from one frame to the next in time.")
        self.axis.activated.connect(controller.attempting(self._choose_axis))
        self.direction = QComboBox()
        for words, name in DIRECTIONS.items():
            self.direction.addItem(words, name)
        self.direction.activated.connect(controller.attempting(self._choose))
        self.agreement = QDoubleSpinBox(maximum=1.0, singleStep=0.05, decimals=2)
        self.agreement.setToolTip(
            "A slice whose outline overlaps less with the slice before ends the object (1: all of it)."
        )
        self.contrast = QDoubleSpinBox(maximum=1.0, singleStep=0.05, decimals=2)
        self.contrast.setToolTip(
            "A slice in which the object stands out less ends it (1: as much as where it was prompted)."
        )
        self.agreement.setValue(stack.settings.min_agreement)
        self.contrast.setValue(stack.settings.min_contrast)
        for box in (self.agreement, self.contrast):
            box.valueChanged.connect(controller.attempting(self._choose))
        self.start = button(
            controller,
            "Propagate",
            "The object in hand, or the one chosen in the list. To do again from a slice: edit the object, prompt it "
            "there, and go up or down from here.",
            lambda: stack.start(self.objects.chosen),
        )
        form = QFormLayout(self)
        form.addRow("Along", self.axis)
        form.addRow("Direction", self.direction)
        form.addRow("Least overlap", self.agreement)
        form.addRow("Least contrast", self.contrast)
        form.addRow(self.start)

    def update_shown(self) -> None:
        """Show the state of now."""
        workspace, axis = self.controller.workspace, self.stack.axis
        self.setEnabled(axis is not None)
        self.axis.clear()
        if workspace is None or axis is None:
            self.axis.addItem("no axis: the image has one slice", None)
            return
        for other in self.stack.axes:
            self.axis.addItem(f"axis {other} ({workspace.image.axis_labels[other]})", other)
        self.axis.setCurrentIndex(self.stack.axes.index(axis))

    def _choose_axis(self, index: int) -> None:
        self.stack.chosen = self.axis.itemData(index)

    def _choose(self, *_: object) -> None:
        self.stack.settings = replace(
            self.stack.settings,
            direction=self.direction.currentData(),
            min_agreement=self.agreement.value(),
            min_contrast=self.contrast.value(),
        )


class FilesPanel(QGroupBox):
    """Save, load, replay, export, restore."""

    def __init__(self, controller: Controller, files: Files) -> None:
        super().__init__("Files")
        self.controller, self.files = controller, files
        self.save = button(
            controller, "Save ...", "Prompts and masks as JSON", lambda: self._to("Save", "", "json", files.save)
        )
        self.load = button(controller, "Load ...", "Prompts and masks from JSON", self._load)
        self.replay = button(
            controller,
            "Replay prompts",
            "Compute all masks from their prompts again, with the model chosen now",
            files.replay,
        )
        self.tiff = button(
            controller,
            "Labels as TIFF ...",
            "Export",
            lambda: self._to("Labels as TIFF", "_labels", "tif", files.export_tiff),
        )
        self.coco = button(
            controller, "COCO JSON ...", "Export", lambda: self._to("COCO JSON", "_coco", "json", files.export_coco)
        )
        self.left = QComboBox()
        self.left.setToolTip("When it was written last, the newest first")
        self.restore = button(controller, "Restore", "Load what was not saved when a viewer ended", self._restore)
        self.discard = button(controller, "Discard", "Delete this unsaved work for good", self._discard)
        self.unsaved = row(QLabel("Unsaved work of"), self.left, self.restore, self.discard)
        layout = QVBoxLayout(self)
        layout.addWidget(row(self.save, self.load, self.replay))
        layout.addWidget(row(self.tiff, self.coco))
        layout.addWidget(self.unsaved)
        self._image: Any = None

    def update_shown(self) -> None:
        """Show the state of now."""
        workspace = self.controller.workspace
        self.setEnabled(workspace is not None)
        image = None if workspace is None else workspace.image
        if image is not self._image:  # Looking into the folder takes time; do so once for an image.
            self._image = image
            self._look_for_unsaved()

    def _look_for_unsaved(self) -> None:
        self.left.clear()
        for path, when in self.files.left_behind():
            self.left.addItem(when, path)
        self.unsaved.setVisible(self.left.count() > 0)

    def _to(self, title: str, ending: str, suffix: str, write: Callable[[str], None]) -> None:
        name = "session" if self._image is None else self._image.name
        path, _ = QFileDialog.getSaveFileName(self, title, f"{name}{ending}.{suffix}", f"*.{suffix}")
        if path:
            write(path)
            self.controller.told.emit(f"Written: {path}", False)

    def _load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load", "", SESSION_FILES)
        if path:
            self._tell_problems(self.files.load(path))

    def _restore(self) -> None:
        self._tell_problems(self.files.restore(self.left.currentData()))
        self._look_for_unsaved()

    def _discard(self) -> None:
        discard_autosave(self.left.currentData())
        self._look_for_unsaved()

    def _tell_problems(self, problems: tuple[str, ...]) -> None:
        if problems:
            self.controller.told.emit("Left out, being damaged: " + "; ".join(problems), True)
