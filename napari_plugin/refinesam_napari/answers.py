"""Prompts in view, and the answers to them: what is asked of the engine, when, and what is shown."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path
from qtpy.QtCore import QObject, QTimer, Signal

from refinesam import RefineSAMError
from refinesam_napari.committed import displayed_axes
from refinesam_napari.crops import WHOLE_SIDE, CropMode
from refinesam_napari.document import PlanePrompts
from refinesam_napari.engine import Engine, Job, Outcome, Work
from refinesam_napari.geometry import Plane
from refinesam_napari.images import CropReader, ImageSnapshot
from refinesam_napari.inference import Answer, Model, Request, answer, encode, sessions
from refinesam_napari.scanning import Objects, objects_in
from refinesam_napari.scene import Scene
from refinesam_napari.views import visible_rectangle
from refinesam_napari.workspace import Workspace

if TYPE_CHECKING:
    from napari.layers import Labels
    from napari.viewer import Viewer

_log = logging.getLogger(__name__)

__all__ = ["EMBEDDINGS_FOLDER", "Answers", "Options"]

EMBEDDINGS_FOLDER = user_cache_path("refinesam") / "embeddings"
MEMORY_FULL = (
    "There is not enough memory. Choose the device “cpu” or a smaller model, let the model look at less than the whole "
    "image, or close other programs that use the GPU; then click again."
)
# Pixels of labels that are read in no time.
MOST_READ_AT_ONCE = 2**24
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
    """

    model: Model = Model()
    refine: bool = True
    show_first: bool = False
    overwrite: bool = False
    crop_mode: CropMode = "auto"


