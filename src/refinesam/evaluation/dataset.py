"""Annotation files in COCO's format, checked as they are read."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from refinesam.errors import DatasetError
from refinesam.evaluation.json_fields import (
    ById,
    Damaged,
    DamagedRecord,
    bbox_of,
    field_of,
    is_number,
    object_at,
    read_json,
)
from refinesam.evaluation.lvis_fields import check_listed, frequencies_of
from refinesam.files import JsonObject
from refinesam.rle import shown

__all__ = [
    "CocoFolder",
    "CocoImage",
    "CocoObject",
    "categories_of",
    "checked_lists",
    "image_id_of",
    "object_of",
    "read_coco_folder",
]


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoObject:
    """One annotated object; `bbox_xywh` and `area` in pixels, `segmentation` as polygons or RLE."""

    annotation_id: int
    category_id: int
    segmentation: object
    bbox_xywh: tuple[float, float, float, float]
    area: float
    is_crowd: bool


@dataclass(frozen=True)
class CocoImage:
    """One image and its objects."""

    image_id: int
    path: Path
    height: int
    width: int
    objects: tuple[CocoObject, ...]


@dataclass(frozen=True)
class CocoFolder:
    """The images of one annotation file, in its order, its category names by id, and the records that are damaged."""

    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    damaged: tuple[DamagedRecord, ...] = ()

    def without_crowds(self) -> CocoFolder:
        """Leave crowd regions out, and images that then have no object."""
        images = (replace(i, objects=tuple(o for o in i.objects if not o.is_crowd)) for i in self.images)
        return replace(self, images=tuple(i for i in images if i.objects))


def read_coco_folder(
    annotations: str | Path, images: str | Path, *, keep_empty: bool = False, lvis: bool = False
) -> CocoFolder:
    """Read an annotation file.

    Checked are the file's structure, numbers, ids and file names. A record that breaks the format costs itself and
    what refers to it; the result lists them all, and a logged warning counts them. Image files and segmentations are
    looked at when they are used, so that a damaged one costs only itself.

    Args:
        annotations: COCO JSON with images, annotations and (optionally) categories.
        images: folder that holds the files named in it. LVIS names none; there it is the last parts of `coco_url`,
            with the split's folder or without.
        keep_empty: keep images without objects, too: a detector can find something in them.
        lvis: check what LVIS' rules need besides: the frequency of every category, and the lists of categories in
            every image.

    Raises:
        DatasetError: the file is missing, not JSON, lacks a list of COCO's format or LVIS' frequencies, or holds
            damaged records alone; the message names the place.
    """
    annotations, folder = Path(annotations), Path(images)
    content = checked_lists(read_json(annotations), str(annotations))
    if not folder.is_dir():
        raise DatasetError(
            f"There is no image folder {folder}. Give the folder that holds the files {annotations} names."
        )
    damaged = Damaged()
    categories = categories_of(content.get("categories", []), str(annotations), damaged)
    if lvis:
        frequencies_of(content, str(annotations))
    records, root = ById[CocoImage](), folder.resolve()
    for index, raw in enumerate(content["images"]):
        where = f"{annotations}: images[{index}]"
        with damaged.isolated("images", index):
            if lvis:
                check_listed(raw, where, categories)
            records.add(_image(raw, where, folder, root), field_of(raw, "id", int, where), where)
    objects = _objects_by_image(content["annotations"], str(annotations), records.values, categories, damaged)
    kept = [replace(records.values[number], objects=tuple(its)) for number, its in objects.items() if its or keep_empty]
    if not kept:
        damaged.check_none()
    if damaged.records:
        _logger.warning("Left out of %s: %s.", annotations, damaged)
    return CocoFolder(tuple(kept), categories, tuple(damaged.records))


def _objects_by_image(
    annotations: list[object], where: str, images: Collection[int], categories: Mapping[int, str], damaged: Damaged
) -> dict[int, list[CocoObject]]:
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in images}
    annotated = ById[CocoObject]()
    for index, raw in enumerate(annotations):
        place = f"{where}: annotations[{index}]"
        with damaged.isolated("annotations", index):
            image_id = image_id_of(raw, place, objects)
            coco_object = object_of(raw, place, categories)
            annotated.add(coco_object, coco_object.annotation_id, place)
            objects[image_id].append(coco_object)
    return objects


def checked_lists(content: object, where: str) -> JsonObject:
    """Return a COCO document's content, or raise DatasetError unless it holds the lists that every one holds."""
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise DatasetError(f"{where} needs the lists 'images' and 'annotations' at its top, as COCO has them.")
    return content


