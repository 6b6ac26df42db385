"""`Journal`: what a run over a project has done, in a file that a killed process leaves readable."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from refinesam import ConfigError
from refinesam_labelstudio.json_types import JsonObject

__all__ = ["Journal", "State"]

# sending: handed to the server, whose answer isn't in yet; failed: see the reason.
State = Literal["sending", "stored", "failed"]


class Journal:
    """The last state of each task under a model version; one process at a time.

    Each line is one JSON object. A line is on the disk before `note` returns; of a process that is killed, at most the
    last line is torn, and that one is passed over.
    """

    def __init__(self, file: BinaryIO, version: str) -> None:
        """Read what a file, open for reading and appending, says of a model version."""
        self._file, self._version = file, version
        self._states: dict[int, State] = {}
        file.seek(0)
        content = file.read()
        for line in content.splitlines():
            self._read(line)
        if content and not content.endswith(b"\n"):
            self._write(b"\n")

    @classmethod
    @contextmanager
    def open(cls, path: Path, version: str) -> Iterator[Journal]:
        """Open a journal, making it and its folder where they are missing, and keep other processes out.

        Raises:
            ConfigError: another process has it open, or it can't be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        except OSError as error:
            raise ConfigError(f"The journal {path} can't be written ({error.strerror}): name another place.") from error
        with file:
            _lock(file, path)
            yield cls(file, version)

    def state(self, task_id: int) -> State | None:
        """Return a task's last state, None if it was never noted."""
        return self._states.get(task_id)

    def tasks(self, state: State) -> list[int]:
        """Return the tasks whose last state this is."""
        return [task_id for task_id, known in self._states.items() if known == state]

    def note(self, state: State, task_ids: Iterable[int], reason: str | None = None) -> None:
        """Note a state of tasks, for good."""
        ids = list(task_ids)
        if not ids:
            return
        line: JsonObject = {"version": self._version, "state": state, "tasks": ids}
        if reason is not None:
            line["reason"] = reason
        self._write(json.dumps(line).encode() + b"\n")
        self._states.update(dict.fromkeys(ids, state))

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, line: bytes) -> None:
        try:
            content = json.loads(line)
            state, ids = content["state"], [int(task_id) for task_id in content["tasks"]]
            if content["version"] == self._version and state in get_args(State):
                self._states.update(dict.fromkeys(ids, state))
        except (ValueError, KeyError, TypeError):
            return


def _lock(file: BinaryIO, path: Path) -> None:
    if sys.platform == "win32":  # no flock there; two runs at once are then up to the user
        return
    import fcntl

    try:
        # The system lets go of it when the process ends, however it ends.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(
            f"Another process is working with {path}: wait for it or end it; two at once would do everything twice."
        ) from error
