"""Predicted against true IoU: whether a model's own scores can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from refinesam.errors import ConfigError
from refinesam.evaluation.metrics import mean_or_none

__all__ = ["Calibration", "CalibrationBin", "calibration"]


@dataclass(frozen=True)
class CalibrationBin:
    """The objects whose predicted IoU lies in [low, high), the last bin's in [low, high].

    Attributes:
        low: lower end.
        high: upper end.
        objects: how many.
        predicted: their mean predicted IoU, None for no object.
        actual: their mean true IoU, None for no object.
    """

    low: float
    high: float
    objects: int
    predicted: float | None
    actual: float | None


@dataclass(frozen=True)
class Calibration:
    """How predicted and true IoU agree.

    Attributes:
        error: expected calibration error: over bins, the mean of |mean predicted - mean true IoU|, each bin weighed by
            its objects (Naeini et al. 2015, with IoU in the place of accuracy); None for no object.
        bins: from 0 to 1, of equal width.
    """

    error: float | None
    bins: tuple[CalibrationBin, ...]


def calibration(predicted: Sequence[float], actual: Sequence[float], bins: int = 10) -> Calibration:
    """Compare predicted with true IoUs of the same masks.

    Args:
        predicted: the model's estimates; beyond [0, 1] they count as its ends, and NaN is left out.
        actual: the true IoUs, as many.
        bins: how many.

    Raises:
        ConfigError: different numbers, or no bin.

    >>> calibration([0.75, 0.75, 0.25], [0.25, 0.5, 0.25], bins=2).error
    0.25
    """
    if len(predicted) != len(actual) or bins < 1:
        raise ConfigError(
            f"{len(predicted)} predicted and {len(actual)} true IoUs in {bins} bins: give as many of both and at least "
            "1 bin."
        )
    members: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for guess, true in zip(predicted, actual, strict=True):
        if not math.isnan(guess):
            clipped = min(max(guess, 0.0), 1.0)
            members[min(int(clipped * bins), bins - 1)].append((clipped, true))
    filled = []
    for index, pairs in enumerate(members):
        guesses, trues = [guess for guess, _ in pairs], [true for _, true in pairs]
        ends = (index / bins, (index + 1) / bins)
        filled.append(CalibrationBin(*ends, len(pairs), mean_or_none(guesses), mean_or_none(trues)))
    total = sum(bin_.objects for bin_ in filled)
    gaps = [
        bin_.objects * abs(bin_.predicted - bin_.actual)
        for bin_ in filled
        if bin_.predicted is not None and bin_.actual is not None
    ]
    return Calibration(math.fsum(gaps) / total if total else None, tuple(filled))