def categories_of(raw: object, where: str, damaged: Damaged | None = None) -> Mapping[int, str]:
    """Read a document's list of categories: names by id, the id itself where there is no name.

    Args:
        raw: the list.
        where: with which messages start.
        damaged: takes categories that are malformed.

    Raises:
        DatasetError: no list; or, without `damaged`, malformed categories.
    """
    if not isinstance(raw, list):
        raise DatasetError(f"{where}: categories must be a list of objects with id and name, got {shown(raw)}.")
    names, broken = ById[str](), Damaged() if damaged is None else damaged
    for index, category in enumerate(raw):
        place = f"{where}: categories[{index}]"
        with broken.isolated("categories", index):
            category_id = field_of(category, "id", int, place)
            name = field_of(category, "name", str, place) if "name" in category else str(category_id)
            names.add(name, category_id, place)
    if damaged is None:
        broken.check_none()
    return names.values


def image_id_of(raw: object, where: str, known: Collection[int]) -> int:
    """Return an annotation's image_id; DatasetError unless it is the id of a known image."""
    image_id = field_of(raw, "image_id", int, where)
    if image_id not in known:
        raise DatasetError(f"{where}.image_id {image_id} is not the id of any of 'images': add it or remove this.")
    return image_id


def object_of(raw: object, where: str, categories: Mapping[int, str]) -> CocoObject:
    """Check one annotation.

    Raises:
        DatasetError: something in it breaks COCO's format; the message starts with `where`.
    """
    segmentation = field_of(raw, "segmentation", (list, dict), where)
    x, y, w, h = bbox_of(raw, where)
    entry = object_at(raw, where)
    area = entry.get("area", w * h)
    if not is_number(area) or area < 0:
        raise DatasetError(f"{where}.area must be a finite number of pixels, 0 or more, got {shown(area)}.")
    is_crowd = entry.get("iscrowd", 0)
    if not isinstance(is_crowd, int) or is_crowd not in (0, 1):
        raise DatasetError(f"{where}.iscrowd must be 0 or 1, got {shown(is_crowd)}.")
    annotation_id = field_of(raw, "id", int, where)
    if annotation_id < 0:
        raise DatasetError(f"{where}.id must be 0 or more, got {annotation_id}: number the annotations anew.")
    category_id = field_of(raw, "category_id", int, where)
    if categories and category_id not in categories:
        raise DatasetError(f"{where}.category_id {category_id} is not the id of any of 'categories': add it there.")
    return CocoObject(annotation_id, category_id, segmentation, (x, y, w, h), float(area), bool(is_crowd))


def _file_name(raw: object, where: str, folder: Path) -> str:
    if isinstance(raw, dict) and "file_name" not in raw and isinstance(raw.get("coco_url"), str):
        rest, _, name = raw["coco_url"].rpartition("/")
        split = rest.rpartition("/")[2]
        return f"{split}/{name}" if split and (folder / split).is_dir() else name
    return field_of(raw, "file_name", str, where)


def _image(raw: object, where: str, folder: Path, root: Path) -> CocoImage:
    """Check one image; `root` is the folder with its symbolic links resolved."""
    name = _file_name(raw, where, folder)
    path = folder / name
    try:
        target = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character, a lone surrogate
        raise DatasetError(f"{where}.file_name {shown(name)} is not a file's name: {error}.") from error
    if target == root or not target.is_relative_to(root):
        raise DatasetError(
            f"{where}.file_name {shown(name)} leads out of the image folder or names none of its files; "
            "name files inside it."
        )
    height, width = (field_of(raw, key, int, where) for key in ("height", "width"))
    if height < 1 or width < 1:
        raise DatasetError(f"{where} has height {height} and width {width}; both must be at least 1.")
    return CocoImage(field_of(raw, "id", int, where), path, height, width, ())
