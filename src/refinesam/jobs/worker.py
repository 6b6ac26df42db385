"""What every process or actor of a job does: load the model once, then turn images into rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refinesam.amr import AMRConfig
from refinesam.batch import Answer, Item, segment_batch
from refinesam.errors import ImageError, RefineSAMError
from refinesam.jobs.inputs import Reading, read_source
from refinesam.jobs.prompts import ObjectPrompt
from refinesam.jobs.rows import Row, Task, failed_rows, image_row, object_row
from refinesam.types import Prompt

__all__ = ["Asked", "Machine", "Worker"]


@dataclass(frozen=True)
class Asked:
    """What decides on a job's answers, apart from its images and prompts.

    Attributes:
        weights: their name, or a file.
        refine: the refinement's preset, None for none.
        everything: settings of `AutomaticMaskGenerator`, for images without prompts.
        reading: how images are read.
        input_size: as `refinesam.load` takes it.
    """

    weights: str = "builtin"
    refine: str | None = None
    everything: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading = Reading()
    input_size: int | None = None


@dataclass(frozen=True)
class Machine:
    """Where a job computes: a torch device, and the threads of one process on the CPU."""

    device: str = "auto"
    threads: int = 1


class Worker:
    """A model that answers tasks."""

    def __init__(self, asked: Asked, machine: Machine, rank: int = 0) -> None:
        """Load the model.

        Args:
            asked: what decides on the answers.
            machine: where it computes.
            rank: of this process; "auto" and "cuda" deal several GPUs out by it.

        Raises:
            WeightsError: the weights cannot be loaded.
            ConfigError: no such device, refinement or input size.
        """
        from refinesam.loading import device_of_rank, load

        self.asked = asked
        self.config = None if asked.refine is None else AMRConfig.named(asked.refine)
        device = device_of_rank(machine.device, rank)
        # Each image comes once: no embedding is kept.
        self.session = load(
            asked.weights, device=device, threads=machine.threads, cache_bytes=0, input_size=asked.input_size
        )

    def rows(self, task: Task) -> list[Row]:
        """Segment one image; what fails becomes rows that say why, whatever it is."""
        begun = time.perf_counter()
        try:
            rows = self._rows(task)
        except RefineSAMError as error:
            rows = failed_rows(task, str(error))
        except Exception as error:  # torch's out of memory, a decoder's own: it must not cost the other images
            rows = failed_rows(task, f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - begun
        return [row | {"seconds": seconds} for row in rows]

    def _rows(self, task: Task) -> list[Row]:
        pixels = read_source(task.source, self.asked.reading)
        size = {"height": pixels.shape[0], "width": pixels.shape[1]}
        rows = []
        if task.prompts is None:
            # One at a time: in a large image the masks of all would not fit into memory.
            everything = {"refine": self.config or False, **self.asked.everything}
            for number, prediction in enumerate(self.session.iterate_everything(pixels, **everything)):
                rows.append(object_row(task, number, _found(prediction.prompt), prediction, None, **size))
            return rows or [image_row(task, **size)]
        prompts = [_prompt(prompt) for prompt in task.prompts]
        sound = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        answered = iter(self._answers(pixels, sound) if sound else ())
        # A reason instead of a prompt is kept in its place.
        answers = [next(answered) if isinstance(prompt, Prompt) else prompt for prompt in prompts]
        for number, (asked, answer) in enumerate(zip(task.prompts, answers, strict=True)):
            result, error = (None, answer) if isinstance(answer, str) else (answer.result, answer.error)
            rows.append(object_row(task, number, asked, None if error else result, error, **size))
        return rows or [image_row(task, **size)]

    def _answers(self, pixels: NDArray[np.uint8], prompts: list[Prompt]) -> Sequence[Answer]:
        (record,) = segment_batch(self.session, [Item(pixels, prompts)], refine=self.config or False)
        if record.error is not None:
            raise ImageError(record.error)
        return record.answers


def _prompt(asked: ObjectPrompt) -> Prompt | str:
    """Return what the model is asked, or why it cannot be."""
    try:
        return asked.prompt()
    except RefineSAMError as error:
        return str(error)


def _found(prompt: Prompt) -> ObjectPrompt:
    points = tuple((float(x), float(y)) for x, y in prompt.points.tolist())
    return ObjectPrompt(points=points, labels=tuple(prompt.labels.tolist()))
