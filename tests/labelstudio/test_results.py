from __future__ import annotations

import base64
import copy
import io
import json
import logging
import re
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from skimage import data

import refinesam
from refinesam import DatasetError, Prompt
from refinesam_labelstudio.labeling_config import EXAMPLES, LabelingConfig, OutputTag
from refinesam_labelstudio.outlines import mask_from_outline, outlines_from_mask
from refinesam_labelstudio.results import check_regions, mask_from_region, regions_from_mask

CONFIGS = {name: LabelingConfig.parse(xml) for name, xml in EXAMPLES.items()}
KINDS = list(CONFIGS)
MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))
RNG = np.random.default_rng(0)


def disc(size: int, radius: float) -> np.ndarray:
    y, x = np.ogrid[:size, :size]
    return np.asarray((x - size / 2 + 0.5) ** 2 + (y - size / 2 + 0.5) ** 2 < radius**2)


RING = disc(101, 45) & ~disc(101, 20)
BLOB = np.zeros((40, 60), np.bool_)
BLOB[5:20, 10:30] = True
BLOB[25:30, 50:60] = True


def tag_of(kind: str) -> OutputTag:
    return CONFIGS[kind].output_for("Object")


def regions_of(mask: np.ndarray, kind: str, **more: Any) -> list[dict[str, Any]]:
    return regions_from_mask(mask, tag_of(kind), "Object", mask.shape, **more)  # type: ignore[arg-type]


