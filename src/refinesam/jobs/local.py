"""Several processes on this machine, one model each. A process that is killed costs nothing: its images are done again.

Each process takes one image at a time, and has the next one waiting. Only this process writes.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from refinesam.errors import ConfigError, RefineSAMError
from refinesam.jobs.rows import Row, Task, failed_rows
from refinesam.jobs.worker import Asked, Machine, Worker

__all__ = ["run_local"]

IN_FLIGHT = 2
# Of processes that worked on one image, or that had not loaded their model yet.
MOST_DEATHS = 3


class _Process:
    """A process, the pipe to it, and the tasks that it has; the first of them is the one that it works on."""

    def __init__(self, rank: int, asked: Asked, machine: Machine) -> None:
        context = multiprocessing.get_context("spawn")
        self.rank, self.ready, self.tasks = rank, False, deque[Task]()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, asked, machine, rank), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        self.tasks.append(task)
        with suppress(OSError):  # it was killed; that is seen when its answer is waited for
            self.connection.send(task)

    def receive(self) -> Any:
        """Return what it sends; EOFError if it was killed."""
        try:
            return self.connection.recv()
        except OSError as error:
            raise EOFError from error

    def close(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def run_local(
    asked: Asked, machine: Machine, tasks: Iterable[Task], processes: int
) -> Iterator[tuple[Task, list[Row]]]:
    """Answer tasks, in no order.

    An image at which processes were killed three times, such as for its size, becomes a failure and lets the others be.

    Raises:
        ConfigError: the model cannot be loaded with these settings, or the processes end while they load it.
        WeightsError: the weights cannot be loaded.
    """
    waiting, deaths, unready = deque(tasks), Counter[int](), 0
    workers = [_Process(rank, asked, machine) for rank in range(min(processes, len(waiting)))]
    try:
        while waiting or any(worker.tasks for worker in workers):
            by_connection = {worker.connection: worker for worker in workers}
            for connection in wait(list(by_connection)):
                worker = by_connection[connection]  # type: ignore[index]
                try:
                    message = worker.receive()
                except EOFError:
                    worker.close()
                    workers[workers.index(worker)] = _Process(worker.rank, asked, machine)
                    unready = 0 if worker.ready else unready + 1
                    if unready == MOST_DEATHS:
                        raise ConfigError(_dies_early(worker)) from None
                    if worker.tasks:
                        deaths[worker.tasks[0].index] += 1
                        if deaths[worker.tasks[0].index] == MOST_DEATHS:
                            lost = worker.tasks.popleft()
                            yield lost, failed_rows(lost, _deadly(worker))
                    waiting.extendleft(reversed(worker.tasks))
                    continue
                if isinstance(message, RefineSAMError):
                    raise message
                if message is not None:
                    yield worker.tasks.popleft(), message
                worker.ready, unready = True, 0
                while waiting and len(worker.tasks) < IN_FLIGHT:
                    worker.give(waiting.popleft())
            for worker in workers:  # those that had nothing to do when an image came back
                while worker.ready and waiting and len(worker.tasks) < IN_FLIGHT:
                    worker.give(waiting.popleft())
    finally:
        for worker in workers:
            worker.close()


def _serve(connection: Connection[Any, Any], asked: Asked, machine: Machine, rank: int) -> None:
    """Send None when the model is loaded, or why it is not; then the rows of each task that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    with suppress(EOFError, OSError):  # nobody asks any more
        try:
            worker = Worker(asked, machine, rank)
        except RefineSAMError as error:
            connection.send(error)
            return
        connection.send(None)
        while True:
            connection.send(worker.rows(connection.recv()))


def _dies_early(worker: _Process) -> str:
    return (
        f"{MOST_DEATHS} processes ended while they loaded the model (exit code {worker.process.exitcode}). Use fewer "
        "--processes, so that memory suffices, or a smaller model."
    )


def _deadly(worker: _Process) -> str:
    return (
        f"{MOST_DEATHS} processes were killed at this image (exit code {worker.process.exitcode}), likely for want of "
        "memory. Segment it alone, or smaller."
    )
