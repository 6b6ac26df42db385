"""Records as Parquet, and predicted against true IoU."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation_fakes import BoxFiller, annotation, coco, rectangle, write_folder
from refinesam.amr import AMRConfig
from refinesam.errors import ConfigError, DatasetError, MissingExtraError
from refinesam.evaluation.calibration import calibration
from refinesam.evaluation.click_report import Click, ClickEvaluation, ClickRecord
from refinesam.evaluation.parquet import write_parquet
from refinesam.evaluation.protocols import evaluate
from refinesam.evaluation.report import Evaluation, ObjectRecord

SQUARE = rectangle(2, 2, 6, 6)


def result(tmp_path: Path, scores: tuple[float, float] = (0.3, 0.5), refine: bool = True) -> Evaluation:
    content = coco([annotation(1, SQUARE), annotation(2, SQUARE & ~rectangle(4, 4, 6, 6), category_id=2)])
    folder = write_folder(tmp_path, content)
    return evaluate(BoxFiller(scores), folder, "box", refine=AMRConfig() if refine else None, seed=3, keep_masks=True)


def test_parquet_holds_the_json_records(tmp_path: Path) -> None:
    evaluation = result(tmp_path)
    path = tmp_path / "new" / "records.parquet"
    write_parquet(evaluation, path)
    table = pq.read_table(path)
    for row, record in zip(table.to_pylist(), evaluation.rows(), strict=True):
        for name in ("image_id", "annotation_id", "category_id", "area", "size", "iou", "oracle_iou", "boundary_iou"):
            assert row[name] == record[name], name
        assert (row["ious"], row["predicted_ious"]) == (list(record["ious"]), list(record["predicted_ious"]))
        assert (row["protocol"], row["seed"], row["chosen"]) == ("box", 3, 1)
        assert row["predicted_iou"] == pytest.approx(0.5)
        assert row["refined_iou"] == record["refined"]["iou"] == row["oracle_iou"]
        for name in ("strategy", "kappa", "compactness", "kept", "rejected_iou"):
            assert row[name] == record["refined"][name], name
        assert row["refined_milliseconds"] == record["refined"]["milliseconds"]
    assert [row["category"] for row in table.to_pylist()] == ["cell", "cat"]
    assert json.loads(table.schema.metadata[b"summary"]) == json.loads(json.dumps(evaluation.summary()))
    assert [file.name for file in path.parent.iterdir()] == ["records.parquet"]


def test_types_do_not_depend_on_the_values(tmp_path: Path) -> None:
    schemas = []
    for number, evaluation in enumerate(
        (
            result(tmp_path / "a"),
            result(tmp_path / "b", refine=False),
            result(tmp_path / "c", (math.nan, math.inf)),
            Evaluation("box", 0, None, {}, (), (), ()),
        )
    ):
        write_parquet(evaluation, tmp_path / f"{number}.parquet")
        table = pq.read_table(tmp_path / f"{number}.parquet")
        schemas.append(table.schema.remove_metadata())
        if number == 1:
            assert table["refined_iou"].to_pylist() == [None, None]
        if number == 2:
            assert table["predicted_ious"].to_pylist() == [[None, None]] * 2
    assert all(schema == schemas[0] for schema in schemas)
    assert schemas[0].field("kappa").type == "int64"


def test_clicks_as_parquet(tmp_path: Path) -> None:
    clicks = (Click(2.5, 3.5, True), Click(7.5, 0.5, False))
    records = (
        ClickRecord(1, 5, 2, 40, (0.5, 0.88), clicks, "clicks", 2.0),
        ClickRecord(1, 6, 2, 2000, (0.95,), clicks[:1], "reached", 1.0),
    )
    write_parquet(ClickEvaluation(2, (0.85, 0.9), True, {2: "cat"}, records, (), ()), tmp_path / "c.parquet")
    first, second = pq.read_table(tmp_path / "c.parquet").to_pylist()
    assert (first["x"], first["y"], first["positive"]) == ([2.5, 7.5], [3.5, 0.5], [True, False])
    assert (first["clicks_to_0.85"], first["clicks_to_0.9"], second["clicks_to_0.9"]) == (2, None, 1)
    assert (first["ious"], first["stopped"], first["category"], second["size"]) == (
        [0.5, 0.88],
        "clicks",
        "cat",
        "medium",
    )


def test_an_id_beyond_64_bits_is_named(tmp_path: Path) -> None:
    record = ObjectRecord(1, 10**30, 1, 50, (0.5,), (0.9,), 0, None, 1.0)
    with pytest.raises(DatasetError, match="64 bits"):
        write_parquet(Evaluation("box", 0, None, {}, (record,), (), ()), tmp_path / "r.parquet")
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.import_module("refinesam.evaluation.parquet"), "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pyarrow .*refinesam\[eval\]"):
        write_parquet(Evaluation("box", 0, None, {}, (), (), ()), tmp_path / "r.parquet")


# ---------------------------------------------------------------- calibration


def test_calibration_by_hand() -> None:
    found = calibration([0.05, 0.15, 0.5, 1.0, 0.9], [0.3, 0.1, 0.5, 0.7, 0.9], bins=2)
    low, high = found.bins
    assert (low.low, low.high, low.objects, high.objects) == (0, 0.5, 2, 3)
    assert (low.predicted, low.actual) == pytest.approx((0.1, 0.2))
    assert (high.predicted, high.actual) == pytest.approx((0.8, 0.7))
    assert found.error == pytest.approx((2 * 0.1 + 3 * 0.1) / 5)


def test_calibration_of_odd_predictions() -> None:
    assert calibration([], []).error is None
    assert calibration([math.nan], [0.5]).error is None
    found = calibration([1.3, -0.2], [1.0, 0.0], bins=4)
    assert found.error == 0
    assert [one.objects for one in found.bins] == [1, 0, 0, 1]
    assert (found.bins[1].predicted, found.bins[1].actual) == (None, None)
    with pytest.raises(ConfigError):
        calibration([0.5], [])
    with pytest.raises(ConfigError):
        calibration([], [], bins=0)


def test_the_error_is_no_greater_than_that_of_each_object() -> None:
    rng = np.random.default_rng(0)
    predicted, actual = rng.random(500), rng.random(500)
    each = float(np.abs(predicted - actual).mean())
    assert 0 < calibration(predicted.tolist(), actual.tolist()).error <= each  # type: ignore[operator]
    # With a bin of its own for each object they are the same.
    assert calibration([0.05, 0.55], [0.1, 0.4]).error == pytest.approx((0.05 + 0.15) / 2)


def test_the_summary_says_how_well_scores_can_be_believed(tmp_path: Path) -> None:
    summary = result(tmp_path).summary()
    # The left half: IoU 1/2 and 8/12, predicted 0.5.
    assert summary["calibration_error"] == pytest.approx(abs((1 / 2 + 8 / 12) / 2 - 0.5))
