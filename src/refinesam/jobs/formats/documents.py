"""Formats of JSON: COCO, labelme, GeoJSON."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from refinesam.files import JsonObject, write_json
from refinesam.jobs.formats.geotiff import GeoReference, read_georeference
from refinesam.jobs.formats.objects import LabeledImage, LabeledObject, NewFolder, Results
from refinesam.jobs.formats.outlines import Ring, coco_polygons, simple_polygons
from refinesam.training.sources.shards import is_remote

__all__ = ["write_coco", "write_coco_polygons", "write_geojson", "write_labelme"]

LABELME_VERSION = "5.5.0"  # the shape type "mask" came before


def write_coco(results: Results, output: Path, *, polygons: bool = False) -> None:
    """Write one COCO document, masks as compressed RLE.

    Args:
        results: of a job.
        output: the file.
        polygons: masks as polygons, exactly; the few that COCO would fill otherwise stay RLE.
    """
    images: list[JsonObject] = []
    annotations: list[JsonObject] = []
    for image_id, image in enumerate(results.images(), start=1):
        height, width = image.image_hw
        images.append({"id": image_id, "file_name": image.name, "height": height, "width": width})
        for labeled in image.objects:
            annotations.append(_annotation(labeled, image_id, len(annotations) + 1, polygons))
    categories = [{"id": category.id, "name": category.name} for category in results.categories]
    write_json(output, {"images": images, "annotations": annotations, "categories": categories})


def write_coco_polygons(results: Results, output: Path) -> None:
    """Write one COCO document, masks as polygons."""
    write_coco(results, output, polygons=True)


def _annotation(labeled: LabeledObject, image_id: int, annotation_id: int, polygons: bool) -> JsonObject:
    x0, y0, x1, y1 = labeled.box
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": labeled.category.id,
        "segmentation": (coco_polygons(labeled.mask) if polygons else None) or dict(labeled.rle),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": labeled.area,
        "iscrowd": 0,
        "score": labeled.score,
        "predicted_iou": labeled.predicted_iou,
    }


def write_labelme(results: Results, output: Path) -> None:
    """Write a labelme document an image, masks as labelme's shape "mask": a PNG of the part inside the box."""
    folder = NewFolder(output)
    for image in results.images():
        place = folder.place(image, "", ".json")
        where = image.location if is_remote(image.location) else os.path.relpath(image.location, place.parent)
        content: JsonObject = {
            "version": LABELME_VERSION,
            "flags": {},
            "shapes": [_shape(labeled) for labeled in image.objects],
            "imagePath": where,
            "imageData": None,
            "imageHeight": image.image_hw[0],
            "imageWidth": image.image_hw[1],
        }
        write_json(place, content, indent=1)


def _shape(labeled: LabeledObject) -> JsonObject:
    x0, y0, x1, y1 = (int(side) for side in labeled.box)
    png = io.BytesIO()
    Image.fromarray(labeled.mask[y0:y1, x0:x1].astype(np.uint8)).save(png, format="PNG")
    return {
        "label": labeled.category.name,
        "points": [[x0, y0], [x1 - 1, y1 - 1]],  # the corners' pixels, both inside
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(png.getvalue()).decode("ascii"),
    }


def write_geojson(results: Results, output: Path) -> None:
    """Write a GeoJSON document an image, masks as MultiPolygons on pixel edges, holes and all.

    Coordinates are the map's where the image is a GeoTIFF, with its coordinate system as "crs", else pixels (x, y), y
    downwards, as QuPath reads them.
    """
    folder = NewFolder(output)
    for image in results.images():
        reference = read_georeference(image.location)
        content: JsonObject = {"type": "FeatureCollection"}
        if reference is not None and reference.epsg is not None:
            content["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{reference.epsg}"}}
        content["features"] = [_feature(labeled, image, reference) for labeled in image.objects]
        write_json(folder.place(image, "", ".geojson"), content)


def _feature(labeled: LabeledObject, image: LabeledImage, reference: GeoReference | None) -> JsonObject:
    polygons = [
        [_closed(ring, reference, outer=number == 0) for number, ring in enumerate((polygon.exterior, *polygon.holes))]
        for polygon in simple_polygons(labeled.mask)
    ]
    return {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": polygons},
        "properties": {
            "class": labeled.category.name,
            "score": labeled.score,
            "predicted_iou": labeled.predicted_iou,
            "area_pixels": labeled.area,
            "image": image.name,
            "object": labeled.number,
            # As QuPath reads it.
            "objectType": "annotation",
            "classification": {"name": labeled.category.name},
        },
    }


def _closed(ring: Ring, reference: GeoReference | None, outer: bool) -> list[list[float]]:
    """Return a ring as GeoJSON has it: the first vertex again at the end, outer rings counterclockwise (RFC 7946)."""
    points = ring if reference is None else reference.to_map(ring)
    x, y = points.T
    counterclockwise = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0
    if counterclockwise != outer:
        points = points[::-1]
    closed: list[list[float]] = np.concatenate([points, points[:1]]).tolist()
    return closed
