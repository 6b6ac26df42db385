"""A quick look at validation images while training: IoU of one click, three clicks and a box, at stride 4."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from refinesam.errors import DatasetError, ImageError
from refinesam.masks import decode_segmentation
from refinesam.models.build import normalise
from refinesam.models.prompt_encoder import BOTTOM_RIGHT, POSITIVE, TOP_LEFT
from refinesam.models.promptable import PromptableModel
from refinesam.training.finetune.data import MIN_PIXELS, Sample, fit_image, fit_to_square, stride4_coverage
from refinesam.training.finetune.losses import hard_iou
from refinesam.training.finetune.prompts import click_in
from refinesam.training.sources.source import AnnotatedImage, Source

__all__ = ["WholeImages", "validate"]

OBJECTS_PER_IMAGE = 8
LABELS = (TOP_LEFT, BOTTOM_RIGHT, POSITIVE, POSITIVE, POSITIVE)
# Which of a sample's points each protocol gives.
PROTOCOLS = {"val_click": [2], "val_3_clicks": [2, 3, 4], "val_box": [0, 1]}


class WholeImages(Dataset[Sample]):
    """The first images of every source, whole, with a tight box and three clicks for each of some objects.

    A sample's points are (P, 5, 2): the box's corners, then three clicks; its image is (1, 3, S, S). Objects that are
    too small to fill a stride-4 pixel by half are left out, since nothing could be told about them at that stride. P is
    0 for an image that is damaged, and `damaged` then says why: a run does not end for it.
    """

    def __init__(self, sources: Sequence[Source], input_size: int, per_source: int, *, family: str = "hybrid") -> None:
        """Choose the images.

        Args:
            sources: as `refinesam.training.sources.layouts.load_sources` gives them.
            input_size: S, side of the model's input in pixels.
            per_source: most images of each source.
            family: of the model, which decides how images are resized.
        """
        self.images = [(source, i) for source in sources for i in range(min(per_source, len(source)))]
        self.input_size, self.family = input_size, family

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        size, side = self.input_size, self.input_size // 4
        pixels = np.zeros((size, size, 3), np.uint8)
        prompted: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        damaged = ""
        source, number = self.images[index]
        try:
            image = source.read(number)
            pixels = fit_image(image.pixels, size, self.family)
            prompted = self._prompted(image, np.random.default_rng(index))
        except (ImageError, DatasetError) as error:
            damaged = f"{source.name(number)}: {error}".replace("\n", " ")
        points = np.array([p for _, p in prompted], np.float32).reshape(-1, len(LABELS), 2)
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None],
            target=torch.from_numpy(np.array([t for t, _ in prompted], np.float32).reshape(-1, side, side)),
            points=torch.from_numpy(points),
            labels=torch.tensor(LABELS).repeat(len(prompted), 1),
            damaged=damaged,
        )

    def _prompted(
        self, image: AnnotatedImage, rng: np.random.Generator
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Some of an image's objects, each as coverage (S/4, S/4) and points (5, 2)."""
        prompted = []
        height, width = image.pixels.shape[:2]
        for i in rng.permutation(len(image.objects))[:OBJECTS_PER_IMAGE]:
            mask = decode_segmentation(image.objects[i].segmentation, height, width)
            soft = fit_to_square(mask.astype(np.uint8) * 255, self.input_size)
            inside, coverage = soft > 127, stride4_coverage(soft)
            if np.count_nonzero(inside) < MIN_PIXELS or not (coverage > 0.5).any():
                continue
            x, y, w, h = cv2.boundingRect(inside.astype(np.uint8))
            box = np.array([[x, y], [x + w, y + h]], np.float32)
            prompted.append((coverage, np.concatenate([box, click_in(inside, 3, rng)])))
        return prompted


@torch.no_grad()
def validate(model: PromptableModel, samples: WholeImages, device: torch.device) -> dict[str, float]:
    """Measure a model in evaluation mode.

    Returns:
        "val_objects": how many there were; if any, "val_click", "val_3_clicks" and "val_box": the mean IoU over all
        objects, at stride 4, of the mask that the IoU head chooses.
    """
    ious: dict[str, list[float]] = {name: [] for name in PROTOCOLS}
    for index in range(len(samples)):
        sample = samples[index]
        if not len(sample["target"]):
            continue
        features = model.encode(normalise(sample["image"].to(device)))
        for name, slots in PROTOCOLS.items():
            # Without padding, as the predictor asks.
            points, labels = sample["points"][None, :, slots], sample["labels"][None, :, slots]
            logits, iou = model.decode(features, points.to(device), labels.to(device))
            best = iou.argmax(-1)[..., None, None, None]
            chosen = logits.take_along_dim(best, dim=2).squeeze(2)[0]
            ious[name] += hard_iou(chosen, sample["target"].to(device)).tolist()
    count = len(ious["val_box"])
    means = {name: round(float(np.mean(values)), 4) for name, values in ious.items() if values}
    return {"val_objects": count, **means}
