"""Ranking without ground truth on the real database, and how good it is against scikit-learn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fiftyone_planted import TRUTH_FIELD, evaluated_copy, plant
from refinesam import ConfigError
from refinesam_fiftyone.ranking import SIGNALS, add_signals, rank, rank_rows, ranking_quality
from refinesam_fiftyone.rows import ROW_COLUMNS, read_rows
from refinesam_fiftyone.schema import Fields, Settings

RUN = Fields()


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Without ground truth in its settings, and never evaluated."""
    settings = Settings("boxes", prompt_field=TRUTH_FIELD)
    planted = plant("bare-ranking", tmp_path_factory.mktemp("ranking"), settings=settings)
    yield planted
    planted.dataset.delete()


def hand_made(count=60, seed=1):
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "sample_id": [f"s{i // 5}" for i in range(count)],
            "prompt_id": [f"p{i}" for i in range(count)],
            "pred_iou_amr": rng.random(count).round(1),
            "predicted_gain": rng.random(count),
            "disagreement": rng.random(count),
            "kappa": rng.integers(0, 3, count).astype(float),
            "holes": 0.0,
            "compactness": rng.random(count),
            "amr_iou": rng.random(count),
        }
    )
    return rows.reindex(columns=list(ROW_COLUMNS))


def test_disagreement_is_measured_without_ground_truth(bare):
    assert read_rows(bare.dataset)["disagreement"].isna().all()
    ranked = rank(bare.dataset)
    assert len(ranked) == 62
    expected = {name: one.disagreement for name, one in bare.expected.items()}
    assert dict(zip(ranked["prompt_id"], ranked["disagreement"], strict=True)) == expected
    for field in (RUN.baseline, RUN.amr):
        ids, found = bare.dataset.values([f"{field}.detections.prompt_id", f"{field}.detections.disagreement"])
        assert {i: value for row in zip(ids, found, strict=True) for i, value in zip(*row, strict=True)} == expected


def test_samples_get_the_place_of_their_most_suspicious_object(bare):
    ranked = rank(bare.dataset)
    assert ranked["suspicion"].is_monotonic_decreasing
    assert ranked["rank"].tolist() == list(range(1, 63))
    places = dict(zip(*bare.dataset.values(["id", "refinesam_rank"]), strict=True))
    first = ranked.groupby("sample_id")["rank"].min().sort_values()
    assert [places[name] for name in first.index] == [1, 2, 3, 4, 5, 6]
    # A ranking of some samples leaves no place of an earlier one.
    rank(bare.dataset.limit(2))
    assert bare.dataset.values("refinesam_rank")[2:] == [None] * 4
    assert sorted(bare.dataset.values("refinesam_rank")[:2]) == [1, 2]
    pd.testing.assert_frame_equal(rank(bare.dataset), ranked)


def test_an_unreadable_mask_has_no_disagreement_and_is_ranked_by_the_rest(tmp_path):
    planted = plant("damaged-ranking", tmp_path, samples=2)
    prompt_id = next(name for name, one in planted.expected.items() if one.sample == 1)
    (tmp_path / "damaged-ranking" / "masks" / f"{prompt_id}_amr.png").unlink()
    ranked = rank(planted.dataset).set_index("prompt_id")
    assert np.isnan(ranked.loc[prompt_id, "disagreement"]) and ranked["disagreement"].notna().sum() == 21
    assert 0 < ranked.loc[prompt_id, "suspicion"] < 1
    planted.dataset.delete()


def test_a_mask_is_the_more_suspicious_the_lower_its_predicted_iou_and_the_more_ragged():
    rows = hand_made()
    before = add_signals(rows)["suspicion"]
    for name in ("pred_iou_amr", "compactness"):
        changed = rows.copy()
        changed.loc[7, name] = -1.0
        assert add_signals(changed)["suspicion"][7] > before[7]


def test_ranking_by_one_signal():
    rows = hand_made()
    for name in SIGNALS:
        ranked = rank_rows(rows, by=name)[name]
        assert ranked.dropna().is_monotonic_decreasing
    with pytest.raises(ConfigError, match="low_predicted_iou"):
        rank_rows(rows, by="beauty")


def test_quality_is_scikit_learns():
    rows = hand_made()
    quality = ranking_quality(rows, failed_below=0.4)
    signals, failed = add_signals(rows), rows["amr_iou"] < 0.4
    assert list(quality) == [*SIGNALS, "suspicion"]
    for name, one in quality.items():
        assert (one.objects, one.failed) == (60, failed.sum())
        assert one.auroc == pytest.approx(roc_auc_score(failed, signals[name]))
        low, high = one.interval
        assert low <= one.auroc <= high
    assert quality["holes"].auroc == 0.5 and quality["holes"].interval == (0.5, 0.5)


def test_the_interval_is_that_of_images_drawn_one_by_one():
    rows = hand_made()
    rng = np.random.default_rng(3)
    signals, failed = add_signals(rows)["suspicion"].to_numpy(), (rows["amr_iou"] < 0.4).to_numpy()
    images = [np.flatnonzero(rows["sample_id"] == name) for name in rows["sample_id"].unique()]
    draws = [np.concatenate([images[i] for i in rng.integers(len(images), size=len(images))]) for _ in range(600)]
    found = [roc_auc_score(failed[drawn], signals[drawn]) for drawn in draws]
    interval = ranking_quality(rows, failed_below=0.4)["suspicion"].interval
    # Two bootstraps' ends differ by the error of their draws, about 0.01.
    assert interval == pytest.approx(np.quantile(found, [0.025, 0.975]).tolist(), abs=0.04)
    by_object = ranking_quality(rows.assign(sample_id=rows["prompt_id"]), failed_below=0.4)["suspicion"].interval
    assert by_object != interval


def test_a_signal_that_knows_the_failures_finds_them_all():
    rows = hand_made()
    rows["pred_iou_amr"] = rows["amr_iou"]
    assert ranking_quality(rows)["low_predicted_iou"].auroc == 1
    rows["pred_iou_amr"] = 1 - rows["amr_iou"]
    assert ranking_quality(rows)["low_predicted_iou"].auroc == 0
    rows.loc[:9, "pred_iou_amr"] = np.nan
    assert ranking_quality(rows)["low_predicted_iou"].objects == 50


def test_without_failures_or_with_one_image_there_is_nothing_to_say():
    rows = hand_made()
    assert ranking_quality(rows, failed_below=0)["suspicion"].auroc is None
    assert ranking_quality(rows[:5].assign(amr_iou=[0.1, 0.2, 0.8, 0.9, 0.9]))["suspicion"].interval is None


def test_planted_failures_are_found():
    planted = evaluated_copy("ranking")
    quality = ranking_quality(rank(planted.dataset))
    # The planted predictions are the true IoU with a little noise.
    assert quality["low_predicted_iou"].auroc > 0.95
    assert quality["low_predicted_iou"].failed == sum(one.amr_iou < 0.5 for one in planted.expected.values())
    planted.dataset.delete()


def test_what_cannot_be_ranked_is_refused(bare):
    with pytest.raises(ConfigError, match="no run 'other'"):
        rank(bare.dataset, run_key="other")
    with pytest.raises(ConfigError, match="evaluate the run"):
        ranking_quality(read_rows(bare.dataset))
    assert len(rank(bare.dataset.limit(0))) == 0
