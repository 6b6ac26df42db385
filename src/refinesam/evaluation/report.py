"""The results of an evaluation: one record per object, what could not be evaluated, and their summary."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from refinesam.amr import AMRConfig
from refinesam.errors import ConfigError
from refinesam.evaluation.calibration import Calibration, calibration
from refinesam.evaluation.coco_documents import CocoResult, coco_result
from refinesam.evaluation.metrics import (
    SIZES,
    MeanIoU,
    Size,
    bootstrap_interval,
    mean_or_none,
    paired_change,
    size_of,
)
from refinesam.files import JsonObject
from refinesam.rle import Rle

__all__ = ["Evaluation", "Failure", "ObjectRecord", "RefinedRecord"]


@dataclass(frozen=True)
class RefinedRecord:
    """What Adaptive Mask Refinement made of one object.

    Attributes:
        iou: of the mask that it returned.
        predicted_iou: of that mask.
        rejected_iou: of the candidate that it decoded and did not keep, None when there was none.
        strategy: see `refinesam.types.RefinementReport`.
        kappa: connected components of the first mask.
        compactness: Q = 4 pi Area / Perimeter^2 of the first mask.
        kept: "first" or "refined".
        milliseconds: time it took.
        boundary_iou: of the mask that it returned, see `refinesam.boundary`.
        mask: that mask, where masks are kept.
    """

    iou: float
    predicted_iou: float
    rejected_iou: float | None
    strategy: str
    kappa: int
    compactness: float
    kept: str
    milliseconds: float = field(compare=False)
    boundary_iou: float | None = None
    mask: Rle | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ObjectRecord:
    """One object's result; IoUs are against its ground truth in the image's own pixels.

    Attributes:
        image_id: of the annotation file.
        annotation_id: of the annotation file.
        category_id: of the annotation file.
        area: ground-truth pixels.
        ious: of every mask that the model returned.
        predicted_ious: the model's estimate of each.
        chosen: index of the mask that counts.
        refined: with refinement, None without.
        milliseconds: time that decoding took, upsampling included.
        boundary_iou: of the chosen mask, see `refinesam.boundary`.
        mask: the chosen mask, where masks are kept.
    """

    image_id: int
    annotation_id: int
    category_id: int
    area: int
    ious: tuple[float, ...]
    predicted_ious: tuple[float, ...]
    chosen: int
    refined: RefinedRecord | None
    milliseconds: float = field(compare=False)
    boundary_iou: float | None = None
    mask: Rle | None = field(default=None, repr=False)

    @property
    def iou(self) -> float:
        """Of the chosen mask."""
        return self.ious[self.chosen]

    @property
    def oracle_iou(self) -> float:
        """Of the best of the masks."""
        return max(self.ious)

    @property
    def size(self) -> Size:
        """COCO's size, by mask area."""
        return size_of(self.area)


