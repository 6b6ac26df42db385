"""Finetuning of a promptable model: simulated users, best-of-masks loss, resume from where a run was killed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refinesam.errors import ConfigError, RefineSAMError, WeightsError
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.promptable import PromptableModel
from refinesam.predictor import resolve_device
from refinesam.training.config import FinetuneConfig
from refinesam.training.data import PromptedCrops, Sample, batches_from, load_sources
from refinesam.training.encoder_file import load_encoder
from refinesam.training.loop import (
    JsonLines,
    WeightAverage,
    learning_rate,
    parameter_groups,
    read_checkpoint,
    use_bf16,
    write_checkpoint,
)
from refinesam.training.losses import MaskLoss
from refinesam.training.rounds import round_losses
from refinesam.training.validate import WholeImages, validate
from refinesam.weights import load_model, save_weights

__all__ = ["Finetuning", "StepReport", "finetune"]


@dataclass(frozen=True)
class StepReport:
    """Progress of a run: `step` of `steps` done, with that step's loss."""

    step: int
    steps: int
    loss: float
    iou: float
    seconds: float


class Finetuning:
    """One run: model, optimiser, moving average and position, all in one checkpoint."""

    def __init__(self, config: FinetuneConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model = _initial_model(config).to(device).train()
        _freeze_others(self.model, config.model.trainable)
        self.input_size = self.model.config.input_size
        self.ema = WeightAverage(self.model, config.optim.ema_decay)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config.optim.weight_decay), lr=0.0, betas=config.optim.betas
        )
        self.step = 0
        self.seconds = 0.0
        self.bf16 = use_bf16(config.precision, device)

    def train_step(self, batch: Sample) -> MaskLoss:
        """One optimiser step; returns the first round's loss.

        Raises:
            RefineSAMError: the loss or its gradient is NaN or infinite; the weights are left as they were.
        """
        optim = self.config.optim
        rate = learning_rate(
            self.step, optim.steps, optim.learning_rate, optim.final_learning_rate, optim.warmup_steps, optim.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Randomness follows the step alone, so a resumed run repeats the uninterrupted one.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            first, total = round_losses(self.model, batch, self.config, generator, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm)
        if not math.isfinite(total.item() + gradient.item()):
            raise RefineSAMError(
                f"At step {self.step} the loss is {total.item()} and its gradient's norm {gradient.item()}. Lower "
                "optim.learning_rate and start again in another output folder: resumed, this run would come here again."
            )
        self.optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        return first

    def metrics(self, loss: MaskLoss) -> dict[str, float | Tensor]:
        """Return what the log says about a step."""
        return {
            "seconds": round(self.seconds, 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **{name: getattr(loss, name) for name in ("focal", "dice", "iou_error", "best_iou", "chosen_iou")},
        }

    def averaged_model(self) -> PromptableModel:
        """Return a copy of the model with the moving average of its weights, in evaluation mode."""
        model = build_model(self.model.config).to(self.device)
        model.load_state_dict(self.ema.values)
        return model.eval()

    def save(self, path: Path) -> None:
        """Write everything a resumed run needs."""
        state: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        write_checkpoint(path, state)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same configuration.

        Raises:
            ConfigError: the checkpoint was written under another configuration.
            WeightsError: the file is damaged, or not a checkpoint of this version's.
        """
        state = read_checkpoint(path)
        try:
            # Validated, so that a setting younger than the checkpoint has its default there.
            written, current = _recipe(FinetuneConfig.model_validate(state["config"])), _recipe(self.config)
            if changed := [key for key, value in current.items() if written[key] != value]:
                raise ConfigError(
                    f"{path} was written with other values of {', '.join(changed)}. "
                    "Restore them, or choose another output folder."
                )
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{path} is no checkpoint of this version's finetuning ({type(error).__name__} while taking it over). "
                "Choose another output folder."
            ) from error


def finetune(
    config: FinetuneConfig,
    data: Path,
    output: Path,
    device: str = "auto",
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> Path:
    """Run, or resume, a finetuning.

    Args:
        config: the settings.
        data: folder with one folder per source.
        output: folder for `checkpoint.pt`, `log.jsonl` and the resulting `weights.safetensors`.
        device: "auto", "cpu", "cuda", ...
        on_step: called after every step.

    Returns:
        Path of the weights: the moving average, fp16 safetensors.

    Raises:
        ConfigError: the model to start from or the device doesn't fit, or the folder holds a run of other settings.
        DatasetError: a source is missing, malformed or without usable objects.
        WeightsError: the model to start from or the checkpoint is damaged.
        RefineSAMError: the loss became NaN or infinite; the last checkpoint is left as it was.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The results cannot go to {output}: {error.strerror}. Name another folder.") from error
    optim, checkpoint = config.optim, output / "checkpoint.pt"
    run = Finetuning(config, resolve_device(device))
    if checkpoint.exists():
        run.resume(checkpoint)
    samples, val_samples = _samples(config, data, run.input_size)
    seen = run.step * optim.batch_size
    with (
        JsonLines(output / "log.jsonl", run.step) as log,
        batches_from(samples, seen, optim.batch_size, config.data.workers) as batches,
    ):
        begun = time.monotonic() - run.seconds
        for batch in batches:
            loss = run.train_step(batch)
            run.seconds = time.monotonic() - begun
            on_step(StepReport(run.step, optim.steps, loss.total.item(), loss.chosen_iou.item(), run.seconds))
            last = run.step == optim.steps
            if last or run.step % config.log_every == 0:
                log.write(run.step, **run.metrics(loss))
            if len(val_samples) and (last or run.step % config.validate_every == 0):
                log.write(run.step, **validate(run.averaged_model(), val_samples, run.device))
            # Last, so that a run resumed here has all of this step in its log.
            if last or run.step % config.checkpoint_every == 0:
                run.save(checkpoint)
    weights = output / "weights.safetensors"
    save_weights(run.averaged_model(), weights, dtype=torch.float16)
    return weights


def _samples(config: FinetuneConfig, data: Path, input_size: int) -> tuple[PromptedCrops, WholeImages]:
    """Return all samples of a run, and those it is validated on, which may be none."""
    count = config.optim.batch_size * config.optim.steps
    train = load_sources(data, config.data, "train")
    val = load_sources(data, config.data, "val") if config.data.val_images else []
    return (
        PromptedCrops(train, input_size, config.data, config.prompts, config.seed, count),
        WholeImages(val, input_size, config.data.val_images),
    )


def _recipe(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings that decide what is learnt, by their names in TOML."""
    sections = config.model_dump(include={"model", "data", "prompts", "optim"})
    named = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    return {"seed": config.seed, **named}


def _initial_model(config: FinetuneConfig) -> PromptableModel:
    section = config.model
    model = _random_model(config) if not section.init else load_model(section.init)
    if model.config.name != section.variant:
        raise ConfigError(
            f"model.init = {section.init!r} is of the variant {model.config.name}, model.variant is {section.variant}. "
            "Make them agree, or leave model.init out."
        )
    if section.encoder_init:
        load_encoder(model, section.encoder_init)
    if section.input_size:
        # All of the weights fit any size: the position embedding is resized when it is used.
        model.config = replace(model.config, input_size=section.input_size)
    return model


def _random_model(config: FinetuneConfig) -> PromptableModel:
    variant = config_named(config.model.variant)
    # The caller's own random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        return build_model(replace(variant, input_size=config.model.input_size or variant.input_size))


def _freeze_others(model: nn.Module, trainable: str) -> None:
    names = [name for name, _ in model.named_parameters()]
    if not any(name.startswith(trainable) for name in names):
        parts = sorted({name.partition(".")[0] for name in names})
        raise ConfigError(f"model.trainable = {trainable!r} is the start of no parameter; try {', '.join(parts)}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trainable))
