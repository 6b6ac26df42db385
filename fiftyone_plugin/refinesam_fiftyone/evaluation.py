"""Evaluation: a run's masks against the ground truth, in image pixels, written onto labels and samples.

Each prompt is paired with the object it asked for (`pairing`), so failures count as much as successes. Evaluating
again gives the same and leaves nothing of an earlier evaluation behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import fiftyone as fo

from refinesam import ConfigError

from .labels import label_id
from .pairing import prompt_path
from .record import check_free, declare, renamed_truth, require
from .regions import StoredSample, read_samples
from .runs import run_of
from .samples import Target
from .schema import Failure, FieldKind, Fields, Settings
from .scoring import Judgement, Thresholds, judge, score_kinds
from .storing import store_values

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["Evaluation", "check_evaluation", "evaluate", "list_failures"]

# Samples read and written at a time: their masks are in memory together.
BATCH: Final = 32


@dataclass(frozen=True)
class Evaluation:
    """What a call of `evaluate` found.

    Attributes:
        samples: how many it was asked for.
        objects: ground truth objects that were evaluated.
        buckets: how many of them are in each bucket.
        missed: ground truth labels that no prompt reached; evaluated, as failed, in a run without prompts.
        unpaired: answered prompts without ground truth.
        failures: how many labels or samples could not be evaluated, by kind; they are listed in the run's failures.
        not_compared: samples that the run has no answers for; nothing is written to them.
    """

    samples: int
    objects: int = 0
    buckets: Mapping[str, int] = field(default_factory=dict)
    missed: int = 0
    unpaired: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    not_compared: int = 0


def evaluate(
    samples: SampleCollection,
    *,
    run_key: str = "refinesam",
    failed_below: float = 0.5,
    changed_by: float = 0.01,
    on_progress: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Compare both masks of every prompt with the ground truth that the run names, and write the result.

    Attributes go onto the labels of every layer, sums onto the samples. A damaged mask costs only its own prompt: it
    is listed in the run's failures and its sample is tagged. Label filters of a view are not looked at.

    Args:
        samples: a dataset or view.
        run_key: of a run that `compare` made.
        failed_below: masks with a lower IoU failed.
        changed_by: IoU must change by more than this to count as helped or hurt.
        on_progress: called after every batch with the samples evaluated so far and their number.

    Raises:
        ConfigError: no such run, a run without ground truth, or a threshold out of range.
    """
    _check_share("failed_below", failed_below)
    _check_share("changed_by", changed_by)
    thresholds = Thresholds(float(failed_below), float(changed_by))
    target, run, settings = run_of(samples, run_key)
    check_evaluation(target, run, settings)
    # Where answers are listed that could not be judged, and the other layers: made anew, if somebody deleted them.
    declare(target, run, _without(run.kinds, run.digest) | score_kinds(run, settings.truth_field))
    ids = _compared(target, run)
    names = {run.baseline, run.amr, run.rejected, settings.truth_field}
    if settings.prompts == "boxes":
        names.add(settings.prompt_field)
    others = [f"{run.points}.keypoints.prompt_id", *filter(None, [prompt_path(settings)])]
    totals, buckets, failures = Counter[str](), Counter[str](), Counter[str]()
    for batch in read_samples(target, ids, sorted(filter(None, names)), others=others, batch_size=BATCH):
        for judgement in _judged(target, batch, run, settings, thresholds):
            totals.update(objects=judgement.objects, missed=judgement.missed, unpaired=judgement.unpaired)
            buckets.update(judgement.buckets)
            failures.update(kind for kind, _ in judgement.failures.values())
        totals["done"] += len(batch)
        if on_progress is not None:
            on_progress(totals["done"], len(ids))
    if ids:
        target.root.reload()
    return Evaluation(
        len(target.ids),
        totals["objects"],
        dict(buckets),
        totals["missed"],
        totals["unpaired"],
        dict(failures),
        not_compared=len(target.ids) - len(ids),
    )


