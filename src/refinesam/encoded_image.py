"""`EncodedImage`: a handle to one image's embedding, which answers prompts; and the protocol of the model behind it.

Numpy only: the model is known as a protocol, so a server or a test can bring its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refinesam import amr
from refinesam.embeddings import Features
from refinesam.errors import PromptError
from refinesam.types import BoolArray, Capabilities, FloatArray, NegativeAnswer, OnProgress, Prediction, Prompt

__all__ = ["EncodedImage", "SegmentationModel"]

# Of a mask, by a negative click: what takes more is likely the object that the user means.
MOST_REMOVED = 0.5
# Of the way from a negative click to the mask's border, see `EncodedImage._without_spot`. Chosen on training images.
CUT_REACH = 0.5


class SegmentationModel(Protocol):
    """What a session and its images need of a model. Every method may be called from several threads at once."""

    name: str
    capabilities: Capabilities

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits, the same for models that encode alike to the bit; asked for only beside a store."""
        ...

    def encode(self, image: NDArray[np.uint8], on_progress: OnProgress | None = None) -> Features:
        """Encode (H, W, 3) RGB; an error that on_progress raises ends the work and passes through."""
        ...

    def features_to_arrays(self, features: Features) -> Mapping[str, NDArray[Any]]:
        """Turn an embedding into contiguous arrays for a store."""
        ...

    def features_from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> Features:
        """Undo `features_to_arrays` to the bit."""
        ...

    def decode(
        self, features: Features, image_hw: tuple[int, int], prompt: Prompt, multimask_output: bool
    ) -> tuple[FloatArray, FloatArray]:
        """Decode one prompt into low-resolution logits (C, h, w) and predicted IoUs (C,)."""
        ...

    def upsample(self, low_res_logits: FloatArray, image_hw: tuple[int, int]) -> BoolArray:
        """Turn low-resolution logits (C, h, w) into masks (C, H, W)."""
        ...

    def value_at(self, low_res_logits: FloatArray, image_hw: tuple[int, int], points: FloatArray) -> FloatArray:
        """Read logits (C, h, w) at image points (N, 2): (C, N)."""
        ...


