"""What a run's rows say: both masks' mean IoU, what AMR changed and how sure that is, and the model's own estimate.

Objects count the same each, failures too. Intervals are bootstraps by image: the objects of one image are alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, get_args

import numpy as np
import pandas as pd

from refinesam import ConfigError
from refinesam.hosts import bootstrap_interval

from .schema import BUCKETS

__all__ = ["GROUPINGS", "Grouping", "calibration", "calibration_error", "groups", "summarise"]

Grouping = Literal["label", "size", "kappa", "compactness", "source"]
GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)
COMPACTNESS_EDGES: Final = (0.0, 0.2, 0.4, 0.6, 0.8)
# From this many pieces on, masks are counted together.
MANY_PIECES: Final = 4
_SIZES: Final = ("small", "medium", "large")
# Column of the summary -> column of the rows, a mean over objects.
_MEANS: Final = {
    "base_iou": "base_iou",
    "amr_iou": "amr_iou",
    "delta_iou": "delta_iou",
    "base_boundary_iou": "base_boundary_iou",
    "amr_boundary_iou": "amr_boundary_iou",
    "oracle_iou": "oracle_iou",
    "regret": "regret",
}
SUMMARY_COLUMNS: Final = ("n", "images", *_MEANS, "delta_low", "delta_high", *BUCKETS)


def summarise(rows: pd.DataFrame, *, by: Grouping | None = None, resamples: int = 2_000) -> pd.DataFrame:
    """Summarise evaluated rows, all together or by group; rows without ground truth are left out.

    Args:
        rows: as `read_rows` returns them.
        by: "label" (class), "size" (COCO's), "kappa" (pieces of the first mask), "compactness" (of the first mask, in
            steps of 0.2), or "source" (what the prompts were made from); None for all together.
        resamples: of the bootstrap.

    Returns:
        One row a group, named by the index ("all" without groups). n: objects. images. base_iou, amr_iou: mean IoU.
        delta_iou: mean of AMR - baseline, delta_low and delta_high its 95 % interval (NaN below two images).
        base_boundary_iou, amr_boundary_iou. oracle_iou: mean IoU if the better mask were always kept; regret: what AMR
        lacks to it. amr_helped, amr_hurt, no_change, both_failed: objects.

    Raises:
        ConfigError: an unknown grouping.
    """
    if by is not None and by not in GROUPINGS:
        raise ConfigError(f"Rows cannot be grouped by {by!r}; choose one of {', '.join(GROUPINGS)}.")
    evaluated = rows[rows["bucket"].notna()]
    summaries = {name: _summary(group, resamples) for name, group in groups(evaluated, by)}
    table = pd.DataFrame.from_dict(summaries, orient="index", columns=list(SUMMARY_COLUMNS))
    table.index = pd.Index(list(summaries), name=by or "objects", dtype=object)
    counts = ["n", "images", *BUCKETS]
    return table.astype({name: "int64" if name in counts else "float64" for name in table.columns})


def groups(rows: pd.DataFrame, by: Grouping | None) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the name and the rows of each group that `summarise` has a row for, in its order."""
    if by is None:
        yield "all", rows
        return
    names = rows[by].map(_compactness_group if by == "compactness" else _kappa_group if by == "kappa" else _text)
    order = [name for name in _SIZES if (names == name).any()] if by == "size" else sorted(names.unique(), key=_last)
    for name in order:
        yield name, rows[names == name]


def _last(name: str) -> tuple[bool, str]:
    return name == "unknown", name


def _text(value: Any) -> str:
    return "unknown" if pd.isna(value) else str(value)


def _kappa_group(kappa: float) -> str:
    if pd.isna(kappa):
        return "unknown"
    return f"{MANY_PIECES} or more" if kappa >= MANY_PIECES else str(int(kappa))


def _compactness_group(compactness: float) -> str:
    if pd.isna(compactness):
        return "unknown"
    edge = COMPACTNESS_EDGES[int(np.searchsorted(COMPACTNESS_EDGES, compactness, side="right")) - 1]
    return f"{edge:.1f} or more" if edge == COMPACTNESS_EDGES[-1] else f"{edge:.1f} to {edge + 0.2:.1f}"


def _summary(rows: pd.DataFrame, resamples: int) -> dict[str, float]:
    by_image = [group.to_numpy() for _, group in rows.groupby("sample_id", sort=True)["delta_iou"]]
    interval = bootstrap_interval(by_image, resamples=resamples)
    low, high = (np.nan, np.nan) if interval is None else interval
    return {
        "n": len(rows),
        "images": len(by_image),
        **{name: float(rows[column].mean()) if len(rows) else np.nan for name, column in _MEANS.items()},
        "delta_low": low,
        "delta_high": high,
        **{bucket: int((rows["bucket"] == bucket).sum()) for bucket in BUCKETS},
    }


def calibration(rows: pd.DataFrame, *, bins: int = 10) -> pd.DataFrame:
    """Compare the IoU that the model predicts of its masks with what they have.

    Args:
        rows: as `read_rows` returns them; those without ground truth or prediction are left out.
        bins: of predicted IoU between 0 and 1, of equal width; predictions beyond fall into the outermost.

    Returns:
        One row a mask ("baseline", "amr") and bin that is not empty: mask, low, high, n, predicted (mean), true (mean).

    Raises:
        ConfigError: fewer than one bin.
    """
    _check_bins(bins)
    bins_of_masks = []
    for mask, predicted, true in (("baseline", "pred_iou_base", "base_iou"), ("amr", "pred_iou_amr", "amr_iou")):
        both = rows[[predicted, true]].dropna()
        places = np.clip(np.floor(both[predicted].to_numpy() * bins), 0, bins - 1).astype(int)
        for place in np.unique(places):
            inside = both[places == place]
            means = float(inside[predicted].mean()), float(inside[true].mean())
            bins_of_masks.append((mask, place / bins, (place + 1) / bins, len(inside), *means))
    return pd.DataFrame(bins_of_masks, columns=["mask", "low", "high", "n", "predicted", "true"])


def _check_bins(bins: object) -> None:
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ConfigError(f"bins is {bins!r}; give a whole number of at least 1.")


def calibration_error(table: pd.DataFrame) -> dict[str, float]:
    """Return the expected calibration error of each mask of a table by `calibration`.

    That is the mean over objects of |mean predicted - mean true| of their bin (Naeini et al. 2015).
    """
    return {
        str(mask): float((group["n"] * (group["predicted"] - group["true"]).abs()).sum() / group["n"].sum())
        for mask, group in table.groupby("mask", sort=False)
    }
