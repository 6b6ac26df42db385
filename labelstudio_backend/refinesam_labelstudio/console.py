"""What the commands print, and a run over a project from its first task to what the project shows in the end."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from refinesam.hosts import known_weights, write_json
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.agreement import show_version
from refinesam_labelstudio.json_types import JsonView
from refinesam_labelstudio.preannotate import Preannotation, preannotate
from refinesam_labelstudio.progress import progress_of
from refinesam_labelstudio.task_prediction import Answering

__all__ = ["Run", "console", "errors", "finish", "log_to_console", "print_failed", "print_models", "print_reasons"]

MOST_REASONS = 20

console = Console()
errors = Console(stderr=True)


def log_to_console() -> None:
    """Let what is logged be seen."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=errors)])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def print_models(weights: Iterable[str]) -> None:
    """Say what weights are good at, and of those that are not here how they come."""
    for name in weights:
        if (entry := known_weights().get(name)) is not None:
            errors.print(f"Model {name}: {entry.summary}", highlight=False)
            if not entry.is_here:
                step = f"It is downloaded before its first answer. Without network: {entry.manual_step}"
                errors.print(step, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Run:
    """A run over a project: where, by which journal, and how its answers are stored, see `preannotate`."""

    server: ProjectServer
    project: int
    journal: Path
    overwrite_own: bool
    chunk: int

    def tell(self, answering: Answering, version: str, unprompted: str | None) -> Preannotation:
        """Answer all tasks and print what was done.

        Args:
            answering: answers them.
            version: of the predictions.
            unprompted: what tasks have that ask for nothing; None where they have no box and no click.
        """
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is answered is stored
        try:
            with progress_of(version, errors) as on_progress:
                done = preannotate(
                    self.server,
                    self.project,
                    answering,
                    version,
                    self.journal,
                    overwrite_own=self.overwrite_own,
                    chunk=self.chunk,
                    on_progress=on_progress,
                )
        finally:
            signal.signal(signal.SIGTERM, before)
        _print_summary(done, unprompted)
        return done


def finish(
    run: Run, done: Preannotation, show: bool | None, connections: Sequence[JsonView], report: Path | None
) -> None:
    """Let the project show what a run stored and write the report; exit code 130 where the run was interrupted."""
    if done.stored or done.kept:
        told = show_version(run.server, run.project, done.model_version, connections, show)
        console.print(told, markup=False, soft_wrap=True)
    if report is not None:
        write_json(report, done.as_json(), indent=2)
    if done.interrupted:
        errors.print("Interrupted; what was answered is stored. Start the same command again for the rest.")
        raise typer.Exit(130)


def _print_summary(done: Preannotation, unprompted: str | None) -> None:
    table = Table("tasks", "stored", "of these nothing found", "kept", "nothing asked", "failed", "repaired", "seconds")
    lists = (done.unprompted, done.failed, done.repaired)
    numbers = (done.tasks, done.stored, len(done.empty), done.kept, *map(len, lists), done.seconds)
    table.add_row(*map(str, numbers))
    console.print(table)
    if done.whole:
        console.print(done.whole, markup=False, soft_wrap=True)
    if done.unprompted and unprompted:
        console.print(f"{len(done.unprompted)} tasks have {unprompted}.")
    elif done.unprompted:
        console.print(
            f'{len(done.unprompted)} tasks have no box and no click to answer, and "everything" is off: mark objects '
            "in them, or turn it on in the extra params."
        )
    print_failed(done.failed)
    missing = Counter(problem for problems in done.problems.values() for problem in problems)
    print_reasons(f"Tasks whose prediction lacks something: {len(done.problems)}", missing.most_common())
    print_reasons(f"Images of the file that are not used: {len(done.unmatched)}", list(done.unmatched.items()))


def print_reasons(title: str, reasons: Sequence[tuple[str, object]]) -> None:
    """Print reasons, or what has them, as far as they fit a screen."""
    if reasons:
        console.print(title, markup=False)
    for what, how in reasons[:MOST_REASONS]:
        console.print(f"  {what}: {how}", markup=False, highlight=False, soft_wrap=True)
    if len(reasons) > MOST_REASONS:
        console.print(f"  ... and {len(reasons) - MOST_REASONS} more; a report (--report) has all")


def print_failed(failed: Mapping[int, str]) -> None:
    """Print why tasks failed."""
    for task_id, reason in failed.items():
        console.print(f"Task {task_id}: {reason}", markup=False, highlight=False, soft_wrap=True)
