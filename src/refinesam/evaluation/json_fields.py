"""JSON from outside: read whole, and every field checked with a message that names its place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from refinesam.errors import DatasetError
from refinesam.rle import shown

__all__ = ["ById", "bbox_of", "field_of", "is_number", "read_json"]


class ById:
    """Values by their ids, none of which may occur twice."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self._places: dict[int, str] = {}

    def add(self, value: Any, number: int, where: str) -> None:
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


def field_of(raw: Any, key: str, kind: type[Any] | tuple[type[Any], ...], where: str) -> Any:
    """Return a field of a JSON object.

    Args:
        raw: the object.
        key: the field's name.
        kind: what its value must be; a boolean is no number.
        where: the object's place, with which messages start.

    Raises:
        DatasetError: no object, no such field, or a value of another kind.
    """
    if not isinstance(raw, dict):
        raise DatasetError(f"{where} must be an object, got {type(raw).__name__}: see COCO's format.")
    value = raw.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        got = shown(value) if key in raw else "nothing"
        raise DatasetError(f"{where}.{key} must be {wanted}, got {got}: see COCO's format.")
    return value


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold; NaN, infinity and booleans are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def bbox_of(raw: Any, where: str) -> tuple[float, float, float, float]:
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
