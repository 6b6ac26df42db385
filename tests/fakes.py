"""A model made of arithmetic, for tests of everything that stands above a model."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from refinesam.types import Capabilities, Prompt


@dataclass(frozen=True)
class FakeFeatures:
    """The image's own red channel."""

    red: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.red.nbytes


class FloodModel:
    """Segments the pixels whose red value equals that under the first positive click, or the inside of the box.

    Its "low resolution" is the image's own, so every expectation can be written down exactly.
    """

    name = "flood"

    def __init__(self, negative_points: bool = False, mask_prompt: bool = False, max_points: int | None = 6) -> None:
        self.capabilities = Capabilities(negative_points, mask_prompt, max_points, 64)
        self.encoded = 0
        self.decoded: list[Prompt] = []
        self._lock = threading.Lock()

    fingerprint = "f" * 32

    def encode(self, image, on_progress=None):
        with self._lock:
            self.encoded += 1
        for done in (1, 2, 3):
            if on_progress is not None:
                on_progress(done, 3)
        return FakeFeatures(image[..., 0].copy())

    def features_to_arrays(self, features):
        return {"red": features.red}

    def features_from_arrays(self, arrays):
        return FakeFeatures(arrays["red"])

    def decode(self, features, image_hw, prompt, multimask_output):
        with self._lock:
            self.decoded.append(prompt)
        red = features.red.astype(int)
        if len(prompt.positive_points):
            x, y = prompt.positive_points[0].astype(int)
            mask = red == red[y, x]
        elif prompt.box is not None:
            x0, y0, x1, y1 = prompt.box.astype(int)
            mask = np.zeros(red.shape, bool)
            mask[max(y0, 0) : y1, max(x0, 0) : x1] = True
        else:
            mask = np.ones(red.shape, bool)
        small = mask & (np.indices(red.shape).sum(0) % 2 == 0)
        count = 3 if multimask_output else 1
        masks = np.stack([mask, small, np.ones_like(mask)])[:count]
        return np.where(masks, 4.0, -4.0).astype(np.float32), np.array([0.9, 0.5, 0.3], np.float32)[:count]

    def upsample(self, low_res_logits, image_hw):
        return low_res_logits > 0

    def value_at(self, low_res_logits, image_hw, points):
        x, y = points.astype(int).T
        return low_res_logits[:, y, x]


def with_positive_scores(model) -> None:
    """Let a model of random weights predict IoUs above every threshold of 0, whatever the random numbers were."""
    if model.config.family == "hybrid":
        model.mask_decoder.iou_prediction_head.mlp.fc.bias.data.fill_(0.5)
