"""COCO ground truth and results in the form that pycocotools takes, checked first: its C code trusts what it is given.

Results are a JSON list of {"image_id", "category_id", "score", "segmentation" or "bbox"}, as COCO's evaluation server
takes them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, get_args

from pycocotools import mask as coco_mask

from refinesam.errors import ConfigError, DatasetError
from refinesam.evaluation.dataset import categories_of, checked_lists, image_id_of, object_of
from refinesam.evaluation.json_fields import ById, Damaged, bbox_of, field_of, is_number, object_at, read_json
from refinesam.evaluation.lvis_fields import check_listed, frequencies_of
from refinesam.files import JsonObject
from refinesam.masks import decode_segmentation
from refinesam.rle import Rle, encode_rle, runs_from_compressed, shown

__all__ = [
    "CocoEntry",
    "CocoResult",
    "Document",
    "GroundTruth",
    "IoUType",
    "Results",
    "checked_ground_truth",
    "coco_result",
    "compressed",
    "load_document",
    "read_ground_truth",
    "read_results",
    "restricted",
    "without_damaged",
]

IoUType = Literal["segm", "bbox"]
# A COCO document, or COCO results, as callers give them: the content, not yet checked, or the path of its file.
Document = Mapping[str, object] | str | Path
Results = Sequence[Mapping[str, object]] | str | Path


class CocoResult(TypedDict):
    """A mask as COCO's results have it."""

    image_id: int
    category_id: int
    segmentation: Rle
    score: float


class CocoEntry(TypedDict):
    """A checked annotation or result, as pycocotools takes it: results have a score, masks or boxes may be left out."""

    id: int
    image_id: int
    category_id: int
    iscrowd: int
    area: float
    bbox: NotRequired[list[float]]
    segmentation: NotRequired[Rle]
    score: NotRequired[float]


@dataclass(frozen=True)
class GroundTruth:
    """A checked COCO document.

    Attributes:
        images: (height, width) by id.
        categories: names by id.
        annotations: with new ids from 1 on (pycocotools takes a match with id 0 for none), `segmentation` as
            compressed RLE where masks are compared, `area` as the document has it.
        where: what messages call the document.
    """

    images: Mapping[int, tuple[int, int]]
    categories: Mapping[int, str]
    annotations: Sequence[CocoEntry]
    where: str


def coco_result(image_id: int, category_id: int, mask: Rle, score: float) -> CocoResult:
    """Return a mask as a COCO result; one that a broken model scores NaN, which JSON lacks, has score 0."""
    score = score if math.isfinite(score) else 0.0
    return {"image_id": image_id, "category_id": category_id, "segmentation": mask, "score": score}


def read_ground_truth(source: Document, iou_type: IoUType) -> GroundTruth:
    """Check a COCO document.

    Args:
        source: its content, or the path of its file.
        iou_type: "segm" needs masks of the right size; "bbox" does without segmentations.

    Raises:
        DatasetError: the file cannot be read or the document breaks COCO's format; the message names the place.
        ConfigError: an unknown `iou_type`.
    """
    return checked_ground_truth(*load_document(source), iou_type)


def load_document(source: object) -> tuple[JsonObject, str]:
    """Return a COCO document's content and what messages call it; only its lists are known to be there.

    Args:
        source: the content, or the path of the file.

    Raises:
        DatasetError: the file cannot be read, or it holds no COCO document.
    """
    if isinstance(source, str | Path):
        return checked_lists(read_json(Path(source)), str(source)), str(source)
    where = "the ground truth"
    return checked_lists(dict(source) if isinstance(source, Mapping) else source, where), where


