"""The arithmetic of training's cost, and a trial of its throughput."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from refinesam.errors import ConfigError
from scripts import script

CPU = {"device": "cpu"}
STAGE = {"method": "sami", "variant": "efficientsam_ti", "size": 224, "teacher": "sam_vit_b"}


cost = script("benchmarks/training_cost")


def test_cost_is_what_is_computed_by_hand() -> None:
    assert cost.hours(7200, 2.0) == 1.0
    assert cost.hours(7200, 2.0, gpus=8) == 0.125
    assert cost.speedup(64, 0.5) == 8.0  # 64, halved for each of 3 doublings
    assert cost.derived_rate(2e9, 100e12, 0.5) == 25_000
    assert cost.cache_bytes(3, 196, 1280) == 1_505_280


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Cannot read"),
        ("[]", "lacks"),
        ('{"machine": {"device": "cpu"}, "stages": {}}', "no stages"),
        ('{"machine": {"device": "cpu"}, "stages": {"a": {}}}', "lacks"),
        ('{"machine": {"device": "cpu"}, "stages": {}, "quick": true}', "a trial"),
        (
            json.dumps({"machine": CPU, "stages": {"a": STAGE | {"images_per_second": 0, "flops_per_image": 1}}}),
            "images_per_second of a is 0",
        ),
    ],
)
def test_bad_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message):
        cost.read_result(tmp_path / "r.json")


def test_tables_say_what_was_not_measured() -> None:
    stages = {"one": STAGE | {"images_per_second": 1.0, "flops_per_image": 1e10}}
    text = cost.tables({"machine": {"device": "cpu"}, "stages": stages}, 0.9, 1e14, 0.5)
    assert "computed from counted FLOPs, not measured" in text
    # 512,466,800 images at 5,000 a second.
    assert "| 28.5 h | 3.6 h |" in text


def test_page_keeps_what_is_around_the_markers() -> None:
    page = f"a\n{cost.BEGIN}\nold\n{cost.END}\nb"
    assert cost.replace_between(page, "new") == f"a\n{cost.BEGIN}\nnew\n{cost.END}\nb"
    with pytest.raises(ConfigError, match="once each"):
        cost.replace_between("a", "new")


def test_a_trial_runs_on_a_cpu() -> None:
    result = script("benchmarks/training_throughput").run(["mae_ti"], 1, 1, "fp32", torch.device("cpu"), 64)
    stage = result["stages"]["mae_ti"]
    # The encoder sees 49 of 196 patches and has 5.3 million weights: at least 6 FLOPs a weight and patch.
    assert stage["flops_per_image"] > 6 * 5.3e6 * 49
    assert 0 < stage["loading_share"] < 1
