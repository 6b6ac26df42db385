"""Rows read from the database: what the view shows, in the columns that were promised."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fiftyone import ViewField as F

from fiftyone_planted import TRUTH_FIELD, evaluated_copy, plant
from refinesam import ConfigError
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.rows import ROW_COLUMNS, read_rows
from refinesam_fiftyone.runs import register_run
from refinesam_fiftyone.schema import Fields, Settings

RUN = Fields()


def test_one_row_an_object_with_what_its_labels_say(judged):
    rows = read_rows(judged.dataset)
    assert tuple(rows.columns) == ROW_COLUMNS
    assert rows["prompt_id"].tolist() == list(judged.expected)
    ids = judged.dataset.values("id")
    amr = {one.prompt_id: one for sample in judged.dataset for one in sample[RUN.amr].detections}
    for row, one in zip(rows.itertuples(), judged.expected.values(), strict=True):
        assert (row.base_iou, row.amr_iou, row.bucket, row.size) == (one.base_iou, one.amr_iou, one.bucket, one.size)
        assert (row.label, row.source, row.sample_id) == (one.label, "boxes", ids[one.sample])
        label = amr[row.prompt_id]
        assert (row.amr_id, row.truth_id) == (label.id, row.prompt_id)
        assert (row.kappa, row.compactness, row.holes) == (label.kappa, label.compactness, label.holes)
        assert (row.kept, row.reason, row.strategy, row.area_px) == (
            label.kept,
            "planted",
            label.strategy,
            one.amr.sum(),
        )
        assert row.predicted_gain == row.pred_iou_amr - row.pred_iou_base
        assert np.isnan(row.rejected_iou) if one.rejected_iou is None else row.rejected_iou == one.rejected_iou


def test_numbers_are_numbers_and_missing_texts_none(tmp_path):
    planted = plant("bare-rows", tmp_path, samples=1)
    rows = read_rows(planted.dataset)
    assert (len(rows), set(rows["bucket"]), set(rows["truth_id"])) == (12, {None}, {None})
    assert rows["amr_iou"].isna().all() and rows["pred_iou_amr"].notna().all()
    for table in (rows, read_rows(planted.dataset.limit(0))):
        numeric = [name for name in ROW_COLUMNS if pd.api.types.is_float_dtype(table[name])]
        assert len(numeric) == 16 and not {"label", "bucket", "size"} & set(numeric)
    evaluate(planted.dataset)
    register_run(planted.dataset, RUN, Settings("boxes", prompt_field=TRUTH_FIELD))
    assert set(read_rows(planted.dataset)["label"]) == {one.label for one in planted.expected.values()}
    planted.dataset.delete()


def test_rows_are_those_of_the_view(judged):
    dataset = judged.dataset
    hurt = F("bucket") == "amr_hurt"
    for field in (RUN.baseline, RUN.amr):
        assert set(read_rows(dataset.filter_labels(field, hurt))["bucket"]) == {"amr_hurt"}
        assert len(read_rows(dataset.filter_labels(field, hurt))) == judged.buckets["amr_hurt"]
    assert len(read_rows(dataset.limit(2))) == 22
    assert len(read_rows(dataset)) == 62
    # A view without the fields, and one of patches: the samples still count whole.
    assert len(read_rows(dataset.limit(2).exclude_fields(RUN.amr))) == 22
    assert len(read_rows(dataset.limit(2).to_patches(TRUTH_FIELD))) == 22
    assert len(read_rows(dataset.limit(2).to_patches(TRUTH_FIELD, other_fields=True))) == 22


def test_the_database_agrees_with_the_rows(judged):
    rows = read_rows(judged.dataset)
    assert rows["bucket"].value_counts().to_dict() == judged.dataset.count_values(f"{RUN.amr}.detections.bucket")
    assert rows["delta_iou"].mean() == pytest.approx(judged.dataset.mean(f"{RUN.amr}.detections.delta_iou"), abs=1e-12)


def test_labels_are_the_ground_truths_and_missed_objects_have_rows_without_prompts():
    planted = evaluated_copy("rows-everything")
    dataset = planted.dataset
    register_run(dataset, RUN, Settings("everything", None, TRUTH_FIELD))
    for field in (RUN.baseline, RUN.amr):
        names = dataset.values(f"{field}.detections.label")
        dataset.set_values(f"{field}.detections.label", [["object"] * len(one) for one in names])
    evaluate(dataset)
    rows = read_rows(dataset)
    missed = rows[rows["prompt_id"].isna()]
    # Both masks of these have no pixel; they have rows of their own, without ground truth.
    assert len(missed) == 6 and set(missed["bucket"]) == {"both_failed"} and set(missed["base_iou"]) == {0.0}
    assert (len(rows), rows["bucket"].notna().sum()) == (68, 62)
    found = rows[rows["bucket"].notna()].set_index("truth_id")
    assert {name: found.loc[name, "label"] for name in planted.expected} == {
        name: one.label for name, one in planted.expected.items()
    }
    assert set(rows[rows["bucket"].isna()]["label"]) == {"object"}
    dataset.delete()


def test_a_run_that_is_not_there_is_refused(judged):
    with pytest.raises(ConfigError, match="no run 'other'; it has refinesam"):
        read_rows(judged.dataset, "other")
    with pytest.raises(ConfigError, match="dataset or view"):
        read_rows("rows")
