"""The results of counting clicks: one record per object, and their summary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Literal

from refinesam.evaluation.metrics import SIZES, Size, bootstrap_interval, mean_or_none, size_of
from refinesam.evaluation.report import Failure
from refinesam.files import JsonObject

__all__ = ["Click", "ClickEvaluation", "ClickRecord", "Stopped"]

# Why clicking ended: the greatest IoU was reached, all clicks were made, the model takes no more points, or every
# wrong pixel was clicked.
Stopped = Literal["reached", "clicks", "points", "nothing left"]


@dataclass(frozen=True)
class Click:
    """A click at the centre of a pixel; x and y in pixels."""

    x: float
    y: float
    positive: bool


@dataclass(frozen=True)
class ClickRecord:
    """One object's clicks.

    Attributes:
        image_id: of the annotation file.
        annotation_id: of the annotation file.
        category_id: of the annotation file.
        area: ground-truth pixels.
        ious: IoU after each click.
        clicks: where they went.
        stopped: why there were no more.
        milliseconds: time that decoding took, all clicks together.
    """

    image_id: int
    annotation_id: int
    category_id: int
    area: int
    ious: tuple[float, ...]
    clicks: tuple[Click, ...]
    stopped: Stopped
    milliseconds: float = field(compare=False)

    @property
    def size(self) -> Size:
        """COCO's size, by mask area."""
        return size_of(self.area)

    def clicks_to(self, threshold: float) -> int | None:
        """Return after how many clicks the IoU was first at the threshold or above; None if it never was."""
        return next((count for count, iou in enumerate(self.ious, start=1) if iou >= threshold), None)


@dataclass(frozen=True)
class ClickEvaluation:
    """All objects' clicks, in the folder's order, and what could not be evaluated.

    Attributes:
        max_clicks: most clicks an object.
        thresholds: the IoUs aimed at, rising.
        fed_back: whether each prompt carried the logits of the prediction before.
        categories: names by id.
        records: one per object.
        failures: what is missing from `records`.
        encode_milliseconds: one per image.
    """

    max_clicks: int
    thresholds: tuple[float, ...]
    fed_back: bool
    categories: Mapping[int, str]
    records: tuple[ClickRecord, ...]
    failures: tuple[Failure, ...]
    encode_milliseconds: tuple[float, ...] = field(compare=False)

    def summary(self) -> JsonObject:
        """Return plain Python values for JSON, None where there is nothing to average.

        By threshold: `noc`, the mean number of clicks (an object that never gets there counts with `max_clicks`), its
        95 % bootstrap interval over images, and `never`, the share of objects that never get there. `miou_by_click`
        keeps an object's last IoU for the clicks that it did not need.
        """
        last = [
            [record.ious[min(click, len(record.ious) - 1)] for record in self.records]
            for click in range(self.max_clicks)
        ]
        return {
            "protocol": "noc",
            "max_clicks": self.max_clicks,
            "fed_back": self.fed_back,
            "images": len({record.image_id for record in self.records}),
            "objects": len(self.records),
            "thresholds": self._by_threshold(self.records),
            "per_size": {size: self._by_threshold([r for r in self.records if r.size == size]) for size in SIZES},
            "miou_by_click": [mean_or_none(ious) for ious in last],
            "failures": [asdict(failure) for failure in self.failures],
            "objects_failed": sum(failure.objects for failure in self.failures),
        }

    def _by_threshold(self, records: Sequence[ClickRecord]) -> dict[str, JsonObject]:
        return {f"{threshold:g}": self._at(threshold, records) for threshold in self.thresholds}

    def _at(self, threshold: float, records: Sequence[ClickRecord]) -> JsonObject:
        counts: dict[int, list[float]] = defaultdict(list)
        never = []
        for record in records:
            needed = record.clicks_to(threshold)
            never.append(needed is None)
            counts[record.image_id].append(self.max_clicks if needed is None else needed)
        interval = bootstrap_interval(list(counts.values()))
        return {
            "objects": len(records),
            "noc": mean_or_none([count for image in counts.values() for count in image]),
            "noc_interval": None if interval is None else list(interval),
            "never": fmean(never) if never else None,
        }

    def rows(self) -> list[JsonObject]:
        """Return the records as plain Python values."""
        return [{**asdict(record), "size": record.size} for record in self.records]