class Answers(Scene):
    """Asks for the answer to the prompts in view, and shows it.

    Signals:
        progressed: `Progress` of a running job.
        finished: no job runs any more.
        told: a message for the user, and whether it is an error.
        answered: an answer to prompts in view came.
    """

    progressed = Signal(object)
    finished = Signal()
    told = Signal(str, bool)
    answered = Signal()
    _arrived = Signal(object)

    def __init__(self, viewer: Viewer, parent: QObject | None = None) -> None:
        super().__init__(viewer, parent)
        self.options = Options()
        self.reader = CropReader()
        self._arrived.connect(lambda deliver: deliver())
        self.engine = Engine(self.on_gui_thread(self._answered), self.progressed.emit)
        # For what takes long, so that clicks are answered meanwhile.
        self.long = Engine(self.on_gui_thread(self._long_done), self.progressed.emit)
        self._settled = QTimer(self, singleShot=True, interval=SETTLED_MS)
        self._settled.timeout.connect(self.attempting(self._encode_ahead))
        self._idle = self._active = False
        # Counts the pauses: what was begun before one is not delivered after it.
        self._era = 0

    def on_gui_thread(self, deliver: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return a function that calls `deliver` on the GUI thread, whatever thread it is called on."""

        def arrived(value: Any) -> None:
            if self._active:
                self.attempt(lambda: deliver(value))

        def post(value: Any) -> None:
            # The viewer may be closed by the time that a thread is done.
            with contextlib.suppress(RuntimeError):
                self._arrived.emit(lambda: arrived(value))

        return post

    def pause(self) -> None:
        """Give up what is computed, and let go of the viewer."""
        if not self._active:
            return
        self._active = False
        self._era += 1
        self._settled.stop()
        self.engine.cancel()
        self.long.cancel()
        super().pause()

    def resume(self) -> None:
        """Go on where `pause` left off, or the widget before."""
        if not self._active:
            self._active, self._idle = True, False
            super().resume()

    def close(self) -> None:
        """Let go of the viewer and end the threads."""
        self.pause()
        self.engine.close()
        self.long.close()

    @property
    def is_active(self) -> bool:
        """Whether the viewer is followed: not while the widget is hidden or closed."""
        return self._active

    def image_left(self) -> None:
        """Give up what is computed for the image or pixels of before."""
        self.engine.cancel()
        self.reader.forget()

    def objects_returned(self) -> None:
        """Show the draft of the history that came back."""
        self.after_step()

    def plane_shown(self) -> None:
        """Show the plane's answer, or ask for it; a while later, encode the plane for the next prompt."""
        self.refresh()
        self._settled.start()

    def use_options(self, **changes: Any) -> None:
        """Change options by name."""
        self.options = replace(self.options, **changes)
        if {"model", "crop_mode"} & changes.keys():
            for workspace in self._workspaces.values():
                workspace.forget_answers()
            self.image_left()
        self._idle = False
        self.refresh()
        self._settled.start()

    # -- prompts and answers ----------------------------------------------------------------------------------------

    def prompts_edited(self, name: str, prompts: dict[Plane, PlanePrompts]) -> None:
        """Take over what the user did in the prompt layers."""
        self.attempt(lambda: self._take_over(name, prompts))

    def _take_over(self, name: str, prompts: dict[Plane, PlanePrompts]) -> None:
        if self.workspace is None:
            return
        if self.plane is None:
            # In three dimensions nothing can be prompted.
            QTimer.singleShot(0, self._show_draft)
            return
        self._idle = False
        inside = {plane: kept for plane, asked in prompts.items() if (kept := self._inside(plane, asked))}
        if self.workspace.edit_draft(name, inside):
            self.refresh()
            self.edited.emit(self.workspace)
        if inside != prompts:
            self.told.emit("That is outside the image: click on an object in it.", False)
        if inside != prompts or self.prompts.has_strays:
            QTimer.singleShot(0, self._show_draft)

    def _inside(self, plane: Plane, prompts: PlanePrompts) -> PlanePrompts:
        """Return the prompts that lie in the image."""
        assert self.workspace is not None
        height, width = (self.workspace.shape[axis] for axis in plane.axes)
        points = tuple(point for point in prompts.points if 0 <= point.x < width and 0 <= point.y < height)
        box = prompts.box
        if box is not None and (box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height):
            box = None
        return replace(prompts, points=points, box=box)

    def _show_draft(self) -> None:
        if self.workspace is not None:
            self.prompts.show(self.workspace.document.draft)

    def request_for(self, plane: Plane, prompts: PlanePrompts) -> Request:
        """Return the request that prompts in a plane of the image make under the options of now."""
        workspace, options = self.workspace, self.options
        assert workspace is not None
        crop = workspace.crops.get(plane, prompts.crop)
        return Request(
            ImageSnapshot.of(workspace.image, workspace.settings),
            plane,
            replace(prompts, crop=crop),
            options.refine,
            options.model,
            options.crop_mode,
            visible_rectangle(workspace.image, plane),
        )

    @property
    def current_answer(self) -> Answer | None:
        """The answer to the draft's prompts in the plane in view, None if there is none (yet)."""
        if self.workspace is None or self.plane is None:
            return None
        return self.workspace.answer_for(self.plane, self.options.refine)

    def refresh(self) -> None:
        """Show the answer to the draft's prompts in view, or ask for it."""
        workspace, plane = self.workspace, self.plane
        prompts = None if workspace is None or plane is None else workspace.document.draft.get(plane)
        if workspace is None or plane is None or prompts is None or not prompts.names_an_object:
            self.preview.hide()
        elif (found := self.current_answer) is not None:
            first = self.options.show_first or found.report is None
            mask = workspace.previewed(plane, found.first if first else found.mask)
            points = [] if first else found.report_points
            self.preview.show(workspace.image, plane, mask, "first" if first else "refined", points, self._channel())
        else:
            self._ask(self.request_for(plane, prompts))
        self.changed.emit()

    def _ask(self, request: Request) -> None:
        workspace = self.workspace
        assert workspace is not None
        generation = workspace.generation

        def run(work: Work) -> tuple[Workspace, int, Answer | None]:
            session = sessions.get(request.model)
            work.check()
            return workspace, generation, answer(request, session, self.reader, work, self.engine.overtaken)

        self.engine.submit(Job(run, subject=_subject(workspace, request)))

    def _encode_ahead(self) -> None:
        """Encode the plane in view before the first prompt, unless what the model sees will depend on the prompt."""
        workspace, plane = self.workspace, self.plane
        if workspace is None or plane is None or self._idle:
            return
        request = self.request_for(plane, PlanePrompts())
        if self.options.crop_mode == "auto" and max(request.image.plane_hw(plane)) > WHOLE_SIDE:
            return

        def run(work: Work) -> None:
            session = sessions.get(request.model)
            work.check()
            encode(session, self.reader, request.image, plane, request.crop, work)

        self.engine.submit(Job(run, subject=_subject(workspace, request), urgent=False))

    def _answered(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.tell_error(outcome.error)
        elif not outcome.cancelled and outcome.value is not None:
            workspace, generation, found = outcome.value
            # An answer about pixels that have changed meanwhile is none.
            if found is not None and generation == workspace.generation:
                workspace.keep(found)
                self.answered.emit()
                if self.workspace is workspace and self.current_answer is found:
                    self.refresh()
        self._ended()

    def _ended(self) -> None:
        if not self.engine.busy and not self.long.busy:
            self.finished.emit()
        self.changed.emit()

    def run_long(self, run: Callable[[Work], Any], deliver: Callable[[Any], None]) -> None:
        """Do something that takes long on a thread of its own, and hand the result over on the GUI's.

        Args:
            run: does it; what it raises is told to the user.
            deliver: is given what `run` returned, unless it was cancelled.
        """
        era = self._era
        self.long.submit(Job(lambda work: (era, deliver, run(work)), subject=object()))

    def use_labels(self, layer: Labels, there: Objects | None = None) -> None:
        """Commit objects into an existing Labels layer; a large one is read in the background first."""
        workspace = self.workspace
        if workspace is None or there is not None or math.prod(layer.data.shape) <= MOST_READ_AT_ONCE:
            super().use_labels(layer, there)
            return
        self.check_labels(layer)
        pixels, channel_axis = layer.data, workspace.channel_axis
        axes, changed = displayed_axes(self.viewer, layer), threading.Event()
        layer.events.paint.connect(changed.set)
        layer.events.data.connect(changed.set)

        def run(work: Work) -> Objects:
            return objects_in(pixels, axes, channel_axis, work.step(f"Reading {layer.name!r}"))

        def deliver(found: Objects) -> None:
            layer.events.paint.disconnect(changed.set)
            layer.events.data.disconnect(changed.set)
            if self.workspace is workspace:
                self.use_labels(layer, None if changed.is_set() else found)

        self.run_long(run, deliver)

    def _long_done(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.tell_error(outcome.error)
        elif not outcome.cancelled:
            era, deliver, value = outcome.value
            if era == self._era:
                deliver(value)
        self._ended()

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do what the user asked for; whatever goes wrong is told, and False returned."""
        try:
            action()
        except Exception as error:
            self.tell_error(error)
            return False
        return True

    def attempting(self, action: Callable[..., object]) -> Callable[..., None]:
        """Return a slot that attempts an action."""

        def slot(*arguments: Any) -> None:
            self.attempt(lambda: action(*arguments))

        return slot

    def tell_error(self, error: Exception) -> None:
        """Tell the user what went wrong: refinesam's own errors say what to do, others name themselves."""
        if isinstance(error, RefineSAMError):
            text = str(error)
        elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            text = MEMORY_FULL
            _log.error(text, exc_info=error)
        else:
            text = f"{type(error).__name__}: {error}"
            _log.error(text, exc_info=error)
        self.told.emit(text, True)

    def cancel(self) -> None:
        """Give up what is being computed; nothing is encoded ahead until the next prompt."""
        self._idle = True
        self._settled.stop()
        self.engine.cancel()
        self.long.cancel()
        self.told.emit("Cancelled. The next prompt starts anew.", False)

    @property
    def busy(self) -> bool:
        """Whether something is being computed, or about to be."""
        return self.engine.busy or self.long.busy or self._settled.isActive()

    @property
    def running_on(self) -> str:
        """The device that the model is on; empty before it is loaded."""
        return sessions.device_of(self.options.model)

    def show_what_the_model_sees(self) -> None:
        """Add what the model sees of the plane in view as a layer of its own."""
        workspace, plane = self.workspace, self.plane
        if workspace is None or plane is None:
            return
        request = self.request_for(plane, workspace.document.draft.get(plane, PlanePrompts()))
        crop = request.crop
        try:
            pixels = self.reader.read(request.image, plane, crop)
        except RefineSAMError as error:
            self.tell_error(error)
            return
        self.preview.show_seen(workspace.image, plane, crop, pixels, self._channel())

    def after_step(self) -> None:
        """Show the document as it is after a step that was not made in the prompt layers."""
        self._show_draft()
        self.refresh()
        self.edited.emit(self.workspace)


def _subject(workspace: Workspace, request: Request) -> tuple[Any, ...]:
    """What must be encoded for a request."""
    return workspace, workspace.generation, request.model, request.plane, request.crop
