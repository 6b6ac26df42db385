"""FiftyOne's labels and the core's prompts and masks, both ways."""

from __future__ import annotations

import math

import cv2
import fiftyone as fo
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinesam import ImageError, PromptError
from refinesam_fiftyone.labels import (
    detection_from_mask,
    holes_in,
    keypoint_from_points,
    label_id,
    mask_from_detection,
    placed_mask,
    prompt_from_box,
    prompt_from_keypoint,
)

masks = hnp.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@given(masks)
@settings(max_examples=200, deadline=None)
def test_masks_survive_the_way_there_and_back(mask):
    assert np.array_equal(mask_from_detection(detection_from_mask(mask), mask.shape), mask)


@pytest.mark.parametrize("hw", [(7, 5), (480, 640), (1, 1), (999, 1001), (4000, 3)])
def test_every_pixel_position_survives(hw):
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = np.zeros(hw, bool)
        mask[rng.integers(hw[0]), rng.integers(hw[1])] = True
        assert np.array_equal(mask_from_detection(detection_from_mask(mask), hw), mask)


def test_masks_survive_in_files(tmp_path):
    mask = np.random.default_rng(1).random((31, 47)) < 0.3
    detection = detection_from_mask(mask, mask_path=tmp_path / "a" / "b.png", label="x")
    assert detection.mask is None
    assert np.array_equal(mask_from_detection(detection, mask.shape), mask)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.png"]


