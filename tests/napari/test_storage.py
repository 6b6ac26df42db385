from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinesam import DatasetError
from refinesam_napari.document import Correction, Document, PlanePrompts, Point, SegmentedObject
from refinesam_napari.geometry import FREE, Crop, Plane, PlaneMask
from refinesam_napari.storage import SavedSession, read_image_description, read_session, write_session

SHAPE = (4, 3, 20, 30)  # t, z, y, x
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
POINTS = st.builds(Point, FLOATS, FLOATS | FLOATS.map(np.float64), st.booleans())
CROPS = st.tuples(st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 99), st.integers(1, 9)).map(
    lambda n: Crop(n[0], n[1], n[0] + n[2], n[1] + n[2], n[3])
)
PROMPTS = st.builds(
    PlanePrompts,
    st.lists(POINTS, max_size=4).map(tuple),
    st.none() | st.tuples(FLOATS, FLOATS, FLOATS, FLOATS),
    st.none() | CROPS,
    st.booleans(),
)


@st.composite
def planes(draw: st.DrawFn) -> Plane:
    axes = draw(st.permutations(range(4)))[:2]
    position = [FREE if axis in axes else draw(st.integers(FREE, SHAPE[axis] - 1)) for axis in range(4)]
    return Plane((axes[0], axes[1]), tuple(position))


@st.composite
def plane_masks(draw: st.DrawFn, plane: Plane) -> PlaneMask:
    height, width = SHAPE[plane.axes[0]], SHAPE[plane.axes[1]]
    y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    if draw(st.booleans()):
        return PlaneMask(y0, x0, np.zeros((0, 0), np.bool_))
    hw = draw(st.integers(1, height - y0)), draw(st.integers(1, width - x0))
    return PlaneMask(y0, x0, draw(hnp.arrays(np.bool_, hw)))


@st.composite
def sessions(draw: st.DrawFn) -> SavedSession:
    objects, masks = {}, {}
    for object_id in draw(st.lists(st.integers(1, 2**32 - 1), unique=True, max_size=4)):
        where = tuple(draw(st.lists(planes(), unique=True, max_size=3)))
        objects[object_id] = SegmentedObject(
            object_id,
            draw(st.dictionaries(planes(), PROMPTS, max_size=3)),
            where,
            draw(st.sampled_from(["prompts", "everything", "propagated", "painted"])),
            draw(st.none() | FLOATS),
            {plane: Correction(draw(plane_masks(plane)), draw(plane_masks(plane))) for plane in where[:1]},
        )
        masks |= {(object_id, plane): draw(plane_masks(plane)) for plane in where}
    editing = draw(st.none() | st.sampled_from(sorted(objects))) if objects else None
    draft = draw(st.dictionaries(planes(), PROMPTS, max_size=3))
    image = {"name": draw(st.text()), "shape": list(SHAPE), "scale": draw(st.lists(FLOATS))}
    return SavedSession(Document(draft, editing, objects), masks, image, {"weights": draw(st.none() | st.text())})


def assert_same(read: SavedSession, written: SavedSession) -> None:
    assert read.problems == ()
    assert read.document == written.document
    assert list(read.document.objects) == list(written.document.objects)
    assert (read.image, read.settings) == (written.image, written.settings)
    assert list(read.masks) == list(written.masks)
    for key, mask in written.masks.items():
        assert_same_mask(read.masks[key], mask)
    for object_id, item in written.document.objects.items():
        found = read.document.objects[object_id].corrections
        assert found.keys() == item.corrections.keys()
        for plane, correction in item.corrections.items():
            assert_same_mask(found[plane].added, correction.added)
            assert_same_mask(found[plane].erased, correction.erased)


def assert_same_mask(read: PlaneMask, written: PlaneMask) -> None:
    assert (read.y0, read.x0) == (written.y0, written.x0)
    np.testing.assert_array_equal(read.pixels, written.pixels)


