"""Tables from outside: CSV and Parquet, read alike."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refinesam.errors import DatasetError
from refinesam.evaluation.parquet import arrow_modules
from refinesam.files import JsonObject

__all__ = ["Table", "read_table"]


@dataclass(frozen=True)
class Table:
    """Column names, and rows by them; a value that is missing is None."""

    columns: Sequence[str]
    rows: Sequence[JsonObject]


def read_table(path: Path) -> Table:
    """Read a CSV file (UTF-8, with a header) or a Parquet file.

    Raises:
        DatasetError: it cannot be read, or is none.
        MissingExtraError: a Parquet file without pyarrow.
    """
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    arrow, parquet = arrow_modules("batch")
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Give a Parquet file.") from error
    return Table(table.column_names, table.to_pylist())


def _read_csv(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [{name: value or None for name, value in row.items() if name is not None} for row in reader]
            return Table(list(reader.fieldnames or ()), rows)
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Give a CSV file in UTF-8, with a header.") from error
