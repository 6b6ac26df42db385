"""What Adaptive Mask Refinement gains, by protocol and source: every look once on disk, every rule from there.

    python benchmarks/amr_study.py collect --data DATA --cache CACHE --images 6 --objects 3
    python benchmarks/amr_study.py report --cache CACHE --data DATA --json benchmarks/results/amr_study.json

`collect` prompts for a sample of the objects of a split, the same for every run, and stores all masks that the looks of
`AMRConfig.full()` decode, with the results of the rules that only add points; an image that is stored is not collected
again, so it may be ended and started anew. `report` decides from what is stored: the paper's rule in both readings, at
other thresholds, with one of its two signals, its points appended or alone, in one to three passes; and rules other
than the default (ablations). Milliseconds are CPU time of one thread: they don't depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from time import process_time
from typing import Any

import cv2
import numpy as np
import torch

import refinesam
import refinesam.consensus as consensus
from amr_looks import PROTOCOLS, collect, sampled
from refinesam.amr import AMRConfig, MaskQuality, choose_strategy
from refinesam.consensus import Ballot
from refinesam.evaluation.metrics import bootstrap_interval, paired_change
from refinesam.files import write_json
from refinesam.masks import mask_iou
from refinesam.second_looks import LEAST_GAIN
from refinesam.training.calibration import Scores

# Whose train splits the built-in weights were trained on.
TRAINED_ON = (
    *("dsb2018", "coco_mini_cc", "coco_person_cc", "feral_cats", "mushrooms", "embryos", "facades", "teachers"),
    *("bottles", "seedlings", "emps", "nanoparticles"),
)


# --- Deciding from what is stored -------------------------------------------------------------------------------------


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
    temperature: float = consensus.TEMPERATURE
    thresholds: tuple[float, ...] = consensus.THRESHOLDS
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
    consensus.TEMPERATURE, consensus.THRESHOLDS = variant.temperature, variant.thresholds
    ballot = Ballot(first)
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


# --- Reporting --------------------------------------------------------------------------------------------------------


def baseline(row: Mapping[str, Any]) -> float:
    look = row["looks"][0]
    return float(look["ious"][look["best"]])


def summary(rows: Iterable[Mapping[str, Any]], after: Callable[[Mapping[str, Any]], float]) -> dict[str, Any]:
    """Mean IoU after, and the paired change with its interval, resampled by image."""
    by_image: dict[Any, list[tuple[float, float]]] = {}
    for row in rows:
        by_image.setdefault((row["source"], row["image"]), []).append((baseline(row), after(row)))
    pairs = [pair for image in by_image.values() for pair in image]
    change = paired_change({index: [b - a for a, b in image] for index, image in enumerate(by_image.values())})
    assert change is not None
    return {
        "objects": len(pairs),
        "miou": fmean(b for _, b in pairs),
        "miou_interval": bootstrap_interval([[b for _, b in image] for image in by_image.values()]),
        "change": change.mean,
        "change_interval": change.interval,
        "helped": change.helped,
        "hurt": change.hurt,
    }


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    methods: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "baseline": baseline,
        **{name: lambda row, config=config: by_points(row, config)["iou"] for name, config in PAPER.items()},
        "full": lambda row: row["decided"]["full"][0],
        "fast": lambda row: row["decided"]["fast"][0],
        "oracle_first_three": lambda row: max(row["looks"][0]["ious"]),
        "oracle_of_all_looks": lambda row: max(max(look["ious"]) for look in row["looks"] + row["second"]),
    }
    return {name: summary(rows, after) for name, after in methods.items()}


def calibration(pairs: list[tuple[float, float]]) -> dict[str, float] | None:
    """Expected calibration error in 10 bins, and the mean signed error, of (predicted, true) IoUs."""
    if not pairs:
        return None
    scores = Scores(*np.array(pairs).T)
    return {"masks": len(pairs), "ece": scores.error, "mean_error": scores.bias}


def mapped(pairs: list[tuple[str, float, float]]) -> list[tuple[float, float]]:
    """Apply a line fitted by least squares on all other sources: what a map of one kind of prompt could mend."""
    result = []
    sources = sorted({source for source, *_ in pairs})
    for source in sources if len(sources) > 1 else ():
        other = np.array([(p, t) for s, p, t in pairs if s != source])
        slope, offset = np.polyfit(other[:, 0], other[:, 1], 1)
        result += [(float(np.clip(slope * p + offset, 0, 1)), t) for s, p, t in pairs if s == source]
    return result


def calibrations(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds: dict[str, list[tuple[str, float, float]]] = {}
    for row in rows:
        prompted = "box" if "box" in row["protocol"] else "clicks"
        kinds_of = ["first"] + ["window"] * (len(row["looks"]) - 1) + ["second"] * len(row["second"])
        for kind, look in zip(kinds_of, row["looks"] + row["second"], strict=True):
            pair = (row["source"], float(look["scores"][look["best"]]), look["ious"][look["best"]])
            kinds.setdefault(f"predicted IoU, {kind}, {prompted}", []).append(pair)
        iou, gain = row["decided"]["full"]
        if gain:
            score = min(1.0, float(row["looks"][0]["scores"].max()) + gain)
            kinds.setdefault(f"score of the refined mask, {prompted}", []).append((row["source"], score, iou))
    return {
        name: {"as it is": calibration([p[1:] for p in pairs]), "with a line per kind": calibration(mapped(pairs))}
        for name, pairs in sorted(kinds.items())
    }


def costs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    results = {name: [by_points(row, config) for row in rows] for name, config in PAPER.items()}
    results |= {name: [row[name] for row in rows] for name in ("full", "fast")}
    return {
        "first_decode_ms": median(row["first_ms"] for row in rows),
        **{
            name: {
                "median_ms": median(one["ms"] for one in ones),
                "decodes": fmean(one["iterations"] for one in ones),
                "kept_refined": fmean(one["kept"] == "refined" for one in ones),
            }
            for name, ones in results.items()
        },
        "full_windows": fmean(sum(look["window"] is not None for look in row["looks"]) for row in rows),
    }


def encode_ms(data: Path, sources: Iterable[str], weights: str) -> float:
    """Median CPU milliseconds of encoding one image of each source."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    session = refinesam.load(weights)
    times = []
    for source in sources:
        pixels = refinesam.read_image(sampled(data / source, "val", 1)[0].path)
        session.model.encode(pixels)
        start = process_time()
        session.model.encode(pixels)
        times.append(1000 * (process_time() - start))
    return median(times)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def report(arguments: argparse.Namespace) -> None:
    rows = list(stored(arguments.cache, arguments.split))
    sources = sorted({row["source"] for row in rows})
    groups = {
        "all": sources,
        "trained_on": [s for s in sources if s in TRAINED_ON],
        "never_trained_on": [s for s in sources if s not in TRAINED_ON],
    }
    result: dict[str, Any] = {
        "weights": arguments.weights,
        "weights_fingerprint": refinesam.load(arguments.weights).model.fingerprint,
        "split": arguments.split,
        "images": len({(row["source"], row["image"]) for row in rows}),
        "sources_never_trained_on": groups["never_trained_on"],
        "protocols": {},
        "ablations": {},
        "point_rules": {},
        "encode_ms": encode_ms(arguments.data, sources, arguments.weights),
    }
    for protocol in PROTOCOLS:
        own = [row for row in rows if row["protocol"] == protocol]
        tables = {
            name: table([row for row in own if row["source"] in group]) for name, group in groups.items() if group
        }
        by_source = {source: table([row for row in own if row["source"] == source]) for source in sources}
        mean_over_sources = {name: fmean(one[name]["miou"] for one in by_source.values()) for name in tables["all"]}
        result["protocols"][protocol] = {
            **tables,
            "mean_over_sources": mean_over_sources,
            "by_source": by_source,
            "cost": costs(own),
        }
        result["ablations"][protocol] = {
            name: summary(own, lambda row, name=name: row["decided"][name][0]) for name in VARIANTS
        }
        result["point_rules"][protocol] = {name: summary(own, after) for name, after in point_rules().items()}
        print(f"\n{protocol}, {len(own)} objects")
        for name, one in tables["all"].items():
            print(
                f"  {name:22s} {one['miou']:.3f} ({mean_over_sources[name]:.3f})  {100 * one['change']:+5.1f} "
                f"{[round(100 * end, 1) for end in one['change_interval']]} "
                f"helped {one['helped']:.2f} hurt {one['hurt']:.2f}",
                *(f"  {group} {100 * tables[group][name]['change']:+.1f}" for group in list(tables)[1:]),
            )
        for name, one in (result["ablations"][protocol] | result["point_rules"][protocol]).items():
            print(f"    {name:48s} {100 * one['change']:+5.1f} helped {one['helped']:.2f} hurt {one['hurt']:.2f}")
        print("   ", result["protocols"][protocol]["cost"])
    result["calibration"] = calibrations(rows)
    for name, one in result["calibration"].items():
        print(name, {k: c and {n: round(v, 3) for n, v in c.items()} for k, c in one.items()})
    if arguments.json:
        write_json(arguments.json, rounded(result), indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("collect", "report"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder outside the repository")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--sources", nargs="+", help="folders of the data; all of them when left out")
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--images", type=int, default=6, help="of each source")
    parser.add_argument("--objects", type=int, default=3, help="of each image")
    parser.add_argument("--part", type=int, default=0, help="which part of the images, when several collect at once")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    {"collect": collect, "report": report}[arguments.step](arguments)


if __name__ == "__main__":
    main()
