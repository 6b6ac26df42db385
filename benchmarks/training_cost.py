"""Hours that SA-1B finetuning and ImageNet-1k SAMI would take, from training_throughput.py's JSON.

    python benchmarks/training_cost.py benchmarks/results/training_throughput.json  # writes into docs/training.md

Several GPUs were not measured: up to one node of 8 they are taken to scale fully, and each doubling beyond multiplies
the efficiency by --scaling, an assumption. Where the JSON is of a CPU, GPU hours are computed from counted FLOPs.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from refinesam.errors import ConfigError

BEGIN, END = "<!-- cost:begin -->", "<!-- cost:end -->"
NODE = 8
GPUS = (1, 8, 64)
# Images and epochs as the source paper states them; the counts are the data sets' own.
RUNS = {"sami": ("ImageNet-1k SAMI", 1_281_167, 400), "finetune": ("SA-1B finetuning", 11_100_000, 5)}
ASSUMED_MFU = 0.35
A100_PEAK = 312e12
WIDTHS = {"sam_vit_b": 768, "sam_vit_h": 1280}
NEEDED = ("method", "variant", "size", "teacher", "images_per_second", "flops_per_image")


def read_result(path: Path) -> dict[str, Any]:
    """Read what training_throughput.py wrote.

    Raises:
        ConfigError: it is missing, not JSON, of another shape, or has a rate that is no positive number.
    """
    hint = "Write it with benchmarks/training_throughput.py."
    try:
        result = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read {path}: {error}. {hint}") from error
    try:
        device, stages = result["machine"]["device"], result["stages"]
        for name, stage in stages.items():
            for key in NEEDED:
                stage[key]
            for key in ("images_per_second", "flops_per_image"):
                if not (isinstance(stage[key], int | float) and 0 < stage[key] < math.inf):
                    raise ConfigError(f"{path}: {key} of {name} is {stage[key]!r}, not a positive number. {hint}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} lacks machine.device, stages or a stage's {', '.join(NEEDED)}: {error!r}. {hint}"
        ) from error
    if result.get("quick"):
        raise ConfigError(f"{path} is a trial (--quick), too short to reckon with. Measure without --quick.")
    if not stages or not isinstance(device, str):
        raise ConfigError(f"{path} has no stages. {hint}")
    return result


def speedup(gpus: int, scaling: float) -> float:
    """Times as fast as one GPU: `gpus`, with `scaling` for each doubling beyond a node."""
    return gpus * scaling ** max(0.0, math.log2(gpus / NODE))


def hours(images: float, images_per_second: float, gpus: int = 1, scaling: float = 0.9) -> float:
    return images / images_per_second / speedup(gpus, scaling) / 3600


def derived_rate(flops_per_image: float, peak: float, mfu: float) -> float:
    """Images a second of a device that was not measured."""
    return peak * mfu / flops_per_image


def cache_bytes(views: int, tokens: int, channels: int) -> int:
    """Size of SAMI's targets in fp16."""
    return views * tokens * channels * 2


def tables(result: dict[str, Any], scaling: float, peak: float, mfu: float) -> str:
    cpu = result["machine"]["device"] == "cpu"
    origin = "computed from counted FLOPs, not measured" if cpu else "from images/s measured on 1 GPU"
    lines = [
        "| run | stage | images | 1 GPU | 8 GPUs | 64 GPUs | this CPU | GPU hours' origin |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, stage in result["stages"].items():
        if stage["method"] not in RUNS:
            continue
        title, count, epochs = RUNS[stage["method"]]
        measured = stage["images_per_second"]
        rate = derived_rate(stage["flops_per_image"], peak, mfu) if cpu else measured
        cells = [f"{hours(count * epochs, rate, gpus, scaling):,.1f} h" for gpus in GPUS]
        own = f"{hours(count * epochs, measured):,.0f} h" if cpu else "not measured"
        lines.append(
            f"| {title}, {epochs} epochs | {name} | {count * epochs:,} | {' | '.join(cells)} | {own} | {origin} |"
        )
    lines += ["", f"Assumed: scaling efficiency 1 up to {NODE} GPUs, times {scaling} for each doubling beyond."]
    if cpu:
        lines[-1] += (
            f" GPU: peak {peak / 1e12:g} TFLOP/s (vendor data sheet, A100 bf16 dense by default), MFU {mfu:.0%}."
        )
    lines += ["", *throughput(result)]
    lines += ["", "| teacher | targets of one view | ImageNet-1k, one view an image |", "|---|---|---|"]
    for teacher, width in WIDTHS.items():
        one, count = cache_bytes(1, 196, width), RUNS["sami"][1]
        lines.append(f"| {teacher} | {one:,} B | {one * count / 1e9:,.0f} GB |")
    return "\n".join(lines)


def throughput(result: dict[str, Any]) -> list[str]:
    """Return the table of what was measured: MFU is of the device's own matrix product, in the same precision."""
    machine = result["machine"]
    lines = [
        f"Measured on {machine.get('name', machine['device'])}, {machine.get('precision', 'unknown')}, "
        f"{machine.get('threads', '?')} threads:",
        "",
        "| stage | images/s | GFLOP an image | MFU | loading's share without workers |",
        "|---|---|---|---|---|",
    ]
    for name, stage in result["stages"].items():
        share, mfu = stage.get("loading_share"), stage.get("mfu_of_measured_peak")
        cells = [f"{value:.0%}" if value is not None else "not measured" for value in (mfu, share)]
        rate, work = f"{stage['images_per_second']:.2f}", f"{stage['flops_per_image'] / 1e9:.1f}"
        lines.append(f"| {name} | {rate} | {work} | {' | '.join(cells)} |")
    return lines


def replace_between(page: str, text: str) -> str:
    """Put text between the page's markers.

    Raises:
        ConfigError: the page does not have both markers once, in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ConfigError(f"The page needs {BEGIN} and then {END}, once each. Put them where the tables belong.")
    return page[: page.index(BEGIN) + len(BEGIN)] + f"\n{text}\n" + page[page.index(END) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("--page", type=Path, default=Path("docs/training.md"))
    parser.add_argument("--scaling", type=float, default=0.9)
    parser.add_argument("--peak", type=float, default=A100_PEAK, help="FLOP/s of a GPU that was not measured")
    parser.add_argument("--mfu", type=float, default=ASSUMED_MFU)
    given = parser.parse_args()
    text = tables(read_result(given.result), given.scaling, given.peak, given.mfu)
    given.page.write_text(replace_between(given.page.read_text("utf-8"), text), "utf-8")


if __name__ == "__main__":
    main()
