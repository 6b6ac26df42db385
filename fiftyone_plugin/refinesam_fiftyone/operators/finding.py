"""Find similar: selected labels, or those of a field on the selected samples, are examples of what else to find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import fiftyone.operators as foo
from fiftyone import ViewField
from fiftyone.operators import types

from refinesam import ConfigError, RefineSAMError
from refinesam.hosts import MOST_EXAMPLES

from ..label_runs import Stored, check_label_run, list_label_runs
from ..samples import target_of
from ..schema import Fields
from ..similar import LEAST_SIMILARITY, SimilarSettings, check_search, find_similar
from ..views import save_likely_view
from .comparing import DELEGATE_ABOVE
from .forms import (
    DatasetOperator,
    ask_masks,
    ask_weights,
    check_weights,
    choose,
    counted,
    execution_options,
    flag,
    label_fields,
    masks_dir_of,
)
from .progress import run_reporting, shown_progress, telling

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["FindSimilar"]

# No class has this name.
ALL_CLASSES: Final = "-"
_WHERE: Final = (
    ("same", "In the same samples, each by its own examples"),
    ("others", "In the other samples of the view"),
    ("both", "In both"),
)


class FindSimilar(DatasetOperator):
    """Find every object that is like some labels."""

    submit = "Find"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="find_similar",
            label="Find similar objects",
            description="Everything that is like the selected labels, in the same samples or in others",
            icon="image_search",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def resolve_execution_options(self, ctx: ExecutionContext) -> foo.ExecutionOptions:
        """Suggest the background for many samples."""
        many = ctx.dataset is not None and ctx.params.get("where") != "same" and ctx.view.count() > DELEGATE_ABOVE
        return execution_options(many)

    def resolve_placement(self, ctx: ExecutionContext) -> types.Placement:
        """Offer it above the samples."""
        return types.Placement(
            types.Places.SAMPLES_GRID_ACTIONS,
            types.Button(label="Find similar objects", icon="image_search", prompt=True),
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        _ask_examples(ctx, inputs)
        choose(inputs, "where", _WHERE, radio=True, label="Search", default="same")
        inputs.float(
            "least",
            min=0,
            max=1,
            default=LEAST_SIMILARITY,
            label="Least similarity",
            description="What is less similar is not stored. From 0.5 on, an object is more likely of the kind than "
            "not; the slider of 'similarity' in the sidebar moves the threshold afterwards",
        )
        ask_weights(inputs)
        ask_masks(ctx, inputs)
        inputs.str(
            "run_key",
            default="similar",
            label="Name of the run",
            description="Its fields start with this; runs of different names stay side by side",
        )
        _check(ctx, inputs)

    @telling
    def execute(self, ctx: ExecutionContext) -> Iterator[Any]:
        """Search, and save a view of what is likely."""
        run_key = ctx.params.get("run_key") or "similar"
        samples, settings = target_of(ctx.view).view(), _settings_of(ctx)
        examples = _examples_of(ctx)
        done: Stored = yield from run_reporting(
            ctx,
            run_key,
            "Searching",
            lambda on_progress, should_stop: find_similar(
                samples, examples, settings, run_key=run_key, on_progress=on_progress, should_stop=should_stop
            ),
        )
        save_likely_view(samples, run_key=run_key)
        yield ctx.trigger("reload_dataset")
        yield shown_progress(ctx, 1.0, summary(done))


def summary(done: Stored) -> str:
    """Return in one sentence what was done."""
    failed = counted(done.failures)
    return (
        f"{'Stopped: ' if done.stopped else ''}{done.labels} objects in {done.done} of {done.samples} samples"
        + (f", {done.skipped} samples were done before" if done.skipped else "")
        + (f"; failed: {failed}" if failed else "")
        + (f"; {len(done.left_out)} examples could not be used" if done.left_out else "")
        + "."
    )


def _selected(ctx: ExecutionContext) -> list[str]:
    """Return the ids of the samples that are selected, or of the one that is open."""
    return list(ctx.selected) or ([ctx.current_sample] if ctx.current_sample else [])


def _ask_examples(ctx: ExecutionContext, inputs: types.Object) -> None:
    most = (
        f"If a sample has more than {MOST_EXAMPLES} of a class, the {MOST_EXAMPLES} of the most typical size are used."
    )
    if ctx.selected_labels:
        label = f"The examples are the selected labels: {len(ctx.selected_labels)}."
        inputs.view(
            "examples", types.Notice(label=f"{label} {most}" if len(ctx.selected_labels) > MOST_EXAMPLES else label)
        )
        return
    if not _selected(ctx):
        hint = "Select one or more labels of a kind (open a sample and click on them), or samples with labels."
        flag(inputs, "no_examples", "There are no examples", hint)
        return
    fields = label_fields(ctx.view, "Detections")
    if not fields:
        flag(inputs, "no_labels", "No labels", "The dataset has no field of Detections: draw an example first.")
        return
    description = f"Its labels on the selected samples are the examples; {len(_selected(ctx))} selected. {most}"
    choose(
        inputs,
        "examples_field",
        [(name, name) for name in fields],
        label="Field with the examples",
        description=description,
        default=fields[0],
        required=True,
    )
    field = ctx.params.get("examples_field")
    if field in fields:
        classes = target_of(ctx.view).select(_selected(ctx)).distinct(f"{field}.detections.label")
        choices = [(ALL_CLASSES, "All classes, each by its own examples"), *((name, name) for name in classes)]
        choose(inputs, "class", choices, label="Class", default=ALL_CLASSES)


def _settings_of(ctx: ExecutionContext) -> SimilarSettings:
    params = ctx.params
    fields = sorted({label["field"] for label in ctx.selected_labels}) or [params.get("examples_field") or ""]
    where: Any = params.get("where") or "same"
    least = params.get("least")
    return SimilarSettings(
        fields,
        where=where,
        least=LEAST_SIMILARITY if least is None else least,
        weights=params.get("weights") or "builtin",
        masks_dir=masks_dir_of(params),
    )


def _examples_of(ctx: ExecutionContext) -> SampleCollection:
    """Return a view with the examples alone in their fields."""
    target, field = target_of(ctx.view), ctx.params.get("examples_field")
    if ctx.selected_labels:
        ids, fields = [label["label_id"] for label in ctx.selected_labels], _settings_of(ctx).fields
        return target.samples.select_labels(ids=ids, fields=list(fields))
    if not field or not _selected(ctx):
        raise ConfigError("There are no examples: select labels, or samples and the field of their labels.")
    view, wanted = target.select(_selected(ctx)), ctx.params.get("class") or ALL_CLASSES
    return view if wanted == ALL_CLASSES else view.filter_labels(field, ViewField("label") == wanted)


def _check(ctx: ExecutionContext, inputs: types.Object) -> None:
    """Flag what `find_similar` would refuse."""
    if not ctx.selected_labels and not (ctx.params.get("examples_field") and _selected(ctx)):
        return
    try:
        run, settings = Fields(ctx.params.get("run_key") or "similar"), _settings_of(ctx)
        check_weights(settings.weights)
        target = check_search(target_of(ctx.view).view(), _examples_of(ctx), settings)
        check_label_run(target, run, "similar")
        if run.key in list_label_runs(target.root):
            label = f"There is a run {run.key!r}. With the same examples and settings it goes on where it stopped."
            inputs.view("there", types.Notice(label=label))
    except RefineSAMError as error:
        flag(inputs, "problem", "This cannot run yet", str(error))
