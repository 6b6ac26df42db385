"""Mask AP of a prompted model: boxes of a detector, or prompts made from the ground truth, become masks and are scored.

SAM's way of measuring instance segmentation (Kirillov et al. 2023, section 7.4): a detector finds objects, and the
model turns each box into a mask that keeps the detector's class and score.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from refinesam.amr import AMRConfig
from refinesam.errors import ConfigError, DatasetError
from refinesam.evaluation.coco import AveragePrecision, coco_scores
from refinesam.evaluation.coco_documents import (
    CocoEntry,
    CocoResult,
    Document,
    GroundTruth,
    Results,
    coco_result,
    read_results,
    restricted,
)
from refinesam.evaluation.dataset import CocoFolder
from refinesam.evaluation.image_run import ImageRun, OnImage, PromptableImage, PromptableSession, is_whole, limited
from refinesam.evaluation.json_fields import Damaged
from refinesam.evaluation.lvis import lvis_scores
from refinesam.evaluation.matching import Backend
from refinesam.evaluation.protocols import Choice, check_choice, chosen, only
from refinesam.evaluation.report import Evaluation, Failure
from refinesam.files import JsonObject
from refinesam.masks import encode_rle
from refinesam.types import Prompt

__all__ = ["MaskAP", "SegmentedDetections", "evaluation_ap", "mask_ap", "segment_detections"]


@dataclass(frozen=True)
class SegmentedDetections:
    """A detector's boxes as masks.

    Attributes:
        first: COCO results with the masks chosen.
        refined: the same after Adaptive Mask Refinement, None without it.
        images: ids of the images that could be read, with and without detections.
        failures: images that could not be read, and detections that the model refused.
        encode_milliseconds: one per image.
    """

    first: tuple[CocoResult, ...]
    refined: tuple[CocoResult, ...] | None
    images: frozenset[int]
    failures: tuple[Failure, ...]
    encode_milliseconds: tuple[float, ...] = field(compare=False)


@dataclass(frozen=True)
class MaskAP:
    """Average precision of masks before and after refinement.

    Attributes:
        prompts: where the prompts came from.
        images: how many images count.
        first: of the masks chosen.
        refined: of the masks after Adaptive Mask Refinement, None without it.
        failures: what could not be segmented.
    """

    prompts: str
    images: int
    first: AveragePrecision
    refined: AveragePrecision | None
    failures: tuple[Failure, ...] = ()

    def summary(self) -> JsonObject:
        """Return plain Python values for JSON."""
        return asdict(self)


def segment_detections(
    session: PromptableSession,
    folder: CocoFolder,
    detections: Results,
    *,
    refine: AMRConfig | None = None,
    choose: Choice = "box",
    most_boxes: int = 100,
    limit_images: int | None = None,
    on_image: OnImage | None = None,
) -> SegmentedDetections:
    """Turn a detector's boxes into masks.

    Args:
        session: the model.
        folder: images, read with `keep_empty`: boxes on an image without objects are false alarms that count.
        detections: COCO results with boxes, or the path of their file.
        refine: also apply Adaptive Mask Refinement to each prediction, with these settings.
        choose: which of several masks counts.
        most_boxes: boxes an image that are prompted with, best scores first.
        limit_images: take only the first so many images.
        on_image: called after every image with how many are done and how many there are.

    Raises:
        DatasetError: no detection is sound; the message names the places. One that is not costs itself, and is listed
            in the failures.
        ConfigError: a setting out of range.
    """
    check_choice(choose, has_box=True)
    if not is_whole(most_boxes, at_least=1):
        raise ConfigError(f"most_boxes is {most_boxes!r}; give a whole number of at least 1.")
    damaged = Damaged()
    by_image = _best_by_image(detections, folder, most_boxes, damaged)
    images = limited(folder.images, limit_images)
    run = ImageRun(session, [*folder.damaged, *damaged.records])
    first: list[CocoResult] = []
    refined: list[CocoResult] = []
    for image, encoded in run.encoded(images, on_image):
        for detection in by_image.get(image.image_id, ()):
            with run.isolated(image, what=f"results[{detection['id'] - 1}]"):
                before, after = _masks(encoded, detection, refine, choose)
                first.append(before)
                refined += [] if after is None else [after]
    return SegmentedDetections(
        tuple(first),
        tuple(refined) if refine is not None else None,
        frozenset(image.image_id for image in images) - run.unread,
        tuple(run.failures),
        tuple(run.encode_ms),
    )


def _best_by_image(detections: Results, folder: CocoFolder, most: int, damaged: Damaged) -> dict[int, list[CocoEntry]]:
    """Return each image's boxes with the best scores, best first."""
    known = {image.image_id: (image.height, image.width) for image in folder.images}
    truth = GroundTruth(known, folder.categories, (), "the annotations")
    by_image: dict[int, list[CocoEntry]] = defaultdict(list)
    for detection in read_results(detections, truth, "bbox", damaged=damaged):
        by_image[detection["image_id"]].append(detection)
    return {
        image_id: sorted(of_image, key=lambda detection: detection["score"], reverse=True)[:most]
        for image_id, of_image in by_image.items()
    }


