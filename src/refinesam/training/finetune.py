"""Finetuning of a promptable model: simulated users, best-of-masks loss, resume from where a run was killed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from refinesam.errors import ConfigError, RefineSAMError
from refinesam.models.build import build_model, normalise
from refinesam.models.config import config_named
from refinesam.models.promptable import PromptableModel
from refinesam.training.config import FinetuneConfig
from refinesam.training.data import PromptedCrops, Sample, load_sources
from refinesam.training.loop import JsonLines, WeightAverage, learning_rate, read_checkpoint, write_checkpoint
from refinesam.training.losses import MaskLoss, mask_loss
from refinesam.training.prompts import correction_clicks
from refinesam.training.validate import validate
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


class _From(Sampler[int]):
    """Indices from a start on: a resumed run draws the samples it has not seen."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        return self.stop - self.start


class Finetuning:
    """One run: model, optimiser, moving average and position, all in one checkpoint."""

    def __init__(self, config: FinetuneConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.model = _initial_model(config).to(device)
        self.input_size = self.model.config.input_size
        self.ema = WeightAverage(self.model, config.optim.ema_decay)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.optim.weight_decay), lr=0.0, betas=config.optim.betas
        )
        self.step = 0
        self.seconds = 0.0
        self.bf16 = _use_bf16(config.precision, device)

    def train_step(self, batch: Sample) -> MaskLoss:
        """One optimiser step; returns the first round's loss."""
        optim = self.config.optim
        rate = learning_rate(
            self.step, optim.steps, optim.learning_rate, optim.final_learning_rate, optim.warmup_steps, optim.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Randomness follows the step alone, so a resumed run repeats the uninterrupted one.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            first, total = self._losses(batch, generator)
        if not math.isfinite(total.item()):
            raise RefineSAMError(
                f"The loss is {total.item()} at step {self.step}. Lower optim.learning_rate and run again."
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm)
        self.optimizer.step()
        self.ema.update(self.model)
        self.step += 1
        return first

    def _losses(self, batch: Sample, generator: torch.Generator) -> tuple[MaskLoss, Tensor]:
        prompts, model = self.config.prompts, self.model
        target, points, labels = (batch[k].to(self.device) for k in ("target", "points", "labels"))
        features = model.encode(normalise(batch["image"].to(self.device)))
        logits, iou = model.decode(features, points, labels)
        first = self._loss(logits, iou, target)
        chance = torch.rand(2, generator=generator).tolist()
        if chance[0] >= prompts.correction_probability:
            return first, first.total
        shown = logits.detach().float().take_along_dim(first.chosen[..., None, None, None], dim=2).squeeze(2)
        clicks, click_labels = correction_clicks(shown, target, generator)
        points, labels = torch.cat([points, clicks], dim=2), torch.cat([labels, click_labels], dim=2)
        if chance[1] < prompts.logits_only_probability:
            labels = torch.full_like(labels, -1)
        logits, iou = model.decode(features, points, labels, shown)
        return first, first.total + self._loss(logits, iou, target).total

    def _loss(self, logits: Tensor, iou: Tensor, target: Tensor) -> MaskLoss:
        optim = self.config.optim
        return mask_loss(
            logits.float(),
            iou.float(),
            target,
            focal_weight=optim.focal_weight,
            dice_weight=optim.dice_weight,
            iou_weight=optim.iou_weight,
            other_masks_weight=optim.other_masks_weight,
        )

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
            WeightsError: the file is damaged.
        """
        state = read_checkpoint(path)
        current = self.config.model_dump(mode="json")
        changed = [k for k in ("seed", "model", "data", "prompts", "optim") if state["config"].get(k) != current[k]]
        if changed:
            raise ConfigError(
                f"{path} was written with other settings in {', '.join(changed)}. "
                "Restore them, or choose another output folder."
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


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
        ConfigError, DatasetError, WeightsError: settings, data or a checkpoint don't fit.
    """
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    run = Finetuning(config, chosen)
    loader, val_loader = _loaders(config, data, run)
    checkpoint = output / "checkpoint.pt"
    if checkpoint.exists():
        run.resume(checkpoint)
        loader, _ = _loaders(config, data, run)
    log = JsonLines(output / "log.jsonl")
    run.model.train()
    begun = time.monotonic() - run.seconds
    for batch in loader:
        loss = run.train_step(batch)
        run.seconds = time.monotonic() - begun
        on_step(StepReport(run.step, config.optim.steps, loss.total.item(), loss.chosen_iou.item(), run.seconds))
        last = run.step == config.optim.steps
        if run.step % config.log_every == 0 or last:
            log.write(
                step=run.step,
                seconds=round(run.seconds, 1),
                learning_rate=run.optimizer.param_groups[0]["lr"],
                **{k: getattr(loss, k) for k in ("focal", "dice", "iou_error", "best_iou", "chosen_iou")},
            )
        if run.step % config.checkpoint_every == 0 or last:
            run.save(checkpoint)
        if val_loader is not None and (run.step % config.validate_every == 0 or last):
            log.write(step=run.step, **validate(run.averaged_model(), val_loader, chosen))
    log.close()
    weights = output / "weights.safetensors"
    save_weights(run.averaged_model(), weights, dtype=torch.float16)
    return weights


def _initial_model(config: FinetuneConfig) -> PromptableModel:
    if config.model.init:
        model = load_model(config.model.init)
        if config.model.input_size:
            model.config = replace(model.config, input_size=config.model.input_size)
        return model
    variant = config_named(config.model.variant)
    return build_model(replace(variant, input_size=config.model.input_size or variant.input_size))


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices and kernels only; biases, norms, tokens and position embeddings are left alone."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or "embed" in name or "token" in name
        (free if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _use_bf16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def _loaders(
    config: FinetuneConfig, data: Path, run: Finetuning
) -> tuple[DataLoader[Sample], DataLoader[Sample] | None]:
    batch = config.optim.batch_size
    samples = PromptedCrops(
        load_sources(data, config.data, "train"),
        run.input_size,
        config.data,
        config.prompts,
        config.seed,
        batch * config.optim.steps,
    )
    loader: DataLoader[Sample] = DataLoader(
        samples, batch_size=batch, sampler=_From(run.step * batch, len(samples)), num_workers=config.data.workers
    )
    if not config.data.val_images:
        return loader, None
    return loader, validation_loader(config, data, run.input_size)


def validation_loader(config: FinetuneConfig, data: Path, input_size: int) -> DataLoader[Sample]:
    """Whole validation images, a few of every source, without augmentation."""
    from refinesam.training.validate import WholeImages

    folders = load_sources(data, config.data, "val")
    return DataLoader(WholeImages(folders, input_size, config.data.val_images), batch_size=None)