@given(saved=sessions())
def test_a_session_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, saved: SavedSession) -> None:
    path = tmp_path_factory.getbasetemp() / "session.json"
    write_session(path, saved)
    assert_same(read_session(path), saved)
    assert read_image_description(path) == saved.image


PLANE = Plane((2, 3), (1, 0, FREE, FREE))
OTHER = PLANE.moved(0, 2)
RING = np.ones((5, 6), np.bool_)
RING[2, 2:4] = False


def sample() -> SavedSession:
    prompts = PlanePrompts(
        (Point(0.1, 1 / 3), Point(5.5, 6.5, False)), (1.0, 2.0, 3.5, 4.5), Crop(0, 0, 30, 20, 2), True
    )
    objects = {
        1: SegmentedObject(1, {PLANE: prompts}, (PLANE, OTHER), "prompts", 0.9),
        7: SegmentedObject(7, {}, (PLANE,), "painted"),
    }
    masks = {
        (1, PLANE): PlaneMask(3, 4, RING),
        (1, OTHER): PlaneMask(0, 0, np.zeros((0, 0), np.bool_)),
        (7, PLANE): PlaneMask(15, 24, RING),
    }
    image = {"name": "cells", "shape": list(SHAPE), "axis_labels": ["t", "z", "y", "x"]}
    return SavedSession(Document({PLANE: prompts}, 7, objects), masks, image, {"amr": True})


def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    write_session(tmp_path / "s.json", sample())
    old = json.loads((tmp_path / "s.json").read_text())
    old["version"] = 1
    for item in old["objects"]:
        del item["corrections"]
    (tmp_path / "s.json").write_text(json.dumps(old))
    assert_same(read_session(tmp_path / "s.json"), sample())


def test_values_of_the_session_are_read_only(tmp_path: Path) -> None:
    write_session(tmp_path / "s.json", sample())
    read = read_session(tmp_path / "s.json")
    with pytest.raises(ValueError, match="read-only"):
        read.masks[1, PLANE].pixels[0, 0] = False
    with pytest.raises(TypeError):
        read.document.objects[2] = read.document.objects[1]  # type: ignore[index]


def test_numpy_values_and_paths_in_the_description_become_plain(tmp_path: Path) -> None:
    image = {
        "name": "cells",
        "shape": np.array(SHAPE),
        "dtype": np.dtype(np.uint16),
        "scale": np.array([1, 0.1]),
        "translate": (np.float32(0.5),),
        "source": Path("a/b.tif"),
    }
    saved = replace(sample(), image=image)
    write_session(tmp_path / "s.json", saved)
    assert read_session(tmp_path / "s.json").image == {
        "name": "cells",
        "shape": list(SHAPE),
        "dtype": "uint16",
        "scale": [1, 0.1],
        "translate": [0.5],
        "source": str(Path("a/b.tif")),
    }


def test_what_cannot_be_read_again_is_not_written(tmp_path: Path) -> None:
    saved, path = sample(), tmp_path / "s.json"
    write_session(path, saved)
    before = path.read_bytes()
    nan = replace(saved.document, draft={PLANE: PlanePrompts((Point(float("nan"), 1),))})
    bad = [
        (replace(saved, document=nan), "every number must be finite"),
        (replace(saved, image={"name": "cells"}), "shape: Field required.*Give its name and shape"),
        (replace(saved, settings={"weights": object()}), "is a object.*keep to text, numbers and lists"),
        (replace(saved, masks={(3, PLANE): PlaneMask(0, 0, RING)}), "a mask of object 3, but no such object"),
    ]
    for session, message in bad:
        with pytest.raises(DatasetError, match=message):
            write_session(path, session)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets one field of the file's content, or takes it away where the value is None."""

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for key in keys[:-1]:
            place = place[key]
        if value is None:
            del place[keys[-1]]
        else:
            place[keys[-1]] = value

    return change


