"""A process's share of every step's batch, from a data set whose samples are known by their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader, Sampler

__all__ = ["StepShares", "iterating"]


class StepShares(Sampler[int]):
    """The numbers of one process's share of each step's batch, step after step.

    Step s has the numbers s * batch_size to (s + 1) * batch_size - 1, whatever the number of processes, so that neither
    it nor a resumption changes what is learnt.
    """

    def __init__(self, steps: range, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        """Number the samples.

        Args:
            steps: to be given.
            batch_size: of all processes; a multiple of `processes`.
            rank: of this process.
            processes: how many there are.
        """
        self.steps, self.batch_size = steps, batch_size
        self.share = range(rank * batch_size // processes, (rank + 1) * batch_size // processes)

    def __len__(self) -> int:
        return len(self.steps) * len(self.share)

    def __iter__(self) -> Iterator[int]:
        return (step * self.batch_size + place for step in self.steps for place in self.share)


@contextmanager
def iterating(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Iterate once; the worker processes end with the block, also when an error leaves it.

    Left alone, they would live as long as the error's traceback, which holds the loader's iterator.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        getattr(batches, "_shutdown_workers", lambda: None)()