def union(regions: list[dict[str, Any]]) -> np.ndarray:
    return np.asarray(np.logical_or.reduce([mask_from_region(region) for region in regions]))


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_those_label_studio_knows(kind: str) -> None:
    mask = np.pad(np.ones((10, 20), np.bool_), ((20, 10), (10, 10)))
    (region,) = regions_of(mask, kind, score=0.75, meta={"text": ["AMR"]})
    assert json.loads(json.dumps(region, allow_nan=False)) == region
    assert re.fullmatch("[0-9a-f]{10}", region["id"])
    tag = tag_of(kind)
    assert {key: value for key, value in region.items() if key not in ("id", "value")} == {
        "from_name": "box" if kind == "box" else "mask",
        "to_name": "image",
        "type": tag.type,
        "original_width": 40,
        "original_height": 40,
        "image_rotation": 0,
        "score": 0.75,
        "meta": {"text": ["AMR"]},
    }
    value = dict(region["value"])
    assert value.pop(tag.type) == ["Object"]
    if kind == "brush":
        assert value.pop("format") == "rle"
        assert list(value) == ["rle"]
    elif kind == "bitmask":
        assert value.pop("imageDataURL").startswith("data:image/png;base64,iVBOR")
        assert not value
    elif kind == "polygon":
        assert value.pop("closed") is True
        assert sorted(value["points"]) == [[25, 50], [25, 75], [75, 50], [75, 75]]
    else:
        assert value == {"x": 25, "y": 50, "width": 50, "height": 25, "rotation": 0}
    np.testing.assert_array_equal(mask_from_region(region), mask)
    check_regions([region], CONFIGS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_has_no_regions(kind: str) -> None:
    assert regions_of(np.zeros((5, 6), np.bool_), kind) == []


@pytest.mark.parametrize("kind", ["brush", "bitmask", "polygon"])
@given(mask=MASKS)
def test_every_mask_comes_back(kind: str, mask: np.ndarray) -> None:
    regions = regions_of(mask, kind, tolerance=0)
    check_regions(regions, CONFIGS[kind])
    if mask.any():
        np.testing.assert_array_equal(union(regions), mask)
    else:
        assert regions == []


@given(mask=MASKS)
def test_a_rectangle_is_the_box_around_the_mask(mask: np.ndarray) -> None:
    for region in regions_of(mask, "box"):
        check_regions([region], CONFIGS["box"])
        box = mask_from_region(region)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        expected = np.zeros_like(mask)
        expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        np.testing.assert_array_equal(box, expected)


def test_parts_become_polygons_under_the_largest() -> None:
    first, second = regions_of(BLOB, "polygon", score=0.5)
    assert mask_from_region(first).sum() == 300
    assert mask_from_region(second).sum() == 50
    assert second["parentID"] == first["id"] != second["id"]
    assert "parentID" not in first
    assert first["score"] == second["score"] == 0.5
    check_regions([first, second], CONFIGS["polygon"])


def test_labels_in_a_tag_of_their_own() -> None:
    config = LabelingConfig.parse(
        '<View><Image name="image" value="$image"/><Polygon name="tool" toName="image"/>'
        '<Labels name="classes" toName="image"><Label value="Cat"/></Labels></View>'
    )
    regions = regions_from_mask(BLOB, config.output_for("Cat"), "Cat", (40, 60))
    shape, label, other_shape, other_label = regions
    assert [(r["from_name"], r["type"]) for r in regions] == [("tool", "polygon"), ("classes", "labels")] * 2
    assert label["value"] == {**shape["value"], "labels": ["Cat"]}
    assert shape["id"] == label["id"] == other_shape["parentID"] == other_label["parentID"]
    assert other_shape["id"] == other_label["id"]
    check_regions(regions, config)


def test_a_tool_without_labels_gets_none() -> None:
    config = LabelingConfig.parse(
        '<View><Image name="image" value="$image"/><Brush name="tool" toName="image"/></View>'
    )
    (region,) = regions_from_mask(BLOB, config.output_for("Cat"), "Cat", (40, 60))
    assert (region["type"], sorted(region["value"])) == ("brush", ["format", "rle"])
    check_regions([region], config)


def test_a_mask_of_another_size_is_an_error() -> None:
    with pytest.raises(DatasetError, match=r"shape \(40, 60\), its image \(60, 40\): resize"):
        regions_from_mask(BLOB, tag_of("brush"), "Object", (60, 40))


# ---------------------------------------------------------------- outlines


def signed_area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


@given(MASKS)
def test_rings_enclose_the_same_by_winding_as_by_even_odd(mask: np.ndarray) -> None:
    """A browser fills by winding: holes run the other way, so a ring's signed area is its number of pixels."""
    for ring in outlines_from_mask(mask, tolerance=0):
        assert abs(signed_area(ring)) == mask_from_outline(ring, mask.shape).sum()  # type: ignore[arg-type]


def test_outlines_are_short_and_close() -> None:
    (exact,) = outlines_from_mask(disc(401, 180), tolerance=0)
    (simple,) = outlines_from_mask(disc(401, 180))
    assert len(simple) < 50 < 700 < len(exact)
    filled = mask_from_outline(simple, (401, 401))
    assert (filled & disc(401, 180)).sum() / (filled | disc(401, 180)).sum() > 0.98


def test_a_hole_stays_open_in_a_simple_outline() -> None:
    (ring,) = outlines_from_mask(RING)
    assert len(ring) < 60
    filled = mask_from_outline(ring, (101, 101))
    assert not filled[50, 50]
    assert (filled & RING).sum() / (filled | RING).sum() >= 0.95


def test_cuts_to_holes_are_straight() -> None:
    mask = np.ones((30, 40), np.bool_)
    mask[5:9, 5:9] = mask[5:9, 20:25] = mask[12:28, 12:30] = False
    (ring,) = outlines_from_mask(mask, tolerance=0)
    steps = np.abs(ring - np.roll(ring, 1, axis=0))
    assert (steps.min(axis=1) == 0).all()
    # The outlines, and each cut twice: from the left border, from the first hole, from the left border.
    assert steps.sum() == 140 + 16 + 18 + 68 + 2 * (5 + 11 + 12)


def test_a_mask_that_a_tolerance_would_spoil_is_simplified_less() -> None:
    plus = np.zeros((20, 20), np.bool_)
    plus[8:11, 2:18] = plus[2:18, 8:11] = True
    (ring,) = outlines_from_mask(plus, tolerance=4)
    filled = mask_from_outline(ring, (20, 20))
    assert (filled & plus).sum() / (filled | plus).sum() >= 0.95


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 3), (1, 2)])
def test_small_parts_stay_whole(shape: tuple[int, int]) -> None:
    mask = np.pad(np.ones(shape, np.bool_), 3)
    (ring,) = outlines_from_mask(mask, tolerance=2)
    np.testing.assert_array_equal(mask_from_outline(ring, mask.shape), mask)  # type: ignore[arg-type]


