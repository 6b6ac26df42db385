"""Long work in a generator operator: progress for the App, and a way to end it from another process."""

from __future__ import annotations

import functools
import queue
import threading
import uuid
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from refinesam import RefineSAMError

if TYPE_CHECKING:
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["cancel", "forget", "in_progress", "run_reporting", "shown_progress", "telling"]

Result = TypeVar("Result")
OnProgress = Callable[[int, int], object]
ShouldStop = Callable[[], bool]

_STORE: Final = "refinesam"
# A run that was killed is no longer listed as in progress after this.
_FORGOTTEN_AFTER_S: Final = 3600


def run_reporting(
    ctx: ExecutionContext, run_key: str, label: str, work: Callable[[OnProgress, ShouldStop], Result]
) -> Generator[Any, None, Result]:
    """Do work on a thread of its own, yield what shows its progress in the App, and return its result.

    Args:
        ctx: the operator's.
        run_key: cancelling this run stops the work after its current batch.
        label: what is being done.
        work: called with on_progress(done, total) and should_stop().
    """
    store = ctx.store(_STORE)
    cancelled_before = store.get(_cancel_key(run_key))
    closed = threading.Event()
    messages: queue.SimpleQueue[tuple[int, int] | BaseException | None] = queue.SimpleQueue()
    results: list[Result] = []

    def should_stop() -> bool:
        return closed.is_set() or store.get(_cancel_key(run_key)) != cancelled_before

    def do() -> None:
        try:
            results.append(work(lambda done, total: messages.put((done, total)), should_stop))
            messages.put(None)
        except BaseException as error:  # Raised again in the operator.
            messages.put(error)

    yield shown_progress(ctx, 0.0, label)
    threading.Thread(target=do, name=f"refinesam {run_key}", daemon=True).start()
    try:
        while (message := messages.get()) is not None:
            if isinstance(message, BaseException):
                raise message
            done, total = message
            store.set(_progress_key(run_key), f"{done} of {total}", ttl=_FORGOTTEN_AFTER_S)
            yield shown_progress(ctx, done / max(total, 1), f"{label}: {done} of {total}")
    finally:
        # Also when the App's page, which asks for the next message, is gone.
        closed.set()
        store.delete(_progress_key(run_key))
    return results[0]


def telling(
    execute: Callable[[Any, ExecutionContext], Iterator[Any]],
) -> Callable[[Any, ExecutionContext], Iterator[Any]]:
    """Let a generator operator's `execute` tell the user of our errors before it raises them."""

    @functools.wraps(execute)
    def executing(operator: Any, ctx: ExecutionContext) -> Iterator[Any]:
        try:
            yield from execute(operator, ctx)
        except RefineSAMError as error:
            yield ctx.ops.notify(str(error), variant="error")
            raise

    return executing


def shown_progress(ctx: ExecutionContext, progress: float, label: str) -> Any:
    """Return what an operator yields to show its progress, 0 to 1; in the background it is written to the operation."""
    if ctx.delegated:
        ctx.set_progress(progress=progress, label=label)
        return None
    return ctx.ops.set_progress(progress=progress, label=label)


def cancel(ctx: ExecutionContext, run_key: str) -> None:
    """Ask whoever compares under this key, in whichever process, to stop after the current batch."""
    ctx.store(_STORE).set(_cancel_key(run_key), uuid.uuid4().hex)


def forget(ctx: ExecutionContext, run_key: str) -> None:
    """Forget what was kept of a run that is deleted; one in progress stops."""
    store = ctx.store(_STORE)
    for key in (_cancel_key(run_key), _progress_key(run_key)):
        store.delete(key)


def in_progress(ctx: ExecutionContext) -> dict[str, str]:
    """Return how far each run in progress is, by its key."""
    store = ctx.store(_STORE)
    prefix = _progress_key("")
    running = {key.removeprefix(prefix): store.get(key) for key in store.list_keys() if key.startswith(prefix)}
    return {key: value for key, value in running.items() if value is not None}


def _cancel_key(run_key: str) -> str:
    return f"cancel:{run_key}"


def _progress_key(run_key: str) -> str:
    return f"progress:{run_key}"
