"""Training throughput, counted FLOPs and model-FLOP utilisation of the real training steps, and of data loading alone.

    python benchmarks/training_throughput.py --output benchmarks/results/training_throughput.json

Weights are random: speed does not depend on their values. Steps run on one batch of the real pipeline, kept in memory;
loading is the same pipeline alone, in this process. Its images are drawn here, 640 x 480 PNG, unlike SA-1B's JPEGs.

FLOPs are torch.utils.flop_counter's over one whole step: matrix products, convolutions and attention, forward and
backward, a frozen teacher's forward too. Elementwise work, norms, softmax, interpolation and the optimiser are not
counted. Attention is counted as plain matrix products, since not every fused kernel has a count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from refinesam.files import write_json
from refinesam.images import write_png
from refinesam.loading import resolve_device
from refinesam.masks import encode_rle
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.training.finetune.config import FinetuneConfig
from refinesam.training.finetune.data import PromptedCrops, batches_from
from refinesam.training.finetune.state import Finetuning
from refinesam.training.pretrain.config import MaeConfig, SamiConfig
from refinesam.training.pretrain.data import Views, view_batches
from refinesam.training.pretrain.state import Pretraining
from refinesam.training.pretrain.teacher import Teacher
from refinesam.training.processes import Processes
from refinesam.training.sources.image_files import find_images
from refinesam.training.sources.layouts import load_sources

IMAGES = 8
# Vendor data sheets, dense bf16, TFLOP/s, by a part of the device's name.
DATA_SHEET = {"H200": 989.0, "H100": 989.0, "A100": 312.0}


class Stage(NamedTuple):
    """What is trained: method, variant, side of the input and, for SAMI, the teacher."""

    method: str
    variant: str
    size: int
    teacher: str = ""


STAGES = {
    "sami_ti_vit_b": Stage("sami", "efficientsam_ti", 224, "sam_vit_b"),
    "sami_s_vit_b": Stage("sami", "efficientsam_s", 224, "sam_vit_b"),
    "sami_ti_vit_h": Stage("sami", "efficientsam_ti", 224, "sam_vit_h"),
    "sami_s_vit_h": Stage("sami", "efficientsam_s", 224, "sam_vit_h"),
    "mae_ti": Stage("mae", "efficientsam_ti", 224),
    "finetune_hybrid_ti_256": Stage("finetune", "hybrid_ti", 256),
    "finetune_hybrid_ti_512": Stage("finetune", "hybrid_ti", 512),
    "finetune_efficientsam_ti_512": Stage("finetune", "efficientsam_ti", 512),
    "finetune_efficientsam_ti_1024": Stage("finetune", "efficientsam_ti", 1024),
}


class Prepared(NamedTuple):
    """A stage that can run: one step, and the loader's batches."""

    step: Callable[[], object]
    batches: Any


def write_images(root: Path) -> None:
    """Write a source "drawn" of random rectangles on noise in COCO's format."""
    rng = np.random.default_rng(0)
    (root / "drawn" / "images").mkdir(parents=True)
    records, annotations = [], []
    for number in range(1, IMAGES + 1):
        pixels = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        write_png(root / "drawn" / "images" / f"{number}.png", pixels)
        records.append({"id": number, "file_name": f"{number}.png", "height": 480, "width": 640})
        for x, y in ((40, 40), (340, 60), (120, 260)):
            mask = np.zeros((480, 640), bool)
            mask[y : y + 180, x : x + 200] = True
            shared = {"image_id": number, "category_id": 1, "iscrowd": 0, "area": 36000, "bbox": [x, y, 200, 180]}
            annotations.append({"id": len(annotations) + 1, "segmentation": dict(encode_rle(mask)), **shared})
    content = {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "rectangle"}]}
    (root / "drawn" / "instances_train.json").write_text(json.dumps(content), "utf-8")


