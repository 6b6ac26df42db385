"""`refinesam batch`, on a small model with random weights: answers, failures, and jobs that are killed."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import refinesam
from planted_job import coco_boxes, without_seconds, write_images
from refinesam import ConfigError, Prompt, decode_rle, loading, read_image
from refinesam.cli import main
from refinesam.jobs.folder import JobFolder, result_rows
from refinesam.jobs.inputs import Source, find_sources
from refinesam.jobs.local import run_local
from refinesam.jobs.prompts import ObjectPrompt, read_prompts
from refinesam.jobs.rows import Row, Task
from refinesam.jobs.run import run_job
from refinesam.jobs.worker import Asked, Machine, Worker

CPU = Machine("cpu", 1)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["refinesam", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def tasks_of(dataset: Path) -> list[Task]:
    sources = find_sources(str(dataset / "images"))
    prompts = read_prompts(dataset / "boxes.json", [source.name for source in sources])
    return [Task(index, source, tuple(prompts[source.name])) for index, source in enumerate(sources)]


def settled(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_the_command_agrees_with_the_api(
    monkeypatch: pytest.MonkeyPatch, dataset: Path, weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompts", dataset / "boxes.json", "--refine", "fast", "--weights", weights, "--device", "cpu"]
    output = dataset / "out"
    assert run(monkeypatch, "batch", dataset / "images", "--output", output, "--shard", 3, *options) == 0
    assert sorted(path.name for path in (output / "shards").iterdir()) == [f"0000{n}.parquet" for n in range(3)]
    said = capfd.readouterr()
    assert "7 images, 14 masks" in said.out
    assert "7 of 7 images" in said.err and "images/s, 0:00:00 left" in said.err
    rows = list(result_rows(output))
    assert [row["image"] for row in rows[:4]] == ["0001.png", "0001.png", "0002.png", "0002.png"]
    assert [row["class_name"] for row in rows] == ["cat", "dog"] * 7
    session = refinesam.load(weights, device="cpu")
    encoded = session.encode(read_image(dataset / "images" / "0002.png"))
    expected = encoded.refine(encoded.predict(Prompt(box=[20, 2, 50, 32])), refinesam.AMRConfig.named("fast"))
    row = rows[3]
    mask = decode_rle({"size": [row["height"], row["width"]], "counts": row["rle"]})
    assert (mask == expected.mask).all()
    assert row["predicted_iou"] == pytest.approx(expected.score)
    assert row["kept"] == expected.refinement.kept
    assert row["area"] == mask.sum() and row["seconds"] > 0 and row["prompt_id"] == "5"
    assert json.loads(row["prompt"]) == {"box": [20, 2, 50, 32]}
    # Once more: nothing is left to do, and no process is started.
    before = {path: path.stat().st_mtime_ns for path in (output / "shards").iterdir()}
    monkeypatch.setattr("refinesam.jobs.local._Process", None)
    assert run(monkeypatch, "batch", dataset / "images", "--output", output, "--shard", 3, *options) == 0
    assert {path: path.stat().st_mtime_ns for path in (output / "shards").iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--refine", "full"], "refine: None there, full now"),
        (["--shard", "2"], "images_per_shard: 200 there, 2 now"),
        (["--intensity", "minmax"], "intensity: percentile there, minmax now"),
    ],
)
def test_other_settings_on_a_folder_of_results_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    dataset: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    changed: list[str],
    words: str,
) -> None:
    monkeypatch.setattr("refinesam.jobs.local.run_local", lambda *_, **__: iter(()))
    options = ["--prompts", dataset / "boxes.json", "--weights", weights, "--output", dataset / "out"]
    assert run(monkeypatch, "batch", dataset / "images", *options) == 0
    assert run(monkeypatch, "batch", dataset / "images", *options, *changed) == 1
    told = capsys.readouterr().err
    assert words in told and "Give another --output" in told
    (dataset / "boxes.json").write_text(json.dumps(coco_boxes(["0001.png"])))
    assert run(monkeypatch, "batch", dataset / "images", *options) == 1
    assert "settings (other prompts)" in capsys.readouterr().err
    assert run(monkeypatch, "batch", dataset / "images", *options[:4], "--output", dataset / "images") == 1
    assert "holds no results of refinesam batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Give --prompts FILE, or --everything"),
        (["--everything", "--prompts", "boxes.json"], "and not both"),
        (["--prompts", "boxes.json", "--points-per-side", "4"], "--points-per-side: only with --everything"),
        (["--everything", "--channel", "red"], "--channel 'red' must be"),
    ],
)
def test_options_that_contradict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run(monkeypatch, "batch", "images", "--output", "out", *options) == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_failures_are_rows_and_can_be_tried_again(dataset: Path, weights: Path) -> None:
    tasks = tasks_of(dataset)
    damaged = dataset / "images" / "0002.png"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:60])
    outside = ObjectPrompt(box=(400, 400, 500, 500), class_name="cat")
    tasks[0] = Task(0, tasks[0].source, (outside, ObjectPrompt(error="row 5: x0 is none"), tasks[0].prompts[1]))
    tasks[2] = Task(2, tasks[2].source, ())
    worker = Worker(Asked(str(weights)), CPU)

    def answering(tasks: list[Task]) -> Iterator[tuple[Task, list[Row]]]:
        return ((task, worker.rows(task)) for task in tasks)

    folder = JobFolder(dataset / "out", {}, tasks, 2)
    totals = run_job(folder, answering)
    assert (totals.images, totals.objects, totals.failures) == (7, 9, 4)
    rows = list(result_rows(dataset / "out"))
    assert "lies wholly outside the image" in rows[0]["error"] and rows[0]["class_name"] == "cat"
    assert rows[1]["error"] == "row 5: x0 is none" and rows[2]["error"] is None and rows[2]["area"] > 0
    assert all("0002.png cannot be decoded" in row["error"] and row["rle"] is None for row in rows[3:5])
    assert rows[5]["object"] is None and rows[5]["height"] == 40 and rows[5]["error"] is None
    with (dataset / "out" / "failures.csv").open(encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert [(row["image"], row["object"], row["shard"]) for row in listed] == [
        ("0001.png", "0", "00000.parquet"),
        ("0001.png", "1", "00000.parquet"),
        ("0002.png", "0", "00000.parquet"),
        ("0002.png", "1", "00000.parquet"),
    ]
    damaged.write_bytes(content)
    assert folder.missing() == [] and folder.missing(retry_failures=True) == [0]
    assert run_job(folder, answering, retry_failures=True).failures == 2


def test_an_error_that_is_not_ours_costs_its_image_alone(
    dataset: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(Asked(str(weights)), CPU)
    monkeypatch.setattr(worker.session.model, "encode", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    (row,) = worker.rows(Task(0, tasks_of(dataset)[0].source, None))
    assert row["error"] == "RuntimeError: out of memory"


def test_everything_gives_a_row_a_mask(dataset: Path, weights: Path) -> None:
    settings = {"points_per_side": 3, "iou_threshold": 0.0, "stability_threshold": 0.0}
    source = tasks_of(dataset)[0].source
    rows = Worker(Asked(str(weights), everything=settings), CPU).rows(Task(0, source, None))
    expected = refinesam.load(weights, device="cpu").segment_everything(read_image(source.location), **settings)
    assert len(rows) == len(expected) > 0
    for row, prediction in zip(rows, expected, strict=True):
        assert (decode_rle({"size": [40, 56], "counts": row["rle"]}) == prediction.mask).all()
        assert json.loads(row["prompt"])["points"] == prediction.prompt.points.tolist()


def test_a_killed_process_costs_nothing(dataset: Path, weights: Path) -> None:
    tasks = tasks_of(dataset)
    worker = Worker(Asked(str(weights)), CPU)
    expected = {task.index: settled(worker.rows(task)) for task in tasks}
    answers: dict[int, list[Row]] = {}
    killed = 0
    for task, rows in run_local(Asked(str(weights)), CPU, tasks, 2):
        assert task.index not in answers
        answers[task.index] = settled(rows)
        if len(answers) == 1:
            for process in multiprocessing.active_children():
                process.kill()
                killed += 1
    assert killed == 2
    assert answers == expected
    assert multiprocessing.active_children() == []


class _Deadly(str):
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_an_image_that_kills_every_process_becomes_a_failure(dataset: Path, weights: Path) -> None:
    first, _, third, *_ = tasks_of(dataset)
    deadly = Task(1, Source("deadly.png", _Deadly("deadly.png")), None)
    answers = dict((task.index, rows) for task, rows in run_local(Asked(str(weights)), CPU, [first, deadly, third], 1))
    assert "3 processes were killed at this image (exit code 9)" in answers[1][0]["error"]
    assert all(row["error"] is None for row in answers[0] + answers[2])


def test_a_model_that_cannot_be_loaded_is_told(dataset: Path, weights: Path) -> None:
    with pytest.raises(ConfigError, match="input_size is 7"):
        list(run_local(Asked(str(weights), input_size=7), CPU, tasks_of(dataset), 2))


def test_killed_twice_equals_an_uninterrupted_run(tmp_path: Path, weights: Path) -> None:
    names = write_images(tmp_path / "images", 24)
    (tmp_path / "boxes.json").write_text(json.dumps(coco_boxes(names)))

    def command(output: Path) -> list[str]:
        options = ["--prompts", tmp_path / "boxes.json", "--weights", weights, "--shard", 4, "--processes", 2]
        options += ["--refine", "full", "--device", "cpu", "--output", output]
        program = "from refinesam.cli import main; main()"
        return [sys.executable, "-c", program, "batch", str(tmp_path / "images"), *map(str, options)]

    def shards() -> list[Path]:
        return sorted((tmp_path / "killed" / "shards").glob("[0-9]*.parquet"))

    for least in (1, 3):
        process = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.DEVNULL, start_new_session=True)
        while len(shards()) < least and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(shards()) < 6, "it was done before it was killed"
    stamps = {path: path.stat().st_mtime_ns for path in shards()}
    for output in ("killed", "whole"):
        done = subprocess.run(command(tmp_path / output), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "24 images, 48 masks" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "whole")
    assert len({row["rle"] for row in result_rows(tmp_path / "whole")}) > 24
    assert np.isfinite([row["predicted_iou"] for row in result_rows(tmp_path / "whole")]).all()


def test_processes_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [loading.device_of_rank("cpu", rank) for rank in range(2)] == ["cpu", "cpu"]
    # As on a machine with two.
    monkeypatch.setattr(loading, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [loading.device_of_rank("cuda", rank) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert loading.device_of_rank("cuda:1", 0) == "cuda:1"


def test_without_pyarrow_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(monkeypatch, "batch", "images", "--output", "out", "--everything") == 1
    assert 'pip install "refinesam[batch]"' in " ".join(capsys.readouterr().err.split())
