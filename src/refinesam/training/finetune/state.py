"""The state of a finetuning and its step: model, optimiser, moving average and position, all in one checkpoint."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from refinesam.errors import ConfigError, RefineSAMError
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.promptable import PromptableModel
from refinesam.training.encoder_file import load_encoder
from refinesam.training.finetune.config import NOT_LEARNT, FinetuneConfig
from refinesam.training.finetune.data import Sample
from refinesam.training.finetune.rounds import REPORTED, Draws, Rounds
from refinesam.training.loop import (
    WeightAverage,
    learning_rate,
    make_optimizers,
    read_checkpoint,
    taking_over,
    use_bf16,
    write_checkpoint,
)
from refinesam.training.processes import Processes, without_exchange
from refinesam.training.settings import changed_settings, refuse_changes
from refinesam.weights import load_model

__all__ = ["Finetuning"]


class Finetuning:
    """One run, of which this process does its share."""

    def __init__(self, config: FinetuneConfig, processes: Processes) -> None:
        """Start a run from its first weights.

        Args:
            config: the settings.
            processes: that take part.

        Raises:
            ConfigError: the model to start from doesn't fit, or the batch cannot be divided among the processes and
                their parts.
            WeightsError: the model to start from is damaged.
        """
        optim = config.optim
        self.config, self.processes = config, processes
        self.part = processes.part_of(optim.batch_size, optim.accumulate)
        self.model = _initial_model(config).to(processes.device).train()
        _freeze_others(self.model, config.model.trainable)
        if config.compile:
            self.model.image_encoder.compile()
        # Which tokens are used depends on how many masks are asked for.
        self.parallel = processes.parallel(Rounds(self.model, config), all_used=False)
        self.input_size = self.model.config.input_size
        self.ema = WeightAverage(self.model, optim.ema_decay)
        self.optimizers = make_optimizers(
            self.model, optim.optimizer, optim.weight_decay, optim.betas, optim.rate_factors
        )
        self.step = 0
        self.rate = 0.0
        self.seconds = 0.0
        self.damaged: set[str] = set()
        self.bf16 = use_bf16(config.precision, processes.device)

    def train_step(self, batch: Sample) -> dict[str, float]:
        """One optimiser step.

        Args:
            batch: this process's share of the step's images.

        Returns:
            `REPORTED` of the first round of prompts, the mean over all images.

        Raises:
            RefineSAMError: the loss or its gradient is NaN or infinite; the weights are left as they were.
        """
        optim, device = self.config.optim, self.processes.device
        rate = learning_rate(
            self.step, optim.steps, optim.learning_rate, optim.final_learning_rate, optim.warmup_steps, optim.schedule
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]
            optimizer.zero_grad(set_to_none=True)
        reported = torch.zeros(len(REPORTED), device=device)
        for number in range(optim.accumulate):
            last = number == optim.accumulate - 1
            with nullcontext() if last else without_exchange(self.parallel):
                draws = self._draws(number * self.part)
                part = _part(batch, number * self.part, self.part, device)
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    total, first = self.parallel(part, draws)
                (total / optim.accumulate).backward()
            reported += first
        self.rate = rate
        values = dict(zip(REPORTED, self.processes.mean(reported / optim.accumulate).tolist(), strict=True))
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm).item()
        # What is wrong with a second round shows in the gradient.
        if not math.isfinite(values["total"] + gradient):
            raise RefineSAMError(
                f"At step {self.step} the loss is {values['total']} and its gradient's norm {gradient}. Lower "
                "optim.learning_rate and start again in another output folder: resumed, this run would come here again."
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        return values

    def _draws(self, first: int) -> Draws:
        """Draw for a part of this process's images of the current step."""
        batch_size = self.config.optim.batch_size
        start = self.processes.rank * batch_size // self.processes.count + first
        return Draws.of(self.config.seed, self.step, batch_size, range(start, start + self.part), self.processes.device)

    def averaged_model(self) -> PromptableModel:
        """Return a copy of the model with the moving average of its weights, in evaluation mode."""
        model = build_model(self.model.config).to(self.processes.device)
        model.load_state_dict(self.ema.values)
        return model.eval()

    def save(self, path: Path) -> None:
        """Write everything a resumed run needs.

        Raises:
            RefineSAMError: it cannot be written; the earlier checkpoint is left as it was.
        """
        state: dict[str, object] = {
            "config": self.config.model_dump(mode="json"),
            "step": self.step,
            "seconds": self.seconds,
            "damaged": sorted(self.damaged),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_checkpoint(path, state)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same settings.

        Raises:
            ConfigError: the checkpoint was written under other settings.
            WeightsError: the file is damaged, or not a checkpoint of this version's.
        """
        state = read_checkpoint(path)
        with taking_over(path, "finetuning"):
            # Validated, so that a setting younger than the checkpoint has its default there.
            written = FinetuneConfig.model_validate(state["config"])
            refuse_changes(path, changed_settings(written, self.config, NOT_LEARNT))
            self.model.load_state_dict(state["model"])
            self.ema.load_state_dict(state["ema"])
            for optimizer, of_it in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(of_it)
            self.step, self.seconds = state["step"], state["seconds"]
            self.damaged = set(state["damaged"])


def _part(batch: Sample, first: int, count: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Take some images of a batch, and what is asked of them, to a device."""
    return {
        name: value[first : first + count].to(device)
        for name, value in batch.items()
        if isinstance(value, torch.Tensor)
    }


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
