"""Ray Data answers as the processes of this machine do, also when its actors are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from planted_job import coco_boxes, without_seconds, write_images
from refinesam.errors import ConfigError
from refinesam.jobs.inputs import find_sources
from refinesam.jobs.on_ray import run_on_ray
from refinesam.jobs.prompts import ObjectPrompt, read_prompts
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


def test_a_killed_job_goes_on_and_equals_one_that_was_not(tmp_path: Path, weights: Path) -> None:
    names = write_images(tmp_path / "images", 48)
    (tmp_path / "boxes.json").write_text(json.dumps(coco_boxes(names)))
    options = ["--prompts", tmp_path / "boxes.json", "--weights", weights, "--shard", 4, "--device", "cpu"]
    options += ["--engine", "ray", "--output", tmp_path / "out", "--threads", 1]
    program = "from refinesam.cli import main; main()"
    command = [sys.executable, "-c", program, "batch", str(tmp_path / "images"), *map(str, options)]
    # Without what a Ray that ran in this process left behind.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
    shards = tmp_path / "out" / "shards"
    while not list(shards.glob("[0-9]*.parquet")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in shards.glob("[0-9]*.parquet")}
    assert 0 < len(before) < 12, (tmp_path / "said.txt").read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "48 images, 96 masks" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    sources = find_sources(str(tmp_path / "images"))
    prompts = read_prompts(tmp_path / "boxes.json", [source.name for source in sources])
    worker = Worker(Asked(str(weights)), CPU)
    tasks = [Task(index, source, tuple(prompts[source.name])) for index, source in enumerate(sources)]
    assert without_seconds(tmp_path / "out") == [row for task in tasks for row in settled(worker.rows(task))]


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
        if not killed:  # two blocks of images are still to come
            for process in actors():
                process.send_signal(signal.SIGKILL)
                killed += 1
    assert killed
    assert answers == {task.index: settled(worker.rows(task)) for task in tasks}
    assert sum(rows[0]["error"] is not None for rows in answers.values()) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("asked", "machine", "processes", "words"),
    [
        (Asked(input_size=7), CPU, 1, "input_size is 7"),
        (Asked(), Machine("cpu", 100), 100, "need more than the"),
        (Asked(), Machine("cuda", 1), 1, "Ray's cluster has no GPU"),
    ],
)
def test_what_cannot_start_is_told(tmp_path: Path, asked: Asked, machine: Machine, processes: int, words: str) -> None:
    write_images(tmp_path / "images", 1)
    (source,) = find_sources(str(tmp_path / "images"))
    with pytest.raises(ConfigError, match=words):
        list(run_on_ray(asked, machine, [Task(0, source, (BOX,))], processes))
