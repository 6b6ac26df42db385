"""Finetuning of a promptable model: run, killed and resumed, in one process or torchrun's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from refinesam.errors import ConfigError
from refinesam.training.finetune.config import FinetuneConfig
from refinesam.training.finetune.data import PromptedCrops, Sample, batches_from
from refinesam.training.finetune.pictures import draw_predictions
from refinesam.training.finetune.resident import ResidentImages, ResidentSamples
from refinesam.training.finetune.state import Finetuning
from refinesam.training.finetune.validate import WholeImages, validate
from refinesam.training.processes import run_processes
from refinesam.training.run_log import Write, run_log, write_nothing, writing_to
from refinesam.training.sources.layouts import load_sources
from refinesam.training.sources.source import Source
from refinesam.weights import save_weights

__all__ = ["StepReport", "finetune"]


@dataclass(frozen=True)
class StepReport:
    """Progress of a run.

    Attributes:
        step, steps: done, and of the whole run.
        loss, iou: of the step's first round: its loss, and the mean IoU of the masks that the IoU head chose.
        seconds: that training took up to now.
        damaged: images that could not be used up to now.
    """

    step: int
    steps: int
    loss: float
    iou: float
    seconds: float
    damaged: int = 0


OnStep = Callable[[StepReport], None]


def finetune(
    config: FinetuneConfig,
    data: Path,
    output: Path,
    device: str = "auto",
    on_step: OnStep = lambda report: None,
) -> Path:
    """Run, or resume, a finetuning.

    Args:
        config: the settings.
        data: folder with one folder per source.
        output: folder for `checkpoint.pt`, `log.jsonl`, `pictures` and the resulting `weights.safetensors`.
        device: "auto", "cpu", "cuda", ...
        on_step: called after every step, in the first process.

    Returns:
        Path of the weights: the moving average, fp16 safetensors.

    Raises:
        ConfigError: the model to start from, the device or the division of the batch doesn't fit, or the folder holds a
            run of other settings.
        DatasetError: a source is missing, malformed or without usable objects.
        WeightsError: the model to start from or the checkpoint is damaged.
        MissingExtraError: TensorBoard is asked for and not installed.
        RefineSAMError: the loss became NaN or infinite, or the disk is full; the last checkpoint is left as it was.
    """
    weights = output / "weights.safetensors"
    with writing_to(output), run_processes(device) as processes:
        run = Finetuning(config, processes)
        checkpoint = output / "checkpoint.pt"
        if checkpoint.exists():
            run.resume(checkpoint)
        # Read by every process before one of them writes a new checkpoint.
        processes.wait()
        first = processes.rank == 0
        # Opened by one process; the others compute.
        with run_log(output, run.step, config.tensorboard) if first else nullcontext(write_nothing) as write:
            _train(run, data, output, write, on_step if first else lambda report: None)
        if first:
            save_weights(run.averaged_model(), weights, dtype=torch.float16)
    return weights


def _train(run: Finetuning, data: Path, output: Path, write: Write, on_step: OnStep) -> None:
    config, optim, processes = run.config, run.config.optim, run.processes
    train, val_samples = _sources(run, data, write)
    seen: set[str] = set()
    with _batches(run, train, write) as batches:
        begun = time.monotonic() - run.seconds
        for batch in batches:
            values = run.train_step(batch)
            seen |= {line for lines in batch["damaged"] for line in lines.splitlines()}
            run.seconds = time.monotonic() - begun
            damaged = len(run.damaged | set(map(_name, seen)))
            on_step(StepReport(run.step, optim.steps, values["total"], values["chosen_iou"], run.seconds, damaged))
            last = run.step == optim.steps
            logs, saves = (last or run.step % every == 0 for every in (config.log_every, config.checkpoint_every))
            if logs or saves:
                _tell_damaged(run, seen, write)
            if logs:
                rounded = {name: round(value, 6) for name, value in values.items()}
                write(run.step, seconds=round(run.seconds, 1), learning_rate=run.rate, **rounded)
            if processes.rank == 0 and (last or run.step % config.validate_every == 0):
                _look(run, val_samples, output, write)
            # Last, so that a run resumed here has all of this step in its log.
            if saves and processes.rank == 0:
                run.save(output / "checkpoint.pt")


def _tell_damaged(run: Finetuning, seen: set[str], write: Write) -> None:
    """Log each image that could not be used, by any process, once: the first reason of perhaps several."""
    for line in sorted(run.processes.union(seen)):
        if _name(line) not in run.damaged:
            run.damaged.add(_name(line))
            write(run.step, damaged=line)


def _name(line: str) -> str:
    """Return the image's name in "name: reason"."""
    return line.partition(": ")[0]


def _look(run: Finetuning, samples: WholeImages, output: Path, write: Write) -> None:
    """Measure and draw what the model's average does with validation images, if there are any."""
    if not len(samples):
        return
    model = run.averaged_model()
    write(run.step, **validate(model, samples, run.processes.device))
    if run.config.pictures:
        path = output / "pictures" / f"step_{run.step:06d}.png"
        draw_predictions(model, samples, run.config.pictures, run.processes.device, path)


def _sources(run: Finetuning, data: Path, write: Write) -> tuple[list[Source], WholeImages]:
    """Return the sources of a run, and what it is validated on, which may be nothing; log what is left out."""
    config = run.config
    train = load_sources(data, config.data.sources, "train")
    for source in train if not run.step else ():
        for text in source.left_out:
            write(run.step, left_out=text)
    val = load_sources(data, config.data.sources, "val") if config.data.val_images else []
    return train, WholeImages(val, run.input_size, config.data.val_images, family=run.model.config.family)


def _batches(run: Finetuning, train: list[Source], write: Write) -> AbstractContextManager[Iterator[Sample]]:
    """Give this process's share of every batch that is left of a run."""
    config, processes, steps = run.config, run.processes, range(run.step, run.config.optim.steps)
    if not config.data.resident:
        family = run.model.config.family
        samples = PromptedCrops(train, run.input_size, config.data, config.prompts, config.seed, family=family)
        shares = (config.data.workers, processes.rank, processes.count)
        return batches_from(samples, steps, config.optim.batch_size, *shares)
    if processes.count > 1:
        raise ConfigError("data.resident makes the batches of one process. Set it to 0 for several.")
    images = ResidentImages.read(train, config.data.resident, processes.device)
    _tell_damaged(run, set(images.damaged), write)
    resident = ResidentSamples(images, run.input_size, config.data, config.prompts, config.seed)
    return nullcontext(resident.batches(steps, config.optim.batch_size))
