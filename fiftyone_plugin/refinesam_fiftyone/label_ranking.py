"""Is the label wrong, or the mask? Ground truth in the order of how surely the model disagrees with it.

A disagreement speaks against the label where the plain and the refined mask agree with each other, the model predicts a
high IoU for them, and the label fits neither. A mask that fits no label may be an object that nobody labelled.

Of a mask, sureness is the IoU of its plain and its refined version, times the predicted IoU. Of a label, doubt is 1
less the best IoU that any mask has with it, times the sureness of the surest mask that concerns it (as far as the
smaller of the two lies in the other); or, where that is more, times the share of the image's other labels that masks
fit: a model that finds the others would have found this one. Of a mask without a label, it is the sureness, times what
no label shares of it. Where each label was asked for itself, by its own box, doubt is 1 less the best IoU alone: a
wrong box makes the model unsure, too, so that its sureness would hide the worst (`benchmarks/label_errors.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import fiftyone as fo
import pandas as pd
from fiftyone import ViewField

from refinesam import ConfigError

from .record import check_free, declare, require
from .regions import Region, StoredLabel, StoredSample, iou, overlap, read_samples
from .runs import present_truth, run_of, view_state
from .samples import Target
from .schema import VIEW_DESCRIPTIONS, FieldKind, Fields, Settings
from .storing import store_values

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["check_label_ranking", "doubtful_view", "rank_labels"]

# A label that some mask overlaps by this, in IoU, counts as one that the model found.
FITS: Final = 0.5


@dataclass(frozen=True, eq=False)
class _Mask:
    """What the model says of one prompt: both masks, and how sure it is of them."""

    id: str
    position: int
    regions: tuple[Region, Region]
    sureness: float

    def fit(self, label: Region) -> float:
        """The better IoU of its two masks with a label."""
        return max(iou(region, label) for region in self.regions)


@dataclass(frozen=True)
class _Doubt:
    """One row of the ranking; see `rank_labels`."""

    sample_id: str
    kind: str
    id: str
    label: str | None
    doubt: float
    iou: float


def rank_labels(
    samples: SampleCollection,
    *,
    run_key: str = "refinesam",
    on_progress: Callable[[int, int], object] | None = None,
) -> pd.DataFrame:
    """Order ground truth by how surely a run's masks disagree with it, and write the doubts into the dataset.

    Ground truth labels get the attribute "{key}_doubt", and refined masks "unlabelled", each 0 to 1; samples get the
    field "{key}_label_doubt", the greatest of both. A view of the samples in that order is saved. A run of "everything"
    sees objects without a label too, and masks that a wrong box cannot mislead; one of boxes of the labels asks each
    label for itself. Classes are not looked at: the model knows none. Label filters of a view are not looked at.

    Args:
        samples: a dataset or view.
        run_key: of a run that `compare` made, with ground truth.
        on_progress: called after every batch with the samples done so far and their number.

    Returns:
        The most doubtful first: "sample_id", "kind" ("label" or "unlabelled"), "id" of the label or refined mask,
        "label" (its class), "doubt", and "iou", the best of a mask with the label, or of a label with the mask.

    Raises:
        ConfigError: no such run, one without ground truth, or one that lacks one of its fields.
    """
    target, run, settings = run_of(samples, run_key)
    truth = check_label_ranking(target, run, settings)
    declare(target, run, _kinds(run, truth))
    asks_labels = settings.prompts == "random-2" or (settings.prompts == "boxes" and settings.prompt_field == truth)
    ids, doubts, done = target.ids, list[_Doubt](), 0
    for batch in read_samples(target, ids, (run.baseline, run.amr, truth)):
        updates = {}
        for sample in batch:
            found = list(_doubts(sample, run, truth, asks_labels))
            doubts += found
            updates[sample.id] = (sample.modified, _values(sample, run, truth, found))
        store_values(target, updates)
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(ids))
    target.root.reload()
    name = run.view_name("labels")
    if view_state(target.root, run, name) != "other":
        view = doubtful_view(target.samples, run_key=run_key)
        target.root.save_view(name, view, description=VIEW_DESCRIPTIONS["labels"], overwrite=True)
    rows = pd.DataFrame(doubts, columns=list(_Doubt.__annotations__))
    return rows.sort_values("doubt", ascending=False, kind="stable", ignore_index=True)


def check_label_ranking(target: Target, run: Fields, settings: Settings) -> str:
    """Return the ground truth field; raise ConfigError for what ranking lacks, and for names that are the user's."""
    truth = present_truth(target, settings)
    if truth is None:
        raise ConfigError(
            f"The run {run.key!r} has no ground truth, whose labels could be wrong: compare again with a field of "
            "ground truth masks."
        )
    require(target, run, (run.baseline, run.amr))
    check_free(target, run, _kinds(run, truth))
    return truth


