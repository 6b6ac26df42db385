"""Per-object records as Parquet: one flat row an object, for tables of millions of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

from refinesam.errors import DatasetError, MissingExtraError
from refinesam.evaluation.click_report import ClickEvaluation
from refinesam.evaluation.report import Evaluation, without_nan
from refinesam.files import JsonObject, writing

__all__ = ["arrow_modules", "write_parquet", "write_rows"]

# Names and Arrow types of the columns, in their order.
_OBJECT: Final = {
    "protocol": "string",
    "image_id": "int64",
    "annotation_id": "int64",
    "category_id": "int64",
    "category": "string",
    "area": "int64",
    "size": "string",
}
_PROMPTED: Final = _OBJECT | {
    "seed": "int64",
    "iou": "float64",
    "oracle_iou": "float64",
    "boundary_iou": "float64",
    "predicted_iou": "float64",
    "chosen": "int64",
    "ious": "floats",
    "predicted_ious": "floats",
    "milliseconds": "float64",
    "refined_iou": "float64",
    "refined_boundary_iou": "float64",
    "refined_predicted_iou": "float64",
    "rejected_iou": "float64",
    "strategy": "string",
    "kappa": "int64",
    "compactness": "float64",
    "kept": "string",
    "refined_milliseconds": "float64",
}
_CLICKED: Final = _OBJECT | {
    "stopped": "string",
    "ious": "floats",
    "x": "floats",
    "y": "floats",
    "positive": "flags",
    "milliseconds": "float64",
}


def arrow_modules(extra: str = "eval") -> tuple[ModuleType, ModuleType]:
    """Return the modules that write Parquet; MissingExtraError, with the extra, where they are not installed."""
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", extra) from error


def write_rows(
    path: str | Path, rows: Sequence[JsonObject], columns: Mapping[str, str], about: tuple[str, object], extra: str
) -> None:
    """Write rows; the file appears whole or not at all.

    Args:
        path: of the file.
        rows: values by the names of the columns.
        columns: Arrow types by name, in the file's order; also "floats" and "flags", lists of such.
        about: a name, and what stands under it as JSON in the file's metadata.
        extra: that brings pyarrow.

    Raises:
        MissingExtraError: pyarrow is not installed.
        OverflowError: a number that its column does not hold.
        OutputError: the file cannot be written.
    """
    arrow, parquet = arrow_modules(extra)
    lists = {"floats": arrow.list_(arrow.float64()), "flags": arrow.list_(arrow.bool_())}
    fields = [(name, lists.get(kind) or getattr(arrow, kind)()) for name, kind in columns.items()]
    schema = arrow.schema(fields, metadata={about[0]: json.dumps(about[1])})
    table = arrow.Table.from_pylist(list(rows), schema=schema)
    with writing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def write_parquet(evaluation: Evaluation | ClickEvaluation, path: str | Path) -> None:
    """Write an evaluation's records; the file appears whole or not at all.

    One row an object, in the evaluation's order, null where there is no value; what an object has several of (IoU of
    each mask or click) is a list. The clicks to each threshold have columns of their own, as "clicks_to_0.85". The
    summary travels as JSON in the file's metadata under "summary".

    Args:
        evaluation: of prompts or of clicks.
        path: of the file.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DatasetError: an id that no 64-bit integer holds.
        OutputError: the file cannot be written.
    """
    columns, rows = _clicked(evaluation) if isinstance(evaluation, ClickEvaluation) else _prompted(evaluation)
    try:
        write_rows(path, without_nan(rows), columns, ("summary", without_nan(evaluation.summary())), "eval")
    except OverflowError as error:
        raise DatasetError(f"An id exceeds 64 bits ({error}): number the annotations anew, or write JSON.") from error


def _prompted(evaluation: Evaluation) -> tuple[dict[str, str], list[JsonObject]]:
    rows = []
    for record in evaluation.records:
        row: JsonObject = {name: getattr(record, name) for name in _PROMPTED if hasattr(record, name)}
        row |= {
            "protocol": evaluation.protocol,
            "seed": evaluation.seed,
            "category": evaluation.categories.get(record.category_id),
            "predicted_iou": record.predicted_ious[record.chosen],
            "ious": list(record.ious),
            "predicted_ious": list(record.predicted_ious),
        }
        if refined := record.refined:
            row |= {
                name: getattr(refined, name) for name in ("rejected_iou", "strategy", "kappa", "compactness", "kept")
            }
            row |= {
                "refined_iou": refined.iou,
                "refined_boundary_iou": refined.boundary_iou,
                "refined_predicted_iou": refined.predicted_iou,
                "refined_milliseconds": refined.milliseconds,
            }
        rows.append(row)
    return _PROMPTED, rows


def _clicked(evaluation: ClickEvaluation) -> tuple[dict[str, str], list[JsonObject]]:
    reached = {f"clicks_to_{threshold:g}": threshold for threshold in evaluation.thresholds}
    rows = []
    for record in evaluation.records:
        row: JsonObject = {name: getattr(record, name) for name in _CLICKED if hasattr(record, name)}
        row |= {
            "protocol": "noc",
            "category": evaluation.categories.get(record.category_id),
            "ious": list(record.ious),
            **{axis: [getattr(click, axis) for click in record.clicks] for axis in ("x", "y", "positive")},
            **{name: record.clicks_to(threshold) for name, threshold in reached.items()},
        }
        rows.append(row)
    return _CLICKED | dict.fromkeys(reached, "int64"), rows
