"""The same job on Ray Data: actors that hold the model, on one machine or a cluster, on CPUs or GPUs.

Only the driver writes: rows travel back to it, so the nodes need no common file system for the results. They need one,
or URLs, for the images.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from refinesam.errors import ConfigError, MissingExtraError, RefineSAMError
from refinesam.jobs.rows import Row, Task
from refinesam.jobs.worker import Asked, Machine, Worker

__all__ = ["run_on_ray"]

# What is lost, and done again, when an actor is lost: Ray repeats a block as a whole.
IMAGES_PER_BLOCK = 16


def run_on_ray(
    asked: Asked, machine: Machine, tasks: Iterable[Task], processes: int
) -> Iterator[tuple[Task, list[Row]]]:
    """Answer tasks, in no order.

    Joins the cluster of RAY_ADDRESS; without it, and without one that was initialised, Ray is started on this machine.
    An actor whose node is lost is started again, and its block of images done again, by Ray.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: the model cannot be loaded with these settings.
        WeightsError: the weights cannot be loaded.
    """
    ray, data = _ray_modules()
    tasks = list(tasks)
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    data.DataContext.get_current().enable_progress_bars = False  # the command has its own
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        # As bytes: Ray would turn what a task holds into Arrow's types. The settings come with each task, so that an
        # actor loads its model with the first one, and answers with the error where it cannot.
        dataset = data.from_items(
            [{"task": pickle.dumps((asked, machine, task))} for task in tasks],
            override_num_blocks=-(-len(tasks) // IMAGES_PER_BLOCK),
        )
        gpus = _gpus(machine.device, ray)
        cores = int(ray.cluster_resources().get("CPU", 0))
        if started and not gpus and processes * machine.threads > cores:
            raise ConfigError(
                f"--processes {processes} of --threads {machine.threads} each need more than the {cores} cores here, "
                "and Ray would wait for more: use fewer, or join a cluster through RAY_ADDRESS."
            )
        answered = dataset.map_batches(
            _Actor,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(processes, -(-len(tasks) // IMAGES_PER_BLOCK))),
            num_gpus=gpus,
            num_cpus=0 if gpus else machine.threads,
        )
        for row in answered.iter_rows():
            task, rows = pickle.loads(row["answer"])
            if isinstance(rows, RefineSAMError):
                raise rows
            yield task, rows
    finally:
        if started:
            ray.shutdown()


class _Actor:
    """A `Worker` as Ray Data calls it, with batches of one image; an error of loading the model is its answer."""

    def __init__(self) -> None:
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, NDArray[np.object_]]) -> dict[str, NDArray[np.object_]]:
        return {"answer": np.array([pickle.dumps(self._answer(*pickle.loads(task))) for task in batch["task"]], object)}

    def _answer(self, asked: Asked, machine: Machine, task: Task) -> tuple[Task, list[Row] | RefineSAMError]:
        if self.worker is None:
            try:
                self.worker = Worker(asked, machine)
            except RefineSAMError as error:
                return task, error
        return task, self.worker.rows(task)


def _ray_modules() -> tuple[ModuleType, ModuleType]:
    try:
        return import_module("ray"), import_module("ray.data")
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray", "ray") from error


def _gpus(device: str, ray: ModuleType) -> int:
    """Return the GPUs of each actor: Ray gives it one of its own, which it sees as the only one."""
    there = ray.cluster_resources().get("GPU", 0)
    if device.startswith("cuda") and not there:
        raise ConfigError(f"--device {device}: Ray's cluster has no GPU. Give --device cpu, or start it with GPUs.")
    return 1 if there and device != "cpu" else 0
