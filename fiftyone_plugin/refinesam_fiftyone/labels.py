"""FiftyOne's labels <-> the core's prompts and masks, in image pixels. Nothing here touches a database.

FiftyOne keeps boxes as [x, y, width, height] and points as (x, y), each relative to the image; a Detection's mask is
the part of the image's mask that lies in its box.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import fiftyone as fo
import numpy as np
from fiftyone.utils.image import read as read_file
from numpy.typing import NDArray

from refinesam import ImageError, Prompt, PromptError
from refinesam.hosts import replacing

__all__ = [
    "NOT_SEEN",
    "SIGNS",
    "detection_from_mask",
    "holes_in",
    "keypoint_from_points",
    "label_id",
    "mask_from_detection",
    "placed_mask",
    "prompt_from_box",
    "prompt_from_keypoint",
    "write_mask",
]

Mask = NDArray[np.bool_]

# Where a Keypoint's signs may stand, one per point: 1 or True on the object, 0, -1 or False not on it.
SIGNS: Final = ("signs", "labels")
# Lists of a Keypoint, one value per point, in which 0 says that a point was not seen.
NOT_SEEN: Final = ("confidence", "visible")
# A box whose mask differs by no more than this in size is the rounded frame of the mask's own pixels.
ROUNDING_PX: Final = 1.0


def label_id(*parts: str) -> str:
    """Return a label's id, 24 hexadecimal digits, that the same parts always give: a re-run replaces its own labels."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def prompt_from_box(bounding_box: Sequence[float], image_hw: tuple[int, int]) -> Prompt:
    """Return the box prompt, XYXY in pixels, of a relative [x, y, width, height], cut to the image.

    Raises:
        PromptError: not four finite numbers, no area, or nothing of it in the image.
    """
    try:
        x, y, width, height = (float(value) for value in bounding_box)
    except (TypeError, ValueError):
        raise PromptError(f"The bounding box is {bounding_box!r}; give [x, y, width, height] relative to it.") from None
    if not np.isfinite([x, y, width, height]).all() or width <= 0 or height <= 0:
        raise PromptError(f"The bounding box {[x, y, width, height]} has no area: draw it again.")
    rows, columns = image_hw
    box = np.array([x * columns, y * rows, (x + width) * columns, (y + height) * rows])
    inside = np.clip(box, 0, [columns, rows, columns, rows])
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise PromptError(f"The box {box.round(1).tolist()} lies outside the image, {columns} x {rows} pixels.")
    return Prompt(box=inside)


def prompt_from_keypoint(keypoint: fo.Keypoint, image_hw: tuple[int, int]) -> Prompt:
    """Return the clicks, in pixels, of a Keypoint; points that were not seen are left out.

    Not seen are, as in the files of COCO and YOLO: NaN, exactly (0, 0), and points whose "confidence" or "visible" is
    0. A point at exactly 1 lies in the last pixel. The list attribute "signs" (or "labels") says of each point whether
    it is on the object (1, True) or not (0, -1, False); without one all are on it.

    Raises:
        PromptError: signs that fit the points in no way, no point, or one outside the image.
    """
    points = np.asarray(keypoint.points or [], np.float64).reshape(-1, 2)
    signs: Any = next((keypoint[name] for name in SIGNS if keypoint.has_attribute(name) and keypoint[name]), None)
    labels = np.ones(len(points)) if signs is None else np.asarray(signs, object)
    if len(labels) != len(points):
        raise PromptError(f"The keypoint has {len(points)} points and {len(labels)} signs: give one for each.")
    try:
        positive = labels.astype(np.float64) > 0
    except (TypeError, ValueError):
        raise PromptError(f"The keypoint's signs are {list(labels)}; give 1 (on the object) or 0.") from None
    seen = _seen(keypoint, points)
    rows, columns = image_hw
    if not seen.any():
        raise PromptError(
            f"The keypoint has no visible point: none of its {len(points)} is seen, for NaN, (0, 0), confidence 0 and "
            "visible 0 mean that a point is not. Click on the object."
        )
    size = np.array([columns, rows])
    pixels = np.where(points == 1, size - 0.5, points * size)
    prompt = Prompt(points=pixels[seen], labels=positive[seen].astype(int))
    prompt.check_inside(image_hw)
    return prompt


