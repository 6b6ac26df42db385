"""A job from its first missing shard to its last, whatever answers it."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from refinesam.jobs.folder import JobFolder, Totals
from refinesam.jobs.rows import Row, Task

__all__ = ["Answering", "run_job"]

# Answers tasks, in any order.
Answering = Callable[[Sequence[Task]], Iterator[tuple[Task, list[Row]]]]
# Where nobody watches, as in the log of a queue.
SECONDS_BETWEEN_LINES = 30.0


def run_job(folder: JobFolder, answering: Answering, retry_failures: bool = False) -> Totals:
    """Make the shards that are missing; each is written when all of its images are answered."""
    missing = folder.missing(retry_failures)
    done = len(folder.tasks) - sum(len(folder.tasks_of(number)) for number in missing)
    tasks = [task for number in missing for task in folder.tasks_of(number)]
    answered: dict[int, dict[int, list[Row]]] = defaultdict(dict)
    try:
        with _Display(len(folder.tasks), done) as display:
            for task, rows in answering(tasks) if tasks else ():
                number = task.index // folder.images_per_shard
                answered[number][task.index] = rows
                if len(answered[number]) == len(folder.tasks_of(number)):
                    by_image = answered.pop(number)
                    folder.write(number, [row for index in sorted(by_image) for row in by_image[index]])
                display.add(sum(row["error"] is not None for row in rows))
    finally:
        totals = folder.write_failures()
    return totals


class _Display:
    """How far it is, how fast it goes and how long it takes, on standard error."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.before, self.failures = total, done, done, 0
        self.begun = self.said = time.monotonic()
        console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console)
            self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> _Display:
        if self.bar is not None:
            self.bar.start()
        elif self.before:
            print(f"{self.before} of {self.total} images are done already", file=sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif self.done > self.before:
            print(self._line(), file=sys.stderr, flush=True)

    def add(self, failures: int) -> None:
        """Count one image more."""
        self.done += 1
        self.failures += failures
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, description=f"{self._rate():.1f} images/s{self._failed()}")
        elif time.monotonic() - self.said >= SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _rate(self) -> float:
        return (self.done - self.before) / max(time.monotonic() - self.begun, 1e-9)

    def _line(self) -> str:
        rate = self._rate()
        left = (self.total - self.done) / rate if rate else 0
        clock = f"{int(left // 3600)}:{int(left % 3600 // 60):02d}:{int(left % 60):02d}"
        return f"{self.done} of {self.total} images, {rate:.1f} images/s, {clock} left{self._failed()}"

    def _failed(self) -> str:
        return f", {self.failures} failures" if self.failures else ""
