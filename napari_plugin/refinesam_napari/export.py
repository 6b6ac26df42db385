"""Results in others' formats: labels as TIFF, objects as COCO JSON."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from refinesam import DatasetError, ImageError, coco_annotation, polygons_from_mask
from refinesam.hosts import replacing, write_json
from refinesam_napari.geometry import FREE, Plane, PlaneMask
from refinesam_napari.storage import SavedSession

__all__ = ["coco_from_masks", "write_coco", "write_labels_tiff"]

# The integers that OME-TIFF knows. TIFF readers know no others either: Fiji opens no 64-bit file.
OME_DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32")
# Beyond this, offsets no longer fit a classic TIFF. Compression could still save it, but nobody knows beforehand.
CLASSIC_TIFF_BYTES = 2**32 - 2**25

# COCO's C library counts in "long", which has 32 bits on Windows.
RLE_PIXELS = 2**31

# Files that can't hold a stack.
ONE_PICTURE = (".png", ".jpg", ".jpeg", ".bmp")

AXIS_LETTERS = {"t": "T", "time": "T", "z": "Z", "c": "C", "channel": "C", "channels": "C", "y": "Y", "x": "X"}
LENGTH_UNITS = {"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "centimeter": "cm", "meter": "m"}
LENGTH_UNITS |= {"nm": "nm", "um": "µm", "µm": "µm", "micron": "µm", "mm": "mm", "cm": "cm", "m": "m"}
TIME_UNITS = {"millisecond": "ms", "second": "s", "minute": "min", "hour": "h", "day": "d"}
TIME_UNITS |= {"ms": "ms", "s": "s", "min": "min", "h": "h", "d": "d"}


def write_labels_tiff(
    path: str | Path,
    labels: Any,
    axis_labels: Sequence[str],
    scale: Sequence[float],
    units: Sequence[Any] | None = None,
) -> None:
    """Write labels as a zlib-compressed TIFF, page by page; the file appears whole or not at all.

    OME-TIFF where OME can name the axes: any of t, z and c in any order, then y and x; axes of other names count as z,
    t and c, from the inside out. Else, as for six axes or when the last two aren't y and x, a TIFF in tifffile's own
    convention. OME has no place to say which axes of length 1 there were, so readers drop these.

    8-, 16- and 32-bit integers keep their dtype. Booleans become uint8, since OME's "bit" is seldom read; 64-bit
    integers become uint32, since OME and most readers stop there.

    Args:
        path: ends in .tif or .tiff, best in .ome.tif.
        labels: integers of two or more axes; anything that is indexed like a numpy array. One page of the last two axes
            is in memory at a time.
        axis_labels: one name for each axis.
        scale: size of a step on each axis.
        units: unit of each axis, by name or as napari's own (pint); None, or a unit that OME lacks, means pixels, for
            lengths without a unit would count as micrometres.

    Raises:
        ImageError: not integers, fewer than two axes, no pixels, or a 64-bit label that is negative or 2**32 or more.
        DatasetError: axis_labels, scale or units don't fit the number of axes.
        OSError: the place can't be written.
    """
    shape, dtype = tuple(int(n) for n in labels.shape), np.dtype(labels.dtype)
    if dtype.kind not in "iub" or len(shape) < 2 or 0 in shape:
        raise ImageError(
            f"Labels are integers (..., Y, X) with pixels, got {dtype} {shape}: convert them, or crop less."
        )
    names = [str(unit) for unit in units] if units is not None else ["pixel"] * len(shape)
    _check_axes(len(shape), axis_labels, scale, names)
    stored = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    stored = stored if stored.name in OME_DTYPES else np.dtype(np.uint32)
    axes, bigtiff = _ome_axes(axis_labels), np.prod(shape, dtype=float) * stored.itemsize > CLASSIC_TIFF_BYTES
    metadata: dict[str, Any] = {"axis_labels": list(axis_labels), "scale": [float(s) for s in scale], "units": names}
    if axes is not None:
        metadata = {"axes": axes, **_ome_sizes(axes, scale, names)}
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=bigtiff, ome=axes is not None) as tiff:
        tiff.write(
            _pages(labels, stored),
            shape=shape,
            dtype=stored,
            photometric="minisblack",
            compression="zlib",
            metadata=metadata,
            maxworkers=1,  # More would read pages ahead, as many as there are workers.
        )


def _check_axes(count: int, axis_labels: Sequence[str], scale: Sequence[float], units: Sequence[str]) -> None:
    if not len(axis_labels) == len(scale) == len(units) == count:
        raise DatasetError(
            f"The labels have {count} axes, but there are {len(axis_labels)} axis_labels, {len(scale)} numbers in "
            f"scale and {len(units)} units: give one of each for every axis."
        )


def _pages(labels: Any, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for index in np.ndindex(*labels.shape[:-2]):
        page = np.asarray(labels[index])
        if page.dtype.itemsize > dtype.itemsize and (page.min() < 0 or page.max() > np.iinfo(dtype).max):
            raise ImageError(
                f"Labels from {page.min()} to {page.max()} don't fit {dtype}, the largest that TIFF readers know: "
                "relabel the objects from 1 up."
            )
        yield np.ascontiguousarray(page, dtype)


def _ome_axes(axis_labels: Sequence[str]) -> str | None:
    """Return OME's letters for the axes, None where it has none for them."""
    letters = [AXIS_LETTERS.get(str(label).strip().lower(), "") for label in axis_labels]
    if letters[-2] not in ("", "Y") or letters[-1] not in ("", "X"):
        return None
    leading = letters[:-2]
    free = [letter for letter in "ZTC" if letter not in leading]
    for axis in reversed(range(len(leading))):
        if not leading[axis] and free:
            leading[axis] = free.pop(0)
    sound = all(letter in tuple("TZC") for letter in leading) and len(set(leading)) == len(leading)
    return "".join([*leading, "Y", "X"]) if sound else None


