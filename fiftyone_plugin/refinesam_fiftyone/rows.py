"""A run as a table, one row an object, read from the database without loading a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from .private import is_patches
from .record import require
from .runs import run_of
from .schema import Fields, Settings

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["ROW_COLUMNS", "read_rows"]

_NUMBERS: Final = (
    "kappa",
    "compactness",
    "holes",
    "area_px",
    "pred_iou_base",
    "pred_iou_amr",
    "predicted_gain",
    "base_iou",
    "amr_iou",
    "rejected_iou",
    "delta_iou",
    "base_boundary_iou",
    "amr_boundary_iou",
    "oracle_iou",
    "regret",
    "disagreement",
)
_TEXTS: Final = (
    "sample_id",
    "filepath",
    "prompt_id",
    "baseline_id",
    "amr_id",
    "truth_id",
    "label",
    "source",
    "strategy",
    "kept",
    "reason",
    "bucket",
    "size",
)
ROW_COLUMNS: Final = (*_TEXTS, *_NUMBERS)
# What the first mask's label says of the object; scores are there once the run was evaluated.
_OF_BASELINE: Final = {
    "id": "baseline_id",
    "prompt_id": "prompt_id",
    "label": "label",
    "kappa": "kappa",
    "compactness": "compactness",
    "strategy": "strategy",
    "kept": "kept",
    "reason": "reason",
    "predicted_iou": "pred_iou_base",
    **{
        name: name
        for name in (
            *("truth_id", "base_iou", "amr_iou", "rejected_iou", "delta_iou", "base_boundary_iou"),
            *("amr_boundary_iou", "oracle_iou", "regret", "bucket", "size", "disagreement"),
        )
    },
}
_OF_AMR: Final = {
    "id": "amr_id",
    "prompt_id": "prompt_id",
    "holes": "holes",
    "area_px": "area_px",
    "predicted_iou": "pred_iou_amr",
}
_OF_MISSED: Final = ("base_iou", "amr_iou", "delta_iou", "oracle_iou", "regret", "bucket", "size")


def read_rows(samples: SampleCollection, run_key: str = "refinesam") -> pd.DataFrame:
    """Return one row an answered prompt, with its scores if the run was evaluated.

    In a run without prompts, ground truth that no mask reached has a row too, without prompt and masks: it counts as
    failed. Rows are those of the labels that the view shows: a prompt counts where both of its masks are in the view.

    Args:
        samples: a dataset or view; of a view of patches, the samples they are cut from.
        run_key: of a run that `compare` made.

    Returns:
        Columns `ROW_COLUMNS`, numbers as float64 (NaN: none), texts as object (None: none). kappa, compactness,
        strategy and reason are of the first mask and what was made of it; holes and area_px of the mask after AMR.
        label is the ground truth's class, the prompt's without one; source is what the prompts were made from.

    Raises:
        ConfigError: no such run, or one that lacks the field of one of its masks.
    """
    target, run, settings = run_of(samples, run_key)
    require(target, run, (run.baseline, run.amr))
    view = target.asked
    # The App can hide whole fields; their labels still count.
    if is_patches(view) or any(view.get_field(name) is None for name in (run.baseline, run.amr)):
        view = target.view()
    firsts = _flat(view, f"{run.baseline}.detections", _OF_BASELINE)
    refined = _flat(view, f"{run.amr}.detections", _OF_AMR)
    rows = firsts.merge(refined, on=["sample_id", "filepath", "prompt_id"], how="inner")
    # Labels that somebody drew into the run's fields are none of its answers.
    rows = rows[rows["prompt_id"].notna()].reset_index(drop=True)
    truths = _truths(view, run, settings)
    if len(truths):
        classes = truths.set_index("truth_id")["label"]
        rows["label"] = rows["truth_id"].map(classes[~classes.index.duplicated()]).fillna(rows["label"])
        if settings.prompts == "everything":
            missed = truths[truths["bucket"].notna() & truths["prompt_id"].isna()]
            rows = pd.concat([rows, missed.astype(object)], ignore_index=True)
    rows["source"] = settings.prompts
    rows["predicted_gain"] = pd.to_numeric(rows["pred_iou_amr"]) - pd.to_numeric(rows["pred_iou_base"])
    return _typed(rows.reindex(columns=list(ROW_COLUMNS)))


def _truths(view: SampleCollection, run: Fields, settings: Settings) -> pd.DataFrame:
    path = f"{settings.truth_field}.detections"
    if settings.truth_field is None or view.get_field(path) is None:
        return pd.DataFrame()
    own = {f"{run.key}_{name}": name for name in (*_OF_MISSED, "prompt_id")}
    return _flat(view, path, {"id": "truth_id", "label": "label", **own})


def _flat(view: SampleCollection, path: str, attributes: Mapping[str, str]) -> pd.DataFrame:
    """Read some attributes of all labels of a field, one row a label; those that are not declared are None."""
    known = [name for name in attributes if view.get_field(f"{path}.{name}") is not None]
    values = view.values(["id", "filepath", *(f"{path}.{name}" for name in known)])
    columns: dict[str, list[Any]] = {"sample_id": [], "filepath": []}
    counts = [len(labels or ()) for labels in values[2]]
    for name, of_samples in zip(columns, values[:2], strict=True):
        columns[name] = [value for value, count in zip(of_samples, counts, strict=True) for _ in range(count)]
    for name, lists in zip(known, values[2:], strict=True):
        columns[attributes[name]] = [value for labels in lists for value in labels or ()]
    frame = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in columns.items()})
    return frame.reindex(columns=[*frame.columns, *_missing(frame.columns, attributes.values())])


def _missing(columns: Any, wanted: Any) -> Sequence[str]:
    return [name for name in wanted if name not in columns]


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    for name in _NUMBERS:
        rows[name] = pd.to_numeric(rows[name]).astype("float64")
    for name in _TEXTS:
        rows[name] = rows[name].astype(object).where(rows[name].notna(), None)
    return rows.reset_index(drop=True)
