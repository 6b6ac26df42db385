"""Whether a change of the code leaves every answer as it was, to the bit.

    python benchmarks/same_answers.py answers.json                    # before: write digests
    python benchmarks/same_answers.py after.json --before answers.json  # after: write them again, and compare

On six images of scikit-image: a box, three clicks and one click, each refined by every preset and some other settings;
everything mode; and a finetuning of two steps on masks of the same images. Digests hold on one machine and one set of
libraries alone, so they are no part of the repository. What refinement says in words is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from skimage import data

import refinesam
from refinesam import AMRConfig, EncodedImage, Prediction, Prompt

IMAGES = ("astronaut", "chelsea", "coffee", "coins", "cell", "immunohistochemistry")
CONFIGS = {
    "full": AMRConfig.full(),
    "fast": AMRConfig.fast(),
    "paper": AMRConfig.paper(),
    "paper-prose": AMRConfig(rule="paper_prose"),
    "a larger gain": AMRConfig(crop_factor=3, min_gain=0),
    "boundary, three passes": AMRConfig(rule="boundary", iterations=3),
    "centre, alone": AMRConfig(rule="centre", append=False, min_gain=0.02),
}


def digest(*arrays: Any) -> str:
    made = hashlib.blake2b(digest_size=8)
    for array in arrays:
        made.update(repr((np.shape(array), np.asarray(array).dtype.str)).encode())
        made.update(np.ascontiguousarray(array).data)
    return made.hexdigest()


def digest_of(one: Prediction) -> str:
    arrays = [one.masks, one.iou_predictions, one.low_res_logits, one.prompt.points, one.prompt.labels]
    if (report := one.refinement) is not None:
        told = {name: value for name, value in report.to_dict().items() if name != "reason"}
        arrays += [np.frombuffer(repr(told).encode(), np.uint8), np.asarray(report.rejected is None), report.points]
        arrays += [] if report.rejected is None else [report.rejected]
    return digest(*arrays)


def prompts_of(encoded: EncodedImage) -> dict[str, Prompt]:
    height, width = encoded.image_hw
    corners = np.array([width, height, width, height])
    clicks = np.array([[0.45, 0.4], [0.5, 0.55], [0.4, 0.5]]) * (width, height)
    return {
        "box": Prompt(box=corners * (0.25, 0.2, 0.7, 0.8)),
        "small box": Prompt(box=corners * (0.4, 0.4, 0.55, 0.55)),
        "three clicks": Prompt(clicks),
        "one click": Prompt(clicks[:1]),
        "one click and one off": Prompt(clicks[:2], [1, 0]),
    }


def answers(pixels: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    session = refinesam.load("builtin", threads=1)
    for name, image in pixels.items():
        encoded = session.encode(image)
        for kind, prompt in prompts_of(encoded).items():
            first = encoded.predict(prompt)
            yield f"{name}, {kind}", digest_of(first)
            for preset, config in CONFIGS.items():
                yield f"{name}, {kind}, {preset}", digest_of(encoded.refine(first, config))
        everything = session.segment_everything(encoded)
        yield f"{name}, everything, {len(everything)} masks", digest(*map(digest_of, everything))
        yield f"{name}, everything, refined", digest(*(digest_of(encoded.refine(one)) for one in everything[:5]))


RECIPE = """
precision = "fp32"
[model]
variant = "hybrid_ti"
input_size = 64
[data]
sources = ["images"]
workers = 0
val_images = 0
[prompts]
self_probability = 0.5
[optim]
steps = 2
batch_size = 2
"""


def trained(pixels: dict[str, np.ndarray]) -> str:
    """Digest of the weights that two steps make of the masks of the prompts."""
    session = refinesam.load("builtin", threads=1)
    images, annotations = [], []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "images" / "images").mkdir(parents=True)
        for number, (name, image) in enumerate(pixels.items(), start=1):
            Image.fromarray(image).save(folder / "images" / "images" / f"{name}.png")
            images.append({"id": number, "file_name": f"{name}.png", "height": len(image), "width": len(image[0])})
            encoded = session.encode(image)
            for prompt in prompts_of(encoded).values():
                mask = encoded.predict(prompt).mask
                annotations.append(refinesam.coco_annotation(mask, number, 1, len(annotations) + 1))
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
        for split in ("train", "val"):
            (folder / "images" / f"instances_{split}.json").write_text(json.dumps(document))
        (folder / "recipe.toml").write_text(RECIPE)
        run = [sys.executable, "-m", "refinesam.cli", "train", "finetune", str(folder / "recipe.toml")]
        run += ["--data", str(folder), "--output", str(folder / "run"), "--device", "cpu"]
        subprocess.run(run, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
        return hashlib.blake2b((folder / "run" / "weights.safetensors").read_bytes(), digest_size=8).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, help="where the digests go")
    parser.add_argument("--before", type=Path, help="digests to compare with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    pixels = {name: refinesam.as_rgb(getattr(data, name)()) for name in IMAGES}
    found = dict(answers(pixels)) | {"two steps of finetuning": trained(pixels)}
    arguments.json.write_text(json.dumps(found, indent=1))
    if arguments.before is None:
        return
    before = json.loads(arguments.before.read_text())
    other = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    print(f"{len(before.keys() & found.keys()) - len(other)} of {len(before)} answers are the same.", *other, sep="\n")
    raise SystemExit(bool(other))


if __name__ == "__main__":
    main()
