"""Import what `refinesam batch` has written, so far as it is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import fiftyone.operators as foo
from fiftyone.operators import types

from refinesam import ConfigError, RefineSAMError
from refinesam.hosts import BatchResults

from ..batch_import import import_batch
from ..label_runs import Stored, check_label_run, list_label_runs
from ..samples import target_of
from ..schema import Fields
from .comparing import DELEGATE_ABOVE
from .forms import DatasetOperator, ask_masks, counted, execution_options, flag, masks_dir_of, samples_of
from .progress import run_reporting, shown_progress, telling

if TYPE_CHECKING:
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["ImportBatch"]

# Reasons that are told one by one.
TOLD: Final = 3


class ImportBatch(DatasetOperator):
    """Read the results of `refinesam batch` into a field."""

    submit = "Import"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="import_batch",
            label="Import masks of refinesam batch",
            description="Masks, classes and scores from the folder that the command wrote, matched by image file",
            icon="upload",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def resolve_execution_options(self, ctx: ExecutionContext) -> foo.ExecutionOptions:
        """Suggest the background for many samples."""
        many = ctx.dataset is not None and ctx.target_view().count() > 10 * DELEGATE_ABOVE
        return execution_options(many)

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        inputs.view_target(ctx, action_description="Import to")
        description = "What was given to 'refinesam batch' as --output; the job need not be done"
        inputs.str("folder", required=True, label="Folder of the results", description=description)
        ask_masks(ctx, inputs)
        inputs.str(
            "run_key",
            default="batch",
            label="Name of the run",
            description="Its fields start with this; runs of different names stay side by side",
        )
        if ctx.params.get("folder"):
            _check(ctx, inputs)

    @telling
    def execute(self, ctx: ExecutionContext) -> Iterator[Any]:
        """Import, and say what was left out."""
        run_key = ctx.params.get("run_key") or "batch"
        samples, masks_dir = samples_of(ctx), masks_dir_of(ctx.params)
        folder = _folder_of(ctx.params)
        done: Stored = yield from run_reporting(
            ctx,
            run_key,
            "Importing",
            lambda on_progress, should_stop: import_batch(
                samples,
                folder,
                run_key=run_key,
                masks_dir=masks_dir,
                on_progress=on_progress,
                should_stop=should_stop,
            ),
        )
        yield ctx.trigger("reload_dataset")
        yield shown_progress(ctx, 1.0, summary(done))


def summary(done: Stored) -> str:
    """Return in words what was imported, and what was not and why."""
    failed = counted(done.failures)
    said = (
        f"{'Stopped: ' if done.stopped else ''}{done.labels} masks in {done.done} of {done.samples} samples"
        + (f", {done.skipped} samples had theirs before" if done.skipped else "")
        + (f"; failed in the job: {failed}" if failed else "")
    )
    if not done.left_out:
        return f"{said}."
    reasons = Counter(done.left_out.values())
    names = {reason: name for name, reason in list(done.left_out.items())[::-1]}
    told = [
        f"{names[reason]}{f' and {n - 1} others' if n > 1 else ''}: {reason}" for reason, n in reasons.most_common()
    ]
    more = f" There are {len(told) - TOLD} other reasons." if len(told) > TOLD else ""
    return f"{said}; {len(done.left_out)} images were left out. {' '.join(told[:TOLD])}{more}"


def _folder_of(params: dict[str, Any]) -> Path:
    if not params.get("folder"):
        raise ConfigError("Give the folder that was the --output of refinesam batch.")
    return Path(params["folder"]).expanduser()


def _check(ctx: ExecutionContext, inputs: types.Object) -> None:
    """Flag what `import_batch` would refuse, and say how far the job is."""
    try:
        results, run = BatchResults(_folder_of(ctx.params)), Fields(ctx.params.get("run_key") or "batch")
        target = target_of(samples_of(ctx))
        check_label_run(target, run, "batch")
        masks_dir_of(ctx.params)
    except RefineSAMError as error:
        flag(inputs, "problem", "This cannot run yet", str(error))
        return
    count = len(results.shards) + len(results.missing)
    label = f"A job of {results.job['images']} images."
    if results.missing:
        label += (
            f" {len(results.shards)} of its {count} files of results are there so far; import again for the others."
        )
    if run.key in list_label_runs(target.root):
        label += f" The run {run.key} is there: what is new or changed is added."
    inputs.view("job", types.Notice(label=label))
