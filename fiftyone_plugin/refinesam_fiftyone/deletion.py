"""What there is of a run, and its end: exactly what it made is deleted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .files import remove, split_files
from .label_runs import list_label_runs
from .others import count_others
from .record import attributes_of, made, moved
from .runs import config_of, delete_evaluations, evaluations_of, made_as, place_of, read_settings, view_state
from .samples import target_of
from .schema import FAILURES, VIEW_TITLES, Fields

if TYPE_CHECKING:
    import fiftyone as fo

__all__ = ["Contents", "contents", "delete_run"]


@dataclass(frozen=True)
class Contents:
    """What there is of a run.

    Attributes:
        fields: that hold its answers and scores.
        attributes: on labels of other fields, by their paths.
        views: saved views.
        tags: of samples.
        evaluations: of FiftyOne, by their keys; their fields are among the fields.
        files: of masks.
        added: what somebody else put into the run's own fields, in words: attributes and labels; they go with those.
        stays: what looks like the run's and is not deleted, and why.
    """

    fields: list[str]
    attributes: list[str]
    views: list[str]
    tags: list[str]
    evaluations: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)


def contents(dataset: fo.Dataset, run: Fields) -> Contents:
    """Return what `delete_run` deletes, and what it leaves although it could be taken for the run's.

    Raises:
        ConfigError: no such run.
    """
    masks_dir = None if run.key in list_label_runs(dataset) else read_settings(dataset, run).masks_dir
    place, folders = place_of(dataset, run), config_of(dataset, run).get("folders") or ()
    run = made_as(dataset, run)
    own = made(place, run)
    names = [path for path in own if "." not in path]
    attributes = [path for path in own if path.partition(".")[0] not in names]
    files, shared = split_files(place, run, folders)
    states = {name: view_state(dataset, run, name) for name in map(run.view_name, VIEW_TITLES)}
    views = [name for name, state in states.items() if state == "own"]
    stays = [
        f"`{path}`: made as `{old}`, and renamed or copied since"
        for path, old in moved(place, run).items()
        if "." not in path
    ]
    candidates = {*run.may_be_written, *run.sums, run.rank}
    stays += [f"`{name}`: this run did not make it" for name in place.schema() if name in candidates - set(own)]
    stays += [f"the view `{name}`: this run did not save it" for name, state in states.items() if state == "other"]
    if shared:
        stays.append(f"{len(shared)} mask files that other labels use, too")
    if masks_dir and not folders:
        stays.append(f"mask files in `{masks_dir}`: an earlier version wrote them, and noted none")
    known = set() if place.frames else place.texts("tags", re.escape(f"{run.key}:"))
    tags = [tag for tag in map(run.failure_tag, FAILURES) if tag in known]
    added = [f"`{path}`" for path in attributes_of(place, run, names)]
    if not place.frames:
        counts = count_others(target_of(dataset), run)
        added += [f"{count} labels in `{name}`" for name, count in counts.items() if name in names]
    return Contents(names, attributes, views, tags, evaluations_of(place, run), files, added, stays)


def delete_run(dataset: fo.Dataset, run: Fields) -> Contents:
    """Delete exactly what a run made, and its record; return what that was.

    Raises:
        ConfigError: no such run.
    """
    deleted, place = contents(dataset, run), place_of(dataset, run)
    delete_evaluations(place, made_as(dataset, run))
    there = place.schema()
    place.delete([path for path in (*deleted.fields, *deleted.attributes) if path in there])
    if deleted.tags:
        # Of all slices of groups.
        target_of(dataset).samples.untag_samples(deleted.tags)
    for name in deleted.views:
        dataset.delete_saved_view(name)
    # Last of all what can be found without the record.
    remove(deleted.files)
    dataset.delete_run(run.key)
    return deleted
