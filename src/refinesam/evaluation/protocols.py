"""mIoU under fixed prompting protocols: one prompt per annotated object, the chosen mask against the ground truth.

The protocols are those usual for SAM-like models (tight ground-truth box; 1, 3 or 5 clicks drawn from the object) and
that of the source paper for Adaptive Mask Refinement (two random clicks). Prompts depend on the mask, the annotation's
id and the seed alone, so every model and every run answers the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refinesam.amr import AMRConfig
from refinesam.errors import ConfigError, DatasetError, ImageError, PromptError
from refinesam.evaluation.dataset import CocoFolder, CocoImage, CocoObject
from refinesam.evaluation.report import Evaluation, Failure, ObjectRecord, RefinedRecord
from refinesam.images import read_image
from refinesam.masks import box_from_mask, decode_segmentation, mask_iou
from refinesam.types import BoolArray, Prediction, Prompt

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "PromptProtocol",
    "PromptableImage",
    "PromptableSession",
    "evaluate",
    "prompt_for",
]

PromptProtocol = Literal["box", "points-1", "points-3", "points-5", "random-2"]
PROTOCOLS: tuple[PromptProtocol, ...] = get_args(PromptProtocol)

_CLICKS: Final[dict[PromptProtocol, int]] = {"points-1": 1, "points-3": 3, "points-5": 5, "random-2": 2}
_MOST_CLICKS: Final = max(_CLICKS.values())
# What one image or object can do wrong. Anything else is wrong everywhere and must stop the evaluation.
_ITEM_ERRORS: Final = (ImageError, PromptError, DatasetError)


class PromptableImage(Protocol):
    """What evaluation needs of an encoded image; `refinesam.EncodedImage` is one."""

    def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
        """Answer a prompt with masks in the image's own pixels."""
        ...

    def refine(self, prediction: Prediction, config: AMRConfig | None = None) -> Prediction:
        """Refine a prediction; the result carries a refinement report."""
        ...


class PromptableSession(Protocol):
    """What evaluation needs of a session; `refinesam.Session` is one."""

    def encode(self, image: NDArray[np.uint8]) -> PromptableImage:
        """Encode (H, W, 3) uint8 RGB."""
        ...


def prompt_for(protocol: PromptProtocol, mask: ArrayLike, annotation_id: int, seed: int = 0) -> Prompt:
    """Return the prompt for an object.

    The box is the tight one around the mask's pixels, on pixel edges. Clicks are positive, at the centres of distinct
    pixels of the mask, all pixels alike; an object of fewer pixels than clicks is clicked on each. Clicks are nested:
    those of "points-1" and "random-2" are the first of those of "points-3" and "points-5", so that going from one
    protocol to the next shows what the further clicks are worth and not another draw.

    Args:
        protocol: one of `PROTOCOLS`.
        mask: (H, W) ground truth.
        annotation_id: 0 or more; with the seed it fixes the clicks.
        seed: 0 or more.

    Raises:
        ConfigError: an unknown protocol, or a seed that is none.
        DatasetError: the mask is empty.
        ImageError: not a mask.
    """
    _check_settings(protocol, seed)
    box = box_from_mask(mask)
    if box is None:
        raise DatasetError(f"The segmentation of annotation {annotation_id} covers no pixel: remove it or redraw it.")
    if protocol == "box":
        return Prompt(box=box)
    array = np.asarray(mask)
    inside = np.flatnonzero(array)
    rng = np.random.default_rng((seed, annotation_id))
    # The same draw for every protocol: a prefix of it is a draw of its own.
    drawn = rng.choice(inside, size=min(_MOST_CLICKS, len(inside)), replace=False)[: _CLICKS[protocol]]
    rows, columns = np.unravel_index(drawn, array.shape)
    return Prompt(points=np.stack([columns, rows], axis=1) + 0.5)


