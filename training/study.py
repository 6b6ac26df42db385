"""Does SAMI help? One student finetuned from random, MAE and SAMI encoders, with the same budget and several seeds.

    python training/study.py run --data DATA --output runs/study
    python training/study.py report --output runs/study

`run` does what is missing, one run after the other, and resumes what was killed; several may work on different seeds at
once after the pretraining (--seeds). `report` writes training/results/study.json and study.png from what is finished.
The recipes are sami_study.toml, mae_study.toml and finetune_study.toml beside this file.
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from refinesam.files import write_json
from refinesam.training.finetune.config import FinetuneConfig, read_config
from refinesam.training.finetune.run import StepReport, finetune
from refinesam.training.pretrain.config import MaeConfig, SamiConfig
from refinesam.training.pretrain.run import PretrainReport, pretrain
from refinesam.training.settings import read_settings

HERE = Path(__file__).resolve().parent
STARTS = ("random", "mae", "sami")
MEASURES = ("val_click", "val_3_clicks", "val_box")
TITLES = {"val_click": "1 click", "val_3_clicks": "3 clicks", "val_box": "box"}


def pretrained(output: Path, data: Path, method: str, sources: tuple[str, ...]) -> Path:
    """Pretrain an encoder on the training images, without their masks; nothing is left to do where that is finished."""
    config = read_settings(HERE / f"{method}_study.toml", SamiConfig if method == "sami" else MaeConfig)
    updates: dict[str, Any] = {
        "data": config.data.model_copy(update={"folders": tuple(f"pretraining/{name}" for name in sources)})
    }
    if isinstance(config, SamiConfig):
        updates["teacher"] = config.teacher.model_copy(update={"cache": str(output / config.teacher.cache)})
    folder = output / method

    def tell(report: PretrainReport) -> None:
        if report.done % 20 == 0:
            print(
                method, report.stage, report.done, report.total, f"{report.loss:.4f} {report.seconds:.0f}", flush=True
            )

    return pretrain(config.model_copy(update=updates), data, folder, on_report=tell)


def training_images(output: Path, data: Path, sources: tuple[str, ...]) -> Path:
    """Link the training images of each source below `output/pretraining`: validation images must not be seen."""
    for source in sources:
        folder = output / "pretraining" / source
        folder.mkdir(parents=True, exist_ok=True)
        content = json.loads((data / source / "instances_train.json").read_text("utf-8"))
        for image in content["images"]:
            link = folder / Path(image["file_name"]).name
            # Another process may be at the same.
            with suppress(FileExistsError):
                link.symlink_to((data / source / "images" / image["file_name"]).resolve())
    return output


def settings(output: Path, start: str, seed: int) -> FinetuneConfig:
    """Return the finetuning's settings for a start and a seed."""
    config = read_config(HERE / "finetune_study.toml")
    encoder = "" if start == "random" else str(output / start / "encoder.safetensors")
    model = config.model.model_copy(update={"encoder_init": encoder})
    return config.model_copy(update={"seed": seed, "model": model})


def run(data: Path, output: Path, seeds: list[int], starts: list[str]) -> None:
    """Do all runs that are missing; one of each start before the second of any."""
    sources = read_config(HERE / "finetune_study.toml").data.sources
    for method in starts:
        if method != "random":
            pretrained(output, training_images(output, data, sources), method, sources)
    for seed in seeds:
        for start in starts:
            folder = output / f"{start}_{seed}"
            if (folder / "weights.safetensors").exists():
                continue

            def tell(report: StepReport, name: str = folder.name) -> None:
                if report.step % 20 == 0:
                    print(name, report.step, f"{report.loss:.3f} {report.iou:.3f} {report.seconds:.0f}", flush=True)

            finetune(settings(output, start, seed), data, folder, on_step=tell)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Return a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def paired(ends: dict[str, dict[int, dict[str, float]]], first: str, second: str) -> dict[str, Any]:
    """What a start gains over another, seed by seed: same data in the same order, same decoder at the beginning."""
    seeds = sorted(ends[first].keys() & ends[second].keys())
    return {
        measure: {
            "by_seed": (gains := [round(ends[first][s][measure] - ends[second][s][measure], 4) for s in seeds]),
            "mean": round(fmean(gains), 4),
        }
        for measure in MEASURES
        if seeds
    }


def report(output: Path) -> None:
    """Write the table and the curves of all finished runs."""
    curves: dict[str, dict[int, list[dict[str, float]]]] = {start: {} for start in STARTS}
    for start in STARTS:
        for folder in sorted(output.glob(f"{start}_*")):
            if (folder / "weights.safetensors").exists():
                points = [line for line in lines_of(folder) if "val_box" in line]
                curves[start][int(folder.name.rpartition("_")[2])] = points
    ends = {start: {seed: points[-1] for seed, points in by_seed.items()} for start, by_seed in curves.items()}
    table = {
        start: {
            "seeds": sorted(by_seed),
            **{
                measure: {
                    "mean": round(fmean(values := [end[measure] for end in by_seed.values()]), 4),
                    "deviation": round(stdev(values), 4) if len(values) > 1 else None,
                }
                for measure in MEASURES
            },
        }
        for start, by_seed in ends.items()
        if by_seed
    }
    result = {
        "what": "Our hybrid at 128 pixels, all of it finetuned, from a random, an MAE and a SAMI encoder. Mean "
        "IoU at stride 4 over the validation objects of the training sources, after the same steps.",
        "recipes": ["sami_study.toml", "mae_study.toml", "finetune_study.toml"],
        "objects": next(iter(ends["random"].values()), {}).get("val_objects"),
        "table": table,
        "gains": {
            f"{a} over {b}": paired(ends, a, b) for a, b in (("mae", "random"), ("sami", "random"), ("sami", "mae"))
        },
        "curves": {s: {str(seed): points for seed, points in by_seed.items()} for s, by_seed in curves.items()},
        "pretraining": {
            method: {
                "seconds": (lines := [line for line in lines_of(output / method) if "loss" in line])[-1]["seconds"],
                "steps_loss_mean_target_loss": [
                    [line["step"], line["loss"], line["mean_target_loss"]] for line in lines
                ],
            }
            for method in ("mae", "sami")
            if (output / method / "encoder.safetensors").exists()
        },
    }
    write_json(HERE / "results" / "study.json", result, indent=1)
    draw(curves, HERE / "results" / "study.png")
    print(json.dumps({"table": table, "gains": result["gains"]}, indent=1))


def draw(curves: dict[str, dict[int, list[dict[str, float]]]], path: Path) -> None:
    """Draw each protocol's validation over the steps: a line a run, in one colour a start."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(11, 3.4), layout="constrained")
    colors = dict(zip(STARTS, ("#888888", "#e6550d", "#1f77b4"), strict=True))
    for axis, measure in zip(axes, MEASURES, strict=True):
        for start, by_seed in curves.items():
            for number, points in enumerate(by_seed.values()):
                steps, values = [p["step"] for p in points], [p[measure] for p in points]
                label = start if not number else None
                axis.plot(steps, values, color=colors[start], marker="o", markersize=3, label=label)
        axis.set(title=TITLES[measure], xlabel="finetuning step")
    axes[0].set_ylabel("validation mIoU")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--data", type=Path, help="folder with one folder a source; for run")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.output)
    elif arguments.data is None:
        parser.error("run needs --data")
    else:
        run(arguments.data, arguments.output, arguments.seeds, arguments.starts)


if __name__ == "__main__":
    main()
