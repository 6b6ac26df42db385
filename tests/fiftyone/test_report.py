"""Summaries and calibration of rows made by hand, against sums written out; no database."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from refinesam import ConfigError
from refinesam.hosts import bootstrap_interval
from refinesam_fiftyone.report import GROUPINGS, calibration, calibration_error, groups, summarise
from refinesam_fiftyone.rows import ROW_COLUMNS


def made(count: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    base, amr = rng.random(count), rng.random(count)
    oracle = np.maximum(base, amr)
    both_failed = (base < 0.5) & (amr < 0.5)
    bucket = np.where(both_failed, "both_failed", np.where(amr > base, "amr_helped", "amr_hurt"))
    rows = pd.DataFrame(
        {
            "sample_id": [f"s{i % 7}" for i in range(count)],
            "label": rng.choice(["cat", "dog"], count),
            "size": rng.choice(["large", "small", "medium"], count),
            "source": "boxes",
            "kappa": rng.integers(0, 7, count).astype(float),
            "compactness": rng.uniform(0, 1.1, count),
            "base_iou": base,
            "amr_iou": amr,
            "delta_iou": amr - base,
            "base_boundary_iou": base / 2,
            "amr_boundary_iou": amr / 2,
            "oracle_iou": oracle,
            "regret": oracle - amr,
            "pred_iou_base": np.clip(base + rng.normal(0, 0.1, count), 0, 1),
            "pred_iou_amr": np.clip(amr + rng.normal(0, 0.1, count), 0, 1),
            "bucket": bucket.astype(object),
        }
    )
    return rows.reindex(columns=list(ROW_COLUMNS))


def test_all_objects_count_the_same():
    rows = made()
    (one,) = summarise(rows).itertuples()
    assert (one.Index, one.n, one.images) == ("all", 40, 7)
    for name in ("base_iou", "amr_iou", "delta_iou", "base_boundary_iou", "oracle_iou", "regret"):
        assert getattr(one, name) == pytest.approx(rows[name].sum() / 40)
    for bucket in ("amr_helped", "amr_hurt", "no_change", "both_failed"):
        assert getattr(one, bucket) == (rows["bucket"] == bucket).sum()
    images = [rows[rows["sample_id"] == f"s{i}"]["delta_iou"].to_numpy() for i in range(7)]
    assert (one.delta_low, one.delta_high) == bootstrap_interval(images, resamples=2_000)
    assert one.delta_low < one.delta_iou < one.delta_high


def test_objects_without_ground_truth_are_left_out():
    rows = made()
    rows.loc[3, ["bucket", "base_iou", "amr_iou", "delta_iou"]] = [None, np.nan, np.nan, np.nan]
    assert summarise(rows).loc["all", "n"] == 39
    pd.testing.assert_frame_equal(summarise(rows), summarise(rows.drop(index=3)))


@pytest.mark.parametrize("by", GROUPINGS)
def test_groups_hold_every_object_once(by):
    rows = made()
    table = summarise(rows, by=by)
    assert table["n"].sum() == 40
    assert table["amr_hurt"].sum() == (rows["bucket"] == "amr_hurt").sum()
    parts = dict(groups(rows, by))
    assert list(parts) == list(table.index)
    for name, part in parts.items():
        assert table.loc[name, "base_iou"] == pytest.approx(part["base_iou"].mean())
    assert sorted(np.concatenate([part.index for part in parts.values()])) == list(range(40))


def test_groups_have_names_that_say_what_is_in_them():
    rows = made(6)
    rows["kappa"] = [0, 1, 3, 4, 9, np.nan]
    assert list(summarise(rows, by="kappa").index) == ["0", "1", "3", "4 or more", "unknown"]
    rows["compactness"] = [0, 0.2, 0.59, 0.6, 1.2, np.nan]
    assert list(summarise(rows, by="compactness").index) == [
        *("0.0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 or more", "unknown")
    ]
    rows["size"] = ["large", "small", "small", "medium", "large", "small"]
    assert list(summarise(rows, by="size").index) == ["small", "medium", "large"]
    rows["label"] = ["b", "a", None, "a", "b", "a"]
    assert summarise(rows, by="label")["n"].to_dict() == {"a": 3, "b": 2, "unknown": 1}


def test_one_image_has_no_interval_and_nothing_no_means():
    rows = made()
    one = summarise(rows[rows["sample_id"] == "s1"]).loc["all"]
    assert one["n"] == 6 and np.isnan(one["delta_low"])
    empty = summarise(rows[:0])
    assert empty.loc["all", ["n", "images", "both_failed"]].tolist() == [0, 0, 0]
    assert np.isnan(empty.loc["all", "base_iou"])
    assert len(summarise(rows[:0], by="label")) == 0


def test_calibration_is_that_of_bins_counted_one_by_one():
    rows = made(200)
    rows.loc[0, ["pred_iou_amr", "pred_iou_base"]] = [1.2, -0.1]
    rows.loc[1, "pred_iou_amr"] = np.nan
    table = calibration(rows, bins=5)
    assert table.groupby("mask")["n"].sum().to_dict() == {"baseline": 200, "amr": 199}
    gap = 0.0
    for one in table[table["mask"] == "amr"].itertuples():
        inside = [
            (predicted, true)
            for predicted, true in zip(rows["pred_iou_amr"], rows["amr_iou"], strict=True)
            if one.low <= min(predicted, 0.9999) < one.high
        ]
        assert one.n == len(inside)
        assert (one.predicted, one.true) == pytest.approx(np.mean(inside, axis=0).tolist())
        gap += len(inside) / 199 * abs(one.predicted - one.true)
    assert calibration_error(table)["amr"] == pytest.approx(gap)
    assert calibration_error(calibration(rows[:0])) == {}


def test_a_perfect_prediction_has_no_calibration_error():
    rows = made()
    rows["pred_iou_base"] = rows["base_iou"]
    assert calibration_error(calibration(rows))["baseline"] == pytest.approx(0)


def test_unknown_groupings_and_bins_are_refused():
    with pytest.raises(ConfigError, match="choose one of label, size"):
        summarise(made(), by="colour")
    for bins in (0, 2.5, True):
        with pytest.raises(ConfigError, match="at least 1"):
            calibration(made(), bins=bins)