def prepare(stage: Stage, root: Path, batch: int, precision: str, device: torch.device) -> Prepared:
    processes = Processes(0, 1, device)
    if stage.method == "finetune":
        return _prepare_finetuning(stage, root, batch, precision, processes)
    kind = SamiConfig if stage.method == "sami" else MaeConfig
    config = kind.model_validate(
        {
            "precision": precision,
            "student": {"variant": stage.variant, "input_size": stage.size},
            "data": {"workers": 0},
            "optim": {"batch_size": batch},
        }
    )
    views = Views(find_images(root, ()), config.data, stage.size, 0)
    if stage.method == "sami":
        teacher = Teacher(build_model(config_named(stage.teacher)), "before_neck", stage.size // 16).to(device)
        run = Pretraining(config, IMAGES, processes, teacher.dim, teacher)
    else:
        run = Pretraining(config, IMAGES, processes)
    with view_batches(views, (0, 1), batch, batch, 0, 1) as parts:
        kept = next(parts)
    return Prepared(
        lambda: run.train_step(itertools.repeat(kept)),
        lambda steps: view_batches(views, (0, steps), batch, batch, 0, 1),
    )


def _prepare_finetuning(stage: Stage, root: Path, batch: int, precision: str, processes: Processes) -> Prepared:
    config = FinetuneConfig.model_validate(
        {
            "precision": precision,
            "model": {"variant": stage.variant, "input_size": stage.size},
            "data": {"sources": ["drawn"], "workers": 0},
            # Always two rounds, so that all steps cost alike; only prompts that every variant takes.
            "prompts": {
                "max_clicks": 3,
                "correction_probability": 1.0,
                "negative_probability": 0.0,
                "logits_only_probability": 0.0,
                "self_logits_probability": 0.0,
            },
            "optim": {"steps": 1000, "batch_size": batch},
        }
    )
    run = Finetuning(config, processes)
    sources = load_sources(root, config.data.sources, "train")
    family = run.model.config.family
    samples = PromptedCrops(sources, stage.size, config.data, config.prompts, 0, family=family)
    with batches_from(samples, range(1), batch, 0) as batches:
        kept = next(batches)
    return Prepared(lambda: run.train_step(kept), lambda steps: batches_from(samples, range(steps), batch, 0))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def loading_seconds(prepared: Prepared, steps: int) -> float:
    with prepared.batches(steps) as batches:
        return statistics.median(_intervals(batches))


def _intervals(batches: Iterator[Any]) -> Iterator[float]:
    begun = time.perf_counter()
    for _ in batches:
        yield time.perf_counter() - begun
        begun = time.perf_counter()


def count_flops(step: Callable[[], object]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """FLOP/s of a square matrix product, the best of five after one to warm up."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(6)]
    return 2 * side**3 / min(times[1:])


def data_sheet_peak(name: str) -> float | None:
    return next((1e12 * peak for part, peak in DATA_SHEET.items() if part in name), None)


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU since the stage began; on a CPU the whole process's so far, which only grows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def measure(stage: Stage, root: Path, batch: int, steps: int, precision: str, device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    prepared = prepare(stage, root, batch, precision, device)
    prepared.step()
    times = [seconds(prepared.step, device) for _ in range(steps)]
    memory = peak_memory(device)
    flops = count_flops(prepared.step)
    step, loading = statistics.median(times), loading_seconds(prepared, max(2, steps))
    return {
        **stage._asdict(),
        "batch": batch,
        "step_seconds": times,
        "median_step_seconds": step,
        "images_per_second": batch / step,
        "flops_per_image": flops / batch,
        "flops_per_second": flops / step,
        "loading_seconds": loading,
        # One process that loads and computes in turns; with worker processes loading overlaps.
        "loading_share": loading / (loading + step),
        "peak_memory_bytes": memory,
    }


def run(names: list[str], batch: int, steps: int, precision: str, device: torch.device, side: int) -> dict[str, Any]:
    """Measure the stages one after the other; precision is "fp32" or "bf16"."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peak = matmul_peak(device, dtype, side)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    sheet = data_sheet_peak(device_name) if device.type == "cuda" and precision == "bf16" else None
    stages = {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder))
        for name in names:
            one = measure(STAGES[name], Path(folder), batch, steps, precision, device)
            one["mfu_of_measured_peak"] = one["flops_per_second"] / peak
            one["mfu_of_data_sheet"] = one["flops_per_second"] / sheet if sheet else None
            stages[name] = one
            print(f"{name:32}{one['images_per_second']:10.2f} images/s {one['flops_per_image'] / 1e9:9.1f} GFLOP/image")
    machine = {
        "device": device.type,
        "name": device_name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": precision,
        "matmul_flops_per_second": peak,
        "data_sheet_flops_per_second": sheet,
        "data_sheet_source": "vendor data sheet" if sheet else None,
    }
    return {"machine": machine, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), help="default: all; on a CPU those without ViT-H")
    parser.add_argument("--batch", type=int, help="images a step; default 2 on a CPU, else 32")
    parser.add_argument("--steps", type=int, help="timed steps; default 3 on a CPU, else 20")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default fp32 on a CPU, else bf16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="one step of one image, a small matrix: a trial")
    parser.add_argument("--output", default="benchmarks/results/training_throughput.json")
    given = parser.parse_args()
    device = resolve_device(given.device)
    cpu = device.type == "cpu"
    names = given.stages or [name for name in STAGES if not cpu or STAGES[name].teacher != "sam_vit_h"]
    batch = 1 if given.quick else given.batch or (2 if cpu else 32)
    steps = 1 if given.quick else given.steps or (3 if cpu else 20)
    side = 256 if given.quick else 2048 if cpu else 8192
    result = run(names, batch, steps, given.precision or ("fp32" if cpu else "bf16"), device, side)
    Path(given.output).parent.mkdir(parents=True, exist_ok=True)
    write_json(given.output, {"quick": given.quick, **result}, indent=1)


if __name__ == "__main__":
    main()
