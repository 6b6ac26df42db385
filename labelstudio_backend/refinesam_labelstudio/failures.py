"""Which tasks could not be answered and why, where the team sees it: in Label Studio's data manager.

It has columns and filters for what predictions there are, and none for anything else that a backend may say of a task.
So a failure is a prediction, too: of the version "... failed", without a score, with the reason in the labeling
config's TextArea for messages where there is one. It goes as soon as the task is answered.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict

from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.json_types import JsonObject, JsonView, Task
from refinesam_labelstudio.responses import ServerError
from refinesam_labelstudio.results import message_region

__all__ = ["FailureMarks", "failed_version", "reason_of"]

SUFFIX = " failed"
# What fits into a column.
LONGEST = 500

_logger = logging.getLogger(__name__)


def failed_version(model_version: str) -> str:
    """Return the version of the predictions that stand for failures of a version."""
    return model_version + SUFFIX


def reason_of(prediction: JsonView) -> str | None:
    """Return why a task failed, "" where that isn't told; None for any other prediction."""
    if not str(prediction.get("model_version")).endswith(SUFFIX):
        return None
    texts = [region.get("value", {}).get("text") for region in prediction.get("result") or []]
    return " ".join(text for parts in texts if isinstance(parts, list) for text in parts)


class FailureMarks:
    """The failures of a run; marks of an earlier run are changed or deleted, never doubled."""

    def __init__(self, server: ProjectServer, project_id: int, model_version: str, to_name: str | None) -> None:
        """Mark nothing yet; `to_name` is the image of the TextArea for messages, None where there is none."""
        self._server, self._project_id, self._to_name = server, project_id, to_name
        self._version = failed_version(model_version)
        self._there: dict[int, list[JsonView]] = defaultdict(list)
        self._reasons: dict[int, str] = {}
        self._done: set[int] = set()

    def see(self, task: Task) -> None:
        """Take note of the marks that a task has."""
        task_id = int(task["id"])
        found = [item for item in task.get("predictions") or [] if item.get("model_version") == self._version]
        if found:
            self._there[task_id] = sorted(found, key=lambda item: int(item["id"]))

    def settle(self, task_id: int) -> None:
        """Take a task that was looked at for one that doesn't fail, unless `fail` says otherwise."""
        if task_id in self._there and task_id not in self._reasons:
            self._done.add(task_id)

    def fail(self, task_id: int, reason: str) -> None:
        """Say why a task fails; `flush` tells the server."""
        self._done.discard(task_id)
        self._reasons[task_id] = reason[:LONGEST]

    def flush(self) -> None:
        """Bring the server up to date; what goes wrong is logged, and the next run does it again."""
        reasons, self._reasons = self._reasons, {}
        gone = [item for task_id in self._done for item in self._there[task_id]]
        rows: list[JsonObject] = []
        try:
            for task_id, reason in reasons.items():
                row = self._row(task_id, reason)
                there = self._there[task_id]
                gone += there[1:]
                if not there:
                    rows.append(row)
                elif reason_of(there[0]) != reason_of(row):
                    content = {key: row[key] for key in ("result", "score", "model_version")}
                    self._server.update_prediction(int(there[0]["id"]), content)
            self._store(rows)
            for item in gone:
                self._server.delete_prediction(int(item["id"]))
        except ServerError as error:
            _logger.warning("The data manager doesn't show all failures: %s", error)
        self._there.clear()
        self._done.clear()

    def _store(self, rows: list[JsonObject]) -> None:
        try:
            shown = self._server.import_predictions(self._project_id, rows) if rows else 0
        except ServerError as error:
            if error.retry or error.may_have_run or len(rows) < 2:
                raise
            # One whose task was deleted meanwhile must not cost the others.
            for row in rows:
                with contextlib.suppress(ServerError):
                    self._server.import_predictions(self._project_id, [row])
            return
        if shown < len(rows):
            _logger.warning("The data manager shows %d of %d failures; Label Studio's log says why.", shown, len(rows))

    def _row(self, task_id: int, reason: str) -> JsonObject:
        result = [] if self._to_name is None else [message_region(reason, self._to_name)]
        return {"task": task_id, "result": result, "score": None, "model_version": self._version}
