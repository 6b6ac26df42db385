"""Cancel a run in progress; delete a run."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import fiftyone.operators as foo
from fiftyone.operators import types

from ..deletion import Contents, contents, delete_run
from ..schema import Fields
from .forms import DatasetOperator, choose_run, flag
from .progress import cancel, forget, in_progress

if TYPE_CHECKING:
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["Cancel", "DeleteRun", "listed"]


class Cancel(DatasetOperator):
    """Stop a comparison or a search, in whichever process it runs; what it stored stays."""

    submit = "Stop"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="cancel",
            label="Stop work in progress",
            description="A comparison or search ends after its current batch; the same again goes on from there",
            icon="cancel",
            dynamic=True,
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        running = in_progress(ctx)
        run_key = choose_run(ctx, inputs, of_labels=True)
        if run_key is not None:
            state = f"{running[run_key]} samples are done." if run_key in running else "No progress was reported yet."
            inputs.view("state", types.Notice(label=state))

    def execute(self, ctx: ExecutionContext) -> dict[str, Any]:
        """Ask it to stop."""
        cancel(ctx, ctx.params["run_key"])
        ctx.ops.notify(f"{ctx.params['run_key']} stops after its current batch.")
        return {"run_key": ctx.params["run_key"]}


class DeleteRun(DatasetOperator):
    """Delete a run: its fields, tags, views and record."""

    submit = "Delete"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="delete_run",
            label="Delete a run",
            description="What it made: fields, attributes, tags, saved views and mask files; nothing else",
            icon="delete",
            dynamic=True,
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        run_key = choose_run(ctx, inputs, of_labels=True)
        if run_key is not None:
            inputs.md(listed(contents(ctx.dataset, Fields(run_key))), name="contents")
            inputs.bool("sure", default=False, label="Yes, delete its masks and results", view=types.CheckboxView())
            if not ctx.params.get("sure"):
                flag(inputs, "not_sure", "This cannot be undone", "Tick the box to delete the run.")

    def execute(self, ctx: ExecutionContext) -> dict[str, Any]:
        """Delete it."""
        shown = [ctx.request_params.get(name) for name in ("view", "view_name", "filters", "extended")]
        deleted = delete_run(ctx.dataset, Fields(ctx.params["run_key"]))
        forget(ctx, ctx.params["run_key"])
        used, saved = json.dumps(shown, default=str), ctx.request_params.get("view_name")
        gone = any(name in used for name in (*deleted.fields, *deleted.attributes))
        if gone or (saved and not ctx.dataset.has_saved_view(saved)):
            # A view that needs what is gone, or that is gone itself; any other stays.
            ctx.ops.clear_view()
            ctx.ops.clear_sidebar_filters()
        ctx.ops.reload_dataset()
        return {"run_key": ctx.params["run_key"]}


def listed(deleted: Contents) -> str:
    """Return in Markdown what deleting a run deletes, and what stays."""
    lines = [
        ("Fields", deleted.fields),
        ("Attributes on other labels", deleted.attributes),
        ("Saved views", deleted.views),
        ("Evaluations of FiftyOne", deleted.evaluations),
        ("Tags of samples", deleted.tags),
    ]
    gone = [f"- {name}: {', '.join(f'`{value}`' for value in values)}" for name, values in lines if values]
    if deleted.files:
        folder = os.path.commonpath([file.parents[1] for file in deleted.files])
        gone.append(f"- Mask files: {len(deleted.files)} in `{folder}`")
    if deleted.added:
        gone.append(f"- **With them, what was added to these fields**: {', '.join(deleted.added)}")
    text = "This is deleted:\n" + "\n".join(gone or ["- The record of the run"])
    return text + ("\n\nThis stays:\n" + "\n".join(f"- {line}" for line in deleted.stays) if deleted.stays else "")