def checked_ground_truth(
    content: JsonObject, where: str, iou_type: IoUType, damaged: Damaged | None = None, *, lvis: bool = False
) -> GroundTruth:
    """Check what `load_document` returned; see `read_ground_truth`.

    Args:
        content: the document.
        where: what messages call it.
        iou_type: see `read_ground_truth`.
        damaged: takes records that are malformed.
        lvis: check what LVIS' rules need besides.

    Raises:
        DatasetError: the document breaks COCO's format; the message names the places. With `damaged`, only where a
            list, or LVIS' frequency of a category, is missing.
        ConfigError: an unknown `iou_type`.
    """
    if iou_type not in get_args(IoUType):
        raise ConfigError(f"iou_type is {iou_type!r}; choose segm or bbox.")
    images, broken = ById[tuple[int, int]](), Damaged() if damaged is None else damaged
    categories = categories_of(content.get("categories", []), where, broken)
    if lvis:
        frequencies_of(content, where)
    for index, raw in enumerate(content["images"]):
        place = f"{where}: images[{index}]"
        with broken.isolated("images", index):
            if lvis:
                check_listed(raw, place, categories)
            height, width = field_of(raw, "height", int, place), field_of(raw, "width", int, place)
            images.add((height, width), field_of(raw, "id", int, place), place)
    annotations = ById[CocoEntry]()
    for index, raw in enumerate(content["annotations"]):
        place = f"{where}: annotations[{index}]"
        with broken.isolated("annotations", index):
            annotation = _annotation(raw, place, images.values, categories, iou_type)
            annotations.add(annotation, annotation["id"], place)
            annotation["id"] = index + 1
    if damaged is None:
        broken.check_none()
    # COCO's files name their categories; those of other tools may not.
    entries = list(annotations.values.values())
    named = categories or {entry["category_id"]: str(entry["category_id"]) for entry in entries}
    return GroundTruth(images.values, named, entries, where)


def restricted(source: Document, images: Collection[int]) -> JsonObject:
    """Return a COCO document of some images only.

    Args:
        source: the content, or the path of the file. Entries without a whole id stay, for the checks to name.
        images: ids of the images that stay, with their annotations.

    Raises:
        DatasetError: the file cannot be read, or it holds no COCO document.
    """
    content, _ = load_document(source)

    def stays(entry: object, key: str) -> bool:
        number = entry.get(key) if isinstance(entry, dict) else None
        return not isinstance(number, int) or number in images

    return {
        **content,
        "images": [image for image in content["images"] if stays(image, "id")],
        "annotations": [annotation for annotation in content["annotations"] if stays(annotation, "image_id")],
    }


def without_damaged(content: JsonObject, where: str = "the ground truth", *, lvis: bool = False) -> JsonObject:
    """Return a COCO document's content without the records that break the format of masks, and what refers to them.

    Raises:
        DatasetError: with `lvis`, a category lacks its frequency.
    """
    damaged = Damaged()
    checked_ground_truth(content, where, "segm", damaged, lvis=lvis)
    left_out = {(record.part, record.index) for record in damaged.records}
    return {
        **content,
        **{
            part: [record for index, record in enumerate(content[part]) if (part, index) not in left_out]
            for part in ("images", "categories", "annotations")
            if part in content
        },
    }


def read_results(
    source: Results,
    truth: GroundTruth,
    iou_type: IoUType,
    *,
    class_agnostic: bool = False,
    damaged: Damaged | None = None,
) -> list[CocoEntry]:
    """Check COCO results and give each an id and an area.

    Args:
        source: the list of results, or the path of its file.
        truth: what they are results for.
        iou_type: "segm" takes masks, and areas from them: the boxes of such results are left out, since pycocotools
            would take the areas from those. "bbox" takes boxes.
        class_agnostic: categories that the ground truth lacks, or none at all, count as any.
        damaged: takes results that are malformed.

    Raises:
        DatasetError: the file cannot be read or something in it is malformed; the message names the places. With
            `damaged`, only where nothing else is left.
    """
    from_file = isinstance(source, str | Path)
    content = read_json(Path(source)) if isinstance(source, str | Path) else source
    where = f"{source}: results" if from_file else "results"
    if not isinstance(content, Sequence) or isinstance(content, str | bytes):
        raise DatasetError(f"{where} must be a list of COCO results, got {shown(content)}: see COCO's results format.")
    results: list[CocoEntry] = []
    broken = Damaged() if damaged is None else damaged
    for index, raw in enumerate(content):
        with broken.isolated("results", index):
            results.append(_result(raw, index, f"{where}[{index}]", truth, iou_type, class_agnostic))
    if damaged is None or not results:
        broken.check_none()
    return results


