"""An evaluation as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from refinesam.evaluation.report import Evaluation

__all__ = ["summary_tables"]

SHOWN_FAILURES = 10


def summary_tables(evaluation: Evaluation) -> Iterable[Table]:
    """Yield tables: overall and by size, by category, and what failed."""
    summary = evaluation.summary()
    refined = summary["change"] is not None
    overall = Table(title=f"mIoU, protocol {summary['protocol']}", title_justify="left")
    for heading in ("", "objects", "first mask", *(("with AMR",) if refined else ()), "best of the masks"):
        overall.add_column(heading, justify="right" if heading else "left")
    rows: list[tuple[str, Mapping[str, Any]]] = [("all", summary), *summary["per_size"].items()]
    for name, values in rows:
        cells = [values["miou"], *((values["miou_refined"],) if refined else ()), values["miou_oracle"]]
        overall.add_row(name, str(values["objects"]), *map(_number, cells))
    if refined:
        change = summary["change"]
        interval = "" if change["interval"] is None else " (95 %: {:+.3f} to {:+.3f})".format(*change["interval"])
        overall.caption = (
            f"AMR {change['mean']:+.3f}{interval}; helped {change['helped']:.1%}, hurt {change['hurt']:.1%}, "
            f"unchanged {change['unchanged']:.1%}"
        )
    yield overall
    if len(summary["per_category"]) > 1:
        categories = Table(title="By category", title_justify="left")
        for heading in ("category", "objects", "first mask", *(("with AMR",) if refined else ())):
            categories.add_column(heading, justify="left" if heading == "category" else "right")
        for values in summary["per_category"]:
            cells = [values["miou"], *((values["miou_refined"],) if refined else ())]
            categories.add_row(values["name"], str(values["objects"]), *map(_number, cells))
        yield categories
    if summary["failures"]:
        failures = Table(title=f"{summary['objects_failed']} objects could not be evaluated", title_justify="left")
        for heading in ("where", "reason"):
            failures.add_column(heading)
        for failure in evaluation.failures[:SHOWN_FAILURES]:
            failures.add_row(failure.file_name, failure.reason)
        yield failures


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
