"""Masks and their other forms: COCO RLE, polygons with holes, XYXY boxes, scores, and what compares them.

A mask is (H, W) bool. Polygons and boxes lie on pixel edges, in the frame of `refinesam.types`: pixel (x, y) covers
[x, x + 1) x [y, y + 1). So a single pixel is a unit square, a polygon's area is its pixel count, and masks survive the
way to polygons and back exactly, whatever their holes or width. COCO's own rasteriser shares this frame.

Arrays that are no masks raise ImageError; RLE, polygons and boxes that are malformed raise DatasetError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

from refinesam.errors import DatasetError, ImageError
from refinesam.files import JsonObject
from refinesam.rle import Rle, checked_mask, checked_size, decode_rle, encode_rle, runs_from_compressed, shown
from refinesam.types import BoolArray, FloatArray

__all__ = [
    "Polygon",
    "Rle",
    "box_from_mask",
    "box_iou",
    "coco_annotation",
    "coco_document",
    "decode_rle",
    "decode_segmentation",
    "encode_rle",
    "mask_from_polygons",
    "mask_iou",
    "polygons_from_mask",
]

# A longer outline would exhaust memory before anything looks wrong.
MAX_OUTLINE_PIXELS = 2**24


@dataclass(frozen=True, eq=False)
class Polygon:
    """One connected area: an outline and the outlines of its holes.

    Rings are closed without repeating the first vertex, hold pixel-edge (x, y), and are filled by the even-odd rule. A
    ring made from a mask may touch itself at a vertex, where two pixels meet by their corners only.

    Attributes:
        exterior: (N, 2) float64, N >= 3.
        holes: rings of shape (M, 2) float64, M >= 3.
    """

    exterior: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...] = ()


def decode_segmentation(segmentation: object, height: int, width: int) -> BoolArray:
    """Decode a COCO annotation's segmentation, polygons or RLE of either kind, to (height, width) bool.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...], whose union is the mask, or an RLE.
        height: the image's height in pixels.
        width: the image's width in pixels.

    Raises:
        DatasetError: anything else, or an RLE of another size.
    """
    if isinstance(segmentation, Mapping):
        mask = decode_rle(segmentation)
        if mask.shape != (height, width):
            raise DatasetError(
                f"The RLE's size is {mask.shape} (height, width) but the image's is {(height, width)}: "
                "check the annotation's image_id, or resize the image to what was annotated."
            )
        return mask
    if not isinstance(segmentation, list | tuple) or not segmentation:
        raise DatasetError(
            f"A segmentation is a non-empty list of polygons or an RLE, got {shown(segmentation)}: remove the "
            "annotation or annotate it again."
        )
    return mask_from_polygons([Polygon(_flat_ring(ring)) for ring in segmentation], checked_size((height, width)))


def polygons_from_mask(mask: ArrayLike) -> list[Polygon]:
    """Return the outlines of a mask's 8-connected components, exactly along the pixels' edges.

    `mask_from_polygons` gives back the same mask. The contours are those of OpenCV (Suzuki and Abe 1985), which run
    through pixel centres and cut corners; so they are taken on a grid twice as fine, whose even points are the pixels'
    corners, and the corners are put back.

    Raises:
        ImageError: not a mask: another shape, no pixels, or values other than 0 and 1.

    >>> polygons_from_mask([[0, 0], [0, 1]])[0].exterior.tolist()
    [[1.0, 1.0], [1.0, 2.0], [2.0, 2.0], [2.0, 1.0]]
    """
    array = checked_mask(mask)
    box = box_from_mask(array)
    if box is None:
        return []
    x0, y0, x1, y1 = box.astype(int).tolist()
    contours, hierarchy = cv2.findContours(_corner_grid(array[y0:y1, x0:x1]), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_edge_ring(contour[:, 0]) + (x0, y0) for contour in contours]
    parents = hierarchy[0, :, 3].tolist()
    holes: dict[int, list[NDArray[np.float64]]] = {index: [] for index, parent in enumerate(parents) if parent < 0}
    for ring, parent in zip(rings, parents, strict=True):
        if parent >= 0:
            holes[parent].append(ring)
    return [Polygon(rings[index], tuple(inner)) for index, inner in holes.items()]


def mask_from_polygons(polygons: Iterable[Polygon], image_hw: tuple[int, int]) -> BoolArray:
    """Return the union of polygons as (H, W) bool, filled as COCO's own tools fill them.

    Args:
        polygons: pixel-edge polygons, which may reach up to one image size over the border.
        image_hw: height and width in pixels.

    Raises:
        DatasetError: a ring of fewer than three points, not finite, far outside the image or absurdly long.
    """
    result = np.zeros(checked_size(image_hw), np.bool_)
    for polygon in polygons:
        exterior, *holes = (_checked_ring(ring, image_hw) for ring in (polygon.exterior, *polygon.holes))
        left, right = _columns(exterior, result.shape[1])
        area = _filled(exterior, image_hw, left, right)
        for hole in holes:
            start, stop = np.clip(_columns(hole, result.shape[1]), left, right)
            area[:, start - left : stop - left] &= ~_filled(hole, image_hw, start, stop)
        result[:, left:right] |= area
    return result


def _corner_grid(mask: BoolArray) -> NDArray[np.uint8]:
    """Mark every pixel's closed square on a grid of half pixels: corners at even points, inner points odd."""
    height, width = mask.shape
    grid = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    for dy in range(3):
        for dx in range(3):
            grid[dy : dy + 2 * height : 2, dx : dx + 2 * width : 2] |= mask
    return grid


