"""LVIS average precision: COCO's, on annotations that are complete for some categories of an image only.

The rules are those of Gupta et al. 2019, section 5, and the data set's own program. That program is not used: its
last release names numpy types that numpy no longer has, and brings a second OpenCV.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from refinesam.errors import ConfigError
from refinesam.evaluation.coco_documents import (
    GroundTruth,
    IoUType,
    checked_ground_truth,
    load_document,
    read_results,
)
from refinesam.evaluation.lvis_fields import FREQUENCIES, ListName, frequencies_of, listed_categories
from refinesam.evaluation.matching import Backend, measured, recall_and_precision

__all__ = ["LvisScores", "lvis_scores"]

_AT_50: Final = 0
_AT_75: Final = 5


@dataclass(frozen=True)
class LvisScores:
    """LVIS' numbers, between 0 and 1; None where no ground truth counts.

    Attributes:
        ap: average precision, mean over IoU 0.50, 0.55, ..., 0.95 and categories.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of small objects, below 32^2 pixels.
        ap_medium: of medium objects.
        ap_large: of large objects, from 96^2 pixels on.
        ap_rare: of categories shown by fewer than 10 training images.
        ap_common: of categories shown by 10 to 99 training images.
        ap_frequent: of categories shown by 100 training images or more.
        ar: average recall with all detections that count, 300 an image.
        ar_small: of small objects.
        ar_medium: of medium objects.
        ar_large: of large objects.
        per_category: `ap` by the category's id.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ap_rare: float | None
    ap_common: float | None
    ap_frequent: float | None
    ar: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_category: Mapping[int, float | None]


def lvis_scores(
    ground_truth: Mapping[str, Any] | str | Path,
    results: Sequence[dict[str, Any]] | str | Path,
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
    ap, ap_small, ap_medium, ap_large = (measured(precision[:, :, :, area, 0]) for area in range(4))
    ar, ar_small, ar_medium, ar_large = (measured(recall[:, :, area, 0]) for area in range(4))
    numbers = sorted(truth.categories)
    groups = [[k for k, number in enumerate(numbers) if frequency_of[number] == letter] for letter in FREQUENCIES]
    ap_rare, ap_common, ap_frequent = (measured(precision[:, :, group, 0, 0]) for group in groups)
    return LvisScores(
        ap=ap,
        ap50=measured(precision[_AT_50, :, :, 0, 0]),
        ap75=measured(precision[_AT_75, :, :, 0, 0]),
        ap_small=ap_small,
        ap_medium=ap_medium,
        ap_large=ap_large,
        ap_rare=ap_rare,
        ap_common=ap_common,
        ap_frequent=ap_frequent,
        ar=ar,
        ar_small=ar_small,
        ar_medium=ar_medium,
        ar_large=ar_large,
        per_category={number: measured(precision[:, :, k, 0, 0]) for k, number in enumerate(numbers)},
    )


def _listed(
    content: Mapping[str, Any], where: str, categories: Mapping[int, str], key: ListName
) -> dict[int, frozenset[int]]:
    """Return by image id the categories that LVIS lists under a key of each image."""
    return {
        image["id"]: listed_categories(image, key, f"{where}: images[{index}]", categories)
        for index, image in enumerate(content["images"])
    }


def _counting(
    detections: Sequence[dict[str, Any]], truth: GroundTruth, absent: Mapping[int, frozenset[int]], most: int
) -> list[dict[str, Any]]:
    """Return the detections that count: the best of each image, then those of categories known for it."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
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
