"""Which results were made with other weights than those that ship; makes them anew where asked.

    python benchmarks/renew.py                                   # make results
    python benchmarks/renew.py --data DATA --run all             # make results DATA=folder RUN=all
    python benchmarks/renew.py --data DATA --run speed negative_clicks

The digest of the weights that each result was made with is in benchmarks/results/made_with.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from refinesam.files import write_json

ROOT = Path(__file__).resolve().parent.parent
MADE_WITH = ROOT / "benchmarks" / "results" / "made_with.json"
SCREEN = 'xvfb-run -a -s "-screen 0 1600x1000x24" '


class Result(NamedTuple):
    """A file, the first of perhaps several, and the commands that make it; {data} is the folder of sources."""

    path: str
    commands: tuple[str, ...]


def _benchmark(name: str, arguments: str = "", screen: str = "") -> Result:
    path = f"benchmarks/results/{name}.json"
    script = name.removesuffix("_training_free")
    return Result(path, (f"{screen}python benchmarks/{script}.py {arguments} --json {path}",))


RESULTS = {
    "accuracy": Result(
        "training/results/builtin.json",
        ("python benchmarks/accuracy.py --data {data} --json training/results/builtin.json",),
    ),
    "speed": _benchmark("speed"),
    "negative_clicks": _benchmark("negative_clicks", "--data {data} --images 4 --objects 4"),
    "negative_clicks_training_free": _benchmark(
        "negative_clicks_training_free", "--data {data} --images 4 --objects 4 --training-free"
    ),
    "candidates": _benchmark("candidates", "--data {data} --images 4 --objects 3"),
    "amr_study": Result(
        "benchmarks/results/amr_study.json",
        (
            "python benchmarks/amr_study.py collect --data {data} --cache {scratch}/amr_study --images 6 --objects 3",
            "python benchmarks/amr_study.py report --cache {scratch}/amr_study --data {data}"
            " --json benchmarks/results/amr_study.json",
        ),
    ),
    "fiftyone_report": _benchmark("fiftyone_report", "--data {data} --images 10"),
    "label_errors": _benchmark("label_errors", "--data {data}"),
    "everything": _benchmark("everything", "measure --data {data} --images 2 --recall"),
    "similar": _benchmark(
        "similar", "--data {data} --images 2 --sources dsb2018 coelho_nuclei mushrooms embryos emps shrimp pills"
    ),
    "napari_ground_truth": _benchmark("napari_ground_truth"),
    "napari_latency": _benchmark("napari_latency", screen=SCREEN),
    "demo": Result(
        "docs/demo.png",
        ("refinesam demo --output {scratch}/demo", "cp {scratch}/demo/coins.png docs/demo.png"),
    ),
    "napari_pictures": Result("docs/napari/box.png", (f"{SCREEN}python docs/napari_screenshots.py",)),
    "fiftyone_pictures": Result("docs/fiftyone/panel.png", ("python docs/fiftyone_screenshots.py",)),
}


def shipped_digest() -> str:
    described = json.loads((ROOT / "src" / "refinesam" / "assets" / "builtin.json").read_text("utf-8"))
    return str(described["sha256"])


def stale(made_with: dict[str, str]) -> list[str]:
    """Names of the results that the shipped weights did not make."""
    return [name for name in RESULTS if made_with.get(name) != shipped_digest()]


def renew(name: str, data: Path | None, scratch: Path) -> bool:
    """Run a result's commands with this Python's; whether all of them succeeded."""
    scripts = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": "tests/fiftyone:tests"}
    for command in RESULTS[name].commands:
        line = command.format(data=shlex.quote(str(data)), scratch=shlex.quote(str(scratch)))
        print(f"{name}: {line}", flush=True)
        if subprocess.run(line, shell=True, cwd=ROOT, env=environment).returncode:
            print(f"{name} failed; what was there before stays.", flush=True)
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with one folder a source")
    parser.add_argument("--run", nargs="+", default=[], choices=["all", *RESULTS], metavar="NAME")
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "results")
    given = parser.parse_args()
    made_with = json.loads(MADE_WITH.read_text("utf-8")) if MADE_WITH.exists() else {}
    chosen = stale(made_with) if "all" in given.run else given.run
    if given.data is None and any("{data}" in c for name in chosen for c in RESULTS[name].commands):
        parser.error("these need --data")
    # Of these weights alone: a study goes on from what it collected.
    scratch = given.scratch / shipped_digest()[:12]
    scratch.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in chosen:
        if renew(name, given.data and given.data.resolve(), scratch):
            made_with[name] = shipped_digest()
            write_json(MADE_WITH, made_with, indent=1)
        else:
            failed = 1
    for name, result in RESULTS.items():
        print(f"{'stale  ' if name in stale(made_with) else 'current'}  {name:30} {result.path}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
