"""The rules that `amr_study.py` compares, decided from what `amr_passes.py` stored; see there."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amr_passes import LOOKS, MASKS_WITHHELD
from refinesam.amr import AMRConfig, MaskQuality, choose_strategy
from refinesam.amr.closer_look import LEAST_AGREEMENT_OF_OTHERS, objection
from refinesam.masks import mask_iou
from refinesam.types import Prompt


@dataclass(frozen=True)
class Gate:
    """When the look's mask is kept: its least IoU with the first one, and its least gain of predicted IoU."""

    least_agreement: float = AMRConfig.full().least_agreement
    min_gain: float | None = None


# Which look is taken, and under which gate its mask is kept.
VARIANTS: Mapping[str, tuple[str, Gate]] = {
    "full": ("closer look", Gate()),
    "fast": ("second look", Gate(LEAST_AGREEMENT_OF_OTHERS)),
    "the closer look's mask, always": ("closer look", Gate(0)),
    **{f"full, agreement {least}": ("closer look", Gate(least)) for least in (0.5, 0.7, 0.8, 0.9)},
    "full, and a higher predicted IoU": ("closer look", Gate(min_gain=0)),
    **{f"full, {name}": (name, Gate()) for name in LOOKS if name.startswith("crop") or name == "one point"},
    MASKS_WITHHELD: (MASKS_WITHHELD, Gate(LEAST_AGREEMENT_OF_OTHERS)),
    f"{MASKS_WITHHELD}, agreement 0.3": (MASKS_WITHHELD, Gate()),
}


def unpacked(bits: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    return np.unpackbits(bits)[: hw[0] * hw[1]].reshape(hw).astype(bool)


def stored(cache: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield what was collected, with what every variant keeps (its IoU, and whether it is the look's mask)."""
    for path in sorted(cache.glob(f"{split}-*.pickle")):
        for row in pickle.loads(path.read_bytes()):
            truth, first = (unpacked(row.pop(name), row["hw"]) for name in ("truth", "first"))
            prompt = Prompt(*row.pop("prompt"))
            masks = {name: unpacked(look.pop("mask"), row["hw"]) for name, look in row["looks"].items() if look}
            row["kept"] = {}
            for name, (look, gate) in VARIANTS.items():
                refined = look in masks and not objection(
                    prompt,
                    first,
                    masks[look],
                    row["looks"][look]["score"] - row["score"],
                    gate.least_agreement,
                    gate.min_gain,
                )
                row["kept"][name] = (mask_iou(masks[look], truth) if refined else baseline(row), refined)
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
    return float(row["ious"][row["best"]])
