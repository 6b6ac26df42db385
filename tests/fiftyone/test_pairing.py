"""Which object a prompt asked for, on plain values; and masks kept as parts against whole ones."""

from __future__ import annotations

import fiftyone as fo
import numpy as np
import pytest

from refinesam.hosts import boundary_iou
from refinesam_fiftyone.labels import detection_from_mask, placed_mask
from refinesam_fiftyone.pairing import best_overlap, pair
from refinesam_fiftyone.regions import Region, StoredLabel, StoredSample, iou
from refinesam_fiftyone.schema import Fields, Settings
from refinesam_fiftyone.scoring import _boundary_iou

RUN = Fields()
HW = (20, 30)


def region(mask) -> Region:
    detection = detection_from_mask(mask)
    placed = placed_mask(detection.bounding_box, mask.shape, mask=detection.mask, empty=detection["empty"])
    return Region(*placed, int(mask.sum()))


def rectangle(top, left, height, width):
    mask = np.zeros(HW, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def label(name, mask=None, prompt_id=None, position=0, box=None) -> StoredLabel:
    if box is None and mask is not None:
        box = detection_from_mask(mask).bounding_box
    part = None if mask is None else region(mask)
    return StoredLabel(name, position, "thing", box or [0, 0, 0, 0], prompt_id, 0.5, part)


def sample(labels, others=None) -> StoredSample:
    layers = {RUN.baseline: [], RUN.amr: [], RUN.rejected: [], "truth": [], "boxes": []} | labels
    return StoredSample("s", "s.png", None, HW, None, layers, others or {})


def paired(stored, settings):
    return {prompt_id: truth.id for prompt_id, truth in pair(stored, RUN, settings).items()}


def masks(seed, count=60):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        hw = tuple(rng.integers(1, 40, 2))
        mask = np.zeros(hw, bool)
        y, x = rng.integers(0, hw[0]), rng.integers(0, hw[1])
        height, width = rng.integers(0, 12, 2)
        mask[y : y + height, x : x + width] = rng.random(mask[y : y + height, x : x + width].shape) < 0.7
        other = np.roll(mask, rng.integers(-3, 4, 2), (0, 1))
        yield mask, other if rng.random() < 0.9 else np.zeros(hw, bool)


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_masks_score_as_whole_masks_do(seed):
    scored = 0
    for a, b in masks(seed):
        union = (a | b).sum()
        expected = (a & b).sum() / union if union else 0.0
        assert iou(region(a), region(b)) == expected
        assert _boundary_iou(region(a), region(b), a.shape) == boundary_iou(a, b)
        np.testing.assert_array_equal(region(a).frame(a.shape), a)
        scored += bool(expected)
    assert scored > 10


def test_the_boundary_is_as_wide_as_the_whole_images():
    # 2 % of the diagonal is 28 pixels here: more than the small object is wide, less than the large one.
    for size in (10, 300):
        a, b = np.zeros((1000, 1000), bool), np.zeros((1000, 1000), bool)
        a[100 : 100 + size, 100 : 100 + size], b[100 : 100 + size, 103 : 103 + size] = True, True
        assert _boundary_iou(region(a), region(b), a.shape) == boundary_iou(a, b) > 0


def test_a_region_covers_its_pixels():
    mask = rectangle(3, 5, 2, 4)
    covered = [(x, y) for y in range(HW[0]) for x in range(HW[1]) if region(mask).covers(x + 0.5, y + 0.5)]
    assert covered == [(x, y) for y in (3, 4) for x in range(5, 9)]
    assert not region(np.zeros(HW, bool)).covers(0.5, 0.5)


@pytest.mark.parametrize("settings", [Settings("boxes", "truth", "truth"), Settings("random-2", None, "truth")])
def test_prompts_from_the_ground_truth_know_their_object(settings):
    truth = [label("a", rectangle(0, 0, 4, 4)), label("b", rectangle(9, 9, 4, 4)), label("bare", box=[0, 0, 1, 1])]
    # Their masks lie on each other's objects: the prompt decides, not the mask.
    asked = [label("1", truth[1].region.frame(HW), "a"), label("2", truth[0].region.frame(HW), "b")]
    asked += [label("3", rectangle(0, 0, 4, 4), "bare"), label("4", rectangle(0, 0, 4, 4), "gone")]
    assert paired(sample({"truth": truth, RUN.baseline: asked}), settings) == {"a": "a", "b": "b"}


def test_boxes_of_another_field_are_matched_greedily_and_once():
    truth = [label("a", rectangle(0, 0, 10, 10)), label("b", rectangle(0, 12, 10, 10))]
    boxes = [
        label("exact", rectangle(0, 0, 10, 10)),
        label("near", rectangle(0, 1, 10, 10)),
        label("half", rectangle(0, 12, 10, 5)),
        label("off", rectangle(12, 20, 5, 5)),
    ]
    asked = [label(one.id, rectangle(0, 0, 1, 1), one.id) for one in boxes]
    found = paired(sample({"truth": truth, "boxes": boxes, RUN.baseline: asked}), Settings("boxes", "boxes", "truth"))
    assert found == {"exact": "a", "half": "b"}


def test_boxes_that_overlap_less_than_half_ask_for_nothing():
    truth, boxes = [label("a", rectangle(0, 0, 10, 10))], [label("p", rectangle(0, 0, 10, 4))]
    asked = [label("1", rectangle(0, 0, 10, 10), "p")]
    stored = sample({"truth": truth, "boxes": boxes, RUN.baseline: asked})
    assert paired(stored, Settings("boxes", "boxes", "truth")) == {}


def test_what_a_box_has_beyond_the_image_does_not_count():
    truth = [label("a", rectangle(0, 20, 10, 10), box=[20 / 30, 0, 30 / 30, 10 / 20])]
    boxes = [label("p", rectangle(0, 21, 10, 9))]
    asked = [label("1", rectangle(0, 0, 1, 1), "p")]
    stored = sample({"truth": truth, "boxes": boxes, RUN.baseline: asked})
    assert paired(stored, Settings("boxes", "boxes", "truth")) == {"p": "a"}


def keypoint(name, points, signs) -> fo.Keypoint:
    made = fo.Keypoint(points=[((x + 0.5) / HW[1], (y + 0.5) / HW[0]) for x, y in points], signs=signs)
    made.id = name
    return made


@pytest.mark.parametrize(
    ("points", "signs", "expected"),
    [
        ([(2, 2)], [1], "small"),
        ([(8, 8)], [1], "large"),
        ([(2, 2), (8, 8), (9, 9)], [1, 1, 1], "large"),
        ([(2, 2), (3, 3), (8, 8)], [1, 1, 1], "small"),
        ([(2, 2), (8, 8)], [1, 0], "small"),
        ([(8, 8), (2, 2)], [1, 0], None),
        ([(2, 2), (20, 15)], [1, 1], None),
        ([(20, 15)], [1], None),
        ([(2, 2)], [0], None),
    ],
)
def test_clicks_ask_for_the_smallest_mask_that_they_fit(points, signs, expected):
    truth = [label("large", rectangle(0, 0, 12, 12)), label("small", rectangle(1, 1, 4, 4))]
    others = {"clicks.keypoints": [keypoint("6b0000000000000000000001", points, signs)]}
    asked = [label("1", rectangle(0, 0, 1, 1), "6b0000000000000000000001"), label("2", rectangle(0, 0, 1, 1), "gone")]
    stored = sample({"truth": truth, RUN.baseline: asked}, others)
    found = paired(stored, Settings("keypoints", "clicks", "truth"))
    assert found == ({} if expected is None else {"6b0000000000000000000001": expected})


def test_without_prompts_the_best_mask_answers_and_each_only_once():
    truth = [
        label("a", rectangle(0, 0, 10, 10)),
        label("b", rectangle(0, 0, 10, 8)),
        label("c", rectangle(15, 0, 2, 2)),
    ]
    baseline = [label("1", rectangle(0, 0, 10, 8), "p"), label("2", rectangle(0, 0, 5, 10), "q")]
    # AMR made q's mask the better one for a.
    amr = [label("3", rectangle(0, 0, 10, 8), "p"), label("4", rectangle(0, 0, 9, 10), "q")]
    stored = sample({"truth": truth, RUN.baseline: baseline, RUN.amr: amr})
    assert paired(stored, Settings("everything", None, "truth")) == {"p": "b", "q": "a"}
    assert best_overlap(truth[0].region, baseline) == 0.8
    assert best_overlap(truth[2].region, baseline) == 0.0
