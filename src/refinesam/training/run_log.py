"""The log of a run: JSON lines, and on request the same for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from refinesam.errors import ConfigError, MissingExtraError, RefineSAMError
from refinesam.training.loop import JsonLines

__all__ = ["Write", "run_log", "write_nothing", "writing_to"]

# Called with the step and named values.
Write = Callable[..., None]


@contextmanager
def run_log(output: Path, resumed_at: int, tensorboard: bool) -> Iterator[Write]:
    """Open `log.jsonl`, and a folder `tensorboard` beside it; what a lost run wrote after `resumed_at` is dropped.

    Raises:
        MissingExtraError: TensorBoard is asked for and not installed.
    """
    writer = _summary_writer(output / "tensorboard", resumed_at) if tensorboard else None
    with JsonLines(output / "log.jsonl", resumed_at) as lines:

        def write(step: int, **values: float | int | str) -> None:
            lines.write(step, **values)
            if writer is not None:
                for name, value in values.items():
                    add = writer.add_text if isinstance(value, str) else writer.add_scalar
                    add(name, value, step)

        try:
            yield write
        finally:
            if writer is not None:
                writer.close()


def write_nothing(step: int, **values: float | int | str) -> None:
    """Leave the log to the first process."""


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Make a folder, and explain why files in it cannot be written.

    Raises:
        ConfigError: it cannot be made.
        RefineSAMError: in place of the system's errors while it is written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The results cannot go to {folder}: {error.strerror}. Name another folder.") from error
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RefineSAMError(
            f"Writing to {folder} failed ({error}). Make room there and start again: what was finished is kept."
        ) from error


def _summary_writer(folder: Path, resumed_at: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "train") from error
    return SummaryWriter(str(folder), purge_step=resumed_at + 1)
