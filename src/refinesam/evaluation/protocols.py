"""mIoU under fixed prompting protocols: one prompt per annotated object, the chosen mask against the ground truth.

The protocols are those usual for SAM-like models (tight ground-truth box, the same with noise; 1, 3 or 5 clicks drawn
from the object) and that of the source paper for Adaptive Mask Refinement (two random clicks). Prompts depend on the
mask, the annotation's id and the seed alone, so every model and every run answers the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from refinesam.amr import AMRConfig
from refinesam.boundary import boundary_iou
from refinesam.errors import ConfigError, DatasetError
from refinesam.evaluation.dataset import CocoFolder, CocoImage, CocoObject
from refinesam.evaluation.image_run import (
    ImageRun,
    OnImage,
    PromptableImage,
    PromptableSession,
    is_whole,
    limited,
    milliseconds_since,
)
from refinesam.evaluation.report import Evaluation, ObjectRecord, RefinedRecord
from refinesam.masks import box_from_mask, box_iou, decode_segmentation, encode_rle, mask_iou
from refinesam.types import BoolArray, FloatArray, Prediction, Prompt

__all__ = [
    "CHOICES",
    "PROTOCOLS",
    "Choice",
    "Evaluation",
    "PromptProtocol",
    "PromptableImage",
    "PromptableSession",
    "check_choice",
    "check_seed",
    "chosen",
    "evaluate",
    "only",
    "prompt_for",
]

PromptProtocol = Literal["box", "noisy-box", "points-1", "points-3", "points-5", "random-2"]
PROTOCOLS: tuple[PromptProtocol, ...] = get_args(PromptProtocol)

# Which of several masks counts: the one with the highest predicted IoU, or the one that fills the prompt's box best.
Choice = Literal["score", "box"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

_CLICKS: Final[dict[PromptProtocol, int]] = {"points-1": 1, "points-3": 3, "points-5": 5, "random-2": 2}
_MOST_CLICKS: Final = max(_CLICKS.values())
# SAM's noise for boxes in training (Kirillov et al. 2023, appendix A): a share of the side, and at most so many pixels.
_BOX_NOISE: Final = 0.1
_MOST_BOX_NOISE: Final = 20.0


def prompt_for(protocol: PromptProtocol, mask: ArrayLike, annotation_id: int, seed: int = 0) -> Prompt:
    """Return the prompt for an object.

    The box is the tight one around the mask's pixels, on pixel edges. The noisy box has each of its sides moved by
    normal noise of 10 % of the box's width or height, at most 20 pixels, and is clipped to the image. Clicks are
    positive, at the centres of distinct pixels of the mask, all pixels alike; an object of fewer pixels than clicks is
    clicked on each. Clicks are nested: those of "points-1" and "random-2" are the first of those of "points-3" and
    "points-5", so that going from one protocol to the next shows what the further clicks are worth and not another
    draw.

    Args:
        protocol: one of `PROTOCOLS`.
        mask: (H, W) ground truth.
        annotation_id: 0 or more; with the seed it fixes clicks and noise.
        seed: 0 or more.

    Raises:
        ConfigError: an unknown protocol, or a seed that is none.
        DatasetError: the mask is empty.
        ImageError: not a mask.
    """
    _check_protocol(protocol)
    check_seed(seed)
    box = box_from_mask(mask)
    if box is None:
        raise DatasetError(f"The segmentation of annotation {annotation_id} covers no pixel: remove it or redraw it.")
    if protocol == "box":
        return Prompt(box=box)
    array = np.asarray(mask)
    if protocol == "noisy-box":
        return Prompt(box=_jittered(box, (array.shape[0], array.shape[1]), (seed, annotation_id)))
    inside = np.flatnonzero(array)
    rng = np.random.default_rng((seed, annotation_id))
    # The same draw for every protocol: a prefix of it is a draw of its own.
    drawn = rng.choice(inside, size=min(_MOST_CLICKS, len(inside)), replace=False)[: _CLICKS[protocol]]
    rows, columns = np.unravel_index(drawn, array.shape)
    return Prompt(points=np.stack([columns, rows], axis=1) + 0.5)


def _jittered(box: FloatArray, image_hw: tuple[int, int], seed: tuple[int, int]) -> FloatArray:
    # A third number gives noise that has nothing to do with the clicks.
    noise = np.random.default_rng((*seed, 1)).normal(size=4)
    sides = np.tile(box[2:] - box[:2], 2)
    moved = box + np.clip(noise * _BOX_NOISE * sides, -_MOST_BOX_NOISE, _MOST_BOX_NOISE)
    moved = np.clip(moved, 0, np.tile(image_hw[::-1], 2)).astype(np.float32)
    # Sides cross at seven standard deviations only; then the tight box stands for the noisy one.
    return moved if (moved[:2] < moved[2:]).all() else box


def evaluate(
    session: PromptableSession,
    folder: CocoFolder,
    protocol: PromptProtocol,
    *,
    refine: AMRConfig | None = None,
    seed: int = 0,
    limit_images: int | None = None,
    choose: Choice = "score",
    keep_masks: bool = False,
    on_image: OnImage | None = None,
) -> Evaluation:
    """Prompt a model for every object of a folder and compare what it answers with the ground truth.

    Each image is encoded once. Crowd regions are left out. Of several masks one is chosen and counts. An image or
    annotation that is damaged costs only itself and is listed in the result's failures.

    Args:
        session: the model.
        folder: images and ground truth.
        protocol: one of `PROTOCOLS`.
        refine: also apply Adaptive Mask Refinement to each prediction, with these settings.
        seed: of the clicks and the noise.
        limit_images: take only the first so many images.
        choose: "score" takes the mask with the highest predicted IoU, "box" the one whose own box agrees best with the
            prompt's.
        keep_masks: keep the masks in the records, as RLE: for average precision and pictures.
        on_image: called after every image with how many are done and how many there are.

    Raises:
        ConfigError: an unknown protocol or choice, "box" for a protocol without boxes, a seed or a limit that is none.
        DatasetError: the folder has no object.
    """
    _check_protocol(protocol)
    check_seed(seed)
    check_choice(choose, has_box=protocol in ("box", "noisy-box"))
    images = limited(folder.without_crowds().images, limit_images)
    run = ImageRun(session, folder.damaged)
    measure = _Measure(protocol, refine, seed, choose, keep_masks)
    records: list[ObjectRecord] = []
    for image, encoded in run.encoded(images, on_image):
        for coco_object in image.objects:
            with run.isolated(image, coco_object.annotation_id):
                records.append(measure.record(encoded, image, coco_object))
    return Evaluation(
        protocol, seed, refine, folder.categories, tuple(records), tuple(run.failures), tuple(run.encode_ms)
    )


def chosen(prediction: Prediction, choose: Choice = "score") -> int:
    """Return the index of the mask that counts; see `Choice`; the first of equals.

    Raises:
        ConfigError: "box" for a prompt without one.
    """
    box = prediction.prompt.box
    check_choice(choose, has_box=box is not None)
    if choose == "score" or box is None:
        return prediction.best
    around = [box_from_mask(mask) for mask in prediction.masks]
    agreement = [0.0 if own is None else float(box_iou([own], [box])[0, 0]) for own in around]
    return int(np.argmax(agreement))


@dataclass(frozen=True)
class _Measure:
    """The settings of one evaluation."""

    protocol: PromptProtocol
    refine: AMRConfig | None
    seed: int
    choose: Choice
    keep_masks: bool

    def record(self, encoded: PromptableImage, image: CocoImage, coco_object: CocoObject) -> ObjectRecord:
        """Prompt for one object."""
        truth = decode_segmentation(coco_object.segmentation, image.height, image.width)
        prompt = prompt_for(self.protocol, truth, coco_object.annotation_id, self.seed)
        start = perf_counter()
        prediction = encoded.predict(prompt)
        milliseconds = milliseconds_since(start)
        index = chosen(prediction, self.choose)
        mask = prediction.masks[index]
        return ObjectRecord(
            image_id=image.image_id,
            annotation_id=coco_object.annotation_id,
            category_id=coco_object.category_id,
            area=int(np.count_nonzero(truth)),
            ious=tuple(mask_iou(mask, truth) for mask in prediction.masks),
            predicted_ious=tuple(prediction.iou_predictions.tolist()),
            chosen=index,
            refined=None if self.refine is None else self._refined(encoded, only(prediction, index), truth),
            milliseconds=milliseconds,
            boundary_iou=boundary_iou(mask, truth),
            mask=encode_rle(mask) if self.keep_masks else None,
        )

    def _refined(self, encoded: PromptableImage, prediction: Prediction, truth: BoolArray) -> RefinedRecord:
        start = perf_counter()
        refined = encoded.refine(prediction, self.refine)
        milliseconds = milliseconds_since(start)
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
            boundary_iou=boundary_iou(refined.mask, truth),
            mask=encode_rle(refined.mask) if self.keep_masks else None,
        )


def only(prediction: Prediction, index: int) -> Prediction:
    """Return a prediction of one of its masks; itself when that is the best already."""
    if index == prediction.best:
        return prediction
    return replace(
        prediction,
        masks=prediction.masks[[index]],
        iou_predictions=prediction.iou_predictions[[index]],
        low_res_logits=prediction.low_res_logits[[index]],
    )


def check_choice(choose: object, *, has_box: bool) -> None:
    """Raise ConfigError for an unknown choice of the mask, or one that the prompts don't allow."""
    if choose not in CHOICES:
        raise ConfigError(f"choose is {choose!r}; give one of {', '.join(CHOICES)}.")
    if choose == "box" and not has_box:
        raise ConfigError("choose is 'box', but the prompts have none: give 'score', or prompt with boxes.")


def check_seed(seed: object) -> None:
    """Raise ConfigError for a seed that is none."""
    if not is_whole(seed, at_least=0):
        raise ConfigError(f"The seed is {seed!r}; give a whole number of at least 0.")


def _check_protocol(protocol: object) -> None:
    if protocol not in PROTOCOLS:
        raise ConfigError(f"Unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
