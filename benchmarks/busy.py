"""How much longer do an encode and a click take beside a load of busy processes?

    python benchmarks/busy.py --load 4 --json benchmarks/results/busy.json

Each setting runs in processes of its own, quiet and beside the load in turns; a user's pause lies between two answers.
"quiet" means that the benchmark itself starts no load: the load average before each run is in the results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import refinesam
from refinesam.hosts import write_json
from refinesam.threads import available_cores

SPIN = "while True: sum(range(100_000))"
# What main() and settle_threads set is left to this file, to compare with OpenMP's own default.
SETTINGS = {
    "default of OpenMP": {},
    "as a command": {"OMP_WAIT_POLICY": "PASSIVE"},
    "as a command, --threads 1": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
}
MEASURE = """
import json, sys, time
from statistics import median
import refinesam
from refinesam.hosts import write_json
from refinesam import Prompt
from skimage import data
image = refinesam.as_rgb(data.astronaut())
session = refinesam.load(sys.argv[1], cache_bytes=0)
encodes, clicks = [], []
for _ in range(int(sys.argv[2])):
    time.sleep(0.2)
    start = time.perf_counter()
    encoded = session.encode(image)
    between = time.perf_counter()
    encoded.predict(Prompt(points=[[225, 130]]))
    encodes.append(between - start)
    clicks.append(time.perf_counter() - between)
print(json.dumps([median(encodes[1:]), median(clicks[1:])]))
"""


def measured(weights: str, repeats: int, environment: dict[str, str], load: int) -> tuple[float, float]:
    """Median seconds of an encode and of a click, beside so many busy processes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    busy = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(load)]
    try:
        command = [sys.executable, "-c", MEASURE, weights, str(repeats)]
        done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    encode, click = json.loads(done.stdout)
    return encode, click


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--load", type=int, default=4, help="busy processes")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    times: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    loads = []
    for _ in range(arguments.rounds):
        for name, environment in SETTINGS.items():
            for load in (0, arguments.load):
                loads.append(round(os.getloadavg()[0], 1))
                times[name, load].append(measured(arguments.weights, arguments.repeats, environment, load))
                time.sleep(2)
    rows = []
    for name in SETTINGS:
        quiet, busy = ([median(part) for part in zip(*times[name, load], strict=True)] for load in (0, arguments.load))
        row = {"setting": name}
        for what, alone, beside in zip(("encode", "click"), quiet, busy, strict=True):
            row |= {f"{what}_quiet_ms": round(1000 * alone, 1), f"{what}_busy_ms": round(1000 * beside, 1)}
            row[f"{what}_ratio"] = round(beside / alone, 2)
        rows.append(row)
        print(row)
    if arguments.json:
        content = {
            "load": arguments.load,
            "cores": available_cores(),
            "repeats": arguments.repeats,
            "rounds": arguments.rounds,
            "weights": Path(arguments.weights).name,
            "version": refinesam.__version__,
            "note": arguments.note,
            "load_average_before_each_run": loads,
            "settings": rows,
        }
        write_json(arguments.json, content, indent=1)


if __name__ == "__main__":
    main()
