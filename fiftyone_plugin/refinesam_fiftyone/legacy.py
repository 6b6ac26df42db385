"""What runs of a version that marked nothing made, as far as it can be told beyond doubt.

Such a run wrote under its names without asking, so that a field of its name may be the user's. A field of labels is the
run's if each of its labels has the id that the run gives; what else comparing or evaluation made was declared in the
same moment as a field that only they can have made.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import fiftyone as fo

from .labels import label_id
from .samples import Place
from .schema import ROLES, Fields
from .scoring import score_kinds, truth_scores

__all__ = ["legacy_paths"]

_DIGEST: Final = "^[0-9a-f]{32}$"
# Declaring a run's fields took some seconds on a busy machine.
_TOGETHER: Final = timedelta(seconds=30)


def legacy_paths(place: Place, run: Fields) -> set[str]:
    """Return the fields and attributes that the run made."""
    schema = place.schema()
    paths: set[str] = set()
    if _has_digests(place, run, schema):
        lists = _label_fields(place, run, schema)
        paths |= {run.digest, *(path for path in lists if _with(schema, path, run.digest))}
    paths |= {path for path in run.kinds | score_kinds(run, None) if path in schema and path.partition(".")[0] in paths}
    for anchor, kinds in (
        (f"{run.baseline}.detections.truth_id", dict(run.sums)),
        (f"{run.baseline}.detections.disagreement", {run.rank: fo.IntField}),
    ):
        if anchor in paths:
            paths |= {p for p, kind in kinds.items() if isinstance(schema.get(p), kind) and _with(schema, p, anchor)}
    anchor = f"{run.baseline}.detections.truth_id"
    for path, field in schema.items() if anchor in paths else ():
        attribute = path.rpartition(".")[2]
        _, kind = truth_scores(run).get(attribute, ("", None))
        if path.count(".") == 2 and kind is not None and isinstance(field, kind) and _with(schema, path, anchor):
            paths.add(path)
    return paths


def _has_digests(place: Place, run: Fields, schema: Mapping[str, fo.Field]) -> bool:
    """Whether some samples have a digest, and nothing else is in its field."""
    if not isinstance(schema.get(run.digest), fo.StringField):
        return False
    find_one = place.collection.find_one
    others = {run.digest: {"$ne": None, "$not": {"$regex": _DIGEST}}}
    return find_one(others) is None and find_one({run.digest: {"$ne": None}}) is not None


def _with(schema: Mapping[str, fo.Field], path: str, anchor: str) -> bool:
    times = [schema[field].created_at for field in (path, anchor)]
    return None not in times and abs(times[0] - times[1]) < _TOGETHER


def _label_fields(place: Place, run: Fields, schema: Mapping[str, fo.Field]) -> list[str]:
    """Return the fields of labels in which every label is the run's."""
    parts: dict[str, tuple[str, tuple[str, ...]]] = {run.masks(role): ("detections", (role,)) for role in ROLES}
    parts |= {run.points: ("keypoints", ("points",)), run.failures: ("classifications", ("failure", "evaluation"))}
    names = []
    for name, (labels, roles) in parts.items():
        path = f"{name}.{labels}"
        if f"{path}.prompt_id" not in schema or getattr(schema[name], "document_type", None) is not run.kinds[name]:
            continue
        pairs = zip(*place.root.values([f"{path}.id", f"{path}.prompt_id"], unwind=True), strict=True)
        if all(own_id in {label_id(run.key, str(prompt), role) for role in roles} for own_id, prompt in pairs):
            names.append(name)
    return names
