"""Downloads of weights at their first use, which can be watched and cancelled (no Qt, no napari)."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from pathlib import Path

from refinesam import WeightsError
from refinesam.hosts import WeightsEntry, fetch, known_weights
from refinesam_napari.engine import Cancelled, Progress, Work

__all__ = ["Downloads", "downloads"]

# How soon one who waits sees that the wait is over, and how often progress is told.
POLL_S = 0.1


class _Download:
    """One download on a thread of its own, which may hang in the network for as long as it likes."""

    def __init__(self, entry: WeightsEntry) -> None:
        self.entry = entry
        self.done = self.total = 0
        self.stop = threading.Event()
        self.finished: Future[Path] = Future()
        # A daemon, since a download that hangs must not keep the process alive.
        threading.Thread(target=self._run, name="refinesam-download", daemon=True).start()

    def _run(self) -> None:
        try:
            self.finished.set_result(fetch(self.entry, self._progress))
        except BaseException as error:
            self.finished.set_exception(error)

    def _progress(self, done: int, total: int | None) -> None:
        if self.stop.is_set():
            raise Cancelled
        self.done, self.total = done, total or self.entry.size or 0

    @property
    def progress(self) -> Progress:
        """How far it is, in kB: Qt counts to 2 GB."""
        return Progress(f"Downloading {self.entry.name}", self.done // 1000, self.total // 1000)


class Downloads:
    """The downloads of the process: whoever needs the same weights waits for the same one.

    One who gives up waiting ends nothing, since a newer job mostly takes its place; only `cancel` does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, _Download] = {}

    def wait_for(self, weights: str, work: Work) -> None:
        """Return when weights are here, verified; a file of the user's own is left to whoever loads it.

        Raises:
            WeightsError: they can't be had, or the download was cancelled.
            Cancelled: the job was cancelled meanwhile.
        """
        entry = known_weights().get(weights)
        if entry is None or entry.packaged:
            return
        running = self._begun(entry)
        while not running.finished.done() and not running.stop.is_set():
            work.check()
            if running.done or not entry.is_here:
                work.report(running.progress)
            wait([running.finished], POLL_S)
        work.check()
        if running.stop.is_set():
            raise WeightsError(f"The download of {weights} was cancelled: choose other weights, or begin anew.")
        running.finished.result()

    def cancel(self, weights: str) -> None:
        """End the download of weights, if there is one; what was downloaded is thrown away."""
        with self._lock:
            running = self._running.pop(weights, None)
        if running is not None:
            running.stop.set()

    def _begun(self, entry: WeightsEntry) -> _Download:
        with self._lock:
            running = self._running.get(entry.name)
            if running is None or running.finished.done():
                running = self._running[entry.name] = _Download(entry)
            return running


downloads = Downloads()
