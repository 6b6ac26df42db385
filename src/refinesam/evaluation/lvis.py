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

from refinesam.errors import ConfigError, DatasetError
from refinesam.evaluation.coco_documents import (
    GroundTruth,
    IoUType,
    checked_ground_truth,
    load_document,
    read_results,
)
from refinesam.evaluation.dataset import categories_of
from refinesam.evaluation.json_fields import field_of
from refinesam.evaluation.matching import Backend, measured, recall_and_precision
from refinesam.rle import shown

__all__ = ["LvisScores", "check_lvis_fields", "lvis_scores"]

# By how many training images show a category: fewer than 10, fewer than 100, more.
_FREQUENCIES: Final = ("r", "c", "f")
_LISTS: Final = ("neg_category_ids", "not_exhaustive_category_ids")
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
    frequency_of = _frequencies(content, where)
    absent, not_exhaustive = (_listed(content, where, truth.categories, key) for key in _LISTS)
    detections = _counting(read_results(results, truth, iou_type), truth, absent, max_detections)
    recall, precision = recall_and_precision(
        truth, detections, iou_type, [max_detections], not_exhaustive=not_exhaustive, backend=backend
    )
    ap, ap_small, ap_medium, ap_large = (measured(precision[:, :, :, area, 0]) for area in range(4))
    ar, ar_small, ar_medium, ar_large = (measured(recall[:, :, area, 0]) for area in range(4))
    numbers = sorted(truth.categories)
    groups = [[k for k, number in enumerate(numbers) if frequency_of[number] == letter] for letter in _FREQUENCIES]
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


def check_lvis_fields(source: Mapping[str, Any] | str | Path) -> None:
    """Raise DatasetError unless a document, or the file at a path, has what LVIS' rules need besides COCO's format."""
    content, where = load_document(source)
    _frequencies(content, where)
    categories = categories_of(content["categories"], where)
    for key in _LISTS:
        _listed(content, where, categories, key)


def _frequencies(content: Mapping[str, Any], where: str) -> dict[int, str]:
    if not content.get("categories"):
        raise DatasetError(f"{where} needs 'categories', each with its frequency: give an LVIS file, not a COCO one.")
    found = {}
    for index, category in enumerate(content["categories"]):
        place = f"{where}: categories[{index}]"
        frequency = field_of(category, "frequency", str, place)
        if frequency not in _FREQUENCIES:
            raise DatasetError(f"{place}.frequency must be r, c or f (rare, common, frequent), got {shown(frequency)}.")
        found[category["id"]] = frequency
    return found


def _listed(
    content: Mapping[str, Any], where: str, categories: Mapping[int, str], key: str
) -> dict[int, frozenset[int]]:
    """Return by image id the categories that LVIS lists under a key of each image."""
    found = {}
    for index, image in enumerate(content["images"]):
        place = f"{where}: images[{index}]"
        numbers = field_of(image, key, list, place)
        unknown = [number for number in numbers if not isinstance(number, int) or number not in categories]
        if unknown:
            raise DatasetError(f"{place}.{key} holds {shown(unknown[0])}, which is not the id of any of 'categories'.")
        found[image["id"]] = frozenset(numbers)
    return found


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
    for image_id, found in by_image.items():
        # Ties keep the order of the file, as in the data set's own program.
        best = sorted(found, key=lambda one: one["score"], reverse=True)[:most] if len(found) > most else found
        known = absent[image_id] | shown_in[image_id]
        counting += [one for one in best if one["category_id"] in known]
    return counting