def _seen(keypoint: fo.Keypoint, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = np.isfinite(points).all(axis=1) & (points != 0).any(axis=1)
    for name in NOT_SEEN:
        values = keypoint[name] if keypoint.has_attribute(name) else None
        if isinstance(values, list) and len(values) == len(points):
            seen &= np.array([value is None or value != 0 for value in values], np.bool_)
    return seen


def mask_from_detection(detection: fo.Detection, image_hw: tuple[int, int]) -> Mask | None:
    """Return a Detection's mask in the image's frame, (H, W) bool, or None for one that has a box alone.

    A mask whose size is that of its box, up to rounding, is pasted pixel by pixel: scaled to the unrounded box it would
    lose or gain its outermost pixels, which is most of a small object. Another one, such as a detector's 28 x 28 mask,
    is scaled to the box. What reaches beyond the image is cut.

    Raises:
        ImageError: the mask's file cannot be read, or the mask is none.
    """
    empty = bool(detection["empty"]) if detection.has_attribute("empty") else False
    placed = placed_mask(
        detection.bounding_box, image_hw, mask=detection.mask, mask_path=detection.mask_path, empty=empty
    )
    if placed is None:
        return None
    top, left, part = placed
    result = np.zeros(image_hw, np.bool_)
    result[top : top + part.shape[0], left : left + part.shape[1]] = part
    return result


def placed_mask(
    bounding_box: Sequence[float],
    image_hw: tuple[int, int],
    *,
    mask: NDArray[Any] | None = None,
    mask_path: str | None = None,
    empty: bool = False,
) -> tuple[int, int, Mask] | None:
    """Return where a stored mask lies in the image, top and left in pixels, and the part of it that does, bool.

    What `mask_from_detection` pastes, without the image around it: thousands of small masks in large images are
    compared much faster so. An empty mask has a part of shape (0, 0); None stands for a label that has a box alone.

    Raises:
        ImageError: the mask's file cannot be read, or the mask is none.
    """
    if empty:
        return 0, 0, np.zeros((0, 0), np.bool_)
    part = _stored_mask(mask, mask_path)
    if part is None:
        return None
    rows, columns = image_hw
    x, y, width, height = (float(value) for value in bounding_box)
    left, top = round(x * columns), round(y * rows)
    if max(abs(part.shape[1] - width * columns), abs(part.shape[0] - height * rows)) > ROUNDING_PX:
        size = max(1, round((x + width) * columns) - left), max(1, round((y + height) * rows) - top)
        part = cv2.resize(part.view(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(np.bool_)
    cut = part[max(0, -top) : max(0, rows - top), max(0, -left) : max(0, columns - left)]
    # A mask may be stored without any pixel, or have none in the image.
    return (max(0, top), max(0, left), cut) if cut.any() else (0, 0, np.zeros((0, 0), np.bool_))


def _stored_mask(mask: NDArray[Any] | None, mask_path: str | None) -> Mask | None:
    if mask is None and mask_path:
        try:
            # As FiftyOne reads it: any depth; of a colour image its first channel counts.
            mask = np.asarray(read_file(mask_path, flag=cv2.IMREAD_UNCHANGED))
        except OSError:
            raise ImageError(f"Cannot read the mask {Path(mask_path).name}: restore it, or run again.") from None
        mask = mask if mask.ndim == 2 else mask[..., 0]
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.ndim != 2 or not array.size:
        raise ImageError(f"A detection's mask has shape {array.shape}: it must have two axes and pixels.")
    return np.ascontiguousarray(array > 0)


def detection_from_mask(mask: Mask, *, mask_path: Path | None = None, **attributes: Any) -> fo.Detection:
    """Return the Detection of a mask in the image's frame, which `mask_from_detection` gives back bit by bit.

    An empty mask becomes a Detection without area and ``empty=True``: dropped, it would be missing from every count.

    Args:
        mask: (H, W) bool.
        mask_path: write the mask there, as PNG, instead of keeping it in the label.
        **attributes: of the label, its "label" and "id" too.
    """
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    area = int(np.count_nonzero(mask))
    if not area:
        return fo.Detection(bounding_box=[0.0, 0.0, 0.0, 0.0], area_px=0, empty=True, **attributes)
    top, bottom, left, right = int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1
    rows, columns = mask.shape
    box = [left / columns, top / rows, (right - left) / columns, (bottom - top) / rows]
    part = np.ascontiguousarray(mask[top:bottom, left:right])
    detection = fo.Detection(bounding_box=box, area_px=area, empty=False, **attributes)
    if mask_path is None:
        detection.mask = part
    else:
        write_mask(mask_path, part)
        detection.mask_path = str(mask_path)
    return detection


def write_mask(path: Path, mask: Mask) -> None:
    """Write a mask as PNG, 255 on the object; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, encoded = cv2.imencode(".png", mask.astype(np.uint8) * 255)
    assert done, "OpenCV writes every 8-bit image as PNG"
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def keypoint_from_points(points: NDArray[Any], image_hw: tuple[int, int], **attributes: Any) -> fo.Keypoint:
    """Return a Keypoint of (N, 2) pixel (x, y)."""
    rows, columns = image_hw
    return fo.Keypoint(points=[(float(x) / columns, float(y) / rows) for x, y in points], **attributes)


def holes_in(mask: Mask) -> int:
    """Return how many regions of background, 4-connected, a mask encloses."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(ys):
        return 0
    background = np.pad(~mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1], 1, constant_values=True)
    # Without the mask itself and what lies outside it.
    return int(cv2.connectedComponents(background.view(np.uint8), connectivity=4)[0]) - 2