def test_specks_and_pinholes_are_left_out_with_a_tolerance() -> None:
    mask = np.pad(np.ones((20, 20), np.bool_), 5)
    mask[10, 10] = False
    mask[0, 0] = True
    (ring,) = outlines_from_mask(mask)
    np.testing.assert_array_equal(mask_from_outline(ring, (30, 30)), np.pad(np.ones((20, 20), np.bool_), 5))
    assert len(outlines_from_mask(mask, tolerance=0)) == 2


def test_outlines_fit_a_large_photograph() -> None:
    """A box on an image of 12 megapixels, by the built-in weights: no specks, and few vertices."""
    photo = refinesam.load("builtin", device="cpu").encode(cv2.resize(data.astronaut(), (4000, 3000)))
    mask = photo.predict(Prompt(box=[600, 0, 2800, 2970])).mask
    fine, fitting = outlines_from_mask(mask, 1.25, 6), outlines_from_mask(mask)
    assert (len(fitting), len(fine) > 5) == (1, True)
    assert sum(map(len, fitting)) < sum(map(len, fine)) / 3
    drawn = mask_from_outline(fitting[0], mask.shape)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95
    # What a project may set.
    assert len(outlines_from_mask(mask, 0, 6)) == len(fine)
    assert len(outlines_from_mask(mask, 1.25, 10**8)) == 1  # the largest always stays


def test_small_objects_of_a_large_image_keep_their_form() -> None:
    mask = np.zeros((3000, 4000), np.bool_)
    mask[100:141, 200:241] = disc(41, 18)
    (ring,) = outlines_from_mask(mask)
    drawn = mask_from_outline(ring, mask.shape)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.95


def test_more_parts_and_holes_than_a_browser_bears_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    grid = np.pad(np.kron((np.indices((20, 24)) % 2 == 0).all(axis=0), np.ones((3, 3), np.bool_)), 3)
    with caplog.at_level(logging.WARNING, logger="refinesam_labelstudio"):
        assert len(outlines_from_mask(grid)) == 100
        assert len(outlines_from_mask(~grid)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "The mask has 120 parts: the 100 largest become polygons.",
        "A part of the mask has 120 holes: the 100 largest are cut out.",
    ]


# ---------------------------------------------------------------- regions of others


def test_turned_rectangles_and_those_over_the_border() -> None:
    value = {"x": 50, "y": 0, "width": 25, "height": 50, "rotation": 90}
    region = {"id": "a", "type": "rectangle", "original_width": 40, "original_height": 20, "value": value}
    expected = np.zeros((20, 40), np.bool_)
    expected[:10, 10:20] = True  # 10 x 10 pixels, turned clockwise around (20, 0)
    np.testing.assert_array_equal(mask_from_region(region), expected)
    outside = {**region, "value": {**value, "x": 90, "width": 50, "rotation": 0}}
    assert mask_from_region(outside).sum() == 40


