"""The frame of an image in a model's input: pixels, points and masks there and back.

Each family was trained on its own way of fitting an image into a square, and loses accuracy with any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from refinesam.models.build import normalise
from refinesam.models.config import ModelConfig
from refinesam.types import BoolArray, FloatArray

__all__ = ["MASK_LOGIT", "Frame"]

# A mask prompt's logit where the mask covers a low-resolution pixel wholly (+) or not at all (-): sure, but no surer
# than a model's own logits.
MASK_LOGIT = 6.0


@dataclass(frozen=True)
class Frame:
    """How an image of one size lies in the square input of one model.

    - "efficientsam": stretched to the square bilinearly, without antialiasing; masks return bicubically in one step.
    - "sam": the longer side fills the square, PIL's bilinear filter; zeros at the right or bottom; masks return
      bilinearly by way of the input's size, where the padding is cut off.
    - "hybrid": stretched to the square by OpenCV, by area where there are more pixels than the input has, else
      bilinearly, as in training; masks return bilinearly in one step.

    Attributes:
        family: of the model.
        input_size: S, side of the model's input in pixels.
        image_hw: height and width of the image.
    """

    family: Literal["efficientsam", "sam", "hybrid"]
    input_size: int
    image_hw: tuple[int, int]

    @classmethod
    def of(cls, config: ModelConfig, image_hw: tuple[int, int]) -> Frame:
        """Return the frame of an image of (height, width) in the input of a model variant."""
        return cls(config.family, config.input_size, image_hw)

    @property
    def content_hw(self) -> tuple[int, int]:
        """Height and width that the image has in the input; less than S only for SAM's padding."""
        if self.family != "sam":
            return self.input_size, self.input_size
        scale = self.input_size / max(self.image_hw)
        height, width = (max(1, int(side * scale + 0.5)) for side in self.image_hw)
        return height, width

    def resize(self, image: NDArray[np.uint8]) -> Tensor:
        """Fit an image into the input.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (3, S, S) float32, normalised, padded.
        """
        if self.family == "efficientsam":
            pixels = _channels_first(np.array(image)).float()
            return normalise(_interpolate(pixels, self.content_hw, "bilinear"))
        if self.family == "sam":
            height, width = self.content_hw
            fitted = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
            return self._padded(normalise(_channels_first(np.array(fitted))))
        return normalise(_channels_first(self._resize_by_area(image)))

    def to_input(self, points_xy: ArrayLike) -> FloatArray:
        """Move (..., 2) pixel (x, y) of the image into the input; a box works as two points."""
        (height, width), (image_height, image_width) = self.content_hw, self.image_hw
        scale = np.array([width / image_width, height / image_height])
        return np.asarray(np.asarray(points_xy, np.float64) * scale, np.float32)

    def upsample(self, low_res_logits: Tensor) -> Tensor:
        """Bring logits (C, S/4, S/4) back to the image: (C, H, W) float32."""
        logits = low_res_logits.float()
        if self.family == "efficientsam":
            return _interpolate(logits, self.image_hw, "bicubic")
        if self.family == "sam":
            # In two steps as the reference: for a padded image one step would give other values near the border.
            height, width = self.content_hw
            logits = _interpolate(logits, (self.input_size, self.input_size), "bilinear")[:, :height, :width]
        return _interpolate(logits, self.image_hw, "bilinear")

    def masks(self, low_res_logits: FloatArray) -> BoolArray:
        """Turn logits (C, S/4, S/4) into masks (C, H, W) on the CPU: True where `upsample` is above 0.

        The hybrid's are enlarged by OpenCV, one at a time, which is several times as fast. It rounds otherwise than
        PyTorch: where an enlarged logit is 0 to seven digits, its sign may differ (one pixel in 10^7 or fewer).
        """
        if self.family != "hybrid":
            return np.asarray((self.upsample(torch.from_numpy(low_res_logits)) > 0).numpy())
        masks = np.empty((len(low_res_logits), *self.image_hw), np.bool_)
        for logits, mask in zip(low_res_logits, masks, strict=True):
            np.greater(cv2.resize(logits, self.image_hw[::-1], interpolation=cv2.INTER_LINEAR), 0, out=mask)
        return masks

    def from_mask(self, mask: BoolArray) -> FloatArray:
        """Turn a mask (H, W) of the image into a mask prompt: (S/4, S/4) logits, +-6, in proportion to the coverage."""
        covered = self._resize_by_area(mask.astype(np.uint8) * 255)
        covered = self._padded(torch.from_numpy(covered)).numpy()
        side = self.input_size // 4
        coverage = covered.reshape(side, 4, side, 4).mean(axis=(1, 3), dtype=np.float32) / 255
        return np.asarray(MASK_LOGIT * (2 * coverage - 1), np.float32)

    def _resize_by_area(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = self.content_hw
        shrinking = array.shape[0] * array.shape[1] > height * width
        method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(array, (width, height), interpolation=method), np.uint8)

    def _padded(self, maps: Tensor) -> Tensor:
        height, width = self.content_hw
        return F.pad(maps, (0, self.input_size - width, 0, self.input_size - height))


def _channels_first(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _interpolate(maps: Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Resize (C, h, w) maps without antialiasing."""
    if maps.shape[-2:] == size:
        return maps
    # As a batch of single maps: the same values, in half the time that three channels take on a CPU.
    return F.interpolate(maps.unsqueeze(1), size=size, mode=mode, align_corners=False)[:, 0]