@runtime_checkable
class _DecodesBoxes(Protocol):
    """A model that decodes several boxes together; others decode them one by one."""

    def decode_boxes(
        self, features: Features, image_hw: tuple[int, int], boxes: FloatArray, multimask_output: bool
    ) -> tuple[FloatArray, FloatArray]:
        """Decode boxes (N, 4), an object each, into low-resolution logits (N, C, h, w) and predicted IoUs (N, C)."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image's embedding; immutable, safe to share between threads.

    Attributes:
        image_hw: height and width of the original image, the frame of prompts and masks.
        key: digest of the image's content.
        pixels: (H, W, 3) uint8, a read-only copy for crops of it; None where there is none.
    """

    image_hw: tuple[int, int]
    key: str
    features: Features = field(repr=False)
    model: SegmentationModel = field(repr=False)
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the embedding and the pixels; of the model only what it takes to load it again, see `Session`."""
        arrays = dict(self.model.features_to_arrays(self.features))
        return _restored, (self.image_hw, self.key, arrays, self.model, self.pixels)

    def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
        """Segment what the prompt points at.

        Args:
            prompt: points, a box, a mask, or any mix, in this image's pixels.
            multimask_output: three masks of an ambiguous prompt (whole, part, subpart), or one.

        Raises:
            PromptError: the prompt lies outside the image, or the model can't take it.
        """
        if not isinstance(prompt, Prompt):
            raise PromptError(f"predict takes a Prompt, got {type(prompt).__name__}: give Prompt(points=..., box=...).")
        prompt.check_inside(self.image_hw)
        negatives = prompt.negative_points
        if self._check_capabilities(prompt):
            asked = Prompt(points=prompt.positive_points, box=prompt.box)
            logits, iou = self.model.decode(self.features, self.image_hw, asked, multimask_output)
            for point in negatives:
                logits = self._subtracted(logits, int(np.argmax(iou)), point, prompt.positive_points)
            subtracted = len(negatives) > 0
            masks = self.model.upsample(logits, self.image_hw)
        else:
            logits, iou = self.model.decode(self.features, self.image_hw, prompt, multimask_output)
            masks = self.model.upsample(logits, self.image_hw)
            ignored = _covered(masks[int(np.argmax(iou))], negatives)
            subtracted = len(ignored) > 0
            if subtracted:
                for point in ignored:
                    logits = self._without_spot(logits, int(np.argmax(iou)), point)
                masks = self.model.upsample(logits, self.image_hw)
        answered: NegativeAnswer = "subtracted" if subtracted else "trained" if len(negatives) else "none"
        return self._prediction(prompt, masks, iou, logits, answered)

    def predict_boxes(self, boxes: ArrayLike, multimask_output: bool = True) -> list[Prediction]:
        """Segment one object in each box, as `predict` does, but several boxes are decoded together, which is faster.

        Args:
            boxes: (N, 4) XYXY in this image's pixels; N may be 0.
            multimask_output: three masks of an ambiguous prompt (whole, part, subpart), or one.

        Returns:
            One prediction a box, in order.

        Raises:
            PromptError: boxes of another shape, or one that has no area, is not finite or lies outside the image.
        """
        rows = np.asarray(boxes)
        if rows.size and (rows.ndim != 2 or rows.shape[1] != 4):
            raise PromptError(f"predict_boxes takes boxes (N, 4), x0, y0, x1, y1 each, got shape {rows.shape}.")
        prompts = [Prompt(box=row) for row in rows if rows.size]
        for prompt in prompts:
            prompt.check_inside(self.image_hw)
            self._check_capabilities(prompt)
        if not prompts or not isinstance(self.model, _DecodesBoxes):
            return [self.predict(prompt, multimask_output) for prompt in prompts]
        sorted_boxes = np.stack([prompt.box for prompt in prompts if prompt.box is not None])
        all_logits, ious = self.model.decode_boxes(self.features, self.image_hw, sorted_boxes, multimask_output)
        predictions = []
        for prompt, logits, iou in zip(prompts, all_logits, ious, strict=True):
            masks = self.model.upsample(logits, self.image_hw)
            predictions.append(self._prediction(prompt, masks, iou, logits, "none"))
        return predictions

    def _prediction(
        self, prompt: Prompt, masks: BoolArray, iou: FloatArray, logits: FloatArray, negatives: NegativeAnswer
    ) -> Prediction:
        for mine in (masks, iou, logits):
            mine.flags.writeable = False  # or the prediction would copy them
        return Prediction(
            masks=masks,
            iou_predictions=iou,
            low_res_logits=logits,
            prompt=prompt,
            negatives=negatives,
            image_key=self.key,
        )

    def refine(self, prediction: Prediction, config: amr.AMRConfig | None = None) -> Prediction:
        """Apply Adaptive Mask Refinement to a prediction made on this image.

        Args:
            prediction: of this image.
            config: how; None means the default.

        Returns:
            The better of the first mask and the refined one; `.refinement` says what was seen and done, and
            `.candidates` still has the first answer's other masks.

        Raises:
            PromptError: the prediction is of another image.
        """
        self._check_own(prediction)
        max_points = self.model.capabilities.max_points
        if max_points is not None and not self.model.capabilities.negative_points:
            # Negative clicks are decoded apart and take none of the model's slots.
            max_points += len(prediction.prompt.negative_points)
        refined = amr.refine(
            prediction,
            self.predict,
            config,
            max_points=max_points,
            mask_prompt=self.model.capabilities.mask_prompt,
            zoom=None if self.pixels is None else self._zoomed,
        )
        return refined if refined.masks is prediction.masks else replace(refined, first=prediction)

    def _check_own(self, prediction: Prediction) -> None:
        if not isinstance(prediction, Prediction):
            raise PromptError(f"refine takes a Prediction, got {type(prediction).__name__}: give that of predict.")
        if prediction.image_key not in ("", self.key):
            raise PromptError(
                "The prediction was made on another image: refine it with the EncodedImage that predicted it."
            )
        if prediction.masks.shape[1:] != self.image_hw:
            raise PromptError(
                f"The prediction's masks are {prediction.masks.shape[1:]}, this image is {self.image_hw} (height, "
                "width): refine it with the EncodedImage that predicted it."
            )

    def _zoomed(self, window: amr.Window) -> amr.Decode:
        """Encode a window of the image and return what decodes prompts in it."""
        assert self.pixels is not None
        x0, y0, x1, y1 = window
        features = self.model.encode(np.ascontiguousarray(self.pixels[y0:y1, x0:x1]))
        return EncodedImage((y1 - y0, x1 - x0), f"{self.key}-{x0}-{y0}-{x1}-{y1}", features, self.model).predict

    def _check_capabilities(self, prompt: Prompt) -> bool:
        """Raise PromptError for what the model can't take; return whether negative clicks have to be subtracted."""
        can, name = self.model.capabilities, self.model.name
        has_mask = prompt.mask is not None or prompt.mask_logits is not None
        if has_mask and not can.mask_prompt:
            raise PromptError(f"{name} takes no mask prompt. Leave the mask out, or use 'builtin' or a SAM model.")
        if not len(prompt.positive_points) and prompt.box is None and not has_mask:
            raise PromptError("Negative clicks alone name no object: add a positive click or a box.")
        subtract = bool(len(prompt.negative_points)) and not can.negative_points
        count = len(prompt.positive_points if subtract else prompt.points) + 2 * (prompt.box is not None)
        if can.max_points is not None and count > can.max_points:
            raise PromptError(
                f"The prompt has {count} points (a box counts as two); {name} takes at most {can.max_points}. "
                "Use fewer, or a model without this limit such as 'builtin'."
            )
        return subtract

    def _values(self, logits: FloatArray, points: FloatArray) -> FloatArray:
        return self.model.value_at(logits, self.image_hw, points)

    def _without_spot(self, logits: FloatArray, best: int, point: FloatArray) -> FloatArray:
        """Take the spot of a negative click away that a model trained on such clicks still covers, and little else.

        A cone is cut out of all logits: below zero up to half of the way to the nearest pixel off the best mask, as
        deep as the click was sure to be on it, so that interpolation doesn't fill it again.
        """
        rows, columns = np.indices(logits.shape[1:], dtype=np.float32)
        row, column = self._values(np.stack([rows, columns]), point[None])[:, 0]
        distance = np.hypot(rows - row, columns - column)
        reach = CUT_REACH * float(distance[logits[best] <= 0].min(initial=distance.max()))
        steepness = max(1.0, float(self._values(logits[[best]], point[None])[0, 0]))
        return np.asarray(np.minimum(logits, (distance - reach) * steepness), np.float32)

    def _subtracted(self, logits: FloatArray, best: int, negative: FloatArray, positives: FloatArray) -> FloatArray:
        """Answer a negative click without training: what it points at is taken away in logit space.

        The masks at the click are decoded as objects of their own. The best of those that cover no positive click and
        at most half of the best mask is removed: min(mask, -object). If there is none, as when the click lies inside
        the object that is meant, each pixel goes to the surer of the mask and the object that takes the least of it:
        min(mask, mask - object).
        """
        others, other_iou = self.model.decode(self.features, self.image_hw, Prompt(points=[negative]), True)
        covered = logits[best] > 0
        share = ((others > 0) & covered).sum(axis=(1, 2)) / max(1, np.count_nonzero(covered))
        apart = np.array([not (row > 0).any() for row in self._values(others, positives)]) & (share <= MOST_REMOVED)
        if apart.any():
            taken = -others[int(np.argmax(np.where(apart, other_iou, -np.inf)))]
        else:
            taken = logits - np.maximum(others[int(np.argmin(share))], 0)
        return np.asarray(np.minimum(logits, taken), np.float32)


def _covered(mask: BoolArray, points: FloatArray) -> FloatArray:
    """Those of the points (N, 2) that lie on a mask (H, W)."""
    height, width = mask.shape
    x, y = np.clip(points.astype(np.int64), 0, [width - 1, height - 1]).T
    return np.asarray(points[mask[y, x]], np.float32)


def _restored(
    image_hw: tuple[int, int],
    key: str,
    arrays: Mapping[str, NDArray[Any]],
    model: SegmentationModel,
    pixels: NDArray[np.uint8] | None,
) -> EncodedImage:
    if pixels is not None:
        pixels.flags.writeable = False
    return EncodedImage(image_hw, key, model.features_from_arrays(arrays), model, pixels)
