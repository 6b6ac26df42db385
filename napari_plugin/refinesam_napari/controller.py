"""What can be done in a viewer, whichever widget or key asks for it; knows no widgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, Signal

from refinesam_napari.document import Change, PlanePrompts
from refinesam_napari.engine import Work
from refinesam_napari.geometry import NO_MASK, Plane, PlaneMask
from refinesam_napari.hints import photograph_hint
from refinesam_napari.image_view import ImageView
from refinesam_napari.inference import PredictionRequest, predict, sessions
from refinesam_napari.predictions import Predictions
from refinesam_napari.tasks import Tasks
from refinesam_napari.workspace import Workspace
from refinesam_napari.workspaces import Workspaces

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["Controller"]

COVERED = "Nothing here is free: other objects cover it already. Tick “overwrite others” to take it from them."
NOTHING_FOUND = "The model found nothing here: click in the middle of the object, or draw a box around it."


class Controller(QObject):
    """One viewer's interactive segmentation: objects are added, edited, deleted; steps go back and forth.

    Attributes:
        tasks: what takes long, and what is told.
        workspaces: what was made of the images, and the labels layers of their objects.
        view: the image in hand, the plane in view, the layers of prompts and preview.
        predictions: the masks for the prompts in view, and the options that they depend on.

    Signals:
        image_asked: the next (+1) or the previous (-1) image of a folder is asked for.
    """

    image_asked = Signal(int)

    def __init__(self, viewer: Viewer, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.tasks = Tasks(self)
        self.workspaces = Workspaces(viewer, self.tasks, self)
        self.view = ImageView(viewer, self.workspaces, self)
        self.predictions = Predictions(self.workspaces, self.view, self.tasks, self)
        self.tasks.finished.connect(self.workspaces.changed)
        self.predictions.object_asked.connect(self.tasks.attempting(self.add_object))
        self.resume()

    def pause(self) -> None:
        """Let go of the viewer; what was made stays. What is computed is given up, masks still awaited never come."""
        if self.tasks.is_active:
            self.tasks.pause()
            self.predictions.cancel()
            self.workspaces.pause()
            self.view.pause()

    def resume(self) -> None:
        """Go on where `pause` left off, or the widget before."""
        if not self.tasks.is_active:
            self.tasks.resume()
            self.predictions.resume()
            self.workspaces.resume()
            self.view.resume()

    def close(self) -> None:
        """End the threads, too; what was made stays for the next widget."""
        self.pause()
        self.predictions.engine.close()
        self.tasks.close()

    @property
    def workspace(self) -> Workspace | None:
        """What is made of the image in hand, None without one."""
        return self.workspaces.current

    @property
    def busy(self) -> bool:
        """Whether something is being computed, or about to be."""
        return self.computing or self.predictions.is_waiting

    @property
    def computing(self) -> bool:
        """Whether something is being computed now."""
        return self.predictions.engine.busy or self.tasks.busy

    def cancel(self) -> None:
        """Give up what is being computed; nothing is encoded ahead until the next prompt."""
        self.predictions.cancel()
        self.tasks.cancel()
        self.tasks.tell("Cancelled. The next prompt starts anew.")

    def commit(self) -> bool:
        """Make an object of the prompts in hand; masks still being computed are added when they arrive.

        Returns:
            Whether there was anything to commit.
        """
        workspace, options = self.workspace, self.predictions.options
        draft = {} if workspace is None else {p: v for p, v in workspace.document.draft.items() if v.names_an_object}
        if workspace is None or not draft:
            self.tasks.tell("Nothing to add: click on an object, or draw a box around it, first.")
            return False
        try:
            self.workspaces.ensure_objects()
            prompts, masks, late, scores = {}, {}, [], []
            for plane, asked in draft.items():
                request = self.predictions.request_for(plane, asked)
                found = workspace.prediction_for(plane, options.refine)
                refined = options.refine and not options.show_first
                crop = request.crop if found is None else found.crop
                prompts[plane] = replace(asked, crop=crop, refine=refined)
                if found is None:
                    late.append(replace(request, prompts=prompts[plane], refine=refined))
                else:
                    masks[plane], score = found.shown(before=not refined)
                    scores.append(score)
            object_id = workspace.document.editing or workspace.next_id()
            last = scores[-1] if scores else None
            change = workspace.commit(object_id, MappingProxyType(prompts), masks, options.overwrite, last)
        except Exception as error:
            self.tasks.tell_error(error)
            return False
        if change is None:
            covered = any(mask.pixels.size for mask in masks.values())
            self.tasks.tell(COVERED if covered else NOTHING_FOUND)
            return False
        awaited = {request.plane for request in late}
        for request in late:
            self._complete_later(workspace, change, object_id, request, awaited)
        self.predictions.after_step()
        return True

    def use_one_each(self, on: bool) -> None:
        """Make an object of every click and every box from now on, or not; prompts in hand are added first."""
        workspace = self.workspace
        if on and workspace is not None and any(asked.names_an_object for asked in workspace.document.draft.values()):
            self.commit()
        self.predictions.use_options(one_each=on)

    def add_object(self, prompts: Mapping[Plane, PlanePrompts]) -> None:
        """Make a new object of prompts; its masks are added when they arrive.

        Raises:
            ConfigError: the labels can't take it.
        """
        workspace, options = self.workspace, self.predictions.options
        if workspace is None:
            return
        self.workspaces.ensure_objects()
        requests = []
        for plane, asked in prompts.items():
            if asked.names_an_object:
                request = self.predictions.request_for(plane, asked)
                requests.append(replace(request, prompts=replace(asked, crop=request.crop, refine=options.refine)))
        asked_for = MappingProxyType({request.plane: request.prompts for request in requests})
        object_id = workspace.next_id()
        change = workspace.commit(object_id, asked_for, {}, options.overwrite, None)
        if change is not None:
            awaited = {request.plane for request in requests}
            for request in requests:
                self._complete_later(workspace, change, object_id, request, awaited)
        self.predictions.after_step()

    def _complete_later(
        self, workspace: Workspace, change: Change, object_id: int, request: PredictionRequest, awaited: set[Plane]
    ) -> None:
        overwrite, reader = self.predictions.options.overwrite, self.predictions.reader

        def run() -> tuple[PlaneMask, float | None]:
            found = predict(request, sessions.get(request.model), reader, Work(lambda progress: None))
            if found is not None and (hint := photograph_hint.text_for(request, reader)):
                self.tasks.on_gui_thread(self.tasks.tell)(hint)
            return (NO_MASK, None) if found is None else found.shown(before=not request.refine)

        def deliver(answer: tuple[PlaneMask, float | None] | Exception) -> None:
            awaited.discard(request.plane)
            mask = NO_MASK
            try:
                if isinstance(answer, Exception):
                    raise answer
                mask, score = answer
                workspace.complete(change, object_id, request.plane, mask, overwrite)
                workspace.note_score(change, object_id, score)
            finally:  # What is told of an error comes after.
                dropped = not awaited and workspace.drop_ghost(change, object_id)
                self.workspaces.edited.emit(workspace)
                self.workspaces.changed.emit()
            if dropped:
                reason = COVERED if mask.pixels.size else NOTHING_FOUND
                self.tasks.tell(f"Object {object_id} was not added. {reason} Undo brings its prompts back.")

        self.tasks.enqueue(run, deliver)

    def step_candidate(self, step: int) -> None:
        """Take the next larger (+1) or smaller (-1) of the masks that the prompts in view may mean, round and round."""
        workspace, plane, found = self.workspace, self.view.plane, self.predictions.current
        if workspace is None or plane is None or found is None:
            self.tasks.tell("Nothing to choose from: click on an object, or draw a box around it, first.")
            return
        if not self.predictions.is_complete:
            # Refinement adds a mask, and a choice by its place would then mean another one.
            self.tasks.tell("The outline is still being refined: choose another mask in a moment.")
            return
        offered = found.offered(self.predictions.options.show_first)
        index, count = offered.index(found.request.prompts.candidate), len(offered.masks)
        if not count or (count == 1 and index is not None):
            self.tasks.tell("There is nothing else that these prompts may mean: add a click.")
            return
        index = (0 if step > 0 else count - 1) if index is None else (index + step) % count
        workspace.choose(plane, index, f"choose mask {index + 1} of {count}")
        self.predictions.after_step()
        self.tasks.tell(f"Candidate {index + 1} of {count} by size, predicted IoU {offered.scores[index]:.2f}.")

    def discard(self) -> None:
        """Drop the prompts in hand."""
        if self.workspace is not None and self.workspace.discard_draft():
            self.predictions.after_step()

    def delete(self, object_id: int) -> None:
        """Delete a committed object."""
        if self.workspace is not None and self.workspace.delete(object_id):
            self.predictions.after_step()

    def edit_object(self, object_id: int) -> None:
        """Take a committed object's prompts in hand again, and go to them."""
        workspace = self.workspace
        if workspace is None or not workspace.edit_object(object_id):
            return
        planes = list(workspace.document.draft) or list(workspace.document.objects[object_id].planes)
        if planes and self.view.plane is not None and self.view.plane not in planes:
            self.view.go_to(planes[len(planes) // 2])
        self.predictions.after_step()
        item = workspace.document.objects[object_id]
        if item.corrections:
            self.tasks.tell(f"Object {object_id} was corrected by hand: what you painted or erased stays.")
        elif item.origin == "found" and not item.prompts:
            words = "was already in the labels. Paint to correct it, or click on it to outline it anew in this slice."
            self.tasks.tell(f"Object {object_id} {words}")

    def step_object(self, step: int) -> None:
        """Edit the next (+1) or previous (-1) object after the one in hand."""
        if self.workspace is None or not self.workspace.document.objects:
            return
        ids = sorted(self.workspace.document.objects)
        editing = self.workspace.document.editing
        index = (ids.index(editing) + step) % len(ids) if editing in ids else (0 if step > 0 else -1)
        self.edit_object(ids[index])

    def undo(self) -> None:
        """Step back."""
        if self.workspace is not None and self.workspace.undo() is not None:
            self.predictions.after_step()

    def redo(self) -> None:
        """Step forward."""
        if self.workspace is not None and self.workspace.redo() is not None:
            self.predictions.after_step()
