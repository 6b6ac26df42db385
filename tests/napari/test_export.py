from __future__ import annotations

import contextlib
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools.coco import COCO

from refinesam import DatasetError, ImageError
from refinesam_napari.document import Document, SegmentedObject
from refinesam_napari.export import coco_from_masks, write_coco, write_labels_tiff
from refinesam_napari.geometry import FREE, Crop, Plane, PlaneMask
from refinesam_napari.storage import SavedSession

# pycocotools 2.0.11 under numpy 2, when it decodes.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RNG = np.random.default_rng(0)


def labels_of(shape: tuple[int, ...], dtype: Any = np.uint16) -> NDArray[Any]:
    return RNG.integers(0, 100, shape).astype(dtype)


def pixels_attributes(path: Path) -> dict[str, str]:
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        (pixels,) = (e for e in ElementTree.fromstring(str(tiff.ome_metadata)).iter() if e.tag.endswith("Pixels"))
        return dict(pixels.attrib)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int8", "int16", "int32", ">u2"])
def test_labels_come_back_with_their_dtype(tmp_path: Path, dtype: str) -> None:
    labels = labels_of((3, 20, 30), dtype)
    write_labels_tiff(tmp_path / "l.ome.tif", labels, "zyx", (1, 1, 1))
    read = tifffile.imread(tmp_path / "l.ome.tif")
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(read, labels)
    assert [path.name for path in tmp_path.iterdir()] == ["l.ome.tif"]


@pytest.mark.parametrize(("dtype", "stored"), [("int64", "uint32"), ("uint64", "uint32"), ("bool", "uint8")])
def test_dtypes_that_readers_lack_become_the_nearest_with_equal_values(tmp_path: Path, dtype: str, stored: str) -> None:
    labels = labels_of((3, 20, 30), dtype)
    if stored == "uint32":
        labels[2, 0, 0] = 2**32 - 1
    write_labels_tiff(tmp_path / "l.tif", labels, "zyx", (1, 1, 1))
    read = tifffile.imread(tmp_path / "l.tif")
    assert read.dtype == stored
    np.testing.assert_array_equal(read, labels)


@pytest.mark.parametrize(
    ("shape", "axis_labels", "axes"),
    [
        ((20, 30), "yx", "YX"),
        ((20, 3), "yx", "YX"),  # no RGB
        ((3, 20, 30), "tyx", "TYX"),
        ((2, 3, 20, 30), "tzyx", "TZYX"),
        ((2, 3, 20, 4), "zcyx", "ZCYX"),
        ((2, 3, 4, 20, 30), "czTyx", "CZTYX"),
        ((2, 3, 20, 30), ("time", "channel", "Y", "X"), "TCYX"),
        ((2, 3, 20, 30), ("-4", "-3", "-2", "-1"), "TZYX"),
        ((2, 3, 20, 30), ("position", "t", "y", "x"), "ZTYX"),
        ((2, 3, 4, 20, 30), ("a", "b", "c", "-2", "-1"), "TZCYX"),
    ],
)
def test_axes_are_named_as_ome_names_them(tmp_path: Path, shape: tuple[int, ...], axis_labels: Any, axes: str) -> None:
    labels = labels_of(shape)
    write_labels_tiff(tmp_path / "l.ome.tif", labels, axis_labels, [1] * len(shape))
    with tifffile.TiffFile(tmp_path / "l.ome.tif") as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == axes
        assert tiff.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        np.testing.assert_array_equal(tiff.asarray(), labels)


@pytest.mark.parametrize(
    ("shape", "axis_labels"),
    [
        ((2, 2, 2, 3, 20, 30), "abczyx"),
        ((20, 30, 4), "yxz"),
        ((4, 20, 30), "zxy"),
        ((2, 4, 20, 30), "zzyx"),
        ((2, 4, 20, 30), "xzyx"),
    ],
)
def test_what_ome_cannot_name_is_written_without_it(tmp_path: Path, shape: tuple[int, ...], axis_labels: str) -> None:
    labels = labels_of(shape)
    write_labels_tiff(tmp_path / "l.tif", labels, axis_labels, [0.5] * len(shape))
    with tifffile.TiffFile(tmp_path / "l.tif") as tiff:
        assert not tiff.is_ome
        assert tiff.shaped_metadata is not None
        described = tiff.shaped_metadata[0]
        np.testing.assert_array_equal(tiff.asarray(), labels)
    assert described["axis_labels"] == list(axis_labels)
    assert described["scale"] == [0.5] * len(shape)