def test_a_missing_or_broken_mask_file_says_so(tmp_path):
    detection = fo.Detection(bounding_box=[0, 0, 1, 1], mask_path=str(tmp_path / "gone.png"))
    with pytest.raises(ImageError, match=r"gone\.png"):
        mask_from_detection(detection, (4, 4))
    (tmp_path / "gone.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"gone\.png"):
        mask_from_detection(detection, (4, 4))


@pytest.mark.parametrize("kind", ["16 bit", "RGB", "RGBA", "0 and 1"])
def test_mask_files_are_read_as_fiftyone_reads_them(tmp_path, kind):
    mask = np.random.default_rng(2).random((9, 7)) < 0.4
    file = {
        "16 bit": mask.astype(np.uint16) * 200,
        # OpenCV writes blue first: the object is red, the rest blue.
        "RGB": np.stack([~mask, np.zeros_like(mask), mask], axis=2).astype(np.uint8) * 255,
        "RGBA": np.stack([mask, mask, mask, np.ones_like(mask)], axis=2).astype(np.uint8) * 255,
        "0 and 1": mask.astype(np.uint8),
    }[kind]
    assert cv2.imwrite(str(tmp_path / "mask.png"), file)
    detection = fo.Detection(bounding_box=[0, 0, 1, 1], mask_path=str(tmp_path / "mask.png"))
    assert np.array_equal(mask_from_detection(detection, mask.shape), mask)
    theirs = detection.get_mask()
    assert np.array_equal((theirs if theirs.ndim == 2 else theirs[..., 0]) > 0, mask)


def test_a_stored_mask_without_a_pixel_is_empty():
    for box, mask in (([0.2, 0.2, 0.5, 0.5], np.zeros((5, 5), bool)), ([1.2, 0.2, 0.5, 0.5], np.ones((5, 5), bool))):
        top, left, part = placed_mask(box, (10, 10), mask=mask)
        assert (top, left, part.shape) == (0, 0, (0, 0))


def test_an_empty_mask_keeps_its_place():
    detection = detection_from_mask(np.zeros((4, 6), bool), label="x")
    assert detection.empty and detection.area_px == 0
    assert not mask_from_detection(detection, (4, 6)).any()


def test_a_box_alone_is_no_mask():
    assert mask_from_detection(fo.Detection(bounding_box=[0, 0, 1, 1]), (4, 4)) is None


@given(st.integers(0, 2**32), st.integers(5, 60), st.integers(5, 60))
@settings(max_examples=100, deadline=None)
def test_unrounded_boxes_as_coco_has_them_move_no_pixel(seed, rows, columns):
    """FiftyOne's COCO importer keeps the annotation's own float box and cuts the mask at its rounded edges."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, columns - 2), rng.uniform(0, rows - 2)
    width, height = rng.uniform(1, columns - x), rng.uniform(1, rows - y)
    mask = np.zeros((rows, columns), bool)
    left, top, right, bottom = round(x), round(y), round(x + max(width, 1)), round(y + max(height, 1))
    mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.7
    part = mask[top:bottom, left:right]
    detection = fo.Detection(bounding_box=[x / columns, y / rows, width / columns, height / rows], mask=part)
    assert np.array_equal(mask_from_detection(detection, (rows, columns)), mask)


def test_a_coarse_mask_is_scaled_to_its_box():
    detection = fo.Detection(bounding_box=[0.25, 0.25, 0.5, 0.5], mask=np.array([[1, 0], [0, 1]], bool))
    expected = np.zeros((40, 40), bool)
    expected[10:20, 10:20] = expected[20:30, 20:30] = True
    assert np.array_equal(mask_from_detection(detection, (40, 40)), expected)


@pytest.mark.parametrize(
    "box", [[-0.25, -0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], [2, 2, 0.5, 0.5], [-1, -1, 0.5, 0.5]]
)
def test_what_reaches_beyond_the_image_is_cut(box):
    detection = fo.Detection(bounding_box=box, mask=np.ones((20, 20), bool))
    full = np.zeros((120, 120), bool)
    left, top = int(box[0] * 40) + 40, int(box[1] * 40) + 40
    full[top : top + 20, left : left + 20] = True
    assert np.array_equal(mask_from_detection(detection, (40, 40)), full[40:80, 40:80])


def test_a_mask_of_other_axes_is_refused():
    detection = fo.Detection(bounding_box=[0, 0, 1, 1], mask=np.ones((2, 2), bool))
    detection.mask = np.ones((2, 2, 3), bool)
    with pytest.raises(ImageError, match="two axes"):
        mask_from_detection(detection, (2, 2))


def test_boxes_become_pixels():
    prompt = prompt_from_box([0.1, 0.2, 0.3, 0.4], (100, 200))
    assert np.allclose(prompt.box, [20, 20, 80, 60])


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([0.1, 0.1, 0, 0.2], "no area"),
        ([0.1, 0.1, 0.2, -0.1], "no area"),
        ([math.nan, 0, 1, 1], "no area"),
        ([1.2, 0, 0.5, 0.5], "outside the image"),
        ([-0.5, -0.5, 0.5, 0.5], "outside the image"),
        (None, "relative"),
        ([0, 0, 1], "relative"),
        (["a", 0, 1, 1], "relative"),
    ],
)
def test_bad_boxes_say_why(box, says):
    with pytest.raises(PromptError, match=says):
        prompt_from_box(box, (10, 10))


def test_a_sub_pixel_box_is_a_prompt():
    prompt = prompt_from_box([0.501, 0.501, 0.001, 0.001], (10, 10))
    assert np.allclose(prompt.box, [5.01, 5.01, 5.02, 5.02])


def test_a_box_half_outside_is_cut():
    assert np.allclose(prompt_from_box([-0.5, 0.5, 1, 1], (10, 10)).box, [0, 5, 5, 10])


@pytest.mark.parametrize("name", ["signs", "labels"])
@pytest.mark.parametrize("signs", [[1, 0], [True, False], [1, -1], [1.0, 0.0]])
def test_keypoints_have_signs(name, signs):
    keypoint = fo.Keypoint(points=[(0.5, 0.25), (0.1, 0.1)], **{name: signs})
    prompt = prompt_from_keypoint(keypoint, (100, 200))
    assert np.allclose(prompt.points, [[100, 25], [20, 10]])
    assert prompt.labels.tolist() == [1, 0]


def test_keypoints_without_signs_are_on_the_object_and_hidden_points_are_left_out():
    prompt = prompt_from_keypoint(fo.Keypoint(points=[(0.5, 0.5), (math.nan, math.nan)]), (10, 10))
    assert prompt.points.tolist() == [[5, 5]] and prompt.labels.tolist() == [1]


@pytest.mark.parametrize(
    "hidden",
    [
        {"points": [(0.5, 0.5), (0.0, 0.0)]},
        {"points": [(0.5, 0.5), (0.0, math.nan)]},
        {"points": [(0.5, 0.5), (0.2, 0.2)], "confidence": [0.9, 0.0]},
        {"points": [(0.5, 0.5), (0.2, 0.2)], "confidence": [math.nan, 0]},
        {"points": [(0.5, 0.5), (0.2, 0.2)], "visible": [2, 0]},
    ],
)
def test_points_that_mean_not_seen_are_left_out(hidden):
    """As YOLO and COCO export them."""
    prompt = prompt_from_keypoint(fo.Keypoint(**hidden), (10, 10))
    assert prompt.points.tolist() == [[5, 5]] and prompt.labels.tolist() == [1]


def test_points_on_the_border_are_in_the_outermost_pixels():
    keypoint = fo.Keypoint(points=[(1.0, 0.5), (0.5, 1.0), (1.0, 1.0), (0.0, 0.5), (0.5, 0.0)], confidence=[0.1] * 5)
    prompt = prompt_from_keypoint(keypoint, (10, 20))
    assert np.floor(prompt.points).tolist() == [[19, 5], [10, 9], [19, 9], [0, 5], [10, 0]]


@pytest.mark.parametrize(
    ("keypoint", "says"),
    [
        (fo.Keypoint(points=[]), "no visible"),
        (fo.Keypoint(), "no visible point"),
        (fo.Keypoint(points=[(math.nan, math.nan)]), "no visible point"),
        (fo.Keypoint(points=[(0.0, 0.0), (0.5, 0.5)], confidence=[0.9, 0.0]), "none of its 2 is seen"),
        (fo.Keypoint(points=[(0.5, 0.5)], signs=[1, 0]), "one for each"),
        (fo.Keypoint(points=[(0.5, 0.5)], signs=["yes"]), "signs"),
        (fo.Keypoint(points=[(1.5, 0.5)]), "outside"),
    ],
)
def test_bad_keypoints_say_why(keypoint, says):
    with pytest.raises(PromptError, match=says):
        prompt_from_keypoint(keypoint, (10, 10))


def test_points_go_back_to_where_they_came_from():
    keypoint = keypoint_from_points(np.array([[3.5, 7.5]]), (10, 20), label="centre")
    assert prompt_from_keypoint(keypoint, (10, 20)).points.tolist() == [[3.5, 7.5]]


def test_ids_are_those_of_objects_and_depend_on_every_part():
    ids = {label_id("a", "b", "c"), label_id("a", "bc", ""), label_id("a", "b", "d"), label_id("ab", "", "c")}
    assert len(ids) == 4
    assert fo.Detection(id=label_id("a", "b", "c")).id == label_id("a", "b", "c")


def test_holes_are_counted():
    mask = np.zeros((20, 30), np.uint8)
    for x in (2, 14):
        cv2.rectangle(mask, (x, 2), (x + 10, 12), 1, -1)
        mask[5:8, x + 3 : x + 6] = 0
    assert holes_in(mask.astype(bool)) == 2
