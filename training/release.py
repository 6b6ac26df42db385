"""Put trained weights into the package and measure them; print the tables of the model card.

    python training/release.py runs/builtin/weights.safetensors --data DATA --input-size 320 --sources dsb2018 emps

Writes src/refinesam/assets/builtin.{safetensors,json} and training/results/builtin.json.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import refinesam
from refinesam.evaluation.dataset import read_coco_folder
from refinesam.evaluation.protocols import evaluate
from refinesam.files import write_json
from refinesam.models import mask_decoder
from refinesam.weights import load_model, save_weights

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "src" / "refinesam" / "assets"
RESULTS = ROOT / "training" / "results" / "builtin.json"
PROTOCOLS = ("box", "points-3", "points-1")


def install(weights: Path, input_size: int) -> Path:
    """Copy weights into the package, for an input size, and write their digest beside them."""
    model = load_model(weights)
    model.config = replace(model.config, input_size=input_size or model.config.input_size)
    target = ASSETS / "builtin.safetensors"
    save_weights(model, target, torch.float16)
    content = target.read_bytes()
    write_json(
        target.with_suffix(".json"),
        {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "variant": model.config.name},
    )
    return target


def measure(weights: Path, data: Path, sources: list[str], limit: int | None) -> dict[str, Any]:
    """MIoU of every source's validation images by protocol."""
    session = refinesam.load(weights)
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
    return rows


def without_merging(weights: Path, data: Path, sources: list[str], limit: int | None) -> dict[str, float]:
    """Mean over the sources when the mask with the highest predicted IoU is shown as it was decoded."""
    temperature = mask_decoder.MERGING_TEMPERATURE
    # So low that the best mask has all of the weight.
    mask_decoder.MERGING_TEMPERATURE = 1e-6
    try:
        rows = measure(weights, data, sources, limit)
    finally:
        mask_decoder.MERGING_TEMPERATURE = temperature
    return {protocol: fmean(row[protocol]["miou"] for row in rows.values()) for protocol in PROTOCOLS}


def card_table(group: dict[str, Any]) -> str:
    """Return a group's results as the model card shows them: mIoU of the chosen mask, in brackets of the best one."""
    lines = ["| source | images | objects | box | 3 clicks | 1 click |", "|---|---|---|---|---|---|"]
    for source, row in group["by_source"].items():
        cells = (f"{row[p]['miou']:.2f} ({row[p]['miou_oracle']:.2f})" for p in PROTOCOLS)
        lines.append(f"| {source} | {row['images']} | {row['objects']} | {' | '.join(cells)} |")
    means = " | ".join(f"**{group['mean_over_sources'][p]:.3f}**" for p in PROTOCOLS)
    return "\n".join([*lines, f"| **mean** | | | {means} |"])


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--input-size", type=int, default=0, help="0 keeps the size of training")
    parser.add_argument("--sources", nargs="+", required=True, help="licensed for training, and trained on")
    parser.add_argument("--unseen", nargs="*", default=[], help="never trained on: how far the weights generalise")
    parser.add_argument("--limit", type=int, help="only the first images of each source")
    arguments = parser.parse_args()
    target = install(arguments.weights, arguments.input_size)
    result: dict[str, Any] = {"limit_images": arguments.limit}
    for group in ("sources", "unseen"):
        rows = measure(target, arguments.data, getattr(arguments, group), arguments.limit)
        if rows:
            mean = {p: fmean(row[p]["miou"] for row in rows.values()) for p in PROTOCOLS}
            print(f"mean of {group}:", *(f"{p} {v:.3f}" for p, v in mean.items()))
            result[group] = {"mean_over_sources": mean, "by_source": rows}
            result[group]["mean_without_merging"] = without_merging(target, arguments.data, list(rows), arguments.limit)
            print(f"without merging masks: {result[group]['mean_without_merging']}")
            print(card_table(result[group]))
    write_json(RESULTS, result, indent=1)


if __name__ == "__main__":
    main()
