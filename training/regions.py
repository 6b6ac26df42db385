"""Regions of training images as further objects: parts and surroundings that the annotations leave out.

    python training/regions.py --data DATA --sources coco_person_cc feral_cats --output runs/data

Most small data sets annotate whole things, and a model that learns from them alone takes every click for the whole. A
region is an area of one colour that differs from what surrounds it, found by graph-based segmentation (Felzenszwalb and
Huttenlocher 2004) at two scales or more; or such an area's share of an annotated object, a part of it. For each source
the output gets a folder SOURCE_regions, whose images are links, and a link to the source itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from refinesam.errors import ImageError
from refinesam.evaluation.dataset import CocoFolder, read_coco_folder
from refinesam.files import write_json
from refinesam.images import read_image
from refinesam.masks import coco_document, decode_segmentation, mask_iou

SCALES = (2, 8, 30, 60, 120, 240, 480, 960)
# Longest side at which regions are looked for: texture finer than that makes no object.
WORKED_SIDE = 320
# Shares of the image, or of the object for its parts.
SMALLEST, LARGEST = 0.004, 0.5
SMALLEST_PART, LARGEST_PART = 0.05, 0.7
# A region must come out alike at the next scale, fill its convex hull, and differ from what surrounds it (in Lab).
PERSISTENT, SOLID, CONTRAST = 0.8, 0.65, 18.0
# ... with an edge under most of its outline, not in the mean alone.
EDGE, EDGED = 18.0, 0.85
# Above this IoU with an annotated object a region says nothing new, and of two such regions one is enough.
KNOWN, SAME = 0.6, 0.7

Mask = NDArray[np.bool_]


def regions_of(folder: CocoFolder, most: int) -> dict[str, Any]:
    """Find regions in every image of a folder, as a COCO document."""
    images = {}
    for record in folder.images:
        try:
            pixels = read_image(record.path)
        except ImageError as error:
            print(f"left out: {error}", flush=True)
            continue
        hw = pixels.shape[:2]
        objects = [decode_segmentation(one.segmentation, *hw) for one in record.objects]
        images[record.path.name] = (hw, [(mask, None) for mask in new_regions(pixels, objects)[:most]])
    return coco_document(images)


def new_regions(pixels: NDArray[np.uint8], objects: list[Mask]) -> list[Mask]:
    """Regions of an image (H, W, 3) and parts of its objects (H, W), those with the greatest contrast first."""
    height, width = pixels.shape[:2]
    shrunk = min(1.0, WORKED_SIDE / max(height, width))
    size = (round(width * shrunk), round(height * shrunk))
    lab = cv2.cvtColor(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB).astype(np.float32)
    small = [cv2.resize(one.astype(np.uint8), size, interpolation=cv2.INTER_AREA).astype(bool) for one in objects]
    edges = _edges(lab)
    found: list[tuple[float, Mask]] = []
    for region in _persistent(lab):
        found += _judged(region, lab, edges, SMALLEST * region.size, LARGEST * region.size)
        for one in small:
            if one.mean() > 4 * SMALLEST and (part := region & one).any():
                least = max(SMALLEST * part.size, SMALLEST_PART * one.sum())
                found += _judged(part, lab, edges, least, LARGEST_PART * one.sum())
    kept: list[Mask] = []
    for _, region in sorted(found, key=lambda one: -one[0]):
        if all(mask_iou(region, one) < KNOWN for one in small) and all(mask_iou(region, one) < SAME for one in kept):
            kept.append(region)
    return [_enlarged(one, width, height) for one in kept]


def _persistent(lab: NDArray[np.float32]) -> Iterator[Mask]:
    """Regions (h, w) that come out alike at two neighbouring scales, once for each such pair."""
    least = int(SMALLEST * lab.shape[0] * lab.shape[1])
    levels = [felzenszwalb(lab / 255, scale=k, sigma=0.8, min_size=least, channel_axis=-1) for k in SCALES]
    for fine, coarse in pairwise(levels):
        # How many pixels each pair of regions shares.
        shared = np.zeros((fine.max() + 1, coarse.max() + 1), np.int64)
        np.add.at(shared, (fine.ravel(), coarse.ravel()), 1)
        union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0) - shared
        for number in np.flatnonzero((shared / union).max(axis=1) > PERSISTENT):
            yield fine == number


def _judged(
    region: Mask, lab: NDArray[np.float32], edges: NDArray[np.float32], least: float, most: float
) -> list[tuple[float, Mask]]:
    """The region with its contrast, smoothed and without holes; nothing if it is no region to learn from."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    smooth = cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    contours, _ = cv2.findContours(smooth, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return []
    outline = max(contours, key=cv2.contourArea)
    mask = cv2.drawContours(np.zeros_like(smooth), [outline], -1, 1, cv2.FILLED)
    area, hull = mask.sum(), cv2.contourArea(cv2.convexHull(outline))
    if not least <= area <= most or area < SOLID * hull:
        return []
    wide = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    inner, outer = cv2.erode(mask, wide), cv2.dilate(mask, wide)
    rim, around = (mask > 0) & (inner == 0), (outer > 0) & (mask == 0)
    if not around.any():
        return []
    line = (mask > 0) & (cv2.erode(mask, kernel, borderValue=1) == 0)
    if (edges[line] > EDGE).mean() < EDGED:
        return []
    contrast = float(np.linalg.norm(lab[rim].mean(axis=0) - lab[around].mean(axis=0)))
    return [(contrast, mask > 0)] if contrast >= CONTRAST else []


def _edges(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """Greatest difference in colour between a pixel's neighbourhoods left and right, or above and below."""
    x, y = (cv2.Scharr(lab, cv2.CV_32F, *order, scale=1 / 16) for order in ((1, 0), (0, 1)))
    # An outline that runs two pixels beside the edge has found it.
    return np.asarray(cv2.dilate(np.sqrt((x**2 + y**2).sum(axis=-1)), np.ones((5, 5), np.uint8)))


def _enlarged(mask: Mask, width: int, height: int) -> Mask:
    return np.asarray(cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--most", type=int, default=20, help="regions of an image")
    given = parser.parse_args()
    for source in given.sources:
        started, data = time.monotonic(), given.data / source
        document = regions_of(read_coco_folder(data / "instances_train.json", data / "images"), given.most)
        folder = given.output / f"{source}_regions"
        folder.mkdir(parents=True, exist_ok=True)
        for link, target in ((folder / "images", data / "images"), (given.output / source, data)):
            # What is there stays: it may be the user's own folder or link.
            if not link.exists():
                link.symlink_to(target.resolve())
        write_json(folder / "instances_train.json", document)
        count, seconds = len(document["annotations"]), time.monotonic() - started
        print(f"{source}: {count} regions in {len(document['images'])} images, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
