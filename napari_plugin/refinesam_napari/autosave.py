"""A copy of the work in progress on disk, for when the viewer or the machine goes down (no Qt, no napari)."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from refinesam import DatasetError, RefineSAMError
from refinesam_napari.storage import SavedSession, read_image_description, write_session

__all__ = [
    "Autosave",
    "SessionFile",
    "autosave_folder",
    "discard_autosave",
    "pending_autosaves",
    "tidy_autosaves",
    "written_at",
]

FOLDER_VARIABLE = "REFINESAM_AUTOSAVE_DIR"

# Work that was closed without saving is not kept for ever.
KEPT_DAYS, MOST_KEPT = 30, 10

# Files that this process still writes to; those of others are known by their process.
_in_use: set[Path] = set()


def autosave_folder() -> Path:
    """Return where autosaves are kept: $REFINESAM_AUTOSAVE_DIR, or a folder among the user's data."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return platformdirs.user_data_path("refinesam", appauthor=False) / "napari_autosave"


class Autosave:
    """One file that follows one session, written in the background.

    The file's name holds the key, the process and a random part, so viewers never write to each other's. Use it from
    one thread; `on_error` is called from the background's.

    Attributes:
        path: the file, which exists from the first write to `remove`.
        kept: whether the file is the place of the work, not only a copy until the user saves it.
        on_error: is told, in a sentence, why a write failed.
    """

    kept = False

    def __init__(
        self,
        folder: str | Path,
        key: str,
        wait_s: float = 1.0,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        """Write to a folder, which is made when it is needed.

        Args:
            folder: such as `autosave_folder()`.
            key: of the image, such as its digest; only for people who look into the folder.
            wait_s: seconds from the first request to the write. What comes in between takes its place, so the file is
                never much older than this, however fast the requests.
            on_error: is told, in a sentence, why a write failed.
        """
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", key)[:60]
        self.path = Path(folder) / f"{name}.{os.getpid()}.{uuid.uuid4().hex}.json"
        self._wait_s = wait_s
        self.on_error = on_error
        self._pending: SavedSession | None = None
        self._timer: threading.Timer | None = None
        self._closed = False
        # The first guards the fields and is never held for long; the second orders what happens to the file.
        self._fields, self._file = threading.Lock(), threading.Lock()
        _in_use.add(self.path)

    def request(self, saved: SavedSession) -> None:
        """Have a session written soon; a newer one takes its place. Does nothing after `close` or `remove`.

        The session is read later, in the background: its mappings must not change any more.
        """
        with self._fields:
            if self._closed:
                return
            self._pending = saved
            if self._timer is None:
                self._timer = threading.Timer(self._wait_s, self._write)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> bool:
        """Write now what was requested; return whether the file holds the newest request."""
        return self._write()

    def close(self) -> None:
        """Flush, and stop. The file stays, and is from now on among `pending_autosaves`."""
        with self._fields:
            self._closed = True
        self._write()
        _in_use.discard(self.path)

    def remove(self) -> None:
        """Stop and delete the file, after the user saved the work or threw it away. A failure goes to `on_error`."""
        with self._file:  # A write under way ends first, and none comes after.
            with self._fields:
                self._closed = True
                self._take()
            try:
                discard_autosave(self.path)
                failure = None
            except OSError as error:
                failure = f"The autosave {self.path} can't be deleted ({error.strerror}): delete it by hand."
        _in_use.discard(self.path)
        self._report(failure)

    def _write(self) -> bool:
        failure = None
        with self._file:
            with self._fields:
                saved = self._take()
            if saved is not None:
                try:
                    self._save(saved)
                except (OSError, RefineSAMError) as error:
                    with self._fields:
                        # Kept for the next flush, unless there is something newer by now.
                        self._pending = self._pending or saved
                    reason = error.strerror if isinstance(error, OSError) else str(error)
                    failure = f"The work can't be autosaved to {self.path} ({reason}): save it to another place soon."
        # Outside the locks, for whoever is told may come back with a call.
        self._report(failure)
        return failure is None

    def _save(self, saved: SavedSession) -> None:
        write_session(self.path, saved)

    def _take(self) -> SavedSession | None:
        saved, self._pending = self._pending, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return saved

    def _report(self, failure: str | None) -> None:
        if failure is not None and self.on_error is not None:
            self.on_error(failure)


class SessionFile(Autosave):
    """The file of an image's session, which is the place of the work on it.

    What somebody else wrote there, or what was not read in full, is not lost: it is kept under another name.
    """

    kept = True

    def __init__(self, path: Path, read: int | None, on_error: Callable[[str], None] | None = None) -> None:
        """Write to a file, whose folder is made when it is needed.

        Args:
            path: the file.
            read: `written_at` of the file when it was read in full, None if it was not.
            on_error: see `Autosave`.
        """
        super().__init__(path.parent, path.stem, 0.0, on_error)
        _in_use.discard(self.path)
        self.path, self._known = path, read

    def _save(self, saved: SavedSession) -> None:
        now = written_at(self.path)
        if now is not None and now != self._known:
            names = (self.path.with_name(f"{self.path.stem}.{number}.json") for number in itertools.count(1))
            self.path.rename(next(name for name in names if not name.exists()))
        write_session(self.path, saved)
        self._known = written_at(self.path)

    def remove(self) -> None:
        """Stop, and delete the file, unless it is somebody else's; see `Autosave`."""
        if written_at(self.path) == self._known:
            super().remove()
        else:
            self.close()


def written_at(path: Path) -> int | None:
    """Return when a file was written last, in nanoseconds, None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def pending_autosaves(folder: str | Path) -> list[tuple[Path, dict[str, Any], datetime]]:
    """Return the autosaves that nobody writes to any more, newest first: file, image's description, time (UTC).

    Those of viewers that are open, here or in another process, are left out, and so are files that can't be read.
    """
    autosaves = []
    for path in Path(folder).glob("[!.]*.json"):
        try:
            if not _abandoned(path):
                continue
            autosaves.append((path, read_image_description(path), datetime.fromtimestamp(path.stat().st_mtime, UTC)))
        except (OSError, DatasetError):  # Deleted in between, or not an autosave.
            continue
    return sorted(autosaves, key=lambda entry: entry[2], reverse=True)


def tidy_autosaves(folder: str | Path, now: datetime | None = None) -> None:
    """Delete what nobody restored for `KEPT_DAYS`, and of each image all but the `MOST_KEPT` newest."""
    oldest = (now or datetime.now(UTC)) - timedelta(days=KEPT_DAYS)
    kept: Counter[tuple[Any, ...]] = Counter()
    for path, image, when in pending_autosaves(folder):
        of = image["name"], *image["shape"]
        kept[of] += 1
        if when < oldest or kept[of] > MOST_KEPT:
            with contextlib.suppress(OSError):
                discard_autosave(path)


def discard_autosave(path: Path) -> None:
    """Delete an autosave, and what a killed process left of its last attempt to write it.

    Raises:
        OSError: it can't be deleted.
    """
    path.unlink(missing_ok=True)
    for unfinished in path.parent.glob(f".{path.stem}.*{path.suffix}"):
        unfinished.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    """Whether the process that wrote a file is gone, or has closed it."""
    written, number = path.stat().st_mtime, path.stem.split(".")[-2:-1]
    if not number or not number[0].isdecimal():
        return True
    if int(number[0]) == os.getpid():
        return path not in _in_use
    try:
        process = psutil.Process(int(number[0]))
        # A process that began after the last write has only inherited the number; one that is dead may still be listed.
        return bool(process.create_time() > written or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True
