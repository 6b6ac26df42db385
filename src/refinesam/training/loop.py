"""What any training run needs: learning-rate schedule, moving average, checkpoints, log."""

from __future__ import annotations

import json
import math
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from refinesam.errors import WeightsError

__all__ = ["JsonLines", "WeightAverage", "learning_rate", "read_checkpoint", "write_checkpoint"]


def learning_rate(
    step: int, steps: int, peak: float, final: float, warmup: int, schedule: Literal["cosine", "linear"]
) -> float:
    """Learning rate of a step in [0, steps): linear warm-up to `peak`, then cosine or linear decay to `final`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return final + (peak - final) * remaining


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


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: a killed run leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `write_checkpoint`.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}). Delete it to start afresh."
        ) from error
    return state


class JsonLines:
    """A log of one JSON object a line, on disk after every line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: float | int | str | Tensor) -> None:
        """Append one line; scalar tensors become numbers."""
        plain = {k: round(v.item(), 6) if isinstance(v, Tensor) else v for k, v in values.items()}
        self._file.write(json.dumps(plain) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
