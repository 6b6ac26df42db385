"""What can be done in a viewer, whichever widget or key asks for it; knows no widgets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject

from refinesam_napari.answers import Answers
from refinesam_napari.document import Change
from refinesam_napari.engine import Cancelled, Work
from refinesam_napari.geometry import NO_MASK, Plane, PlaneMask
from refinesam_napari.inference import Request, answer, sessions
from refinesam_napari.workspace import Workspace

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["Controller"]

COVERED = "Nothing here is free: other objects cover it already. Tick “overwrite others” to take it from them."
NOTHING_FOUND = "The model found nothing here: click in the middle of the object, or draw a box around it."


class Controller(Answers):
    """One viewer's interactive segmentation: objects are added, edited, deleted; steps go back and forth."""

    def __init__(self, viewer: Viewer, parent: QObject | None = None) -> None:
        super().__init__(viewer, parent)
        self._late = ThreadPoolExecutor(1, thread_name_prefix="refinesam-late")
        self._late_masks = 0
        self.resume()

    def pause(self) -> None:
        """Let go of the viewer; what was made stays. Masks that are still awaited never come."""
        super().pause()
        self._late_masks = 0

    def close(self) -> None:
        """End the threads, too; what was made stays for the next widget."""
        super().close()
        self._late.shutdown(wait=False, cancel_futures=True)

    def commit(self) -> bool:
        """Make an object of the prompts in hand; masks still being computed are added when they arrive.

        Returns:
            Whether there was anything to commit.
        """
        workspace, options = self.workspace, self.options
        draft = {} if workspace is None else {p: v for p, v in workspace.document.draft.items() if v.names_an_object}
        if workspace is None or not draft:
            self.told.emit("Nothing to add: click on an object, or draw a box around it, first.", False)
            return False
        try:
            self.ensure_objects()
            prompts, masks, late, scores = {}, {}, [], []
            for plane, asked in draft.items():
                request = self.request_for(plane, asked)
                found = workspace.answer_for(plane, options.refine)
                refined = options.refine and not options.show_first
                crop = request.crop if found is None else found.crop
                prompts[plane] = replace(asked, crop=crop, refine=refined)
                if found is None:
                    late.append(replace(request, prompts=prompts[plane], refine=refined))
                else:
                    masks[plane] = found.mask if refined else found.first
                    scores.append(found.score if refined else found.first_score)
            object_id = workspace.document.editing or workspace.next_id()
            score = scores[-1] if scores else None
            change = workspace.commit(object_id, MappingProxyType(prompts), masks, options.overwrite, score)
        except Exception as error:
            self.tell_error(error)
            return False
        if change is None:
            covered = any(mask.pixels.size for mask in masks.values())
            self.told.emit(COVERED if covered else NOTHING_FOUND, False)
            return False
        awaited = {request.plane for request in late}
        for request in late:
            self._complete_later(workspace, change, object_id, request, awaited)
        self.after_step()
        return True

    def _complete_later(
        self, workspace: Workspace, change: Change, object_id: int, request: Request, awaited: set[Plane]
    ) -> None:
        overwrite, era = self.options.overwrite, self._era

        def deliver(mask: PlaneMask | Exception) -> None:
            if era != self._era:
                return
            self._late_masks -= 1
            awaited.discard(request.plane)
            try:
                if isinstance(mask, Exception):
                    raise mask
                workspace.complete(change, object_id, request.plane, mask, overwrite)
            finally:  # What is told of an error comes after.
                dropped = not awaited and workspace.drop_ghost(change, object_id)
                self.edited.emit(workspace)
                self.changed.emit()
            if dropped:
                reason = COVERED if not isinstance(mask, Exception) and mask.pixels.size else NOTHING_FOUND
                self.told.emit(f"Object {object_id} was not added. {reason} Undo brings its prompts back.", False)

        post = self.on_gui_thread(deliver)

        def run() -> None:
            if era != self._era:
                return
            try:
                found = answer(request, sessions.get(request.model), self.reader, Work(lambda progress: None))
                post(NO_MASK if found is None else found.mask)
            except (Exception, Cancelled) as error:
                post(error)

        self._late_masks += 1
        self._late.submit(run)

    @property
    def busy(self) -> bool:
        """Whether something is being computed, or about to be."""
        return super().busy or self._late_masks > 0

    def discard(self) -> None:
        """Drop the prompts in hand."""
        if self.workspace is not None and self.workspace.discard_draft():
            self.after_step()

    def delete(self, object_id: int) -> None:
        """Delete a committed object."""
        if self.workspace is not None and self.workspace.delete(object_id):
            self.after_step()

    def edit_object(self, object_id: int) -> None:
        """Take a committed object's prompts in hand again, and go to them."""
        workspace = self.workspace
        if workspace is None or not workspace.edit_object(object_id):
            return
        planes = list(workspace.document.draft) or list(workspace.document.objects[object_id].planes)
        if planes and self.plane is not None and self.plane not in planes:
            self.go_to(planes[len(planes) // 2])
        self.after_step()
        item = workspace.document.objects[object_id]
        if item.corrections:
            self.told.emit(f"Object {object_id} was corrected by hand: what you painted or erased stays.", False)
        elif item.origin == "found" and not item.prompts:
            words = "was already in the labels. Paint to correct it, or click on it to outline it anew in this slice."
            self.told.emit(f"Object {object_id} {words}", False)

    def go_to(self, plane: Plane) -> None:
        """Move the viewer's sliders to a plane."""
        workspace = self.workspace
        if workspace is None:
            return
        world = workspace.image.data_to_world(plane.to_data(0.5, 0.5))
        offset = self.viewer.dims.ndim - len(world)
        for axis, index in enumerate(plane.position):
            if index >= 0:
                self.viewer.dims.set_point(axis + offset, world[axis])

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
            self.after_step()

    def redo(self) -> None:
        """Step forward."""
        if self.workspace is not None and self.workspace.redo() is not None:
            self.after_step()
