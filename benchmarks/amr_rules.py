"""The rules that `amr_study.py` compares, decided from what `amr_passes.py` stored; see there."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from amr_passes import in_image
from refinesam.amr import AMRConfig, MaskQuality, choose_strategy
from refinesam.amr.consensus import CROP_WEIGHT, LEAST_GAIN, agreement, decide, objection, voting
from refinesam.amr.vote import TEMPERATURE, THRESHOLDS, Candidates
from refinesam.masks import box_from_mask, box_iou, mask_iou
from refinesam.types import Prediction, Prompt


@dataclass(frozen=True)
class Variant:
    """A rule of choice over the passes of `AMRConfig.full()`; the default is the shipped one.

    Attributes:
        windows: how many of the crops vote beside the first masks.
        crop_weight: of a pass in a crop, beside 1 of every other.
        second: whether the second pass on the whole image votes; None: where there is no crop.
        temperature: of the weights within one decode; infinite means that predicted IoU is not used.
        thresholds: of the vote.
        min_gain: least gain of expected IoU.
        early_exit: the first mask stays where the first masks agree by more.
    """

    windows: int = 1
    second: bool | None = None
    crop_weight: float = CROP_WEIGHT
    temperature: float = TEMPERATURE
    thresholds: tuple[float, ...] = THRESHOLDS
    min_gain: float = LEAST_GAIN
    early_exit: float = 1.0


VARIANTS: Mapping[str, Variant] = {
    "full": Variant(),
    "fast": Variant(windows=0, early_exit=AMRConfig.fast().early_exit),
    "fast, always with a second pass": Variant(windows=0),
    "votes of the first decode alone": Variant(windows=0, second=False),
    "full, and the second pass has a vote, too": Variant(second=True),
    "full, every pass of the same weight": Variant(crop_weight=1),
    "full, a crop counts twice": Variant(crop_weight=2),
    "full, a crop counts eight times": Variant(crop_weight=8),
    "full, and a smaller crop": Variant(windows=2),
    "early exit at 0.98": Variant(early_exit=0.98),
    "early exit at 0.95": Variant(early_exit=0.95),
    "early exit at 0.9": Variant(early_exit=0.9),
    "without predicted IoU (equal weights)": Variant(temperature=1e9),
    "predicted IoU decides within a decode": Variant(temperature=1e-3),
    "one threshold, 0.5": Variant(thresholds=(0.5,)),
    "min_gain 0": Variant(min_gain=0),
    "min_gain 0.02": Variant(min_gain=0.02),
    "min_gain 0.05": Variant(min_gain=0.05),
}


def unpacked(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape).astype(bool)


def voters(row: Mapping[str, Any], variant: Variant) -> list[Candidates]:
    """Return the passes that vote beside the first.

    In the order in which they were made: votes that lie on a threshold fall by the last digit of their sum.
    """
    whole = [Candidates(one["masks"], one["scores"]) for one in row["second"]]
    crops = [
        Candidates(one["masks"], one["scores"], one["window"], variant.crop_weight)
        for one in row["windows"][: variant.windows]
    ]
    if variant.second is None:
        return voting([*whole, *crops])
    return [*whole, *crops] if variant.second else crops


def kept(row: Mapping[str, Any], truth: np.ndarray, variant: Variant) -> tuple[float, float]:
    """Return the IoU with the truth of what a variant keeps, and its gain of expected IoU, 0 for the first mask."""
    masks, scores = row["first"]["masks"], row["first"]["scores"]
    prompt = Prompt(row["clicks"], row["labels"], row["box"])
    first = Prediction(masks, scores, np.zeros((len(masks), 1, 1), np.float32), prompt)
    alone = decide(first, [], variant.temperature, variant.thresholds)
    if agreement(first, alone) <= variant.early_exit:
        decision = decide(first, voters(row, variant), variant.temperature, variant.thresholds)
        if decision is not None and not objection(first, decision, variant.min_gain):
            return mask_iou(decision.mask, truth), decision.gain
    return baseline(row), 0.0


# Instead of a vote: the one mask, of all that the presets decoded, whose product of these signals is highest.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "choose by predicted IoU": ("predicted",),
    "choose by predicted IoU x stability": ("predicted", "stability"),
    "choose by predicted IoU x stability x prompt": ("predicted", "stability", "prompt"),
    "choose by predicted IoU x stability x prompt x consensus": ("predicted", "stability", "prompt", "consensus"),
    "choose by consensus": ("consensus",),
}


def chosen(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the IoU with the truth of the mask that each of `CHOICES` takes."""
    passes = [row["first"], *row["second"], *row["windows"][:1]]
    masks = [in_image(mask, one["window"], row["hw"]) for one in passes for mask in one["masks"]]
    cells = np.stack([mask[::2, ::2].ravel() for mask in masks]).astype(np.float32)
    common = cells @ cells.T
    areas = cells.sum(axis=1)
    signals = {
        "predicted": np.concatenate([one["scores"] for one in passes]).clip(0, 1),
        "stability": np.concatenate([one["stabilities"] for one in passes]),
        "prompt": np.array([fits(mask, row) for mask in masks]),
        "consensus": (common / np.maximum(areas[:, None] + areas[None] - common, 1)).mean(axis=1),
    }
    ious = np.concatenate([one["ious"] for one in passes])
    return {
        name: float(ious[np.argmax(np.prod([signals[one] for one in names], axis=0))])
        for name, names in CHOICES.items()
    }


def fits(mask: np.ndarray, row: Mapping[str, Any]) -> float:
    """How well a mask agrees with its prompt: the IoU of its box with the box, or the share of right clicks."""
    if row["box"] is None:
        columns, rows = row["clicks"].astype(int).T
        return float((mask[rows, columns] == row["labels"]).mean())
    own = box_from_mask(mask)
    return 0.0 if own is None else float(box_iou([own], [row["box"]])[0, 0])


def stored(cache: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield what was collected, with what every variant decides in place of the masks."""
    for path in sorted(cache.glob(f"{split}-*.pickle")):
        for row in pickle.loads(path.read_bytes()):
            truth = unpacked(row.pop("truth"), row["hw"])
            passes = [row["first"], *row["windows"], *row["second"]]
            for one in passes:
                one["masks"] = unpacked(one["masks"], one["shape"])
            row["kept"] = {name: kept(row, truth, variant) for name, variant in VARIANTS.items()}
            row["chosen"] = chosen(row)
            for one in passes:
                del one["masks"]
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
    return float(row["first"]["ious"][row["first"]["best"]])
