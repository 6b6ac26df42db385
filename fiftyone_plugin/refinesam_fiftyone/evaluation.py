"""Evaluation: a run's masks against the ground truth, in image pixels, written onto labels and samples.

Each prompt is paired with the object it asked for (`pairing`), so failures count as much as successes. Evaluating
again gives the same and leaves nothing of an earlier evaluation behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import fiftyone as fo

from refinesam import ConfigError

from .labels import label_id
from .pairing import prompt_path
from .regions import dataset_and_ids, read_samples
from .schema import Failure, Fields, Settings, declare_fields, read_settings
from .scoring import POINTS_SCORES, REJECTED_SCORES, SCORES, Judgement, Thresholds, judge, truth_scores
from .storing_values import store_values

__all__ = ["Evaluation", "declare_scores", "evaluate", "list_failures"]

# Samples read and written at a time: their masks are in memory together.
BATCH: Final = 32
_SAMPLE_FIELDS: Final[Mapping[str, type[Any]]] = {
    "objects": fo.IntField,
    "missed": fo.IntField,
    "mean_base_iou": fo.FloatField,
    "mean_amr_iou": fo.FloatField,
    "mean_delta": fo.FloatField,
    "worst_delta": fo.FloatField,
    "best_delta": fo.FloatField,
    "helped": fo.IntField,
    "hurt": fo.IntField,
    "failed": fo.IntField,
}


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
    """

    samples: int
    objects: int = 0
    buckets: Mapping[str, int] = field(default_factory=dict)
    missed: int = 0
    unpaired: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)


def evaluate(
    samples: Any,
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
    run = Fields(run_key)
    dataset, ids = dataset_and_ids(samples)
    settings = _settings(dataset, run)
    declare_scores(dataset, run, settings)
    names = {run.baseline, run.amr, run.rejected, settings.truth_field}
    if settings.prompts == "boxes":
        names.add(settings.prompt_field)
    others = [f"{run.points}.keypoints.prompt_id", *filter(None, [prompt_path(settings)])]
    totals, buckets, failures = Counter[str](), Counter[str](), Counter[str]()
    for batch in read_samples(dataset, ids, sorted(filter(None, names)), others=others, batch_size=BATCH):
        found = {sample.id: judge(sample, run, settings, thresholds) for sample in batch}
        for sample_id, reason in store_values(dataset, {s.id: (s.modified, found[s.id].values) for s in batch}).items():
            found[sample_id] = Judgement(failures={sample_id: ("not_stored", reason)})
        list_failures(dataset, run, {sample.id: found[sample.id].failures for sample in batch})
        for one in found.values():
            totals.update(objects=one.objects, missed=one.missed, unpaired=one.unpaired)
            buckets.update(one.buckets)
            failures.update(kind for kind, _ in one.failures.values())
        totals["done"] += len(batch)
        if on_progress is not None:
            on_progress(totals["done"], len(ids))
    if ids:
        dataset.reload()
    return Evaluation(len(ids), totals["objects"], dict(buckets), totals["missed"], totals["unpaired"], dict(failures))


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value!r}; give a number from 0 to 1.")


def _settings(dataset: Any, run: Fields) -> Settings:
    settings = read_settings(dataset, run)
    if settings.truth_field is None:
        raise ConfigError(
            f"The run {run.key!r} was made without ground truth: compare again and name its field, or rank the "
            "samples without it."
        )
    if dataset.get_field(f"{settings.truth_field}.detections") is None:
        raise ConfigError(f"The dataset no longer has the ground truth field {settings.truth_field!r} of the run.")
    return settings


def declare_scores(dataset: Any, run: Fields, settings: Settings) -> None:
    """Declare the attributes and fields that evaluation writes, so that the App can filter by them."""
    kinds: dict[str, type[Any]] = {f"{run.key}_{name}": kind for name, kind in _SAMPLE_FIELDS.items()}
    for name, kind in SCORES.items():
        kinds |= {f"{field}.detections.{name}": kind for field in (run.baseline, run.amr)}
    kinds |= {f"{run.rejected}.detections.{name}": SCORES[name] for name in REJECTED_SCORES}
    kinds |= {f"{run.points}.keypoints.{name}": SCORES[name] for name in POINTS_SCORES}
    if settings.truth_field is not None:
        truth = truth_scores(run).items()
        kinds |= {f"{settings.truth_field}.detections.{name}": kind for name, (_, kind) in truth}
    declare_fields(dataset, kinds)


def list_failures(dataset: Any, run: Fields, found: Mapping[str, Mapping[str, tuple[Failure, str]]]) -> None:
    """Put what evaluation could not do into the run's failures, in place of what an earlier one put there.

    What comparing listed stays.

    Args:
        dataset: the samples' dataset.
        run: whose failures.
        found: sample id -> prompt id, or the sample's -> the failure and its reason.
    """
    listed = dataset.select(list(found), ordered=True).values(["id", f"{run.failures}.classifications"])
    affected, kept, new = {}, {}, {}
    for sample_id, entries in zip(*listed, strict=True):
        own = [one for one in entries or () if one.id == _failure_id(run, one.prompt_id)]
        if own or found[sample_id]:
            kept[sample_id] = [one for one in entries or () if one not in own]
            new[sample_id] = [
                fo.Classification(id=_failure_id(run, prompt_id), label=kind, prompt_id=prompt_id, reason=reason)
                for prompt_id, (kind, reason) in found[sample_id].items()
            ]
            affected[sample_id] = {one.label for one in own}
    if not affected:
        return
    labels = {sample_id: fo.Classifications(classifications=kept[sample_id] + new[sample_id]) for sample_id in affected}
    dataset.set_values(run.failures, labels, key_field="id")
    for sample_id, before in affected.items():
        now = {one.label for one in labels[sample_id].classifications}
        view = dataset.select(sample_id)
        for kind in before - now:
            view.untag_samples(run.failure_tag(kind))
        for kind in {one.label for one in new[sample_id]}:
            view.tag_samples(run.failure_tag(kind))


def _failure_id(run: Fields, prompt_id: str | None) -> str:
    return label_id(run.key, str(prompt_id), "evaluation")
