"""Collect what `amr_study.py` reports on: every pass at a sample of objects, on disk; see there."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import cv2
import numpy as np
import torch

import refinesam
from refinesam import amr
from refinesam.amr import AMRConfig, Window
from refinesam.encoded_image import EncodedImage
from refinesam.evaluation.dataset import CocoImage, read_coco_folder
from refinesam.evaluation.protocols import prompt_for
from refinesam.files import replacing
from refinesam.masks import decode_segmentation, mask_iou
from refinesam.session import Session
from refinesam.types import Prediction, Prompt

PROTOCOLS = ("box", "noisy-box", "points-3", "random-2", "points-1")
STRATEGIES: tuple[amr.Strategy, ...] = ("centre", "boundary")
# What the paper's rules choose from, by strategy and whether its points stand alone; and its equation, again and again.
POINT_CONFIGS: dict[str, AMRConfig] = {
    **{strategy: AMRConfig(rule=strategy) for strategy in STRATEGIES},
    **{f"{strategy}, alone": AMRConfig(rule=strategy, append=False) for strategy in STRATEGIES},
    **{f"equation, {n} passes": AMRConfig(rule="paper_equation", iterations=n) for n in (2, 3)},
}
# Without a gate, which `amr_rules.py` applies: the presets, and closer looks at other scales and with other points.
LOOKS: dict[str, AMRConfig] = {
    "closer look": AMRConfig(least_agreement=0.0),
    "second look": AMRConfig(crop_factor=None, least_agreement=0.0),
    "crop of 3 objects": AMRConfig(crop_factor=3, least_agreement=0.0),
    "crop of 4 objects": AMRConfig(crop_factor=4, least_agreement=0.0),
    "crop of 8 objects": AMRConfig(crop_factor=8, least_agreement=0.0),
    "one point": AMRConfig(point_count=1, least_agreement=0.0),
}
# The closer look at a model that takes no mask prompts.
MASKS_WITHHELD = "masks withheld"


@dataclass
class Recorder:
    """Decodes on an image and its windows; of one object and prompt, each window is encoded once."""

    session: Session
    pixels: np.ndarray
    encoded: EncodedImage
    windows: dict[Window, EncodedImage] = field(default_factory=dict)

    def zoom(self, window: Window) -> amr.Decode:
        x0, y0, x1, y1 = window
        if window not in self.windows:
            self.windows[window] = self.session.encode(np.ascontiguousarray(self.pixels[y0:y1, x0:x1]))
        return self.windows[window].predict

    def refine(self, first: Prediction, config: AMRConfig, mask_prompt: bool) -> Prediction:
        return amr.refine(first, self.encoded.predict, config, mask_prompt=mask_prompt, zoom=self.zoom)


def timed(call: Callable[[], Prediction]) -> tuple[Prediction, float]:
    start = process_time()
    result = call()
    return result, 1000 * (process_time() - start)


def collect_object(recorder: Recorder, truth: np.ndarray, prompt: Prompt) -> dict[str, Any]:
    """Prompt, refine by every rule that places points, and take every look; masks are kept in bits."""
    recorder.windows.clear()
    mask_prompt = recorder.session.capabilities.mask_prompt
    first, first_ms = timed(lambda: recorder.encoded.predict(prompt))
    quality = amr.mask_quality(first.mask)
    row: dict[str, Any] = {
        "first_ms": first_ms,
        "hw": truth.shape,
        "truth": np.packbits(truth),
        "prompt": (prompt.points, prompt.labels, prompt.box),
        "kappa": quality.kappa,
        "compactness": quality.compactness,
        "first": np.packbits(first.mask),
        "score": first.score,
        "ious": [mask_iou(mask, truth) for mask in first.masks],
        "best": first.best,
        "points": {},
        "looks": {},
        "logit_ensemble": logit_ensemble(recorder, first, truth),
    }
    for name, config in POINT_CONFIGS.items():
        refined, ms = timed(lambda config=config: recorder.encoded.refine(first, config))
        report = refined.refinement
        row["points"][name] = {
            "iou": mask_iou(refined.mask, truth),
            "kept": report.kept,
            "ms": ms,
            "iterations": report.iterations,
        }
    # The first, `closer look`, pays for the encoding.
    for name, config in LOOKS.items():
        row["looks"][name] = taken(recorder, first, config, mask_prompt)
    row["looks"][MASKS_WITHHELD] = taken(recorder, first, LOOKS["closer look"], False)
    return row


def taken(recorder: Recorder, first: Prediction, config: AMRConfig, mask_prompt: bool) -> dict[str, Any] | None:
    """What a look found, None where there is none."""
    refined, ms = timed(lambda: recorder.refine(first, config, mask_prompt))
    report = refined.refinement
    if not report.iterations:
        return None
    mask = refined.mask if report.rejected is None else report.rejected
    return {"mask": np.packbits(mask), "score": report.score_after, "ms": ms}


def logit_ensemble(recorder: Recorder, first: Prediction, truth: np.ndarray) -> float:
    """IoU of the mean of the logits that the prompt gets as it is, with centre points and with boundary points."""
    logits = [first.logits]
    for place in (amr.centre_points, amr.boundary_points):
        points = place(first.mask, 2) if first.mask.any() else np.zeros((0, 2), np.float32)
        if len(points):
            logits.append(recorder.encoded.predict(first.prompt.with_points(points)).logits)
    mean = np.mean(logits, axis=0, dtype=np.float32)[None]
    return mask_iou(recorder.encoded.model.upsample(mean, recorder.encoded.image_hw)[0], truth)


def sampled(folder: Path, split: str, images: int) -> list[CocoImage]:
    found = read_coco_folder(folder / f"instances_{split}.json", folder / "images").without_crowds().images
    return [found[index] for index in np.random.default_rng(17).permutation(len(found))[:images]]


def work_of(arguments: argparse.Namespace) -> list[tuple[int, str, CocoImage]]:
    sources = arguments.sources or sorted(path.parent.name for path in arguments.data.glob("*/instances_train.json"))
    work = [
        (rank, source, image)
        for source in sources
        for rank, image in enumerate(sampled(arguments.data / source, arguments.split, arguments.images))
    ]
    # One image of every source before the second of any, so that what is there early is balanced.
    return sorted(work, key=lambda item: item[:2])[arguments.part :: arguments.parts]


def rows_of(recorder: Recorder, source: str, image: CocoImage, objects: int) -> Iterator[dict[str, Any]]:
    for index in np.random.default_rng((3, image.image_id)).permutation(len(image.objects))[:objects]:
        one = image.objects[index]
        truth = decode_segmentation(one.segmentation, image.height, image.width)
        for protocol in PROTOCOLS if truth.any() else ():
            prompt = prompt_for(protocol, truth, one.annotation_id)
            names = {"source": source, "image": image.image_id, "object": one.annotation_id, "protocol": protocol}
            yield names | collect_object(recorder, truth, prompt)


def collect(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    session = refinesam.load(arguments.weights)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    for rank, source, image in work_of(arguments):
        path = arguments.cache / f"{arguments.split}-{source}-{image.image_id}.pickle"
        if path.exists():
            continue
        pixels = refinesam.read_image(image.path)
        recorder = Recorder(session, pixels, session.encode(pixels))
        rows = list(rows_of(recorder, source, image, arguments.objects))
        with replacing(path) as temporary:
            temporary.write_bytes(pickle.dumps(rows))
        print(rank, source, len(rows), flush=True)
