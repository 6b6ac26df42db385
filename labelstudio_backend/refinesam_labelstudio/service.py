"""What the backend answers, without any web framework: `Service.health`, `setup`, `predict`, `versions`, `webhook`.

One session serves all threads and projects; what belongs to a project is kept under its id, never as "the current one".
Label Studio may ask for predictions before it called setup, as after a restart, so a request's own labeling config
counts.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from refinesam import AMRConfig, ConfigError, RefineSAMError, Session
from refinesam_labelstudio.json_types import JsonObject, JsonView
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.results import message_region
from refinesam_labelstudio.sessions import NotReadyError, Sessions
from refinesam_labelstudio.task_prediction import ReadImage, TaskPrediction, TaskPredictor, told_of_whole

__all__ = ["NotReadyError", "OnEvent", "Service"]

# Takes an action such as "ANNOTATION_CREATED" and the whole event; called on a thread of its own, one after the other.
OnEvent = Callable[[str, JsonView], None]

# Label Studio gives setup 3 seconds and predict 100.
SETUP_WAIT_S = 2.0
PREDICT_WAIT_S = 60.0
BATCH_S = 80.0
MOST_PROJECTS = 10_000
MOST_PREFETCHED = 64
LOADING, DEFAULT = "loading", "default"
LATE = "the batch takes longer than Label Studio waits, so it is left out: retrieve it again, or use `preannotate`."

_logger = logging.getLogger(__name__)
_DEFAULT_OPTIONS = ServiceOptions()


@dataclass(frozen=True)
class _Project:
    """What setup said of a project: its labeling config as text, and its options."""

    label_config: str
    options: ServiceOptions


class Service:
    """Answers Label Studio; safe to call from any number of threads.

    Attributes:
        instance: tells this service from another one.
    """

    def __init__(
        self,
        session_factory: Callable[[], Session] | Mapping[str, Callable[[], Session]],
        read_image: ReadImage,
        *,
        options: ServiceOptions = _DEFAULT_OPTIONS,
        on_event: OnEvent | None = None,
        batch_s: float = BATCH_S,
        predict_wait_s: float = PREDICT_WAIT_S,
    ) -> None:
        """Start to load the weights on a thread of their own; nothing waits for them here.

        Args:
            session_factory: makes the session, such as `refinesam.load`; or several by the names that projects may
                choose in their extra params, the first for those that don't.
            read_image: takes what a task's data says of its image and the task's id, and returns (H, W, 3) uint8 RGB.
            options: of projects whose extra params don't say otherwise.
            on_event: is told what the webhook hears; None drops it.
            batch_s: seconds after which a batch's remaining tasks are left for the next: the server gives up at 100,
                and would lose the others too.
            predict_wait_s: seconds that a prediction waits for weights that are still loading.
        """
        self.instance = uuid.uuid4().hex
        self._options, self._on_event = options, on_event
        self._read_image, self._batch_s, self._predict_wait_s = read_image, batch_s, predict_wait_s
        self._lock = threading.Lock()
        self._projects: OrderedDict[str, _Project] = OrderedDict()
        self._told: set[int | None] = set()  # tasks whose annotator sees a message
        self._prefetching: set[tuple[object, int | None]] = set()
        self._prefetcher = ThreadPoolExecutor(1, thread_name_prefix="refinesam-prefetch")
        self._events = ThreadPoolExecutor(1, thread_name_prefix="refinesam-events")
        self._sessions = Sessions({DEFAULT: session_factory} if callable(session_factory) else session_factory)

    def close(self) -> None:
        """Give up prefetching, and wait for the events that were accepted."""
        self._prefetcher.shutdown(cancel_futures=True)
        self._events.shutdown()

    def health(self) -> JsonObject:
        """Return {"status": "UP"} and, under "model", whether the weights are "loading", "ready" or "failed"."""
        return {"status": "UP", "model": self._sessions.state}

    def setup(self, body: JsonView) -> JsonObject:
        """Take note of a project's labeling config and extra params.

        Returns:
            {"model_version": ...}; while weights take longer to load than the server waits, their version is "loading".

        Raises:
            ConfigError: no project, a labeling config that can't be answered, or unknown extra params.
            NotReadyError: the weights could not be loaded.
        """
        project_id, schema = _project_id(body.get("project")), body.get("schema")
        if project_id is None or not isinstance(schema, str):
            raise ConfigError('/setup needs "project", such as "5.1700000000", and "schema", the labeling config.')
        options = self._options.updated(body.get("extra_params"))
        _parsed(schema).output_for(options.label, options.output)
        self._sessions.check(options.model)
        with self._lock:
            self._projects[project_id] = _Project(schema, options)
            self._projects.move_to_end(project_id)
            while len(self._projects) > MOST_PROJECTS:
                self._projects.popitem(last=False)
        try:
            weights = self._session(SETUP_WAIT_S, options.model)[1]
        except NotReadyError as error:
            if not error.loading:
                raise
            weights = LOADING
        return {"model_version": options.version(weights)}

    def predict(self, body: JsonView) -> JsonObject:
        """Answer tasks.

        With a context, what was drawn in it is the prompt. Without one, a task's own boxes and key points are, and a
        task without any is segmented as a whole.

        Returns:
            {"results": [{"result": [...], "score": ..., "model_version": ...}, ...]}, one for each task, in order. In
            their place, a task of a batch that can't be answered, comes too late or asks for nothing has []: Label
            Studio then stores no prediction of it and asks again the next time. The log says why. With a context, an
            answer also has "problems", why something is missing, and "backend", this service's `instance`; and where
            the labeling config has a TextArea for messages, the annotator sees the problems there.

        Raises:
            ConfigError: no list of tasks, or no labeling config that can be answered.
            NotReadyError: the weights are still loading, or could not be loaded.
        """
        deadline = time.monotonic() + self._batch_s
        tasks, params = body.get("tasks"), body.get("params")
        if not isinstance(tasks, list):
            raise ConfigError(f'/predict needs "tasks", a list, got a {type(tasks).__name__}.')
        project = self._project(body, tasks)
        context = params.get("context") if isinstance(params, Mapping) else None
        config = _parsed(project.label_config)
        try:
            session, weights = self._session(self._predict_wait_s, project.options.model)
        except NotReadyError as error:
            if context is None or config.messages is None:
                raise
            missing = TaskPrediction(problems=(str(error),))
            rows = [self._row(missing, LOADING, task, context, config) for task in tasks]
            return {"results": rows, "model_version": LOADING}
        version = project.options.version(weights)
        predictor = TaskPredictor(session, self._read_image, config, project.options)
        results: list[JsonObject | list[Any]] = []
        answers: list[TaskPrediction] = []
        for task in tasks:
            late = time.monotonic() > deadline
            answer = TaskPrediction(problems=(LATE,)) if late else _guarded(predictor, task, context)
            if answer.unprompted and isinstance(task, Mapping):
                for value in predictor.images(task):
                    self.prefetch(value, _task_id(task), project.options.model)
            for problem in answer.problems:
                _logger.warning("Task %s: %s", _task_id(task), problem)
            answers.append(answer)
            done = answer.done or context is not None
            results.append(self._row(answer, version, task, context, config) if done else [])
        if told := told_of_whole(answers):
            _logger.info(told)
        return {"results": results, "model_version": version}

    def _row(
        self, answer: TaskPrediction, version: str, task: object, context: object, config: LabelingConfig
    ) -> JsonObject:
        row: JsonObject = {"result": list(answer.regions), "score": answer.score, "model_version": version}
        if context is None:
            return row
        # Label Studio passes an annotator's answer on as it is, and shows of it the regions alone.
        row.update(problems=list(answer.problems), backend=self.instance)
        text = " ".join(answer.problems)
        if config.messages is not None and (text or _task_id(task) in self._told):
            row["result"].append(message_region(text, config.messages))
            (self._told.add if text else self._told.discard)(_task_id(task))
        return row

    def versions(self) -> JsonObject:
        """Return {"versions": [...]}: the model versions that can be had, as far as they are known.

        Where the weights could not be loaded, "error" says why.
        """
        with self._lock:
            options = [self._options, *(project.options for project in self._projects.values())]
        options += [ServiceOptions(), ServiceOptions(amr=AMRConfig())]
        known = ((item, self._sessions.version(item.model)) for item in options)
        versions = list(dict.fromkeys(item.version(weights) for item, weights in known if weights))
        problem = self._sessions.problem
        return {"versions": versions, "error": problem} if problem else {"versions": versions}

    def webhook(self, body: JsonView) -> JsonObject:
        """Pass an event on and return at once: {"status": "accepted"}, or "ignored" where nobody listens.

        Raises:
            ConfigError: no action.
        """
        action = body.get("action")
        if not isinstance(action, str):
            raise ConfigError('/webhook needs "action", such as "ANNOTATION_CREATED".')
        if self._on_event is None:
            return {"status": "ignored"}
        self._events.submit(self._tell, self._on_event, action, body)
        return {"status": "accepted"}

    def prefetch(self, value: object, task_id: int | None, model: str | None = None) -> None:
        """Encode an image in the background, so that the first click on it is answered as fast as the second.

        Args:
            value: what the task's data says of its image.
            task_id: the task's.
            model: that will be asked, None for the default.
        """
        key = (value if isinstance(value, str) else None, task_id)
        with self._lock:
            if key in self._prefetching or len(self._prefetching) >= MOST_PREFETCHED:
                return
            self._prefetching.add(key)
        self._prefetcher.submit(self._encode, value, task_id, model, key)

    def _session(self, wait_s: float, name: str | None = None) -> tuple[Session, str]:
        return self._sessions.get(name, wait_s)

    def _project(self, body: JsonView, tasks: list[Any]) -> _Project:
        """Return the labeling config of the request, else of setup, and the project's options."""
        project_id = _project_id(body.get("project"))
        if project_id is None and tasks and isinstance(tasks[0], Mapping):
            project_id = _project_id(tasks[0].get("project"))
        with self._lock:
            known = self._projects.get(project_id) if project_id is not None else None
        label_config = body.get("label_config")
        if isinstance(label_config, str) and label_config.strip():
            return _Project(label_config, known.options if known else self._options)
        if known is None:
            raise ConfigError(
                f'/predict needs "label_config", or /setup called before for its project ({project_id or "none"}).'
            )
        return known

    def _tell(self, on_event: OnEvent, action: str, body: JsonView) -> None:
        try:
            on_event(action, body)
        except Exception:  # The next event is told all the same.
            _logger.exception("%s was not dealt with.", action)

    def _encode(self, value: object, task_id: int | None, model: str | None, key: tuple[object, int | None]) -> None:
        try:
            self._session(self._predict_wait_s, model)[0].encode(self._read_image(value, task_id))
        except RefineSAMError as error:
            _logger.warning("Task %s can't be encoded ahead: %s", task_id, error)
        except Exception:
            _logger.exception("Task %s can't be encoded ahead.", task_id)
        finally:
            with self._lock:
                self._prefetching.discard(key)


_parsed = lru_cache(maxsize=64)(LabelingConfig.parse)


def _guarded(predictor: TaskPredictor, task: object, context: object) -> TaskPrediction:
    """Answer one task; what it stumbles on must not cost the others their answers."""
    try:
        return predictor.answer(task, context)
    except RefineSAMError as error:
        return TaskPrediction(problems=(str(error),))
    except Exception as error:
        _logger.exception("Task %s:", _task_id(task))
        return TaskPrediction(
            problems=(f"{type(error).__name__}, which should not happen: please report it with this log.",)
        )


def _task_id(task: object) -> int | None:
    task_id = task.get("id") if isinstance(task, Mapping) else None
    return task_id if isinstance(task_id, int) else None


def _project_id(value: object) -> str | None:
    """Return the id of "5.1700000000", the project and when it was made."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value).partition(".")[0].strip() or None
