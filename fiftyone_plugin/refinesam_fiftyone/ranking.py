"""Which masks to look at first, without ground truth; and, where there is ground truth, how good that advice is.

Signals, the higher the more suspicious: the model predicts a low IoU of the refined mask; it predicted a large gain, so
it had doubts about the first one; the two masks disagree; the first mask is in pieces or ragged, the refined one has
holes. An object's suspicion is the mean of two of them as percentiles among the objects at hand, low predicted IoU and
raggedness: on twelve sources that found failures better than either alone, and the other signals added nothing
(benchmarks/fiftyone_report.py prints how good each is).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import fiftyone as fo
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from refinesam import ConfigError

from .record import check_free, declare, require
from .regions import StoredSample, read_samples
from .rows import read_rows
from .runs import run_of
from .samples import Target
from .schema import FieldKind, Fields
from .scoring import disagreement
from .storing import store_values

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["SIGNALS", "RankingQuality", "add_signals", "check_ranking", "rank", "rank_rows", "ranking_quality"]

SIGNALS: Final = ("low_predicted_iou", "predicted_gain", "disagreement", "pieces", "holes", "raggedness")
SUSPICION: Final = "suspicion"
_SUSPICIOUS: Final = ["low_predicted_iou", "raggedness"]


@dataclass(frozen=True)
class RankingQuality:
    """How well a signal finds the masks that failed.

    Attributes:
        auroc: the chance that a failed mask has the higher signal than one that did not fail, ties counting half;
            None unless there are both.
        interval: its 95 % interval, by image; None without one.
        objects: that have the signal and ground truth.
        failed: how many of them failed.
    """

    auroc: float | None
    interval: tuple[float, float] | None
    objects: int
    failed: int


def rank(samples: SampleCollection, *, run_key: str = "refinesam", by: str = SUSPICION) -> pd.DataFrame:
    """Order a run's objects by how suspicious their masks are, and write the order of the samples into the dataset.

    Labels get the attribute "disagreement", 1 - IoU of a prompt's two masks, where they lack it. Samples get the field
    "{key}_rank": 1 for the one with the most suspicious object. The order is one among these samples, so ranks that
    others have from earlier calls are removed. Label filters of a view are not looked at.

    Args:
        samples: a dataset or view.
        run_key: of a run that `compare` made.
        by: "suspicion", or one of `SIGNALS`.

    Returns:
        The rows of `read_rows` that have a mask, the most suspicious first, with `SIGNALS`, "suspicion" (0 to 1) and
        "rank" (of the object, from 1).

    Raises:
        ConfigError: no such run, or no such signal.
    """
    _check_signal(by)
    target, run, _ = run_of(samples, run_key)
    check_ranking(target, run)
    declare(target, run, _kinds(run))
    whole = target.view()
    rows = _answered(read_rows(whole, run_key))
    lacking = rows[rows["disagreement"].isna()]["sample_id"].unique().tolist()
    if lacking:
        _write_disagreement(target, run, lacking)
        rows = _answered(read_rows(whole, run_key))
    rows = rank_rows(rows, by=by)
    target.clear([run.rank])
    order = rows["sample_id"].drop_duplicates().tolist()
    target.set_values(run.rank, {sample_id: place for place, sample_id in enumerate(order, start=1)})
    return rows


def check_ranking(target: Target, run: Fields) -> None:
    """Raise ConfigError for what ranking cannot do without, and for names that are the user's by now."""
    require(target, run, (run.baseline, run.amr))
    check_free(target, run, _kinds(run))


def _kinds(run: Fields) -> dict[str, FieldKind]:
    labels = {f"{name}.detections.disagreement": fo.FloatField for name in (run.baseline, run.amr)}
    return {**labels, run.rank: fo.IntField}


def _check_signal(by: str) -> None:
    if by not in (SUSPICION, *SIGNALS):
        raise ConfigError(f"Objects cannot be ranked by {by!r}; choose one of {', '.join((SUSPICION, *SIGNALS))}.")


def rank_rows(rows: pd.DataFrame, *, by: str = SUSPICION) -> pd.DataFrame:
    """Return rows of `read_rows` that have a mask, the most suspicious first, as `rank` does, but write nothing."""
    _check_signal(by)
    ranked = add_signals(_answered(rows)).sort_values(by, ascending=False, kind="stable", ignore_index=True)
    return ranked.assign(rank=np.arange(1, len(ranked) + 1))


