"""How many images a GPU encodes and how many clicks it answers each second, by model and batch size.

    python benchmarks/gpu_throughput.py --json benchmarks/results/gpu_throughput.json

Weights are random but for the built-in ones: speed does not depend on their values. Images are on the device already,
normalised and in the model's size. One click is one prompt on one image, decoded into three masks at low resolution.
Medians of --repeats after a warm-up, in the dtype that `refinesam.load` takes by default there.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from refinesam.files import write_json
from refinesam.loading import resolve_device, resolve_dtype
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.promptable import PromptableModel
from refinesam.predictor import Predictor
from refinesam.weights import load_model

VARIANTS = ("builtin", "efficientsam_ti", "efficientsam_s", "sam_vit_b", "sam_vit_h")
BATCHES = (1, 8, 32)


def model_named(name: str, tiny: bool) -> PromptableModel:
    if name == "builtin":
        model = load_model(name)
        model.config = replace(model.config, input_size=64) if tiny else model.config
        return model
    config = config_named(name)
    return build_model(replace(config, input_size=64, pos_grid=4) if tiny else config)


def median_seconds(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    times = []
    for repeat in range(repeats + 2):
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat > 1:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


@torch.inference_mode()
def measure(name: str, batch: int, repeats: int, device: torch.device, tiny: bool) -> dict[str, float]:
    predictor = Predictor(model_named(name, tiny), name, device, resolve_dtype("auto", device))
    size = predictor.config.input_size
    pixels = torch.randn(batch, 3, size, size, device=device, dtype=predictor.dtype)
    features = predictor.model.encode(pixels)
    points = torch.rand(batch, 1, 1, 2, device=device) * size
    labels = torch.ones(batch, 1, 1, dtype=torch.int64, device=device)

    def click() -> object:
        with torch.autocast(device.type, predictor.dtype, enabled=predictor.dtype != torch.float32):
            return predictor.model.decode(features, points, labels)

    encode = median_seconds(lambda: predictor.model.encode(pixels), repeats, device)
    decode = median_seconds(click, repeats, device)
    return {"input_size": size, "images_per_second": batch / encode, "clicks_per_second": batch / decode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tiny", action="store_true", help="small inputs, one batch size: whether it runs")
    parser.add_argument("--json")
    given = parser.parse_args()
    device = resolve_device(given.device)
    batches, variants = ([1], given.variants[:2]) if given.tiny else (given.batches, given.variants)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    result = {"device": name, "torch": torch.__version__, "dtype": str(resolve_dtype("auto", device)), "rows": []}
    for variant in variants:
        for batch in batches:
            row = {"model": variant, "batch": batch, **measure(variant, batch, given.repeats, device, given.tiny)}
            result["rows"].append(row)
            print({key: round(v, 1) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
            if given.json:
                write_json(given.json, result, indent=1)


if __name__ == "__main__":
    main()
