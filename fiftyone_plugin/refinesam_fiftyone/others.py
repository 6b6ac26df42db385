"""Labels that somebody drew into a run's own fields, and tags put onto its labels: they outlive that it answers again.

The run's labels have the id of a prompt, others have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from fiftyone import ViewField

from .samples import Target
from .schema import ALL_ROLES, Fields

if TYPE_CHECKING:
    import fiftyone as fo

__all__ = ["count_others", "keep_others", "labels_of_others", "tags_of"]

_OTHERS: Final = ViewField("prompt_id").exists(False)


def _lists(target: Target, run: Fields) -> dict[str, str]:
    """Return field -> the list in it, of the run's fields of masks and points that are there."""
    names = {run.masks(role): "detections" for role in ALL_ROLES} | {run.points: "keypoints"}
    return {name: kind for name, kind in names.items() if target.field(f"{name}.{kind}.prompt_id") is not None}


def count_others(target: Target, run: Fields) -> dict[str, int]:
    """Return field -> how many labels others added to it; fields without any are left out."""
    lists = _lists(target, run)
    counts = {name: target.samples.filter_labels(name, _OTHERS).count(f"{name}.{kind}") for name, kind in lists.items()}
    return {name: count for name, count in counts.items() if count}


def keep_others(target: Target, run: Fields, names: Sequence[str]) -> list[str]:
    """Take the run's own labels out of those of some fields that others added labels to; return these fields."""
    kept = [name for name in count_others(target, run) if name in names]
    for name in kept:
        target.samples.filter_labels(name, _OTHERS, only_matches=False).save(name)
    return kept


def labels_of_others(target: Target, run: Fields, ids: Sequence[str]) -> dict[str, dict[str, list[fo.Label]]]:
    """Return field -> sample id -> the labels that others added."""
    labels = {}
    for name, kind in _lists(target, run).items():
        view = target.samples.select(list(ids)).filter_labels(name, _OTHERS)
        labels[name] = {sample.id: list(sample[name][kind]) for sample in view.select_fields(name)}
    return labels


def tags_of(target: Target, run: Fields, ids: Sequence[str]) -> Mapping[str, list[str]]:
    """Return label id -> its tags, of labels that have some."""
    tags_by_id: dict[str, list[str]] = {}
    for name, kind in _lists(target, run).items():
        pairs = target.samples.select(list(ids)).values([f"{name}.{kind}.id", f"{name}.{kind}.tags"])
        for labels, tags in zip(*pairs, strict=True):
            tags_by_id |= {label: list(own) for label, own in zip(labels or (), tags or (), strict=True) if own}
    return tags_by_id
