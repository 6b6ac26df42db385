"""`EncodedImage`: a handle to one image's embedding, which answers prompts; and the protocol of the model behind it.

Numpy only: the model is known as a protocol, so a server or a test can bring its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refinesam import amr
from refinesam.embeddings import Features
from refinesam.errors import PromptError
from refinesam.spots import CUT_REACH, without_spot
from refinesam.types import BoolArray, Capabilities, FloatArray, NegativeAnswer, OnProgress, Prediction, Prompt

__all__ = ["EncodedImage", "SegmentationModel"]


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
        self._check_capabilities(prompt)
        negatives, trained = prompt.negative_points, self.model.capabilities.negative_points
        # Clicks that correct an earlier mask: the object's extent is still sought, and the model's own answer finds it.
        corrects = trained and prompt.box is None and (prompt.mask is not None or prompt.mask_logits is not None)
        asked = prompt if corrects or not len(negatives) else _without_negatives(prompt)
        logits, iou = self.model.decode(self.features, self.image_hw, asked, multimask_output)
        masks = self.model.upsample(logits, self.image_hw)
        answered: NegativeAnswer = "none" if not len(negatives) else "trained" if trained else "subtracted"
        if len(covered := _covered(masks, negatives)):
            given_up: BoolArray | None = None
            if trained and not corrects:
                answers, other_iou = self.model.decode(self.features, self.image_hw, prompt, True)
                given_up = ~self.model.upsample(answers[[int(np.argmax(other_iou))]], self.image_hw)[0]
            ignored = _on(masks[int(np.argmax(iou))], covered)
            if (ignored if given_up is None else ignored & ~_on(given_up, covered)).any():
                answered = "subtracted"
            masks = np.stack([_without_spots(mask, covered, given_up) for mask in masks])
            logits = self._without_spots(logits, covered)
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

    def refine(
        self, prediction: Prediction, config: amr.AMRConfig | None = None, on_progress: OnProgress | None = None
    ) -> Prediction:
        """Apply Adaptive Mask Refinement to a prediction made on this image.

        Args:
            prediction: of this image.
            config: how; None means the default.
            on_progress: as `Session.encode` takes it, for the crop of a closer look; an exception it raises passes
                through.

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
            zoom=None if self.pixels is None else partial(self._zoomed, on_progress),
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

    def _zoomed(self, on_progress: OnProgress | None, window: amr.Window) -> amr.Decode:
        """Encode a window of the image and return what decodes prompts in it."""
        assert self.pixels is not None
        x0, y0, x1, y1 = window
        features = self.model.encode(np.ascontiguousarray(self.pixels[y0:y1, x0:x1]), on_progress)
        return EncodedImage((y1 - y0, x1 - x0), f"{self.key}-{x0}-{y0}-{x1}-{y1}", features, self.model).predict

    def _check_capabilities(self, prompt: Prompt) -> None:
        """Raise PromptError for what the model can't take."""
        can, name = self.model.capabilities, self.model.name
        has_mask = prompt.mask is not None or prompt.mask_logits is not None
        if has_mask and not can.mask_prompt:
            raise PromptError(f"{name} takes no mask prompt. Leave the mask out, or use 'builtin' or a SAM model.")
        if not len(prompt.positive_points) and prompt.box is None and not has_mask:
            raise PromptError("Negative clicks alone name no object: add a positive click or a box.")
        count = len(prompt.points if can.negative_points else prompt.positive_points) + 2 * (prompt.box is not None)
        if can.max_points is not None and count > can.max_points:
            raise PromptError(
                f"The prompt has {count} points (a box counts as two); {name} takes at most {can.max_points}. "
                "Use fewer, or a model without this limit such as 'builtin'."
            )

    def _without_spots(self, logits: FloatArray, negatives: FloatArray) -> FloatArray:
        """Take spots of negative clicks out of logits (C, h, w), where a cell of theirs is no more than the spot.

        An object can be as small as a few cells, and the masks are exact: a spot that is smaller stays.
        """
        rows, columns = np.indices(logits.shape[1:], dtype=np.float32)
        cut = np.array(logits)
        for point in negatives:
            row, column = self.model.value_at(np.stack([rows, columns]), self.image_hw, point[None])[:, 0]
            distance = np.hypot(rows - row, columns - column)
            for before, after in zip(logits, cut, strict=True):
                reach = CUT_REACH * float(distance[before <= 0].min(initial=distance.max()))
                if reach >= 1:
                    np.minimum(after, -np.abs(after), out=after, where=distance < reach)
        return cut


def _without_negatives(prompt: Prompt) -> Prompt:
    return Prompt(points=prompt.positive_points, box=prompt.box, mask=prompt.mask, mask_logits=prompt.mask_logits)


def _covered(masks: BoolArray, points: FloatArray) -> FloatArray:
    """Those of the points (N, 2) that lie on any of the masks (C, H, W)."""
    return np.asarray(points[_on(masks, points).any(axis=0)], np.float32)


def _on(masks: BoolArray, points: FloatArray) -> BoolArray:
    """Whether points (N, 2) lie on masks (..., H, W): (..., N)."""
    columns, rows = points.astype(np.int64).T
    return np.asarray(masks[..., rows, columns])


def _without_spots(mask: BoolArray, points: FloatArray, given_up: BoolArray | None) -> BoolArray:
    for point in points:
        mask = without_spot(mask, point, given_up)
    return mask


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