def evaluate(
    session: PromptableSession,
    folder: CocoFolder,
    protocol: PromptProtocol,
    *,
    refine: AMRConfig | None = None,
    seed: int = 0,
    limit_images: int | None = None,
    on_image: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Prompt a model for every object of a folder and compare what it answers with the ground truth.

    Each image is encoded once. Crowd regions are left out. Of several masks the one with the highest predicted IoU
    counts. An image or annotation that is damaged costs only itself and is listed in the result's failures.

    Args:
        session: the model.
        folder: images and ground truth.
        protocol: one of `PROTOCOLS`.
        refine: also apply Adaptive Mask Refinement to each prediction, with these settings.
        seed: of the clicks.
        limit_images: take only the first so many images.
        on_image: called after every image with how many are done and how many there are.

    Raises:
        ConfigError: an unknown protocol, a seed or a limit that is none.
        DatasetError: the folder has no object.
    """
    _check_settings(protocol, seed)
    if limit_images is not None and not _is_whole(limit_images, at_least=1):
        raise ConfigError(f"limit_images is {limit_images!r}; give a whole number of at least 1, or None for all.")
    images = folder.without_crowds().images[:limit_images]
    if not images:
        raise DatasetError("There is nothing to evaluate: the annotations hold no object besides crowd regions.")
    run = _Run(session, protocol, refine, seed)
    for done, image in enumerate(images, start=1):
        run.evaluate_image(image)
        if on_image is not None:
            on_image(done, len(images))
    return Evaluation(
        protocol, seed, refine, folder.categories, tuple(run.records), tuple(run.failures), tuple(run.encode_ms)
    )


@dataclass
class _Run:
    """One evaluation in progress."""

    session: PromptableSession
    protocol: PromptProtocol
    refine: AMRConfig | None
    seed: int
    records: list[ObjectRecord] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    encode_ms: list[float] = field(default_factory=list)

    def evaluate_image(self, image: CocoImage) -> None:
        """Add one image's records, or what failed."""
        try:
            pixels = _pixels(image)
            start = perf_counter()
            encoded = self.session.encode(pixels)
            self.encode_ms.append(_milliseconds_since(start))
        except _ITEM_ERRORS as error:
            self._fail(image, None, error)
            return
        for coco_object in image.objects:
            try:
                self.records.append(self._evaluate_object(encoded, image, coco_object))
            except _ITEM_ERRORS as error:
                self._fail(image, coco_object, error)

    def _evaluate_object(self, encoded: PromptableImage, image: CocoImage, coco_object: CocoObject) -> ObjectRecord:
        truth = decode_segmentation(coco_object.segmentation, image.height, image.width)
        prompt = prompt_for(self.protocol, truth, coco_object.annotation_id, self.seed)
        start = perf_counter()
        prediction = encoded.predict(prompt)
        milliseconds = _milliseconds_since(start)
        return ObjectRecord(
            image_id=image.image_id,
            annotation_id=coco_object.annotation_id,
            category_id=coco_object.category_id,
            area=int(np.count_nonzero(truth)),
            ious=tuple(mask_iou(mask, truth) for mask in prediction.masks),
            predicted_ious=tuple(prediction.iou_predictions.tolist()),
            chosen=prediction.best,
            refined=None if self.refine is None else _refined(encoded, prediction, truth, self.refine),
            milliseconds=milliseconds,
        )

    def _fail(self, image: CocoImage, coco_object: CocoObject | None, error: Exception) -> None:
        self.failures.append(
            Failure(
                image_id=image.image_id,
                file_name=image.path.name,
                annotation_id=None if coco_object is None else coco_object.annotation_id,
                objects=len(image.objects) if coco_object is None else 1,
                # Results are shared and compared between machines, whose folders differ.
                reason=str(error).replace(str(image.path), image.path.name),
            )
        )


def _pixels(image: CocoImage) -> NDArray[np.uint8]:
    pixels = read_image(image.path)
    if pixels.shape[:2] != (image.height, image.width):
        raise DatasetError(
            f"The image is {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height, upright as its orientation "
            f"tag says), its annotation says {image.width} x {image.height}: annotate this file again, or put back "
            "the file that was annotated."
        )
    return pixels


def _refined(encoded: PromptableImage, prediction: Prediction, truth: BoolArray, config: AMRConfig) -> RefinedRecord:
    start = perf_counter()
    refined = encoded.refine(prediction, config)
    milliseconds = _milliseconds_since(start)
    report = refined.refinement
    assert report is not None, "refine always reports"
    return RefinedRecord(
        iou=mask_iou(refined.mask, truth),
        predicted_iou=refined.score,
        rejected_iou=None if report.rejected is None else mask_iou(report.rejected, truth),
        strategy=report.strategy,
        kappa=report.kappa,
        compactness=report.compactness,
        kept=report.kept,
        milliseconds=milliseconds,
    )


def _milliseconds_since(start: float) -> float:
    return (perf_counter() - start) * 1000


def _check_settings(protocol: object, seed: object) -> None:
    if protocol not in PROTOCOLS:
        raise ConfigError(f"Unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
    if not _is_whole(seed, at_least=0):
        raise ConfigError(f"The seed is {seed!r}; give a whole number of at least 0.")


def _is_whole(value: object, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least
