"""Each format, read back as its own reader or specification reads it: the masks are the same, pixel by pixel."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from refinesam.cli import main
from refinesam.errors import DatasetError, OutputError
from refinesam.jobs.folder import JobFolder
from refinesam.jobs.formats.geotiff import read_georeference
from refinesam.jobs.formats.objects import Results
from refinesam.jobs.formats.outlines import coco_polygons, simple_polygons, yolo_outline
from refinesam.jobs.formats.rasters import write_label_png, write_voc
from refinesam.jobs.inputs import Source
from refinesam.jobs.prompts import ObjectPrompt
from refinesam.jobs.rows import Task, failed_rows, image_row, object_row
from refinesam.masks import decode_rle, mask_from_polygons
from refinesam.types import Prediction, Prompt

HW = (30, 44)


def masks() -> dict[str, np.ndarray]:
    """A ring with a hole, an object of two parts, one that touches itself at a corner only, a single pixel."""
    ring, parts, corner, pixel = (np.zeros(HW, bool) for _ in range(4))
    ring[4:20, 5:30] = True
    ring[8:12, 9:14] = ring[13:18, 16:25] = False
    ring[9:11, 10:12] = True  # an island in the hole
    parts[2:5, 30:40] = parts[20:28, 3:9] = True
    corner[20:24, 20:24] = corner[24:28, 24:28] = True
    pixel[29, 43] = True
    return {"ring": ring, "parts": parts, "corner": corner, "pixel": pixel}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two images, one with four masks of three classes, one without; a failure and an empty mask between them."""
    tasks = [
        Task(i, Source(name, f"{tmp_path}/{name}"), ()) for i, name in enumerate(("a/one.png", "two.png", "x.png"))
    ]
    folder = JobFolder(tmp_path / "results", {}, tasks, 2)
    size = {"height": HW[0], "width": HW[1], "seconds": 0.1}
    rows = []
    for number, (name, mask) in enumerate([*masks().items(), ("ring", np.zeros(HW, bool))]):
        asked = ObjectPrompt(box=(1, 2, 3, 4), class_id=7 if name == "ring" else 9, class_name=f"c {name}"[:4])
        asked = ObjectPrompt(asked.box, class_id=ord(name[0]), class_name=f'"{name[0]}": ä')
        ours = Prediction(
            mask[None], np.array([0.5], np.float32), np.zeros((1, 4, 4), np.float32), Prompt(box=asked.box)
        )
        rows.append(object_row(tasks[0], number, asked, ours, None, **size))
    rows.append(object_row(tasks[0], 5, ObjectPrompt(error="bad"), None, "bad", **size))
    folder.write(0, [*rows, image_row(tasks[1], **size)])
    folder.write(1, failed_rows(tasks[2], "damaged"))
    return tmp_path / "results"


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["refinesam", "convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("kind", ["coco", "coco-polygons"])
def test_coco_is_read_by_pycocotools(
    monkeypatch: pytest.MonkeyPatch, results: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = results.parent / "coco.json"
    assert convert(monkeypatch, results, output, "--to", kind) == 0
    assert "3 classes" in (said := capsys.readouterr().out) and "3 that failed or are empty were left out" in said
    coco = COCO(output)
    assert {image["file_name"]: (image["height"], image["width"]) for image in coco.loadImgs(coco.getImgIds())} == {
        "a/one.png": HW,
        "two.png": HW,
    }
    found = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    for annotation, (name, mask) in zip(found, masks().items(), strict=True):
        rle = coco.annToRLE(annotation)
        assert (decode_rle(rle) == mask).all()
        assert coco.loadCats(annotation["category_id"])[0] == {"id": ord(name[0]), "name": f'"{name[0]}": ä'}
        assert annotation["area"] == mask.sum()
        assert isinstance(annotation["segmentation"], list) == (kind == "coco-polygons")


def test_yolo_is_filled_by_opencv_as_its_trainers_do(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads data.yaml")
    output = results.parent / "yolo"
    assert convert(monkeypatch, results, output, "--to", "yolo") == 0
    names = yaml.safe_load((output / "data.yaml").read_text("utf-8"))["names"]
    assert (output / "labels" / "two.txt").read_text() == ""
    lines = (output / "labels" / "a" / "one.txt").read_text().splitlines()
    for line, (name, mask) in zip(lines, masks().items(), strict=True):
        number, *values = line.split()
        assert names[int(number)] == f'"{name[0]}": ä'
        filled = filled_outline(np.array(values, float).reshape(-1, 2) * (HW[1], HW[0]))
        if name == "parts":  # joined by a line
            assert filled[mask].all() and filled.sum() - mask.sum() <= 40
        elif name == "ring":  # the island in its hole is a part of its own
            assert filled[mask].all() and filled.sum() - mask.sum() <= 4
        else:
            assert (filled == mask).all()


def filled_outline(points: np.ndarray, image_hw: tuple[int, int] = HW) -> np.ndarray:
    """As YOLO's trainers do: cut to whole pixels, then OpenCV's fillPoly."""
    canvas = np.zeros(image_hw, np.uint8)
    cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
    return canvas.astype(bool)


def test_voc_is_read_as_its_devkit_does(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    output = results.parent / "voc"
    assert convert(monkeypatch, results, output, "--to", "voc") == 0
    names = (output / "labels.txt").read_text("utf-8").splitlines()
    assert (output / "ImageSets" / "Segmentation" / "all.txt").read_text() == "a/one\ntwo\n"
    objects = Image.open(output / "SegmentationObject" / "a" / "one.png")
    assert objects.mode == "P" and objects.getpalette()[3:9] == [128, 0, 0, 0, 128, 0]
    classes = np.asarray(Image.open(output / "SegmentationClass" / "a" / "one.png"))
    tree = ElementTree.parse(output / "Annotations" / "a" / "one.xml")
    for number, (entry, (name, mask)) in enumerate(zip(tree.findall("object"), masks().items(), strict=True), start=1):
        assert (np.asarray(objects)[mask] == number).all() and (np.asarray(objects) == number).sum() == mask.sum()
        assert entry.findtext("name") == names[classes[mask][0] - 1] == f'"{name[0]}": ä'
        rows, columns = np.nonzero(mask)
        corners = [int(entry.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")]
        assert corners == [columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1]


def test_labelme_shapes_fill_their_masks(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    output = results.parent / "labelme"
    assert convert(monkeypatch, results, output, "--to", "labelme") == 0
    document = json.loads((output / "a" / "one.json").read_text())
    assert (output / "a" / document["imagePath"]).resolve() == results.parent / "a" / "one.png"
    for shape, (name, mask) in zip(document["shapes"], masks().items(), strict=True):
        # labelme.utils.shapes_to_label: the mask lies between the two points, both inside.
        (x0, y0), (x1, y1) = shape["points"]
        part = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))).astype(bool)
        whole = np.zeros(HW, bool)
        whole[y0 : y1 + 1, x0 : x1 + 1] = part
        assert shape["shape_type"] == "mask" and shape["label"] == f'"{name[0]}": ä'
        assert (whole == mask).all()


@pytest.mark.parametrize(
    ("kind", "suffix", "dtype"),
    [("labels-png", ".png", np.uint16), ("labels-tiff", ".tif", np.uint32), ("labels-tiff-16", ".tif", np.uint16)],
)
def test_label_images(monkeypatch: pytest.MonkeyPatch, results: Path, kind: str, suffix: str, dtype: Any) -> None:
    output = results.parent / "labels"
    assert convert(monkeypatch, results, output, "--to", kind) == 0
    path = (output / "a" / "one.png").with_suffix(suffix)
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if suffix == ".png" else tifffile.imread(path)
    assert labels.dtype == dtype and labels.shape == HW
    with (output / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, (name, mask) in zip(rows, masks().items(), strict=True):
        assert ((labels == int(row["label"])) == mask).all()
        assert (row["file"], row["class"]) == (f"a/one{suffix}", f'"{name[0]}": ä')


def test_one_png_a_mask(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    output = results.parent / "masks"
    assert convert(monkeypatch, results, output, "--to", "masks") == 0
    files = sorted((output / "a" / "one").iterdir())
    assert [file.name for file in files] == [f"000{n}__{name[0]}___ä.png" for n, name in enumerate(masks())]
    for file, mask in zip(files, masks().values(), strict=True):
        pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        assert pixels.dtype == np.uint8 and ((pixels == 255) == mask).all() and ((pixels == 0) == ~mask).all()


def mask_of_geometry(geometry: dict[str, Any]) -> np.ndarray:
    """By RFC 7946: outer rings counterclockwise, holes clockwise, closed; the centre of a pixel is in or out."""
    y, x = np.indices(HW) + 0.5
    inside = np.zeros(HW, bool)
    for outer, *holes in geometry["coordinates"]:
        part = contains(outer, x, y, counterclockwise=True)
        for hole in holes:
            part &= ~contains(hole, x, y, counterclockwise=False)
        assert not (inside & part).any()
        inside |= part
    return inside


def contains(ring: list[list[float]], x: np.ndarray, y: np.ndarray, counterclockwise: bool) -> np.ndarray:
    assert ring[0] == ring[-1] and len({tuple(vertex) for vertex in ring}) == len(ring) - 1, "it touches itself"
    points = np.array(ring)
    area = (points[:-1, 0] * points[1:, 1] - points[1:, 0] * points[:-1, 1]).sum()
    assert (area > 0) == counterclockwise
    crossings = np.zeros(x.shape, int)
    for (x0, y0), (x1, y1) in zip(points[:-1], points[1:], strict=True):
        if y0 != y1:
            crossings += ((y0 > y) != (y1 > y)) & (x < x0 + (x1 - x0) * (y - y0) / (y1 - y0))
    return crossings % 2 == 1


def test_geojson_in_pixels(monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    output = results.parent / "geojson"
    assert convert(monkeypatch, results, output, "--to", "geojson") == 0
    document = json.loads((output / "a" / "one.geojson").read_text())
    assert "crs" not in document and document["type"] == "FeatureCollection"
    for feature, (name, mask) in zip(document["features"], masks().items(), strict=True):
        assert feature["properties"]["classification"]["name"] == f'"{name[0]}": ä'
        assert (mask_of_geometry(feature["geometry"]) == mask).all()


def write_geotiff(path: Path, is_point: bool, transformation: bool = False) -> None:
    keys = (1, 1, 0, 2, 1025, 0, 1, 2 if is_point else 1, 3072, 0, 1, 32633)
    extra = [(34735, "H", len(keys), keys, True)]
    if transformation:
        matrix = (0.0, 0.5, 0, 500000, -0.5, 0.0, 0, 4100000, 0, 0, 0, 0, 0, 0, 0, 1)
        extra.append((34264, "d", 16, matrix, True))
    else:
        extra += [(33550, "d", 3, (0.5, 0.5, 0.0), True), (33922, "d", 6, (0, 0, 0, 500000, 4100000, 0), True)]
    tifffile.imwrite(path, np.zeros((*HW, 3), np.uint8), extratags=extra)


@pytest.mark.parametrize(
    ("is_point", "transformation", "origin", "one_right"),
    [
        (False, False, (500000, 4100000), (500000.5, 4100000)),
        (True, False, (499999.75, 4100000.25), (500000.25, 4100000.25)),
        (False, True, (500000, 4100000), (500000, 4099999.5)),
    ],
)
def test_geotiffs_give_map_coordinates(
    tmp_path: Path, is_point: bool, transformation: bool, origin: tuple[float, ...], one_right: tuple[float, ...]
) -> None:
    write_geotiff(tmp_path / "map.tif", is_point, transformation)
    reference = read_georeference(str(tmp_path / "map.tif"))
    assert reference is not None and reference.epsg == 32633
    assert reference.to_map(np.array([[0.0, 0], [1, 0]])).tolist() == [list(origin), list(one_right)]


def test_geojson_on_the_map(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_geotiff(tmp_path / "map.tif", False)
    task = Task(0, Source("map.tif", str(tmp_path / "map.tif")), ())
    folder = JobFolder(tmp_path / "results", {}, [task], 1)
    mask, asked = masks()["ring"], ObjectPrompt(box=(1, 2, 3, 4))
    ours = Prediction(mask[None], np.array([0.5], np.float32), np.zeros((1, 4, 4), np.float32), Prompt(box=asked.box))
    folder.write(0, [object_row(task, 0, asked, ours, None, height=HW[0], width=HW[1])])
    assert convert(monkeypatch, tmp_path / "results", tmp_path / "out", "--to", "geojson") == 0
    document = json.loads((tmp_path / "out" / "map.geojson").read_text())
    assert document["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    (feature,) = document["features"]
    assert feature["properties"]["class"] == "object"
    for polygon in feature["geometry"]["coordinates"]:
        for ring in polygon:
            ring[:] = [[(x - 500000) * 2, (4100000 - y) * 2] for x, y in ring][::-1]  # y turns, and with it the order
    assert (mask_of_geometry(feature["geometry"]) == mask).all()


noise = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).random((14, 17)) < np.random.default_rng(seed + 1).uniform(0.2, 0.95)
)


@given(noise)
def test_polygons_of_any_mask_are_exact(mask: np.ndarray) -> None:
    if not mask.any():
        return
    assert coco_polygons(mask) is not None
    polygons = simple_polygons(mask)
    assert (mask_from_polygons(polygons, (14, 17)) == mask).all()
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    assert all(len(np.unique(ring, axis=0)) == len(ring) for ring in rings)


@given(noise)
def test_yolo_outlines_of_one_part_are_exact_holes_and_all(mask: np.ndarray) -> None:
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for part in range(1, count):
        one = parts == part
        outline = yolo_outline(one)
        assert len(outline) >= 3
        written = [float(f"{value:.7g}") for value in ((outline + 0.5) / (17, 14)).ravel()]
        assert (filled_outline(np.reshape(written, (-1, 2)) * (17, 14), (14, 17)) == one).all()


def test_nothing_is_overwritten_and_limits_are_told(results: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match="not empty: give a new folder"):
        write_label_png(Results(results), tmp_path / "there")
    tasks = [Task(i, Source(name, name), ()) for i, name in enumerate(("a.png", "a.jpg"))]
    folder = JobFolder(tmp_path / "same", {}, tasks, 5)
    folder.write(0, [image_row(task, height=4, width=4) for task in tasks])
    with pytest.raises(OutputError, match=r"a\.png and a\.jpg would both become"):
        write_label_png(Results(tmp_path / "same"), tmp_path / "one")
    many = JobFolder(tmp_path / "many", {}, tasks[:1], 5)
    known = {"height": 4, "width": 4, "predicted_iou": 0.5, "rle": "0`0", "box": [0.0, 0, 4, 4], "area": 16}
    many.write(0, [image_row(tasks[0], object=number, **known) for number in (254,)])
    with pytest.raises(OutputError, match="more than 254 objects"):
        write_voc(Results(tmp_path / "many"), tmp_path / "voc")
    with pytest.raises(DatasetError, match="holds no results of refinesam batch"):
        Results(tmp_path / "there")
    (results / "shards" / "00001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 shards.*run the same refinesam batch again"):
        Results(results)
