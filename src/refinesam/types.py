"""What goes in and what comes out: `Prompt`, `Prediction`, `RefinementReport` (numpy only).

Coordinates are pixels (x, y) in the frame of the original image; pixel (0, 0) covers [0, 1) x [0, 1). Boxes are XYXY.
Arrays held by these values are private copies and read-only, so a value never changes after it was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from refinesam.arrays import (
    BoolArray,
    FloatArray,
    IntArray,
    box_array,
    frozen,
    iou_array,
    logits_array,
    mask_array,
    points_and_labels,
    read_only,
)
from refinesam.candidates import distinct
from refinesam.errors import PromptError

__all__ = [
    "LIKELY_SIMILARITY",
    "MOST_EXAMPLES",
    "BoolArray",
    "Capabilities",
    "FloatArray",
    "OnProgress",
    "Prediction",
    "Prompt",
    "RefinementReport",
]

# A search for similar objects takes so many examples at most; what it finds is likely of their kind from here on.
MOST_EXAMPLES = 5
LIKELY_SIMILARITY = 0.5

# Called with the steps done so far and their number.
OnProgress = Callable[[int, int], None]

# How negative clicks were answered: there were none, by a model trained on them, or (some) by cutting their spots out.
NegativeAnswer = Literal["none", "trained", "subtracted"]


@dataclass(frozen=True)
class Capabilities:
    """What a model can be asked.

    Attributes:
        negative_points: a click "not on the object" was trained.
        mask_prompt: low-resolution logits of an earlier prediction can be fed back.
        max_points: most points in a prompt, a box counting as two; None means any number.
        input_size: side in pixels of the square that the image encoder sees.
    """

    negative_points: bool
    mask_prompt: bool
    max_points: int | None
    input_size: int


@dataclass(frozen=True, eq=False, init=False)
class Prompt:
    """Where the object is: points, a box, a mask, or any mix of them.

    Attributes:
        points: (N, 2) float32, pixel (x, y); N may be 0.
        labels: (N,) int64, 1 = on the object, 0 = not on the object.
        box: (4,) float32 XYXY, or None. Corners may come in any order; they are stored sorted.
        mask: (H, W) bool in the image's frame, a rough mask of the object, or None.
        mask_logits: (h, w) float32, low-resolution logits of an earlier prediction of the same model, or None.

    Raises:
        PromptError: wrong shapes, labels other than 0 and 1, NaN, an empty box, or nothing given at all.

    >>> Prompt(points=[[580, 350]]).labels.tolist()
    [1]
    >>> Prompt(box=[10, 20, 110, 220]).box.tolist()
    [10.0, 20.0, 110.0, 220.0]
    """

    points: FloatArray
    labels: IntArray
    box: FloatArray | None
    mask: BoolArray | None
    mask_logits: FloatArray | None

    def __init__(
        self,
        points: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        mask_logits: ArrayLike | None = None,
    ) -> None:
        """Check and copy what was given; labels default to 1 for every point."""
        points_array, labels_array = points_and_labels(points, labels)
        values = {
            "points": points_array,
            "labels": labels_array,
            "box": None if box is None else box_array(box),
            "mask": None if mask is None else mask_array(mask),
            "mask_logits": None if mask_logits is None else logits_array(mask_logits),
        }
        if mask is not None and mask_logits is not None:
            raise PromptError("Give a mask or mask_logits, not both: the model has one mask input.")
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if not len(points_array) and box is None and mask is None and mask_logits is None:
            raise PromptError("The prompt is empty: give at least one point, a box or a mask.")

    def __repr__(self) -> str:
        """Show only what was given."""
        parts = []
        if len(self.points):
            parts.append(f"points={self.points.tolist()}, labels={self.labels.tolist()}")
        if self.box is not None:
            parts.append(f"box={self.box.tolist()}")
        if self.mask is not None:
            parts.append(f"mask=<{self.mask.shape[0]}x{self.mask.shape[1]}>")
        if self.mask_logits is not None:
            parts.append(f"mask_logits=<{self.mask_logits.shape[0]}x{self.mask_logits.shape[1]}>")
        return f"Prompt({', '.join(parts)})"

    @property
    def positive_points(self) -> FloatArray:
        """(P, 2) float32, the points on the object."""
        return np.asarray(self.points[self.labels == 1])

    @property
    def negative_points(self) -> FloatArray:
        """(M, 2) float32, the points not on the object."""
        return np.asarray(self.points[self.labels == 0])

    @property
    def slots(self) -> int:
        """How many points of a model's `Capabilities.max_points` it takes: a click one, a box two."""
        return len(self.points) + (0 if self.box is None else 2)

    def with_points(self, points: ArrayLike, labels: ArrayLike | None = None) -> Prompt:
        """Return this prompt with further points appended; labels default to 1."""
        more, more_labels = points_and_labels(points, labels)
        return Prompt(
            points=np.concatenate([self.points, more]),
            labels=np.concatenate([self.labels, more_labels]),
            box=self.box,
            mask=self.mask,
            mask_logits=self.mask_logits,
        )

    def check_inside(self, image_hw: tuple[int, int]) -> None:
        """Raise PromptError unless the prompt lies in an image of (height, width).

        Points must lie in [0, W) x [0, H). A box may reach over the border but must overlap the image.
        """
        height, width = image_hw
        frame = f"the image (width {width}, height {height})"
        for x, y in self.points.tolist():
            if not (0 <= x < width and 0 <= y < height):
                raise PromptError(
                    f"Point ({x:g}, {y:g}) is outside {frame}. Points are pixel (x, y): column first, then row."
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box.tolist()
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                raise PromptError(
                    f"Box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) lies wholly outside {frame}. "
                    "Boxes are x0, y0, x1, y1 in pixels."
                )
        if self.mask is not None and self.mask.shape != (height, width):
            raise PromptError(
                f"The mask prompt has shape {self.mask.shape}, {frame} needs {(height, width)}. "
                "For logits of an earlier prediction use mask_logits."
            )


@dataclass(frozen=True, eq=False)
class RefinementReport:
    """What Adaptive Mask Refinement saw, did and decided (source paper, section XI).

    Attributes:
        kappa: number of connected components of the first mask.
        compactness: Q = 4 pi Area / Perimeter^2 of the first mask, 0 when it is empty.
        strategy: "centre" or "boundary" points; "feedback", a second look at the whole image; "zoom", a closer look in
            a crop around the object; of the last pass that was made, or "none" when nothing could be tried.
        rule: name of the rule that chose the strategy.
        points: (N, 2) float32, the generated points of the last iteration, pixel (x, y).
        score_before: predicted IoU of the first mask.
        score_after: predicted IoU of the best refined mask, NaN when none was made.
        kept: "first" or "refined".
        reason: one sentence that says why.
        iterations: refinement passes that were decoded.
        rejected: (H, W) bool, the candidate that was not kept, or None when there was none.
    """

    kappa: int
    compactness: float
    strategy: Literal["centre", "boundary", "feedback", "zoom", "none"]
    rule: str
    points: FloatArray
    score_before: float
    score_after: float
    kept: Literal["first", "refined"]
    reason: str
    iterations: int = 1
    rejected: BoolArray | None = None

    def __post_init__(self) -> None:
        """Keep arrays that nothing can be written to."""
        object.__setattr__(self, "points", read_only(self.points))
        if self.rejected is not None:
            object.__setattr__(self, "rejected", read_only(self.rejected))

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values for JSON; the rejected mask is left out."""
        return {
            "kappa": self.kappa,
            "compactness": self.compactness,
            "strategy": self.strategy,
            "rule": self.rule,
            "points": self.points.tolist(),
            "score_before": self.score_before,
            "score_after": None if np.isnan(self.score_after) else self.score_after,
            "kept": self.kept,
            "reason": self.reason,
            "iterations": self.iterations,
        }


@dataclass(frozen=True, eq=False)
class Prediction:
    """The masks for one prompt, and how they were obtained.

    Attributes:
        masks: (C, H, W) bool, in the image's frame.
        iou_predictions: (C,) float32 in [0, 1], the model's own estimate of each mask's IoU.
        low_res_logits: (C, h, w) float32, in the model's frame; one of them can be a later prompt's mask_logits.
        prompt: the prompt that was answered.
        refinement: the report of Adaptive Mask Refinement, None when it was not asked for.
        negatives: how negative clicks were answered: "none" were given; "trained", what a model trained on them gives
            up near the clicks was taken away; or "subtracted", a spot around each was cut out, by a model that was not
            trained on them, or that ignored one.
        image_key: of the image that it was made on, "" where that is not known.
        first: the prediction that was refined, where refinement replaced its masks; its other masks are still
            `candidates`.
        similarity: to the examples of `Session.segment_similar`, in [0, 1]; None elsewhere.
    """

    masks: BoolArray
    iou_predictions: FloatArray
    low_res_logits: FloatArray
    prompt: Prompt
    refinement: RefinementReport | None = None
    negatives: NegativeAnswer = "none"
    image_key: str = ""
    first: Prediction | None = None
    similarity: float | None = None

    def __post_init__(self) -> None:
        """Keep arrays that nothing can be written to, and IoUs that are some."""
        ious = np.asarray(self.iou_predictions)
        if ((ious < 0) | (ious > 1)).any():
            ious = frozen(iou_array(ious))
        object.__setattr__(self, "iou_predictions", read_only(ious))
        object.__setattr__(self, "masks", read_only(self.masks))
        object.__setattr__(self, "low_res_logits", read_only(self.low_res_logits))

    @property
    def best(self) -> int:
        """Index of the mask with the highest predicted IoU."""
        return int(np.argmax(self.iou_predictions))

    @property
    def mask(self) -> BoolArray:
        """(H, W) bool, the mask with the highest predicted IoU."""
        return np.asarray(self.masks[self.best])

    @property
    def score(self) -> float:
        """Predicted IoU of `mask`."""
        return float(self.iou_predictions[self.best])

    @property
    def logits(self) -> FloatArray:
        """(h, w) float32, low-resolution logits of `mask`."""
        return np.asarray(self.low_res_logits[self.best])

    @property
    def candidates(self) -> tuple[Prediction, ...]:
        """What the prompt may mean, the smallest area first: a part, the object, a group of objects.

        Each is a prediction of one mask, of this prediction or of the `first` one, to be used in place of this one.
        Masks without a pixel are left out, and of masks that agree by an IoU above 0.9 the one with the higher
        predicted IoU stays. `mask` is among them, unless it is empty.
        """
        others: list[Prediction] = []
        source: Prediction | None = self
        while source is not None:
            others += [source._only(index) for index in range(len(source.masks))]
            source = source.first
        others.sort(key=lambda one: -np.nan_to_num(one.score, nan=-1))
        found = [self._only(self.best), *others]  # a second time it is a duplicate
        return tuple(found[index] for index in distinct([one.mask for one in found]))

    def _only(self, index: int) -> Prediction:
        """Return one of the masks as a prediction of its own."""
        chosen = slice(index, index + 1)
        return replace(
            self,
            masks=self.masks[chosen],
            iou_predictions=self.iou_predictions[chosen],
            low_res_logits=self.low_res_logits[chosen],
            first=None,
        )

    def with_refinement(self, report: RefinementReport) -> Prediction:
        """Return the same masks with a refinement report attached."""
        return replace(self, refinement=report)
