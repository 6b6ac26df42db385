"""What the panel's table and plots show of rows, and which rows a bar stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from refinesam_fiftyone.figures import (
    MOST_BARS,
    MOST_SVG_POINTS,
    RANKING_COLUMNS,
    SUMMARY_COLUMNS,
    agreement_scatter,
    delta_histogram,
    ranking_cells,
    rows_of_bar,
    summary_cells,
)
from refinesam_fiftyone.ranking import rank_rows
from refinesam_fiftyone.report import summarise
from refinesam_fiftyone.rows import ROW_COLUMNS


def rows_with(delta: Any, **columns: Any) -> pd.DataFrame:
    delta = np.asarray(delta, float)
    rows = pd.DataFrame({name: [None] * len(delta) for name in ROW_COLUMNS})
    rows["prompt_id"] = [f"prompt-{i}" for i in range(len(delta))]
    rows["sample_id"] = [f"sample-{i // 2}" for i in range(len(delta))]
    rows["label"] = "coin"
    rows["delta_iou"] = delta
    rows["base_iou"], rows["amr_iou"] = 0.5, 0.5 + delta
    rows["pred_iou_base"], rows["pred_iou_amr"] = 0.6, 0.7
    rows["bucket"] = np.where(np.isnan(delta), None, "no_change")
    for name in ("kappa", "compactness", "holes", "disagreement", "predicted_gain", "regret", "oracle_iou"):
        rows[name] = 1.0
    for name in ("base_boundary_iou", "amr_boundary_iou"):
        rows[name] = 0.5
    return rows.assign(**columns)


@pytest.mark.parametrize("reach", [0.0, 0.004, 0.15, 0.3, 1.0])
def test_bars_count_every_object_once_and_open_what_they_count(reach: float) -> None:
    rows = rows_with(np.r_[np.random.default_rng(0).uniform(-reach, reach, 500), np.nan, -reach, reach, 0.0])
    (bars,) = delta_histogram(rows)

    opened = [rows_of_bar(rows, bar) for bar in bars["ids"]]

    assert len(bars["x"]) <= MOST_BARS
    assert [len(one) for one in opened] == bars["y"]
    assert sorted(pd.concat(opened).index) == sorted(rows.index[rows["delta_iou"].notna()])
    for middle, width, one in zip(bars["x"], bars["width"], opened, strict=True):
        assert (one["delta_iou"] - middle).abs().max() <= width / 0.94 / 2 + 1e-9


def test_no_change_lies_in_the_middle_bar_whose_colour_says_neither() -> None:
    (bars,) = delta_histogram(rows_with([-0.2, 0.0, 0.001, 0.2]))

    by_place = dict(zip(bars["x"], zip(bars["y"], bars["marker"]["color"], strict=True), strict=True))
    assert by_place[0.0][0] == 2
    assert len({colour for _, colour in by_place.values()}) == 3


def test_a_bar_opens_its_objects_in_a_narrower_view_too() -> None:
    rows = rows_with([-0.5, -0.5, 0.3, 0.001])
    (bars,) = delta_histogram(rows)

    assert rows_of_bar(rows.iloc[[1, 3]], bars["ids"][0]).index.tolist() == [1]


def test_no_rows_make_no_bars() -> None:
    assert delta_histogram(rows_with([]))[0]["ids"] == []


def test_points_are_the_masks_with_both_numbers_and_know_their_prompts() -> None:
    rows = rows_with([0.1, -0.1, np.nan])
    rows.loc[0, "pred_iou_base"] = np.nan

    first, refined = agreement_scatter(rows)

    assert (first["ids"], first["x"], first["y"]) == (["prompt-1", "prompt-2"], [0.6, 0.6], [0.5, 0.5])
    assert (refined["ids"], refined["y"]) == (["prompt-0", "prompt-1"], [0.6, 0.4])


def test_many_points_are_drawn_by_webgl() -> None:
    kinds = [agreement_scatter(rows_with(np.zeros(n)))[0]["type"] for n in (MOST_SVG_POINTS, MOST_SVG_POINTS + 1)]

    assert kinds == ["scatter", "scattergl"]


def test_the_tables_cells_are_the_summary_in_words() -> None:
    rows = rows_with([0.1, 0.2, -0.3, 0.0], bucket=["amr_helped", "amr_helped", "amr_hurt", "both_failed"])

    (cells,) = summary_cells(summarise(rows))

    assert set(cells) == set(SUMMARY_COLUMNS)
    assert (cells["n"], cells["base_iou"], cells["amr_iou"]) == ("4", "0.500", "0.500")
    assert cells["outcomes"] == "2 / 1 / 0 / 1"
    assert cells["delta"].startswith("+0.000, -") and " to +" in cells["delta"]


def test_one_image_has_no_interval() -> None:
    (cells,) = summary_cells(summarise(rows_with([0.1, 0.2])))

    assert cells["delta"] == "+0.150"


def test_the_rankings_cells_have_every_column() -> None:
    cells = ranking_cells(rank_rows(rows_with([0.1, 0.2], pred_iou_amr=[0.9, 0.3])))

    assert [set(row) for row in cells] == [set(RANKING_COLUMNS)] * 2
    assert [row["pred_iou_amr"] for row in cells] == ["0.300", "0.900"]
