"""YOLO's segmentation format: a text file an image, a line an object."""

from __future__ import annotations

import json
from pathlib import Path

from refinesam.files import writing
from refinesam.jobs.formats.objects import LabeledImage, LabeledObject, NewFolder, Results
from refinesam.jobs.formats.outlines import yolo_outline

__all__ = ["write_yolo"]


def write_yolo(results: Results, output: Path) -> None:
    """Write labels/NAME.txt an image, with a line "class x y x y ..." an object, and data.yaml.

    Outlines run through pixels' centres, in parts of the image's width and height. See `yolo_outline` for what one
    outline can hold.
    """
    folder = NewFolder(output)
    for image in results.images():
        with writing(folder.place(image, "labels", ".txt")) as temporary:
            temporary.write_text("".join(_line(labeled, image) for labeled in image.objects), encoding="utf-8")
    # JSON's strings are YAML's, too.
    names = "".join(f"  {category.index}: {json.dumps(category.name)}\n" for category in results.categories)
    with writing(output / "data.yaml") as temporary:
        temporary.write_text(f"path: .\ntrain: images\nval: images\nnames:\n{names}", encoding="utf-8")


def _line(labeled: LabeledObject, image: LabeledImage) -> str:
    height, width = image.image_hw
    points = ((yolo_outline(labeled.mask) + 0.5) / (width, height)).ravel().tolist()
    return f"{labeled.category.index} {' '.join(f'{value:.7g}' for value in points)}\n"
