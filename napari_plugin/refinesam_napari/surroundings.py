"""What lies around an object in a slice: the crop that the model sees, and how far the object stands out from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import refinesam
from refinesam_napari.geometry import Crop

__all__ = ["Predict", "Read", "SeedContrast", "box_of", "context_crop", "predict_in_crops"]

BoolArray = NDArray[np.bool_]

# Answers a prompt in the slice of that index; prompts and masks are in the frame of the whole slice.
Predict = Callable[[int, refinesam.Prompt], refinesam.Prediction]

# Returns the pixels of a crop of the slice of that index, (h, w) or (h, w, channels).
Read = Callable[[int, Crop], NDArray[Any]]

# The ring with which an object is compared, in radii of the circle of its area, and in pixels at least. It keeps off
# the edge, which is blurred and which the mask may miss by a pixel.
RING = (0.15, 0.45)
LEAST_RING = (1.0, 3.0)
# An object that differs from its ring by less than this share of the ring's spread does not stand out.
LEAST_DIFFERENCE = 0.5
# Where an object fades towards its end, its section is what keeps this share of the seed's mean contrast: about half of
# the contrast in its middle. Pixels are smoothed by so much first. The rule is for objects whose seed it would find.
SECTION_SHARE = 0.6
SECTION_SMOOTHING = 1.0
LEAST_SEED_SHARE = 0.7


def box_of(mask: BoolArray) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 of a mask that is not empty, on pixel edges."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def context_crop(
    region: BoolArray | NDArray[np.floating[Any]] | Sequence[float],
    plane_hw: tuple[int, int],
    context: float = 4.0,
    least: int = 128,
) -> Crop:
    """Return the square around an object that the model should see to find it in the next slice.

    Args:
        region: the object's mask, (H, W) and not empty, or its box x0, y0, x1, y1.
        plane_hw: height and width of the plane.
        context: side of the crop in longer sides of the object.
        least: least side of the crop in pixels.

    Returns:
        A crop inside the plane, moved inwards at its border; smaller than asked only where the plane is.
    """
    array = np.asarray(region)
    x0, y0, x1, y1 = box_of(array.astype(np.bool_)) if array.ndim == 2 else array.tolist()
    side = max(least, round(context * max(x1 - x0, y1 - y0)))

    def span(middle: float, size: int) -> tuple[int, int]:
        length = min(side, size)
        start = min(max(round(middle - length / 2), 0), size - length)
        return start, start + length

    (left, right), (top, bottom) = span((x0 + x1) / 2, plane_hw[1]), span((y0 + y1) / 2, plane_hw[0])
    return Crop(left, top, right, bottom)


def predict_in_crops(
    encode: Callable[[int, Crop], refinesam.EncodedImage],
    plane_hw: tuple[int, int],
    context: float = 4.0,
    least: int = 128,
) -> Predict:
    """Return a `predict` for whole slices that shows the model a `context_crop` around each prompt.

    Args:
        encode: encodes a crop of the slice of that index.
        plane_hw: height and width of the slices.
        context: side of the crop in longer sides of the object.
        least: least side of the crop in pixels.

    Returns:
        A function whose predictions have masks of whole slices, but `low_res_logits` of the crop. It raises
        refinesam.PromptError for a prompt with neither a mask nor a box.
    """

    def predict(index: int, prompt: refinesam.Prompt) -> refinesam.Prediction:
        region = prompt.box if prompt.mask is None else prompt.mask
        if region is None:
            raise refinesam.PromptError(f"{prompt} has neither a mask nor a box to crop around: give one of them.")
        crop = context_crop(region, plane_hw, context, least)
        rows, columns = slice(crop.y0, crop.y1), slice(crop.x0, crop.x1)
        origin = np.array([crop.x0, crop.y0], np.float32)
        prediction = encode(index, crop).predict(
            refinesam.Prompt(
                points=prompt.points - origin,
                labels=prompt.labels,
                box=None if prompt.box is None else prompt.box - np.tile(origin, 2),
                mask=None if prompt.mask is None else prompt.mask[rows, columns],
            )
        )
        masks = np.zeros((len(prediction.masks), *plane_hw), np.bool_)
        masks[:, rows, columns] = prediction.masks
        return replace(prediction, masks=masks, prompt=prompt)

    return predict


@dataclass(frozen=True, eq=False)
class SeedContrast:
    """How far a seed stands out from its surroundings, to compare other slices with.

    Attributes:
        read: reads pixels.
        difference: (C,) mean of the object less the median of the ring around it, per channel; None where the seed
            does not stand out, so that nothing can be said about other slices.
        even: whether the seed is of nearly one brightness, so that pixels tell which section of it a slice has.
    """

    read: Read
    difference: NDArray[np.float64] | None
    even: bool = False

    @classmethod
    def of(cls, read: Read, index: int, mask: BoolArray) -> SeedContrast:
        """Measure a seed, (H, W) bool and not empty."""
        difference, spread = _difference(read, index, mask, mask)
        clear = float(np.linalg.norm(difference)) > LEAST_DIFFERENCE * spread
        if not clear:
            return cls(read, None)
        seed = cls(read, difference, even=True)
        return replace(seed, even=np.count_nonzero(seed.section(index, mask)) >= LEAST_SEED_SHARE * mask.sum())

    def section(self, index: int, mask: BoolArray) -> BoolArray:
        """Return the largest part of a mask that stands out as the seed does: an object's last sections are dim.

        The mask comes back as it is where the seed is not of one brightness, or where nothing of it stands out.
        """
        if self.difference is None or not self.even or not mask.any():
            return mask
        crop, ring = _surroundings(mask)
        if not ring.any():
            return mask
        pixels = np.asarray(self.read(index, crop), np.float64).reshape(*ring.shape, -1)
        along = (pixels - np.median(pixels[ring], 0)) @ self.difference / (self.difference @ self.difference)
        rows, columns = slice(crop.y0, crop.y1), slice(crop.x0, crop.x1)
        bright = cv2.GaussianBlur(along, (0, 0), SECTION_SMOOTHING) > SECTION_SHARE
        count, parts, stats, _ = cv2.connectedComponentsWithStats((bright & mask[rows, columns]).astype(np.uint8))
        if count == 1:
            return mask
        section = np.zeros_like(mask)
        section[rows, columns] = parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        return section

    def left(self, index: int, mask: BoolArray, part: BoolArray | None = None) -> float:
        """Return how much of the seed's contrast a mask has in a slice: 1 as much, 0 none, 1 where nothing is known.

        Args:
            index: of the slice.
            mask: (H, W) bool; what lies around it is compared with.
            part: the pixels of the mask that are looked at, None for all.
        """
        part = mask if part is None else part
        if self.difference is None or not part.any():
            return 1.0
        difference, _ = _difference(self.read, index, mask, part)
        return float(difference @ self.difference / (self.difference @ self.difference))


def _difference(read: Read, index: int, mask: BoolArray, part: BoolArray) -> tuple[NDArray[np.float64], float]:
    """Return a part's mean less the mask's ring's median, per channel, and the ring's spread; zeros without a ring."""
    crop, ring = _surroundings(mask)
    pixels = np.asarray(read(index, crop), np.float64).reshape(*ring.shape, -1)
    if not ring.any():
        return np.zeros(pixels.shape[2]), 0.0
    around = pixels[ring]
    looked_at = part[crop.y0 : crop.y1, crop.x0 : crop.x1]
    return pixels[looked_at].mean(0) - np.median(around, 0), float(np.linalg.norm(around.std(0)))


def _surroundings(mask: BoolArray) -> tuple[Crop, BoolArray]:
    """Return the crop that holds a mask and its ring, and the ring in it."""
    radius = math.sqrt(np.count_nonzero(mask) / math.pi)
    near, far = (max(least, share * radius) for least, share in zip(LEAST_RING, RING, strict=True))
    x0, y0, x1, y1 = box_of(mask)
    reach, (height, width) = math.ceil(far), mask.shape
    crop = Crop(max(0, x0 - reach), max(0, y0 - reach), min(width, x1 + reach), min(height, y1 + reach))
    inside = mask[crop.y0 : crop.y1, crop.x0 : crop.x1]
    # Where the mask fills the crop, the distance to it is not defined.
    distance = cv2.distanceTransform((~inside).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return crop, (distance > near) & (distance <= far)
