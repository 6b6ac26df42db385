"""Segment everything: a grid of clicks, filtered and thinned at low resolution; only survivors are upsampled."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from refinesam.encoded_image import EncodedImage, SegmentationModel
from refinesam.errors import ConfigError
from refinesam.predictor import Predictor
from refinesam.types import FloatArray, OnProgress, Prediction, Prompt

__all__ = ["AutomaticMaskGenerator"]

# Candidates that reach non-maximum suppression; AR@1000 never looks at more.
MAX_CANDIDATES = 1000
# Masks are compared at this side at most: finer would cost memory and change next to nothing.
COMPARED_SIDE = 64


class EncodingSession(Protocol):
    """What the generator needs of a session; `refinesam.Session` is one."""

    model: SegmentationModel

    def encode(self, image: NDArray[np.uint8]) -> EncodedImage:
        """Encode (H, W, 3) uint8 RGB."""
        ...


class AutomaticMaskGenerator:
    """Segments everything in an image with the session's model."""

    def __init__(
        self,
        session: EncodingSession,
        *,
        points_per_side: int | None = None,
        iou_threshold: float | None = None,
        stability_threshold: float = 0.75,
        overlap_threshold: float = 0.6,
        min_area: int = 16,
        prompts_per_batch: int | None = None,
    ) -> None:
        """Choose the grid and the filters.

        Args:
            session: with a model that `refinesam.load` made.
            points_per_side: clicks along each side; None means one for every 16 pixels of the input, at most 32.
            iou_threshold: least predicted IoU; None means SAM's 0.88 for the released models, and 0.35 for ours, which
                was trained on little and trusts itself less.
            stability_threshold: least IoU between the mask thresholded one logit up and one logit down.
            overlap_threshold: of two masks whose IoU is higher, the one with the lower predicted IoU goes.
            min_area: least area in pixels of the image.
            prompts_per_batch: clicks decoded together; None means 64 on a GPU, 4 on a CPU: there more are slower.

        Raises:
            ConfigError: a setting is out of range, or the session's model can't decode grids.
        """
        model = session.model
        if not isinstance(model, Predictor):
            raise ConfigError("AutomaticMaskGenerator needs a session made by refinesam.load.")
        for name, count in (("points_per_side", points_per_side), ("prompts_per_batch", prompts_per_batch)):
            if count is not None and (type(count) is not int or count < 1):
                raise ConfigError(f"{name} is {count!r}; a whole number of at least 1 is needed, or None.")
        if type(min_area) is not int or min_area < 0:
            raise ConfigError(f"min_area is {min_area!r}; a whole number of pixels is needed, 0 for none.")
        if iou_threshold is None:
            iou_threshold = 0.35 if model.config.family == "hybrid" else 0.88
        given: dict[str, Any] = {"iou": iou_threshold, "stability": stability_threshold, "overlap": overlap_threshold}
        for name, value in given.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(f"{name}_threshold is {value!r}; it must lie in [0, 1].")
        self.session, self.model = session, model
        self.points_per_side = points_per_side or min(32, model.capabilities.input_size // 16)
        self.iou_threshold, self.stability_threshold = iou_threshold, stability_threshold
        self.overlap_threshold, self.min_area = overlap_threshold, min_area
        self.prompts_per_batch = prompts_per_batch or (4 if model.device.type == "cpu" else 64)

    def generate(
        self, image: NDArray[np.uint8] | EncodedImage, on_progress: OnProgress | None = None
    ) -> list[Prediction]:
        """Segment everything.

        Args:
            image: (H, W, 3) uint8 RGB, or an image already encoded.
            on_progress: called with the clicks decoded so far and their number; an exception it raises ends the work.

        Returns:
            One prediction a mask, each with one mask, by falling predicted IoU.
        """
        encoded = image if isinstance(image, EncodedImage) else self.session.encode(image)
        points = self._grid(encoded.image_hw)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(points), self.prompts_per_batch):
            batch = points[start : start + self.prompts_per_batch]
            kept.append(self._filtered(encoded, batch, start))
            if on_progress is not None:
                on_progress(min(start + self.prompts_per_batch, len(points)), len(points))
        logits, iou, index = (torch.cat(parts) for parts in zip(*kept, strict=True))
        order = iou.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
        order = order[_suppress(logits[order] > 0, self.overlap_threshold)]
        return self._predictions(encoded, points, logits[order], iou[order], index[order])

    def _grid(self, image_hw: tuple[int, int]) -> FloatArray:
        """Centres of equal cells, (N, 2) x, y."""
        height, width = image_hw
        centres = (np.arange(self.points_per_side, dtype=np.float32) + 0.5) / self.points_per_side
        y, x = np.meshgrid(centres * height, centres * width, indexing="ij")
        return np.stack([x.ravel(), y.ravel()], axis=1)

    @torch.inference_mode()
    def _filtered(self, encoded: EncodedImage, points: FloatArray, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Decode points and keep what is sure and stable: logits (K, h, w), IoUs (K,), indices of points (K,)."""
        logits, iou = self.model.decode_points(encoded.features, encoded.image_hw, points)
        index = torch.arange(start, start + len(points), device=iou.device).unsqueeze(1).expand_as(iou)
        sure = iou >= self.iou_threshold
        logits, iou, index = logits[sure], iou[sure], index[sure]
        stable = _stability(logits) >= self.stability_threshold
        return logits[stable], iou[stable], index[stable]

    def _predictions(
        self, encoded: EncodedImage, points: FloatArray, logits: Tensor, iou: Tensor, index: Tensor
    ) -> list[Prediction]:
        predictions = []
        low_res, scores = logits.cpu().numpy(), iou.cpu().numpy()
        for i, point in enumerate(index.tolist()):
            masks = self.model.upsample(low_res[i : i + 1], encoded.image_hw)
            if int(masks.sum()) >= self.min_area:
                prompt = Prompt(points=points[point : point + 1])
                masks.flags.writeable = False  # or the prediction would copy it
                ours = (masks, scores[i : i + 1], low_res[i : i + 1], prompt)
                predictions.append(Prediction(*ours, image_key=encoded.key))
        return predictions


def _stability(logits: Tensor) -> Tensor:
    """IoU of masks (K, h, w) thresholded at +1 and at -1 logit (SAM's stability score): (K,)."""
    inner = (logits > 1).sum(dim=(-2, -1))
    outer = (logits > -1).sum(dim=(-2, -1))
    return inner / outer.clamp(min=1)


def _suppress(masks: Tensor, overlap_threshold: float) -> Tensor:
    """Non-maximum suppression of masks (K, h, w), best first: indices of those kept.

    By the masks' own IoU and not their boxes': a ring and what it encloses have the same box.
    """
    flat = masks.float()
    if flat.shape[-1] > COMPARED_SIDE:
        flat = F.adaptive_avg_pool2d(flat, COMPARED_SIDE)
    flat = flat.flatten(1)
    area = flat.sum(1)
    overlap = flat @ flat.T
    iou = (overlap / (area[:, None] + area[None] - overlap).clamp(min=1e-6)).cpu().numpy()
    alive = np.ones(len(iou), dtype=bool)
    for i in range(len(iou)):
        if alive[i]:
            alive[i + 1 :] &= iou[i, i + 1 :] <= overlap_threshold
    return torch.from_numpy(np.flatnonzero(alive)).to(masks.device)
