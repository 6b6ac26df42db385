"""What a run made in a dataset's schema: each of its fields and attributes bears a mark, everything else is the user's.

The mark names the run and the path it was made at, in the field's `info`, which FiftyOne keeps with the field when it
is renamed, cloned or exported. So a field that was renamed or copied is known to be the user's by now, a field that was
made under a name of ours is, too, and there is no list that could be out of step with what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import fiftyone as fo

from refinesam import ConfigError

from .legacy import legacy_paths
from .private import backing_dataset
from .samples import Place, Target
from .schema import FieldKind, Fields

__all__ = [
    "attributes_of",
    "check_free",
    "declare",
    "made",
    "missing",
    "moved",
    "renamed_truth",
    "require",
    "stale",
]

_MARK: Final = "refinesam"


def made(place: Place, run: Fields) -> list[str]:
    """Return the paths of all fields and attributes that the run made and that are still its own.

    Attributes on labels of a field that was renamed since are among them, under the new name.
    """
    schema = place.schema()
    marks = _marks(schema, run)
    own = [path for path, mark in marks.items() if path == mark or _container_was_renamed(path, mark, schema, run)]
    return own or (sorted(legacy_paths(place, run)) if _is_legacy(place.root, run) else [])


def moved(place: Place, run: Fields) -> dict[str, str]:
    """Return path -> the path the run made it at, of what was renamed or copied since: the user's."""
    schema, own = place.schema(), set(made(place, run))
    return {path: mark for path, mark in _marks(schema, run).items() if path not in own}


def stale(target: Target, run: Fields) -> list[str]:
    """Return what a view of frames still has of a run that was deleted since the view was made."""
    if not target.frames:
        return []
    there, marks = target.schema(), _marks(backing_dataset(target.samples).get_field_schema(flat=True), run)
    gone = [path for path in marks if path not in there]
    return [path for path in gone if path.partition(".")[0] not in gone or "." not in path]


def _marks(schema: Mapping[str, fo.Field], run: Fields) -> dict[str, str]:
    paths = {}
    for path, field in schema.items():
        mark = (getattr(field, "info", None) or {}).get(_MARK) or {}
        if mark.get("run") == run.key and "path" in mark:
            paths[path] = str(mark["path"])
    return paths


def _container_was_renamed(path: str, mark: str, schema: Mapping[str, fo.Field], run: Fields) -> bool:
    """Whether an attribute is one of the ground truth's labels, whose field has another name by now."""
    old, _, rest = mark.partition(".")
    return path.partition(".")[2] == rest != "" and old not in schema and old not in run.may_be_written


def missing(place: Place, run: Fields, names: Iterable[str]) -> dict[str, str | None]:
    """Return the fields of these that the run does not have any more -> what each was renamed to, None if deleted."""
    own, elsewhere = set(made(place, run)), {old: new for new, old in moved(place, run).items()}
    return {name: elsewhere.get(name) for name in names if name not in own}


def renamed_truth(place: Place, run: Fields, name: str) -> str | None:
    """Return what a field of ground truth is called by now, as the attributes that evaluation put there tell."""
    for path, mark in _marks(place.schema(), run).items():
        if mark.partition(".")[0] == name != path.partition(".")[0]:
            return path.partition(".")[0]
    return None


def require(place: Place, run: Fields, names: Iterable[str]) -> None:
    """Raise ConfigError unless the run has these fields."""
    gone = missing(place, run, names)
    if gone:
        said = [f"{name} (now {new})" if new else name for name, new in gone.items()]
        raise ConfigError(f"The run {run.key!r} lacks its field {', '.join(said)}: compare again, which restores it.")


def check_free(place: Place, run: Fields, kinds: Mapping[str, FieldKind]) -> None:
    """Raise ConfigError if fields or attributes of these names exist that the run did not make, or of another kind."""
    taken, changed = _not_free(place, run, kinds)
    if taken or changed:
        # Another process may have made them for this run since the dataset was last read.
        place.root.reload()
        taken, changed = _not_free(place, run, kinds)
    if taken or changed:
        # Attributes of a field that is taken itself say nothing new.
        told = [path for path in taken + changed if not {path.partition(".")[0]} & ({*taken} - {path})]
        raise ConfigError(
            f"The run {run.key!r} would write {', '.join(told)}, which the dataset has already and the run did not "
            "make. Choose another name for the run, or rename what is there: "
            f"dataset.rename_{'frame' if place.frames else 'sample'}_field({told[0]!r}, ...)."
        )


def _not_free(place: Place, run: Fields, kinds: Mapping[str, FieldKind]) -> tuple[list[str], list[str]]:
    """Return the paths that are there and that the run did not make, and its own of another kind."""
    own, schema = set(made(place, run)), place.schema()
    taken = [path for path in kinds if path in schema and path not in own]
    changed = [path for path in kinds if path in own and not _is(schema[path], kinds[path])]
    # FiftyOne's labels may have attributes that the dataset was not told of.
    on_labels = [path for path in kinds if "." in path and path.partition(".")[0] not in run.may_be_written]
    if not taken and not any(path in schema for path in on_labels):
        taken = [path for path in on_labels if place.holds([path])] if place.holds(on_labels) else []
    return taken, changed


def _is(field: fo.Field, kind: FieldKind) -> bool:
    return getattr(field, "document_type", None) is kind if issubclass(kind, fo.Label) else isinstance(field, kind)


def declare(place: Place, run: Fields, kinds: Mapping[str, FieldKind]) -> None:
    """Declare fields and attributes, path -> kind, and mark them as the run's, so that the App can filter by them.

    Raises:
        ConfigError: one of the names is the user's.
    """
    _adopt(place, run)
    check_free(place, run, kinds)
    wanted = {path: kind for path, kind in kinds.items() if place.field(path) is None}
    try:
        if wanted:
            place.declare(wanted, {path: _info(run, path) for path in wanted})
    except ValueError as error:
        # A field that somebody made read-only takes no attributes.
        raise ConfigError(f"The run {run.key!r} cannot write what it has to: {error}") from error


def _info(run: Fields, path: str) -> dict[str, Any]:
    return {_MARK: {"run": run.key, "path": path}}


def _adopt(place: Place, run: Fields) -> None:
    """Mark what a run of a version without marks made beyond doubt."""
    if _is_legacy(place.root, run) and (paths := legacy_paths(place, run)):
        place.describe({path: (place.schema()[path].info or {}) | _info(run, path) for path in paths})


def _is_legacy(dataset: fo.Dataset, run: Fields) -> bool:
    """Whether the run is one of a version that did not mark what it made."""
    return dataset.has_run(run.key) and getattr(dataset.get_run_info(run.key).config, "record", None) is None


def attributes_of(place: Place, run: Fields, fields: Iterable[str]) -> list[str]:
    """Return attributes on labels of a run's own fields that somebody else added."""
    schema, own, names = place.schema(), set(made(place, run)), set(fields)
    added = []
    for path in schema:
        top, _, rest = path.partition(".")
        if top in names and rest.count(".") == 1 and path not in own and not _is_fiftyones(schema[top], rest):
            added.append(path)
    return added


def _is_fiftyones(field: fo.Field, rest: str) -> bool:
    labels, _, attribute = rest.partition(".")
    kind = field.get_field_schema()[labels].field.document_type
    return attribute in kind().field_names
