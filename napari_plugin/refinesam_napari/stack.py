"""Propagate an object through a stack, slice by slice, on the controller's thread for long work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from magicgui.widgets import FloatSlider
from numpy.typing import NDArray

from refinesam import EncodedImage, Session
from refinesam_napari.controller import Controller
from refinesam_napari.controls import Panel, combo, form, show
from refinesam_napari.document import PlanePrompts
from refinesam_napari.engine import Cancelled, Progress, Work
from refinesam_napari.geometry import NO_MASK, Crop, Plane, PlaneMask
from refinesam_napari.images import CropReader
from refinesam_napari.inference import PredictionRequest, encode, predict, sessions
from refinesam_napari.propagation import PropagationSettings, predict_in_crops, propagate
from refinesam_napari.views import stack_axes
from refinesam_napari.workspace import Workspace

__all__ = ["Stack", "StackPanel"]

DIRECTION_WORDS = {"both": "both ways", "up": "up from here", "down": "down from here"}
NO_AXIS = "no axis: the image has one slice"


class Stack:
    """Fills the slices around those in which an object was prompted or painted."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.settings = PropagationSettings()
        # The axis that the user chose.
        self.chosen: int | None = None

    @property
    def axes(self) -> list[int]:
        """The axes that objects can be propagated along, the likeliest first."""
        workspace, plane = self.controller.workspace, self.controller.view.plane
        if workspace is None or plane is None:
            return []
        return stack_axes(workspace.image, plane, workspace.settings.channel_axis)

    @property
    def axis(self) -> int | None:
        """The axis that objects are propagated along, None where there is none."""
        axes = self.axes
        return self.chosen if self.chosen in axes else next(iter(axes), None)

    def start(self, object_id: int | None = None) -> None:
        """Propagate the object in hand, which is committed first, or a committed one.

        In both directions all slices with prompts or with paint are seeds, and what else the object had is replaced.
        In one direction the slice in view is the only seed, other such slices are where it ends, and only what lies
        between is replaced.
        """
        controller, workspace, plane, axis = (
            self.controller,
            self.controller.workspace,
            self.controller.view.plane,
            self.axis,
        )
        if workspace is None or plane is None or axis is None:
            controller.tasks.tell("There is no axis to propagate along: the image has one slice.")
            return
        if workspace.document.draft:
            object_id = workspace.document.editing or workspace.next_id()
            if not controller.commit():
                return
        if object_id is None or object_id not in workspace.document.objects:
            controller.tasks.tell("Nothing to propagate: prompt an object, or choose one in the list.")
            return
        controller.workspaces.ensure_objects()
        item = workspace.document.objects[object_id]
        # What was painted or erased by hand is right: such a slice is a seed, or an end if nothing of it is left.
        given = dict.fromkeys((*item.prompts, *item.corrections)) or dict.fromkeys(item.planes)
        known = [p for p in given if _parallel(p, plane, axis)]
        emptied = [p for p in item.corrections if p in known and not workspace.mask_of(object_id, p).pixels.size]
        seeds = [p for p in known if p not in emptied and (self.settings.direction == "both" or p == plane)]
        if not seeds:
            controller.tasks.tell("Go to a slice in which the object has prompts: it is propagated from there.")
            return
        self._run(workspace, object_id, axis, seeds, [p for p in known if p not in seeds])

    def _run(self, workspace: Workspace, object_id: int, axis: int, seeds: list[Plane], borders: list[Plane]) -> None:
        controller, settings = self.controller, self.settings
        if workspace.image.axis_labels[axis].lower() in ("t", "time"):
            settings = replace(settings, depth=False)
        item = workspace.document.objects[object_id]
        requests = {p: self._request(p, object_id, workspace) for p in seeds}
        first = requests[seeds[0]]
        masks = {p: workspace.mask_of(object_id, p) for p in seeds if p in item.corrections or p not in item.prompts}
        image, hw, reader = first.image, first.image.plane_hw(seeds[0]), controller.predictions.reader
        indices = range(image.shape[axis])

        def run(work: Work) -> tuple[dict[Plane, PlaneMask], list[str]]:
            session = sessions.get(first.model, work)
            start: dict[int, NDArray[np.bool_]] = {}
            for seed, request in requests.items():
                mask = masks[seed] if seed in masks else _predicted(request, session, reader, work)
                if mask.pixels.size:
                    start[seed.position[axis]] = mask.on(hw)

            def encode_slice(index: int, crop: Crop) -> EncodedImage:
                return encode(session, reader, image, seeds[0].moved(axis, index), crop, work)

            def read_slice(index: int, crop: Crop) -> NDArray[np.uint8]:
                return reader.read(image, seeds[0].moved(axis, index), crop)

            filled: dict[Plane, PlaneMask] = {}
            stops: list[str] = []
            if not start:
                return filled, ["the mask of every seed is empty"]
            predict_slice = predict_in_crops(encode_slice, hw)
            ends = [border.position[axis] for border in borders]
            slices = propagate(start, predict_slice, indices, settings, session.capabilities, ends, read_slice)
            try:
                for done in slices:
                    if done.mask is not None:
                        whole = Crop(0, 0, hw[1], hw[0])
                        filled[seeds[0].moved(axis, done.index)] = PlaneMask.of(done.mask, whole)
                    if done.stopped:
                        stops.append(f"slice {done.index}: {done.stopped}")
                    work.report(Progress("Propagating", len(filled), len(indices)))
                    work.check()
            except Cancelled:
                stops.append("cancelled; what was filled is kept")
            finally:
                slices.close()
            return filled, stops

        def deliver(result: tuple[dict[Plane, PlaneMask], list[str]]) -> None:
            filled, stops = result
            self._deliver(workspace, object_id, axis, seeds, borders, filled)
            words = f"{len(filled)} slices filled. " + "; ".join(stops)
            controller.tasks.tell(words)

        controller.tasks.run(run, deliver)

    def _request(self, plane: Plane, object_id: int, workspace: Workspace) -> PredictionRequest:
        prompts = workspace.document.objects[object_id].prompts.get(plane, PlanePrompts())
        return replace(self.controller.predictions.request_for(plane, prompts), refine=prompts.refine)

    def _deliver(
        self,
        workspace: Workspace,
        object_id: int,
        axis: int,
        seeds: list[Plane],
        borders: list[Plane],
        filled: dict[Plane, PlaneMask],
    ) -> None:
        item = workspace.document.objects.get(object_id)
        if item is None:  # Deleted, or undone, meanwhile.
            return
        low, high = self._range(axis, seeds, borders)
        masks: dict[Plane, PlaneMask] = {
            plane: NO_MASK
            for plane in item.planes
            if plane not in seeds
            and plane not in borders
            and _parallel(plane, seeds[0], axis)
            and low < plane.position[axis] < high
        }
        masks.update({plane: mask for plane, mask in filled.items() if plane not in seeds})
        workspace.extend(object_id, masks, self.controller.predictions.options.overwrite)
        self.controller.predictions.after_step()

    def _range(self, axis: int, seeds: list[Plane], borders: list[Plane]) -> tuple[float, float]:
        """Between which slices what the object had is replaced."""
        if self.settings.direction == "both":
            return -np.inf, np.inf
        seed = seeds[0].position[axis]
        others = [border.position[axis] for border in borders]
        if self.settings.direction == "up":
            return seed, min([other for other in others if other > seed], default=np.inf)
        return max([other for other in others if other < seed], default=-np.inf), seed


