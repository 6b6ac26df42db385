"""What Adaptive Mask Refinement gains, by protocol and source: every pass once on disk, every rule from there.

    python benchmarks/amr_study.py collect --data DATA --cache CACHE --images 6 --objects 3
    python benchmarks/amr_study.py report --cache CACHE --data DATA --json benchmarks/results/amr_study.json

`collect` prompts for a sample of the objects of a split, the same for every run, and stores the masks that closer looks
find, without a gate and at several scales, with the results of the rules that only add points; an image that is stored
is not collected again, so it may be ended and started anew. `report` decides from what is stored: the default and the
same under other gates, from other crops, and with masks withheld; the paper's rule in both readings, at other
thresholds, with one of its two signals, its points appended or alone, in one to three passes. Milliseconds are CPU time
of one thread: they don't depend on what else the machine does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from time import process_time
from typing import Any

import cv2
import numpy as np
import torch

import refinesam
from amr_passes import PROTOCOLS, collect, sampled
from amr_rules import PAPER, VARIANTS, baseline, by_points, point_rules, stored
from calibration import Scores
from refinesam.evaluation.metrics import bootstrap_interval, paired_change
from refinesam.files import write_json
from sources import FIRST_TWELVE, TEN_MORE


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
        "full": lambda row: row["kept"]["full"][0],
        "fast": lambda row: row["kept"]["fast"][0],
        "oracle_first_three": lambda row: max(row["ious"]),
        "oracle_first_or_closer_look": lambda row: max(baseline(row), row["kept"]["the closer look's mask, always"][0]),
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
        kinds.setdefault(f"predicted IoU, first mask, {prompted}", []).append(
            (row["source"], row["score"], baseline(row))
        )
        iou, refined = row["kept"]["full"]
        if refined:
            pair = (row["source"], row["looks"]["closer look"]["score"], iou)
            kinds.setdefault(f"predicted IoU, refined mask, {prompted}", []).append(pair)
    return {
        name: {"as it is": calibration([p[1:] for p in pairs]), "with a line per kind": calibration(mapped(pairs))}
        for name, pairs in sorted(kinds.items())
    }


def costs(rows: list[dict[str, Any]], encode: float) -> dict[str, Any]:
    """CPU milliseconds and decodes; `share` a rule's mean over that of the first answer, `encode` and a decode."""
    results = {name: [by_points(row, config) for row in rows] for name, config in PAPER.items()}
    for preset in ("full", "fast"):
        look = VARIANTS[preset][0]
        results[preset] = [
            {
                "ms": row["looks"][look]["ms"] if row["looks"][look] else 0.0,
                "iterations": int(row["looks"][look] is not None),
                "kept": "refined" if row["kept"][preset][1] else "first",
            }
            for row in rows
        ]
    once = encode + fmean(row["first_ms"] for row in rows)
    return {
        "first_decode_ms": median(row["first_ms"] for row in rows),
        **{
            name: {
                "median_ms": median(one["ms"] for one in ones),
                "share": fmean(one["ms"] for one in ones) / once,
                "decodes": fmean(one["iterations"] for one in ones),
                "kept_refined": fmean(one["kept"] == "refined" for one in ones),
            }
            for name, ones in results.items()
        },
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


def show(protocol: str, result: Mapping[str, Any]) -> None:
    """Print what was found for a protocol: the main table with its groups of sources, every rule, and the cost."""
    own = result["protocols"][protocol]
    print(f"\n{protocol}, {own['all']['baseline']['objects']} objects")
    groups = [name for name in ("trained_on", "never_trained_on") if name in own]
    for name, one in own["all"].items():
        print(
            f"  {name:22s} {one['miou']:.3f} ({own['mean_over_sources'][name]:.3f})  {100 * one['change']:+5.1f} "
            f"{[round(100 * end, 1) for end in one['change_interval']]} "
            f"helped {one['helped']:.2f} hurt {one['hurt']:.2f}",
            *(f"  {group} {100 * own[group][name]['change']:+.1f}" for group in groups),
        )
    for name, one in chain(*(result[kind][protocol].items() for kind in ("ablations", "point_rules"))):
        print(f"    {name:56s} {100 * one['change']:+5.1f} helped {one['helped']:.2f} hurt {one['hurt']:.2f}")
    print("   ", own["cost"])


def report(arguments: argparse.Namespace) -> None:
    rows = list(stored(arguments.cache, arguments.split))
    sources = sorted({row["source"] for row in rows})
    groups = {
        "all": sources,
        "trained_on": [s for s in sources if s in (FIRST_TWELVE + TEN_MORE)],
        "never_trained_on": [s for s in sources if s not in (FIRST_TWELVE + TEN_MORE)],
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
            "cost": costs(own, result["encode_ms"]),
        }
        result["ablations"][protocol] = {
            name: summary(own, lambda row, name=name: row["kept"][name][0]) for name in VARIANTS
        }
        result["point_rules"][protocol] = {name: summary(own, after) for name, after in point_rules().items()}
        show(protocol, result)
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
