"""LVIS average precision: COCO's, on annotations that are complete for some categories of an image only.

The rules are those of Gupta et al. 2019, section 5, and the data set's own program. That program is not used: its
last release names numpy types that numpy no longer has, and brings a second OpenCV.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refinesam.errors import ConfigError
from refinesam.evaluation.coco import AveragePrecision, precision_scores
from refinesam.evaluation.coco_documents import (
    CocoEntry,
    Document,
    GroundTruth,
    IoUType,
    Results,
    checked_ground_truth,
    load_document,
    read_results,
)
from refinesam.evaluation.lvis_fields import FREQUENCIES, ListName, frequencies_of, listed_categories
from refinesam.evaluation.matching import Backend, measured, measured_by_area, recall_and_precision
from refinesam.files import JsonObject

__all__ = ["LvisScores", "lvis_scores"]


@dataclass(frozen=True)
class LvisScores(AveragePrecision):
    """LVIS' numbers.

    Attributes:
        ap_rare: of categories shown by fewer than 10 training images.
        ap_common: of categories shown by 10 to 99 training images.
        ap_frequent: of categories shown by 100 training images or more.
        ar: average recall with all detections that count, 300 an image.
        ar_small: of small objects.
        ar_medium: of medium objects.
        ar_large: of large objects.
        per_category: `ap` by the category's id.
    """

    ap_rare: float | None
    ap_common: float | None
    ap_frequent: float | None
    ar: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_category: Mapping[int, float | None]


def lvis_scores(
    ground_truth: Document,
    results: Results,
    *,
    iou_type: IoUType = "segm",
    max_detections: int = 300,
    backend: Backend = "pycocotools",
) -> LvisScores:
    """Return LVIS' average precision and recall.

    An image's annotations are complete for the categories it shows and for those listed as absent
    (`neg_category_ids`): detections of others are left out. Of the categories listed as not complete
    (`not_exhaustive_category_ids`) a detection that matches no object counts neither way.

    Args:
        ground_truth: an LVIS document, or the path of its file.
        results: COCO results, or the path of their file.
        iou_type: what is compared, "segm" or "bbox".
        max_detections: best detections an image that count, of all categories together.
        backend: who counts; "faster" needs the extra "eval".

    Raises:
        DatasetError: a file or an entry that is malformed; the message names the place.
        ConfigError: an unknown setting.
        MissingExtraError: the backend is not installed.
    """
    if type(max_detections) is not int or max_detections < 1:
        raise ConfigError(f"max_detections is {max_detections!r}; give a whole number of at least 1, as 300.")
    content, where = load_document(ground_truth)
    truth = checked_ground_truth(content, where, iou_type)
    frequency_of = frequencies_of(content, where)
    absent = _listed(content, where, truth.categories, "neg_category_ids")
    not_exhaustive = _listed(content, where, truth.categories, "not_exhaustive_category_ids")
    detections = _counting(read_results(results, truth, iou_type), truth, absent, max_detections)
    recall, precision = recall_and_precision(
        truth, detections, iou_type, [max_detections], not_exhaustive=not_exhaustive, backend=backend
    )
    ar, ar_small, ar_medium, ar_large = measured_by_area(recall)
    numbers = sorted(truth.categories)
    groups = [[k for k, number in enumerate(numbers) if frequency_of[number] == letter] for letter in FREQUENCIES]
    by_frequency = (measured(precision[:, :, group, 0, 0]) for group in groups)
    return LvisScores(
        **precision_scores(precision),
        **dict(zip(("ap_rare", "ap_common", "ap_frequent"), by_frequency, strict=True)),
        ar=ar,
        ar_small=ar_small,
        ar_medium=ar_medium,
        ar_large=ar_large,
        per_category={number: measured(precision[:, :, k, 0, 0]) for k, number in enumerate(numbers)},
    )


def _listed(content: JsonObject, where: str, categories: Mapping[int, str], key: ListName) -> dict[int, frozenset[int]]:
    """Return by image id the categories that LVIS lists under a key of each image."""
    return {
        image["id"]: listed_categories(image, key, f"{where}: images[{index}]", categories)
        for index, image in enumerate(content["images"])
    }


def _counting(
    detections: Sequence[CocoEntry], truth: GroundTruth, absent: Mapping[int, frozenset[int]], most: int
) -> list[CocoEntry]:
    """Return the detections that count: the best of each image, then those of categories known for it."""
    by_image: dict[int, list[CocoEntry]] = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    shown_in: dict[int, set[int]] = defaultdict(set)
    for annotation in truth.annotations:
        shown_in[annotation["image_id"]].add(annotation["category_id"])
    counting = []
    for image_id, of_image in by_image.items():
        # Ties keep the order of the file, as in the data set's own program.
        best = sorted(of_image, key=lambda detection: detection["score"], reverse=True)[:most]
        known = absent[image_id] | shown_in[image_id]
        counting += [detection for detection in best if detection["category_id"] in known]
    return counting
