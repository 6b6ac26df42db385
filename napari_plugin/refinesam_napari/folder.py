"""Image after image of a folder: the work on each goes to a session of its own, and is there again on return."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import PushButton
from napari.layers import Image
from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QWidget

from refinesam import ConfigError, ImageError
from refinesam_napari.autosave import SessionFile, autosave_folder, written_at
from refinesam_napari.controller import Controller
from refinesam_napari.controls import Panel
from refinesam_napari.document import History
from refinesam_napari.files import Files
from refinesam_napari.targets import is_ours
from refinesam_napari.workspace import Workspace, shape_of

if TYPE_CHECKING:
    from napari.layers import Layer
    from napari.viewer import Viewer

__all__ = ["FolderPanel", "ImageFolder"]

# Of files that are taken for images, beside those like the image in view: napari may have readers for many more.
SUFFIXES = frozenset(
    (".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".lsm", ".npy", ".png", ".tif", ".tiff", ".webp", ".zarr")
)
# Of the folder of sessions, in the folder of images.
SESSIONS = "refinesam"
NO_IMAGE = "(none)"

# They stay the same when the widget is closed and opened again.
_folders: weakref.WeakKeyDictionary[Viewer, Path] = weakref.WeakKeyDictionary()
# When sessions that were read in full had been written; what is written there later is somebody else's.
_read: dict[Path, int] = {}


class ImageFolder:
    """The folder that a viewer goes through.

    Attributes:
        images: its images, in the order in which people count.
        done: names of those that work was done on.
    """

    def __init__(self, controller: Controller, files: Files, leave: Callable[[], object]) -> None:
        """Go through a folder.

        Args:
            controller: of the viewer.
            files: where the work is written.
            leave: called before an image is left.
        """
        self.controller, self.files, self._leave = controller, files, leave
        self.viewer = controller.view.viewer
        self.images: list[Path] = []
        self.done: set[str] = set()
        files.session_file = self._session_file
        controller.image_asked.connect(controller.tasks.attempting(self.step))
        with contextlib.suppress(OSError):  # It may be gone by now.
            self._look()

    @property
    def path(self) -> Path | None:
        """The folder, None before one was entered."""
        return _folders.get(self.viewer)

    @property
    def current(self) -> Path | None:
        """The file of the image in hand, None if it is none of the folder."""
        workspace = self.controller.workspace
        file = None if workspace is None else _file_of(workspace)
        return file if file is not None and file.parent == self.path else None

    def _look(self) -> None:
        """See what is there by now."""
        self.images, self.done = [], set()
        if self.path is None:
            return
        workspace = self.controller.workspace
        own = None if workspace is None else _file_of(workspace)
        suffixes = SUFFIXES if own is None or own.parent != self.path else SUFFIXES | {own.suffix.lower()}
        there = [file for file in self.path.iterdir() if not file.name.startswith(".")]
        self.images = sorted((file for file in there if file.suffix.lower() in suffixes), key=_as_counted)
        sessions = _sessions_of(self.path)
        names = {file.stem for file in sessions.glob("*.json")} if sessions.is_dir() else set()
        self.done = names & {file.name for file in self.images}

    def enter(self, path: Path) -> None:
        """Go through a folder from now on; the image in hand, if it lies there, is the one to begin with.

        Raises:
            ConfigError: there are no images in it.
            OSError: it can't be read.
        """
        before = self.path
        _folders[self.viewer] = path.absolute()
        try:
            self._look()
            if not self.images:
                raise ConfigError(f"There are no images in {path}: choose a folder of images.")
        except Exception:
            if before is None:
                del _folders[self.viewer]
            else:
                _folders[self.viewer] = before
            self._look()
            raise
        workspace = self.controller.workspace
        if self.current is None:
            rest = [file for file in self.images if file.name not in self.done]
            self.open(rest[0] if rest else self.images[0])
        elif workspace is not None and not workspace.holds_work:
            self._tell(self._restore(workspace))
        self.controller.workspaces.changed.emit()

    def step(self, step: int) -> None:
        """Go to the next (+1) or the previous (-1) image of the folder of the image in hand.

        One that can't be opened is passed over, and told.

        Raises:
            ConfigError: there is no folder to go through, no other image in it, or something is still computed.
        """
        workspace = self.controller.workspace
        file = None if workspace is None else _file_of(workspace)
        if file is not None and file.parent != self.path:
            self.enter(file.parent)
        elif self.path is None:
            raise ConfigError("The image in view is in no file: press “Folder ...”, and choose a folder of images.")
        self._once_computed(lambda: self._step(step))

    def open(self, file: Path) -> None:
        """Go to an image of the folder.

        Raises:
            ConfigError: something is still computed.
            ImageError: it can't be opened.
        """
        self._once_computed(lambda: self._tell(self._open(file)))

    def _once_computed(self, go: Callable[[], None]) -> None:
        """Go when the masks of objects that were added already are there."""
        tasks = self.controller.tasks
        if tasks.running:
            raise ConfigError("Something is still being computed for this image: wait for it, or press Cancel.")
        if tasks.busy:
            tasks.enqueue(lambda: None, lambda _: go())
        else:
            go()

    def _step(self, step: int) -> None:
        self._look()
        current = self.current
        if current in self.images:
            index = self.images.index(current)
            rest = self.images[index + 1 :] if step > 0 else self.images[:index][::-1]
        else:
            rest = self.images if step > 0 else self.images[::-1]
        problems: list[str] = []
        for file in rest:
            try:
                problems += self._open(file)
            except ImageError as error:
                problems.append(str(error))
                continue
            break
        else:
            problems.append(f"This is the {'last' if step > 0 else 'first'} image of {self.path}.")
        self._tell(problems)

    def _tell(self, problems: list[str]) -> None:
        """Tell where the viewer is, and what went wrong on the way there."""
        if problems:
            self.controller.tasks.told.emit(" ".join(problems), True)
        elif (file := self.current) in self.images:
            place = f"{self.images.index(file) + 1} of {len(self.images)}: {file.name}."
            self.controller.tasks.tell(f"{place} There is work on {len(self.done)}.")

    def _open(self, file: Path) -> list[str]:
        """Go to an image, and return what of the work on it could not be restored."""
        workspace = self.controller.workspace
        if file == self.current:
            return []
        if workspace is not None and not self.files.move(workspace):
            return [
                "The image was not left, since the work on it can't be written: free the place, or save it elsewhere."
            ]
        layers = self._layers_of(workspace)
        image = self._read_image(file, workspace)
        self._leave()
        shape, settings = (None, None) if workspace is None else (workspace.shape, workspace.settings)
        self.controller.view.choose_image(image)
        if shape is not None and settings is not None and len(shape) == len(shape_of(image)):
            with contextlib.suppress(ConfigError):  # It has other channels.
                self.controller.view.use_settings(settings)
        if workspace is not None and layers:
            self.files.end(workspace)
            for layer in layers:
                if layer in self.viewer.layers:
                    self.viewer.layers.remove(layer)
            self.controller.workspaces.forget(workspace.image)
        if shape_of(image) != shape:
            self.viewer.reset_view()
        self.controller.view.prompts.use_points(True)
        self._look()
        return self._restore(self.controller.workspace)

    def _layers_of(self, workspace: Workspace | None) -> list[Layer]:
        """The layers that go with an image of a folder: those of its file, and the one made for its objects."""
        file = None if workspace is None else _file_of(workspace)
        if workspace is None or file is None or file.parent != self.path:
            return []
        layers = [layer for layer in self.viewer.layers if layer.source.path is not None]
        layers = [layer for layer in layers if Path(layer.source.path).absolute() == file]
        if workspace.objects is not None and is_ours(workspace.objects.layer):
            layers.append(workspace.objects.layer)
        return layers

    def _read_image(self, file: Path, workspace: Workspace | None) -> Image:
        """Have napari open a file, with the reader of the image in view where it is of the same kind."""
        own = None if workspace is None else _file_of(workspace)
        plugin = None
        if workspace is not None and own is not None and own.suffix == file.suffix:
            plugin = workspace.image.source.reader_plugin
        try:
            added = self.viewer.open(file, plugin=plugin)
        except Exception as error:
            cause = error.__cause__ or error
            raise ImageError(f"{file.name} can't be opened ({type(cause).__name__}: {cause}).") from error
        images = [layer for layer in added if type(layer) is Image]
        if not images:
            for layer in added:
                self.viewer.layers.remove(layer)
            raise ImageError(f"{file.name} holds no image.")
        return images[0]

    # -- sessions ---------------------------------------------------------------------------------------------------

    def _session_of(self, workspace: Workspace) -> Path | None:
        file = _file_of(workspace)
        if file is None or file.parent != self.path:
            return None
        return _sessions_of(file.parent) / f"{file.name}.json"

    def _session_file(self, workspace: Workspace) -> SessionFile | None:
        """Where the work on an image is written, None if it is not one of the folder."""
        path = self._session_of(workspace)
        return None if path is None else SessionFile(path, _read.pop(path, None))

    def _restore(self, workspace: Workspace | None) -> list[str]:
        """Bring back what was made of the image in hand before; return what went wrong with that."""
        path = None if workspace is None else self._session_of(workspace)
        if path is None or (when := written_at(path)) is None:
            return []
        problems: tuple[str, ...] = ()
        try:
            problems = self.files.load(path)
        except Exception as error:
            problems = (str(error),)
        else:
            # Nothing was done since, so there is nothing to be undone, or to be written.
            now = self.controller.workspace
            if now is not None:
                now.history = History(now.document)
                now.first_classes = now.document.classes
                self.files.forget_edit(now)
        if problems:
            words = "; ".join(problems)
            return [f"The work on {path.stem} was not restored in full: {words}. {path} is kept, whatever you do now."]
        _read[path] = when
        return []


def _file_of(workspace: Workspace) -> Path | None:
    path = workspace.image.source.path
    return None if path is None else Path(path).absolute()


def _sessions_of(folder: Path) -> Path:
    """Where the sessions of a folder are: in it, or, if nobody may write there, among the user's data."""
    sessions = folder / SESSIONS
    if sessions.is_dir() or os.access(folder, os.W_OK):
        return sessions
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return autosave_folder().parent / "napari_folders" / f"{folder.name}.{digest}"