def _ome_sizes(axes: str, scale: Sequence[float], units: Sequence[str]) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for axis, step, name in zip(axes, scale, units, strict=True):
        if axis == "T" and name in TIME_UNITS:
            sizes |= {"TimeIncrement": float(step), "TimeIncrementUnit": TIME_UNITS[name]}
        unit = LENGTH_UNITS.get(name, "pixel")
        # Mirrored axes have a negative scale; sizes are positive.
        if axis in "ZYX" and step and (abs(step) != 1 or unit != "pixel"):
            sizes |= {f"PhysicalSize{axis}": abs(float(step)), f"PhysicalSize{axis}Unit": unit}
    return sizes


def coco_from_masks(
    masks: Mapping[tuple[int, Plane], PlaneMask],
    layer: str,
    shape: Sequence[int],
    axis_labels: Sequence[str],
    *,
    scores: Mapping[int, float | None] | None = None,
    classes: Sequence[str] = (),
    class_of: Mapping[int, str] | None = None,
    category: str = "object",
    polygons: bool = False,
    source: str | None = None,
) -> dict[str, Any]:
    """Return masks as a COCO document: an image for every plane that has objects, an annotation for every mask.

    An image has the name of its file, where there is one; the slices of a stack share it, and `slice` says which one it
    is, by the labels of its axes: {"t": 3, "z": 12}. Without a file, names are made of the layer and the slice, such as
    "cells_t003_z012". Images also carry `layer`, `axes` and `position` (of `Plane`) beside COCO's own fields;
    annotations carry `object_id`, which joins an object's planes.

    Args:
        masks: by object id and plane. Empty ones are left out.
        layer: name of the image.
        shape: length of each data axis.
        axis_labels: name of each data axis.
        scores: predicted IoU by object id; an annotation has a score where it is known.
        classes: names of the categories, in order.
        class_of: name of its category by object id, one of `classes`.
        category: name of that of objects without a class; left out where there are classes and each object has one.
        source: the file that the image was read from.
        polygons: write polygons instead of RLE. COCO takes the union of an annotation's polygons, so they can't say
            that there is a hole: a mask with holes stays RLE. Both give back exactly the same pixels.

    Raises:
        DatasetError: a mask that reaches outside its plane, or a plane of 2**31 pixels or more.
    """
    planes = {plane: number for number, plane in enumerate(sorted({plane for _, plane in _filled(masks)}), start=1)}
    annotations: list[dict[str, Any]] = []
    names = {object_id: (class_of or {}).get(object_id) or category for object_id, _ in _filled(masks)}
    categories = dict.fromkeys([*classes, *sorted({*names.values()} - {*classes})] or [category])
    numbers = {name: number for number, name in enumerate(categories, start=1)}
    for object_id, plane in sorted(_filled(masks), key=lambda key: (planes[key[1]], key[0])):
        mask, hw = masks[object_id, plane], _plane_hw(plane, shape)
        _check_inside(object_id, mask, hw)
        score = (scores or {}).get(object_id)
        annotation = coco_annotation(mask.pixels, planes[plane], numbers[names[object_id]], len(annotations) + 1, score)
        annotation["bbox"][0] += mask.x0
        annotation["bbox"][1] += mask.y0
        annotation["segmentation"] = (_polygons(mask) if polygons else None) or _plane_rle(mask, hw)
        annotation["object_id"] = int(object_id)
        annotations.append(annotation)
    return {
        "info": {"description": f"Objects segmented in {layer}", "axis_labels": [str(label) for label in axis_labels]},
        "images": [_coco_image(number, plane, layer, shape, axis_labels, source) for plane, number in planes.items()],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }


