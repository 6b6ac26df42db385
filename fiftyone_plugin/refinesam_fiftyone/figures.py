"""Plotly traces and table cells of the panel, and which rows a bar or point stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from .schema import BUCKETS

__all__ = [
    "BUCKET_NAMES",
    "HISTOGRAM_LAYOUT",
    "OBJECT_COLUMNS",
    "RANKING_COLUMNS",
    "SCATTER_LAYOUT",
    "SUMMARY_COLUMNS",
    "agreement_scatter",
    "delta_histogram",
    "object_cells",
    "ranking_cells",
    "rows_of_bar",
    "summary_cells",
]

Trace = dict[str, Any]
Layout = dict[str, Any]

BUCKET_NAMES: Final[Mapping[str, str]] = {
    "amr_helped": "Refinement helped",
    "amr_hurt": "Refinement hurt",
    "no_change": "No change",
    "both_failed": "Both failed",
}
# Key in a table's cells -> heading.
SUMMARY_COLUMNS: Final[Mapping[str, str]] = {
    "group": "Objects",
    "n": "Number",
    "base_iou": "First IoU",
    "amr_iou": "Refined IoU",
    "delta": "Change, 95 % interval",
    "oracle_iou": "Better of both",
    "outcomes": "Helped / hurt / same / failed",
}
RANKING_COLUMNS: Final[Mapping[str, str]] = {
    "label": "Class",
    "suspicion": "Suspicion",
    "pred_iou_base": "First, predicted IoU",
    "pred_iou_amr": "Refined, predicted IoU",
    "disagreement": "Masks differ by",
    "kappa": "Parts",
    "reason": "Reason",
}
OBJECT_COLUMNS: Final[Mapping[str, str]] = {
    "filepath": "File",
    "label": "Class",
    "base_iou": "First IoU",
    "amr_iou": "Refined IoU",
    "delta_iou": "Change",
    "pred_iou_amr": "Predicted",
    "bucket": "Outcome",
}
# In a table, where there is less room.
_OUTCOMES: Final[Mapping[str, str]] = dict(zip(BUCKETS, ("Helped", "Hurt", "Same", "Failed"), strict=True))
# Longer file names lose their start, which is alike in most.
LONGEST_NAME: Final = 20
# RGB, distinct for colour-blind readers (Okabe and Ito).
_HELPED, _HURT, _SAME = "rgb(0,158,115)", "rgb(213,94,0)", "rgb(150,150,150)"
_FIRST, _REFINED = "rgb(86,180,233)", "rgb(230,159,0)"
BAR_WIDTHS: Final = (0.01, 0.02, 0.05, 0.1)
MOST_BARS: Final = 41
# More points are drawn by WebGL, which not every machine has.
MOST_SVG_POINTS: Final = 5_000


def _layout(x: str, y: str, **more: Any) -> Layout:
    # The App ignores a plot's own height.
    return {
        "height": 300,
        "margin": {"t": 12, "l": 48, "b": 44, "r": 12},
        "xaxis": {"title": {"text": x, "standoff": 8}},
        "yaxis": {"title": {"text": y, "standoff": 8}},
        **more,
    }


HISTOGRAM_LAYOUT: Final = _layout("Change of IoU by refinement", "Objects")
SCATTER_LAYOUT: Final = _layout(
    "Predicted IoU",
    "True IoU",
    shapes=[{"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "line": {"color": _SAME, "width": 1, "dash": "dot"}}],
    showlegend=True,
    legend={"orientation": "h", "x": 0, "y": 1.14},
    dragmode="lasso",
)


def delta_histogram(rows: pd.DataFrame) -> list[Trace]:
    """Count objects by what refinement changed; the middle bar stands around no change.

    Each bar's entry of "ids" is what `rows_of_bar` takes.

    Args:
        rows: as `read_rows` returns them; those without a delta_iou are left out.
    """
    delta = rows["delta_iou"].dropna().to_numpy()
    width = _bar_width(delta)
    numbers, counts = np.unique(_bar_numbers(delta, width), return_counts=True)
    colours = [_HELPED if number > 0 else _HURT if number < 0 else _SAME for number in numbers]
    trace = {
        "type": "bar",
        "name": "Objects",
        "x": (numbers * width).round(6).tolist(),
        "y": counts.tolist(),
        "width": [width * 0.94] * len(numbers),
        "ids": [f"{width}:{number}" for number in numbers.tolist()],
        "marker": {"color": colours},
        "hovertemplate": "%{y} objects, change %{x:+.2f}<extra></extra>",
    }
    return [trace]


def rows_of_bar(rows: pd.DataFrame, bar: str) -> pd.DataFrame:
    """Return the rows that a bar of `delta_histogram` counts.

    Raises:
        ValueError: no bar's id.
    """
    width, number = bar.split(":")
    delta = rows["delta_iou"]
    inside = pd.Series(False, index=rows.index)
    known = delta.notna()
    inside[known] = _bar_numbers(delta[known].to_numpy(), float(width)) == int(number)
    return rows[inside]


def agreement_scatter(rows: pd.DataFrame) -> list[Trace]:
    """Draw what the model predicts of each mask's IoU against what it has; "ids" are the prompts'.

    Args:
        rows: as `read_rows` returns them; masks without both numbers are left out.
    """
    traces = []
    for name, x, y, colour in (
        ("First mask", "pred_iou_base", "base_iou", _FIRST),
        ("After refinement", "pred_iou_amr", "amr_iou", _REFINED),
    ):
        both = rows[rows[x].notna() & rows[y].notna() & rows["prompt_id"].notna()]
        traces.append(
            {
                "type": "scattergl" if len(both) > MOST_SVG_POINTS else "scatter",
                "mode": "markers",
                "name": name,
                "x": both[x].round(4).tolist(),
                "y": both[y].round(4).tolist(),
                "ids": both["prompt_id"].tolist(),
                "text": both["label"].tolist(),
                "marker": {"color": colour, "size": 7, "opacity": 0.75},
                "hovertemplate": "%{text}: predicted %{x:.2f}, true %{y:.2f}<extra>" + name + "</extra>",
            }
        )
    return traces


def summary_cells(summary: pd.DataFrame) -> list[dict[str, str]]:
    """Return the texts of `SUMMARY_COLUMNS`, one row a group of `report.summarise`."""
    cells = []
    for name, row in summary.iterrows():
        interval = "" if np.isnan(row["delta_low"]) else f", {row['delta_low']:+.3f} to {row['delta_high']:+.3f}"
        cells.append(
            {
                "group": str(name),
                "n": f"{row['n']:.0f}",
                **{key: _number(row[key]) for key in ("base_iou", "amr_iou", "oracle_iou")},
                "delta": _number(row["delta_iou"], "+.3f") + interval,
                "outcomes": " / ".join(f"{row[bucket]:.0f}" for bucket in BUCKETS),
            }
        )
    return cells


def ranking_cells(ranked: pd.DataFrame) -> list[dict[str, str]]:
    """Return the texts of `RANKING_COLUMNS`, one row an object."""
    texts = ("label", "reason")
    return [
        {
            key: str(row[key]) if key in texts else f"{row[key]:.0f}" if key == "kappa" else _number(row[key])
            for key in RANKING_COLUMNS
            if key in ranked.columns
        }
        for _, row in ranked.iterrows()
    ]


def object_cells(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Return the texts of `OBJECT_COLUMNS`, one row an evaluated object."""
    return [
        {
            "filepath": _short(Path(row["filepath"]).name),
            "label": row["label"] or "-",
            **{key: _number(row[key]) for key in ("base_iou", "amr_iou", "pred_iou_amr")},
            "delta_iou": _number(row["delta_iou"], "+.3f"),
            "bucket": _OUTCOMES[row["bucket"]],
        }
        for _, row in rows.iterrows()
    ]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"…{name[-LONGEST_NAME:]}"


def _number(value: float, form: str = ".3f") -> str:
    return "-" if np.isnan(value) else format(value, form)


def _bar_width(delta: np.ndarray[Any, Any]) -> float:
    reach = float(np.abs(delta).max()) if len(delta) else 0.0
    return next((width for width in BAR_WIDTHS if reach <= width * (MOST_BARS // 2)), BAR_WIDTHS[-1])


def _bar_numbers(delta: np.ndarray[Any, Any], width: float) -> np.ndarray[Any, Any]:
    return np.floor(delta / width + 0.5).astype(int)
