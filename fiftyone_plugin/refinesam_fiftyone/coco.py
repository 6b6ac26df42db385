"""A run as COCO documents: masks for other tools, and COCO's average precision of both masks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import pandas as pd

from refinesam import ConfigError, coco_annotation
from refinesam.hosts import coco_scores, write_json

from .record import require
from .regions import StoredLabel, StoredSample, read_samples
from .runs import present_truth, run_of

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["CocoExport", "coco_ap", "export_coco"]

_METRICS: Final = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
_NO_CLASS: Final = "object"


@dataclass(frozen=True)
class CocoExport:
    """What `export_coco` wrote.

    Attributes:
        path: of the document.
        images: in it.
        annotations: in it.
        empty: masks without a pixel, which COCO has no place for.
        unreadable: masks that cannot be read.
        folder: that the images' names in the document are relative to: what an importer is told as the images' folder.
    """

    path: Path
    images: int
    annotations: int
    empty: int
    unreadable: int
    folder: Path


@dataclass
class _Document:
    """A COCO document that grows by samples; categories are numbered as they come."""

    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: dict[str, int] = field(default_factory=dict)

    def add_image(self, sample: StoredSample, folder: Path | None = None) -> int:
        height, width = sample.image_hw
        number = len(self.images) + 1
        # Files in different folders may share a name.
        path = Path(sample.filepath)
        name = (path.relative_to(folder) if folder else path).as_posix()
        self.images.append({"id": number, "file_name": name, "height": height, "width": width, "sample_id": sample.id})
        return number

    def category(self, label: str | None) -> int:
        return self.categories.setdefault(label or _NO_CLASS, len(self.categories) + 1)

    def add(self, sample: StoredSample, image: int, label: StoredLabel, score: float | None = None) -> dict[str, Any]:
        assert label.region is not None
        frame = label.region.frame(sample.image_hw)
        number = len(self.annotations) + 1
        self.annotations.append(coco_annotation(frame, image, self.category(label.label), number, score))
        return self.annotations[-1]

    def to_dict(self) -> dict[str, Any]:
        categories = [{"id": number, "name": name} for name, number in self.categories.items()]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def export_coco(
    samples: SampleCollection,
    path: str | Path,
    *,
    run_key: str = "refinesam",
    masks: Literal["baseline", "amr"] = "amr",
    rel_dir: str | Path | None = None,
) -> CocoExport:
    """Write a run's masks, of either kind, as a COCO document: RLE masks, with predicted IoU as score and prompt ids.

    Images are named by their paths below a folder, which FiftyOne's importer takes as `data_path`.

    Args:
        samples: a dataset or view; its label filters are not looked at.
        path: of the file, replaced if it exists.
        run_key: of a run that `compare` made.
        masks: "baseline" or "amr".
        rel_dir: the folder that images' names are relative to; None: the innermost that holds all of them.

    Raises:
        ConfigError: no such run, other masks, or an image outside the folder.
    """
    if masks not in ("baseline", "amr"):
        raise ConfigError(f"masks is {masks!r}; choose baseline or amr.")
    target, run, _ = run_of(samples, run_key)
    require(target, run, [run.masks(masks)])
    folder = _folder(target.view().values("filepath"), rel_dir)
    document, empty, unreadable = _Document(), 0, 0
    for batch in read_samples(target, target.ids, [run.masks(masks)]):
        for sample in batch:
            if sample.failure is not None:
                continue
            image = document.add_image(sample, folder)
            for label in sample.labels[run.masks(masks)]:
                if label.region is None:
                    unreadable += 1
                elif not label.region.area:
                    empty += 1
                else:
                    document.add(sample, image, label, label.predicted_iou)["prompt_id"] = label.prompt_id
    write_json(path, document.to_dict())
    return CocoExport(Path(path), len(document.images), len(document.annotations), empty, unreadable, folder)


def _folder(paths: Sequence[str], rel_dir: str | Path | None) -> Path:
    """Return the folder that all files lie in, the given one or the innermost."""
    if rel_dir is None:
        return Path(os.path.commonpath([Path(path).parent for path in paths])) if paths else Path()
    folder = Path(rel_dir).absolute()
    outside = [path for path in paths if not Path(path).is_relative_to(folder)]
    if outside:
        raise ConfigError(f"{len(outside)} images do not lie in {folder}, such as {outside[0]}: give a folder above.")
    return folder


def coco_ap(
    samples: SampleCollection, run_key: str = "refinesam", *, class_agnostic: bool | None = None
) -> pd.DataFrame:
    """Return COCO's average precision and recall of a run's two masks, their predicted IoU being the score.

    Ground truth with the attribute iscrowd is treated as COCO's crowds: matching it counts neither way.

    Args:
        samples: a dataset or view; its label filters are not looked at.
        run_key: of a run with ground truth.
        class_agnostic: leave classes out; None: only if some mask has a class that the ground truth has not, as those
            of a run without prompts.

    Returns:
        Rows "baseline" and "amr"; columns ap, ap50, ap75, ap_small, ap_medium, ap_large, ar1, ar10, ar100, ar_small,
        ar_medium, ar_large, from 0 to 1, NaN where there is no ground truth.

    Raises:
        ConfigError: no such run, or one without ground truth.
    """
    target, run, settings = run_of(samples, run_key)
    require(target, run, (run.baseline, run.amr))
    if settings.truth_field is None:
        raise ConfigError(f"The run {run.key!r} was made without ground truth, so it has no average precision.")
    truth = present_truth(target, settings)
    if truth is None:
        raise ConfigError(f"The dataset no longer has the ground truth field {settings.truth_field!r} of the run.")
    document = _Document()
    documents: dict[str, _Document] = {name: _Document() for name in (run.baseline, run.amr)}
    crowds = f"{truth}.detections.iscrowd"
    others = [crowds] if target.field(crowds) is not None else []
    for batch in read_samples(target, target.ids, [truth, run.baseline, run.amr], others=others):
        for sample in (loaded for loaded in batch if loaded.failure is None):
            image = document.add_image(sample)
            for label, crowd in _with_crowds(sample, truth, sample.others.get(crowds)):
                document.add(sample, image, label)["iscrowd"] = crowd
            for name, results in documents.items():
                for label in sample.labels[name]:
                    if label.region is not None:
                        results.add(sample, image, label, label.predicted_iou or 0.0)
    if class_agnostic is None:
        class_agnostic = any(set(results.categories) - set(document.categories) for results in documents.values())
    scores = {
        name: asdict(
            coco_scores(document.to_dict(), _results(document, results, class_agnostic), class_agnostic=class_agnostic)
        )
        for name, results in (("baseline", documents[run.baseline]), ("amr", documents[run.amr]))
    }
    return pd.DataFrame.from_dict(scores, orient="index", columns=list(_METRICS)).astype("float64")


def _with_crowds(sample: StoredSample, truth: str, crowds: Any) -> Iterator[tuple[StoredLabel, int]]:
    for label in sample.labels[truth]:
        if label.region is not None and label.region.area:
            yield label, int(bool(crowds[label.position])) if crowds else 0


def _results(truth: _Document, document: _Document, class_agnostic: bool) -> list[dict[str, Any]]:
    """Number the masks' classes as the ground truth does; without classes all have its first."""
    names = {number: name for name, number in document.categories.items()}
    results = []
    for annotation in document.annotations:
        category = 1 if class_agnostic else truth.categories.get(names[annotation["category_id"]])
        if category is not None:
            results.append({**annotation, "category_id": category})
    return results
