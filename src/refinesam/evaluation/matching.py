"""Detections matched to ground truth as COCO does it, by pycocotools or by a faster program of the same results."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refinesam.errors import ConfigError, MissingExtraError
from refinesam.evaluation.coco_documents import CocoEntry, GroundTruth, IoUType
from refinesam.files import JsonObject

__all__ = ["Backend", "check_backend", "measured", "measured_by_area", "recall_and_precision"]

Backend = Literal["pycocotools", "faster"]
# By image, the categories of which not every object is annotated.
NotExhaustive = Mapping[int, Collection[int]]

# Redirecting standard output is global: two threads at once would leave it redirected.
_quiet_lock = threading.Lock()


def recall_and_precision(
    truth: GroundTruth,
    detections: Sequence[CocoEntry],
    iou_type: IoUType,
    max_detections: Sequence[int],
    *,
    class_agnostic: bool = False,
    not_exhaustive: NotExhaustive | None = None,
    backend: Backend = "pycocotools",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Match detections to ground truth and count, silently.

    Args:
        truth: checked ground truth.
        detections: checked results; the backend writes into both.
        iou_type: "segm" or "bbox".
        max_detections: rising numbers of detections, an image and category.
        class_agnostic: ignore categories.
        not_exhaustive: by image id, categories of which an unmatched detection counts neither way: LVIS' rule.
        backend: "pycocotools", or "faster" for faster-coco-eval.

    Returns:
        Recall (T, K, A, M) and precision (T, R, K, A, M): by IoU threshold, recall threshold, category in the order of
        ids, area (all, small, medium, large) and number of detections; -1 where no ground truth counts.

    Raises:
        ConfigError: `max_detections` that don't rise from 1 on, or an unknown backend.
        MissingExtraError: the backend is not installed.
    """
    numbers = list(max_detections)
    if not all(type(n) is int and n >= 1 for n in numbers) or numbers != sorted(set(numbers)):
        raise ConfigError(f"max_detections is {max_detections!r}; give rising whole numbers from 1 on.")
    check_backend(backend)
    with _quiet():
        make = _with_pycocotools if backend == "pycocotools" else _with_faster
        evaluation = make(truth, detections, iou_type, not_exhaustive or {})
        evaluation.params.maxDets = numbers
        evaluation.params.useCats = int(not class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["recall"], evaluation.eval["precision"]


def check_backend(backend: str) -> ModuleType:
    """Return the module that counts; ConfigError for an unknown one, MissingExtraError for one not installed."""
    if backend not in get_args(Backend):
        raise ConfigError(f"backend is {backend!r}; choose one of {', '.join(get_args(Backend))}.")
    if backend == "pycocotools":
        return import_module("pycocotools")
    try:
        return import_module("faster_coco_eval")
    except ModuleNotFoundError as error:
        raise MissingExtraError("faster-coco-eval", "eval") from error


def measured(values: NDArray[np.float64]) -> float | None:
    """Return the mean of the values above -1, which stands for "no ground truth"; None of none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def measured_by_area(values: NDArray[np.float64]) -> list[float | None]:
    """Return the means for all, small, medium and large objects of recall (T, K, A, M) or precision (T, R, K, A, M).

    Those count that were made with most detections.
    """
    return [measured(values[..., area, -1]) for area in range(4)]


class _FederatedEval(COCOeval):  # type: ignore[misc]  # pycocotools has no types
    """COCO's evaluation with LVIS' rule on categories that were not annotated exhaustively (Gupta et al. 2019)."""

    not_exhaustive: NotExhaustive

    def evaluateImg(self, imgId: int, catId: int, aRng: Sequence[float], maxDet: int) -> dict[str, Any] | None:
        """Match one image's objects of one category; the name is pycocotools'."""
        matches: dict[str, Any] | None = super().evaluateImg(imgId, catId, aRng, maxDet)
        if matches is not None and catId in self.not_exhaustive.get(imgId, ()):
            matches["dtIgnore"] = np.logical_or(matches["dtIgnore"], matches["dtMatches"] == 0)
        return matches


def _with_pycocotools(
    truth: GroundTruth, detections: Sequence[CocoEntry], iou_type: IoUType, not_exhaustive: NotExhaustive
) -> COCOeval:
    indexed = []
    for entries in (truth.annotations, detections):
        coco = COCO()
        coco.dataset = _document(truth, entries)
        coco.createIndex()
        indexed.append(coco)
    evaluation = _FederatedEval(*indexed, iou_type)
    evaluation.not_exhaustive = not_exhaustive
    return evaluation


def _with_faster(
    truth: GroundTruth, detections: Sequence[CocoEntry], iou_type: IoUType, not_exhaustive: NotExhaustive
) -> COCOeval:
    faster_coco_eval = check_backend("faster")
    document = _document(truth, truth.annotations)
    if not_exhaustive:
        for image in document["images"]:
            image["not_exhaustive_category_ids"] = list(not_exhaustive.get(image["id"], ()))
            # It leaves out detections of other categories than these by itself; that is done already.
            image["neg_category_ids"] = list(truth.categories)
        for category in document["categories"]:
            category["frequency"] = "f"
    indexed = []
    for content in (document, _document(truth, detections)):
        coco = faster_coco_eval.COCO()
        coco.dataset = content
        coco.createIndex()
        indexed.append(coco)
    return faster_coco_eval.COCOeval_faster(*indexed, iou_type, lvis_style=bool(not_exhaustive))


def _document(truth: GroundTruth, annotations: Sequence[CocoEntry]) -> JsonObject:
    return {
        "images": [{"id": number, "height": hw[0], "width": hw[1]} for number, hw in truth.images.items()],
        "categories": [{"id": number, "name": name} for number, name in truth.categories.items()],
        "annotations": list(annotations),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with _quiet_lock, contextlib.redirect_stdout(io.StringIO()):
        yield