def _as_counted(file: Path) -> tuple[Any, ...]:
    """Order names so that 9 comes before 10."""
    parts = re.split(r"(\d+)", file.name.lower())
    return (*(int(part) if index % 2 else part for index, part in enumerate(parts)), file.name)


class FolderPanel(Panel):
    """The image before, the image after, and any other of a folder."""

    def __init__(self, controller: Controller, folder: ImageFolder) -> None:
        super().__init__(controller, "Folder")
        self.folder = folder
        self._listed: tuple[list[Path], set[str], Path | None] | None = None
        self.previous = self._arrow("◀", "The previous image  [PageUp]", -1)
        self.next = self._arrow("▶", "The next image  [PageDown]", +1)
        tip = (
            "The images of the folder; ✓: work was done on it, and is kept in the folder “refinesam” beside the images"
        )
        # magicgui's lists take a second for some thousand names.
        self.image = QComboBox(toolTip=tip)
        self.image.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.choose = self.button("Folder ...", "Go through the images of a folder", self._choose)
        self._row = QWidget()
        layout = QHBoxLayout(self._row)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.previous.native, self.image, self.next.native, self.choose.native):
            layout.addWidget(widget, 1 if widget is self.image else 0)
        self.fill(self._row)
        self.image.currentIndexChanged.connect(controller.tasks.attempting(lambda index: self._open()))

    def _arrow(self, text: str, tip: str, step: int) -> PushButton:
        made = self.button(text, tip, lambda: self.folder.step(step))
        made.max_width = 36
        return made

    def update_shown(self) -> None:
        """Show the state of now."""
        folder, current = self.folder, self.folder.current
        workspace = self.controller.workspace
        if current is not None and workspace is not None:
            (folder.done.add if workspace.holds_work else folder.done.discard)(current.name)
        listed = list(folder.images), set(folder.done), current
        if listed != self._listed:
            self._listed = listed
            there = folder.images.index(current) if current is not None and current in folder.images else None
            names = [f"✓ {file.name}" if file.name in folder.done else file.name for file in folder.images]
            with QSignalBlocker(self.image):
                self.image.clear()
                self.image.addItems([NO_IMAGE, *names] if there is None else names)
                self.image.setCurrentIndex(there or 0)

    def _open(self) -> None:
        images = self._listed[0] if self._listed is not None else []
        at = self.image.currentIndex() - (self.image.count() - len(images))
        try:
            if at >= 0:
                self.folder.open(images[at])
        finally:
            self._listed = None
            self.update_shown()

    def _choose(self) -> None:
        workspace = self.controller.workspace
        own = None if workspace is None else _file_of(workspace)
        start = self.folder.path or (own.parent if own is not None else "")
        path = QFileDialog.getExistingDirectory(self, "Folder of images", str(start))
        if path:
            self.folder.enter(Path(path))
