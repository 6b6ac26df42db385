"""`project_states`: how far the pre-annotation of a project is, as its server has it for everybody of the team."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.failures import SUFFIX, reason_of
from refinesam_labelstudio.json_types import JsonView

__all__ = ["ProjectStates", "VersionState", "project_states"]

# The pace is that of the last so many minutes in which anything was stored.
RECENT = timedelta(minutes=10)


@dataclass
class VersionState:
    """What a model version has done of a project.

    Attributes:
        done: tasks with a prediction.
        empty: of these, tasks in which nothing was found.
        failed: why tasks have none, by their ids; "" where that isn't told.
        times: when predictions were stored.
    """

    done: int = 0
    empty: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    times: list[datetime] = field(default_factory=list)

    @property
    def last(self) -> datetime | None:
        """When a prediction was stored last."""
        return max(self.times, default=None)

    @property
    def tasks_a_minute(self) -> float | None:
        """How many tasks a minute were stored in the end, None if that can't be told."""
        if self.last is None:
            return None
        recent = [time for time in self.times if self.last - time <= RECENT]
        minutes = (self.last - min(recent)).total_seconds() / 60
        # What came first was worked on before.
        later = sum((time - min(recent)).total_seconds() > 1 for time in recent)
        return later / minutes if later else None

    @property
    def reasons(self) -> list[tuple[str, list[int]]]:
        """The reasons with their tasks, the most frequent first."""
        counted = Counter(self.failed.values()).most_common()
        return [(reason, [task_id for task_id, why in self.failed.items() if why == reason]) for reason, _ in counted]


@dataclass
class ProjectStates:
    """How far a project is: its tasks, and by model version what was done of them."""

    tasks: int = 0
    versions: dict[str, VersionState] = field(default_factory=dict)


def project_states(server: LabelStudioServer, project_id: int) -> ProjectStates:
    """Look at the predictions of all tasks.

    Raises:
        ServerError: Label Studio can't be reached or refuses.
    """
    states = ProjectStates()
    for page in itertools.count(1):
        tasks = server.tasks(project_id, page)
        if not tasks:
            return states
        for task in tasks:
            states.tasks += 1
            seen = set[str]()
            for prediction in task.get("predictions") or []:
                version = str(prediction.get("model_version"))
                state = states.versions.setdefault(version.removesuffix(SUFFIX), VersionState())
                if (reason := reason_of(prediction)) is not None:
                    state.failed[int(task["id"])] = reason
                elif version not in seen:
                    seen.add(version)
                    _add(state, prediction)
    raise AssertionError("pages have no end")


def _add(state: VersionState, prediction: JsonView) -> None:
    state.done += 1
    state.empty += not prediction.get("result")
    try:
        stored = datetime.fromisoformat(str(prediction.get("created_at")))
    except ValueError:
        return
    state.times.append(stored if stored.tzinfo else stored.replace(tzinfo=UTC))
