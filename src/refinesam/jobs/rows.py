"""What a job writes: one row an object, and for an image without any a row of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from refinesam.errors import DatasetError
from refinesam.evaluation.parquet import arrow_modules
from refinesam.files import writing
from refinesam.jobs.inputs import Source
from refinesam.jobs.prompts import ObjectPrompt
from refinesam.masks import box_from_mask
from refinesam.rle import encode_rle
from refinesam.types import Prediction

__all__ = ["COLUMNS", "Row", "Task", "failed_rows", "object_row", "read_rows", "write_rows"]

Row = dict[str, Any]

# Names and Arrow types of the columns, in their order.
COLUMNS: Final = {
    "image": "string",
    "location": "string",
    "height": "int64",
    "width": "int64",
    "object": "int64",
    "prompt_id": "string",
    "prompt": "string",
    "class_id": "int64",
    "class_name": "string",
    "score": "float64",
    "predicted_iou": "float64",
    "kept": "string",
    "rle": "string",
    "box": "floats",
    "area": "int64",
    "seconds": "float64",
    "error": "string",
}


@dataclass(frozen=True)
class Task:
    """One image of a job, its place among them, and what is asked of it; None for everything in it."""

    index: int
    source: Source
    prompts: tuple[ObjectPrompt, ...] | None


def image_row(task: Task, **values: Any) -> Row:
    """Return a row of an image, with null for what is not given."""
    return dict.fromkeys(COLUMNS) | {"image": task.source.name, "location": task.source.location} | values


def object_row(
    task: Task, number: int, asked: ObjectPrompt, prediction: Prediction | None, error: str | None, **values: Any
) -> Row:
    """Return the row of one object.

    Args:
        task: its image.
        number: of the object in it, from 0.
        asked: its prompt.
        prediction: None where it failed.
        error: why it failed.
        **values: further columns.
    """
    row = image_row(task, object=number, error=error, **values)
    row |= {name: getattr(asked, name) for name in ("prompt_id", "class_id", "class_name", "score")}
    row["prompt"] = asked.to_json()
    if prediction is None:
        return row
    mask, report = prediction.mask, prediction.refinement
    box = box_from_mask(mask)
    return row | {
        "predicted_iou": prediction.score,
        "kept": None if report is None else report.kept,
        "rle": encode_rle(mask)["counts"],
        "box": None if box is None else box.tolist(),
        "area": int(mask.sum()),
    }


def failed_rows(task: Task, error: str, **values: Any) -> list[Row]:
    """Return the rows of an image that failed as a whole: one for each prompt, or one."""
    if not task.prompts:
        return [image_row(task, error=error, **values)]
    return [object_row(task, number, prompt, None, error, **values) for number, prompt in enumerate(task.prompts)]


def write_rows(path: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write rows as Parquet; the file appears whole or not at all.

    Args:
        path: of the file.
        rows: with the columns of `COLUMNS`.
        about: stored as JSON in the file's metadata, under "refinesam".

    Raises:
        MissingExtraError: pyarrow is not installed.
        OutputError: the file cannot be written.
    """
    arrow, parquet = arrow_modules("batch")
    kinds = {"floats": arrow.list_(arrow.float64())}
    fields = [(name, kinds.get(kind) or getattr(arrow, kind)()) for name, kind in COLUMNS.items()]
    schema = arrow.schema(fields, metadata={"refinesam": json.dumps(about)})
    with writing(path) as temporary:
        parquet.write_table(arrow.Table.from_pylist(list(rows), schema=schema), temporary, compression="zstd")


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Read rows.

    Raises:
        DatasetError: the file is damaged.
    """
    arrow, parquet = arrow_modules("batch")
    try:
        rows = parquet.read_table(path, columns=None if columns is None else list(columns)).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Delete it and run the same command again.") from error
    yield from rows