def doubtful_view(samples: SampleCollection, *, run_key: str = "refinesam") -> fo.DatasetView:
    """Return the samples with a doubt, the most doubtful first."""
    target, run, _ = run_of(samples, run_key)
    return target.view().match(ViewField(_sample_field(run)) > 0).sort_by(_sample_field(run), reverse=True)


def _sample_field(run: Fields) -> str:
    return f"{run.key}_label_doubt"


def _kinds(run: Fields, truth: str) -> dict[str, FieldKind]:
    paths = (_sample_field(run), f"{truth}.detections.{run.key}_doubt", f"{run.amr}.detections.unlabelled")
    return dict.fromkeys(paths, fo.FloatField)


def _doubts(sample: StoredSample, run: Fields, truth: str, asks_labels: bool) -> Iterator[_Doubt]:
    masks = list(_masks(sample, run))
    labels = [one for one in sample.labels[truth] if one.region is not None and one.region.area]
    if asks_labels:
        # Each label was asked for itself; a neighbour's mask says nothing of it.
        by_id = {mask.id: mask for mask in masks}
        for label in labels:
            own = [by_id[label.id]] if label.id in by_id else []
            fit, _ = _doubt_of(label, own)
            yield _Doubt(sample.id, "label", label.id, label.label, 1 - fit if own else 0.0, fit)
        return
    pairs = [_doubt_of(label, masks) for label in labels]
    fitting = sum(fit >= FITS for fit, _ in pairs)
    for label, (fit, doubt) in zip(labels, pairs, strict=True):
        others = (fitting - (fit >= FITS)) / (len(labels) - 1) if len(labels) > 1 else 0.0
        yield _Doubt(sample.id, "label", label.id, label.label, max(doubt, others * (1 - fit)), fit)
    for mask in masks:
        shared = max((overlap(mask.regions[1], label.region) for label in labels if label.region), default=0.0)
        fit = max((mask.fit(label.region) for label in labels if label.region), default=0.0)
        refined = sample.labels[run.amr][mask.position]
        yield _Doubt(sample.id, "unlabelled", refined.id, refined.label, mask.sureness * (1 - shared), fit)


def _doubt_of(label: StoredLabel, masks: Sequence[_Mask]) -> tuple[float, float]:
    """Return how well the masks fit a label, and how much they doubt it."""
    assert label.region is not None
    fit, against = 0.0, 0.0
    for mask in masks:
        fit = max(fit, mask.fit(label.region))
        against = max(against, mask.sureness * overlap(mask.regions[1], label.region))
    return fit, (1 - fit) * against


def _masks(sample: StoredSample, run: Fields) -> Iterator[_Mask]:
    refined = {label.prompt_id: label for label in sample.labels[run.amr]}
    for first in sample.labels[run.baseline]:
        second = refined.get(first.prompt_id)
        if first.prompt_id is None or second is None or first.region is None or second.region is None:
            continue
        sureness = iou(first.region, second.region) * min(1.0, max(0.0, second.predicted_iou or 0.0))
        yield _Mask(first.prompt_id, second.position, (first.region, second.region), sureness)


def _values(sample: StoredSample, run: Fields, truth: str, doubts: Sequence[_Doubt]) -> dict[str, float | None]:
    """Return path -> value; labels that could not be judged lose what an earlier ranking gave them."""
    by_id = {(doubt.kind, doubt.id): doubt.doubt for doubt in doubts}
    values: dict[str, float | None] = {_sample_field(run): max((one.doubt for one in doubts), default=None)}
    for kind, name, attribute in (("label", truth, f"{run.key}_doubt"), ("unlabelled", run.amr, "unlabelled")):
        for label in sample.labels[name]:
            values[f"{name}.detections.{label.position}.{attribute}"] = by_id.get((kind, label.id))
    return values
