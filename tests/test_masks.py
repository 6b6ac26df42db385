from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from refinesam.errors import DatasetError, ImageError
from refinesam.masks import (
    Polygon,
    box_from_mask,
    box_iou,
    coco_annotation,
    decode_rle,
    decode_segmentation,
    encode_rle,
    mask_from_polygons,
    mask_iou,
    polygons_from_mask,
)

RNG = np.random.default_rng(0)
MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
RING = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [0, 1, 0, 1, 0, 1, 0],
        [0, 1, 0, 0, 0, 1, 0],
        [0, 1, 1, 1, 1, 1, 0],
    ],
    np.bool_,
)
SHAPES = {
    "one pixel": np.ones((1, 1), np.bool_),
    "one pixel within": np.pad(np.ones((1, 1), np.bool_), 3),
    "one row": np.array([[1, 0, 1, 1, 0, 0, 1]], np.bool_),
    "one column": np.array([[1, 0, 1, 1, 0, 0, 1]], np.bool_).T,
    "all": np.ones((5, 7), np.bool_),
    "none": np.zeros((5, 7), np.bool_),
    "diagonal": np.eye(6, dtype=np.bool_),
    "checkerboard": np.indices((7, 8)).sum(axis=0) % 2 == 0,
    "hole of one pixel": np.pad(np.zeros((1, 1), np.bool_), 1, constant_values=True),
    "ring with an island": RING,
    "ring closed by a corner": RING & ~np.eye(6, 7, k=-4, dtype=np.bool_),
    "noise": RNG.random((60, 80)) > 0.5,
}


def each_shape() -> Any:
    return pytest.mark.parametrize("mask", list(SHAPES.values()), ids=list(SHAPES))


def coco_decode(rle: dict[str, Any]) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 under numpy 2
        return coco_mask.decode(rle)


# ---------------------------------------------------------------- run lengths


@each_shape()
def test_rle_round_trips(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    assert json.loads(json.dumps(rle)) == rle
    np.testing.assert_array_equal(decode_rle(rle), mask)


@given(MASKS)
def test_any_mask_round_trips_through_rle(mask: np.ndarray) -> None:
    rle = encode_rle(mask)
    decoded = decode_rle(rle)
    assert decoded.dtype == np.bool_
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, mask)
    np.testing.assert_array_equal(coco_decode(rle), mask)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30).filter(lambda runs: sum(runs) > 0))
def test_every_form_of_counts_decodes_alike(runs: list[int]) -> None:
    size = [sum(runs), 1]
    expected = np.repeat(np.arange(len(runs)) % 2 == 1, runs)[:, None]
    compressed = coco_mask.frPyObjects({"size": size, "counts": runs}, *size)["counts"]
    for counts in (runs, tuple(runs), np.array(runs), compressed, compressed.decode("ascii")):
        np.testing.assert_array_equal(decode_rle({"size": size, "counts": counts}), expected)


def test_masks_of_ones_and_zeros_are_taken() -> None:
    assert encode_rle(RING.astype(np.uint8)) == encode_rle(RING) == encode_rle(RING.astype(float).tolist())


@given(st.text(max_size=12) | st.binary(max_size=12) | st.lists(st.integers(), max_size=6))
def test_any_counts_give_a_mask_or_the_error(counts: Any) -> None:
    try:
        mask = decode_rle({"size": [3, 4], "counts": counts})
    except DatasetError:
        return
    assert mask.shape == (3, 4)


@given(MASKS, st.data())
def test_damaged_counts_give_a_mask_or_the_error(mask: np.ndarray, data: st.DataObject) -> None:
    rle = encode_rle(mask)
    position = data.draw(st.integers(0, len(rle["counts"]) - 1))
    letter = data.draw(st.characters(min_codepoint=48, max_codepoint=111))
    damaged = rle["counts"][:position] + letter + rle["counts"][position + 1 :]
    try:
        decoded = decode_rle({"size": rle["size"], "counts": damaged})
    except DatasetError:
        return
    # What passes the check is what COCO's own decoder reads.
    np.testing.assert_array_equal(decoded, coco_decode({"size": rle["size"], "counts": damaged}))