def _edge_ring(contour: NDArray[Any]) -> NDArray[np.float64]:
    """Turn a contour on the grid of half pixels into a ring of pixel corners.

    Where the outline turns inwards the contour steps diagonally past the corner. Both ends of such a step have one odd
    coordinate, so they are no corners themselves, and the corner is made of the two even ones.
    """
    following = np.roll(contour, -1, axis=0)
    diagonal = (contour != following).all(axis=1)
    skipped = np.where(contour % 2 == 0, contour, following)
    points = np.stack([contour, skipped], axis=1).reshape(-1, 2)
    kept = np.stack([(contour % 2 == 0).all(axis=1), diagonal], axis=1).reshape(-1)
    corners: NDArray[np.float64] = points[kept] / 2
    return corners


def _flat_ring(ring: object) -> NDArray[np.float64]:
    """Turn COCO's [x0, y0, x1, y1, ...] into a ring."""
    try:
        array = np.asarray(ring if isinstance(ring, list | tuple | np.ndarray) else None)
    except ValueError:
        array = np.asarray(None)
    if array.ndim != 1 or array.dtype.kind not in "iuf" or array.size < 6 or array.size % 2:
        raise DatasetError(
            f"A polygon is a flat list of at least three x, y pairs, got {shown(ring)}: write a segmentation as a "
            "list of such lists, [[x0, y0, x1, y1, x2, y2, ...]]."
        )
    vertices: NDArray[np.float64] = array.reshape(-1, 2).astype(np.float64)
    return vertices