def test_a_bitmask_of_the_browser_is_read() -> None:
    """The browser writes RGBA; what isn't fully transparent is mask."""
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[..., 3] = np.where(BLOB, 9, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    region = {"id": "a", "original_width": 60, "original_height": 40, "value": {"imageDataURL": url}}
    np.testing.assert_array_equal(mask_from_region(region), BLOB)


def changed(region: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(region)
    holder, (*parents, last) = result, path.split(".")
    for key in parents:
        holder = holder[key]
    holder[last] = value
    return result


REFUSED = [
    ("brush", "from_name", "point", "from_name must be one of .'mask'.*got 'point'"),
    ("brush", "from_name", None, "from_name must be"),
    ("brush", "to_name", "photo", "to_name must be one of .'image'.*got 'photo'"),
    ("brush", "type", "brush", "type must be one of .'brushlabels'.*got 'brush'"),
    ("brush", "type", ["brushlabels"], "type must be"),
    ("brush", "id", "", "id must be a text"),
    ("brush", "id", ["a"], "id must be a text"),
    ("brush", "parentID", "nobody", "parentID must be the id of a region next to it"),
    ("brush", "parentID", ["a"], "parentID must be"),
    ("brush", "score", 1.5, "score must be a number from 0 to 1, got 1.5"),
    ("brush", "score", float("nan"), "score must be"),
    ("brush", "score", "high", "score must be"),
    ("brush", "image_rotation", 90, "image_rotation must be 0"),
    ("brush", "original_width", 61, r"holds 9600 values, but an image of 40 x 61"),
    ("brush", "original_width", "60", "original_width '60'"),
    ("brush", "value.brushlabels", ["Cat"], r"labels must be among .'Object', 'Other'., got .'Cat'"),
    ("brush", "value.brushlabels", ["Object", "Cat"], "labels must be among"),
    ("brush", "value.brushlabels", [], "labels must be among"),
    ("brush", "value.brushlabels", "Object", "labels must be among"),
    ("brush", "value.brushlabels", [None], "labels must be among"),
    ("brush", "value.rle", [0] * 40, "holds 0 values"),
    ("brush", "value", {"points": [[0, 0], [1, 1], [2, 0]], "brushlabels": ["Object"]}, "value must hold a brush"),
    ("brush", "value", None, "value must hold a brush, got None"),
    ("bitmask", "original_height", 41, "it has 40 x 60 pixels, the image 41 x 60"),
    ("bitmask", "value.imageDataURL", "data:image/png;base64,AAAA", "must be a PNG of the image's size"),
    ("bitmask", "value.imageDataURL", "data:image/png;base64,???", "must be a PNG"),
    ("bitmask", "value.imageDataURL", "https://example.org/mask.png", "it starts with 'https"),
    ("bitmask", "value.imageDataURL", 5, "it starts with 5"),
    ("polygon", "value.points", [[0, 0], [100, 0], [100, 100.5]], "reach from 0 to 100.5 percent"),
    ("polygon", "value.points", [[0, 0], [100, 0]], "three or more"),
    ("polygon", "value.points", [[0, 0], [100, 0], [1, 2, 3]], "three or more"),
    ("polygon", "value.points", [[0, 0], [100, 0], [1, "2"]], "A polygon's point must be a number"),
    ("polygon", "value.points", "all", "three or more"),
    ("box", "value.x", -1, "reach from -1 to"),
    ("box", "value.width", 99, "keep to 0 to 100"),
    ("box", "value.height", float("inf"), "A rectangle's height must be a number"),
    ("box", "value.y", True, "A rectangle's y must be a number"),
    ("box", "value.rotation", "left", "A rectangle's rotation must be a number"),
]


@pytest.mark.parametrize(("kind", "path", "value", "message"), REFUSED, ids=[f"{r[0]}-{r[1]}" for r in REFUSED])
def test_what_label_studio_could_not_show_is_refused(kind: str, path: str, value: Any, message: str) -> None:
    region = regions_of(BLOB, kind)[0]
    check_regions([region], CONFIGS[kind])
    with pytest.raises(DatasetError, match=f"^Region .* can't be sent: .*{message}"):
        check_regions([region, changed(region, path, value)], CONFIGS[kind])


def test_a_region_without_a_mask_is_an_error() -> None:
    region = {"id": "k", "type": "keypointlabels", "original_width": 9, "original_height": 9, "value": {"x": 1, "y": 1}}
    with pytest.raises(DatasetError, match="Region 'k' of type 'keypointlabels' holds no mask"):
        mask_from_region(region)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_damage_gives_a_mask_or_the_error(kind: str, data: st.DataObject) -> None:
    region = regions_of(BLOB, kind)[0]
    paths = [*region, *(f"value.{key}" for key in region["value"])]
    damaged = changed(region, data.draw(st.sampled_from(paths)), data.draw(JSON))
    for act in (mask_from_region, lambda region: check_regions([region], CONFIGS[kind])):
        try:
            act(damaged)
        except DatasetError as error:
            assert str(error)