BAD_RLES: list[tuple[str, Any, str]] = [
    ("not a mapping", [1, 2], "add 'size'"),
    ("None", None, "add 'size'"),
    ("no counts", {"size": [2, 2]}, "add 'counts'"),
    ("no size", {"counts": [4]}, "add 'size'"),
    ("size of one", {"size": [4], "counts": [4]}, "two positive integers, .height, width."),
    ("size of three", {"size": [2, 2, 1], "counts": [4]}, "two positive integers"),
    ("size of zero", {"size": [0, 4], "counts": []}, "two positive integers"),
    ("negative size", {"size": [-2, -2], "counts": [4]}, "two positive integers"),
    ("fractional size", {"size": [2.0, 2.0], "counts": [4]}, "two positive integers"),
    ("size in words", {"size": "2x2", "counts": [4]}, "two positive integers"),
    ("boolean size", {"size": [True, True], "counts": [1]}, "two positive integers"),
    ("absurd size", {"size": [10**6, 10**6], "counts": [10**12]}, "check the size, or tile"),
    ("no runs", {"size": [2, 2], "counts": []}, "check that the counts are whole"),
    ("empty string", {"size": [2, 2], "counts": ""}, "check that the counts are whole"),
    ("too few", {"size": [2, 2], "counts": [1, 2]}, "check that the counts are whole"),
    ("too many", {"size": [2, 2], "counts": [1, 4]}, "check that the counts are whole"),
    ("size swapped for another", {**encode_rle(RING), "size": [6, 8]}, "size is .height, width."),
    (
        "overflowing runs",
        {"size": [2, 2], "counts": [2**62, 2**62, 2**62, 2**62, 4]},
        "check that the counts are whole",
    ),
    ("negative run", {"size": [2, 2], "counts": [-1, 5]}, "damaged, export again"),
    ("fractional runs", {"size": [2, 2], "counts": [1.5, 2.5]}, "flat list of integers.*export again"),
    ("nested runs", {"size": [2, 2], "counts": [[1], [3]]}, "flat list of integers"),
    ("ragged runs", {"size": [2, 2], "counts": [[1], [3, 4]]}, "flat list of integers"),
    ("runs beyond 64 bits", {"size": [2, 2], "counts": [10**30]}, "flat list of integers"),
    ("counts is None", {"size": [2, 2], "counts": None}, "flat list of integers"),
    ("counts is a number", {"size": [2, 2], "counts": 4}, "flat list of integers"),
    ("cut off within a run", {"size": [100, 100], "counts": "Q"}, "cut off, export the annotation again"),
    ("cut off between runs", {**encode_rle(RING), "counts": encode_rle(RING)["counts"][:-1]}, "counts are whole"),
    ("not COCO's letters", {"size": [2, 2], "counts": "hello world!"}, "export the annotation again"),
    ("beyond ASCII", {"size": [2, 2], "counts": "2\u00fc"}, "export the annotation again"),
    ("half a character", {"size": [2, 2], "counts": "\ud800"}, "export the annotation again"),
    ("an endless run", {"size": [2, 2], "counts": "o" * 50 + "0"}, "export the annotation again"),
    ("compressed negative run", {"size": [2, 2], "counts": "O5"}, "damaged, export again"),
]


@pytest.mark.parametrize(("rle", "advice"), [row[1:] for row in BAD_RLES], ids=[row[0] for row in BAD_RLES])
def test_bad_rles_are_refused_with_advice(rle: Any, advice: str) -> None:
    with pytest.raises(DatasetError, match=advice):
        decode_rle(rle)


# ---------------------------------------------------------------- polygons


def area(ring: np.ndarray) -> float:
    x, y = ring.astype(float).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def assert_exact(mask: np.ndarray) -> None:
    polygons = polygons_from_mask(mask)
    np.testing.assert_array_equal(mask_from_polygons(polygons, mask.shape), mask)
    assert sum(area(p.exterior) - sum(map(area, p.holes)) for p in polygons) == np.count_nonzero(mask)
    for ring in (ring for p in polygons for ring in (p.exterior, *p.holes)):
        vertical = (np.roll(ring, -1, axis=0) == ring)[:, 0]
        assert (vertical != np.roll(vertical, 1)).all(), "every vertex is a corner"


