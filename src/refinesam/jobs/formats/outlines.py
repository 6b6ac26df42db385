"""Masks as the outlines that formats can hold, so that their readers fill the same pixels again.

COCO's and YOLO's polygons have no holes. There a hole is joined to its outline by a slit that is passed twice: fills by
the even-odd rule, which both formats' readers use, do not see it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refinesam.masks import Polygon, mask_from_polygons, polygons_from_mask
from refinesam.types import BoolArray

__all__ = ["Ring", "coco_polygons", "simple_polygons", "yolo_outline"]

Ring = NDArray[np.float64]
Pixels = NDArray[np.int32]


def coco_polygons(mask: BoolArray) -> list[list[float]] | None:
    """Return COCO's polygons [x0, y0, x1, y1, ...] of a mask, on pixel edges; None where COCO would fill others."""
    rings = []
    for polygon in polygons_from_mask(mask):
        ring = polygon.exterior
        for hole in polygon.holes:
            ring = np.concatenate([ring[:1], hole, hole[:1], ring])
        rings.append(ring)
    exact = (mask_from_polygons([Polygon(ring) for ring in rings], (mask.shape[0], mask.shape[1])) == mask).all()
    return [ring.ravel().tolist() for ring in rings] if exact else None


def yolo_outline(mask: BoolArray) -> Pixels:
    """Return one outline (N, 2), N >= 3, of a mask: pixels (x, y) through whose centres it runs.

    OpenCV's fillPoly, by which YOLO's trainers fill outlines, gives the mask back exactly if it has one 8-connected
    part. Several parts are joined by lines one pixel wide: the format has one outline an object.
    """
    raw_contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [contour[:, 0].astype(np.int32) for contour in raw_contours]
    outlines = []
    for index in range(len(contours)):
        if hierarchy[0, index, 3] < 0:
            holes = [contours[other] for other in range(len(contours)) if hierarchy[0, other, 3] == index]
            outlines.append(_with_holes(contours[index], holes, mask))
    joined = outlines[0]
    for outline in outlines[1:]:
        distances = ((joined[:, None].astype(np.int64) - outline[None]) ** 2).sum(2)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        joined = _inserted(joined, int(here), np.roll(outline, -int(there), axis=0))
    corners = _corners(joined)
    return corners if len(corners) >= 3 else np.resize(corners, (3, 2))  # a line or a pixel, once more


def simple_polygons(mask: BoolArray) -> list[Polygon]:
    """Return polygons with holes, on pixel edges, none of whose rings touches itself, as OGC's simple features need.

    Parts that meet at a corner only become polygons of their own.
    """
    exteriors: list[Ring] = []
    holes: list[Ring] = []
    for polygon in polygons_from_mask(mask):
        turn = np.sign(_signed_area(polygon.exterior))
        for ring in (polygon.exterior, *polygon.holes):
            for loop in _loops(ring):
                (exteriors if np.sign(_signed_area(loop)) == turn else holes).append(loop)
    order = sorted(exteriors, key=lambda ring: abs(_signed_area(ring)))
    inside: list[list[Ring]] = [[] for _ in order]
    for hole in holes:
        x, y = _inner_point(hole)
        inside[next(index for index, ring in enumerate(order) if _contains(ring, x, y))].append(hole)
    return [Polygon(ring, tuple(inner)) for ring, inner in zip(order, inside, strict=True)]


def _with_holes(outline: Pixels, holes: list[Pixels], mask: BoolArray) -> Pixels:
    """Join holes, from left to right: left of each lie pixels of the mask, up to the outline or a hole that is in."""
    for hole in sorted(holes, key=lambda points: int(points[:, 0].min())):
        first = int(hole[:, 0].argmin())
        x, y = hole[first].tolist()
        while x > 0 and mask[y, x - 1]:
            x -= 1
        (reached, *_) = np.flatnonzero((outline == (x, y)).all(axis=1))
        outline = _inserted(outline, int(reached), np.roll(hole, -first, axis=0))
    return outline


def _inserted(outline: Pixels, at: int, loop: Pixels) -> Pixels:
    """Go from a point of an outline to a loop's first point, around it, and back."""
    return np.concatenate([outline[: at + 1], loop, loop[:1], outline[at:]])


def _corners(outline: Pixels) -> Pixels:
    """Leave out points in the midst of a straight line of single steps."""
    step = np.diff(outline, axis=0, append=outline[:1])
    straight = (step == np.roll(step, 1, axis=0)).all(axis=1) & (np.abs(step).max(axis=1) == 1)
    return np.asarray(outline[~straight])


def _loops(ring: Ring) -> list[Ring]:
    """Cut a ring where it comes back to one of its own vertices."""
    loops: list[Ring] = []
    path: list[tuple[float, float]] = []
    places: dict[tuple[float, float], int] = {}
    for x, y in ring.tolist():
        if (start := places.get((x, y))) is not None:
            loops.append(np.array(path[start:]))
            for vertex in path[start:]:
                del places[vertex]
            del path[start:]
        places[x, y] = len(path)
        path.append((x, y))
    return [*loops, np.array(path)]


def _signed_area(ring: Ring) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _inner_point(ring: Ring) -> tuple[float, float]:
    """Return a point a quarter of a pixel inside, beside the middle of the first edge."""
    (x0, y0), (x1, y1) = ring[:2].tolist()
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    across = np.array([y1 - y0, x0 - x1]) / np.hypot(x1 - x0, y1 - y0) / 4
    inner = np.array([x, y]) + across
    x, y = inner if _contains(ring, *inner) else np.array([x, y]) - across
    return float(x), float(y)


def _contains(ring: Ring, x: float, y: float) -> bool:
    return cv2.pointPolygonTest(ring.astype(np.float32), (float(x), float(y)), False) > 0
