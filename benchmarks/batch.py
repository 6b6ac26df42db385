"""How much time does Ray Data take beside the local engine of `refinesam batch`, for the same images?

    python benchmarks/batch.py --images 300 --json benchmarks/results/batch.json

Both answer the same boxes on small made-up images, in processes of one thread, in turns, so that both see the same
moods of the machine. "start" is the time to the first answer: processes, and Ray itself, are started, and the model is
loaded. "overhead" is the engine's own part of the time after that: that which the worker did not spend on images, as it
measured itself, per second that it did. A busy machine slows both. Ray works ahead of the answers that it has given,
by up to a block of images, so that its figure can fall below zero when there are few blocks.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from refinesam.files import write_json
from refinesam.images import write_png
from refinesam.jobs.inputs import Source
from refinesam.jobs.local import run_local
from refinesam.jobs.on_ray import run_on_ray
from refinesam.jobs.prompts import ObjectPrompt
from refinesam.jobs.rows import Row, Task
from refinesam.jobs.worker import Asked, Machine
from refinesam.threads import settle_threads

# Answers that come at once, Ray's blocks, are no rate: what comes in this time after the first one does not count.
SETTLING = 0.5
Answers = Iterator[tuple[Task, list[Row]]]


def made_up(folder: Path, count: int) -> list[Task]:
    tasks = []
    for index in range(count):
        noise = np.random.default_rng(index).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        path = folder / f"{index:05d}.png"
        write_png(path, np.kron(noise, np.ones((8, 8, 1), np.uint8)))
        boxes = tuple(ObjectPrompt(box=(8 * k, 8, 8 * k + 40, 64)) for k in range(3))
        tasks.append(Task(index, Source(path.name, str(path)), boxes))
    return tasks


def measured(answers: Answers) -> tuple[dict[str, float], dict[int, Any]]:
    begun, times, spent, records = time.perf_counter(), [], [], {}
    for task, rows in answers:
        times.append(time.perf_counter() - begun)
        spent.append(rows[0]["seconds"])
        records[task.index] = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    ended = time.perf_counter() - begun
    # The first answers may come together: Ray sends a block at a time.
    first = next(index for index, at in enumerate(times) if at > times[0] + SETTLING)
    together = max(index for index, at in enumerate(times) if at <= times[first] + SETTLING)
    wall, work = times[-1] - times[together], sum(spent[together + 1 :])
    return {
        "start": times[0],
        "seconds": ended,
        "seconds_per_image": wall / (len(times) - 1 - together),
        "overhead": wall / work - 1,
    }, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--input-size", type=int, default=None)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settle_threads(1)
    asked, machine = Asked(options.weights, input_size=options.input_size), Machine("cpu", 1)
    engines: dict[str, Callable[..., Answers]] = {"local": run_local, "ray": run_on_ray}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as folder:
        tasks, records = made_up(Path(folder), options.images), {}
        for _ in range(options.repeats):
            for name, engine in engines.items():
                figures, records[name] = measured(engine(asked, machine, tasks, processes=options.processes))
                runs[name].append(figures | {"load_average": os.getloadavg()[0]})
                print(name, figures)
            assert records["local"] == records["ray"], "the engines' records differ"
    pairs = list(zip(runs["local"], runs["ray"], strict=True))
    figures = ("start", "seconds", "seconds_per_image")
    ratio = {figure: median(ray[figure] / local[figure] for local, ray in pairs) for figure in figures}
    overhead = {name: median(one["overhead"] for one in runs[name]) for name in runs}
    print("ray / local:", ratio, "overhead:", overhead)
    settings = {name: getattr(options, name) for name in ("images", "processes", "weights", "input_size")}
    content = {"settings": settings, "cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content |= {
        "objects_per_image": 3,
        "records_equal": True,
        "runs": runs,
        "ray_over_local": ratio,
        "overhead": overhead,
    }
    if options.json:
        write_json(options.json, content, indent=1)


if __name__ == "__main__":
    main()
