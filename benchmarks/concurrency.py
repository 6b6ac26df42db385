"""Do answers under many threads equal the serial ones, and does the cache keep to its bytes?

    python benchmarks/concurrency.py --threads 8 --clicks 2000

Every thread asks for all clicks, mixed over the images, in an order of its own; the cache holds fewer images than there
are, so that they are evicted and encoded again all the time.
"""

from __future__ import annotations

import argparse
import sys
import threading

import numpy as np
from skimage import data

import refinesam
from refinesam import Prompt
from refinesam.files import write_json

NAMES = ("astronaut", "chelsea", "coffee", "coins", "cell", "immunohistochemistry")


def random_clicks(images: list[np.ndarray], count: int) -> list[tuple[int, Prompt]]:
    """Prompts of one to three clicks, each with the index of its image."""
    rng = np.random.default_rng(0)
    clicks = []
    for _ in range(count):
        index = int(rng.integers(len(images)))
        height, width = images[index].shape[:2]
        points = rng.uniform(0, [width, height], (int(rng.integers(1, 4)), 2))
        labels = [1, *rng.integers(0, 2, len(points) - 1).tolist()]
        clicks.append((index, Prompt(points=points, labels=labels)))
    return clicks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--clicks", type=int, default=2000)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    images = [refinesam.as_rgb(getattr(data, name)()) for name in NAMES]
    one = refinesam.load(arguments.weights).encode(images[0]).features.nbytes
    capacity = 4 * one
    session = refinesam.load(arguments.weights, cache_bytes=capacity)

    clicks = random_clicks(images, arguments.clicks)
    serial_handles = [session.encode(image) for image in images]
    serial = [np.packbits(serial_handles[index].predict(prompt).masks) for index, prompt in clicks]

    differing, largest = [0], [0]
    lock = threading.Lock()

    def run(seed: int) -> None:
        for number in np.random.default_rng(seed).permutation(len(clicks)):
            index, prompt = clicks[number]
            masks = np.packbits(session.encode(images[index]).predict(prompt).masks)
            with lock:
                differing[0] += not np.array_equal(masks, serial[number])
                largest[0] = max(largest[0], session.cache.nbytes)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(arguments.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = {
        "threads": arguments.threads,
        "predictions": arguments.threads * len(clicks),
        "masks_that_differ": differing[0],
        "cache_bytes_allowed": capacity,
        "cache_bytes_largest": largest[0],
        "encodes": session.cache.misses,
    }
    for key, value in result.items():
        print(f"{key:22}{value:>14,}")
    if arguments.json:
        write_json(arguments.json, result, indent=1)
    sys.exit(differing[0] > 0 or largest[0] > capacity)


if __name__ == "__main__":
    main()
