"""The state of a pretraining and its step: model, optimiser, moving average and position, all in one checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from refinesam.errors import RefineSAMError
from refinesam.models.build import build_model, normalise
from refinesam.models.config import config_named
from refinesam.models.image_encoder import PATCH_SIZE, LightEncoder
from refinesam.training.encoder_file import pretrained_keys, save_encoder
from refinesam.training.loop import (
    WeightAverage,
    learning_rate,
    parameter_groups,
    read_checkpoint,
    taking_over,
    use_bf16,
    write_checkpoint,
)
from refinesam.training.pretrain.config import NOT_LEARNT, MaeConfig, SamiConfig
from refinesam.training.pretrain.data import View
from refinesam.training.pretrain.mae import PIXELS_PER_PATCH, Mae, pixel_targets
from refinesam.training.pretrain.masked import DecoderShape, Masking, random_masking
from refinesam.training.pretrain.sami import Sami
from refinesam.training.pretrain.teacher import Teacher
from refinesam.training.processes import Processes, without_exchange
from refinesam.training.settings import changed_settings, refuse_changes

__all__ = ["Pretraining", "StepResult"]


@dataclass(frozen=True)
class StepResult:
    """What a step came to, over all processes.

    Attributes:
        loss: of equation 2 for SAMI; over the masked patches for MAE.
        mean_target_loss: the same of always predicting the mean of the targets at hand: what a model that learnt
            nothing about an image would have.
        gradient_norm: before clipping.
        learning_rate: of the step.
        damaged: images that this process could not read, "name: reason".
    """

    loss: float
    mean_target_loss: float
    gradient_norm: float
    learning_rate: float
    damaged: frozenset[str]


class Pretraining:
    """One run of SAMI or MAE."""

    def __init__(
        self,
        config: SamiConfig | MaeConfig,
        images: int,
        processes: Processes,
        target_dim: int = PIXELS_PER_PATCH,
        teacher: Teacher | None = None,
    ) -> None:
        """Start a run from random weights.

        Args:
            config: of either method.
            images: how many there are, which makes epochs of steps.
            processes: that take part.
            target_dim: channels of a patch's target.
            teacher: of SAMI, on the device; None where views bring its targets along, and for MAE.

        Raises:
            ConfigError: the batch cannot be divided among the processes and their parts.
        """
        optim = config.optim
        self.config, self.images, self.processes, self.teacher = config, images, processes, teacher
        self.steps = max(1, round(optim.epochs * images / optim.batch_size))
        self.warmup_steps = round(optim.warmup_epochs * images / optim.batch_size)
        self.part = processes.part_of(optim.batch_size, optim.accumulate)
        self.grid = config.student.input_size // PATCH_SIZE
        # The caller's own random numbers stay as they were.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.student = build_model(config_named(config.student.variant))
            self.model = self._build(target_dim).to(processes.device).train()
        trained = set(pretrained_keys(self.student))
        for name, parameter in self.student.image_encoder.named_parameters():
            parameter.requires_grad_(name in trained)
        if config.compile:
            self.model.compile()
        self.parallel = processes.parallel(self.model)
        self.ema = WeightAverage(self.model, optim.ema_decay) if optim.ema_decay else None
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, optim.weight_decay), lr=0.0, betas=optim.betas)
        self.step = 0
        self.seconds = 0.0
        self.damaged: set[str] = set()
        self.bf16 = use_bf16(config.precision, processes.device)

    def _build(self, target_dim: int) -> Sami | Mae:
        encoder = self.student.image_encoder
        assert isinstance(encoder, LightEncoder)  # so are all of pretrain.config.STUDENTS
        decoder = DecoderShape(**self.config.decoder.model_dump())
        if isinstance(self.config, MaeConfig):
            return Mae(encoder, decoder, self.grid)
        return Sami(encoder, decoder, target_dim, self.grid)

    def train_step(self, parts: Iterator[View]) -> StepResult:
        """One optimiser step on the next `optim.accumulate` parts.

        Raises:
            RefineSAMError: the loss or its gradient is NaN or infinite; the weights are left as they were.
        """
        optim, device = self.config.optim, self.processes.device
        rate = learning_rate(
            self.step, self.steps, optim.learning_rate, optim.final_learning_rate, self.warmup_steps, optim.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        sums, damaged = torch.zeros(2, device=device), set()
        for number, masking in enumerate(self._maskings()):
            views = next(parts)
            damaged |= {line for lines in views["damaged"] for line in lines.splitlines()}
            last = number == optim.accumulate - 1
            with nullcontext() if last else without_exchange(self.parallel):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    pixels = normalise(views["image"].to(device))
                    target = self._target(views, pixels)
                    loss = self.parallel(pixels, target, masking.to(device))
                (loss / optim.accumulate).backward()
            sums += torch.stack([loss.detach(), (target - target.mean((0, 1))).square().mean()])
        loss, mean_target_loss = self.processes.mean(sums / optim.accumulate).tolist()
        gradient = nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm or math.inf).item()
        if not math.isfinite(loss + gradient):
            raise RefineSAMError(
                f"At step {self.step} the loss is {loss} and its gradient's norm {gradient}. Lower optim.learning_rate "
                "or set optim.clip_norm, and start again in another output folder: resumed, this run would come here "
                "again."
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.step += 1
        return StepResult(loss, mean_target_loss, gradient, rate, frozenset(damaged))

    def _maskings(self) -> Iterator[Masking]:
        """Give this process's masks of the current step, part by part.

        They follow the step and the place in the batch alone, so that neither a resumption nor another number of
        processes changes them.
        """
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        noise = torch.rand(self.config.optim.batch_size, self.grid**2, generator=generator)
        share = noise.chunk(self.processes.count)[self.processes.rank]
        return (random_masking(part, self.config.student.mask_ratio) for part in share.split(self.part))

    def _target(self, views: View, pixels: Tensor) -> Tensor:
        if isinstance(self.config, MaeConfig):
            return pixel_targets(pixels, self.config.pixels.normalise_patches)
        if "target" in views:
            return views["target"].to(pixels.device).float()
        assert self.teacher is not None
        return self.teacher(pixels)

    def save(self, path: Path) -> None:
        """Write everything a resumed run needs.

        Raises:
            RefineSAMError: it cannot be written; the earlier checkpoint is left as it was.
        """
        state: dict[str, object] = {
            "config": self.config.model_dump(mode="json"),
            "images": self.images,
            "step": self.step,
            "seconds": self.seconds,
            "damaged": sorted(self.damaged),
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
        }
        write_checkpoint(path, state)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint of the same settings and as many images.

        Raises:
            ConfigError: the checkpoint was written under other settings.
            WeightsError: the file is damaged, or not a checkpoint of this method's.
        """
        state = read_checkpoint(path)
        with taking_over(path, type(self.model).__name__):
            # Validated, so that a setting younger than the checkpoint has its default there.
            written = type(self.config).model_validate(state["config"])
            changed = changed_settings(written, self.config, NOT_LEARNT)
            if state["images"] != self.images:
                changed.append(f"the data, which had {state['images']} images and have {self.images}")
            refuse_changes(path, changed)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
            self.step, self.seconds, self.damaged = state["step"], state["seconds"], set(state["damaged"])

    def export(self, path: Path) -> None:
        """Write the student's encoder; of a moving average, it is what the model has afterwards, too."""
        if self.ema:
            self.model.load_state_dict(self.ema.values)
        save_encoder(self.student, path, type(self.model).__name__.lower())
