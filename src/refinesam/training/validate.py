"""A quick look at validation images while training: IoU of one click, three clicks and a box, at stride 4."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from refinesam.evaluation.dataset import CocoFolder
from refinesam.images import read_image
from refinesam.masks import decode_segmentation
from refinesam.models.build import normalise
from refinesam.models.prompt_encoder import BOTTOM_RIGHT, PADDING, POSITIVE, TOP_LEFT
from refinesam.models.promptable import PromptableModel
from refinesam.training.data import MIN_PIXELS, Sample
from refinesam.training.losses import hard_iou
from refinesam.training.prompts import click_in

__all__ = ["WholeImages", "validate"]

OBJECTS_PER_IMAGE = 8


class WholeImages(Dataset[Sample]):
    """The first images of every source, whole, with a tight box and three clicks for each of some objects.

    A sample's points are (P, 5, 2): the box's corners, then three clicks; its image is (1, 3, S, S).
    """

    def __init__(self, folders: list[CocoFolder], input_size: int, per_source: int) -> None:
        self.images = [image for folder in folders for image in folder.images[:per_source]]
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        record, size = self.images[index], self.input_size
        rng = np.random.default_rng(index)
        pixels = cv2.resize(read_image(record.path), (size, size), interpolation=cv2.INTER_AREA)
        target, points, labels = [], [], []
        for i in rng.permutation(len(record.objects))[:OBJECTS_PER_IMAGE]:
            mask = decode_segmentation(record.objects[i].segmentation, record.height, record.width)
            soft = cv2.resize(mask.astype(np.uint8) * 255, (size, size), interpolation=cv2.INTER_AREA)
            inside = soft > 127
            if np.count_nonzero(inside) < MIN_PIXELS:
                continue
            x, y, w, h = cv2.boundingRect(inside.astype(np.uint8))
            target.append(soft.reshape(size // 4, 4, size // 4, 4).mean(axis=(1, 3), dtype=np.float32) / 255)
            points.append(np.concatenate([[[x, y], [x + w, y + h]], click_in(inside, 3, rng)]))
            labels.append([TOP_LEFT, BOTTOM_RIGHT, POSITIVE, POSITIVE, POSITIVE])
        side = size // 4
        return Sample(
            image=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None],
            target=torch.from_numpy(np.array(target, np.float32).reshape(-1, side, side)),
            points=torch.from_numpy(np.array(points, np.float32).reshape(-1, 5, 2)),
            labels=torch.from_numpy(np.array(labels, np.int64).reshape(-1, 5)),
        )


@torch.no_grad()
def validate(model: PromptableModel, samples: Iterable[Sample], device: torch.device) -> dict[str, float]:
    """Mean IoU over all objects of the mask that the IoU head chooses, by protocol."""
    ious: dict[str, list[float]] = {"val_click": [], "val_3_clicks": [], "val_box": []}
    for sample in samples:
        if not len(sample["target"]):
            continue
        features = model.encode(normalise(sample["image"].to(device)))
        for name, slots in (("val_click", [2]), ("val_3_clicks", [2, 3, 4]), ("val_box", [0, 1])):
            labels = torch.full_like(sample["labels"], PADDING)
            labels[:, slots] = sample["labels"][:, slots]
            logits, iou = model.decode(features, sample["points"][None].to(device), labels[None].to(device))
            best = iou.argmax(-1)[..., None, None, None]
            chosen = logits.take_along_dim(best, dim=2).squeeze(2)[0]
            ious[name] += hard_iou(chosen, sample["target"].to(device)).tolist()
    return {name: round(float(np.mean(values)), 4) for name, values in ious.items()}
