"""Average precision and recall as COCO defines them (Lin et al. 2014), as pycocotools computes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from refinesam.errors import ConfigError
from refinesam.evaluation.coco_documents import Document, IoUType, Results, read_ground_truth, read_results
from refinesam.evaluation.matching import Backend, measured, measured_by_area, recall_and_precision

__all__ = ["AveragePrecision", "CocoScores", "coco_scores", "precision_scores"]

# Indices of IoU 0.50 and 0.75 among 0.50, 0.55, ..., 0.95.
_AT_50: Final = 0
_AT_75: Final = 5


@dataclass(frozen=True)
class AveragePrecision:
    """What COCO and LVIS both measure, between 0 and 1; None where no ground truth counts (pycocotools says -1).

    Sizes are those of COCO: small below 32^2 pixels, large from 96^2 on (an object of exactly 32^2 or 96^2 counts in
    both, as in pycocotools).

    Attributes:
        ap: average precision, mean over IoU 0.50, 0.55, ..., 0.95 and categories.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of small objects.
        ap_medium: of medium objects.
        ap_large: of large objects.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None


@dataclass(frozen=True)
class CocoScores(AveragePrecision):
    """COCO's twelve numbers.

    Attributes:
        ar1: average recall with the first of `max_detections` an image and category, 1.
        ar10: with the second, 10.
        ar100: with the third, 100.
        ar_small: of small objects, with the third.
        ar_medium: of medium objects, with the third.
        ar_large: of large objects, with the third.
        per_category: `ap` by the category's name, with its id in brackets where several have that name; empty when
            categories were ignored.
    """

    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_category: Mapping[str, float | None]


def coco_scores(
    ground_truth: Document,
    results: Results,
    *,
    iou_type: IoUType = "segm",
    max_detections: tuple[int, int, int] = (1, 10, 100),
    class_agnostic: bool = False,
    backend: Backend = "pycocotools",
) -> CocoScores:
    """Return COCO's average precision and recall, equal to what pycocotools prints.

    Two of its quirks are avoided: an annotation with id 0 can be matched, and areas of masks come from the masks even
    where the results carry boxes, too. No result at all gives 0 instead of an error.

    Args:
        ground_truth: a COCO document, or the path of its file.
        results: COCO results, or the path of their file.
        iou_type: what is compared, "segm" or "bbox".
        max_detections: best detections an image and category that count: three numbers, rising. Precision takes the
            last.
        class_agnostic: ignore categories, as for proposals.
        backend: who counts; "faster" needs the extra "eval".

    Raises:
        DatasetError: a file or an entry that is malformed; the message names the place.
        ConfigError: an unknown `iou_type` or `backend`, or `max_detections` that are not three rising numbers from 1
            on.
        MissingExtraError: the backend is not installed.
    """
    if len(max_detections) != 3:
        raise ConfigError(f"max_detections is {max_detections!r}; give three numbers, as (1, 10, 100).")
    truth = read_ground_truth(ground_truth, iou_type)
    detections = read_results(results, truth, iou_type, class_agnostic=class_agnostic)
    recall, precision = recall_and_precision(
        truth, detections, iou_type, max_detections, class_agnostic=class_agnostic, backend=backend
    )
    ar100, ar_small, ar_medium, ar_large = measured_by_area(recall)
    names = [] if class_agnostic else [_name(truth.categories, number) for number in sorted(truth.categories)]
    return CocoScores(
        **precision_scores(precision),
        ar1=measured(recall[:, :, 0, 0]),
        ar10=measured(recall[:, :, 0, 1]),
        ar100=ar100,
        ar_small=ar_small,
        ar_medium=ar_medium,
        ar_large=ar_large,
        per_category={name: measured(precision[:, :, index, 0, -1]) for index, name in enumerate(names)},
    )


def precision_scores(precision: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the fields of `AveragePrecision` of a precision (T, R, K, A, M)."""
    ap, ap_small, ap_medium, ap_large = measured_by_area(precision)
    ap50, ap75 = (measured(precision[threshold, :, :, 0, -1]) for threshold in (_AT_50, _AT_75))
    sizes = {"ap_small": ap_small, "ap_medium": ap_medium, "ap_large": ap_large}
    return {"ap": ap, "ap50": ap50, "ap75": ap75, **sizes}


def _name(categories: Mapping[int, str], number: int) -> str:
    name = categories[number]
    return name if Counter(categories.values())[name] == 1 else f"{name} ({number})"