def write_coco(path: str | Path, saved: SavedSession, *, category: str = "object", polygons: bool = False) -> None:
    """Write a session's objects as COCO JSON, see `coco_from_masks`; the file appears whole or not at all.

    Raises:
        DatasetError: a mask that reaches outside its plane, or a plane of 2**31 pixels or more.
        OSError: the place can't be written.
    """
    shape, document = saved.image["shape"], saved.document
    classes = {object_id: document.class_of(item) for object_id, item in document.objects.items()}
    write_json(
        path,
        coco_from_masks(
            saved.masks,
            saved.image["name"],
            shape,
            saved.image.get("axis_labels") or [str(axis) for axis in range(len(shape))],
            scores={object_id: item.score for object_id, item in document.objects.items()},
            classes=[made.name for made in document.classes.values()],
            class_of={object_id: made.name for object_id, made in classes.items() if made is not None},
            category=category,
            polygons=polygons,
            source=_file_of(saved.image),
        ),
    )


def _check_inside(object_id: int, mask: PlaneMask, hw: tuple[int, int]) -> None:
    if min(mask.y0, mask.x0) < 0 or mask.rows.stop > hw[0] or mask.columns.stop > hw[1]:
        raise DatasetError(
            f"Object {object_id} spans rows {mask.rows.start} to {mask.rows.stop} and columns {mask.columns.start} "
            f"to {mask.columns.stop}, outside its plane of {hw}: give the shape of the image it was made on."
        )


def _filled(masks: Mapping[tuple[int, Plane], PlaneMask]) -> list[tuple[int, Plane]]:
    return [key for key, mask in masks.items() if mask.pixels.any()]


def _plane_hw(plane: Plane, shape: Sequence[int]) -> tuple[int, int]:
    return int(shape[plane.axes[0]]), int(shape[plane.axes[1]])


def _coco_image(
    number: int, plane: Plane, layer: str, shape: Sequence[int], axis_labels: Sequence[str], source: str | None
) -> dict[str, Any]:
    height, width = _plane_hw(plane, shape)
    parts, indices = [re.sub(r'[\\/:*?"<>|\s]+', "_", layer)], {}
    for axis, index in enumerate(plane.position):
        if index != FREE:
            label = str(axis_labels[axis])
            # Unnamed axes are called "-3", "-2", ... by napari, and "-3012" would be misread.
            named = label if label.isalpha() else f"axis{axis}"
            parts.append(f"{named}{'' if named == label else '_'}{index:0{max(3, len(str(shape[axis] - 1)))}d}")
            indices[named] = int(index)
    if plane.transposed:
        parts.append("transposed")
    return {
        "id": number,
        "file_name": Path(source).name if source is not None else "_".join(parts),
        "height": height,
        "width": width,
        "slice": indices,
        "layer": layer,
        "axes": [int(axis) for axis in plane.axes],
        "position": [int(index) for index in plane.position],
    }


def _file_of(image: Mapping[str, Any]) -> str | None:
    """Return the file that holds an image, None where it is not known: of several files napari names but the first."""
    source = image.get("source")
    if source is None:
        return None
    path, axes = Path(source), sum(size > 1 for size in image["shape"])
    if path.is_dir() and not path.suffix:
        return None  # A folder of files, and no .zarr or .n5.
    if path.suffix.lower() in ONE_PICTURE and axes > 2:
        return None
    if path.suffix.lower() in (".tif", ".tiff") and axes > 2:
        with contextlib.suppress(OSError, tifffile.TiffFileError), tifffile.TiffFile(path) as tiff:
            if max(series.size for series in tiff.series) < math.prod(image["shape"]):
                return None
    return str(source)


def _plane_rle(mask: PlaneMask, hw: tuple[int, int]) -> dict[str, Any]:
    """Encode a mask in its plane's frame, at the cost of its bounding box: planes can be huge and objects many."""
    height, width = hw
    if height * width >= RLE_PIXELS:
        raise DatasetError(
            f"A plane of {height} x {width} pixels has {RLE_PIXELS} or more, which is beyond COCO's RLE: write the "
            "labels as TIFF, or cut the image."
        )
    # COCO counts down the columns. Within one, runs start and end where the padded column changes.
    padded = np.pad(mask.pixels.T, ((0, 0), (1, 1)))
    columns, rows = np.nonzero(padded[:, 1:] != padded[:, :-1])
    edges = (columns + mask.x0) * height + rows + mask.y0
    # A run that ends at the bottom goes on when the next column starts at the top.
    joined = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([joined, joined + 1]))
    runs = np.diff(edges, prepend=0, append=height * width)
    if edges[-1] == height * width:
        runs = runs[:-1]
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def _polygons(mask: PlaneMask) -> list[list[float]] | None:
    """Return COCO's flat rings in the plane's frame, None where a hole makes them impossible."""
    outlines = polygons_from_mask(mask.pixels)
    if any(outline.holes for outline in outlines):
        return None
    return [(outline.exterior + (mask.x0, mask.y0)).ravel().tolist() for outline in outlines]
