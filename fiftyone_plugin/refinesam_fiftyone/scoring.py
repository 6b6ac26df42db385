"""One sample's labels judged against its ground truth: IoUs, buckets and sums, in plain values to be stored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import fiftyone as fo

from refinesam.hosts import boundary_iou, size_of

from .pairing import best_overlap, pair, prompt_path
from .prompting import source_field
from .regions import Region, StoredLabel, StoredSample, iou
from .schema import Bucket, Failure, FieldKind, Fields, Settings

__all__ = ["SCORES", "Judgement", "Thresholds", "bucket_of", "disagreement", "judge", "score_kinds", "truth_scores"]

# On each baseline and AMR label.
SCORES: Final[Mapping[str, FieldKind]] = {
    "truth_id": fo.StringField,
    "iou": fo.FloatField,
    "boundary_iou": fo.FloatField,
    "base_iou": fo.FloatField,
    "amr_iou": fo.FloatField,
    "rejected_iou": fo.FloatField,
    "delta_iou": fo.FloatField,
    "base_boundary_iou": fo.FloatField,
    "amr_boundary_iou": fo.FloatField,
    "oracle_iou": fo.FloatField,
    "regret": fo.FloatField,
    "pred_iou_base": fo.FloatField,
    "pred_iou_amr": fo.FloatField,
    "bucket": fo.StringField,
    "size": fo.StringField,
    "disagreement": fo.FloatField,
}
# On each rejected candidate and each Keypoint of AMR's points.
REJECTED_SCORES: Final = ("truth_id", "iou", "bucket")
POINTS_SCORES: Final = ("truth_id", "bucket")
# The share of an image's diagonal that Boundary IoU's authors use.
BOUNDARY_RATIO: Final = 0.02


@dataclass(frozen=True)
class Thresholds:
    """What counts as failed, and as changed."""

    failed_below: float
    changed_by: float


@dataclass
class Judgement:
    """What evaluating one sample found.

    Attributes:
        values: path in the sample's document -> value to store.
        buckets: evaluated objects by bucket.
        objects: how many were evaluated.
        missed: ground truth labels that no prompt reached.
        unpaired: answered prompts without ground truth.
        failures: prompt id, or the sample's -> what could not be judged, and why.
    """

    values: dict[str, Any] = field(default_factory=dict)
    buckets: Counter[str] = field(default_factory=Counter)
    objects: int = 0
    missed: int = 0
    unpaired: int = 0
    failures: dict[str, tuple[Failure, str]] = field(default_factory=dict)


def truth_scores(run: Fields) -> dict[str, tuple[str, FieldKind]]:
    """Return attribute of a ground truth label -> the score it holds ("prompt_id" too), and its type."""
    own = {name: kind for name, kind in SCORES.items() if name not in ("truth_id", "iou", "boundary_iou")}
    return {f"{run.key}_{name}": (name, kind) for name, kind in {"prompt_id": fo.StringField, **own}.items()}


def score_kinds(run: Fields, truth_field: str | None) -> dict[str, FieldKind]:
    """Return field or attribute -> kind, of everything that evaluation writes."""
    kinds: dict[str, FieldKind] = dict(run.sums)
    kinds |= {f"{field}.detections.{name}": k for field in (run.baseline, run.amr) for name, k in SCORES.items()}
    kinds |= {f"{run.rejected}.detections.{name}": SCORES[name] for name in REJECTED_SCORES}
    kinds |= {f"{run.points}.keypoints.{name}": SCORES[name] for name in POINTS_SCORES}
    if truth_field is not None:
        kinds |= {f"{truth_field}.detections.{name}": kind for name, (_, kind) in truth_scores(run).items()}
    return kinds


def bucket_of(base_iou: float, amr_iou: float, thresholds: Thresholds) -> Bucket:
    """Return an object's bucket; that both masks failed wins over the others.

    >>> bucket_of(0.7, 0.9, Thresholds(0.5, 0.01)), bucket_of(0.2, 0.4, Thresholds(0.5, 0.01))
    ('amr_helped', 'both_failed')
    """
    if base_iou < thresholds.failed_below and amr_iou < thresholds.failed_below:
        return "both_failed"
    if amr_iou - base_iou > thresholds.changed_by:
        return "amr_helped"
    return "amr_hurt" if amr_iou - base_iou < -thresholds.changed_by else "no_change"


def disagreement(baseline: Region, amr: Region) -> float:
    """Return 1 - IoU of a prompt's two masks; 0 where both are empty, for then they agree."""
    return 1 - iou(baseline, amr) if baseline.area or amr.area else 0.0


