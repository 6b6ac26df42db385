"""Annotation files in COCO's format, checked as they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refinesam.errors import DatasetError

__all__ = ["CocoFolder", "CocoImage", "CocoObject", "read_coco_folder"]


@dataclass(frozen=True)
class CocoObject:
    """One annotated object; `bbox_xywh` and `area` in pixels, `segmentation` as polygons or RLE."""

    annotation_id: int
    category_id: int
    segmentation: Any
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
    """The images of one annotation file that have objects, in the file's order, and its category names by id."""

    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]

    def without_crowds(self) -> CocoFolder:
        """Leave crowd regions out, and images that then have no object."""
        images = (replace(i, objects=tuple(o for o in i.objects if not o.is_crowd)) for i in self.images)
        return CocoFolder(tuple(i for i in images if i.objects), self.categories)


def read_coco_folder(annotations: str | Path, images: str | Path) -> CocoFolder:
    """Read an annotation file.

    Checked are the file's structure, numbers, ids and file names. Image files and segmentations are looked at when
    they are used, so that a damaged one costs only itself.

    Args:
        annotations: COCO JSON with images, annotations and (optionally) categories.
        images: folder that holds the files named in it.

    Raises:
        DatasetError: the file is missing, not JSON, or breaks COCO's format; the message names the place.
    """
    annotations, folder = Path(annotations), Path(images)
    content = _read_json(annotations)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise DatasetError(f"{annotations} needs the lists 'images' and 'annotations' at its top, as COCO has them.")
    if not folder.is_dir():
        raise DatasetError(
            f"There is no image folder {folder}. Give the folder that holds the files {annotations} names."
        )
    categories = _categories(content.get("categories", []), annotations)
    found, root = _ById(), folder.resolve()
    for index, raw in enumerate(content["images"]):
        where = f"{annotations}: images[{index}]"
        found.add(_image(raw, where, folder, root), _field(raw, "id", int, where), where)
    records: dict[int, CocoImage] = found.values
    objects: dict[int, list[CocoObject]] = {image_id: [] for image_id in records}
    annotated = _ById()
    for index, raw in enumerate(content["annotations"]):
        where = f"{annotations}: annotations[{index}]"
        image_id = _field(raw, "image_id", int, where)
        if image_id not in objects:
            raise DatasetError(f"{where}.image_id {image_id} is not the id of any of 'images': add it or remove this.")
        coco_object = _object(raw, where, categories)
        annotated.add(coco_object, coco_object.annotation_id, where)
        objects[image_id].append(coco_object)
    return CocoFolder(
        tuple(replace(records[image_id], objects=tuple(its)) for image_id, its in objects.items() if its), categories
    )


class _ById:
    """Values by their ids, none of which may occur twice."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self._places: dict[int, str] = {}

    def add(self, value: Any, number: int, where: str) -> None:
        """Keep a value; raise DatasetError if its id was seen before."""
        if number in self.values:
            raise DatasetError(
                f"{where}.id {number} is also that of {self._places[number]}: each needs an id of its own."
            )
        self.values[number] = value
        self._places[number] = where.rsplit(": ", 1)[-1]


def _read_json(path: Path) -> Any:
    try:
        # Some Windows tools start UTF-8 files with a byte order mark.
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"Cannot read {path}: {error.strerror}. Give the path of a COCO JSON file.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text: {error}. Give a COCO JSON file, saved as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: {error}. Give a COCO JSON file.") from error


def _categories(raw: Any, path: Path) -> Mapping[int, str]:
    if not isinstance(raw, list):
        raise DatasetError(f"{path}: categories must be a list of objects with id and name, got {_shown(raw)}.")
    names = _ById()
    for index, category in enumerate(raw):
        where = f"{path}: categories[{index}]"
        category_id = _field(category, "id", int, where)
        name = _field(category, "name", str, where) if "name" in category else str(category_id)
        names.add(name, category_id, where)
    return names.values


def _field(raw: Any, key: str, kind: type[Any] | tuple[type[Any], ...], where: str) -> Any:
    if not isinstance(raw, dict):
        raise DatasetError(f"{where} must be an object, got {type(raw).__name__}: see COCO's format.")
    value = raw.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        got = _shown(value) if key in raw else "nothing"
        raise DatasetError(f"{where}.{key} must be {wanted}, got {got}: see COCO's format.")
    return value


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold; NaN, infinity and booleans are none."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _object(raw: Any, where: str, categories: Mapping[int, str]) -> CocoObject:
    segmentation = _field(raw, "segmentation", (list, dict), where)
    bbox = _field(raw, "bbox", list, where)
    if len(bbox) != 4 or not all(_is_number(v) for v in bbox) or bbox[2] < 0 or bbox[3] < 0:
        raise DatasetError(
            f"{where}.bbox must be four finite numbers x, y, width, height, the sizes not negative, got {_shown(bbox)}."
        )
    x, y, w, h = (float(v) for v in bbox)
    area = raw.get("area", w * h)
    if not _is_number(area) or area < 0:
        raise DatasetError(f"{where}.area must be a finite number of pixels, 0 or more, got {_shown(area)}.")
    is_crowd = raw.get("iscrowd", 0)
    if not isinstance(is_crowd, int) or is_crowd not in (0, 1):
        raise DatasetError(f"{where}.iscrowd must be 0 or 1, got {_shown(is_crowd)}.")
    annotation_id = _field(raw, "id", int, where)
    if annotation_id < 0:
        raise DatasetError(f"{where}.id must be 0 or more, got {annotation_id}: number the annotations anew.")
    category_id = _field(raw, "category_id", int, where)
    if categories and category_id not in categories:
        raise DatasetError(f"{where}.category_id {category_id} is not the id of any of 'categories': add it there.")
    return CocoObject(annotation_id, category_id, segmentation, (x, y, w, h), float(area), bool(is_crowd))


def _image(raw: Any, where: str, folder: Path, root: Path) -> CocoImage:
    """Check one image; `root` is the folder with its symbolic links resolved."""
    name = _field(raw, "file_name", str, where)
    path = folder / name
    try:
        target = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL character, a lone surrogate
        raise DatasetError(f"{where}.file_name {_shown(name)} is not a file's name: {error}.") from error
    if target == root or not target.is_relative_to(root):
        raise DatasetError(
            f"{where}.file_name {_shown(name)} leads out of the image folder or names none of its files; "
            "name files inside it."
        )
    height, width = (_field(raw, key, int, where) for key in ("height", "width"))
    if height < 1 or width < 1:
        raise DatasetError(f"{where} has height {height} and width {width}; both must be at least 1.")
    return CocoImage(_field(raw, "id", int, where), path, height, width, ())


def _shown(value: object) -> str:
    """Shorten a value for a message; a segmentation has thousands of numbers."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