def _checked_ring(ring: NDArray[np.float64], image_hw: tuple[int, int]) -> NDArray[np.float64]:
    points = np.asarray(ring, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise DatasetError(f"A polygon's ring needs shape (N, 2), N >= 3, got {points.shape}: give (x, y) vertices.")
    if not np.isfinite(points).all():
        raise DatasetError("A polygon holds NaN or infinity: every vertex must be a finite (x, y), remove others.")
    height, width = image_hw
    low, high = points.min(axis=0), points.max(axis=0)
    if low[0] < -width or low[1] < -height or high[0] > 2 * width or high[1] > 2 * height:
        raise DatasetError(
            f"A polygon from {low.tolist()} to {high.tolist()} lies far outside the image (width {width}, height "
            f"{height}): vertices are (x, y) in pixels, check their order, scale and image."
        )
    length = float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
    if length > MAX_OUTLINE_PIXELS:
        raise DatasetError(f"A polygon's outline is {length:.0f} pixels long: simplify it, or store the mask as RLE.")
    return points


def _columns(ring: NDArray[np.float64], width: int) -> tuple[int, int]:
    """Return the range of image columns that a ring can touch."""
    left, right = np.clip([np.floor(ring[:, 0].min()), np.ceil(ring[:, 0].max()) + 1], 0, width)
    return int(left), int(right)


def _filled(ring: NDArray[np.float64], image_hw: tuple[int, int], left: int, right: int) -> BoolArray:
    """Return the (H, right - left) part of a filled ring.

    The outline is rasterised in the whole image's frame, since elsewhere it is rounded differently; that costs only
    its length. The area is then expanded for the ring's own columns, so thousands of specks stay cheap.
    """
    encoded = coco_mask.frPyObjects([ring.ravel().tolist()], *image_hw)
    ends = np.cumsum(runs_from_compressed(encoded[0]["counts"]))
    ends = np.clip(ends, left * image_hw[0], right * image_hw[0]) - left * image_hw[0]
    values = np.arange(len(ends)) % 2 == 1
    return np.repeat(values, np.diff(ends, prepend=0)).reshape(right - left, image_hw[0]).T


def box_from_mask(mask: ArrayLike) -> FloatArray | None:
    """Return the (4,) float32 XYXY box around a mask's pixels, on pixel edges, or None for an empty mask.

    Raises:
        ImageError: not a mask: another shape, no pixels, or values other than 0 and 1.

    >>> box_from_mask([[0, 0, 0], [0, 0, 1]]).tolist()
    [2.0, 1.0, 3.0, 2.0]
    """
    array = checked_mask(mask)
    rows, columns = np.flatnonzero(array.any(axis=1)), np.flatnonzero(array.any(axis=0))
    if not rows.size:
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def mask_iou(a: ArrayLike, b: ArrayLike) -> float:
    """Return the intersection over union of two (H, W) masks; 0 where both are empty.

    Two empty masks score 0, as everywhere in this module: a prediction that found nothing must never count as a hit.

    Raises:
        ImageError: not masks, or of different shapes.
    """
    first, second = checked_mask(a), checked_mask(b)
    if first.shape != second.shape:
        raise ImageError(f"Masks of shapes {first.shape} and {second.shape} cannot be compared: resize one of them.")
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 0.0


def box_iou(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return the (N, M) intersections over unions of (N, 4) and (M, 4) XYXY boxes; 0 where a union has no area.

    Raises:
        DatasetError: not boxes of shape (N, 4), or not finite.
    """
    first, second = _boxes(a), _boxes(b)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    union = _box_areas(first)[:, None] + _box_areas(second)[None] - intersection
    ious: NDArray[np.float64] = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return ious


def _box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1))


def _boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    try:
        array: NDArray[np.float64] = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"Boxes must be numbers ({error}): give (N, 4) XYXY.") from error
    array = array.reshape(0, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise DatasetError(f"Boxes need shape (N, 4), x0, y0, x1, y1 each, got {array.shape}: write one box as [box].")
    if not np.isfinite(array).all():
        raise DatasetError("Boxes hold NaN or infinity: remove those boxes first.")
    return array


def coco_annotation(
    mask: ArrayLike, image_id: int, category_id: int, annotation_id: int, score: float | None = None
) -> JsonObject:
    """Return a mask as a COCO annotation (with a score, as a COCO result) of plain Python values.

    The box is COCO's [x, y, width, height] in pixels, all 0 for an empty mask.

    Raises:
        ImageError: not a mask: another shape, no pixels, or values other than 0 and 1.
    """
    array = checked_mask(mask)
    box = box_from_mask(array)
    x0, y0, x1, y1 = [0.0] * 4 if box is None else box.tolist()
    annotation: JsonObject = {
        "id": int(annotation_id),
        "image_id": int(image_id),
        "category_id": int(category_id),
        "segmentation": encode_rle(array),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(np.count_nonzero(array)),
        "iscrowd": 0,
    }
    if score is not None:
        annotation["score"] = float(score)
    return annotation


def coco_document(
    images: Mapping[str, tuple[tuple[int, int], Iterable[tuple[ArrayLike, float | None]]]],
) -> JsonObject:
    """Return masks of several images as a COCO document with one category, "object".

    Args:
        images: file name -> ((height, width), masks with their scores).
    """
    annotations: list[JsonObject] = []
    listed = []
    for image_id, (name, ((height, width), masks)) in enumerate(images.items(), start=1):
        listed.append({"id": image_id, "file_name": name, "height": int(height), "width": int(width)})
        for mask, score in masks:
            annotations.append(coco_annotation(mask, image_id, 1, len(annotations) + 1, score))
    return {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
