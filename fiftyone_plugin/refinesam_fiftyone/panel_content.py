"""What the panel shows of a run's rows: headline, tables and plots, as plain values for the App."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from .figures import (
    OBJECT_COLUMNS,
    RANKING_COLUMNS,
    agreement_scatter,
    delta_histogram,
    object_cells,
    ranking_cells,
    summary_cells,
)
from .ranking import rank_rows
from .report import summarise
from .runs import progress
from .schema import Fields

if TYPE_CHECKING:
    import fiftyone as fo

__all__ = ["COLUMNS", "content_of", "partly", "sort_after"]

# Rows of the table of objects; the view has them all.
MOST_LISTED: Final = 50
# What the table of objects is sorted by at first: column, and whether the largest comes first.
_FIRST_SORT: Final = {"evaluated": ("delta_iou", False), "ranked": ("suspicion", True)}
# Heading of each column of the table of objects, by what the panel shows.
COLUMNS: Final = {"evaluated": OBJECT_COLUMNS, "ranked": RANKING_COLUMNS}


def content_of(rows: pd.DataFrame, grouping: Any, sort: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the content of the rows of a view.

    Args:
        rows: as `read_rows` returns them.
        grouping: of the summary, "all" for none.
        sort: of the table of objects: column, and whether the largest comes first; None, or what another kind of table
            was sorted by: the worst first.
    """
    evaluated = rows[rows["bucket"].notna()]
    if len(evaluated):
        return _evaluated(evaluated, rows, grouping, sort)
    if len(rows):
        return _ranked(rows, sort)
    hint = "The current view shows no masks of this run: show other samples, or compare these."
    return {"kind": "empty", "headline": hint}, {}


def sort_after(kind: str, sort: Any, column: int) -> tuple[str, bool] | None:
    """Return what the table is sorted by once a heading was clicked, the smallest first and then the largest."""
    names = list(COLUMNS.get(kind, ()))
    if not 0 <= column < len(names):
        return None
    key, descending = sort or _FIRST_SORT[kind]
    return names[column], names[column] == key and not descending


def _sorted(rows: pd.DataFrame, kind: str, sort: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the first objects in the order that is asked for, and the state that tells them."""
    key, descending = sort if sort and sort[0] in COLUMNS[kind] and sort[0] in rows.columns else _FIRST_SORT[kind]
    rows = rows.sort_values(key, ascending=not descending, na_position="last", kind="stable").head(MOST_LISTED)
    return rows, {"sort": [key, descending], "objects": rows[["sample_id", "prompt_id"]].to_numpy().tolist()}


def partly(dataset: fo.Dataset, run: Fields) -> str:
    """Return what to add to the headline while a run has not compared all samples."""
    done, total = progress(dataset, run)
    return "" if done == total else f" ({done} of {_of(total, 'sample')} of the dataset are compared)"


def _evaluated(
    evaluated: pd.DataFrame, rows: pd.DataFrame, grouping: Any, sort: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the content of a view with ground truth."""
    summary = summarise(evaluated, by=None if grouping == "all" else grouping)
    without = len(rows) - len(evaluated)
    listed, sorted_by = _sorted(evaluated, "evaluated", sort)
    state = {
        "kind": "evaluated",
        "headline": _headline(evaluated, "object")
        + (f"; {_of(without, 'mask')} without ground truth" if without else ""),
        "counts": {str(name): int(count) for name, count in evaluated["bucket"].value_counts().items()},
        "groups": [str(name) for name in summary.index],
        **sorted_by,
    }
    content = {
        "table": summary_cells(summary),
        "change": delta_histogram(evaluated),
        "agreement": agreement_scatter(evaluated),
        "objects": object_cells(listed),
    }
    return state, content


def _ranked(rows: pd.DataFrame, sort: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the content of a view without ground truth."""
    ranked, sorted_by = _sorted(rank_rows(rows), "ranked", sort)
    headline = f"{_headline(rows, 'mask')}. There is no ground truth: these deserve a look first."
    return {"kind": "ranked", "headline": headline, **sorted_by}, {"objects": ranking_cells(ranked)}


def _headline(rows: pd.DataFrame, name: str) -> str:
    return f"{_of(len(rows), name)} in {_of(rows['sample_id'].nunique(), 'sample')} of the current view"


def _of(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
