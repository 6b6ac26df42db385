"""Evaluation: sizes, bootstrap intervals, paired changes and means over sources."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refinesam.errors import ConfigError
from refinesam.evaluation import metrics
from refinesam.evaluation.metrics import bootstrap_interval, paired_change, size_of

# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("area", "size"),
    [(1, "small"), (1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (10**7, "large")],
)
def test_sizes_are_cocos(area: int, size: str) -> None:
    assert size_of(area) == size


VALUES = [[0.1, 0.4, 0.3], [0.9], [], [0.5, 0.2], [0.0, 0.7, 0.6, 0.8]]


def naive_interval(values_by_image: list[list[float]], resamples: int, seed: int) -> tuple[float, float]:
    """Efron's percentile bootstrap of a mean, images drawn with replacement, written out."""
    rng = np.random.default_rng(seed)
    images = [values for values in values_by_image if values]
    means = []
    for _ in range(resamples):
        drawn = [images[i] for i in rng.integers(len(images), size=len(images))]
        pooled = [value for values in drawn for value in values]
        means.append(sum(pooled) / len(pooled))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


@pytest.mark.parametrize("draws_at_once", [4_000_000, 100, 1])
def test_bootstrap_equals_the_naive_loop(draws_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", draws_at_once)
    interval = bootstrap_interval(VALUES, resamples=400, seed=3)
    assert interval == pytest.approx(naive_interval(VALUES, 400, 3), abs=1e-12)
    assert bootstrap_interval(VALUES, resamples=400, seed=4) != interval


def test_bootstrap_draws_images_not_objects() -> None:
    # Two images, all objects of one alike: a resample's mean is 0, 1/2 or 1, however many objects there are.
    assert bootstrap_interval([[0.0] * 500, [1.0] * 500]) == (0.0, 1.0)
    assert bootstrap_interval([[0.25] * 3, [0.25]]) == (0.25, 0.25)


def test_bootstrap_of_fewer_than_two_images_is_unknown() -> None:
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([[0.1, 0.9], []]) is None


@pytest.mark.parametrize("settings", [{"confidence": 0}, {"confidence": 1}, {"confidence": math.nan}, {"resamples": 0}])
def test_bootstrap_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        bootstrap_interval(VALUES, **settings)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    narrow, wide = bootstrap_interval(VALUES, confidence=0.5), bootstrap_interval(VALUES, confidence=0.99)
    assert narrow and wide and wide[0] < narrow[0] < narrow[1] < wide[1]


def test_paired_change_counts_helped_hurt_and_unchanged() -> None:
    change = paired_change({1: [0.5, 0.0, -0.005], 2: [-0.25, 0.01], 3: [0.02, 0.0, 0.125]})
    assert change is not None
    assert change.mean == pytest.approx(0.4 / 8)
    assert (change.helped, change.hurt, change.unchanged) == (3 / 8, 1 / 8, 4 / 8)
    assert change.interval == bootstrap_interval([[0.5, 0.0, -0.005], [-0.25, 0.01], [0.02, 0.0, 0.125]])
    assert paired_change({}) is None
    assert paired_change({1: []}) is None
