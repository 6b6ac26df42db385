"""Pretraining of a light image encoder, by SAMI or MAE: run, killed and resumed, in one process or torchrun's."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from refinesam.models.image_encoder import PATCH_SIZE
from refinesam.training.pretrain.config import MaeConfig, SamiConfig
from refinesam.training.pretrain.data import Views, view_batches
from refinesam.training.pretrain.state import Pretraining, StepResult
from refinesam.training.pretrain.teacher import CachedTargets, Teacher, cache_targets, load_teacher
from refinesam.training.processes import Processes, run_processes
from refinesam.training.run_log import Write, run_log, write_nothing, writing_to
from refinesam.training.sources.image_files import find_images

__all__ = ["PretrainReport", "pretrain"]


@dataclass(frozen=True)
class PretrainReport:
    """Progress of a run.

    Attributes:
        stage: "targets" while they are being cached, in shards; "steps" from then on.
        done, total: shards or steps.
        loss, mean_target_loss: of the step, see `refinesam.training.pretrain.state.StepResult`.
        damaged: images that could not be read up to now.
        seconds: that training took up to now.
    """

    stage: str
    done: int
    total: int
    loss: float = 0.0
    mean_target_loss: float = 0.0
    damaged: int = 0
    seconds: float = 0.0


OnReport = Callable[[PretrainReport], None]


def pretrain(
    config: SamiConfig | MaeConfig,
    data: Path,
    output: Path,
    device: str = "auto",
    on_report: OnReport = lambda report: None,
) -> Path:
    """Run, or resume, a pretraining.

    Args:
        config: the settings of SAMI or of MAE.
        data: folder with the images, at any depth, or tar shards of them.
        output: folder for `checkpoint.pt`, `log.jsonl` and the resulting `encoder.safetensors`.
        device: "auto", "cpu", "cuda", ...
        on_report: called after every shard of cached targets and every step, in the first process.

    Returns:
        Path of the encoder, as `refinesam.training.encoder_file.load_encoder` takes it.

    Raises:
        ConfigError: the device or the division of the batch doesn't fit, or the folder holds a run of other settings.
        DatasetError: the data folder is missing, or without usable images.
        WeightsError: the teacher or the checkpoint is damaged.
        MissingExtraError: TensorBoard is asked for and not installed.
        RefineSAMError: the loss became NaN or infinite, or the disk is full; the last checkpoint is left as it was.
    """
    with writing_to(output), run_processes(device) as processes:
        views = Views(find_images(data, config.data.folders), config.data, config.student.input_size, config.seed)
        targets = _targets(config, views, processes, on_report) if isinstance(config, SamiConfig) else ()
        run = Pretraining(config, len(views.images), processes, *targets)
        checkpoint = output / "checkpoint.pt"
        if checkpoint.exists():
            run.resume(checkpoint)
        first = processes.rank == 0
        # Opened by one process; the others compute.
        with run_log(output, run.step, config.tensorboard) if first else nullcontext(write_nothing) as write:
            _train(run, views, checkpoint, write, on_report if first else lambda report: None)
        if first:
            run.export(output / "encoder.safetensors")
    return output / "encoder.safetensors"


def _train(run: Pretraining, views: Views, checkpoint: Path, write: Write, on_report: OnReport) -> None:
    config, processes = run.config, run.processes
    seen = set(views.images.damaged_shards)
    with view_batches(
        views, (run.step, run.steps), config.optim.batch_size, run.part, processes.rank, processes.count
    ) as parts:
        begun = time.monotonic() - run.seconds
        while run.step < run.steps:
            result = run.train_step(parts)
            seen |= result.damaged
            run.seconds = time.monotonic() - begun
            last = run.step == run.steps
            logs = last or run.step % config.log_every == 0
            saves = last or run.step % config.checkpoint_every == 0
            if logs or saves:
                new = processes.union(seen) - run.damaged
                run.damaged |= new
                for line in sorted(new):
                    write(run.step, damaged=line)
            if logs:
                write(run.step, **_metrics(run, result))
            # Last, so that a run resumed here has all of this step in its log.
            if saves and processes.rank == 0:
                run.save(checkpoint)
            on_report(
                PretrainReport(
                    "steps",
                    run.step,
                    run.steps,
                    result.loss,
                    result.mean_target_loss,
                    len(run.damaged | seen),
                    run.seconds,
                )
            )


def _metrics(run: Pretraining, result: StepResult) -> dict[str, float]:
    return {
        "seconds": round(run.seconds, 1),
        "epoch": round(run.step * run.config.optim.batch_size / run.images, 4),
        "learning_rate": result.learning_rate,
        "loss": round(result.loss, 6),
        "mean_target_loss": round(result.mean_target_loss, 6),
        "gradient_norm": round(result.gradient_norm, 6),
        "damaged_images": len(run.damaged),
    }


def _targets(config: SamiConfig, views: Views, processes: Processes, on_report: OnReport) -> tuple[int, Teacher | None]:
    """Return the targets' channels and their maker: the teacher, or None when views bring them from the cache."""
    section = config.teacher
    teacher, digest = load_teacher(section, config.student.input_size)
    if not section.cache:
        return teacher.dim, teacher.to(processes.device)
    recipe = {
        "teacher": digest,
        "target": section.target,
        "teacher_input_size": section.input_size,
        "normalise_patches": section.normalise_patches,
        "grid": config.student.input_size // PATCH_SIZE,
    }
    cache = CachedTargets(Path(section.cache), recipe, views)

    def on_shard(done: int, total: int) -> None:
        if processes.rank == 0:
            on_report(PretrainReport("targets", done, total))

    with writing_to(cache.folder):
        cache_targets(
            cache, teacher.to(processes.device), processes.device, (processes.rank, processes.count), on_shard
        )
    processes.wait()
    views.targets = cache
    return teacher.dim, None
