"""What the built-in weights were trained on (train splits, nothing of validation splits), what not, and its objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import refinesam
from refinesam import EncodedImage, Session
from refinesam.evaluation.dataset import CocoImage, CocoObject, read_coco_folder
from refinesam.masks import decode_segmentation

FIRST_TWELVE = (
    *("dsb2018", "coco_mini_cc", "coco_person_cc", "feral_cats", "mushrooms", "embryos", "facades", "teachers"),
    *("bottles", "seedlings", "emps", "nanoparticles"),
)
TEN_MORE = (
    *("davis16val", "harddrive_parts", "jenga", "nuts_figs", "eggs", "pills", "shrimp", "turtles", "boxes"),
    "powder_sem",
)
NEVER_TRAINED_ON = (
    *("coco_mini_nc", "bsds500", "fashion_ccp", "coelho_nuclei", "wbc", "vnc_em", "monuseg", "brain_mri", "busi"),
)


def encoded_objects(
    session: Session, folder: Path, images: int, objects: int
) -> Iterator[tuple[CocoImage, EncodedImage, CocoObject, np.ndarray]]:
    """The first objects of the first validation images of a source, with their images encoded and their masks."""
    found = read_coco_folder(folder / "instances_val.json", folder / "images").without_crowds()
    for image in found.images[:images]:
        encoded = session.encode(refinesam.read_image(image.path))
        for coco_object in image.objects[:objects]:
            yield image, encoded, coco_object, decode_segmentation(coco_object.segmentation, image.height, image.width)