def _predicted(request: PredictionRequest, session: Session, reader: CropReader, work: Work) -> PlaneMask:
    found = predict(request, session, reader, work)
    return NO_MASK if found is None else found.mask


def _parallel(one: Plane, other: Plane, axis: int) -> bool:
    """Whether two planes differ in nothing but their index on an axis."""
    return one.axes == other.axes and one == other.moved(axis, one.position[axis])


class StackPanel(Panel):
    """Propagate an object through the stack."""

    def __init__(self, controller: Controller, stack: Stack, chosen: Callable[[], int | None]) -> None:
        super().__init__(controller, "Stack (3D, time)")
        self.stack = stack
        tip = "From one slice to the next in depth, or from one frame to the next in time."
        self.axis = combo(self._axes, "Along", tip)
        self.direction = combo([(text, name) for name, text in DIRECTION_WORDS.items()], "Direction")
        settings = stack.settings
        tip = "A slice whose outline overlaps less with the slice before ends the object (1: all of it)."
        self.agreement = FloatSlider(
            value=settings.min_agreement, label="Least overlap", max=1.0, step=0.05, tooltip=tip
        )
        tip = "A slice in which the object stands out less ends it (1: as much as where it was prompted)."
        self.contrast = FloatSlider(
            value=settings.min_contrast, label="Least contrast", max=1.0, step=0.05, tooltip=tip
        )
        self.start = self.button(
            "Propagate",
            "The object in hand, or the one chosen in the list. To do again from a slice: edit the object, prompt it "
            "there, and go up or down from here.",
            lambda: stack.start(chosen()),
        )
        self._form = form(self.axis, self.direction, self.agreement, self.contrast)
        self.fill(self._form, self.start)
        self.on_change(self._choose_axis, self.axis)
        self.on_change(self._choose, self.direction, self.agreement, self.contrast)

    def _axes(self, _: object) -> list[tuple[str, object]]:
        workspace = self.controller.workspace
        if workspace is None or self.stack.axis is None:
            return [(NO_AXIS, NO_AXIS)]
        return [(f"axis {axis} ({workspace.image.axis_labels[axis]})", axis) for axis in self.stack.axes]

    def update_shown(self) -> None:
        """Show the state of now."""
        self.setEnabled(self.stack.axis is not None)
        show(self.axis, self.stack.axis, anew=True)

    def _choose_axis(self, axis: Any) -> None:
        self.stack.chosen = axis

    def _choose(self, _: object) -> None:
        self.stack.settings = replace(
            self.stack.settings,
            direction=self.direction.value,
            min_agreement=self.agreement.value,
            min_contrast=self.contrast.value,
        )
