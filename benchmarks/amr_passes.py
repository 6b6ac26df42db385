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
from refinesam.masks import decode_segmentation, mask_iou, stability_score
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
# The presets, and what the variants of `amr_rules.py` are decided from: a smaller crop, the second pass always.
CONSENSUS_CONFIGS: dict[str, AMRConfig] = {
    "full": AMRConfig.full(),
    "fast": AMRConfig.fast(),
    "closer": AMRConfig(zooms=(*AMRConfig.full().zooms, 3.0)),
    "whole": AMRConfig(zooms=()),
}


@dataclass
class Recorder:
    """Decodes on an image and its windows, and keeps what came out."""

    session: Session
    pixels: np.ndarray
    encoded: EncodedImage
    passes: list[tuple[Prediction, Window | None]] = field(default_factory=list)
    # Of one object and prompt. The first rule that takes a crop, `full`, pays for the encoding.
    windows: dict[Window, EncodedImage] = field(default_factory=dict)

    def decode(self, prompt: Prompt) -> Prediction:
        prediction = self.encoded.predict(prompt)
        self.passes.append((prediction, None))
        return prediction

    def zoom(self, window: Window) -> amr.Decode:
        x0, y0, x1, y1 = window
        if window not in self.windows:
            self.windows[window] = self.session.encode(np.ascontiguousarray(self.pixels[y0:y1, x0:x1]))
        encoded = self.windows[window]

        def decode(prompt: Prompt) -> Prediction:
            prediction = encoded.predict(prompt)
            self.passes.append((prediction, window))
            return prediction

        return decode


def in_image(mask: np.ndarray, window: Window | None, image_hw: tuple[int, int]) -> np.ndarray:
    if window is None:
        return mask
    x0, y0, x1, y1 = window
    whole = np.zeros(image_hw, bool)
    whole[y0:y1, x0:x1] = mask
    return whole


def timed(call: Callable[[], Prediction]) -> tuple[Prediction, float]:
    start = process_time()
    result = call()
    return result, 1000 * (process_time() - start)


def collect_object(recorder: Recorder, truth: np.ndarray, prompt: Prompt) -> dict[str, Any]:
    """Prompt, refine by every rule, and keep all passes: the first, those in crops, `fast`'s on the whole image."""
    recorder.windows.clear()
    mask_prompt = recorder.session.capabilities.mask_prompt
    first, first_ms = timed(lambda: recorder.encoded.predict(prompt))
    quality = amr.mask_quality(first.mask)
    row: dict[str, Any] = {
        "first_ms": first_ms,
        "hw": truth.shape,
        "truth": np.packbits(truth),
        "clicks": prompt.points,
        "labels": prompt.labels,
        "box": prompt.box,
        "kappa": quality.kappa,
        "compactness": quality.compactness,
        "points": {},
        "logit_ensemble": logit_ensemble(recorder, first, truth),
    }
    passes: dict[str, list[dict[str, Any]]] = {}
    for name, config in POINT_CONFIGS.items():
        refined, ms = timed(lambda config=config: recorder.encoded.refine(first, config))
        report = refined.refinement
        row["points"][name] = {
            "iou": mask_iou(refined.mask, truth),
            "kept": report.kept,
            "ms": ms,
            "iterations": report.iterations,
        }
    for name, config in CONSENSUS_CONFIGS.items():
        recorder.passes = []
        refined, ms = timed(
            lambda config=config: amr.refine(
                first, recorder.decode, config, mask_prompt=mask_prompt, zoom=recorder.zoom
            )
        )
        row[name] = {"iou": mask_iou(refined.mask, truth), "ms": ms, **refined.refinement.to_dict()}
        passes[name] = [stored_pass(*one, truth) for one in recorder.passes]
    row["first"] = stored_pass(first, None, truth)
    row["windows"] = [one for one in passes["closer"] if one["window"] is not None]
    row["second"] = passes["whole"]
    return row


def logit_ensemble(recorder: Recorder, first: Prediction, truth: np.ndarray) -> float:
    """IoU of the mean of the logits that the prompt gets as it is, with centre points and with boundary points."""
    logits = [first.logits]
    for place in (amr.centre_points, amr.boundary_points):
        points = place(first.mask, 2) if first.mask.any() else np.zeros((0, 2), np.float32)
        if len(points):
            logits.append(recorder.encoded.predict(first.prompt.with_points(points)).logits)
    mean = np.mean(logits, axis=0, dtype=np.float32)[None]
    return mask_iou(recorder.encoded.model.upsample(mean, recorder.encoded.image_hw)[0], truth)


def stored_pass(one: Prediction, window: Window | None, truth: np.ndarray) -> dict[str, Any]:
    return {
        "scores": one.iou_predictions,
        "best": one.best,
        "window": window,
        "stabilities": stability_score(one.low_res_logits),
        "ious": [mask_iou(in_image(mask, window, truth.shape), truth) for mask in one.masks],
        "masks": np.packbits(one.masks),
        "shape": one.masks.shape,
    }


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
