"""What annotators draw to ask for an object: key points, rectangles and ellipses, in pixels.

Label Studio gives percent of the image's width and height. Points are moved inside the image, and boxes cut
at its border.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refinesam import PromptError
from refinesam_labelstudio.json_types import Region
from refinesam_labelstudio.labeling_config import LabelingConfig

__all__ = ["Mark", "marks_of"]

LONGEST_SIDE = 10**6
Box = tuple[float, float, float, float]
# Corners of the polygon that stands for an ellipse.
CORNERS = 64
# What a rectangle may be turned by, in degrees, and still be its box.
UPRIGHT = 1.0


@dataclass(frozen=True, eq=False)
class Mark:
    """A key point, or a rectangle or ellipse, in pixels.

    Attributes:
        region_id: of its region.
        label: what it is called, None where nothing says so.
        to_name: name of its image.
        point: (x, y) of a key point.
        box: XYXY of the box around a rectangle or ellipse.
        outline: (N, 2), (x, y) of a turned ellipse, or the one inside a turned rectangle; None where the box says all.
        positive: whether it is on the object.
        score: of whoever found it, in [0, 1], or None.
    """

    region_id: str
    label: str | None
    to_name: str
    point: tuple[float, float] | None = None
    box: Box | None = None
    outline: NDArray[np.float64] | None = None
    positive: bool = True
    score: float | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """The point, or the middle of the box."""
        if self.box is not None:
            return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2
        return self.point or (0, 0)

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1]) if self.box is not None else 0

    def belongs_to(self, other: Mark) -> bool:
        """Whether both have the same label and image."""
        return (self.label, self.to_name) == (other.label, other.to_name)

    def inside(self, other: Mark) -> bool:
        """Whether the centre lies in the other's box."""
        x, y = self.centre
        return other.box is not None and other.box[0] <= x <= other.box[2] and other.box[1] <= y <= other.box[3]


def marks_of(
    regions: Iterable[Region],
    config: LabelingConfig,
    image_hw: tuple[int, int] | None,
    remembered: Mapping[str, bool],
    on_problem: Callable[[str], None] | None = None,
) -> Iterator[Mark]:
    """Yield the marks among regions of the config's images; malformed ones raise, or are told."""
    regions = list(regions)
    # A label from a Labels tag of its own is a second result of the same id.
    labels = {str(region.get("id")): _label(region) for region in regions if region.get("type") == "labels"}
    names = {image.name for image in config.images}
    for region in regions:
        kind = str(region.get("type")).removesuffix("labels")
        if kind not in ("keypoint", "rectangle", "ellipse") or str(region.get("to_name")) not in names:
            continue
        region_id, positive = str(region.get("id")), region.get("is_positive")
        label = _label(region) or labels.get(region_id)
        if not isinstance(positive, bool):
            positive = remembered.get(region_id, True)
        try:
            hw = image_hw or _size(region)
            point, box, outline = None, None, None
            if kind == "keypoint":
                point = _point(region, hw)
            else:
                box, outline = _box(region, hw) if kind == "rectangle" else _ellipse(region, hw)
            yield Mark(region_id, label, str(region["to_name"]), point, box, outline, positive, _score(region))
        except PromptError as error:
            if on_problem is None:
                raise
            on_problem(f"A {kind} is left out: {error}")


def _score(region: Region) -> float | None:
    score = region.get("score")
    return float(score) if isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1 else None


def _label(region: Region) -> str | None:
    value = region.get("value")
    labels = value.get(str(region.get("type"))) if isinstance(value, Mapping) else None
    return next((label for label in labels if isinstance(label, str)), None) if isinstance(labels, list) else None


def _size(region: Region) -> tuple[int, int]:
    sides = [region.get("original_height"), region.get("original_width")]
    height, width = (side if isinstance(side, int) and not isinstance(side, bool) else 0 for side in sides)
    if not (0 < height <= LONGEST_SIDE and 0 < width <= LONGEST_SIDE):
        raise PromptError(
            f"Region {region.get('id')!r} has original_height {sides[0]!r} and original_width {sides[1]!r}: both must "
            f"be whole numbers of pixels, 1 to {LONGEST_SIDE}."
        )
    return height, width


def _point(region: Region, hw: tuple[int, int]) -> tuple[float, float]:
    x, y = (_percent(region, key) * side / 100 for key, side in (("x", hw[1]), ("y", hw[0])))
    # The right and lower border lie outside of [0, W) x [0, H): the last pixel's centre is meant.
    return min(max(x, 0), hw[1] - 0.5), min(max(y, 0), hw[0] - 0.5)


def _box(region: Region, hw: tuple[int, int]) -> tuple[Box, NDArray[np.float64] | None]:
    """Return the box around a rectangle; where that is turned around its first corner, also the ellipse inside it."""
    x, y, width, height = _lengths(region, hw, "x", "y", "width", "height")
    turn, upright = _turn(region)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ turn + (x, y)
    centre, radii = corners.mean(axis=0), (width / 2, height / 2)
    return _around(corners, hw), None if upright else _ring(radii) @ turn + centre


def _ellipse(region: Region, hw: tuple[int, int]) -> tuple[Box, NDArray[np.float64] | None]:
    """Return the box around an ellipse; where that is turned around its centre, also its outline."""
    x, y, across, down = _lengths(region, hw, "x", "y", "radiusX", "radiusY")
    turn, upright = _turn(region)
    reach = np.hypot(turn[0] * across, turn[1] * down)
    outline = None if upright else _ring((across, down)) @ turn + (x, y)
    return _around(np.array([-reach, reach]) + (x, y), hw), outline


def _ring(radii: tuple[float, float]) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * math.pi, CORNERS, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii


def _around(corners: NDArray[np.float64], hw: tuple[int, int]) -> Box:
    """Return the part inside the image of the box around points."""
    (x0, y0), (x1, y1) = (
        np.clip(edge, 0, (hw[1], hw[0])).tolist() for edge in (corners.min(axis=0), corners.max(axis=0))
    )
    return x0, y0, x1, y1


def _turn(region: Region) -> tuple[NDArray[np.float64], bool]:
    """Return the matrix of a region's rotation, for rows (x, y), and whether its sides stay upright."""
    degrees = _percent(region, "rotation", 0)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[cosine, sine], [-sine, cosine]]), abs((degrees + 45) % 90 - 45) <= UPRIGHT


def _lengths(region: Region, hw: tuple[int, int], *keys: str) -> list[float]:
    """Return percent of the image's width, height, width and height as pixels."""
    return [_percent(region, key) * side / 100 for key, side in zip(keys, (hw[1], hw[0]) * 2, strict=True)]


def _percent(region: Region, key: str, default: float | None = None) -> float:
    value = region.get("value")
    number = value.get(key, default) if isinstance(value, Mapping) else None
    if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) < 1e6:
        raise PromptError(
            f"Region {region.get('id')!r} has {key} {repr(number)[:40]}: a number is needed, of percent or degrees."
        )
    return float(number)