@each_shape()
def test_polygons_give_back_the_mask_exactly(mask: np.ndarray) -> None:
    assert_exact(mask)


@given(MASKS)
def test_any_mask_survives_the_way_to_polygons_and_back(mask: np.ndarray) -> None:
    assert_exact(mask)


def test_a_pixel_is_a_unit_square() -> None:
    (polygon,) = polygons_from_mask(SHAPES["one pixel within"])
    assert sorted(polygon.exterior.tolist()) == [[3, 3], [3, 4], [4, 3], [4, 4]]
    assert polygon.exterior.dtype == np.float64
    assert polygon.holes == ()


def test_holes_and_islands_are_told_apart() -> None:
    polygons = polygons_from_mask(RING)
    assert sorted((area(p.exterior), [area(hole) for hole in p.holes]) for p in polygons) == [(1, []), (25, [9])]


def test_pixels_that_meet_by_a_corner_are_one_component() -> None:
    assert len(polygons_from_mask(np.eye(4, dtype=np.bool_))) == 1


def test_overlapping_polygons_are_united_and_a_hole_cuts_its_own_polygon_only() -> None:
    square = np.array([[0, 0], [6, 0], [6, 6], [0, 6]], np.float64)
    expected = np.zeros((8, 8), np.bool_)
    expected[:6, :6] = True
    for order in (1, -1):
        polygons = [Polygon(square, (square / 2 + 1,)), Polygon(square / 3 + 2)][::order]
        mask = mask_from_polygons(polygons, (8, 8))
        np.testing.assert_array_equal(mask[2:4, 2:4], True)
        assert mask.sum() == 36 - 9 + 4
        assert not (mask & ~expected).any()


def test_polygons_over_the_border_are_cut() -> None:
    ring = np.array([[-4, -3], [3, -3], [3, 20], [-4, 20]], np.float64)
    expected = np.zeros((12, 9), np.bool_)
    expected[:, :3] = True
    np.testing.assert_array_equal(mask_from_polygons([Polygon(ring)], (12, 9)), expected)
    for shift in ([-5, 0], [10, 0], [0, -9]):
        outside = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], np.float64) + shift
        expected = np.zeros((12, 9), np.bool_)
        expected[max(0, shift[1]) : max(0, shift[1] + 4), max(0, shift[0]) : max(0, shift[0] + 4)] = True
        np.testing.assert_array_equal(mask_from_polygons([Polygon(outside)], (12, 9)), expected)


# Tenths of a pixel, as annotation tools write them, lie on the rasteriser's rounding borders; far from 0 most of all.
COORDINATES = st.integers(-90, 500).map(lambda tenths: tenths / 10) | st.floats(-9, 50)


@given(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=9))
def test_polygons_are_filled_as_coco_fills_them(points: list[tuple[float, float]]) -> None:
    flat = [coordinate for point in points for coordinate in point]
    expected = coco_decode(coco_mask.frPyObjects([flat], 40, 45)[0])
    np.testing.assert_array_equal(decode_segmentation([flat], 40, 45), expected)


def test_a_segmentation_is_polygons_or_rle_of_either_kind() -> None:
    mask = np.zeros((5, 6), np.bool_)
    mask[1:3, 1:4] = mask[4, 5] = True
    polygons = [p.exterior.ravel().tolist() for p in polygons_from_mask(mask)]
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]]))))
    for segmentation in (polygons, encode_rle(mask), {"size": [5, 6], "counts": runs.tolist()}):
        np.testing.assert_array_equal(decode_segmentation(segmentation, 5, 6), mask)


