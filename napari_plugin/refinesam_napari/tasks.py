"""Work off the GUI's thread, results back on it, and what is told to the user."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from qtpy.QtCore import QObject, Signal

from refinesam import RefineSAMError
from refinesam_napari.engine import Engine, Job, JobResult, Work

__all__ = ["Tasks"]

_log = logging.getLogger(__name__)

MEMORY_FULL = (
    "There is not enough memory. Choose the device “cpu” or a smaller model, let the model look at less than the whole "
    "image, or close other programs that use the GPU; then click again."
)
T = TypeVar("T")


class Tasks(QObject):
    """What takes long, on threads of its own, and what went wrong.

    Between `pause` and `resume` nothing is delivered, nor later what was begun before.

    Signals:
        progressed: `Progress` of something that runs.
        finished: something that ran has ended, whatever became of it.
        told: a message for the user, and whether it is an error.
    """

    progressed = Signal(object)
    finished = Signal()
    told = Signal(str, bool)
    _arrived = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._arrived.connect(lambda deliver: deliver())
        self._active = False
        # Counts the pauses.
        self._era = 0
        self._engine = Engine(self.on_gui_thread(self._done), self.progressed.emit)
        self._queue = ThreadPoolExecutor(1, thread_name_prefix="refinesam-queue")
        self._queued = 0

    def pause(self) -> None:
        """Give up what runs."""
        self._active = False
        self._era += 1
        self._queued = 0
        self._engine.cancel()

    def resume(self) -> None:
        """Deliver again."""
        self._active = True

    def close(self) -> None:
        """End the threads."""
        self.pause()
        self._engine.close()
        self._queue.shutdown(wait=False, cancel_futures=True)

    @property
    def is_active(self) -> bool:
        """Whether results are delivered."""
        return self._active

    @property
    def busy(self) -> bool:
        """Whether something runs or waits."""
        return self._engine.busy or self._queued > 0

    @property
    def running(self) -> bool:
        """Whether what `run` began goes on; what was enqueued does not count."""
        return self._engine.busy

    def cancel(self) -> None:
        """Give up what `run` began."""
        self._engine.cancel()

    def on_gui_thread(self, deliver: Callable[[T], None]) -> Callable[[T], None]:
        """Return a function that calls `deliver` on the GUI thread, whatever thread it is called on."""

        def arrived(value: T) -> None:
            if self._active:
                self.attempt(lambda: deliver(value))

        def post(value: T) -> None:
            # The viewer may be closed by the time that a thread is done.
            with contextlib.suppress(RuntimeError):
                self._arrived.emit(lambda: arrived(value))

        return post

    def run(self, run: Callable[[Work], T], deliver: Callable[[T], None]) -> None:
        """Do something that takes long in place of what ran before, and hand the result over on the GUI thread.

        Args:
            run: does it; what it raises is told to the user.
            deliver: is given what `run` returned, unless it was cancelled.
        """
        era = self._era
        self._engine.submit(Job(lambda work: (era, deliver, run(work)), subject=object()))

    def _done(self, result: JobResult) -> None:
        if result.error is not None:
            self.tell_error(result.error)
        elif not result.cancelled:
            era, deliver, value = result.value
            if era == self._era:
                deliver(value)
        self.finished.emit()

    def enqueue(self, run: Callable[[], T], deliver: Callable[[T | Exception], None]) -> None:
        """Do something after all that was enqueued before; `deliver` is given what it returned, or raised."""
        era = self._era

        def arrived(value: T | Exception) -> None:
            if era == self._era:
                self._queued -= 1
                try:
                    deliver(value)
                finally:
                    self.finished.emit()

        post = self.on_gui_thread(arrived)

        def call() -> None:
            if era != self._era:
                return
            try:
                post(run())
            except Exception as error:
                post(error)

        self._queued += 1
        self._queue.submit(call)

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

        def slot(*arguments: object) -> None:
            self.attempt(lambda: action(*arguments))

        return slot

    def tell(self, text: str) -> None:
        """Tell the user something that is no error."""
        self.told.emit(text, False)

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
