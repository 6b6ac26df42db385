"""How fast images are encoded and clicks answered: the built-in weights against EfficientSAM-Ti at 1024 x 1024.

Both by torch, and on a CPU where ONNX Runtime is installed also by that, in 32 and in 8 bits.

    python benchmarks/speed.py --json benchmarks/results/speed.json

EfficientSAM-Ti runs with random weights of the released architecture: its speed does not depend on their values. Runs
are interleaved, so that both models see the same moods of the machine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

import refinesam
from refinesam.files import write_json
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.onnx_backend import installed
from refinesam.predictor import Backend, Predictor
from refinesam.session import Session
from refinesam.types import Prompt


def sessions(weights: str, device: str) -> dict[str, Session]:
    found = {}
    on_cpu = refinesam.load(weights, device=device, backend="torch").model.device.type == "cpu"
    backends: tuple[Backend, ...] = ("torch", "onnx", "int8") if on_cpu and installed() else ("torch",)
    rival = config_named("efficientsam_ti")
    for backend in backends:
        suffix = "" if backend == "torch" else f", {backend}"
        ours = refinesam.load(weights, device=device, cache_bytes=0, backend=backend)
        model = Predictor(build_model(rival), rival.name, ours.model.device, ours.model.dtype, backend=backend)
        found[f"builtin{suffix}"] = ours
        found[f"efficientsam_ti{suffix}"] = Session(model, cache_bytes=0)
    return found


def milliseconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun)


def measure(weights: str, device: str, repeats: int, image_hw: tuple[int, int]) -> dict[str, dict[str, list[float]]]:
    image = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    prompt = Prompt(points=[[image_hw[1] / 2, image_hw[0] / 2]])
    models = sessions(weights, device)
    times: dict[str, dict[str, list[float]]] = {name: {"encode": [], "click": [], "refine": []} for name in models}
    for repeat in range(repeats + 1):
        for name, session in models.items():
            encode = milliseconds(lambda: session.encode(image))  # noqa: B023  # called at once
            encoded = session.encode(image)
            click = milliseconds(lambda: encoded.predict(prompt))  # noqa: B023
            first = encoded.predict(prompt)
            refine = milliseconds(lambda: encoded.refine(first))  # noqa: B023
            if repeat:  # The first round warms up.
                for kind, value in (("encode", encode), ("click", click), ("refine", refine)):
                    times[name][kind].append(value)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--height", type=int, default=768)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    times = measure(arguments.weights, arguments.device, arguments.repeats, (arguments.height, arguments.width))
    medians = {name: {k: statistics.median(v) for k, v in kinds.items()} for name, kinds in times.items()}
    # After a click, a model without mask prompts is not asked again.
    ratios = {k: medians["efficientsam_ti"][k] / medians["builtin"][k] for k in ("encode", "click")}
    print(f"{'median ms':24}{'encode':>10}{'click':>10}{'refine':>10}")
    for name, kinds in medians.items():
        print(f"{name:24}" + "".join(f"{kinds[k]:10.1f}" for k in ("encode", "click", "refine")))
    print(f"{'times faster':24}" + "".join(f"{ratio:10.1f}" for ratio in ratios.values()))
    if arguments.json:
        machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        write_json(arguments.json, {"machine": machine, "median_ms": medians, "ratio": ratios, "ms": times}, indent=1)


if __name__ == "__main__":
    main()