BAD_SEGMENTATIONS: list[tuple[str, Any, str]] = [
    ("None", None, "remove the annotation"),
    ("empty", [], "remove the annotation"),
    ("a string", "22", "remove the annotation"),
    ("an empty polygon", [[]], "at least three x, y pairs"),
    ("a flat polygon", [1, 1, 3, 1, 3, 3], "write a segmentation as a list of such lists"),
    ("two points", [[1, 1, 3, 3]], "at least three x, y pairs"),
    ("an odd number", [[1, 1, 3, 1, 3, 3, 1]], "at least three x, y pairs"),
    ("pairs", [[[1, 1], [3, 1], [3, 3]]], "write a segmentation as a list of such lists"),
    ("ragged pairs", [[[1, 1], [3]]], "write a segmentation as a list of such lists"),
    ("words", [["1", "1", "3", "1", "3", "3"]], "at least three x, y pairs"),
    ("nulls", [[1, 1, None, 1, 3, 3]], "at least three x, y pairs"),
    ("the second polygon", [[1, 1, 3, 1, 3, 3], [1, 1]], "at least three x, y pairs"),
    ("NaN", [[1, 1, float("nan"), 1, 3, 3]], "every vertex must be a finite"),
    ("infinity", [[1, 1, float("inf"), 1, 3, 3]], "every vertex must be a finite"),
    ("beyond float32", [[1, 1, 1e300, 1, 3, 3]], "check their order, scale and image"),
    ("far outside", [[1, 1, 1e9, 1, 3, 3]], "check their order, scale and image"),
    ("another image's", [[1, 1, 3, 1, 3, -20]], "check their order, scale and image"),
    ("RLE of another size", encode_rle(RING), "check the annotation's image_id"),
    ("RLE without counts", {"size": [8, 9]}, "add 'counts'"),
]


@pytest.mark.parametrize(
    ("segmentation", "advice"), [row[1:] for row in BAD_SEGMENTATIONS], ids=[row[0] for row in BAD_SEGMENTATIONS]
)
def test_bad_segmentations_are_refused_with_advice(segmentation: Any, advice: str) -> None:
    with pytest.raises(DatasetError, match=advice):
        decode_segmentation(segmentation, 8, 9)


def test_an_absurdly_long_outline_is_refused_before_it_takes_memory() -> None:
    zigzag = np.zeros((10_000, 2))
    zigzag[::2] = 8000
    with pytest.raises(DatasetError, match="simplify it, or store the mask as RLE"):
        mask_from_polygons([Polygon(zigzag)], (8000, 8000))


@pytest.mark.parametrize("ring", [np.zeros((2, 2)), np.zeros((3, 3)), np.zeros(6)])
def test_a_ring_of_another_shape_is_refused(ring: np.ndarray) -> None:
    with pytest.raises(DatasetError, match="give .x, y. vertices"):
        mask_from_polygons([Polygon(ring)], (8, 9))


# ---------------------------------------------------------------- boxes and scores


@pytest.mark.parametrize(
    ("name", "box"),
    [("one pixel within", [3, 3, 4, 4]), ("one row", [0, 0, 7, 1]), ("all", [0, 0, 7, 5]),
     ("ring with an island", [1, 1, 6, 6]), ("none", None)],
)  # fmt: skip
def test_box_from_mask(name: str, box: list[float] | None) -> None:
    found = box_from_mask(SHAPES[name])
    assert (None if found is None else found.tolist()) == box
    assert found is None or found.dtype == np.float32


@given(MASKS)
def test_the_box_holds_every_pixel_and_no_empty_margin(mask: np.ndarray) -> None:
    box = box_from_mask(mask)
    if box is None:
        assert not mask.any()
        return
    x0, y0, x1, y1 = box.astype(int)
    inside = mask[y0:y1, x0:x1]
    assert inside.sum() == mask.sum()
    assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_mask_iou() -> None:
    first, second = np.zeros((4, 5), np.bool_), np.zeros((4, 5), np.bool_)
    assert mask_iou(first, second) == 0.0
    first[:2], second[1:3] = True, True
    assert mask_iou(first, second) == pytest.approx(1 / 3)
    assert mask_iou(first, first) == 1.0
    assert mask_iou(first, np.zeros_like(first)) == 0.0


