"""Masks as Label Studio's regions and back, and a check of regions before they leave: the server checks nothing.

A region is a plain dictionary, ready for JSON. Coordinates are percent of the image's width and height.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refinesam import DatasetError
from refinesam_labelstudio.brush import MAX_PIXELS, decode_brush_rle, encode_brush_rle
from refinesam_labelstudio.json_types import JsonObject, JsonView, Region
from refinesam_labelstudio.labeling_config import MESSAGES, Kind, LabelingConfig, OutputTag
from refinesam_labelstudio.outlines import mask_from_outline, outlines_from_mask

__all__ = ["check_regions", "is_unchanged", "mask_from_region", "message_region", "regions_from_mask"]

PNG_PREFIX = "data:image/png;base64,"
# The key in a region's value that tells its kind.
GEOMETRY: dict[str, Kind] = {"rle": "brush", "imageDataURL": "bitmask", "points": "polygon", "width": "rectangle"}
# What a border may miss 0 or 100 by, when percent come from pixels.
ROUNDING = 1e-6


def regions_from_mask(
    mask: NDArray[np.bool_],
    tag: OutputTag,
    label: str | None,
    image_hw: tuple[int, int],
    score: float | None = None,
    meta: JsonView | None = None,
    *,
    tolerance: float | None = None,
    smallest_part: float | None = None,
) -> list[JsonObject]:
    """Return a mask as regions of a tag: one, or none for an empty mask.

    Polygons are the exception: a mask of several parts becomes a region for each, the largest first, and the others
    name it as their `parentID`, so that the annotator's list shows them under it. Holes are cut open to the outline,
    see `outlines_from_mask`. Where labels stand in a Labels tag of their own, each region is followed by a second
    result of the same id that carries the label, as Label Studio itself writes it. An id says what the mask was, see
    `is_unchanged`.

    Args:
        mask: (H, W) bool.
        tag: where the regions go.
        label: of the regions; left out for a tag without labels.
        image_hw: height and width of the image as shown, after EXIF rotation.
        score: predicted IoU in [0, 1].
        meta: goes into each region; Label Studio shows meta["text"].
        tolerance: how far polygons may lie from the mask's outline, in pixels; 0 for exact ones of many vertices, None
            for what fits the image and the mask.
        smallest_part: of a polygon, in pixels; None for what fits the mask.

    Raises:
        DatasetError: a mask of another size than the image.
    """
    if mask.shape != tuple(image_hw):
        raise DatasetError(f"The mask has shape {mask.shape}, its image {tuple(image_hw)}: resize the mask first.")
    common = {
        "to_name": tag.to_name,
        "original_width": int(image_hw[1]),
        "original_height": int(image_hw[0]),
        "image_rotation": 0,
    }
    if score is not None:
        common["score"] = float(score)
    if meta is not None:
        common["meta"] = dict(meta)
    regions: list[JsonObject] = []
    for value in _values(mask, tag.kind, tolerance, smallest_part) if mask.any() else []:
        own = {**common, "id": uuid.uuid4().hex[:4] + _digest(mask_from_region({**common, "value": value}))}
        if regions:
            own["parentID"] = regions[0]["id"]
        labelled = {} if label is None or tag.takes(None) else {"labels" if tag.labels_from else tag.type: [label]}
        first = value if tag.labels_from else {**value, **labelled}
        regions.append({**own, "from_name": tag.from_name, "type": tag.type, "value": first})
        if tag.labels_from and labelled:
            regions.append({**own, "from_name": tag.labels_from, "type": "labels", "value": {**value, **labelled}})
    return regions


def message_region(text: str, to_name: str) -> JsonObject:
    """Return what writes a text into the labeling config's TextArea for messages, in place of the one before."""
    own = {"id": "refinesam-message", "from_name": MESSAGES, "to_name": to_name, "type": "textarea"}
    return {**own, "value": {"text": [text] if text else []}}


