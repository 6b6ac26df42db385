"""What any training run needs: learning-rate schedule, moving average, checkpoints, log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from refinesam.errors import ConfigError, RefineSAMError, WeightsError
from refinesam.files import replacing
from refinesam.training.muon import Muon

__all__ = [
    "JsonLines",
    "WeightAverage",
    "learning_rate",
    "make_optimizers",
    "parameter_groups",
    "read_checkpoint",
    "taking_over",
    "use_bf16",
    "write_checkpoint",
]


def learning_rate(
    step: int, steps: int, peak: float, final: float, warmup: int, schedule: Literal["cosine", "linear"]
) -> float:
    """Learning rate of a step in [0, steps): linear warm-up to `peak`, then cosine or linear decay to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return final + (peak - final) * remaining


def parameter_groups(
    model: nn.Module, weight_decay: float, rate_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Divide what is trained for an optimiser.

    Matrices and kernels decay, all else (norms, positions) does not. A group's `rate_factor` says how its learning rate
    compares to the run's.

    Args:
        model: with the parameters.
        weight_decay: of matrices and kernels.
        rate_factors: by the start of parameters' names; the longest one counts, 1 where none does.
    """
    kernels = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    groups: dict[tuple[bool, float], list[Tensor]] = {(True, 1.0): [], (False, 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in kernels, _rate_factor(name, rate_factors or {})), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "rate_factor": factor}
        for (decays, factor), parameters in groups.items()
    ]


def _rate_factor(name: str, rate_factors: Mapping[str, float]) -> float:
    starts = [start for start in rate_factors if name.startswith(start)]
    return rate_factors[max(starts, key=len)] if starts else 1.0


def make_optimizers(
    model: nn.Module,
    name: Literal["adamw", "muon"],
    weight_decay: float,
    betas: tuple[float, float],
    rate_factors: Mapping[str, float] | None = None,
) -> list[torch.optim.Optimizer]:
    """Make what trains a model: AdamW, or Muon for the linear layers and AdamW for all else.

    Args:
        model: to be trained.
        name: of the optimiser.
        weight_decay: of both.
        betas: of AdamW.
        rate_factors: see `parameter_groups`.
    """
    groups = parameter_groups(model, weight_decay, rate_factors)
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear) and name == "muon"}
    by_muon: list[dict[str, Any]] = []
    by_adamw: list[dict[str, Any]] = []
    for group in groups:
        for chosen, inside in ((by_muon, True), (by_adamw, False)):
            parameters = [parameter for parameter in group["params"] if (id(parameter) in linear) == inside]
            if parameters:
                chosen.append({**group, "params": parameters})
    muon = [Muon(by_muon, lr=0.0)] if by_muon else []
    return [*muon, torch.optim.AdamW(by_adamw, lr=0.0, betas=betas)] if by_adamw else [*muon]


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether a forward pass runs in bfloat16: "auto" on a GPU that has it, "fp32" never, others always."""
    if precision == "auto":
        # Without the hardware torch emulates it, slower than float32.
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision != "fp32"


class WeightAverage:
    """Exponential moving average of a model's parameters and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model; early updates move further, so that the start is forgotten."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            self.values[name].lerp_(value, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"updates": self.updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.updates = state["updates"]
        for name, value in state["values"].items():
            self.values[name].copy_(value)


def write_checkpoint(path: Path, state: Mapping[str, object]) -> None:
    """Write a checkpoint atomically: a killed run leaves the old file or the new one, never half of one.

    Raises:
        RefineSAMError: it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch hides the system's error in one of its own
        raise RefineSAMError(
            f"The checkpoint {path} cannot be written ({error}). Make room and start again: the run goes on from "
            "the last one, which is as it was."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `write_checkpoint`. Nothing that the file holds is executed.

    Raises:
        WeightsError: the file is damaged, or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged bytes may make the reader raise anything.
        raise WeightsError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}). Delete it to start afresh."
        ) from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path} is no checkpoint but a {type(state).__name__}. Delete it to start afresh.")
    return state


@contextmanager
def taking_over(path: Path, what: str) -> Iterator[None]:
    """Say that a checkpoint is none of `what`, whatever is missing or misplaced in it.

    Raises:
        WeightsError: in place of what the block runs into.
    """
    try:
        yield
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{path} is no checkpoint of this version's {what} ({type(error).__name__} while taking it over). "
            "Choose another output folder."
        ) from error


class JsonLines:
    """A log of one JSON object a line, on disk after every line, each with the `step` it was written at."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        """Open a log, without the lines of steps that were lost with the run that did them and are done again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = "".join(_lines_until(path, resumed_at))
            with replacing(path) as temporary:
                temporary.write_text(kept, "utf-8")
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, step: int, **values: float | int | str | Tensor) -> None:
        """Append one line; scalar tensors become numbers."""
        plain = {k: round(v.item(), 6) if isinstance(v, Tensor) else v for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")


def _lines_until(path: Path, step: int) -> Iterator[str]:
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # the last line of a run that was killed while writing it
            continue
        if values["step"] <= step:
            yield line + "\n"