BOXES = st.lists(
    st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(0, 8)] * 2).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    ),
    max_size=12,
)


def mask_of(box: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros((24, 24), np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@given(BOXES, BOXES)
def test_box_iou_is_the_iou_of_the_boxes_pixels(a: list[tuple[int, ...]], b: list[tuple[int, ...]]) -> None:
    expected = np.array([[mask_iou(mask_of(p), mask_of(q)) for q in b] for p in a]).reshape(len(a), len(b))
    np.testing.assert_allclose(box_iou(a, b), expected)


def test_coco_annotation_is_plain_json_that_coco_reads() -> None:
    annotation = coco_annotation(RING, np.int64(3), 5, 7, score=np.float32(0.5))  # type: ignore[arg-type]
    assert json.loads(json.dumps(annotation)) == annotation
    assert {key: annotation[key] for key in ("id", "image_id", "category_id", "iscrowd", "score")} == {
        "id": 7, "image_id": 3, "category_id": 5, "iscrowd": 0, "score": 0.5,
    }  # fmt: skip
    assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist() == [1, 1, 5, 5]
    assert annotation["area"] == int(coco_mask.area(annotation["segmentation"])) == 17
    np.testing.assert_array_equal(decode_segmentation(annotation["segmentation"], 6, 7), RING)


def test_coco_annotation_of_an_empty_mask_has_an_empty_box_and_no_score() -> None:
    annotation = coco_annotation(SHAPES["none"], 1, 1, 1)
    assert (annotation["bbox"], annotation["area"], "score" in annotation) == ([0, 0, 0, 0], 0, False)


BAD_MASKS: list[tuple[str, Any, str]] = [
    ("a stack", np.zeros((1, 4, 5), np.bool_), "give one mask at a time"),
    ("a row", np.zeros(4, np.bool_), "give one mask at a time"),
    ("no pixels", np.zeros((0, 5), np.bool_), "give one mask at a time"),
    ("None", None, "give one mask at a time"),
    ("0 and 255", np.full((4, 5), 255, np.uint8), "threshold it, mask > 0"),
    ("logits", np.full((4, 5), -3.2), "threshold it, mask > 0"),
    ("NaN", np.full((4, 5), np.nan), "threshold it, mask > 0"),
    ("complex", np.zeros((4, 5), complex), "threshold it, mask > 0"),
    ("strings", np.full((4, 5), "1"), "threshold it, mask > 0"),
    ("ragged", [[1, 0], [1]], "give .H, W. booleans"),
]


@pytest.mark.parametrize(("mask", "advice"), [row[1:] for row in BAD_MASKS], ids=[row[0] for row in BAD_MASKS])
def test_bad_masks_are_refused_with_advice(mask: Any, advice: str) -> None:
    for function in (
        encode_rle,
        polygons_from_mask,
        box_from_mask,
        lambda m: mask_iou(m, m),
        lambda m: coco_annotation(m, 1, 1, 1),
    ):
        with pytest.raises(ImageError, match=advice):
            function(mask)


@pytest.mark.parametrize(
    ("call", "error", "advice"),
    [
        (lambda: mask_iou(np.ones((2, 3)), np.ones((3, 2))), ImageError, "resize one of them"),
        (lambda: box_iou([0, 0, 1, 1], [[0, 0, 1, 1]]), DatasetError, "write one box as .box."),
        (lambda: box_iou([[0, 0, 1]], [[0, 0, 1, 1]]), DatasetError, "write one box as .box."),
        (lambda: box_iou([[0, 0, 1, np.nan]], [[0, 0, 1, 1]]), DatasetError, "remove those boxes"),
        (lambda: box_iou([["a", 0, 1, 1]], []), DatasetError, "give .N, 4. XYXY"),
        (lambda: mask_from_polygons([], (0, 5)), DatasetError, "two positive integers"),
    ],
)
def test_bad_numbers_are_refused_with_advice(call: Any, error: type[Exception], advice: str) -> None:
    with pytest.raises(error, match=advice):
        call()