FIRST = ("objects", 0)
IN_PLANE = (*FIRST, "prompts", 0)
MASK = (*FIRST, "masks", 0)
DAMAGED_OBJECTS = {
    "not an object": (put(*FIRST, value=[1]), "objects[0] was left out: Input should be an object, got [1]"),
    "no id": (put(*FIRST, "id", value=None), "id: Field required"),
    "id of text": (put(*FIRST, "id", value="1"), "id: Input should be a valid integer, got '1'"),
    "id that is true": (put(*FIRST, "id", value=True), "id: Input should be a valid integer, got True"),
    "id of the background": (put(*FIRST, "id", value=0), "id: objects are numbered from 1, got 0"),
    "origin": (put(*FIRST, "origin", value="magic"), "origin: Input should be 'prompts', 'everything'"),
    "score": (put(*FIRST, "score", value="high"), "score: Input should be a valid number, got 'high'"),
    "score that is NaN": (put(*FIRST, "score", value=float("nan")), "score: Input should be a finite number"),
    "misspelt field": (put(*FIRST, "orign", value="prompts"), "orign: Extra inputs are not permitted"),
    "point": (put(*IN_PLANE, "prompts", "points", 0, "x", value="1"), "prompts.0.prompts.points.0.x: Input should be"),
    "label": (put(*IN_PLANE, "prompts", "points", 1, "positive", value=0), "points.1.positive: Input should be"),
    "box": (put(*IN_PLANE, "prompts", "box", value=[1, 2, 3]), "prompts.0.prompts.box.3: Field required"),
    "crop": (put(*IN_PLANE, "prompts", "crop", "step", value=0), "is empty; it needs x0 < x1, y0 < y1 and a step of 1"),
    "short position": (put(*IN_PLANE, "plane", "position", value=[1, FREE, FREE]), "is no plane of an image of shape"),
    "axis that is not there": (put(*IN_PLANE, "plane", "axes", value=[2, 4]), "is no plane of an image of shape"),
    "one axis twice": (put(*IN_PLANE, "plane", "axes", value=[2, 2]), "is no plane of an image of shape"),
    "position in the plane": (put(*FIRST, "planes", 0, "position", 3, value=5), "planes: Plane(axes=(2, 3), position"),
    "outside the image": (
        put(*FIRST, "planes", 0, "position", 0, value=4),
        "lies outside the image of shape (4, 3, 20",
    ),
    "RLE of another size": (
        put(*MASK, "rle", "size", value=[5, 7]),
        "The RLE's runs add up to 30 pixels, but its size",
    ),
    "RLE cut off": (put(*MASK, "rle", "counts", value="0"), "The RLE's runs add up to 0 pixels"),
    "RLE that is none": (put(*MASK, "rle", "counts", value="no RLE"), "they are damaged or cut off"),
    "mask outside": (put(*MASK, "y0", value=16), "reach outside the plane; offset and size must lie in the image"),
    "mask before the image": (put(*MASK, "x0", value=-1), "masks.0.x0: Input should be greater than or equal to 0"),
    "mask of absurd size": (put(*MASK, "rle", "size", value=[10**9, 10**9]), "reach outside the plane"),
    "mask in no plane": (
        put(*MASK, "plane", "position", value=[]),
        "masks: Plane(axes=(2, 3), position=()) is no plane",
    ),
    "mask twice": (put(*FIRST, "masks", 1, "plane", "position", 0, value=1), "an object has one mask in a plane"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED_OBJECTS.values(), ids=DAMAGED_OBJECTS.keys())
def test_a_damaged_object_costs_no_other(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    saved, path = sample(), tmp_path / "s.json"
    write_session(path, saved)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    read = read_session(path)
    assert len(read.problems) == 1
    assert read.problems[0].startswith("objects[0] was left out: ")
    assert message in read.problems[0]
    assert "Correct the field in the file, or segment it again." in read.problems[0]
    sound = {7: saved.document.objects[7]}
    kept = replace(saved, document=replace(saved.document, objects=sound), masks={(7, PLANE): saved.masks[7, PLANE]})
    assert_same(replace(read, problems=()), kept)


def test_a_damaged_plane_of_the_draft_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    saved = sample()
    prompts = saved.document.draft[PLANE]
    write_session(path, replace(saved, document=replace(saved.document, draft={PLANE: prompts, OTHER: prompts})))
    content = json.loads(path.read_text())
    content["draft"][0]["prompts"]["refine"] = "yes"
    content["draft"].append(content["draft"][1])
    path.write_text(json.dumps(content))
    read = read_session(path)
    assert read.document == replace(saved.document, draft={OTHER: prompts})
    assert [problem.partition(":")[0] for problem in read.problems] == [
        "draft[0] was left out",
        "draft[2] was left out",
    ]


def test_the_second_of_two_objects_with_one_id_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_session(path, sample())
    content = json.loads(path.read_text())
    content["objects"].append(copy.deepcopy(content["objects"][0]) | {"score": 0.1})
    path.write_text(json.dumps(content))
    read = read_session(path)
    assert read.document.objects[1].score == 0.9
    assert len(read.problems) == 1
    assert read.problems[0].startswith("objects[2] was left out: id: 1 is another object's")


def test_a_draft_that_edits_a_lost_object_becomes_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_session(path, sample())
    content = json.loads(path.read_text())
    content["objects"][1]["origin"] = "magic"
    path.write_text(json.dumps(content))
    read = read_session(path)
    assert read.document.editing is None
    assert read.document.draft == sample().document.draft
    assert [problem.partition(":")[0] for problem in read.problems] == ["objects[1] was left out", "editing"]


DAMAGED_FILES = {
    "another format": (put("format", value="coco"), 'its "format" must be "refinesam-napari"'),
    "no format": (put("format", value=None), 'its "format" must be "refinesam-napari"'),
    "newer version": (put("version", value=5), "has version 5, this refinesam reads versions up to 4.*or update"),
    "no version": (put("version", value=None), "has version None"),
    "version that is true": (put("version", value=True), "version: Input should be a valid integer"),
    "image of text": (put("image", value="cells"), "image: Input should be .*got 'cells'.*Correct the field"),
    "image without shape": (put("image", "shape", value=None), "image.shape: Field required"),
    "shape of text": (put("image", "shape", 0, value="4"), "image.shape.0: Input should be a valid integer, got '4'"),
    "settings": (put("settings", value=[]), "settings: Input should be a valid dict"),
    "editing": (put("editing", value="7"), "editing: Input should be a valid integer, got '7'"),
    "objects": (put("objects", value={}), "objects: Input should be a valid list"),
    "no draft": (put("draft", value=None), "draft: Field required"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED_FILES.values(), ids=DAMAGED_FILES.keys())
def test_damage_to_the_whole_is_an_error(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "s.json"
    write_session(path, sample())
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path))}.*{message}"):
        read_session(path)


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"9" * 10_000, b"null", b"[]", b"NaN"])
def test_a_file_that_is_no_session_is_an_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(text)
    with pytest.raises(DatasetError, match="is not JSON|is no session"):
        read_session(path)


def test_a_file_cut_off_anywhere_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_session(path, sample())
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match="it is damaged or cut off"):
            read_session(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="can't be read .No such file.*check the path"):
        read_session(tmp_path / "none.json")


@pytest.mark.parametrize("version", [1, 2])
def test_a_session_from_before_there_was_a_choice_is_read(tmp_path: Path, version: int) -> None:
    write_session(tmp_path / "new.json", sample())
    content = json.loads((tmp_path / "new.json").read_text())
    content["version"] = version
    entries = [*content["draft"], *(entry for item in content["objects"] for entry in item["prompts"])]
    assert entries
    for entry in entries:
        del entry["prompts"]["candidate"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    read = read_session(tmp_path / "old.json")
    assert_same(read, sample())
    entries[0]["prompts"]["candidate"] = -1
    (tmp_path / "bad.json").write_text(json.dumps(content))
    assert any(
        "candidate is -1; masks to choose from are counted from 0" in one
        for one in read_session(tmp_path / "bad.json").problems
    )
