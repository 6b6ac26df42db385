"""`progress_of`: how far a run over a project is, how fast, and how long it has to go: a bar, or lines in a log."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

__all__ = ["Pace", "progress_of"]

# Seconds between two lines where there is no terminal for a bar.
LOG_S = 30.0
RECENT = 20

_logger = logging.getLogger(__name__)


class Pace:
    """Rate and remaining time, from the most recent tasks: those that were done before pass in no time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Start the clock."""
        self._now = now
        self._seen = deque([(0, now())], maxlen=RECENT + 1)

    def after(self, done: int, total: int) -> str:
        """Return "4.0 tasks a minute, 12 minutes left" when so many tasks are done."""
        self._seen.append((done, self._now()))
        (first, begun), (last, now) = self._seen[0], self._seen[-1]
        if last == first or now <= begun:
            return ""
        a_minute = 60 * (last - first) / (now - begun)
        minutes = (total - done) / a_minute
        left = f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds"
        return f"{a_minute:.1f} tasks a minute, {left} left"


@contextmanager
def progress_of(title: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """Show how far a run is; yields what is to be called with the tasks done and all tasks, after each."""
    pace, logged = Pace(), time.monotonic()
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task("", total=None)

        def on_progress(done: int, total: int) -> None:
            nonlocal logged
            text = pace.after(done, total)
            bar.update(shown, completed=done, total=total, description=text)
            if not console.is_terminal and time.monotonic() - logged >= LOG_S:
                logged = time.monotonic()
                _logger.info("%d of %d tasks, %s", done, total, text)

        yield on_progress