@dataclass(frozen=True)
class Failure:
    """An image, one object of it, or a record of a file, that could not be evaluated.

    Attributes:
        image_id: of the annotation file; None when a record of that file could not be read.
        file_name: of the image, else of the file.
        annotation_id: of the object; None when the whole image, or a record, failed.
        objects: how many objects are missing from the results because of it.
        reason: what was wrong.
    """

    image_id: int | None
    file_name: str
    annotation_id: int | None
    objects: int
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """All records of one protocol on one folder, in the folder's order, and what could not be evaluated.

    Attributes:
        protocol: how objects were prompted.
        seed: of the clicks.
        refine: settings of Adaptive Mask Refinement, None without it.
        categories: names by id.
        records: one per object.
        failures: images and objects that are missing from `records`.
        encode_milliseconds: one per image; a session that finds the image in its cache is timed as such.
    """

    protocol: str
    seed: int
    refine: AMRConfig | None
    categories: Mapping[int, str]
    records: tuple[ObjectRecord, ...]
    failures: tuple[Failure, ...]
    encode_milliseconds: tuple[float, ...] = field(compare=False)

    def summary(self) -> JsonObject:
        """Return plain Python values for JSON, None where there is nothing to average.

        Means run over objects. Intervals are 95 % bootstrap intervals over images. `change` is refined - baseline of
        the same objects; `miou_refined_oracle` takes the best of first, refined and rejected mask.
        """
        ious: dict[int, list[float]] = defaultdict(list)
        changes: dict[int, list[float]] = defaultdict(list)
        refined = [record.refined for record in self.records if record.refined]
        for record in self.records:
            ious[record.image_id].append(record.iou)
            if record.refined:
                changes[record.image_id].append(record.refined.iou - record.iou)
        change = paired_change(changes)
        return {
            "protocol": self.protocol,
            "seed": self.seed,
            "refine": None if self.refine is None else asdict(self.refine),
            "images": len(ious),
            **asdict(_mean_iou(self.records)),
            "miou_interval": _listed(bootstrap_interval(list(ious.values()))),
            "calibration_error": self.calibration().error,
            "boundary_iou": mean_or_none([r.boundary_iou for r in self.records if r.boundary_iou is not None]),
            "boundary_iou_refined": mean_or_none([r.boundary_iou for r in refined if r.boundary_iou is not None]),
            "miou_refined_oracle": mean_or_none([_refined_oracle(record) for record in self.records if record.refined]),
            "change": None if change is None else {**asdict(change), "interval": _listed(change.interval)},
            "kept_refined": mean_or_none([float(record.kept == "refined") for record in refined]),
            "per_size": {size: asdict(_mean_iou([r for r in self.records if r.size == size])) for size in SIZES},
            "per_category": self._per_category(),
            "failures": [asdict(failure) for failure in self.failures],
            "objects_failed": sum(failure.objects for failure in self.failures),
            "median_milliseconds": {
                "encode": _median(self.encode_milliseconds),
                "decode": _median([record.milliseconds for record in self.records]),
                "refine": _median([record.milliseconds for record in refined]),
            },
        }

    def calibration(self) -> Calibration:
        """Compare the chosen masks' predicted IoUs with their true ones."""
        return calibration([record.predicted_ious[record.chosen] for record in self.records], self.ious())

    def ious(self) -> list[float]:
        """Return the chosen masks' IoUs."""
        return [record.iou for record in self.records]

    def _per_category(self) -> list[JsonObject]:
        groups: dict[int, list[ObjectRecord]] = defaultdict(list)
        for record in self.records:
            groups[record.category_id].append(record)
        return [
            {"id": number, "name": self.categories.get(number, str(number)), **asdict(_mean_iou(groups[number]))}
            for number in sorted(groups)
        ]

    def rows(self) -> list[JsonObject]:
        """Return the records as plain Python values, without the masks."""
        rows = []
        for record in self.records:
            row = {**asdict(record), "iou": record.iou, "oracle_iou": record.oracle_iou, "size": record.size}
            for part in (row, row["refined"] or {}):
                part.pop("mask", None)
            rows.append(row)
        return rows

    def coco_results(self, *, refined: bool = False) -> list[CocoResult]:
        """Return the kept masks as COCO results, scored by predicted IoU (0 where a broken model predicts NaN).

        Args:
            refined: the masks after refinement instead of the first ones.

        Raises:
            ConfigError: masks were not kept, or there was no refinement.
        """
        results = []
        for record in self.records:
            mask, score = record.mask, record.predicted_ious[record.chosen]
            if refined:
                mask, score = (record.refined.mask, record.refined.predicted_iou) if record.refined else (None, 0.0)
            if mask is None:
                raise ConfigError("There are no masks to make results of: evaluate with keep_masks (and with refine).")
            results.append(coco_result(record.image_id, record.category_id, mask, score))
        return results


def _mean_iou(records: Sequence[ObjectRecord]) -> MeanIoU:
    return MeanIoU(
        objects=len(records),
        miou=mean_or_none([record.iou for record in records]),
        miou_oracle=mean_or_none([record.oracle_iou for record in records]),
        miou_refined=mean_or_none([record.refined.iou for record in records if record.refined]),
    )


def _refined_oracle(record: ObjectRecord) -> float:
    """Return the IoU if the choice between first, refined and rejected mask were always right."""
    if record.refined is None:
        return record.iou
    return max(iou for iou in (record.iou, record.refined.iou, record.refined.rejected_iou) if iou is not None)


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _median(milliseconds: Sequence[float]) -> float | None:
    return round(median(milliseconds), 3) if milliseconds else None


def without_nan(value: Any) -> Any:
    """Replace NaN and infinities, which a broken model predicts and JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
