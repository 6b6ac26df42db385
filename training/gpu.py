"""All that is to be done on a machine with a GPU, in order and within a given time: tests, speeds, training.

    python training/gpu.py --data .gpu/data.tar.xz --output OUT --seconds 540        # make gpu

1. The CUDA tests, tests/gpu.
2. Throughput of encoding and clicking, benchmarks/gpu_throughput.py.
3. Training from the pack's weights, else the shipped ones, by training/gpu.toml for the rest of the time: PHASES at
   growing input sizes, as many steps as a timed trial says will fit.

Each part's results are in OUT when it ends: tests.log, throughput.json, training.json, and the weights in parts of at
most 15 MiB, to be put together by `cat OUT/weights.part* > weights.safetensors`. Without a GPU all of it runs on the
CPU, which shows that it works and nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from refinesam.files import write_json
from refinesam.loading import resolve_device
from refinesam.training.finetune.config import FinetuneConfig, read_config
from refinesam.training.finetune.resident import ResidentImages, ResidentSamples
from refinesam.training.finetune.state import Finetuning
from refinesam.training.processes import Processes
from refinesam.training.sources.layouts import load_sources
from refinesam.weights import save_weights

ROOT = Path(__file__).resolve().parent.parent
PART_BYTES = 15 * 2**20
# Of the time that is left for training, what steps are planned for: the rest saves and spares.
PLANNED_SHARE = 0.92
TRIAL_STEPS = 8
# Of the whole time at most, with a limit in seconds.
TESTS_SHARE, THROUGHPUT_SHARE = 0.25, 0.2


class Phase(NamedTuple):
    """A part of the training: side of the input, images a step, share of the time, learning rates."""

    input_size: int
    batch_size: int
    share: float
    first_rate: float
    last_rate: float


PHASES = (Phase(384, 64, 0.65, 1e-3, 4e-4), Phase(512, 48, 0.35, 4e-4, 0.0))
TINY_PHASES = (Phase(64, 2, 0.6, 1e-4, 5e-5), Phase(96, 2, 0.4, 5e-5, 0.0))


def run_logged(command: list[str], log: Path, seconds: float) -> int:
    """Run a command with its output in a file, for so many seconds at most; its exit status, 124 if it took longer."""
    with log.open("w") as file:
        try:
            return subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            return 124


def phase_config(config: FinetuneConfig, phase: Phase, steps: int, init: str, device: torch.device) -> FinetuneConfig:
    """Return a recipe's settings for a phase."""
    optim = config.optim.model_copy(
        update={
            "steps": steps,
            "batch_size": phase.batch_size,
            "learning_rate": phase.first_rate,
            "final_learning_rate": phase.last_rate,
            "warmup_steps": min(config.optim.warmup_steps, steps // 10),
        }
    )
    model = config.model.model_copy(update={"input_size": phase.input_size, "init": init})
    precision = config.precision if device.type == "cuda" else "fp32"
    return config.model_copy(update={"model": model, "optim": optim, "precision": precision})


def trial(config: FinetuneConfig, processes: Processes, images: ResidentImages) -> dict[str, float]:
    """Time some steps that are thrown away, and count the operations of one."""
    run = Finetuning(config, processes)
    samples = ResidentSamples(images, run.input_size, config.data, config.prompts, config.seed)
    run.train_step(samples.batch(0, config.optim.batch_size))
    with FlopCounterMode(display=False) as counted:
        run.train_step(samples.batch(1, config.optim.batch_size))
    begun = time.monotonic()
    for step in range(TRIAL_STEPS):
        run.train_step(samples.batch(step, config.optim.batch_size))
    seconds = (time.monotonic() - begun) / TRIAL_STEPS
    return {
        "step_seconds": seconds,
        "images_per_second": config.optim.batch_size / seconds,
        "tflop_per_second": counted.get_total_flops() / seconds / 1e12,
    }


def train(
    recipe: FinetuneConfig,
    phases: tuple[Phase, ...],
    images: ResidentImages,
    device: torch.device,
    deadline: float,
    output: Path,
) -> None:
    """Train phase after phase until the deadline, by `time.monotonic`; each one's weights replace those before."""
    processes = Processes(0, 1, device)
    weights, report = output / "weights.safetensors", []
    for number, phase in enumerate(phases):
        init = str(weights) if number else recipe.model.init
        timed = trial(phase_config(recipe, phase, 1000, init, device), processes, images)
        later = sum(p.share for p in phases[number:])
        left = (deadline - time.monotonic()) * phase.share / later * PLANNED_SHARE
        steps = max(1, int(left / timed["step_seconds"]))
        config = phase_config(recipe, phase, steps, init, device)
        run = Finetuning(config, processes)
        samples = ResidentSamples(images, run.input_size, config.data, config.prompts, config.seed + number)
        losses, begun = [], time.monotonic()
        for step in range(steps):
            losses.append(run.train_step(samples.batch(step, phase.batch_size)))
            if step % 50 == 0:
                values = {name: round(value, 4) for name, value in losses[-1].items()}
                print(f"{phase.input_size} px, step {step} of {steps}: {values}", flush=True)
            # A machine that slows down ends a phase early, not the weights.
            if time.monotonic() - begun > left / PLANNED_SHARE:
                break
        save_weights(run.averaged_model(), weights, torch.float32)
        report.append({**phase._asdict(), **timed, "steps": len(losses), "planned": steps, "last": losses[-1]})
        write_json(output / "training.json", {"device": _name(device), "phases": report}, indent=1)
        write_parts(run, output)


def write_parts(run: Finetuning, output: Path) -> None:
    """Write the averaged weights in fp16, in parts small enough to be fetched from where files are limited."""
    whole = output / "weights_fp16.safetensors"
    save_weights(run.averaged_model(), whole, torch.float16)
    content = whole.read_bytes()
    whole.unlink()
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        (output / f"weights.part{number}").write_bytes(content[start : start + PART_BYTES])


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a pack of training/pack.py, or a folder of sources")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--recipe", type=Path, default=ROOT / "training" / "gpu.toml")
    parser.add_argument("--tiny", action="store_true", help="small inputs, to try all of it on a CPU")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    device = resolve_device(given.device)
    # Warnings are not errors there: its libraries are others than those that the tests are kept clean with.
    tests = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-o", "filterwarnings="]
    status: dict[str, Any] = {"device": _name(device), "torch": torch.__version__}
    status["tests"] = run_logged(tests, given.output / "tests.log", given.seconds * TESTS_SHARE)
    throughput = [sys.executable, "benchmarks/gpu_throughput.py", "--device", str(device)]
    throughput += ["--json", str((given.output / "throughput.json").resolve()), *(["--tiny"] if given.tiny else [])]
    log = given.output / "throughput.log"
    status["throughput"] = run_logged(throughput, log, given.seconds * THROUGHPUT_SHARE)
    write_json(given.output / "status.json", status)
    print(status, flush=True)
    recipe = read_config(given.recipe)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.data
        if folder.is_file():
            with tarfile.open(folder) as archive:
                archive.extractall(scratch, filter="data")
            folder = Path(scratch)
        images = ResidentImages.read(load_sources(folder, recipe.data.sources, "train"), recipe.data.resident, device)
        if (start := folder / "start.safetensors").exists():
            kept = shutil.copy(start, given.output / "start.safetensors")
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"init": str(kept)})})
    print(f"{len(images.pixels)} images after {time.monotonic() - begun:.0f} s", flush=True)
    train(recipe, TINY_PHASES if given.tiny else PHASES, images, device, begun + given.seconds, given.output)
    for name in ("weights.safetensors", "start.safetensors"):
        (given.output / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
