"""Explain one object: the label that is selected, or the worst one of the sample or view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fiftyone.operators as foo
from fiftyone.operators import types

from refinesam import ConfigError

from ..explain import data_uri, explain, prompt_of_label
from ..rows import read_rows
from ..samples import target_of
from .forms import DatasetOperator, choose_run

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["Explain", "chosen_object"]


class Explain(DatasetOperator):
    """Show both masks of one object, where they differ, and why one of them was kept."""

    submit = "Explain"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="explain",
            label="Explain a mask",
            description="Of the selected label, or of the worst object shown: both masks, their difference, the reason",
            icon="help_outline",
            dynamic=True,
        )

    def resolve_placement(self, ctx: ExecutionContext) -> types.Placement:
        """Offer it beside an opened sample."""
        return types.Placement(
            types.Places.SAMPLES_VIEWER_ACTIONS,
            types.Button(label="Explain a mask", icon="help_outline", prompt=True),
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        choose_run(ctx, inputs)
        inputs.view("which", types.Notice(label=_which(ctx)))
        inputs.str("prompt_id", label="Object", view=types.HiddenView())

    def execute(self, ctx: ExecutionContext) -> dict[str, Any]:
        """Find the object and draw it."""
        run_key = ctx.params["run_key"]
        sample_id, prompt_id = chosen_object(ctx, run_key)
        shown = explain(ctx.view, run_key=run_key, prompt_id=prompt_id, sample_id=sample_id)
        return {"picture": data_uri(shown.picture), "facts": shown.facts, "prompt_id": prompt_id, "id": shown.sample_id}

    def resolve_output(self, ctx: ExecutionContext) -> types.Property:
        """Show the picture and the facts."""
        outputs = types.Object()
        outputs.view("picture", types.ImageView(width="100%", alt="Both masks of one object"))
        facts = ctx.results.get("facts", {})
        outputs.md("\n".join(f"- {name}: **{value}**" for name, value in facts.items()), name="facts_text")
        return types.Property(outputs, view=types.View(label="Explain a mask"))


def _which(ctx: ExecutionContext) -> str:
    if ctx.params.get("prompt_id"):
        return "The object that was chosen in the panel."
    if ctx.selected_labels:
        return "The selected label."
    if ctx.current_sample or ctx.selected:
        return "The worst object of this sample; select a label to choose another one."
    return "The worst object of the samples shown; select a label to choose another one."


def chosen_object(ctx: ExecutionContext, run_key: str) -> tuple[str | None, str]:
    """Return sample (None: not known) and prompt id of what the user chose: an object, a label, a sample, or nothing.

    Raises:
        ConfigError: there is no object of the run in it.
    """
    if ctx.params.get("prompt_id"):
        return ctx.params.get("sample_id"), ctx.params["prompt_id"]
    for label in ctx.selected_labels:
        prompt_id = prompt_of_label(ctx.view, run_key, label["label_id"], label["sample_id"])
        if prompt_id is None:
            raise ConfigError(f"The selected label belongs to no object of the run {run_key!r}: select another one.")
        return label["sample_id"], prompt_id
    samples = [ctx.current_sample] if ctx.current_sample else ctx.selected
    return _worst(target_of(ctx.view).select(samples) if samples else ctx.view, run_key)


def _worst(samples: SampleCollection, run_key: str) -> tuple[str, str]:
    """Return sample and prompt id of what refinement changed most for the worse; unevaluated, of the least sure."""
    rows = read_rows(samples, run_key)
    rows = rows[rows["prompt_id"].notna()]
    if rows.empty:
        raise ConfigError(f"There is no object of the run {run_key!r} here: show other samples, or compare these.")
    order = ["delta_iou", "amr_iou"] if rows["delta_iou"].notna().any() else ["pred_iou_amr"]
    first = rows.sort_values(order, na_position="last").iloc[0]
    return str(first["sample_id"]), str(first["prompt_id"])
