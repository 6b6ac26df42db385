"""How well the napari plugin's prompts and propagation find annotated nuclei.

    python benchmarks/napari_ground_truth.py --json benchmarks/results/napari_ground_truth.json

On the two annotated images of stardist's wheel (pip install --no-deps stardist is enough) and the plugin's computed
stack. In the plane: a tight box, 1 and 3 clicks, on the whole image and on crops around the object. In the stack: a
tight box in an object's middle slice, propagated through the others. --compare also tries other settings.

img2d comes from the 2018 Data Science Bowl, on which the built-in weights were trained: they may have seen it. img3d
they have not seen. How propagation finds sections and ends was tuned on img3d's even objects (in the order of their
labels, from 0): iou_3d_odd and the computed stack are new to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import tifffile
import torch

import refinesam
from refinesam import Prompt
from refinesam.evaluation.protocols import prompt_for
from refinesam.files import write_json
from refinesam.masks import box_from_mask, mask_iou
from refinesam_napari.geometry import Crop
from refinesam_napari.propagation import PropagationSettings, predict_in_crops, propagate
from refinesam_napari.samples import synthetic_nuclei
from refinesam_napari.surroundings import Predict, Read, context_crop

LEAST_SLICES = 5
DEFAULTS = PropagationSettings()
# Side of the crop in longer sides of the object, and its least side in pixels; None is the whole plane.
CROPS = {"whole": None, "4x, 128": (4.0, 128), "4x, 64": (4.0, 64), "8x, 128": (8.0, 128), "2x, 32": (2.0, 32)}
COMPARED = {
    "defaults": DEFAULTS,
    "no contrast rule": replace(DEFAULTS, min_contrast=0.0),
    "as through time": replace(DEFAULTS, depth=False),
    "contrast 0.5": replace(DEFAULTS, min_contrast=0.5),
    "contrast 0.6": replace(DEFAULTS, min_contrast=0.6),
    "contrast 0.8": replace(DEFAULTS, min_contrast=0.8),
    "2 points": replace(DEFAULTS, points=2),
    "box for mask": replace(DEFAULTS, use_mask=False),
    "agreement 0.6": replace(DEFAULTS, min_agreement=0.6),
    "agreement 0.7": replace(DEFAULTS, min_agreement=0.7),
    "score 0.6": replace(DEFAULTS, min_score=0.6),
    "area ratio 2": replace(DEFAULTS, max_area_ratio=2.0),
}


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices as the model and as the contrast rule see them, and the ground truth, all (Z, H, W)."""

    pixels: np.ndarray
    rgb: list[np.ndarray]
    truth: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray, truth: np.ndarray) -> Stack:
        # One intensity range for the stack: stretched alone, a slice without objects would be all noise.
        flat = refinesam.as_rgb(pixels.reshape(-1, pixels.shape[2])).reshape(*pixels.shape, 3)
        return cls(pixels, list(flat), truth)

    def objects(self, limit: int) -> Iterator[tuple[np.ndarray, int]]:
        """Masks (Z, H, W) of objects and their middle slices."""
        found = 0
        for number in np.unique(self.truth)[1:]:
            mask = self.truth == number
            slices = np.flatnonzero(mask.any((1, 2)))
            if len(slices) >= LEAST_SLICES and found < limit:
                found += 1
                yield mask, int(slices[len(slices) // 2])

    def predict(self, session: refinesam.Session, crop: tuple[float, int] | None) -> Predict:
        if crop is None:
            return lambda index, prompt: session.encode(self.rgb[index]).predict(prompt)
        encode = lambda index, area: session.encode(self.rgb[index][area.y0 : area.y1, area.x0 : area.x1])  # noqa: E731
        return predict_in_crops(encode, self.truth.shape[1:], *crop)

    @property
    def read(self) -> Read:
        return lambda index, area: self.pixels[index, area.y0 : area.y1, area.x0 : area.x1]


def stardist_image(name: str) -> np.ndarray:
    spec = importlib.util.find_spec("stardist")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("stardist's sample images are needed: pip install --no-deps stardist")
    return tifffile.imread(Path(spec.submodule_search_locations[0]) / "data" / "images" / f"{name}.tif")


def in_plane(session: refinesam.Session, image: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean IoU by protocol and crop. A crop is taken around the object's box, which clicks alone would not tell."""
    rgb = refinesam.as_rgb(image)
    result: dict[str, dict[str, float]] = {}
    for name, crop in CROPS.items():
        ious: dict[str, list[float]] = {"box": [], "points-1": [], "points-3": []}
        for number in np.unique(truth)[1:]:
            wanted = truth == number
            area = Crop(0, 0, *rgb.shape[1::-1]) if crop is None else context_crop(wanted, wanted.shape, *crop)
            rows, columns = slice(area.y0, area.y1), slice(area.x0, area.x1)
            encoded = session.encode(rgb[rows, columns])
            for protocol in ious:
                prompt = prompt_for(protocol, wanted[rows, columns], int(number))
                ious[protocol].append(mask_iou(encoded.predict(prompt).mask, wanted[rows, columns]))
        result[name] = {protocol: fmean(values) for protocol, values in ious.items()}
        print(f"  {name:18}" + "".join(f"{result[name][key]:10.3f}" for key in ious), flush=True)
    return result


def through_stack(
    session: refinesam.Session, stack: Stack, predict: Predict, settings: PropagationSettings, limit: int
) -> dict[str, float]:
    """Mean IoU of objects in 3D from a box in their middle slices, and slices too many and too few per object."""
    rows = []
    for wanted, middle in stack.objects(limit):
        seed = predict(middle, Prompt(box=box_from_mask(wanted[middle]))).mask
        found = np.zeros_like(wanted)
        found[middle] = seed
        if seed.any():
            for one in propagate(
                {middle: seed}, predict, range(len(wanted)), settings, session.capabilities, read=stack.read
            ):
                if one.mask is not None:
                    found[one.index] = one.mask
        has, should = (np.flatnonzero(mask.any((1, 2))) for mask in (found, wanted))
        ends = (should[0] - has[0], has[-1] - should[-1]) if len(has) else (0, 0)
        copied = np.where(wanted.any((1, 2))[:, None, None], wanted[middle], False)
        rows.append(
            {
                "iou_3d": (found & wanted).sum() / (found | wanted).sum(),
                "seed_iou": mask_iou(seed, wanted[middle]),
                "slices_too_many": sum(max(0, end) for end in ends),
                "slices_too_few": sum(max(0, -end) for end in ends),
                "slices": len(should),
                "cylinder_iou": (copied & wanted).sum() / (copied | wanted).sum(),
            }
        )
    means = {key: float(fmean(row[key] for row in rows)) for key in rows[0]}
    halves = {name: float(fmean(row["iou_3d"] for row in rows[at::2])) for at, name in enumerate(("even", "odd"))}
    return {"objects": len(rows), **means, **{f"iou_3d_{name}": value for name, value in halves.items()}}


def stacks(
    session: refinesam.Session, name: str, stack: Stack, crop: tuple[float, int] | None, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    predict = stack.predict(session, crop)
    result = {}
    for label, settings in COMPARED.items() if arguments.compare else [("defaults", DEFAULTS)]:
        row = result[label] = through_stack(session, stack, predict, settings, arguments.objects)
        figures = "".join(f"{row[key]:10.3f}" for key in ("iou_3d", "seed_iou", "slices_too_many", "slices_too_few"))
        print(f"  {name + ': ' + label:40}{figures}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="builtin")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more are slower on a busy machine")
    parser.add_argument("--objects", type=int, default=40, help="most per stack")
    parser.add_argument("--compare", action="store_true", help="try other settings of propagation too")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    session = refinesam.load(arguments.weights, device=arguments.device, cache_bytes=2**31)
    print("img2d, mean IoU (may have been seen in training)")
    print(f"  {'model sees':18}{'box':>10}{'1 click':>10}{'3 clicks':>10}")
    plane = in_plane(session, stardist_image("img2d"), stardist_image("mask2d"))
    print(f"through the stack\n  {'':40}{'3D IoU':>10}{'seed IoU':>10}{'too many':>10}{'too few':>10}")
    real = Stack.of(stardist_image("img3d"), stardist_image("mask3d"))
    computed = Stack.of(*synthetic_nuclei())
    results = {
        # The whole slice of 61 x 57 pixels is less than the least crop.
        "img3d": stacks(session, "img3d", real, None, arguments),
        "synthetic, whole slices": stacks(session, "synthetic, whole slices", computed, None, arguments),
        "synthetic, crops 4x": stacks(session, "synthetic, crops 4x", computed, (4.0, 128), arguments),
        "synthetic, crops 8x": stacks(session, "synthetic, crops 8x", computed, (8.0, 128), arguments),
    }
    print("  cylinder_iou in the JSON: the true seed copied to exactly the true slices, which no method is told")
    if arguments.json:
        machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        content = {"weights": arguments.weights, "machine": machine, "img2d_mean_iou": plane, "stacks": results}
        write_json(arguments.json, content, indent=1)


if __name__ == "__main__":
    main()