def is_unchanged(region: Region, mask: NDArray[np.bool_]) -> bool:
    """Whether a region's mask is as a model gave it, and nobody changed it.

    Label Studio says so of what it took from a prediction, but not of a smart tool's accepted answer. The id of a
    region of ours ends with a digest of its mask, and stays with it in the editor.
    """
    return region.get("origin") == "prediction" or str(region.get("id"))[4:] == _digest(mask)


def _digest(mask: NDArray[np.bool_]) -> str:
    return hashlib.blake2b(np.packbits(mask).tobytes(), digest_size=3, key=str(mask.shape).encode()).hexdigest()


def _values(
    mask: NDArray[np.bool_], kind: Kind, tolerance: float | None, smallest_part: float | None
) -> list[JsonObject]:
    height, width = mask.shape
    if kind == "brush":
        return [{"format": "rle", "rle": encode_brush_rle(mask)}]
    if kind == "bitmask":
        return [{"imageDataURL": _png(mask)}]
    if kind == "polygon":
        percent = np.array([100 / width, 100 / height])
        rings = outlines_from_mask(mask, tolerance, smallest_part)
        return [{"points": (ring * percent).tolist(), "closed": True} for ring in rings]
    rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
    corner = {"x": 100 * columns[0] / width, "y": 100 * rows[0] / height}
    across, down = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    return [{**corner, "width": 100 * across / width, "height": 100 * down / height, "rotation": 0}]


