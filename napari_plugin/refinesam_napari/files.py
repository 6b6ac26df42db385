"""Saving, loading, replaying and exporting what was made in a viewer; and the autosave that follows it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from qtpy.QtCore import QTimer

import refinesam
from refinesam import DatasetError, Session
from refinesam_napari.autosave import Autosave, autosave_folder, discard_autosave, pending_autosaves, tidy_autosaves
from refinesam_napari.controller import Controller
from refinesam_napari.engine import Work
from refinesam_napari.export import write_coco, write_labels_tiff
from refinesam_napari.geometry import Plane, PlaneMask
from refinesam_napari.images import CropReader, ImageSettings, ImageSnapshot
from refinesam_napari.inference import Model, PredictionRequest, predict, sessions
from refinesam_napari.storage import SavedSession, read_session, write_session
from refinesam_napari.workspace import Workspace

__all__ = ["Files", "replayed"]

# After an edit, before the state is taken for the autosave: one drag of many small edits is one of them.
AUTOSAVE_MS = 500
# Origins whose masks are answers to their prompts, and nothing else.
FROM_PROMPTS = ("prompts", "propagated")


# They go on when the widget is closed and opened again.
_autosaves: weakref.WeakKeyDictionary[Workspace, Autosave] = weakref.WeakKeyDictionary()


class Files:
    """The sessions of one viewer, on disk."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self._autosaves = _autosaves
        # Where else the work on an image belongs than among the autosaves.
        self.session_file: Callable[[Workspace], Autosave | None] = lambda workspace: None
        # Edited since their last autosave; the image in hand may be another one by the time that it is due.
        self._edited: set[Workspace] = set()
        self._timer = QTimer(controller, singleShot=True, interval=AUTOSAVE_MS)
        self._timer.timeout.connect(controller.tasks.attempting(self.autosave))
        controller.workspaces.edited.connect(self._note_edit)
        controller.workspaces.losing.connect(self._autosave_first)
        # Errors come from the thread that writes.
        self._tell = controller.tasks.on_gui_thread(lambda text: controller.tasks.told.emit(text, True))
        for autosave in self._mine().values():  # of a widget that was closed
            autosave.on_error = self._tell

    def saved(self, workspace: Workspace | None = None) -> SavedSession:
        """Return all that is needed to go on working with an image: that of a workspace, else the one in hand.

        Raises:
            DatasetError: there is no image.
        """
        workspace, options = workspace or self._workspace(), self.controller.predictions.options
        layer, settings = workspace.image, workspace.settings
        description = {
            "name": layer.name,
            "shape": workspace.shape,
            "dtype": str(layer.dtype),
            "axis_labels": layer.axis_labels,
            "scale": np.asarray(layer.scale).tolist(),
            "translate": np.asarray(layer.translate).tolist(),
            "source": layer.source.path,
        }
        document = workspace.document
        draft = {
            plane: replace(prompts, crop=workspace.crops.get(plane, prompts.crop))
            for plane, prompts in document.draft.items()
        }
        return SavedSession(
            replace(document, draft=MappingProxyType(draft)),
            workspace.masks(),
            description,
            {
                "refinesam": refinesam.__version__,
                "weights": options.model.weights,
                "refine": options.refine,
                "crop_mode": options.crop_mode,
                **asdict(settings),
            },
        )

    def save(self, path: str | Path) -> None:
        """Write the session as JSON.

        Raises:
            DatasetError: there is no image.
            OSError: the place can't be written.
        """
        write_session(path, self.saved())
        # It is safe now; the next edit begins another autosave.
        workspace = self._workspace()
        autosave = self._autosaves.get(workspace)
        if autosave is None or not autosave.kept:
            self._edited.discard(workspace)
        if autosave is not None and not autosave.kept:
            self._autosaves.pop(workspace).remove()

    def load(self, path: str | Path) -> tuple[str, ...]:
        """Put a session in place of what is there, in one step that can be undone.

        Returns:
            What of it was damaged and is left out.

        Raises:
            DatasetError: no session, or one of an image of another shape.
            ConfigError: settings that are none.
        """
        saved = read_session(path)
        workspace = self._workspace()
        shape = workspace.shape
        if tuple(saved.image["shape"]) != shape:
            raise DatasetError(
                f"{path} belongs to {saved.image['name']!r} of shape {tuple(saved.image['shape'])}, the chosen image "
                f"{workspace.image.name!r} has {shape}. Choose the image that it was made on."
            )
        settings = settings_of(saved)
        self.controller.view.use_settings(settings)
        workspace = self._workspace()
        self.controller.workspaces.ensure_objects()
        empty = workspace.replace_all(saved.document, saved.masks, f"load {Path(path).name}")
        crops = {plane: prompts.crop for plane, prompts in saved.document.draft.items()}
        workspace.crops = {plane: crop for plane, crop in crops.items() if crop is not None}
        self.controller.predictions.after_step()
        without = f"objects without a pixel: {', '.join(map(str, empty))}; “Replay prompts” computes those with prompts"
        return (*saved.problems, without) if empty else saved.problems

    def replay(self) -> None:
        """Compute all masks from their prompts again, with the model of now, in one step that can be undone."""
        controller, workspace = self.controller, self._workspace()
        if not workspace.document.objects:
            raise DatasetError("There are no objects to compute again: add one first.")
        controller.workspaces.ensure_objects()
        saved = self.saved()
        image = ImageSnapshot.of(workspace.image, workspace.settings)
        model, reader = controller.predictions.options.model, controller.predictions.reader

        def run(work: Work) -> dict[tuple[int, Plane], PlaneMask]:
            masks = {}
            session = sessions.get(model, work)
            total = sum(len(item.prompts) for item in saved.document.objects.values())
            step = work.step("Replaying prompts")
            for done, (key, mask) in enumerate(replayed(saved, image, model, session, reader)):
                masks[key] = mask
                step(done + 1, total)
            return masks

        def deliver(masks: dict[tuple[int, Plane], PlaneMask]) -> None:
            if workspace.document.objects != saved.document.objects:
                controller.tasks.told.emit(
                    "The objects changed while prompts were replayed; nothing was replaced.", True
                )
                return
            lost = workspace.recompute(masks, "replay prompts")
            controller.predictions.after_step()
            count = len({object_id for object_id, _ in masks} - lost)
            words = f"{count} objects computed again. What was painted or erased by hand stays."
            if lost:
                words += f" Nothing was found for {', '.join(map(str, sorted(lost)))}: they stay as they were."
            controller.tasks.tell(words)

        controller.tasks.run(run, deliver)

    def export_tiff(self, path: str | Path) -> None:
        """Write the labels as TIFF.

        Raises:
            DatasetError: there are no objects.
            ImageError, OSError: see `refinesam_napari.export.write_labels_tiff`.
        """
        workspace = self._workspace()
        if workspace.objects is None:
            raise DatasetError("There are no objects to export: add one first.")
        layer = workspace.objects.layer
        write_labels_tiff(
            path, workspace.objects.array, workspace.image.axis_labels, workspace.image.scale, layer.units
        )

    def export_coco(self, path: str | Path) -> None:
        """Write the objects as COCO JSON, masks as RLE.

        Raises:
            DatasetError: there are no objects, or a plane is too large.
            OSError: the place can't be written.
        """
        if not self._workspace().document.objects:
            raise DatasetError("There are no objects to export: add one first.")
        write_coco(path, self.saved())

    def _workspace(self) -> Workspace:
        if self.controller.workspace is None:
            raise DatasetError("There is no image: open one first.")
        return self.controller.workspace

    # -- autosave ---------------------------------------------------------------------------------------------------

    def _note_edit(self, workspace: Workspace | None) -> None:
        if workspace is not None:
            self._edited.add(workspace)
            self._timer.start()

    def forget_edit(self, workspace: Workspace) -> None:
        """What is on disk is what there is now."""
        self._edited.discard(workspace)

    def _autosave_first(self, workspace: Workspace) -> None:
        """What may be about to go stays in a file of its own; what comes after goes into another."""
        if workspace in self._edited:
            self.autosave()
        self.end(workspace)

    def autosave(self) -> None:
        """Have the state of what was edited written in the background."""
        for workspace in self._edited:
            self._request(workspace)
        self._edited.clear()

    def _request(self, workspace: Workspace) -> None:
        """Have what there is of an image written, unless there is nothing, and was nothing."""
        autosave = self._autosaves.get(workspace)
        if autosave is None:
            autosave = self.session_file(workspace) or Autosave(autosave_folder(), workspace.image.name, wait_s=0.0)
            if not workspace.holds_work and not autosave.path.exists():
                autosave.remove()
                return
            autosave.on_error = self._tell
            self._autosaves[workspace] = autosave
        autosave.request(self.saved(workspace))

    def move(self, workspace: Workspace) -> bool:
        """Write the work on an image to where it belongs by now; return whether it is on disk there."""
        before = self._autosaves.get(workspace)
        if before is not None and before.kept:
            return self.flush()
        self._autosaves.pop(workspace, None)
        if before is not None or workspace.history.steps:
            self._request(workspace)
        done = self.flush()
        if before is not None:
            before.remove() if done else before.close()
        return done

    def flush(self) -> bool:
        """Write what is not written yet, now; return whether all of it is on disk."""
        if self._timer.isActive():
            self._timer.stop()
            self.autosave()
        return all([autosave.flush() for autosave in self._mine().values()])

    def close(self) -> None:
        """The viewer is closed: write what is not written yet. What was not saved can be restored from its file."""
        self.flush()
        for workspace in self._mine():
            self.end(workspace)

    def end(self, workspace: Workspace) -> None:
        """Nothing more is done with an image: its file stays as it is, or goes, if nothing of the work is left."""
        autosave = self._autosaves.pop(workspace, None)
        if autosave is None:
            return
        if workspace.holds_work:
            autosave.close()
        else:
            autosave.remove()  # All of it was undone or deleted.

    def _mine(self) -> dict[Workspace, Autosave]:
        mine = self.controller.workspaces
        return {workspace: autosave for workspace, autosave in self._autosaves.items() if workspace in mine}

    def left_behind(self) -> list[tuple[Path, str]]:
        """Autosaves of viewers that are gone, for an image like the one in hand, newest first.

        Returns:
            Their paths, and when they were written, in local time.
        """
        workspace = self.controller.workspace
        if workspace is None:
            return []
        tidy_autosaves(autosave_folder())
        autosaves = []
        for path, image, when in pending_autosaves(autosave_folder()):
            if tuple(image["shape"]) == workspace.shape and image["name"] == workspace.image.name:
                autosaves.append((path, f"{when.astimezone():%Y-%m-%d %H:%M}"))
        return autosaves

    def restore(self, path: Path) -> tuple[str, ...]:
        """Load an autosave, and delete it once its content is in an autosave of this viewer."""
        problems = self.load(path)  # an edit, so there is an autosave to write
        if self.flush():
            discard_autosave(path)
        return problems


def settings_of(saved: SavedSession) -> ImageSettings:
    """Return how the model saw the image of a session."""
    known: dict[str, Any] = {
        name: saved.settings[name] for name in ImageSettings.__dataclass_fields__ if name in saved.settings
    }
    if "channels" in known:
        known["channels"] = tuple(known["channels"])
    return ImageSettings(**known)


def replayed(
    saved: SavedSession, image: ImageSnapshot, model: Model, session: Session, reader: CropReader
) -> Iterator[tuple[tuple[int, Plane], PlaneMask]]:
    """Answer the prompts of a session again.

    With the same image, settings and weights the masks are the same to the bit, as far as no other object lay in their
    way when they were committed.

    Yields:
        Object id and plane, and the mask of its prompts there.
    """
    work = Work(lambda progress: None)
    for object_id, item in saved.document.objects.items():
        if item.origin not in FROM_PROMPTS:
            continue
        for plane, prompts in item.prompts.items():
            request = PredictionRequest(image, plane, prompts, prompts.refine, model)
            if prompts.crop is not None:
                request = replace(request, fixed_crop=prompts.crop)
            result = predict(request, session, reader, work)
            if result is not None:
                yield (object_id, plane), result.mask
