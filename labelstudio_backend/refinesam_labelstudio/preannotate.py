"""`preannotate`: predictions for every task of a project, through the API; it may be killed and started again.

What is done is what the server has: a task with an answer of the same model version is left alone. That nothing was
found is an answer, an empty prediction without a score. An empty one with a score is none: earlier versions stored such
for images that they couldn't read, and it is repaired. The journal adds what the server can't know, which tasks were
just being sent when the process was killed.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from refinesam import RefineSAMError
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.failures import FailureMarks
from refinesam_labelstudio.journal import Journal
from refinesam_labelstudio.json_types import JsonObject, JsonView, Task
from refinesam_labelstudio.responses import ServerError
from refinesam_labelstudio.task_prediction import Answering, TaskPrediction, told_of_whole

__all__ = ["Preannotation", "preannotate"]

# Answers that say what is wrong with the rows, so that sending fewer of them finds the one at fault.
REFUSALS = frozenset({400, 404, 409, 413, 422})
STORE_ATTEMPTS = 5
FLUSH_S = 10.0
LEFT_OUT = (
    "Label Studio's own check of predictions left it out; its log says why. Look whether the labeling config has the "
    "tags and labels of the prediction."
)
# Longest that a request may still be at work on the server after its sender is gone.
SETTLE_S = 5.0

_logger = logging.getLogger(__name__)


@dataclass
class Preannotation:
    """What a run did.

    Attributes:
        project: the project's id.
        model_version: of its predictions.
        tasks: how many there were.
        stored: tasks that got a prediction, or a new one in place of an earlier one.
        kept: tasks that had one already.
        empty: ids of tasks, among the stored, in which nothing was found.
        unprompted: ids of tasks that ask for nothing: without a box or a click where "everything" is off, or not in the
            file.
        failed: why a task has no prediction, by its id.
        repaired: ids of tasks that had an empty prediction which answered nothing; it was replaced, or deleted.
        whole: what it cost to segment images whole, in words; "" where every task had a prompt.
        problems: what is missing from the prediction of a task that has one, by its id.
        unmatched: images of a file that are no task's, or may be several tasks', each with the reason.
        interrupted: it was ended before all tasks were done; what was answered is stored.
        seconds: the run took.
    """

    project: int
    model_version: str
    tasks: int = 0
    stored: int = 0
    kept: int = 0
    empty: list[int] = field(default_factory=list)
    unprompted: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    repaired: list[int] = field(default_factory=list)
    problems: dict[int, list[str]] = field(default_factory=dict)
    unmatched: dict[str, str] = field(default_factory=dict)
    whole: str = ""
    interrupted: bool = False
    seconds: float = 0.0

    def as_json(self) -> JsonObject:
        """Return a dictionary ready for JSON."""
        return asdict(self)


def preannotate(
    server: ProjectServer,
    project_id: int,
    predictor: Answering,
    model_version: str,
    journal_path: Path,
    *,
    overwrite_own: bool = False,
    chunk: int = 20,
    flush_s: float = FLUSH_S,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Preannotation:
    """Store a prediction for each task of a project.

    Args:
        server: Label Studio.
        project_id: the project's.
        predictor: answers the tasks, under the project's labeling config.
        model_version: of the predictions; what has one of this version is done.
        journal_path: the journal of this server and project.
        overwrite_own: make predictions of this version anew and put them in the place of those that are there.
        chunk: most tasks that are stored together.
        flush_s: seconds after which answers are stored, however few: what a killed run loses.
        on_progress: is called with the tasks done and all tasks, after each.

    Returns:
        What was done. A task that can't be answered is in `failed`, one that asks for nothing in `unprompted`; the next
        run tries both again. A KeyboardInterrupt ends the run: what is answered is stored, and the report says so.

    Raises:
        ServerError: Label Studio can't be reached for long, or refuses; start again later, nothing is lost.
        ConfigError: another run has the journal.
    """
    started = time.monotonic()
    report = Preannotation(project_id, model_version)
    report.unmatched = dict(predictor.unmatched)
    total = int(server.project(project_id).get("task_number") or 0)
    with Journal.open(journal_path, model_version) as journal:
        marks = FailureMarks(server, project_id, model_version, predictor.config.messages)
        run = _Run(server, predictor, journal, report, marks, overwrite_own, flush_s)
        try:
            run.settle()
            for page in itertools.count(1):
                tasks = server.tasks(project_id, page, page_size=chunk)
                if not tasks:
                    break
                run.chunk(tasks, lambda: on_progress(report.tasks, max(total, report.tasks)))
        except KeyboardInterrupt:
            report.interrupted = True
            run.flush()
        except ServerError:
            # An image may be out of reach while answers can still be stored.
            with contextlib.suppress(ServerError):
                run.flush()
            raise
    report.whole = told_of_whole(run.whole)
    report.seconds = round(time.monotonic() - started, 3)
    return report


@dataclass
class _Run:
    """One run over a project.

    Attributes:
        rows: answers that aren't stored yet.
        replaced: by task, the prediction whose place its row takes.
        whole: answers of images that were segmented whole, an empty region standing for any.
        flushed: when answers were stored last.
    """

    server: ProjectServer
    predictor: Answering
    journal: Journal
    report: Preannotation
    marks: FailureMarks
    overwrite_own: bool
    flush_s: float
    rows: list[JsonObject] = field(default_factory=list)
    replaced: dict[int, int] = field(default_factory=dict)
    whole: list[TaskPrediction] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)

    def settle(self) -> None:
        """Wait for what a killed run had sent: the server may be about to store it."""
        if sent := self.journal.tasks("sending"):
            arrived = self._arrived(sent)
            self.journal.note("stored", arrived)
            self.journal.note("failed", set(sent) - arrived, "the run that sent it was killed before the server had it")

    def chunk(self, tasks: Sequence[Task], on_task: Callable[[], None]) -> None:
        """Answer a page of tasks and store the answers, together or whenever it takes long."""
        for task in tasks:
            task_id, own = int(task["id"]), self._own(task)
            answers = [item for item in own if _is_answer(item)]
            self.marks.see(task)
            if answers and not self.overwrite_own:
                self.report.kept += 1
            elif (row := self._answered(task, task_id)) is not None:
                if own:
                    self.replaced[task_id] = int((answers or own)[-1]["id"])
                self.rows.append(row)
            elif not answers:
                self._remove(own)
            if own and not answers:
                self.report.repaired.append(task_id)
            self.marks.settle(task_id)
            self.report.tasks += 1
            on_task()
            if time.monotonic() - self.flushed >= self.flush_s:
                self.flush()
        self.flush()

    def flush(self) -> None:
        """Store what is answered; what is handed to the server here is never handed to it again."""
        rows, self.rows = self.rows, []
        self._replace([row for row in rows if row["task"] in self.replaced])
        self._store([row for row in rows if row["task"] not in self.replaced])
        self.marks.flush()
        self.flushed = time.monotonic()

    def _answered(self, task: Task, task_id: int) -> JsonObject | None:
        """Return the row of a task; None if it asks for nothing, or failed, which is noted."""
        others = [item for item in task.get("predictions") or [] if not self._is_own(item)]
        try:
            # Its own earlier boxes must not be taken for somebody's prompts.
            answer = self.predictor.answer({**task, "predictions": others})
        except ServerError as error:
            if error.retry or error.status == 401:
                raise  # the server's trouble, not the task's
            self._fail(task_id, str(error))
            return None
        except RefineSAMError as error:
            self._fail(task_id, str(error))
            return None
        except Exception as error:
            _logger.exception("Task %s:", task_id)
            self._fail(task_id, f"{type(error).__name__}: {error}")
            return None
        if answer.whole_s is not None:
            self.whole.append(replace(answer, regions=({},) if answer.regions else ()))
        if answer.unprompted:
            self.report.unprompted.append(task_id)
            return None
        if not answer.done:
            self._fail(task_id, " ".join(answer.problems))
            return None
        if answer.problems:
            self.report.problems[task_id] = list(answer.problems)
        if not answer.regions:
            self.report.empty.append(task_id)
        version = self.report.model_version
        return {"task": task_id, "result": list(answer.regions), "score": answer.score, "model_version": version}

    def _remove(self, empty: Sequence[JsonView]) -> None:
        """Delete empty predictions of ours, which kept Label Studio from asking for the task again."""
        for prediction in empty:
            self.server.delete_prediction(int(prediction["id"]))

    def _fail(self, task_id: int, reason: str) -> None:
        _logger.warning("Task %s: %s", task_id, reason)
        self.report.failed[task_id] = reason
        self.marks.fail(task_id, reason)
        self.journal.note("failed", [task_id], reason)

    def _replace(self, rows: Sequence[JsonView]) -> None:
        for row in rows:
            content = {key: row[key] for key in ("result", "score", "model_version")}
            self.server.update_prediction(self.replaced[row["task"]], content)
            self.report.stored += 1

    def _store(self, rows: list[JsonObject]) -> None:
        if not rows:
            return
        # Noted first: if this process is killed now, the next knows that these may be about to arrive.
        self.journal.note("sending", [row["task"] for row in rows])
        refused = self._import(rows)
        self.journal.note("stored", [row["task"] for row in rows if row["task"] not in refused])
        self.report.stored += len(rows) - len(refused)
        for task_id, reason in refused.items():
            self._fail(task_id, reason)

    def _import(self, rows: list[JsonObject]) -> dict[int, str]:
        """Store rows, each once, and return by task why some are refused."""
        for attempts_left in reversed(range(STORE_ATTEMPTS)):
            try:
                created = self.server.import_predictions(self.report.project, rows)
                if created >= len(rows):
                    return {}
                # It answers with success, too, when its own check leaves predictions out.
                return {row["task"]: LEFT_OUT for row in rows if not self._has_own(row["task"])}
            except ServerError as error:
                if error.status in REFUSALS:
                    return self._import_by_halves(rows, error)
                if not error.may_have_run or not attempts_left:
                    raise
            arrived = self._arrived([row["task"] for row in rows])
            rows = [row for row in rows if row["task"] not in arrived]
            if not rows:
                break
        return {}

    def _import_by_halves(self, rows: list[JsonObject], error: ServerError) -> dict[int, str]:
        if len(rows) == 1:
            return {rows[0]["task"]: str(error)}
        half = len(rows) // 2
        return self._import(rows[:half]) | self._import(rows[half:])

    def _arrived(self, task_ids: Sequence[int]) -> set[int]:
        """Return which tasks have a prediction of ours, after a wait for them if none has: rows arrive together."""
        deadline = time.monotonic() + SETTLE_S
        while not self._has_own(task_ids[0]) and time.monotonic() < deadline:
            time.sleep(0.5)
        return {task_id for task_id in task_ids if self._has_own(task_id)}

    def _has_own(self, task_id: int) -> bool:
        try:
            return bool(self._own(self.server.get_task(task_id)))
        except ServerError as error:
            if error.status == 404:  # deleted meanwhile
                return False
            raise

    def _own(self, task: Task) -> list[JsonView]:
        """Return a task's predictions of this version, the oldest first."""
        own = [item for item in task.get("predictions") or [] if self._is_own(item)]
        return sorted(own, key=lambda item: int(item["id"]))

    def _is_own(self, prediction: JsonView) -> bool:
        return prediction.get("model_version") == self.report.model_version


def _is_answer(prediction: JsonView) -> bool:
    return bool(prediction.get("result")) or prediction.get("score") is None