def judge(sample: StoredSample, run: Fields, settings: Settings, thresholds: Thresholds) -> Judgement:
    """Compare a sample's masks with its ground truth.

    Every attribute of every label gets a value, None where there is none, so nothing of an earlier evaluation stays.
    """
    judgement = Judgement()
    if sample.failure is not None:
        judgement.failures[sample.id] = sample.failure
        return judgement
    _note_outdated(sample, run, settings, judgement)
    _note_problems(sample, run, settings, judgement)
    truth_of = pair(sample, run, settings)
    amr = {label.prompt_id: label for label in sample.labels[run.amr]}
    rejected = {label.prompt_id: label for label in sample.labels[run.rejected]}
    scores: dict[str | None, dict[str, Any]] = {}
    for first in sample.labels[run.baseline]:
        refined = amr.get(first.prompt_id)
        if first.prompt_id is None or first.region is None or refined is None or refined.region is None:
            continue
        scores[first.prompt_id] = {"disagreement": disagreement(first.region, refined.region)}
        truth = truth_of.get(first.prompt_id or "")
        if truth is None or truth.region is None:
            judgement.unpaired += 1
            continue
        other = rejected.get(first.prompt_id)
        regions = first.region, refined.region, None if other is None else other.region
        scores[first.prompt_id] |= _scores(truth, regions, sample.image_hw, thresholds)
        scores[first.prompt_id] |= {"pred_iou_base": first.predicted_iou, "pred_iou_amr": refined.predicted_iou}
    missed = _missed(sample, run, settings, scores, thresholds)
    judgement.missed = len(missed)
    _set_labels(sample, run, scores, judgement)
    counted = missed.values() if settings.prompts == "everything" else ()
    _set_truth(sample, run, settings, scores, missed if counted else {}, judgement)
    _sum_up(run, [*(score for score in scores.values() if "bucket" in score), *counted], judgement)
    return judgement


def _note_outdated(sample: StoredSample, run: Fields, settings: Settings, judgement: Judgement) -> None:
    """Note prompts whose own label is gone, as all are once ground truth was imported again: who knows its pair?"""
    source = source_field(settings)
    if source is None:
        return
    path = prompt_path(settings)
    sources = sample.labels[source] if path is None else sample.others[path] or ()
    asked = {str(label.id) for label in sources}
    for label in sample.labels[run.baseline]:
        if label.prompt_id is not None and label.prompt_id not in asked:
            reason = f"The label in {source!r} that this prompt was made from is gone: compare again."
            judgement.failures[label.prompt_id] = ("outdated", reason)


def _note_problems(sample: StoredSample, run: Fields, settings: Settings, judgement: Judgement) -> None:
    truths = sample.labels[settings.truth_field or ""]
    for label in [label for role in (run.baseline, run.amr, run.rejected) for label in sample.labels[role]] + truths:
        if label.problem is not None:
            judgement.failures[label.prompt_id or label.id] = ("unreadable_mask", label.problem)
    bare = sum(label.region is None and label.problem is None for label in truths)
    empty = sum(label.region is not None and not label.region.area for label in truths)
    if bare or empty:
        counts = {"no mask": bare, "no pixel in the image": empty}
        said = " and ".join(f"{count} of {len(truths)} have {what}" for what, count in counts.items() if count)
        reason = f"Of the ground truth labels {said}, so nothing can be compared with them."
        judgement.failures[sample.id] = ("no_truth", reason)


def _scores(
    truth: StoredLabel,
    regions: tuple[Region, Region, Region | None],
    image_hw: tuple[int, int],
    thresholds: Thresholds,
) -> dict[str, Any]:
    assert truth.region is not None
    base, amr = iou(regions[0], truth.region), iou(regions[1], truth.region)
    rejected = None if regions[2] is None else iou(regions[2], truth.region)
    oracle = max(base, amr, rejected or 0.0)
    return {
        "truth_id": truth.id,
        "base_iou": base,
        "amr_iou": amr,
        "rejected_iou": rejected,
        "delta_iou": amr - base,
        "base_boundary_iou": _boundary_iou(regions[0], truth.region, image_hw),
        "amr_boundary_iou": _boundary_iou(regions[1], truth.region, image_hw),
        "oracle_iou": oracle,
        "regret": oracle - amr,
        "bucket": bucket_of(base, amr, thresholds),
        "size": size_of(truth.region.area),
    }


