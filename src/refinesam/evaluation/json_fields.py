"""JSON from outside: read whole, and every field checked with a message that names its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeGuard, TypeVar

from refinesam.errors import DatasetError
from refinesam.files import JsonObject
from refinesam.rle import shown

__all__ = ["ById", "Damaged", "DamagedRecord", "bbox_of", "field_of", "is_number", "object_at", "read_json"]

T = TypeVar("T")

# Damaged records that one error names.
NAMED = 20


@dataclass(frozen=True)
class DamagedRecord:
    """A record of a file that broke its format.

    Attributes:
        part: the list it stands in, such as "annotations".
        index: its place there, from 0.
        reason: names the file, the place and what is wrong.
    """

    part: str
    index: int
    reason: str


@dataclass
class Damaged:
    """The damaged records of one file; each costs itself."""

    records: list[DamagedRecord] = field(default_factory=list)

    @contextmanager
    def isolated(self, part: str, index: int) -> Iterator[None]:
        """List the DatasetError that the block raises, if any."""
        try:
            yield
        except DatasetError as error:
            self.records.append(DamagedRecord(part, index, str(error)))

    def check_none(self) -> None:
        """Raise one DatasetError that names them, where there are any."""
        if len(self.records) == 1:
            raise DatasetError(self.records[0].reason)
        if self.records:
            raise DatasetError(f"{self}; correct them or take them out.")

    def __str__(self) -> str:
        """Count the records and name them."""
        more = len(self.records) - NAMED
        named = [record.reason for record in self.records[:NAMED]] + ([f"and {more} more"] if more > 0 else [])
        return f"{len(self.records)} damaged records: {'; '.join(named)}"


class ById(Generic[T]):
    """Values by their ids, none of which may occur twice."""

    def __init__(self) -> None:
        self.values: dict[int, T] = {}
        self._places: dict[int, str] = {}

    def add(self, value: T, number: int, where: str) -> None:
        """Keep a value; raise DatasetError if its id was seen before."""
        if number in self.values:
            raise DatasetError(
                f"{where}.id {number} is also that of {self._places[number]}: each needs an id of its own."
            )
        self.values[number] = value
        self._places[number] = where.rsplit(": ", 1)[-1]


def read_json(path: Path) -> Any:
    """Read a file's content.

    Raises:
        DatasetError: the file cannot be read, or is not JSON in UTF-8.
    """
    try:
        # Some Windows tools start UTF-8 files with a byte order mark.
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"Cannot read {path}: {error.strerror}. Give the path of a COCO JSON file.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text: {error}. Give a COCO JSON file, saved as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: {error}. Give a COCO JSON file.") from error


def object_at(raw: object, where: str) -> JsonObject:
    """Return a JSON object; DatasetError, which starts with its place, where it is none."""
    if not isinstance(raw, dict):
        raise DatasetError(f"{where} must be an object, got {type(raw).__name__}: see COCO's format.")
    return raw


def field_of(raw: object, key: str, kind: type[T] | tuple[type[T], ...], where: str) -> T:
    """Return a field of a JSON object.

    Args:
        raw: the object.
        key: the field's name.
        kind: what its value must be; a boolean is no number.
        where: the object's place, with which messages start.

    Raises:
        DatasetError: no object, no such field, or a value of another kind.
    """
    entry = object_at(raw, where)
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        got = shown(value) if key in entry else "nothing"
        raise DatasetError(f"{where}.{key} must be {wanted}, got {got}: see COCO's format.")
    return value


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a number that a float can hold; NaN, infinity and booleans are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def bbox_of(raw: object, where: str) -> tuple[float, float, float, float]:
    """Return the field `bbox` of a JSON object: x, y, width, height in pixels.

    Raises:
        DatasetError: no such field, or not four finite numbers with sizes of 0 or more.
    """
    bbox = field_of(raw, "bbox", list, where)
    if len(bbox) != 4 or not all(is_number(v) for v in bbox) or bbox[2] < 0 or bbox[3] < 0:
        raise DatasetError(
            f"{where}.bbox must be four finite numbers x, y, width, height, the sizes not negative, got {shown(bbox)}."
        )
    x, y, width, height = (float(value) for value in bbox)
    return x, y, width, height
