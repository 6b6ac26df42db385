"""Predictions for the prompts in view: what is asked of the engine, when, and what is shown."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from platformdirs import user_cache_path
from qtpy.QtCore import QObject, QTimer, Signal

from refinesam_napari.crops import WHOLE_SIDE, CropMode
from refinesam_napari.document import PlanePrompts
from refinesam_napari.downloads import downloads
from refinesam_napari.engine import Engine, Job, JobResult, Work
from refinesam_napari.geometry import Plane
from refinesam_napari.hints import photograph_hint
from refinesam_napari.image_view import ImageView
from refinesam_napari.images import CropReader, ImageSnapshot
from refinesam_napari.inference import Model, PlanePrediction, PredictionRequest, encode, predict, sessions
from refinesam_napari.targets import label_colours
from refinesam_napari.tasks import Tasks
from refinesam_napari.views import visible_rectangle
from refinesam_napari.workspace import Workspace
from refinesam_napari.workspaces import Workspaces

__all__ = ["EMBEDDINGS_FOLDER", "Options", "Predictions"]

EMBEDDINGS_FOLDER = user_cache_path("refinesam") / "embeddings"
# After the last move of a slider, before the new plane is encoded ahead.
SETTLED_MS = 250


@dataclass
class Options:
    """What the user chose, whatever the image.

    Attributes:
        model: weights and device.
        refine: apply Adaptive Mask Refinement.
        show_first: look at the mask before refinement, and commit that.
        overwrite: new objects may cover others.
        crop_mode: see `refinesam_napari.crops.choose_crop`.
        one_each: every click and every box is an object of its own.
    """

    model: Model = Model()
    refine: bool = True
    show_first: bool = False
    overwrite: bool = False
    crop_mode: CropMode = "auto"
    one_each: bool = False


class Predictions(QObject):
    """Asks for the prediction for the prompts in view, and shows it.

    Signals:
        arrived: a prediction for prompts in view came.
        object_asked: these prompts, by plane, shall be an object of their own.
    """

    arrived = Signal()
    object_asked = Signal(object)

    def __init__(self, workspaces: Workspaces, view: ImageView, tasks: Tasks, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._workspaces, self._view, self._tasks = workspaces, view, tasks
        self.options = Options()
        self.reader = CropReader()
        self.engine = Engine(tasks.on_gui_thread(self._predicted), tasks.progressed.emit)
        self._settled = QTimer(self, singleShot=True, interval=SETTLED_MS)
        self._settled.timeout.connect(tasks.attempting(self._encode_ahead))
        # Nothing is encoded ahead after the user cancelled, until the next prompt.
        self._idle = False
        view.left.connect(self.forget_pixels)
        view.shown.connect(tasks.attempting(self._plane_shown))
        view.prompted.connect(tasks.attempting(self._take_over))
        workspaces.returned.connect(tasks.attempting(self.after_step))

    def cancel(self) -> None:
        """Give up what is computed or downloaded; nothing is encoded ahead until the next prompt."""
        self._idle = True
        downloads.cancel(self.options.model.weights)
        self._settled.stop()
        self.engine.cancel()

    def resume(self) -> None:
        """Encode ahead again."""
        self._idle = False

    @property
    def is_waiting(self) -> bool:
        """Whether the plane in view is about to be encoded."""
        return bool(self._settled.isActive())

    def forget_pixels(self) -> None:
        """Give up what is computed for the image or pixels of before."""
        self.engine.cancel()
        self.reader.forget()

    def _plane_shown(self) -> None:
        """Show the plane's prediction, or ask for it; a while later, encode the plane for the next prompt."""
        self.refresh()
        self._settled.start()

    def use_options(self, **changes: Any) -> None:
        """Change options by name."""
        before, self.options = self.options.model.weights, replace(self.options, **changes)
        if before != self.options.model.weights:
            downloads.cancel(before)
        if {"model", "crop_mode"} & changes.keys():
            for workspace in self._workspaces:
                workspace.forget_predictions()
            self.forget_pixels()
        self._idle = False
        self.refresh()
        self._settled.start()

    # -- prompts ----------------------------------------------------------------------------------------------------

    def _take_over(self, name: str, prompts: Mapping[Plane, PlanePrompts]) -> None:
        """Take over what the user did in the prompt layers."""
        workspace = self._workspaces.current
        if workspace is None:
            return
        if self._view.plane is None:
            # In three dimensions nothing can be prompted.
            QTimer.singleShot(0, self._show_draft)
            return
        self._idle = False
        inside = {plane: kept for plane, asked in prompts.items() if (kept := _inside(workspace, plane, asked))}
        if self.options.one_each and self._begin_an_object(workspace, inside):
            # Not now: napari is not done with the mouse.
            QTimer.singleShot(0, self._tasks.attempting(lambda: self._ask_for_object(workspace, inside)))
        elif workspace.edit_draft(name, inside):
            self.refresh()
            self._workspaces.edited.emit(workspace)
        if inside != prompts:
            self._tasks.tell("That is outside the image: click on an object in it.")
        if inside != prompts or self._view.prompts.has_strays:
            QTimer.singleShot(0, self._show_draft)

    def _begin_an_object(self, workspace: Workspace, prompts: Mapping[Plane, PlanePrompts]) -> bool:
        """Whether nothing was in hand before these prompts, and they name an object."""
        document = workspace.document
        if document.editing is not None or any(before.names_an_object for before in document.draft.values()):
            return False
        return any(asked.names_an_object for asked in prompts.values())

    def _ask_for_object(self, workspace: Workspace, prompts: Mapping[Plane, PlanePrompts]) -> None:
        if self._tasks.is_active and workspace is self._workspaces.current:
            self.object_asked.emit(prompts)

    def _show_draft(self) -> None:
        if self._workspaces.current is not None:
            self._view.prompts.show(self._workspaces.current.document.draft)

    def after_step(self) -> None:
        """Show the document as it is after a step that was not made in the prompt layers."""
        self._show_draft()
        self.refresh()
        self._workspaces.edited.emit(self._workspaces.current)

    # -- predictions ------------------------------------------------------------------------------------------------

    def request_for(self, plane: Plane, prompts: PlanePrompts) -> PredictionRequest:
        """Return the request that prompts in a plane of the image make under the options of now."""
        workspace, options = self._workspaces.current, self.options
        assert workspace is not None
        crop = workspace.crops.get(plane, prompts.crop)
        return PredictionRequest(
            ImageSnapshot.of(workspace.image, workspace.settings),
            plane,
            replace(prompts, crop=crop),
            options.refine,
            options.model,
            options.crop_mode,
            visible_rectangle(workspace.image, plane),
        )

    @property
    def current(self) -> PlanePrediction | None:
        """The prediction for the draft's prompts in the plane in view, None if there is none (yet).

        It is not refined as long as its refinement is computed.
        """
        workspace, plane = self._workspaces.current, self._view.plane
        if workspace is None or plane is None:
            return None
        found = workspace.prediction_for(plane, self.options.refine)
        return found if found is not None else workspace.prediction_for(plane, refine=False)

    @property
    def is_complete(self) -> bool:
        """Whether the prediction in view is there and has been through refinement, where that is on."""
        workspace, plane = self._workspaces.current, self._view.plane
        if workspace is None or plane is None:
            return False
        return workspace.prediction_for(plane, self.options.refine) is not None

    def refresh(self) -> None:
        """Show the prediction for the draft's prompts in view, or ask for it."""
        workspace, plane, preview = self._workspaces.current, self._view.plane, self._view.preview
        prompts = None if workspace is None or plane is None else workspace.document.draft.get(plane)
        if workspace is None or plane is None or prompts is None or not prompts.names_an_object:
            preview.hide()
        else:
            self._show(workspace, plane)
            if not self.is_complete:
                self._ask(workspace, self.request_for(plane, prompts))
        self._workspaces.changed.emit()

    def _show(self, workspace: Workspace, plane: Plane) -> None:
        """Show the prediction for the draft's prompts as far as it is computed."""
        if (found := self.current) is None:
            return
        mask = workspace.previewed(plane, found.shown(self.options.show_first)[0])
        refined = found.is_refined(self.options.show_first)
        points = found.report_points if refined else []
        kind = "refined" if refined else "first"
        self._view.preview.show(workspace.image, plane, mask, kind, points, self._view.channel)

    def _ask(self, workspace: Workspace, request: PredictionRequest) -> None:
        generation = workspace.generation

        def run(work: Work) -> tuple[Workspace, int, PlanePrediction | None]:
            session = sessions.get(request.model, work)
            work.check()
            on_first = self._tasks.on_gui_thread(partial(self._first_came, workspace, generation))
            found = predict(request, session, self.reader, work, self.engine.overtaken, on_first)
            if found is not None and (hint := photograph_hint.text_for(request, self.reader)):
                self._tasks.on_gui_thread(self._tasks.tell)(hint)
            label_colours()  # or the first commit would wait for its imports
            return workspace, generation, found

        self.engine.submit(Job(run, subject=_subject(workspace, request)))

    def _encode_ahead(self) -> None:
        """Encode the plane in view before the first prompt, unless what the model sees will depend on the prompt."""
        workspace, plane = self._workspaces.current, self._view.plane
        if workspace is None or plane is None or self._idle:
            return
        request = self.request_for(plane, PlanePrompts())
        if self.options.crop_mode == "auto" and max(request.image.plane_hw(plane)) > WHOLE_SIDE:
            return

        def run(work: Work) -> None:
            session = sessions.get(request.model, work)
            work.check()
            encode(session, self.reader, request.image, plane, request.crop, work)

        self.engine.submit(Job(run, subject=_subject(workspace, request), urgent=False))

    def _first_came(self, workspace: Workspace, generation: int, first: PlanePrediction) -> None:
        """Show a prediction whose refinement is still computed."""
        if generation != workspace.generation:
            return
        workspace.keep(replace(first, request=replace(first.request, refine=False)))
        self.arrived.emit()
        plane = self._view.plane
        if self._workspaces.current is workspace and plane is not None:
            self._show(workspace, plane)
            self._workspaces.changed.emit()

    def _predicted(self, result: JobResult) -> None:
        if result.error is not None:
            self._tasks.tell_error(result.error)
        elif not result.cancelled and result.value is not None:
            workspace, generation, found = result.value
            # A prediction for pixels that have changed meanwhile is none.
            if found is not None and generation == workspace.generation:
                workspace.keep(found)
                self.arrived.emit()
                if self._workspaces.current is workspace and self.is_complete:
                    self.refresh()
        self._tasks.finished.emit()

    @property
    def running_on(self) -> str:
        """The device that the model is on; empty before it is loaded."""
        return sessions.device_of(self.options.model)

    def show_what_the_model_sees(self) -> None:
        """Add what the model sees of the plane in view as a layer of its own."""
        workspace, plane = self._workspaces.current, self._view.plane
        if workspace is None or plane is None:
            return
        request = self.request_for(plane, workspace.document.draft.get(plane, PlanePrompts()))
        pixels = self.reader.read(request.image, plane, request.crop)
        self._view.preview.show_seen(workspace.image, plane, request.crop, pixels, self._view.channel)


def _inside(workspace: Workspace, plane: Plane, prompts: PlanePrompts) -> PlanePrompts:
    """Return the prompts that lie in the image."""
    height, width = (workspace.shape[axis] for axis in plane.axes)
    points = tuple(point for point in prompts.points if 0 <= point.x < width and 0 <= point.y < height)
    box = prompts.box
    if box is not None and (box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height):
        box = None
    return replace(prompts, points=points, box=box)


def _subject(workspace: Workspace, request: PredictionRequest) -> Hashable:
    """What must be encoded for a request."""
    return workspace, workspace.generation, request.model, request.plane, request.crop