def _boundary_iou(a: Region, b: Region, image_hw: tuple[int, int]) -> float:
    """Boundary IoU of two masks of the whole image, from the part of it that holds both.

    The boundary's width goes by the image's diagonal, so the ratio is that of the part with the same width. A part
    whose diagonal is less than that width is boundary throughout, as it is with its own diagonal as the width.
    """
    parts = [region for region in (a, b) if region.area]
    if not parts:
        return 0.0
    top, left = min(region.top for region in parts), min(region.left for region in parts)
    bottom = max(region.top + region.part.shape[0] for region in parts)
    right = max(region.left + region.part.shape[1] for region in parts)
    size = bottom - top, right - left
    frames = [Region(o.top - top, o.left - left, o.part, o.area) if o.area else o for o in (a, b)]
    width = max(1, round(BOUNDARY_RATIO * math.hypot(*image_hw)))
    return boundary_iou(frames[0].frame(size), frames[1].frame(size), min(1.0, width / math.hypot(*size)))


def _missed(
    sample: StoredSample,
    run: Fields,
    settings: Settings,
    scores: Mapping[str | None, Mapping[str, Any]],
    thresholds: Thresholds,
) -> dict[str, dict[str, Any]]:
    """Return the ground truth that no prompt reached: id -> the best that any mask overlaps it."""
    reached = {score.get("truth_id") for score in scores.values()}
    missed = {}
    for truth in sample.labels[settings.truth_field or ""]:
        if truth.id in reached or truth.region is None or not truth.region.area:
            continue
        base, amr = (best_overlap(truth.region, sample.labels[name]) for name in (run.baseline, run.amr))
        missed[truth.id] = {
            "base_iou": base,
            "amr_iou": amr,
            "delta_iou": amr - base,
            "oracle_iou": max(base, amr),
            "regret": max(base, amr) - amr,
            "bucket": bucket_of(base, amr, thresholds),
            "size": size_of(truth.region.area),
        }
    return missed


def _set_labels(
    sample: StoredSample, run: Fields, scores: Mapping[str | None, Mapping[str, Any]], judgement: Judgement
) -> None:
    layers: Iterable[tuple[str, Iterable[str], dict[str, str]]] = (
        (run.baseline, SCORES, {"iou": "base_iou", "boundary_iou": "base_boundary_iou"}),
        (run.amr, SCORES, {"iou": "amr_iou", "boundary_iou": "amr_boundary_iou"}),
        (run.rejected, REJECTED_SCORES, {"iou": "rejected_iou"}),
    )
    for name, attributes, own in layers:
        for label in sample.labels[name]:
            values = scores.get(label.prompt_id, {})
            for attribute in attributes:
                path = f"{name}.detections.{label.position}.{attribute}"
                judgement.values[path] = values.get(own.get(attribute, attribute))
    for position, prompt_id in enumerate(sample.others[f"{run.points}.keypoints.prompt_id"] or ()):
        for attribute in POINTS_SCORES:
            judgement.values[f"{run.points}.keypoints.{position}.{attribute}"] = scores.get(prompt_id, {}).get(
                attribute
            )


def _set_truth(
    sample: StoredSample,
    run: Fields,
    settings: Settings,
    scores: Mapping[str | None, Mapping[str, Any]],
    missed: Mapping[str, Mapping[str, Any]],
    judgement: Judgement,
) -> None:
    # Of several prompts for one object (clicks may be), its label holds the first's scores.
    by_truth: dict[str, Mapping[str, Any]] = dict(missed)
    for prompt_id, scored in scores.items():
        if "truth_id" in scored:
            by_truth.setdefault(scored["truth_id"], {**scored, "prompt_id": prompt_id})
    for truth in sample.labels[settings.truth_field or ""]:
        values = by_truth.get(truth.id, {})
        for attribute, (score, _) in truth_scores(run).items():
            judgement.values[f"{settings.truth_field}.detections.{truth.position}.{attribute}"] = values.get(score)


def _sum_up(run: Fields, objects: list[Mapping[str, Any]], judgement: Judgement) -> None:
    judgement.objects = len(objects)
    judgement.buckets.update(values["bucket"] for values in objects)
    deltas = [values["delta_iou"] for values in objects]
    count = len(objects)
    judgement.values |= {
        f"{run.key}_objects": count,
        f"{run.key}_missed": judgement.missed,
        f"{run.key}_mean_base_iou": math.fsum(values["base_iou"] for values in objects) / count if count else None,
        f"{run.key}_mean_amr_iou": math.fsum(values["amr_iou"] for values in objects) / count if count else None,
        f"{run.key}_mean_delta": math.fsum(deltas) / count if count else None,
        f"{run.key}_worst_delta": min(deltas, default=None),
        f"{run.key}_best_delta": max(deltas, default=None),
        f"{run.key}_helped": judgement.buckets["amr_helped"],
        f"{run.key}_hurt": judgement.buckets["amr_hurt"],
        f"{run.key}_failed": judgement.buckets["both_failed"],
    }