def test_axes_of_length_one_are_kept_in_the_metadata_only(tmp_path: Path) -> None:
    labels = labels_of((1, 1, 20, 30))
    write_labels_tiff(tmp_path / "l.ome.tif", labels, "tzyx", (1, 1, 1, 1))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "l.ome.tif"), labels[0, 0])
    assert pixels_attributes(tmp_path / "l.ome.tif")["SizeZ"] == "1"


def test_scale_and_units_are_kept(tmp_path: Path) -> None:
    path, labels = tmp_path / "l.ome.tif", labels_of((2, 3, 20, 30))
    write_labels_tiff(path, labels, "tzyx", (30, 2, 0.25, -0.5), ("second", "micrometer", "um", "nm"))
    sizes = {name: value for name, value in pixels_attributes(path).items() if name.startswith(("Phys", "Time"))}
    assert sizes == {
        "TimeIncrement": "30.0",
        "TimeIncrementUnit": "s",
        "PhysicalSizeZ": "2.0",
        "PhysicalSizeZUnit": "µm",
        "PhysicalSizeY": "0.25",
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeX": "0.5",
        "PhysicalSizeXUnit": "nm",
    }


def test_a_scale_without_units_is_not_taken_for_micrometres(tmp_path: Path) -> None:
    path = tmp_path / "l.ome.tif"
    write_labels_tiff(path, labels_of((2, 20, 30)), "zyx", (1, 0.25, 0.5))
    attributes = pixels_attributes(path)
    assert (attributes["PhysicalSizeY"], attributes["PhysicalSizeYUnit"]) == ("0.25", "pixel")
    assert (attributes["PhysicalSizeX"], attributes["PhysicalSizeXUnit"]) == ("0.5", "pixel")
    assert "PhysicalSizeZ" not in attributes
    write_labels_tiff(path, labels_of((2, 20, 30)), "zyx", (1, 1, 1), ("pixel", "pixel", "furlong"))
    assert not any(name.startswith("Phys") for name in pixels_attributes(path))


class LazyLabels:
    """Labels that are made when they are indexed, and know nothing else of arrays."""

    shape, dtype = (40, 512, 512), np.dtype(np.uint32)

    def __getitem__(self, index: Any) -> NDArray[np.uint32]:
        (z,) = index
        # Noise, so that compression can't hide pages that pile up.
        return np.random.default_rng(z).integers(0, 2**32, self.shape[1:], np.uint32)


def test_lazy_labels_are_written_in_the_memory_of_a_few_pages(tmp_path: Path) -> None:
    lazy = LazyLabels()
    page_bytes = 512 * 512 * 4
    write_labels_tiff(tmp_path / "warm.tif", lazy[0,], "yx", (1, 1))  # imports are no part of it
    tracemalloc.start()
    try:
        write_labels_tiff(tmp_path / "l.tif", lazy, "zyx", (1, 1, 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * page_bytes
    with tifffile.TiffFile(tmp_path / "l.tif") as tiff:
        for z in (0, 17, 39):
            np.testing.assert_array_equal(tiff.pages[z].asarray(), lazy[z,])


def test_dask_and_zarr_labels_are_written(tmp_path: Path) -> None:
    array = pytest.importorskip("dask.array")
    zarr = pytest.importorskip("zarr")
    labels = labels_of((2, 3, 20, 30))
    stored = zarr.create_array(store=zarr.storage.MemoryStore(), data=labels, chunks=(1, 1, 16, 16))
    for index, lazy in enumerate([array.from_array(labels, chunks=(1, 2, 7, 30)), stored]):
        write_labels_tiff(tmp_path / f"{index}.tif", lazy, "tzyx", (1, 1, 1, 1))
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"{index}.tif"), labels)


