"""Saved views of a run: one a bucket, with the objects of that bucket alone on every layer, the worst samples first.

A saved view is a stored query. These ask for the bucket that evaluation wrote onto each layer's labels and name no
label or sample, so after comparing and evaluating again they show what is then in the bucket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from fiftyone import ViewField

from refinesam import ConfigError
from refinesam.hosts import LIKELY_SIMILARITY

from .labels import label_id
from .private import is_patches
from .record import declare, missing, require
from .runs import present_truth, run_of, view_state
from .samples import target_of
from .schema import BUCKETS, VIEW_DESCRIPTIONS, Bucket, Fields, Settings
from .scoring import score_kinds

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection

__all__ = ["bucket_view", "failures_view", "save_likely_view", "save_views", "view_of_rows"]


def save_views(samples: SampleCollection, *, run_key: str = "refinesam") -> list[str]:
    """Save one view a bucket and one of the failures, in place of the run's own; return their names.

    A view that somebody else saved under such a name is left alone, and is not among them.

    Args:
        samples: a dataset, or a view of frames; the views show all its samples.
        run_key: of a run that was evaluated.

    Raises:
        ConfigError: no such run, one without ground truth, or one that lacks one of its fields.
    """
    target, run, settings = run_of(samples, run_key)
    _check_truth(run, settings)
    require(target, run, (run.baseline, run.amr))
    declare(target, run, score_kinds(run, present_truth(target, settings)))
    views: dict[str, fo.DatasetView] = {
        bucket: bucket_view(target.samples, bucket, run_key=run_key) for bucket in BUCKETS
    }
    views["failures"] = failures_view(target.samples, run_key=run_key)
    saved = []
    for bucket, view in views.items():
        name = run.view_name(bucket)
        if view_state(target.root, run, name) != "other":
            target.root.save_view(name, view, description=VIEW_DESCRIPTIONS[bucket], overwrite=True)
            saved.append(name)
    return saved


def bucket_view(samples: SampleCollection, bucket: Bucket, *, run_key: str = "refinesam") -> fo.DatasetView:
    """Return a view of the samples that have an object in a bucket, with the labels of those objects alone.

    Every layer is filtered: both masks, rejected candidates, AMR's points, and the ground truth. Ordered by the
    samples' worst change of IoU, the lowest first; the samples that AMR helped most are first in theirs.

    Raises:
        ConfigError: an unknown bucket, no such run, or one that was not evaluated.
    """
    if bucket not in BUCKETS:
        raise ConfigError(f"There is no bucket {bucket!r}; choose one of {', '.join(BUCKETS)}.")
    target, run, settings = run_of(samples, run_key)
    _check_truth(run, settings)
    require(target, run, (run.baseline, run.amr))
    if missing(target, run, run.sums):
        raise ConfigError(f"The run {run.key!r} was not evaluated, or lacks a field of it: evaluate it first.")
    samples = target.view() if is_patches(target.asked) else target.asked
    counts = {"amr_helped": "helped", "amr_hurt": "hurt", "both_failed": "failed"}
    if bucket in counts:
        view = samples.match(ViewField(f"{run.key}_{counts[bucket]}") > 0)
    else:
        labels = ViewField(f"{run.baseline}.detections")
        view = samples.match(labels.filter(ViewField("bucket") == bucket).length() > 0)
    # Sorted before labels are filtered, for MongoDB can use the field's index then, and need not sort whole documents.
    helped = bucket == "amr_helped"
    view = view.sort_by(f"{run.key}_{'best' if helped else 'worst'}_delta", reverse=helped)
    layers = (run.baseline, run.amr, run.rejected, run.points)
    for name in (layer for layer in layers if layer not in missing(target, run, layers)):
        view = view.filter_labels(name, ViewField("bucket") == bucket, only_matches=False)
    truth = present_truth(target, settings)
    if truth is None:
        return view
    return view.filter_labels(truth, ViewField(f"{run.key}_bucket") == bucket, only_matches=False)


def failures_view(samples: SampleCollection, *, run_key: str = "refinesam") -> fo.DatasetView:
    """Return a view of the samples that have an entry in the run's failures."""
    target, run, _ = run_of(samples, run_key)
    listed = ViewField(f"{run.failures}.classifications")
    return target.asked.match(listed.length() > 0)


def save_likely_view(samples: SampleCollection, *, run_key: str) -> str | None:
    """Save a view of what a search found and is more likely of the kind than not; return its name.

    None, if somebody else saved a view under that name, which is left alone.

    Args:
        samples: a dataset, or a view of frames; the view shows all its samples that have such an object.
        run_key: of a run that `find_similar` made.
    """
    target, run = target_of(samples), Fields(run_key)
    name = run.view_name("likely")
    if view_state(target.root, run, name) == "other":
        return None
    view = target.samples.filter_labels(run.labels, ViewField("similarity") >= LIKELY_SIMILARITY)
    target.root.save_view(name, view, description=VIEW_DESCRIPTIONS["likely"], overwrite=True)
    return name


def view_of_rows(samples: SampleCollection, run: Fields, rows: pd.DataFrame) -> fo.DatasetView:
    """Return the samples of some rows, worst first, with the labels of those rows alone in each of the run's layers."""
    target, _, settings = run_of(samples, run.key)
    layers = (run.baseline, run.amr, run.rejected, run.points, present_truth(target, settings))
    fields = [name for name in layers if name is not None and target.field(name) is not None]
    ids = [own for name in ("baseline_id", "amr_id", "truth_id") for own in rows[name].dropna()]
    ids += [label_id(run.key, prompt, role) for prompt in rows["prompt_id"].dropna() for role in ("rejected", "points")]
    order = rows.sort_values(["delta_iou", "amr_iou", "pred_iou_amr"], na_position="last")["sample_id"]
    view = target.select(list(dict.fromkeys(order)))
    view = view.select_labels(ids=ids, fields=fields, omit_empty=False)
    if target.field(f"{run.candidates}.detections.prompt_id") is None:
        return view
    asked = list(dict.fromkeys(rows["prompt_id"].dropna()))
    return view.filter_labels(run.candidates, ViewField("prompt_id").is_in(asked), only_matches=False)


def _check_truth(run: Fields, settings: Settings) -> None:
    if settings.truth_field is None:
        raise ConfigError(f"The run {run.key!r} was made without ground truth, so it has no buckets: rank it instead.")
