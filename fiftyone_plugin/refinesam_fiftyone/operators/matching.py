"""Evaluate a run's masks in FiftyOne's own form, and open its Model Evaluation panel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import fiftyone.operators as foo
from fiftyone.operators import types

from refinesam import RefineSAMError

from ..matching import Matches, check_matching, default_eval_key, match_detections
from ..runs import run_of
from ..schema import Fields
from .forms import DatasetOperator, choose, choose_run, flag, samples_of
from .progress import run_reporting, shown_progress, telling

if TYPE_CHECKING:
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["MatchDetections"]

# FiftyOne's panel.
PANEL: Final = "model_evaluation_panel_builtin"
_MASKS: Final = (("amr", "Masks after refinement"), ("baseline", "First masks"))


class MatchDetections(DatasetOperator):
    """Count true and false positives and false negatives of a run's masks, for FiftyOne's panel."""

    submit = "Evaluate"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="match_detections",
            label="Evaluate masks for the Model Evaluation panel",
            description="True and false positives, misses and confusions of a run's masks, as FiftyOne counts them",
            icon="ssid_chart",
            dynamic=True,
            execute_as_generator=True,
            allow_delegated_execution=True,
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        inputs.view_target(ctx, action_description="Evaluate")
        run_key = choose_run(ctx, inputs)
        choose(inputs, "masks", _MASKS, radio=True, label="Masks", default="amr")
        name = "" if run_key is None else default_eval_key(Fields(run_key), ctx.params.get("masks") or "amr")
        description = f"Names the evaluation and its fields; without one it is {name}"
        inputs.str("eval_key", label="Name of the evaluation", description=description)
        inputs.float("iou", min=0, max=1, default=0.5, label="IoU", description="That a match needs at least")
        description = "Otherwise a mask on an object of another class counts as a confusion"
        view = types.SwitchView()
        inputs.bool("classwise", default=False, label="Match the same class alone", description=description, view=view)
        if run_key is not None:
            try:
                target, run, settings = run_of(samples_of(ctx), run_key)
                masks: Any = ctx.params.get("masks") or "amr"
                check_matching(target, run, settings, masks, ctx.params.get("eval_key") or name)
            except RefineSAMError as error:
                flag(inputs, "problem", "This cannot run yet", str(error))

    @telling
    def execute(self, ctx: ExecutionContext) -> Iterator[Any]:
        """Evaluate, and open FiftyOne's panel."""
        samples, params = samples_of(ctx), ctx.params
        found: Matches = yield from run_reporting(
            ctx,
            params["run_key"],
            "Evaluating",
            lambda on_progress, _: match_detections(
                samples,
                run_key=params["run_key"],
                masks=params.get("masks") or "amr",
                eval_key=params.get("eval_key") or None,
                iou=0.5 if params.get("iou") is None else params["iou"],
                classwise=bool(params.get("classwise")),
                on_progress=on_progress,
            ),
        )
        yield ctx.trigger("reload_dataset")
        yield shown_progress(ctx, 1.0, told(found))
        yield ctx.ops.open_panel(PANEL, is_active=True, layout="horizontal")


def told(found: Matches) -> str:
    """Return in words what was counted, and what could not be judged."""
    text = f"{found.eval_key}: {found.tp} true positives, {found.fp} false positives, {found.fn} missed"
    if found.empty:
        text += f"; {found.empty} masks are empty"
    if found.left_out:
        text += f"; {len(found.left_out)} could not be judged, such as: {next(iter(found.left_out.values()))}"
    return text if text.endswith(".") else f"{text}."
