"""What a job writes: one row an object, and for an image without any a row of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from refinesam.errors import DatasetError
from refinesam.evaluation.parquet import arrow_modules
from refinesam.files import JsonObject
from refinesam.jobs.inputs import Source
from refinesam.jobs.prompts import ObjectPrompt
from refinesam.masks import box_from_mask
from refinesam.rle import encode_rle
from refinesam.types import Prediction

__all__ = ["COLUMNS", "Row", "Task", "failed_rows", "object_row", "read_rows"]

# A value for each of `COLUMNS`.
Row = JsonObject

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


def image_row(task: Task, **values: object) -> Row:
    """Return a row of an image, with null for what is not given."""
    return dict.fromkeys(COLUMNS) | {"image": task.source.name, "location": task.source.location} | values


def object_row(
    task: Task, number: int, asked: ObjectPrompt, prediction: Prediction | None, error: str | None, **values: object
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


def failed_rows(task: Task, error: str, **values: object) -> list[Row]:
    """Return the rows of an image that failed as a whole: one for each prompt, or one."""
    if not task.prompts:
        return [image_row(task, error=error, **values)]
    return [object_row(task, number, prompt, None, error, **values) for number, prompt in enumerate(task.prompts)]


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
