"""The rules that `amr_study.py` compares, decided from what `amr_looks.py` stored; see there."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refinesam.amr import AMRConfig, MaskQuality, choose_strategy
from refinesam.consensus import TEMPERATURE, THRESHOLDS, Ballot
from refinesam.masks import mask_iou
from refinesam.second_looks import LEAST_GAIN


@dataclass(frozen=True)
class Variant:
    """A rule of choice over the looks of `AMRConfig.full()`; the default is the shipped one.

    Attributes:
        windows: of those looked at, which vote beside the first prediction.
        second: whether the second look at the whole image votes.
        temperature: of the weights within one decode; infinite means that predicted IoU is not used.
        thresholds: of the vote.
        min_gain: least gain of expected IoU.
        lone_click: least IoU with the first mask where the prompt is a lone click.
    """

    windows: tuple[int, ...] = (0, 1)
    second: bool = True
    temperature: float = TEMPERATURE
    thresholds: tuple[float, ...] = THRESHOLDS
    min_gain: float = LEAST_GAIN
    lone_click: float = 0.0


VARIANTS: Mapping[str, Variant] = {
    "full": Variant(),
    "fast": Variant(windows=()),
    "votes of the first decode alone": Variant(windows=(), second=False),
    "full, without the second look at the whole image": Variant(second=False),
    "full, the farther window alone": Variant(windows=(0,)),
    "full, the nearer window alone": Variant(windows=(1,)),
    "without predicted IoU (equal weights)": Variant(temperature=1e9),
    "predicted IoU decides within a decode": Variant(temperature=1e-3),
    "temperature 0.05": Variant(temperature=0.05),
    "temperature 0.05, min_gain 0.02": Variant(temperature=0.05, min_gain=0.02),
    "one threshold, 0.5": Variant(thresholds=(0.5,)),
    "a lone click keeps an IoU of 0.5": Variant(lone_click=0.5),
    "a lone click keeps an IoU of 0.7": Variant(lone_click=0.7),
    "min_gain 0": Variant(min_gain=0),
    "min_gain 0.02": Variant(min_gain=0.02),
    "min_gain 0.05": Variant(min_gain=0.05),
}


def unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape).astype(bool)


def decided(row: Mapping[str, Any], truth: np.ndarray, variant: Variant) -> tuple[float, float]:
    """Return the IoU with the truth of what a variant keeps, and its gain of expected IoU, 0 for the first mask."""
    looks = row["looks"]
    first = looks[0]["masks"][looks[0]["best"]]
    ballot = Ballot(first, variant.temperature, variant.thresholds)
    windows = looks[1:]
    voting = looks[:1] + [windows[index] for index in variant.windows if index < len(windows)]
    lone = row["protocol"] == "points-1"
    if variant.second:
        voting += row["second"]
    for look in voting:
        ballot.add(look["masks"], look["scores"], look["window"])
    decision = ballot.decide()
    before = baseline(row)
    if decision is None or decision.gain <= variant.min_gain:
        return before, 0.0
    columns, rows = row["clicks"].astype(int).T
    missed = [(mask[rows, columns] != row["labels"]).sum() for mask in (first, decision.mask)]
    if missed[1] > missed[0] or (lone and first.any() and mask_iou(first, decision.mask) < variant.lone_click):
        return before, 0.0
    return mask_iou(decision.mask, truth), decision.gain


def stored(cache: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield what was collected, with what every variant decides in place of the masks."""
    for path in sorted(cache.glob(f"{split}-*.pickle")):
        for row in pickle.loads(path.read_bytes()):
            truth = unpacked(row.pop("truth"), row["hw"])
            looks = row["looks"] + row["second"]
            for look in looks:
                look["masks"] = unpacked(look["masks"], look["shape"])
            row["decided"] = {name: decided(row, truth, variant) for name, variant in VARIANTS.items()}
            for look in looks:
                del look["masks"]
            yield row


PAPER = {"paper_equation": AMRConfig.paper(), "paper_prose": AMRConfig(rule="paper_prose")}


def by_points(row: Mapping[str, Any], config: AMRConfig) -> dict[str, Any]:
    """Return what a rule that places points came to; it chooses between the two strategies that are stored."""
    quality = MaskQuality(row["kappa"], row["compactness"])
    strategy = choose_strategy(quality, config)
    return dict(row["points"][strategy if config.append else f"{strategy}, alone"])


def point_rules() -> dict[str, Callable[[Mapping[str, Any]], float]]:
    """The paper's rule, its readings, thresholds, signals and passes, and the mean of what its points make."""
    configs = {
        f"{rule.removeprefix('paper_')}, {'appended' if append else 'alone'}": AMRConfig(rule=rule, append=append)
        for rule in ("paper_equation", "paper_prose", "centre", "boundary")
        for append in (True, False)
    }
    for threshold in (0.0, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9):
        for rule in ("paper_equation", "paper_prose"):
            name = f"{rule.removeprefix('paper_')}, Q below {threshold:g}"
            configs[name] = AMRConfig(rule=rule, compactness_threshold=threshold)
    rules: dict[str, Callable[[Mapping[str, Any]], float]] = {
        name: lambda row, config=config: by_points(row, config)["iou"] for name, config in configs.items()
    }
    # A threshold of 0 leaves the equation kappa alone. Where kappa is not looked at, an irregular mask is one of low Q.
    rules["Q alone"] = lambda row: row["points"]["boundary" if row["compactness"] < 0.6 else "centre"]["iou"]
    for passes in (2, 3):
        rules[f"equation, {passes} passes"] = lambda row, n=passes: row["points"][f"equation, {n} passes"]["iou"]
    rules["mean of logits: as prompted, centre, boundary"] = lambda row: row["logit_ensemble"]
    return rules


def baseline(row: Mapping[str, Any]) -> float:
    look = row["looks"][0]
    return float(look["ious"][look["best"]])