def test_more_than_a_classic_tiff_can_address_becomes_a_big_tiff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = labels_of((3, 20, 30))
    monkeypatch.setattr("refinesam_napari.export.CLASSIC_TIFF_BYTES", labels.nbytes)
    for name, dtype, big in [("classic.tif", np.uint16, False), ("big.tif", np.uint32, True)]:
        write_labels_tiff(tmp_path / name, labels.astype(dtype), "zyx", (1, 1, 1))
        with tifffile.TiffFile(tmp_path / name) as tiff:
            assert tiff.is_bigtiff == big
            np.testing.assert_array_equal(tiff.asarray(), labels)


BAD_LABELS = {
    "floats": (np.zeros((3, 4)), "yx", ImageError, r"got float64 \(3, 4\): convert them"),
    "one axis": (np.zeros(3, np.uint8), "x", ImageError, r"got uint8 \(3,\)"),
    "no pixels": (np.zeros((0, 4), np.uint8), "yx", ImageError, r"got uint8 \(0, 4\)"),
    "negative": (np.array([[0, 0], [0, -1]]), "yx", ImageError, "Labels from -1 to 0 don't fit uint32.*relabel"),
    "too large": (np.full((2, 2, 2), 2**32), "zyx", ImageError, "to 4294967296 don't fit uint32.*relabel"),
    "too few labels": (np.zeros((3, 4), np.uint8), "x", DatasetError, "2 axes, but there are 1 axis_labels.*for every"),
}