def _result(
    raw: object, index: int, place: str, truth: GroundTruth, iou_type: IoUType, class_agnostic: bool
) -> CocoEntry:
    image_id = field_of(raw, "image_id", int, place)
    if image_id not in truth.images:
        raise DatasetError(
            f"{place}.image_id {image_id} is not the id of any image of {truth.where}: these are results for "
            "other images, or the image has to be added."
        )
    score = field_of(raw, "score", (int, float), place)
    if not is_number(score):
        raise DatasetError(f"{place}.score must be a finite number, got {shown(score)}: leave such results out.")
    result: CocoEntry = {
        "id": index + 1,
        "image_id": image_id,
        "category_id": _category(raw, place, truth, class_agnostic),
        "iscrowd": 0,
        "score": float(score),
        "area": 0.0,
    }
    if iou_type == "segm":
        result["segmentation"] = _mask_of(raw, place, truth.images[image_id])
        result["area"] = float(coco_mask.area(result["segmentation"]))
    else:
        result["bbox"] = list(bbox_of(raw, place))
        result["area"] = result["bbox"][2] * result["bbox"][3]
    return result


def compressed(segmentation: object, height: int, width: int) -> Rle:
    """Return a segmentation, polygons or RLE of either kind, as a compressed RLE that is safe to give to pycocotools.

    A compressed RLE comes back as it is once its runs are found to be sound, without decoding it.

    Raises:
        DatasetError: damaged, or of another size.
    """
    if isinstance(segmentation, Mapping):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if isinstance(counts, str) and isinstance(size, list | tuple) and list(size) == [height, width]:
            runs = runs_from_compressed(counts)
            if runs.size and runs.min() >= 0 and runs.max() <= height * width and runs.sum() == height * width:
                return {"size": [height, width], "counts": counts}
    return encode_rle(decode_segmentation(segmentation, height, width))


def _annotation(
    raw: object, place: str, images: Mapping[int, tuple[int, int]], categories: Mapping[int, str], iou_type: IoUType
) -> CocoEntry:
    entry = object_at(raw, place)
    image_id = image_id_of(entry, place, images)
    # Boxes alone need no segmentation.
    coco_object = object_of({"segmentation": []} | entry if iou_type == "bbox" else entry, place, categories)
    annotation: CocoEntry = {
        "id": coco_object.annotation_id,
        "image_id": image_id,
        "category_id": coco_object.category_id,
        "bbox": list(coco_object.bbox_xywh),
        "area": coco_object.area,
        "iscrowd": int(coco_object.is_crowd),
    }
    if iou_type == "segm":
        annotation["segmentation"] = _mask_of(entry, place, images[image_id])
        if "area" not in entry:
            annotation["area"] = float(coco_mask.area(annotation["segmentation"]))
    return annotation


def _mask_of(raw: object, place: str, image_hw: tuple[int, int]) -> Rle:
    segmentation = field_of(raw, "segmentation", (list, dict), place)
    try:
        return compressed(segmentation, *image_hw)
    except DatasetError as error:
        raise DatasetError(f"{place}.segmentation: {error}") from error


def _category(raw: object, place: str, truth: GroundTruth, class_agnostic: bool) -> int:
    if class_agnostic:
        category = object_at(raw, place).get("category_id")
        # Known ones are kept: pycocotools breaks ties of the score by category.
        if isinstance(category, int) and category in truth.categories:
            return int(category)
        return next(iter(truth.categories), 1)
    category_id = field_of(raw, "category_id", int, place)
    if category_id not in truth.categories:
        raise DatasetError(
            f"{place}.category_id {category_id} is not the id of any category of {truth.where}: map the detector's "
            "categories to those, or compare without categories (class_agnostic)."
        )
    return category_id
