"""`refinesam train ...`: mounted by the command line, which imports no torch before it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from refinesam.training.finetune.config import FinetuneConfig
    from refinesam.training.pretrain.config import MaeConfig, SamiConfig
    from refinesam.training.pretrain.run import PretrainReport

__all__ = ["app"]

app = typer.Typer(help="Train models.", no_args_is_help=True)
# Of torchrun's processes the first one speaks.
SILENT = os.environ.get("RANK", "0") != "0"
console = Console(quiet=SILENT)
errors = Console(stderr=True, quiet=SILENT)

ConfigArgument = Annotated[Path, typer.Argument(help="TOML file with the settings.")]
ImagesOption = Annotated[Path, typer.Option(help="Folder of images, at any depth, or of tar shards; no labels needed.")]
RunOption = Annotated[Path, typer.Option(help="Folder for checkpoint, log and encoder; an unfinished run resumes.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


@app.command()
def finetune(
    config: ConfigArgument,
    data: Annotated[Path, typer.Option(help="Folder with one folder a source.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoint, log and weights; an unfinished run resumes.")],
    device: DeviceOption = "auto",
) -> None:
    """Finetune a model, or train it from scratch, on images with masks: COCO's, LVIS's or SA-1B's.

    A file with tables [[phase]] is several runs, each from the weights of the one before, in folders phase1, phase2.
    """
    from refinesam.training.finetune.config import read_phases

    phases = read_phases(config)
    for number, settings in enumerate(phases, start=1):
        folder = output if len(phases) == 1 else output / f"phase{number}"
        weights = _finetune(settings, data, folder, device)
        if number < len(phases):
            following = phases[number].model.model_copy(update={"init": str(weights)})
            phases[number] = phases[number].model_copy(update={"model": following})


def _finetune(settings: FinetuneConfig, data: Path, output: Path, device: str) -> Path:
    from refinesam.training.finetune.run import StepReport, finetune

    damaged = 0
    with _progress() as update:

        def on_step(report: StepReport) -> None:
            nonlocal damaged
            damaged = report.damaged
            update(f"loss {report.loss:.3f}, IoU {report.iou:.3f}", report.step, report.steps)

        path = finetune(settings, data, output, device, on_step=on_step)
    console.print(f"Weights: {path}", soft_wrap=True)
    _tell_damaged(damaged, output)
    return path


@app.command()
def sami(config: ConfigArgument, data: ImagesOption, output: RunOption, device: DeviceOption = "auto") -> None:
    """Pretrain a light encoder to reconstruct a frozen teacher's features from a quarter of the patches."""
    from refinesam.training.pretrain.config import SamiConfig
    from refinesam.training.settings import read_settings

    _pretrain(read_settings(config, SamiConfig), data, output, device)


@app.command()
def mae(config: ConfigArgument, data: ImagesOption, output: RunOption, device: DeviceOption = "auto") -> None:
    """Pretrain a light encoder to reconstruct pixels: the baseline beside SAMI."""
    from refinesam.training.pretrain.config import MaeConfig
    from refinesam.training.settings import read_settings

    _pretrain(read_settings(config, MaeConfig), data, output, device)


@app.command()
def classify(
    config: ConfigArgument,
    data: Annotated[Path, typer.Option(help="Folder of the labelled images.")],
    output: Annotated[Path, typer.Option(help="Folder for the accuracy, and finetuning's checkpoint.")],
    device: DeviceOption = "auto",
) -> None:
    """Measure an encoder by classification: a linear probe, or finetuning."""
    from refinesam.training.classify.config import ClassifyConfig
    from refinesam.training.classify.run import classify as run
    from refinesam.training.settings import read_settings

    settings = read_settings(config, ClassifyConfig)
    with _progress() as update:
        result = run(settings, data, output, device, on_progress=update)
    low, high = result.interval
    console.print(
        f"Top-1 {result.top1:.1%} ({result.correct} of {result.images} images, 95 % interval {low:.1%} to {high:.1%}), "
        f"mean over {result.classes} classes {result.class_mean:.1%}; {result.damaged} images could not be read.",
        soft_wrap=True,
    )


@app.command()
def index(data: Annotated[Path, typer.Argument(help="Folder of tar shards, at any depth.")]) -> None:
    """Write beside each tar shard what lies where in it, so that no later run has to look; remote shards need it."""
    from refinesam.errors import DatasetError
    from refinesam.training.sources.image_files import files_below
    from refinesam.training.sources.shards import write_index

    shards = [path for path in files_below(data) if path.suffix.lower() == ".tar"]
    if not shards:
        raise DatasetError(f"{data} holds no tar shard, at no depth.")
    files, damaged = 0, []
    with _progress() as update:
        for done, shard in enumerate(shards, start=1):
            listing = write_index(shard)
            files += len(listing.members)
            damaged += [f"{shard}: {listing.damage}"] if listing.damage else []
            update(shard.name, done, len(shards))
    console.print(f"{len(shards)} shards with {files} files have an index.", soft_wrap=True)
    for line in damaged:
        console.print(f"Damaged: {line}", soft_wrap=True)


def _pretrain(settings: SamiConfig | MaeConfig, data: Path, output: Path, device: str) -> None:
    from refinesam.training.pretrain.run import pretrain

    damaged = 0
    with _progress() as update:

        def on_report(report: PretrainReport) -> None:
            nonlocal damaged
            damaged = report.damaged
            text = f"loss {report.loss:.4g} (mean target {report.mean_target_loss:.4g})"
            update(text if report.stage == "steps" else "caching targets", report.done, report.total)

        path = pretrain(settings, data, output, device, on_report=on_report)
    console.print(f"Encoder: {path}", soft_wrap=True)
    _tell_damaged(damaged, output)


def _tell_damaged(count: int, output: Path) -> None:
    if count:
        console.print(f"{count} images or shards could not be used; {output / 'log.jsonl'} names them.", soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("", total=None)
        yield lambda text, done, total: progress.update(task, completed=done, total=total, description=text)