def mask_ap(
    segmented: SegmentedDetections,
    annotations: Document,
    *,
    prompts: str = "detections",
    lvis: bool = False,
    backend: Backend = "pycocotools",
) -> MaskAP:
    """Score a detector's boxes as masks; images that could not be read count as not there.

    Args:
        segmented: the masks.
        annotations: the ground truth, a COCO document or the path of its file.
        prompts: what the result calls the boxes.
        lvis: by LVIS' rules instead of COCO's.
        backend: who counts.

    Raises:
        DatasetError: the ground truth is malformed.
        MissingExtraError: the backend is not installed.
    """
    document = restricted(annotations, segmented.images)
    refined = None if segmented.refined is None else _scores(document, segmented.refined, lvis, backend)
    first = _scores(document, segmented.first, lvis, backend)
    return MaskAP(prompts, len(segmented.images), first, refined, segmented.failures)


def evaluation_ap(
    evaluation: Evaluation,
    annotations: Document,
    *,
    lvis: bool = False,
    backend: Backend = "pycocotools",
) -> MaskAP:
    """Score the masks of an evaluation, whose prompts came from the ground truth, by their predicted IoU.

    There are no false alarms but bad masks, so this is not comparable with the AP of a detector's boxes. An object
    that the model refused counts as missed; images that could not be read count as not there.

    Args:
        evaluation: made with `keep_masks`.
        annotations: the ground truth, a COCO document or the path of its file.
        lvis: by LVIS' rules instead of COCO's.
        backend: who counts.

    Raises:
        ConfigError: the masks were not kept.
        DatasetError: the ground truth is malformed, or no image could be read.
        MissingExtraError: the backend is not installed.
    """
    images = {record.image_id for record in evaluation.records}
    images |= {
        failure.image_id
        for failure in evaluation.failures
        if failure.image_id is not None and failure.annotation_id is not None
    }
    if not images:
        raise DatasetError("No image could be evaluated, so there is no average precision: see the failures.")
    document = restricted(annotations, images)
    first = _scores(document, evaluation.coco_results(), lvis, backend)
    refined = None
    if evaluation.refine is not None:
        refined = _scores(document, evaluation.coco_results(refined=True), lvis, backend)
    return MaskAP(f"ground truth, {evaluation.protocol}", len(images), first, refined, evaluation.failures)


def _masks(
    encoded: PromptableImage, detection: CocoEntry, refine: AMRConfig | None, choose: Choice
) -> tuple[CocoResult, CocoResult | None]:
    x, y, width, height = detection["bbox"]
    prediction = encoded.predict(Prompt(box=[x, y, x + width, y + height]))
    index = chosen(prediction, choose)
    after = None if refine is None else encoded.refine(only(prediction, index), refine).mask
    result = partial(coco_result, detection["image_id"], detection["category_id"], score=detection["score"])
    return result(encode_rle(prediction.masks[index])), None if after is None else result(encode_rle(after))


def _scores(document: JsonObject, results: Sequence[CocoResult], lvis: bool, backend: Backend) -> AveragePrecision:
    return (lvis_scores if lvis else coco_scores)(document, results, backend=backend)
