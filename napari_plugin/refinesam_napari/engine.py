"""A thread that does the newest of the jobs it is given (no Qt, no napari).

A user who clicks ten times in half a second wants the answer to all ten clicks, not ten answers. So there is at most
one job waiting: a newer one takes its place, and jobs don't start more often than every `MIN_INTERVAL` seconds, but the
first after a pause starts at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Cancelled", "Engine", "Job", "JobResult", "Progress", "Work"]

MIN_INTERVAL = 0.12


class Cancelled(Exception):  # noqa: N818  # Not an error: somebody asked for it.
    """Raised inside a job whose result nobody waits for any more."""


@dataclass(frozen=True)
class Progress:
    """How far a job is: `done` of `total`; 0 of 0 says that it can't be known."""

    text: str
    done: int = 0
    total: int = 0


@dataclass(eq=False)
class Work:
    """A job's line to the outside while it runs.

    Attributes:
        report: call it with `Progress` as often as you like.
        stop: set when the job's result is not wanted any more.
    """

    report: Callable[[Progress], None]
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise Cancelled if the job was cancelled or overtaken."""
        if self.stop.is_set():
            raise Cancelled

    def step(self, text: str) -> Callable[[int, int], None]:
        """Return a callback (done, total) that reports progress and ends the work when the job is to stop."""

        def on_progress(done: int, total: int) -> None:
            self.check()
            self.report(Progress(text, done, total))

        return on_progress


@dataclass(frozen=True, eq=False)
class Job:
    """What to do.

    Attributes:
        run: does it, on the engine's thread; `Work.check` tells it when to give up.
        subject: what an overtaken job has in common with the one that overtakes it, such as the image to be encoded.
            A running job of the same subject is let finish: its encoding serves the newer one too.
        urgent: a job that is not urgent, such as encoding ahead, never takes the place of an urgent one.
    """

    run: Callable[[Work], Any]
    subject: Hashable = None
    urgent: bool = True


@dataclass(frozen=True, eq=False)
class JobResult:
    """How a job ended: with a value, with an error, or cancelled (neither)."""

    job: Job
    value: Any = None
    error: Exception | None = None
    cancelled: bool = False


class Engine:
    """One daemon thread, one job at a time, at most one waiting."""

    def __init__(
        self,
        on_result: Callable[[JobResult], None],
        on_progress: Callable[[Progress], None] = lambda progress: None,
        min_interval: float = MIN_INTERVAL,
    ) -> None:
        """Start the thread.

        Args:
            on_result: called on the engine's thread once for every job that was started.
            on_progress: called there too.
            min_interval: seconds between the starts of two jobs.
        """
        self._on_result, self._on_progress = on_result, on_progress
        self._min_interval = min_interval
        self._condition = threading.Condition()
        self._waiting: Job | None = None
        self._running: tuple[Job, Work] | None = None
        self._closed = False
        self._last_start = -math.inf
        self.started = 0
        self._thread = threading.Thread(target=self._loop, name="refinesam", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        with self._condition:
            return self._waiting is not None or self._running is not None

    def submit(self, job: Job) -> None:
        """Do a job as soon as possible, in place of the one that waits."""
        with self._condition:
            if self._closed or (self._waiting is not None and self._waiting.urgent and not job.urgent):
                return
            self._waiting = job
            if self._running is not None and self._running[0].subject != job.subject and job.urgent:
                self._running[1].stop.set()
            self._condition.notify_all()

    def cancel(self) -> None:
        """Give up the running job at its next check, and the waiting one."""
        with self._condition:
            self._waiting = None
            if self._running is not None:
                self._running[1].stop.set()

    def close(self, timeout: float = 10.0) -> None:
        """End the thread; the running job is cancelled and waited for. Its result is not delivered any more."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self.cancel()
        self._thread.join(timeout)

    def overtaken(self) -> bool:
        """Whether a newer urgent job waits: what is left of the running one is not worth doing."""
        with self._condition:
            return self._waiting is not None and self._waiting.urgent

    def _next(self) -> tuple[Job, Work] | None:
        earliest = self._last_start + self._min_interval
        with self._condition:
            while not self._closed:
                delay = earliest - time.monotonic()
                if self._waiting is not None and delay <= 0:
                    job, self._waiting = self._waiting, None
                    self._running = (job, Work(self._on_progress))
                    self._last_start = time.monotonic()
                    self.started += 1
                    return self._running
                self._condition.wait(None if self._waiting is None else delay)
        return None

    def _loop(self) -> None:
        # What a job holds, such as an image, is held no longer than it runs.
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Do the next job; return False once the engine is closed."""
        running = self._next()
        if running is None:
            return False
        job, work = running
        try:
            result = JobResult(job, job.run(work))
        except Cancelled:
            result = JobResult(job, cancelled=True)
        except Exception as error:  # Whatever it was, the thread lives on and the user is told.
            result = JobResult(job, error=error)
        with self._condition:
            self._running = None
            closed = self._closed
        if not closed:
            self._on_result(result)
        return True
