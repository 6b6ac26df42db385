"""COCO ground truth and results in the form that pycocotools takes, checked first: its C code trusts what it is given.

Results are a JSON list of {"image_id", "category_id", "score", "segmentation" or "bbox"}, as COCO's evaluation server
takes them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pycocotools import mask as coco_mask

from refinesam.errors import ConfigError, DatasetError
from refinesam.evaluation.dataset import categories_of, checked_lists, image_id_of, object_of
from refinesam.evaluation.json_fields import ById, Damaged, bbox_of, field_of, is_number, read_json
from refinesam.evaluation.lvis_fields import check_listed, frequencies_of
from refinesam.masks import decode_segmentation
from refinesam.rle import Rle, encode_rle, runs_from_compressed, shown

__all__ = [
    "GroundTruth",
    "IoUType",
    "checked_ground_truth",
    "compressed",
    "load_document",
    "read_ground_truth",
    "read_results",
    "restricted",
    "without_damaged",
]

IoUType = Literal["segm", "bbox"]


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
    annotations: Sequence[dict[str, Any]]
    where: str


def read_ground_truth(source: Mapping[str, Any] | str | Path, iou_type: IoUType) -> GroundTruth:
    """Check a COCO document.

    Args:
        source: its content, or the path of its file.
        iou_type: "segm" needs masks of the right size; "bbox" does without segmentations.

    Raises:
        DatasetError: the file cannot be read or the document breaks COCO's format; the message names the place.
        ConfigError: an unknown `iou_type`.
    """
    return checked_ground_truth(*load_document(source), iou_type)


def load_document(source: object) -> tuple[dict[str, Any], str]:
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
    content: dict[str, Any], where: str, iou_type: IoUType, damaged: Damaged | None = None, *, lvis: bool = False
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
    images, broken = ById(), Damaged() if damaged is None else damaged
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
    seen, annotations = ById(), []
    for index, raw in enumerate(content["annotations"]):
        place = f"{where}: annotations[{index}]"
        with broken.isolated("annotations", index):
            annotation = _annotation(raw, place, images.values, categories, iou_type)
            seen.add(annotation, annotation["id"], place)
            annotations.append(annotation | {"id": index + 1})
    if damaged is None:
        broken.check_none()
    # COCO's files name their categories; those of other tools may not.
    named = categories or {annotation["category_id"]: str(annotation["category_id"]) for annotation in annotations}
    return GroundTruth(images.values, named, annotations, where)


def restricted(source: Mapping[str, Any] | str | Path, images: Collection[int]) -> dict[str, Any]:
    """Return a COCO document of some images only.

    Args:
        source: the content, or the path of the file. Entries without a whole id stay, for the checks to name.
        images: ids of the images that stay, with their annotations.

    Raises:
        DatasetError: the file cannot be read, or it holds no COCO document.
    """
    content, _ = load_document(source)

    def stays(entry: Any, key: str) -> bool:
        number = entry.get(key) if isinstance(entry, dict) else None
        return not isinstance(number, int) or number in images

    return {
        **content,
        "images": [image for image in content["images"] if stays(image, "id")],
        "annotations": [annotation for annotation in content["annotations"] if stays(annotation, "image_id")],
    }


def without_damaged(content: dict[str, Any], where: str = "the ground truth", *, lvis: bool = False) -> dict[str, Any]:
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
    source: Sequence[dict[str, Any]] | str | Path,
    truth: GroundTruth,
    iou_type: IoUType,
    *,
    class_agnostic: bool = False,
    damaged: Damaged | None = None,
) -> list[dict[str, Any]]:
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
    results: list[dict[str, Any]] = []
    broken = Damaged() if damaged is None else damaged
    for index, raw in enumerate(content):
        with broken.isolated("results", index):
            results.append({"id": index + 1, **_result(raw, f"{where}[{index}]", truth, iou_type, class_agnostic)})
    if damaged is None or not results:
        broken.check_none()
    return results


def _result(raw: Any, place: str, truth: GroundTruth, iou_type: IoUType, class_agnostic: bool) -> dict[str, Any]:
    image_id = field_of(raw, "image_id", int, place)
    if image_id not in truth.images:
        raise DatasetError(
            f"{place}.image_id {image_id} is not the id of any image of {truth.where}: these are results for "
            "other images, or the image has to be added."
        )
    result = {"image_id": image_id, "iscrowd": 0, "score": _score(raw, place)}
    result["category_id"] = _category(raw, place, truth, class_agnostic)
    if iou_type == "segm":
        rle = _mask_of(raw, place, truth.images[image_id])
        return result | {"segmentation": rle, "area": float(coco_mask.area(rle))}
    box = bbox_of(raw, place)
    return result | {"bbox": list(box), "area": box[2] * box[3]}


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
    raw: Any, place: str, images: Mapping[int, tuple[int, int]], categories: Mapping[int, str], iou_type: IoUType
) -> dict[str, Any]:
    image_id = image_id_of(raw, place, images)
    # Boxes alone need no segmentation.
    coco_object = object_of({"segmentation": []} | raw if iou_type == "bbox" else raw, place, categories)
    annotation = {
        "id": coco_object.annotation_id,
        "image_id": image_id,
        "category_id": coco_object.category_id,
        "bbox": list(coco_object.bbox_xywh),
        "area": coco_object.area,
        "iscrowd": int(coco_object.is_crowd),
    }
    if iou_type == "segm":
        annotation["segmentation"] = _mask_of(raw, place, images[image_id])
        if "area" not in raw:
            annotation["area"] = float(coco_mask.area(annotation["segmentation"]))
    return annotation


def _mask_of(raw: Any, place: str, image_hw: tuple[int, int]) -> Rle:
    segmentation = field_of(raw, "segmentation", (list, dict), place)
    try:
        return compressed(segmentation, *image_hw)
    except DatasetError as error:
        raise DatasetError(f"{place}.segmentation: {error}") from error


def _score(raw: Any, place: str) -> float:
    score = field_of(raw, "score", (int, float), place)
    if not is_number(score):
        raise DatasetError(f"{place}.score must be a finite number, got {shown(score)}: leave such results out.")
    return float(score)


def _category(raw: Any, place: str, truth: GroundTruth, class_agnostic: bool) -> int:
    if class_agnostic:
        category = raw.get("category_id")
        # Known ones are kept: pycocotools breaks ties of the score by category.
        known = isinstance(category, int) and category in truth.categories
        return int(category) if known else next(iter(truth.categories), 1)
    category_id: int = field_of(raw, "category_id", int, place)
    if category_id not in truth.categories:
        raise DatasetError(
            f"{place}.category_id {category_id} is not the id of any category of {truth.where}: map the detector's "
            "categories to those, or compare without categories (class_agnostic)."
        )
    return category_id
