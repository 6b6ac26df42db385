"""Formats of pixels: Pascal VOC's segmentation, label images, one PNG a mask."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from refinesam.errors import OutputError
from refinesam.files import writing
from refinesam.jobs.formats.objects import LabeledImage, LabeledObject, NewFolder, Results, relative_name

__all__ = ["write_label_png", "write_label_tiff", "write_label_tiff_16", "write_masks", "write_voc"]

Label = TypeVar("Label", np.uint8, np.uint16, np.uint32)
# Of Pascal VOC's 8-bit PNGs: 0 is the background, 255 void.
MOST_VOC = 254
LABEL_COLUMNS = ("image", "file", "label", "class", "class_id", "score", "predicted_iou", "area")


def write_masks(results: Results, output: Path) -> None:
    """Write an 8-bit PNG a mask, 0 and 255, in a folder an image, named by the object's number and class."""
    folder = NewFolder(output)
    for image in results.images():
        place = folder.place(image, "", "")
        for labeled in image.objects:
            name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in labeled.category.name)
            _write_png(place / f"{labeled.number:04d}_{name}.png", labeled.mask.astype(np.uint8) * np.uint8(255))


def write_label_png(results: Results, output: Path) -> None:
    """Write label images as 16-bit PNG; see `write_label_tiff`."""
    _write_labels(results, output, ".png", np.uint16, _write_png)


def write_label_tiff_16(results: Results, output: Path) -> None:
    """Write label images as 16-bit TIFF; see `write_label_tiff`."""
    _write_labels(results, output, ".tif", np.uint16, _write_tiff)


def write_label_tiff(results: Results, output: Path) -> None:
    """Write a label image an image, 0 for the background, 32-bit TIFF; labels.csv says what each label is.

    An object's label is its number plus 1. Where masks overlap, the smaller one is seen.

    Raises:
        OutputError: an image has more objects than the bits hold.
    """
    _write_labels(results, output, ".tif", np.uint32, _write_tiff)


def _write_labels(
    results: Results, output: Path, suffix: str, dtype: type[Label], write: Callable[[Path, NDArray[Label]], None]
) -> None:
    folder = NewFolder(output)
    rows = []
    for image in results.images():
        place = folder.place(image, "", suffix)
        write(place, _painted(image, lambda labeled: labeled.number + 1, dtype))
        for labeled in image.objects:
            known = {"image": image.name, "file": place.relative_to(output).as_posix(), "label": labeled.number + 1}
            known |= {"class": labeled.category.name, "class_id": labeled.category.id, "score": labeled.score}
            rows.append(known | {"predicted_iou": labeled.predicted_iou, "area": labeled.area})
    with writing(output / "labels.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, LABEL_COLUMNS)
        table.writeheader()
        table.writerows(rows)


def _painted(image: LabeledImage, value: Callable[[LabeledObject], int], dtype: type[Label]) -> NDArray[Label]:
    labels = np.zeros(image.image_hw, dtype)
    most = max((value(labeled) for labeled in image.objects), default=0)
    if most > np.iinfo(dtype).max:
        raise OutputError(f"{image.name} has label {most}, {labels.dtype} ends before: take labels-tiff, of 32 bits.")
    for labeled in image.largest_first:
        labels[labeled.mask] = value(labeled)
    return labels


def write_voc(results: Results, output: Path) -> None:
    """Write Pascal VOC's folders: Annotations, SegmentationClass, SegmentationObject, ImageSets, and labels.txt.

    A class's value is its line in labels.txt, from 1. Where masks overlap, the smaller one is seen: the format has one
    object a pixel. VOC's ring of "void" around objects is not drawn.

    Raises:
        OutputError: more than 254 classes, or objects in an image.
    """
    if len(results.categories) > MOST_VOC:
        raise OutputError(f"There are {len(results.categories)} classes, Pascal VOC holds {MOST_VOC}: take COCO.")
    folder = NewFolder(output)
    names = []
    for image in results.images():
        if any(labeled.number >= MOST_VOC for labeled in image.objects):
            raise OutputError(f"{image.name} has more than {MOST_VOC} objects, Pascal VOC's limit: take labels-png.")
        by_kind = {"Class": lambda labeled: labeled.category.index + 1, "Object": lambda labeled: labeled.number + 1}
        for kind, value in by_kind.items():
            _write_png(folder.place(image, f"Segmentation{kind}", ".png"), _painted(image, value, np.uint8), _palette())
        with writing(folder.place(image, "Annotations", ".xml")) as temporary:
            ElementTree.ElementTree(_voc_annotation(image)).write(temporary, encoding="utf-8")
        names.append(relative_name(image.name).with_suffix("").as_posix())
    _write_lines(output / "ImageSets" / "Segmentation" / "all.txt", names)
    _write_lines(output / "labels.txt", [category.name for category in results.categories])


def _voc_annotation(image: LabeledImage) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    path = relative_name(image.name)
    _add(root, folder=str(path.parent), filename=path.name)
    _add(ElementTree.SubElement(root, "size"), width=image.image_hw[1], height=image.image_hw[0], depth=3)
    _add(root, segmented=1)
    for labeled in image.objects:
        x0, y0, x1, y1 = (int(side) for side in labeled.box)
        element = ElementTree.SubElement(root, "object")
        _add(element, name=labeled.category.name, pose="Unspecified", truncated=0, difficult=0)
        # Pixels from 1, both corners inside.
        _add(ElementTree.SubElement(element, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
    return root


def _add(parent: ElementTree.Element, **texts: object) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def _palette() -> list[int]:
    """Return Pascal VOC's colours: the bits of a number, dealt out to red, green and blue from the highest on."""
    colors = []
    for number in range(256):
        for shift in range(3):
            colors.append(sum(((number >> (3 * bit + shift)) & 1) << (7 - bit) for bit in range(8)))
    return colors


def _write_lines(path: Path, lines: list[str]) -> None:
    with writing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_png(path: Path, pixels: NDArray[Label], palette: list[int] | None = None) -> None:
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    with writing(path) as temporary:
        image.save(temporary, format="PNG")


def _write_tiff(path: Path, pixels: NDArray[Label]) -> None:
    with writing(path) as temporary:
        tifffile.imwrite(temporary, pixels, compression="zlib")