def _answered(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["prompt_id"].notna()].reset_index(drop=True)


def _write_disagreement(target: Target, run: Fields, ids: list[str]) -> None:
    for batch in read_samples(target, ids, (run.baseline, run.amr)):
        store_values(target, {sample.id: (sample.modified, _disagreements(sample, run)) for sample in batch})
    target.root.reload()


def _disagreements(sample: StoredSample, run: Fields) -> dict[str, float]:
    refined = {label.prompt_id: label for label in sample.labels[run.amr]}
    values = {}
    for first in sample.labels[run.baseline]:
        other = refined.get(first.prompt_id)
        if first.region is not None and other is not None and other.region is not None:
            value = disagreement(first.region, other.region)
            values[f"{run.baseline}.detections.{first.position}.disagreement"] = value
            values[f"{run.amr}.detections.{other.position}.disagreement"] = value
    return values


def add_signals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of `read_rows` with `SIGNALS` and "suspicion" as columns."""
    signals = pd.DataFrame(
        {
            "low_predicted_iou": 1 - rows["pred_iou_amr"],
            "predicted_gain": rows["predicted_gain"],
            "disagreement": rows["disagreement"],
            "pieces": rows["kappa"],
            "holes": rows["holes"],
            "raggedness": 1 - rows["compactness"],
        }
    )
    # A percentile of ties is that of their middle, so what all objects share tells nothing of any.
    suspicion = signals[_SUSPICIOUS].rank(pct=True).mean(axis=1)
    return rows.assign(**{name: signals[name] for name in SIGNALS}, suspicion=suspicion)


def ranking_quality(
    rows: pd.DataFrame, *, failed_below: float = 0.5, resamples: int = 1_000, seed: int = 0
) -> dict[str, RankingQuality]:
    """Say of each signal, and of "suspicion", how well it finds the refined masks that failed.

    Args:
        rows: of a run that was evaluated, as `read_rows` or `rank` return them.
        failed_below: a mask failed if its IoU is lower.
        resamples: of the bootstrap: whole images are drawn, since the objects of one image are alike.
        seed: of the draws.

    Raises:
        ConfigError: rows without ground truth.
    """
    rows = _answered(rows[rows["amr_iou"].notna()])
    if not len(rows):
        raise ConfigError("None of the rows has ground truth: evaluate the run, then ask how good its ranking is.")
    rows = add_signals(rows)
    rng = np.random.default_rng(seed)
    images, places = np.unique(rows["sample_id"].to_numpy(str), return_inverse=True)
    draws = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), size=resamples)
    failed = (rows["amr_iou"] < failed_below).to_numpy()
    return {name: _quality(rows[name].to_numpy(np.float64), failed, places, draws) for name in (*SIGNALS, SUSPICION)}


def _quality(
    signal: NDArray[np.float64], failed: NDArray[np.bool_], places: NDArray[np.intp], draws: NDArray[np.int64]
) -> RankingQuality:
    known = np.isfinite(signal)
    signal, failed, places = signal[known], failed[known], places[known]
    order = np.argsort(signal, kind="stable")
    signal, failed, places = signal[order], failed[order], places[order]
    # Where each run of equal signals starts.
    starts = np.flatnonzero(np.r_[True, signal[1:] != signal[:-1]]) if len(signal) else np.zeros(0, np.intp)
    auroc = _auroc(np.ones(len(signal)), failed, starts)
    interval = None
    if auroc is not None and draws.shape[1] > 1:
        areas = [_auroc(draw[places].astype(np.float64), failed, starts) for draw in draws]
        kept = [area for area in areas if area is not None]
        low, high = np.quantile(kept, [0.025, 0.975]).tolist()
        interval = (low, high)
    return RankingQuality(auroc, interval, len(signal), int(failed.sum()))


def _auroc(weights: NDArray[np.float64], failed: NDArray[np.bool_], starts: NDArray[np.intp]) -> float | None:
    """Area under the ROC curve of objects sorted by signal (Mann and Whitney's U), None with one kind of object."""
    if not len(starts):
        return None
    positive = np.add.reduceat(weights * failed, starts)
    negative = np.add.reduceat(weights * ~failed, starts)
    total = positive.sum() * negative.sum()
    if total == 0:
        return None
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / total)
