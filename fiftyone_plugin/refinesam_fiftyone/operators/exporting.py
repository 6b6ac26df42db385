"""Export a run: tables, COCO masks, and tags for those who correct labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import fiftyone.operators as foo
from fiftyone.operators import types

from ..export import export_coco, export_rows, tag_for_relabelling
from ..figures import BUCKET_NAMES
from .forms import DatasetOperator, choose, choose_run, flag, samples_of, writable_parent

if TYPE_CHECKING:
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["Export"]

_WHAT: Final = (
    ("csv", "Table of objects, CSV"),
    ("parquet", "Table of objects, Parquet"),
    ("coco_amr", "Masks after refinement, COCO"),
    ("coco_baseline", "First masks, COCO"),
    ("tags", "Tags on labels and samples for relabelling"),
)
_WORST: Final = "worst"


class Export(DatasetOperator):
    """Write a run's results to a file, or tag what should be labelled again."""

    submit = "Export"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="export",
            label="Export masks and results",
            description="As a table or COCO masks, or as tags for relabelling",
            icon="download",
            dynamic=True,
            allow_delegated_execution=True,
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        inputs.view_target(ctx, action_description="Export")
        ctx.target_view()
        run_key = choose_run(ctx, inputs)
        choose(inputs, "what", _WHAT, radio=True, label="What", default="csv")
        if ctx.params.get("what") == "tags":
            choices = ((_WORST, "The worst objects"), *BUCKET_NAMES.items())
            choose(inputs, "which", choices, label="Which objects", default=_WORST)
            if ctx.params.get("which", _WORST) == _WORST:
                inputs.int("number", min=1, default=50, label="How many")
            inputs.str("tag", default="relabel", label="Tag")
        else:
            _ask_file(ctx, inputs, run_key or "refinesam")

    def execute(self, ctx: ExecutionContext) -> dict[str, Any]:
        """Write it, and say where it is and how much."""
        samples, params = samples_of(ctx), ctx.params
        run_key, what = params["run_key"], params.get("what") or "csv"
        if what == "tags":
            which = params.get("which") or _WORST
            chosen = {"worst": params.get("number") or 50} if which == _WORST else {"bucket": which}
            tagged = tag_for_relabelling(samples, run_key=run_key, tag=params.get("tag") or "relabel", **chosen)
            ctx.ops.reload_dataset()
            return {"done": f"Tagged {tagged.objects} objects in {tagged.samples} samples."}
        path = Path(params["path"]).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        if what.startswith("coco_"):
            export = export_coco(samples, path, run_key=run_key, masks="amr" if what == "coco_amr" else "baseline")
            return {"done": f"Wrote {path}. Its images are named by their paths in {export.folder}."}
        else:
            export_rows(samples, path, run_key=run_key)
        return {"done": f"Wrote {path}."}

    def resolve_output(self, ctx: ExecutionContext) -> types.Property:
        """Show what was done."""
        outputs = types.Object()
        outputs.str("done", label="Done", view=types.LabelValueView(read_only=True))
        return types.Property(outputs, view=types.View(label="Export"))


def _ask_file(ctx: ExecutionContext, inputs: types.Object, run_key: str) -> None:
    what = ctx.params.get("what") or "csv"
    ending = f".{what}" if what in ("csv", "parquet") else ".json"
    inputs.str(
        "path", required=True, label="File", description=f"Its name ends in {ending}; a file that exists is replaced"
    )
    given = ctx.params.get("path")
    if not given:
        return
    path = Path(given).expanduser()
    if path.suffix != ending:
        flag(inputs, "bad_name", "Another kind of file", f"End the name in {ending}, such as {run_key}{ending}.")
    elif writable_parent(path.parent) is None:
        flag(inputs, "bad_folder", "Cannot write there", f"The folder {path.parent} cannot be written to.")