def _judged(
    target: Target, batch: Sequence[StoredSample], run: Fields, settings: Settings, thresholds: Thresholds
) -> Iterable[Judgement]:
    """Judge samples and store what came of it; of one that can't be stored only that."""
    judgements = {sample.id: judge(sample, run, settings, thresholds) for sample in batch}
    updates = {sample.id: (sample.modified, judgements[sample.id].values) for sample in batch}
    for sample_id, reason in store_values(target, updates).items():
        judgements[sample_id] = Judgement(failures={sample_id: ("not_stored", reason)})
    list_failures(target, run, {sample.id: judgements[sample.id].failures for sample in batch})
    return judgements.values()


def _without(kinds: Mapping[str, FieldKind], name: str) -> dict[str, FieldKind]:
    return {path: kind for path, kind in kinds.items() if path != name}


def _compared(target: Target, run: Fields) -> list[str]:
    """Return the samples that were asked for and that the run has compared, as far as can be told."""
    if target.field(run.digest) is None:
        return target.ids
    done = set(target.samples.exists(run.digest).values("id"))
    return [sample_id for sample_id in target.ids if sample_id in done]


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value!r}; give a number from 0 to 1.")


def check_evaluation(target: Target, run: Fields, settings: Settings) -> None:
    """Raise ConfigError for what evaluation cannot do without, and for names that are the user's by now.

    It can do without the layers of rejected candidates, points and failures.
    """
    require(target, run, (run.baseline, run.amr))
    if settings.truth_field is None:
        raise ConfigError(
            f"The run {run.key!r} was made without ground truth: compare again and name its field, or rank the "
            "samples without it."
        )
    kinds = {"boxes": "detections", "keypoints": "keypoints"}
    wanted = [("ground truth", settings.truth_field, "detections")]
    if settings.prompts in kinds and settings.prompt_field is not None:
        wanted.append(("prompts'", settings.prompt_field, kinds[settings.prompts]))
    for what, name, labels in wanted:
        if target.field(f"{name}.{labels}") is None:
            now = renamed_truth(target, run, name)
            hint = f"It is {now!r} now: compare" if now else "Compare"
            raise ConfigError(
                f"The dataset no longer has the {what} field {name!r} of the run {run.key!r}. {hint} again and name "
                "the field."
            )
    check_free(target, run, run.kinds | score_kinds(run, settings.truth_field))


def list_failures(target: Target, run: Fields, failures: Mapping[str, Mapping[str, tuple[Failure, str]]]) -> None:
    """Put what evaluation could not do into the run's failures, in place of what an earlier one put there.

    What comparing listed stays.

    Args:
        target: where the samples are.
        run: whose failures.
        failures: sample id -> prompt id, or the sample's -> the failure and its reason.
    """
    listed = target.select(list(failures)).values(["id", f"{run.failures}.classifications"])
    affected, kept, new = {}, {}, {}
    for sample_id, entries in zip(*listed, strict=True):
        own = [label for label in entries or () if label.id == _failure_id(run, label.prompt_id)]
        if own or failures[sample_id]:
            kept[sample_id] = [label for label in entries or () if label not in own]
            new[sample_id] = [
                fo.Classification(id=_failure_id(run, prompt_id), label=kind, prompt_id=prompt_id, reason=reason)
                for prompt_id, (kind, reason) in failures[sample_id].items()
            ]
            affected[sample_id] = {label.label for label in own}
    if not affected:
        return
    labels = {sample_id: fo.Classifications(classifications=kept[sample_id] + new[sample_id]) for sample_id in affected}
    target.set_values(run.failures, labels)
    for sample_id, before in affected.items():
        now = {label.label for label in labels[sample_id].classifications}
        view = target.samples.select(sample_id)
        for kind in before - now:
            view.untag_samples(run.failure_tag(kind))
        for kind in {label.label for label in new[sample_id]}:
            view.tag_samples(run.failure_tag(kind))


def _failure_id(run: Fields, prompt_id: str | None) -> str:
    return label_id(run.key, str(prompt_id), "evaluation")
