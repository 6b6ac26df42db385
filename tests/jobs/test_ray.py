"""Ray Data answers as the processes of this machine do, also when its actors are killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from planted_job import write_images
from refinesam.jobs.inputs import find_sources
from refinesam.jobs.on_ray import run_on_ray
from refinesam.jobs.prompts import ObjectPrompt
from refinesam.jobs.rows import Row, Task
from refinesam.jobs.worker import Asked, Machine, Worker

pytest.importorskip("ray", reason='Ray is not installed: pip install "refinesam[ray]"')

CPU = Machine("cpu", 1)
BOX = ObjectPrompt(box=(4, 6, 28, 26), class_name="cat", score=0.5)


def settled(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def actors() -> list[psutil.Process]:
    """Ray's processes that hold an actor of ours, of this process's own Ray alone."""
    mine = psutil.Process(os.getpid()).children(recursive=True)
    return [process for process in mine if "MapWorker" in process.name() or "MapWorker" in " ".join(process.cmdline())]


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_same_records_also_when_actors_are_killed(tmp_path: Path, weights: Path) -> None:
    write_images(tmp_path / "images", 40)
    (tmp_path / "images" / "0001.png").write_bytes(b"damaged")
    sources = find_sources(str(tmp_path / "images"))
    tasks = [Task(index, source, (BOX,)) for index, source in enumerate(sources)]
    worker = Worker(Asked(str(weights), "fast"), CPU)
    answers: dict[int, list[Row]] = {}
    killed = 0
    for task, rows in run_on_ray(Asked(str(weights), "fast"), CPU, tasks, 1):
        assert task.index not in answers
        answers[task.index] = settled(rows)
        if not killed:
            for process in actors():
                process.send_signal(signal.SIGKILL)
                killed += 1
    assert killed
    assert answers == {task.index: settled(worker.rows(task)) for task in tasks}
    assert sum(rows[0]["error"] is not None for rows in answers.values()) == 1
