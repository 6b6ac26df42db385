"""Mean IoU of the built-in weights by source and protocol, on validation images; prints the model card's tables.

    python benchmarks/accuracy.py --data DATA --json training/results/builtin.json

At their own input size, or at --input-size. A source without a folder below DATA ends it before anything is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import refinesam
from refinesam.evaluation.dataset import read_coco_folder
from refinesam.evaluation.protocols import evaluate
from refinesam.files import write_json
from refinesam.session import Session
from sources import FIRST_TWELVE, NEVER_TRAINED_ON, TEN_MORE

PROTOCOLS = ("box", "points-3", "points-1")
GROUPS = {"first_twelve": FIRST_TWELVE, "ten_more": TEN_MORE, "never_trained_on": NEVER_TRAINED_ON}


def measure(session: Session, data: Path, sources: tuple[str, ...], limit: int | None) -> dict[str, Any]:
    """Results by source, and their mean over the sources."""
    rows: dict[str, Any] = {}
    for source in sources:
        folder = read_coco_folder(data / source / "instances_val.json", data / source / "images")
        row: dict[str, Any] = {}
        for protocol in PROTOCOLS:
            summary = evaluate(session, folder, protocol, limit_images=limit).summary()
            row[protocol] = {key: summary[key] for key in ("miou", "miou_oracle", "miou_interval")}
            row.update(images=summary["images"], objects=summary["objects"])
        rows[source] = row
        print(f"{source:18}", *(f"{row[p]['miou']:.3f}" for p in PROTOCOLS), flush=True)
    mean = {protocol: fmean(row[protocol]["miou"] for row in rows.values()) for protocol in PROTOCOLS}
    print("mean:", *(f"{p} {v:.3f}" for p, v in mean.items()), flush=True)
    return {"mean_over_sources": mean, "by_source": rows}


def card_table(group: dict[str, Any]) -> str:
    """A group's results as the model card shows them: mIoU of the chosen mask, in brackets of the best one."""
    lines = ["| source | images | objects | box | 3 clicks | 1 click |", "|---|---|---|---|---|---|"]
    for source, row in group["by_source"].items():
        cells = (f"{row[p]['miou']:.2f} ({row[p]['miou_oracle']:.2f})" for p in PROTOCOLS)
        lines.append(f"| {source} | {row['images']} | {row['objects']} | {' | '.join(cells)} |")
    means = " | ".join(f"**{group['mean_over_sources'][p]:.3f}**" for p in PROTOCOLS)
    return "\n".join([*lines, f"| **mean** | | | {means} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--input-size", type=int, help="default: the weights' own")
    parser.add_argument("--limit", type=int, default=12, help="images of each source; 0 takes all")
    parser.add_argument("--without-merging", action="store_true", help="show the best mask as it was decoded")
    parser.add_argument("--json")
    given = parser.parse_args()
    if missing := [s for g in given.groups for s in GROUPS[g] if not (given.data / s / "instances_val.json").exists()]:
        parser.error(f"{given.data} has no {', '.join(missing)}")
    session = refinesam.load(given.weights, input_size=given.input_size)
    if given.without_merging:
        # So low that the best mask has all of the weight.
        session.model.model.mask_decoder.merging_temperature = 1e-6
    result: dict[str, Any] = {"input_size": session.capabilities.input_size, "limit_images": given.limit or None}
    for group in given.groups:
        result[group] = measure(session, given.data, GROUPS[group], given.limit or None)
        print(card_table(result[group]))
        if given.json:
            write_json(given.json, result, indent=1)


if __name__ == "__main__":
    main()
