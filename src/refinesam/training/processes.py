"""The processes of one run: torchrun's, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from refinesam.errors import ConfigError
from refinesam.loading import resolve_device

__all__ = ["Processes", "run_processes", "without_exchange"]


@dataclass(frozen=True)
class Processes:
    """This process among `count` that do one run together.

    Attributes:
        rank: its number; 0 writes the files.
        device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    def parallel(self, model: nn.Module, all_used: bool = True) -> nn.Module:
        """Wrap a model so that its gradients are the means over all processes.

        Args:
            model: on this process's device.
            all_used: every parameter to train takes part in every step.
        """
        if self.count == 1:
            return model
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=not all_used)

    def part_of(self, batch_size: int, accumulate: int) -> int:
        """Return how many of a batch's images one process works on at a time.

        Raises:
            ConfigError: the batch cannot be divided so.
        """
        if batch_size % (self.count * accumulate):
            raise ConfigError(
                f"optim.batch_size = {batch_size} cannot be divided among {self.count} processes times "
                f"optim.accumulate = {accumulate}. Make it a multiple of their product."
            )
        return batch_size // (self.count * accumulate)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over all processes, the same in each."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def union(self, texts: set[str]) -> set[str]:
        """What any process has."""
        if self.count == 1:
            return texts
        gathered: list[set[str]] = [set()] * self.count
        dist.all_gather_object(gathered, texts)
        return set().union(*gathered)

    def wait(self) -> None:
        """Return when every process is here."""
        if self.count > 1:
            dist.barrier()


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Keep the gradients of a backward pass to this process, to be exchanged with those of a later one."""
    return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()


@contextmanager
def run_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started; without it, this one is alone and needs nothing.

    Args:
        device: "auto", "cpu", "cuda", ...; with several processes "auto" and "cuda" are the GPU of this one's local
            number.

    Raises:
        ConfigError: the device cannot be used.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal():
        raise ConfigError(f"WORLD_SIZE is {text!r} and no number of processes. Unset it, or use torchrun.")
    count = int(text)
    if count <= 1:
        yield Processes(0, 1, resolve_device(device))
        return
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    chosen = resolve_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"WORLD_SIZE is {count}, but the processes do not meet: {error}. Use torchrun.") from error
    try:
        yield Processes(dist.get_rank(), count, chosen)
    finally:
        dist.destroy_process_group()
