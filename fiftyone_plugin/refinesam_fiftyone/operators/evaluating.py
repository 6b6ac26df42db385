"""Evaluate against ground truth, and rank what has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import fiftyone.operators as foo
from fiftyone.operators import types

from refinesam import RefineSAMError

from ..evaluation import Evaluation, check_evaluation, evaluate
from ..history import show
from ..label_ranking import check_label_ranking, doubtful_view, rank_labels
from ..ranking import check_ranking, rank
from ..runs import read_settings, run_of
from ..samples import Target
from ..schema import Fields, Settings
from ..views import save_views
from .forms import DatasetOperator, choose_run, flag, samples_of
from .progress import run_reporting, telling

if TYPE_CHECKING:
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["Evaluate", "Rank", "RankLabels", "told"]


class Evaluate(DatasetOperator):
    """Compare a run's masks with the ground truth."""

    submit = "Evaluate"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="evaluate",
            label="Evaluate masks against ground truth",
            description="IoU of both masks of each prompt, in image pixels, and what refinement changed",
            icon="rule",
            dynamic=True,
            execute_as_generator=True,
            allow_delegated_execution=True,
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        inputs.view_target(ctx, action_description="Evaluate")
        run_key = choose_run(ctx, inputs)
        if run_key is not None and read_settings(ctx.dataset, Fields(run_key)).truth_field is None:
            hint = "Compare again with a field of ground truth masks, or use 'Rank masks without ground truth'."
            flag(inputs, "no_truth", "This run has no ground truth", hint)
        elif run_key is not None:
            _flag_problem(ctx, inputs, run_key, check_evaluation)
        inputs.float(
            "failed_below",
            min=0,
            max=1,
            default=0.5,
            label="Failed below",
            description="An IoU below this counts as a failure",
        )
        inputs.float(
            "changed_by",
            min=0,
            max=1,
            default=0.01,
            label="Changed by more than",
            description="A smaller difference of the two IoUs counts as no change",
        )
        inputs.bool("save_views", default=True, label="Save a view of each outcome", view=types.SwitchView())

    @telling
    def execute(self, ctx: ExecutionContext) -> Iterator[Any]:
        """Evaluate, and save views."""
        samples, run_key = samples_of(ctx), ctx.params["run_key"]
        limits = {name: ctx.params[name] for name in ("failed_below", "changed_by") if ctx.params.get(name) is not None}
        evaluation = yield from run_reporting(
            ctx,
            run_key,
            "Evaluating",
            lambda on_progress, _: evaluate(samples, run_key=run_key, on_progress=on_progress, **limits),
        )
        if ctx.params.get("save_views", True):
            save_views(samples, run_key=run_key)
        yield told(ctx, evaluation)
        yield ctx.trigger("reload_dataset")
        yield ctx.ops.open_panel("comparison", is_active=True, layout="horizontal")


def _flag_problem(
    ctx: ExecutionContext, inputs: types.Object, run_key: str, check: Callable[[Target, Fields, Settings], object]
) -> None:
    try:
        check(*run_of(samples_of(ctx), run_key))
    except RefineSAMError as error:
        flag(inputs, "problem", "This cannot run yet", str(error))


def told(ctx: ExecutionContext, evaluation: Evaluation) -> Any:
    """Return what tells the user in the App how much was evaluated, and what could not be."""
    label = f"{evaluation.objects} objects in {evaluation.samples - evaluation.not_compared} samples were evaluated"
    left = {
        "samples are not compared yet": evaluation.not_compared,
        "masks have no ground truth": evaluation.unpaired,
        "of the ground truth have no mask": evaluation.missed,
        **{f"failed ({name.replace('_', ' ')})": count for name, count in evaluation.failures.items()},
    }
    label += "".join(f"; {count} {what}" for what, count in left.items() if count)
    if "outdated" in evaluation.failures:
        label += ". Labels that prompts were made from are gone: compare again"
    succeeded = evaluation.objects and not evaluation.failures
    return ctx.ops.notify(f"{label}.", variant="success" if succeeded else "warning")


class Rank(DatasetOperator):
    """Order samples by how likely their masks are wrong, without ground truth."""

    submit = "Rank"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="rank",
            label="Rank masks without ground truth",
            description="The samples whose masks deserve a look first, by what both masks and the model say",
            icon="sort",
            dynamic=True,
            allow_delegated_execution=True,
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        inputs.view_target(ctx, action_description="Rank")
        run_key = choose_run(ctx, inputs)
        if run_key is not None:
            _flag_problem(ctx, inputs, run_key, lambda target, run, _: check_ranking(target, run))

    def execute(self, ctx: ExecutionContext) -> dict[str, Any]:
        """Rank, and show the worst first."""
        samples, run_key = samples_of(ctx), ctx.params["run_key"]
        ranked = rank(samples, run_key=run_key)
        ctx.ops.reload_dataset()
        show(ctx, samples.sort_by(f"{run_key}_rank"))
        # It has the way back.
        ctx.ops.open_panel("comparison", is_active=True, layout="horizontal")
        return {"objects": len(ranked)}


class RankLabels(DatasetOperator):
    """Order ground truth by how surely the model disagrees with it."""

    submit = "Rank"

    @property
    def config(self) -> foo.OperatorConfig:
        """How the App runs it."""
        return foo.OperatorConfig(
            name="rank_labels",
            label="Find doubtful ground truth",
            description="Labels that both masks of a run agree against, and objects without a label, the surest first",
            icon="rule",
            dynamic=True,
            execute_as_generator=True,
            allow_delegated_execution=True,
        )

    def ask(self, ctx: ExecutionContext, inputs: types.Object) -> None:
        """Add the form's fields."""
        inputs.view_target(ctx, action_description="Rank")
        run_key = choose_run(ctx, inputs)
        if run_key is None:
            return
        _flag_problem(ctx, inputs, run_key, check_label_ranking)
        if read_settings(ctx.dataset, Fields(run_key)).prompts != "everything":
            label = "This run asked about boxes or clicks. A run without prompts also finds objects that have no label."
            inputs.view("prompted", types.Notice(label=label))

    @telling
    def execute(self, ctx: ExecutionContext) -> Iterator[Any]:
        """Rank, and show the most doubtful samples first."""
        samples, run_key = samples_of(ctx), ctx.params["run_key"]
        yield from run_reporting(
            ctx,
            run_key,
            "Ranking",
            lambda on_progress, _: rank_labels(samples, run_key=run_key, on_progress=on_progress),
        )
        yield ctx.trigger("reload_dataset")
        yield show(ctx, doubtful_view(samples, run_key=run_key))
        # It has the way back.
        yield ctx.ops.open_panel("comparison", is_active=True, layout="horizontal")
