"""Saved views of a run: one a bucket, with the objects of that bucket alone on every layer, the worst samples first.

A saved view is a stored query. These ask for the bucket that evaluation wrote onto each layer's labels and name no
label or sample, so after comparing and evaluating again they show what is then in the bucket.
"""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from fiftyone import ViewField

from refinesam import ConfigError

from .evaluation import declare_scores
from .labels import label_id
from .schema import BUCKETS, Bucket, Fields, Settings, read_settings

__all__ = ["bucket_view", "failures_view", "save_views", "view_name", "view_of_rows"]

_TITLES: Final[dict[str, str]] = {
    "amr_helped": "AMR helped",
    "amr_hurt": "AMR hurt",
    "no_change": "no change",
    "both_failed": "both failed",
    "failures": "failures",
}
_DESCRIPTIONS: Final[dict[str, str]] = {
    "amr_helped": "Objects whose mask AMR made better; the sample that it helped most comes first.",
    "amr_hurt": "Objects whose mask AMR made worse; the sample that it hurt most comes first.",
    "no_change": "Objects whose mask AMR left as good as it was.",
    "both_failed": "Objects that neither mask found; the sample that AMR hurt most comes first.",
    "failures": "Samples with a prompt that could not be answered, or a mask that could not be compared.",
}


def view_name(run: Fields, bucket: str) -> str:
    """Return the name of the saved view of a bucket, or of "failures"."""
    return f"{run.key}: {_TITLES[bucket]}"


def save_views(dataset: Any, *, run_key: str = "refinesam") -> list[str]:
    """Save one view a bucket and one of the failures, in place of those of the same name; return their names.

    Raises:
        ConfigError: no such run, or one without ground truth.
    """
    run = Fields(run_key)
    settings = read_settings(dataset, run)
    _check_truth(run, settings)
    declare_scores(dataset, run, settings)
    views: dict[str, Any] = {bucket: bucket_view(dataset, bucket, run_key=run_key) for bucket in BUCKETS}
    views["failures"] = failures_view(dataset, run_key=run_key)
    for bucket, view in views.items():
        dataset.save_view(view_name(run, bucket), view, description=_DESCRIPTIONS[bucket], overwrite=True)
    return [view_name(run, bucket) for bucket in views]


def bucket_view(samples: Any, bucket: Bucket, *, run_key: str = "refinesam") -> Any:
    """Return a view of the samples that have an object in a bucket, with the labels of those objects alone.

    Every layer is filtered: both masks, rejected candidates, AMR's points, and the ground truth. Ordered by the
    samples' worst change of IoU, the lowest first; the samples that AMR helped most are first in theirs.

    Raises:
        ConfigError: an unknown bucket, no such run, or one that was not evaluated.
    """
    if bucket not in BUCKETS:
        raise ConfigError(f"There is no bucket {bucket!r}; choose one of {', '.join(BUCKETS)}.")
    run = Fields(run_key)
    dataset = samples._root_dataset
    settings = read_settings(dataset, run)
    _check_truth(run, settings)
    if dataset.get_field(f"{run.key}_worst_delta") is None:
        raise ConfigError(f"The run {run.key!r} was not evaluated: evaluate it first.")
    counts = {"amr_helped": "helped", "amr_hurt": "hurt", "both_failed": "failed"}
    if bucket in counts:
        view = samples.match(ViewField(f"{run.key}_{counts[bucket]}") > 0)
    else:
        labels = ViewField(f"{run.baseline}.detections")
        view = samples.match(labels.filter(ViewField("bucket") == bucket).length() > 0)
    # Sorted before labels are filtered, for MongoDB can use the field's index then, and need not sort whole documents.
    helped = bucket == "amr_helped"
    view = view.sort_by(f"{run.key}_{'best' if helped else 'worst'}_delta", reverse=helped)
    for name in (run.baseline, run.amr, run.rejected, run.points):
        view = view.filter_labels(name, ViewField("bucket") == bucket, only_matches=False)
    own = ViewField(f"{run.key}_bucket") == bucket
    return view.filter_labels(settings.truth_field, own, only_matches=False)


def failures_view(samples: Any, *, run_key: str = "refinesam") -> Any:
    """Return a view of the samples that have an entry in the run's failures."""
    listed = ViewField(f"{Fields(run_key).failures}.classifications")
    return samples.match(listed.length() > 0)


def view_of_rows(dataset: Any, run: Fields, rows: pd.DataFrame) -> Any:
    """Return the samples of some rows, worst first, with the labels of those rows alone in each of the run's layers."""
    truth = read_settings(dataset, run).truth_field
    fields = [run.baseline, run.amr, run.rejected, run.points] + ([truth] if truth else [])
    ids = [one for name in ("baseline_id", "amr_id", "truth_id") for one in rows[name].dropna()]
    ids += [label_id(run.key, one, role) for one in rows["prompt_id"].dropna() for role in ("rejected", "points")]
    order = rows.sort_values(["delta_iou", "amr_iou", "pred_iou_amr"], na_position="last")["sample_id"]
    samples = dataset.select(list(dict.fromkeys(order)), ordered=True)
    return samples.select_labels(ids=ids, fields=fields, omit_empty=False)


def _check_truth(run: Fields, settings: Settings) -> None:
    if settings.truth_field is None:
        raise ConfigError(f"The run {run.key!r} was made without ground truth, so it has no buckets: rank it instead.")
