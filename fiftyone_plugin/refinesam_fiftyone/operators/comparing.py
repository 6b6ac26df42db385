"""Compare: the form's choices become `Settings`, checked while the form is filled in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import fiftyone.operators as foo
from fiftyone.operators import types

from refinesam import ConfigError, RefineSAMError

from ..compare import Comparison, check_samples, compare
from ..evaluation import evaluate
from ..runs import check_run, differences, list_runs, progress
from ..samples import target_of
from ..schema import Fields, Settings
from ..views import save_views
from .evaluating import told
from .forms import (
    DatasetOperator,
    ask_masks,
    ask_weights,
    check_weights,
    choose,
    counted,
    execution_options,
    flag,
    has_masks,
    label_fields,
    masks_dir_of,
    samples_of,
)
from .progress import run_reporting, shown_progress, telling

if TYPE_CHECKING:
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["Compare", "settings_of"]

# The App cuts off what it executes itself after ten minutes; more samples are suggested for the background.
DELEGATE_ABOVE: Final = 200
# No field has this name.
NO_TRUTH: Final = "-"
ALL_SLICES: Final = "-"
_PROMPTS: Final = (
    ("boxes", "Boxes of labels"),
    ("keypoints", "Clicks: keypoints, on or off the object"),
    ("random-2", "Two random clicks in each ground truth mask"),
    ("everything", "None: segment everything"),
)


class Compare(DatasetOperator):
    """Segment samples with and without Adaptive Mask Refinement and store both."""

    submit = "Compare"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="compare",
            label="Compare masks with and without refinement",
            description="Segment every prompt with EfficientSAM, refine the mask, and keep both",
            icon="compare",
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def resolve_execution_options(self, ctx: ExecutionContext) -> foo.ExecutionOptions:
        """Suggest the background for many samples."""
        many = ctx.dataset is not None and ctx.target_view().count() > DELEGATE_ABOVE
        return execution_options(many)

    def resolve_placement(self, ctx: ExecutionContext) -> types.Placement:
        """Offer it above the samples."""
        return types.Placement(
            types.Places.SAMPLES_GRID_ACTIONS,
            types.Button(label="Compare masks with and without refinement", icon="compare", prompt=True),
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        inputs.view_target(ctx, action_description="Compare")
        _ask_slice(ctx, inputs)
        _ask_prompts(ctx, inputs)
        _ask_truth(ctx, inputs)
        _ask_model(ctx, inputs)
        _ask_storage(ctx, inputs)
        _check(ctx, inputs)

    @telling
    def execute(self, ctx: ExecutionContext) -> Iterator[Any]:
        """Compare, and then evaluate if asked to."""
        settings, run_key = settings_of(ctx.params), ctx.params.get("run_key") or "refinesam"
        samples, resume = samples_of(ctx), ctx.params.get("resume", True)
        done: Comparison = yield from run_reporting(
            ctx,
            run_key,
            "Comparing",
            lambda on_progress, should_stop: compare(
                samples, settings, run_key=run_key, resume=resume, on_progress=on_progress, should_stop=should_stop
            ),
        )
        if settings.truth_field and ctx.params.get("evaluate_after", True) and not done.stopped:
            evaluation = yield from run_reporting(
                ctx,
                run_key,
                "Evaluating",
                lambda on_progress, _: evaluate(samples, run_key=run_key, on_progress=on_progress),
            )
            save_views(samples, run_key=run_key)
            yield told(ctx, evaluation)
        yield ctx.trigger("reload_dataset")
        yield shown_progress(ctx, 1.0, summary(done))
        yield ctx.ops.open_panel("comparison", is_active=True, layout="horizontal")


def summary(done: Comparison) -> str:
    """Return in one sentence what was done."""
    failed = counted(done.failures)
    return (
        f"{'Stopped: ' if done.stopped else ''}{done.prompts} masks in {done.done} of {done.samples} samples"
        + (f", {done.skipped} samples were done before" if done.skipped else "")
        + (f"; failed: {failed}" if failed else "")
        + "."
    )


def settings_of(params: dict[str, Any]) -> Settings:
    """Return the settings that a form's values name.

    Raises:
        ConfigError: they do not fit together.
    """
    prompts: Any = params.get("prompts") or "boxes"
    truth = params.get("truth_field")
    return Settings(
        prompts=prompts,
        prompt_field=params.get(f"{prompts}_field"),
        truth_field=None if truth == NO_TRUTH else truth or None,
        weights=params.get("weights") or "builtin",
        amr=params.get("amr") or "full",
        masks=params.get("masks") or "database",
        masks_dir=params.get("masks_dir") or None,
        seed=params.get("seed") or 0,
        candidates=bool(params.get("candidates")),
    )


def _ask_slice(ctx: ExecutionContext, inputs: types.Object) -> None:
    view = ctx.target_view()
    if view.media_type == "group":
        images = [name for name, kind in view.group_media_types.items() if kind == "image"]
        default = ctx.group_slice if ctx.group_slice in images else ALL_SLICES
        choices = [(ALL_SLICES, "All slices of images"), *((name, name) for name in images)]
        choose(inputs, "slice", choices, label="Slice of the groups", default=default)


def _ask_prompts(ctx: ExecutionContext, inputs: types.Object) -> None:
    choose(inputs, "prompts", _PROMPTS, radio=True, label="Prompts", default="boxes")
    prompts = ctx.params.get("prompts") or "boxes"
    if prompts == "boxes":
        boxes = label_fields(samples_of(ctx), "Detections")
        if not boxes:
            flag(inputs, "no_boxes", "No boxes", "The dataset has no field of Detections: add one, or other prompts.")
            return
        choices = [(name, name) for name in boxes]
        choose(inputs, "boxes_field", choices, label="Field with the boxes", default=boxes[0], required=True)
    elif prompts == "keypoints":
        clicks = label_fields(samples_of(ctx), "Keypoints")
        if not clicks:
            flag(inputs, "no_clicks", "No clicks", "The dataset has no field of Keypoints: add one, or other prompts.")
            return
        choices = [(name, name) for name in clicks]
        description = "The list attribute 'signs' of a keypoint says of each point: 1 on the object, 0 not on it"
        choose(
            inputs,
            "keypoints_field",
            choices,
            label="Field with the clicks",
            description=description,
            default=clicks[0],
            required=True,
        )
    elif prompts == "random-2":
        inputs.int("seed", min=0, default=0, label="Seed", description="The same seed clicks the same pixels again")


def _ask_truth(ctx: ExecutionContext, inputs: types.Object) -> None:
    samples = samples_of(ctx)
    masks = [name for name in label_fields(samples, "Detections") if has_masks(samples, name)]
    choices = [(name, name) for name in masks] + [(NO_TRUTH, "None: rank the answers without it")]
    choose(inputs, "truth_field", choices, label="Ground truth masks", default=choices[0][0])
    if ctx.params.get("truth_field", NO_TRUTH) != NO_TRUTH:
        inputs.bool("evaluate_after", default=True, label="Evaluate and save views afterwards", view=types.SwitchView())


def _ask_model(ctx: ExecutionContext, inputs: types.Object) -> None:
    ask_weights(inputs)
    choices = (
        ("full", "Full: a closer look at each object, which takes an encoding for each"),
        ("fast", "Fast: after a box, a second look at what was encoded"),
        ("paper", "As in the paper: two more points"),
    )
    choose(inputs, "amr", choices, label="Refinement", default="full")
    label = "Keep all candidates: a part, the object, a group, whichever a prompt may mean"
    inputs.bool("candidates", default=False, label=label, view=types.SwitchView())


def _ask_storage(ctx: ExecutionContext, inputs: types.Object) -> None:
    ask_masks(ctx, inputs)
    inputs.str(
        "run_key",
        default="refinesam",
        label="Name of the run",
        description="Its fields start with this; runs of different names stay side by side",
    )
    if ctx.params.get("run_key") in list_runs(ctx.dataset):
        label = "Go on with this run: leave samples alone that are done with the same settings"
        inputs.bool("resume", default=True, label=label, view=types.SwitchView())


def _check(ctx: ExecutionContext, inputs: types.Object) -> None:
    """Flag what `compare` would refuse."""
    try:
        run, samples = Fields(ctx.params.get("run_key") or "refinesam"), samples_of(ctx)
        settings = settings_of(ctx.params)
        check_samples(samples, settings)
        check_run(target_of(samples), run, settings)
        check_weights(settings.weights)
        masks_dir_of(ctx.params)
        if run.key in list_runs(ctx.dataset):
            _say_what_is_there(ctx, inputs, run, settings)
        if not samples.count():
            raise ConfigError("There are no samples here: choose others, or clear the filters.")
    except RefineSAMError as error:
        flag(inputs, "problem", "This cannot run yet", str(error))


def _say_what_is_there(ctx: ExecutionContext, inputs: types.Object, run: Fields, settings: Settings) -> None:
    (done, total), changed = progress(ctx.dataset, run), differences(ctx.dataset, run, settings)
    label = f"The run {run.key} has compared {done} of {total} samples."
    if changed:
        label += f" Its answers are replaced, since settings differ: {'; '.join(changed.values())}."
    inputs.view("there", types.Notice(label=label))
