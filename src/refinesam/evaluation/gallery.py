"""Pictures of single objects for reports: the ground truth, the first mask, the refined one."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refinesam.errors import DatasetError, ImageError
from refinesam.evaluation.dataset import CocoFolder, CocoImage, CocoObject
from refinesam.evaluation.image_run import pixels_of
from refinesam.evaluation.metrics import CHANGE_THRESHOLD
from refinesam.evaluation.report import Evaluation, ObjectRecord
from refinesam.masks import decode_rle, decode_segmentation
from refinesam.overlay import draw_mask
from refinesam.rle import Rle

__all__ = ["Gallery", "ObjectPicture", "galleries"]

# Longer side of one panel in pixels.
PANEL = 260
FIRST_COLOR = (30, 144, 255)
REFINED_COLOR = (236, 64, 222)
TRUTH_COLOR = (255, 255, 255)


@dataclass(frozen=True)
class ObjectPicture:
    """One object.

    Attributes:
        jpeg: as a data URI.
        caption: what it is and how good.
    """

    jpeg: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures that belong together."""

    title: str
    pictures: tuple[ObjectPicture, ...]


def galleries(evaluation: Evaluation, folder: CocoFolder, most: int = 12) -> list[Gallery]:
    """Return pictures of the worst objects, and with refinement of those that it helped and hurt most.

    Args:
        evaluation: made with `keep_masks`; objects without a mask, and images that are gone, are left out.
        folder: its images and ground truth.
        most: pictures a gallery.
    """
    shown = [record for record in evaluation.records if record.mask is not None]
    changed = [(record.refined.iou - record.iou, record) for record in shown if record.refined is not None]
    worst = sorted(shown, key=lambda record: record.refined.iou if record.refined else record.iou)
    helped = [r for change, r in sorted(changed, key=lambda pair: -pair[0]) if change > CHANGE_THRESHOLD]
    hurt = [r for change, r in sorted(changed, key=lambda pair: pair[0]) if change < -CHANGE_THRESHOLD]
    titled = (("Worst", worst), ("Most improved by AMR", helped), ("Most harmed by AMR", hurt))
    made = [Gallery(title, _pictures(records[:most], folder)) for title, records in titled]
    return [gallery for gallery in made if gallery.pictures]


def _pictures(records: Sequence[ObjectRecord], folder: CocoFolder) -> tuple[ObjectPicture, ...]:
    images = {image.image_id: image for image in folder.images}
    pictures = []
    for record in records:
        image = images[record.image_id]
        annotated = next(
            coco_object for coco_object in image.objects if coco_object.annotation_id == record.annotation_id
        )
        try:
            panels = _panels(record, image, annotated)
        except (ImageError, DatasetError):
            continue
        category = folder.categories.get(record.category_id, str(record.category_id))
        iou = f"IoU {record.iou:.2f}"
        if record.refined is not None:
            iou += f" → {record.refined.iou:.2f} ({record.refined.strategy}, kept {record.refined.kept})"
        caption = f"{image.path.name}, {category}, annotation {record.annotation_id}: {iou}"
        pictures.append(ObjectPicture(_jpeg(panels), caption))
    return tuple(pictures)


def _panels(record: ObjectRecord, image: CocoImage, annotated: CocoObject) -> NDArray[np.uint8]:
    pixels = pixels_of(image)
    truth = decode_segmentation(annotated.segmentation, image.height, image.width)
    drawn: list[tuple[Rle | None, tuple[int, int, int]]] = [(record.mask, FIRST_COLOR)]
    if record.refined is not None:
        drawn.append((record.refined.mask, REFINED_COLOR))
    masks = [(decode_rle(rle), color) for rle, color in drawn if rle is not None]
    # The window of the object, with room around; a mask that spills over the whole image doesn't make it small.
    x, y, width, height = cv2.boundingRect(truth.view(np.uint8))
    room = max(16, round(0.5 * max(width, height)))
    window = np.s_[max(0, y - room) : y + height + room, max(0, x - room) : x + width + room]
    scale = PANEL / max(pixels[window].shape[:2])
    size = tuple(max(1, round(side * scale)) for side in pixels[window].shape[1::-1])
    large = np.asarray(cv2.resize(pixels[window], size, interpolation=cv2.INTER_LINEAR), np.uint8)
    outline = _enlarged(truth[window], size)
    panels = []
    for mask, color in masks:
        panel = draw_mask(large, _enlarged(mask[window], size), color)
        contours, _ = cv2.findContours(outline.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(panel, contours, -1, TRUTH_COLOR, 1, cv2.LINE_AA)
        panels.append(panel)
    return np.concatenate(panels, axis=1)


def _enlarged(mask: NDArray[np.bool_], size: tuple[int, ...]) -> NDArray[np.bool_]:
    return np.asarray(cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0)


def _jpeg(picture: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