@pytest.mark.parametrize(("labels", "axis_labels", "error", "message"), BAD_LABELS.values(), ids=BAD_LABELS.keys())
def test_bad_labels_leave_an_older_file_alone(
    tmp_path: Path, labels: NDArray[Any], axis_labels: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "l.tif"
    path.write_bytes(b"older")
    with pytest.raises(error, match=message):
        write_labels_tiff(path, labels, axis_labels, [1] * labels.ndim)
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


SHAPE = (4, 13, 20, 30)  # t, z, y, x
PLANE = Plane((2, 3), (3, 12, FREE, FREE))
SIDE = Plane((1, 3), (3, FREE, 7, FREE))
WHOLE = Crop(0, 0, 30, 20)
PARTS = np.zeros((20, 30), np.bool_)
PARTS[2:9, 3:12] = True
PARTS[4:6, 5:7] = False
PARTS[15:20, 28:30] = True
SQUARE = np.zeros((20, 30), np.bool_)
SQUARE[:, 10:14] = True


def loaded(document: dict[str, Any], path: Path) -> COCO:
    path.write_text(json.dumps(document, allow_nan=False))
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def test_coco_tools_read_planes_objects_and_masks(tmp_path: Path) -> None:
    side = np.zeros((13, 30), np.bool_)
    side[12, 29] = True
    masks = {
        (7, PLANE): PlaneMask.of(SQUARE, WHOLE),
        (2, PLANE): PlaneMask.of(PARTS, WHOLE),
        (2, SIDE): PlaneMask.of(side, Crop(0, 0, 30, 13)),
        (9, PLANE.moved(0, 1)): PlaneMask.of(np.zeros((20, 30), np.bool_), WHOLE),
    }
    objects = {2: SegmentedObject(2, score=0.75), 7: SegmentedObject(7, origin="painted"), 9: SegmentedObject(9)}
    image = {"name": "my cells: 1/2", "shape": SHAPE, "axis_labels": "tzyx"}
    write_coco(tmp_path / "a.json", SavedSession(Document(objects=objects), masks, image), category="cell")
    coco = loaded(json.loads((tmp_path / "a.json").read_text()), tmp_path / "b.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["cell"]
    images = coco.loadImgs(coco.getImgIds())
    assert [(i["file_name"], i["height"], i["width"]) for i in images] == [
        ("my_cells_1_2_t003_y007", 13, 30),
        ("my_cells_1_2_t003_z012", 20, 30),
    ]
    assert [Plane(tuple(i["axes"]), tuple(i["position"])) for i in images] == [SIDE, PLANE]
    assert {i["layer"] for i in images} == {"my cells: 1/2"}
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [(a["object_id"], a["image_id"]) for a in annotations] == [(2, 1), (2, 2), (7, 2)]
    assert [a.get("score") for a in annotations] == [0.75, 0.75, None]
    for annotation, mask in zip(annotations, [side, PARTS, SQUARE], strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
    assert [a["bbox"] for a in annotations] == [[29, 12, 1, 1], [3, 2, 27, 18], [10, 0, 4, 20]]


@given(data=st.data(), polygons=st.booleans())
def test_every_mask_survives(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, polygons: bool) -> None:
    mask = data.draw(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
    top, left, bottom, right = (data.draw(st.integers(0, 3)) for _ in range(4))
    whole = np.pad(mask, ((top, bottom), (left, right)))
    masks = {(1, Plane((0, 1), (FREE, FREE))): PlaneMask(top, left, mask)}
    coco = loaded(
        coco_from_masks(masks, "cells", whole.shape, "yx", polygons=polygons),
        tmp_path_factory.getbasetemp() / "coco.json",
    )
    assert len(coco.anns) == mask.any()
    for annotation in coco.anns.values():
        np.testing.assert_array_equal(coco.annToMask(annotation), whole)
        x, y, width, height = (int(n) for n in annotation["bbox"])
        assert whole[y : y + height, x : x + width].sum() == annotation["area"] == whole.sum()


def test_run_lengths_are_those_of_cocos_own_encoder() -> None:
    from pycocotools import mask as coco_mask

    for mask in [PARTS, SQUARE, np.ones((20, 30), np.bool_), RNG.random((20, 30)) > 0.5]:
        masks = {(1, PLANE): PlaneMask.of(mask, WHOLE)}
        (annotation,) = coco_from_masks(masks, "cells", SHAPE, "tzyx")["annotations"]
        assert annotation["segmentation"]["counts"].encode() == coco_mask.encode(np.asfortranarray(mask))["counts"]


def test_polygons_are_written_where_there_are_no_holes() -> None:
    masks = {(1, PLANE): PlaneMask.of(PARTS, WHOLE), (2, PLANE): PlaneMask.of(SQUARE, WHOLE)}
    with_hole, without = coco_from_masks(masks, "cells", SHAPE, "tzyx", polygons=True)["annotations"]
    assert with_hole["segmentation"]["size"] == [20, 30]
    assert without["segmentation"] == [[10, 0, 10, 20, 14, 20, 14, 0]]


def test_every_plane_has_a_name_of_its_own() -> None:
    mask = PlaneMask(0, 0, np.ones((1, 1), np.bool_))
    one, turned = Plane((1, 2), (1042, FREE, FREE)), Plane((2, 1), (1042, FREE, FREE))
    channel = Plane((1, 2), (FREE, FREE, FREE))
    masks = {(1, one): mask, (1, turned): mask, (1, channel): mask, (1, one.moved(0, 3)): mask}
    document = coco_from_masks(masks, "cells", (2000, 5, 6), ("-3", "-2", "-1"))
    assert [(image["file_name"], image["height"], image["width"]) for image in document["images"]] == [
        ("cells", 5, 6),
        ("cells_axis0_0003", 5, 6),
        ("cells_axis0_1042", 5, 6),
        ("cells_axis0_1042_transposed", 6, 5),
    ]


@pytest.mark.parametrize(("y0", "x0"), [(13, 3), (2, 3), (-1, 3), (2, -1)])
def test_a_mask_outside_its_plane_is_an_error(y0: int, x0: int) -> None:
    masks = {(1, PLANE): PlaneMask(y0, x0, np.ones((8, 28), np.bool_))}
    with pytest.raises(DatasetError, match=r"Object 1 spans rows .* outside its plane of \(20, 30\): give the shape"):
        coco_from_masks(masks, "cells", SHAPE, "tzyx")


def test_a_mask_costs_its_bounding_box_only() -> None:
    plane = Plane((0, 1), (FREE, FREE))
    masks = {(n, plane): PlaneMask(30_000, 29_000 + n, SQUARE[:, 10:14]) for n in range(1, 4)}
    tracemalloc.start()
    try:
        document = coco_from_masks(masks, "slide", (40_000, 40_000), "yx")  # 1.6 GB as an array
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [annotation["area"] for annotation in document["annotations"]] == [80, 80, 80]
    assert peak < 2**20
    with pytest.raises(DatasetError, match="50000 x 50000 pixels.*beyond COCO's RLE: write the labels as TIFF"):
        coco_from_masks(masks, "slide", (50_000, 50_000), "yx")