def _png(mask: NDArray[np.bool_]) -> str:
    """Return a bitmask: black where the mask is, transparent elsewhere, one bit a pixel."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 0, 0, 0])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=1, transparency=0)
    return PNG_PREFIX + base64.b64encode(buffer.getvalue()).decode("ascii")


def mask_from_region(region: Region) -> NDArray[np.bool_]:
    """Return the (H, W) bool mask of a brush, bitmask, polygon or rectangle region, of ours or drawn by hand.

    A brush or bitmask covers what isn't fully transparent. Rectangles may be rotated; polygons and rectangles that
    reach outside the image are clipped.

    Raises:
        DatasetError: another kind of region, or one that is damaged or doesn't fit its image.
    """
    hw = _size(region)
    value = region.get("value")
    kind = next((GEOMETRY[key] for key in GEOMETRY if isinstance(value, Mapping) and key in value), None)
    if not isinstance(value, Mapping) or kind is None:
        raise DatasetError(
            f"Region {region.get('id')!r} of type {region.get('type')!r} holds no mask: give a brush, bitmask, polygon "
            "or rectangle."
        )
    if kind == "brush":
        return decode_brush_rle(value["rle"], *hw)
    if kind == "bitmask":
        return _mask_from_png(value["imageDataURL"], hw)
    ring = _points(value) if kind == "polygon" else _corners(value, hw)
    return mask_from_outline(ring * (hw[1] / 100, hw[0] / 100), hw)


def _size(region: Region) -> tuple[int, int]:
    sides = [region.get("original_height"), region.get("original_width")]
    height, width = (side if isinstance(side, int) and not isinstance(side, bool) else 0 for side in sides)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise DatasetError(
            f"Region {region.get('id')!r} has original_height {sides[0]!r} and original_width {sides[1]!r}: both must "
            f"be whole numbers of pixels, from 1 and up to {MAX_PIXELS} pixels together."
        )
    return height, width


def _mask_from_png(url: object, hw: tuple[int, int]) -> NDArray[np.bool_]:
    prefix, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    try:
        if f"{prefix}," != PNG_PREFIX:
            raise ValueError(f"it starts with {repr(url)[:40]}")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"]) as image:
            if image.size != hw[::-1]:
                raise ValueError(f"it has {image.height} x {image.width} pixels, the image {hw[0]} x {hw[1]}")
            alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(
            f"The bitmask's imageDataURL must be a PNG of the image's size as {PNG_PREFIX}...: {error}."
        ) from error
    return np.asarray(alpha > 0)


def _points(value: JsonView) -> NDArray[np.float64]:
    points = value["points"]
    pairs = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    if not pairs or len(points) < 3:
        raise DatasetError(
            f"A polygon's points are three or more [x, y] in percent, got {repr(points)[:60]}: remove or redraw it."
        )
    return np.array([[_number(n, "a polygon's point") for n in point] for point in points])


def _corners(value: JsonView, hw: tuple[int, int]) -> NDArray[np.float64]:
    """Return a rectangle's corners in percent; it is turned clockwise around the first, in the image's proportions."""
    x, y, width, height = (_number(value.get(key), f"a rectangle's {key}") for key in ("x", "y", "width", "height"))
    angle = math.radians(_number(value.get("rotation") or 0, "a rectangle's rotation"))
    across, down = np.array([width * hw[1], 0]), np.array([0, height * hw[0]])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    offsets = np.array([0 * across, across, across + down, down]) @ turn.T
    return np.asarray(np.array([x, y]) + offsets / (hw[1], hw[0]))


def _number(value: object, what: str) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
        number = float(value)
    if not math.isfinite(number):
        raise DatasetError(f"{what.capitalize()} must be a number of percent or degrees, got {repr(value)[:40]}.")
    return number


def check_regions(regions: Sequence[Region], config: LabelingConfig) -> None:
    """Check that Label Studio can show regions under a labeling config.

    Raises:
        DatasetError: a region whose from_name, to_name, type or label the config doesn't have, or whose geometry is
            damaged, outside the image, or of another size; names the region and the key.
    """
    ids = [region.get("id") for region in regions]
    for region in regions:
        try:
            _check_region(region, config, ids)
        except DatasetError as error:
            raise DatasetError(f"Region {region.get('id')!r} can't be sent: {error}") from error


def _check_region(region: Region, config: LabelingConfig, ids: list[Any]) -> None:
    _check(region, "id", bool(region.get("id")) and isinstance(region["id"], str), "a text of its own")
    _check(region, "image_rotation", region.get("image_rotation") == 0, "0")
    _check(region, "parentID", region.get("parentID", region["id"]) in ids, "the id of a region next to it")
    score = region.get("score")
    valid = score is None or (isinstance(score, float | int) and 0 <= score <= 1)
    _check(region, "score", valid, "a number from 0 to 1")
    outputs = [tag for tag in config.outputs if tag.to_name == region.get("to_name")]
    _check(region, "to_name", bool(outputs), f"one of {sorted({tag.to_name for tag in config.outputs})}")
    name = region.get("from_name")
    outputs = [tag for tag in outputs if name in (tag.from_name, tag.labels_from) and name is not None]
    known = sorted({tag.from_name for tag in config.outputs})
    _check(region, "from_name", bool(outputs), f"one of {known}")
    types = ["labels" if name == tag.labels_from else tag.type for tag in outputs]
    _check(region, "type", region.get("type") in types, f"one of {sorted(set(types))}")
    value = region.get("value")
    kinds = {tag.kind for tag in outputs}
    if not isinstance(value, Mapping) or not any(GEOMETRY[key] in kinds for key in GEOMETRY if key in value):
        raise DatasetError(f"value must hold a {' or '.join(sorted(kinds))}, got {repr(value)[:60]}.")
    if str(region["type"]).endswith("labels"):
        _check_labels(value.get(region["type"]), outputs)
    mask_from_region(region)
    hw = _size(region)
    ring = _points(value) if "points" in value else _corners(value, hw) if "width" in value else np.zeros((1, 2))
    if ring.min() < -ROUNDING or ring.max() > 100 + ROUNDING:
        raise DatasetError(f"its coordinates reach from {ring.min():g} to {ring.max():g} percent: keep to 0 to 100.")


def _check_labels(labels: object, outputs: list[OutputTag]) -> None:
    known = sorted({label for tag in outputs for label in tag.labels})
    texts = [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []
    if not texts or texts != labels or not any(all(map(tag.takes, texts)) for tag in outputs):
        raise DatasetError(f"its labels must be among {known}, got {labels!r}.")


def _check(region: Region, key: str, valid: bool, needed: str) -> None:
    if not valid:
        raise DatasetError(f"{key} must be {needed}, got {repr(region.get(key))[:60]}.")
