"""Propagation on computed stacks with a model made of arithmetic, and on a real one with the built-in weights."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

import refinesam
from fakes import FloodModel
from refinesam import Prediction, Prompt
from refinesam.session import Session
from refinesam.types import Capabilities
from refinesam_napari.geometry import Crop
from refinesam_napari.propagation import (
    PropagatedSlice,
    PropagationSettings,
    context_crop,
    predict_in_crops,
    prompt_from_mask,
    propagate,
)
from refinesam_napari.surroundings import SeedContrast

HW = (40, 50)
MASKS = Capabilities(negative_points=True, mask_prompt=True, max_points=None, input_size=64)
NO_MASKS = replace(MASKS, mask_prompt=False)
SETTINGS = PropagationSettings()


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.indices(HW)
    return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2


def column(count: int = 12, radius: float = 8) -> np.ndarray:
    """An object in all slices of a stack, drifting to the right."""
    return np.stack([disc(15 + index, 20, radius) for index in range(count)])


class Answering:
    """Predicts the stack's own mask as one of three, and keeps what it was asked."""

    def __init__(self, stack: np.ndarray, scores: dict[int, float] | None = None) -> None:
        self.stack = stack
        self.scores = scores or {}
        self.asked: list[tuple[int, Prompt]] = []

    def __call__(self, index: int, prompt: Prompt) -> Prediction:
        self.asked.append((index, prompt))
        mask = self.stack[index]
        # Everything has the highest predicted IoU: a model that takes the whole for the object.
        masks = np.stack([np.ones_like(mask), mask, np.zeros_like(mask)])
        scores = np.array([0.95, self.scores.get(index, 0.8), 0.1], np.float32)
        return Prediction(masks, scores, np.zeros((3, 4, 4), np.float32), prompt)


def run(
    stack: np.ndarray,
    *seeds: int,
    predict: Answering | None = None,
    capabilities: Capabilities = MASKS,
    until: tuple[int, ...] = (),
    **settings: object,
) -> list[PropagatedSlice]:
    return list(
        propagate(
            {index: stack[index] for index in seeds},
            predict or Answering(stack),
            range(len(stack)),
            PropagationSettings(**settings),
            capabilities,
            until,
        )
    )


def test_every_slice_is_filled_from_the_seed_outwards() -> None:
    stack = column()
    found = run(stack, 4)
    assert [one.index for one in found] == [3, 2, 1, 0, 5, 6, 7, 8, 9, 10, 11]
    for one in found:
        assert one.mask is not None
        assert np.array_equal(one.mask, stack[one.index])
        assert one.source_seed == 4
        assert one.score == pytest.approx(0.8)
        assert 0.8 < one.agreement < 1
    assert {one.index: one.stopped for one in found if one.stopped} == {
        0: "reached the first slice",
        11: "reached the last slice",
    }


@pytest.mark.parametrize(("direction", "indices"), [("up", [5, 6, 7, 8, 9, 10, 11]), ("down", [3, 2, 1, 0])])
def test_one_direction(direction: str, indices: list[int]) -> None:
    assert [one.index for one in run(column(), 4, direction=direction)] == indices


def test_between_two_seeds_a_slice_comes_from_the_nearer_one() -> None:
    found = {one.index: one for one in run(column(), 2, 7)}
    assert {index: one.source_seed for index, one in found.items()} == {
        **dict.fromkeys([0, 1, 3, 4], 2),
        **dict.fromkeys([5, 6, 8, 9, 10, 11], 7),
    }
    assert found[4].stopped == "met what comes from slice 7"
    assert found[5].stopped == "met what comes from slice 2"


def test_of_two_seeds_as_near_the_lower_one_fills() -> None:
    assert [(one.index, one.source_seed) for one in run(column(), 2, 4) if 2 < one.index < 4] == [(3, 2)]


def test_seeds_side_by_side_leave_nothing_between_them() -> None:
    assert [one.index for one in run(column(4), 1, 2)] == [0, 3]


def test_in_one_direction_a_seed_ends_the_one_before() -> None:
    found = {one.index: one for one in run(column(8), 1, 4, direction="up")}
    assert list(found) == [2, 3, 5, 6, 7]
    assert found[3].stopped == "reached slice 4"
    assert found[3].source_seed == 1


def test_borders_are_not_touched_nor_crossed() -> None:
    found = {one.index: one for one in run(column(), 5, until=(2, 9))}
    assert sorted(found) == [3, 4, 6, 7, 8]
    assert found[3].stopped == "reached slice 2"
    assert found[8].stopped == "reached slice 9"


@pytest.mark.parametrize(("broken", "gives_up", "goes_on"), [(4, 1, 9), (7, 9, 1)])
def test_where_one_side_gives_up_the_other_goes_on(broken: int, gives_up: int, goes_on: int) -> None:
    stack = column(11)

    def predict(index: int, prompt: Prompt) -> Prediction:
        from_below = np.array_equal(prompt.mask, stack[index - 1])
        lost = index == broken and from_below == (gives_up < broken)
        return Answering(np.zeros_like(stack) if lost else stack)(index, prompt)

    found = list(propagate({1: stack[1], 9: stack[9]}, predict, range(11), SETTINGS, MASKS))
    assert [(one.index, one.source_seed) for one in found if one.mask is None] == [(broken, gives_up)]
    filled = {one.index: one for one in found if one.mask is not None}
    assert sorted(filled) == [0, *range(2, 9), 10]
    assert filled[broken].source_seed == goes_on
    assert filled[broken].stopped == f"met what comes from slice {gives_up}"
    assert filled[3].source_seed == 1
    assert filled[8].source_seed == 9


def test_max_slices_counts_from_the_seed_each_way() -> None:
    found = {one.index: one for one in run(column(), 5, max_slices=2)}
    assert sorted(found) == [3, 4, 6, 7]
    assert found[7].stopped == found[3].stopped == "filled 2 slices, as many as were asked for"


def with_slice(stack: np.ndarray, index: int, mask: np.ndarray) -> np.ndarray:
    changed = stack.copy()
    changed[index] = mask
    return changed


@pytest.mark.parametrize(
    ("stack", "scores", "settings", "reason"),
    [
        (with_slice(column(), 7, np.zeros(HW, bool)), {}, {}, "the mask is empty"),
        (
            with_slice(column(), 7, disc(30, 20, 8)),
            {},
            {"max_area_ratio": 9},
            "it jumps: .*% of it lies where it was before, less than 50%",
        ),
        (
            with_slice(column(), 7, disc(22, 20, 3)),
            {},
            {"min_agreement": 0},
            "it shrinks from .* to .* pixels, by more than 3 times",
        ),
        (
            with_slice(column(), 7, disc(22, 20, 16)),
            {},
            {"min_agreement": 0},
            "it grows from .* to .* pixels, by more than 3 times",
        ),
        (column(), {7: 0.25}, {}, "the model is not sure: 25%, less than 30%"),
    ],
)
def test_a_doubtful_slice_is_refused_and_ends_its_direction(
    stack: np.ndarray, scores: dict[int, float], settings: dict[str, float], reason: str
) -> None:
    def predict(index: int, prompt: Prompt) -> Prediction:
        answer = Answering(stack, scores)(index, prompt)
        return replace(answer, masks=answer.masks[1:2], iou_predictions=answer.iou_predictions[1:2])

    *filled, last = propagate(
        {5: stack[5]}, predict, range(len(stack)), PropagationSettings(direction="up", **settings), MASKS
    )
    assert [one.index for one in filled] == [6]
    assert filled[0].stopped is None
    assert (last.index, last.mask) == (7, None)
    assert last.stopped is not None
    assert re.search(reason, last.stopped)


def fading(contrast: list[float], channels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A resting object's stack of masks, and pixels of which it stands out by so much in each slice."""
    stack = np.stack([disc(25, 20, 8)] * len(contrast))
    noise = np.random.default_rng(0).normal(0, 1, stack.shape)
    pixels = 100 + noise + stack * np.array(contrast)[:, None, None]
    return stack, pixels if channels is None else np.stack([100 + noise] * (channels - 1) + [pixels], axis=-1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("channels", [None, 3])
def test_an_object_that_fades_ends(sign: int, channels: int | None) -> None:
    stack, pixels = fading([sign * c for c in (40, 38, 35, 32, 20, 10)], channels)

    def read(index: int, crop: Crop) -> np.ndarray:
        return pixels[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    found = list(propagate({0: stack[0]}, Answering(stack), range(6), SETTINGS, MASKS, read=read))
    assert [one.index for one in found if one.mask is not None] == [1, 2, 3]
    assert found[-1].index == 4
    assert found[-1].stopped == "it fades: it stands out 50% as much as at first, less than 70%"
    off = replace(SETTINGS, min_contrast=0)
    assert len(list(propagate({0: stack[0]}, Answering(stack), range(6), off, MASKS, read=read))) == 5


@pytest.mark.parametrize("radii", [(12, 12, 11, 10, 8, 6, 4), (4, 6, 8, 10, 12)])
def test_an_object_of_constant_brightness_that_shrinks_or_grows_does_not_fade(radii: tuple[float, ...]) -> None:
    stack = np.stack([disc(25, 20, radius) for radius in radii])
    pixels = 100 + np.random.default_rng(0).normal(0, 1, stack.shape) + 40 * stack

    def read(index: int, crop: Crop) -> np.ndarray:
        return pixels[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    found = list(propagate({0: stack[0]}, Answering(stack), range(len(radii)), SETTINGS, MASKS, read=read))
    assert all(one.mask is not None for one in found) and found[-1].stopped == "reached the last slice"


def test_an_object_that_moves_does_not_fade() -> None:
    stack = np.stack([disc(12 + 4 * index, 20, 8) for index in range(7)])
    pixels = 100 + np.random.default_rng(0).normal(0, 1, stack.shape) + 40 * stack

    def read(index: int, crop: Crop) -> np.ndarray:
        return pixels[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    found = list(propagate({0: stack[0]}, Answering(stack), range(7), SETTINGS, MASKS, read=read))
    assert all(one.mask is not None for one in found)


def test_a_mask_that_is_given_back_where_nothing_is_ends_the_object() -> None:
    stack, pixels = fading([40, 40, 0.5, 0.5])

    def read(index: int, crop: Crop) -> np.ndarray:
        return pixels[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    found = list(propagate({0: stack[0]}, Answering(stack), range(4), SETTINGS, MASKS, read=read))
    assert [one.index for one in found if one.mask is not None] == [1] and "it fades" in str(found[-1].stopped)


def blurred(radii: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Sections of these radii, and pixels of one brightness as a microscope would blur them in the plane."""
    truth = np.stack([disc(25, 20, radius) for radius in radii])
    noise = np.random.default_rng(0).normal(0, 1, truth.shape)
    smooth = np.stack([cv2.GaussianBlur(plane.astype(np.float64), (0, 0), 1) for plane in truth])
    return truth, 100 + 40 * smooth + noise


def from_blurred(pixels: np.ndarray, answers: np.ndarray, **settings: object) -> list[PropagatedSlice]:
    def read(index: int, crop: Crop) -> np.ndarray:
        return pixels[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    asked = replace(SETTINGS, **settings)
    return list(propagate({0: answers[0]}, Answering(answers), range(len(answers)), asked, MASKS, read=read))


def test_a_mask_that_is_too_large_for_a_shrinking_section_is_cut_to_it() -> None:
    truth, pixels = blurred([12, 11, 10, 9, 8, 7])
    lagging = truth[[0, 0, 0, 1, 2, 3]]
    found = from_blurred(pixels, lagging)
    assert [one.index for one in found if one.mask is not None] == [1, 2, 3, 4, 5]
    for one in found[1:]:
        assert refinesam.mask_iou(one.mask, truth[one.index]) > 0.9
        assert refinesam.mask_iou(one.mask, truth[one.index]) > refinesam.mask_iou(lagging[one.index], truth[one.index])


def test_what_shrank_and_grows_again_is_another_object() -> None:
    truth, pixels = blurred([12, 11, 10, 8, 9.5, 11, 12])
    found = from_blurred(pixels, truth)
    assert [one.index for one in found if one.mask is not None] == [1, 2, 3]
    assert found[-1].stopped is not None
    assert re.search(r"it had shrunk to \d+ pixels and grows again to \d+: this is another object", found[-1].stopped)
    assert all(one.mask is not None for one in from_blurred(pixels, truth, depth=False)), "as through time"


def test_a_seed_of_more_than_one_brightness_says_nothing_about_sections() -> None:
    truth, pixels = blurred([12, 12])
    rows = np.indices(HW)[0]
    half = truth[0] & (rows < 20)
    pixels = pixels + 200 * half

    def read(index: int, crop: Crop) -> np.ndarray:
        return pixels[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    seed = SeedContrast.of(read, 0, truth[0])
    assert seed.difference is not None and not seed.even
    assert np.array_equal(seed.section(1, truth[1]), truth[1])


def test_a_seed_that_does_not_stand_out_says_nothing_about_other_slices() -> None:
    stack, pixels = fading([0.1, -40.0])

    def read(index: int, crop: Crop) -> np.ndarray:
        return pixels[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    seed = SeedContrast.of(read, 0, stack[0])
    assert seed.difference is None
    assert seed.left(1, stack[1]) == 1
    full = np.ones(HW, bool)
    assert SeedContrast.of(read, 1, full).difference is None, "without surroundings there is no contrast"


def test_pixels_are_read_around_the_object_only() -> None:
    stack, pixels = fading([40, 40])
    crops = []

    def read(index: int, crop: Crop) -> np.ndarray:
        crops.append(crop)
        return pixels[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    list(propagate({0: stack[0]}, Answering(stack), range(2), SETTINGS, MASKS, read=read))
    assert set(crops) == {Crop(13, 8, 37, 32)}


def test_of_three_masks_the_one_that_agrees_is_taken() -> None:
    stack = column()
    found = run(stack, 0)
    assert all(one.mask is not None and one.mask.sum() < 300 for one in found), "not the whole slice at 0.95"
    # Agreement is not all: a mask nearly as close with a far higher predicted IoU wins.
    exact = np.stack([stack[0], stack[1], np.zeros(HW, bool)])

    def predict(index: int, prompt: Prompt) -> Prediction:
        return Prediction(exact, np.array([0.4, 0.9, 0.1], np.float32), np.zeros((3, 4, 4), np.float32), prompt)

    (one,) = propagate({0: stack[0]}, predict, range(2), SETTINGS, MASKS)
    assert one.mask is not None
    assert np.array_equal(one.mask, stack[1])


def test_closing_the_generator_cancels() -> None:
    stack = column()
    predict = Answering(stack)
    slices = propagate({4: stack[4]}, predict, range(len(stack)), SETTINGS, MASKS)
    first = next(slices)
    slices.close()
    assert first.index == 3
    assert len(predict.asked) == 1
    assert list(slices) == []


def test_prompts_come_from_the_slice_before() -> None:
    stack = column()
    predict = Answering(stack)
    run(stack, 4, predict=predict, direction="up")
    index, prompt = predict.asked[1]
    assert index == 6
    assert prompt.mask is not None
    assert np.array_equal(prompt.mask, stack[5])
    assert prompt.box is None
    assert prompt.labels.tolist() == [1]


@pytest.mark.parametrize(("capabilities", "use_mask"), [(NO_MASKS, True), (MASKS, False)])
def test_without_a_mask_the_box_takes_its_place(capabilities: Capabilities, use_mask: bool) -> None:
    stack = column()
    predict = Answering(stack)
    run(stack, 4, predict=predict, capabilities=capabilities, use_mask=use_mask, direction="up")
    _, prompt = predict.asked[0]
    assert prompt.mask is None
    assert prompt.box is not None
    assert prompt.box.tolist() == [11, 12, 27, 28]


def test_points_lie_deep_inside_and_apart() -> None:
    shape = disc(15, 20, 9) | disc(38, 20, 6)
    two = PropagationSettings(points=2)
    first, second = prompt_from_mask(shape, two, True).points
    assert np.hypot(*(first - (15, 20))) < 1.5
    assert np.hypot(*(second - (38, 20))) < 1.5
    assert prompt_from_mask(shape, SETTINGS, True).points.tolist() == [first.tolist()]
    pixel = np.zeros(HW, bool)
    pixel[39, 49] = True
    assert prompt_from_mask(pixel, two, True).points.tolist() == [[49.5, 39.5]], "a pixel has one place"


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ((100, 100, 140, 120), Crop(40, 30, 200, 190)),  # four times the longer side
        ((100, 100, 110, 110), Crop(41, 41, 169, 169)),  # 128 at least
        ((0, 0, 40, 40), Crop(0, 0, 160, 160)),  # moved inwards
        ((250, 290, 256, 300), Crop(128, 172, 256, 300)),
        ((50, 50, 200, 200), Crop(0, 0, 256, 300)),  # no larger than the plane
    ],
)
def test_context_crop(region: tuple[float, ...], expected: Crop) -> None:
    assert context_crop(region, (300, 256)) == expected
    mask = np.zeros((300, 256), bool)
    x0, y0, x1, y1 = region
    mask[y0:y1, x0:x1] = True
    assert context_crop(mask, (300, 256)) == expected


@pytest.mark.parametrize("capabilities", [MASKS, NO_MASKS])
def test_predicting_in_crops_is_predicting_in_the_slice(capabilities: Capabilities) -> None:
    """The flood model's mask is that of the whole slice, wherever the crop lies."""
    stack = np.zeros((4, 200, 300), bool)
    for index, plane in enumerate(stack):
        plane[150 + index : 170 + index, 230 + index : 260] = True
    rgb = np.repeat(np.where(stack, 200, 20).astype(np.uint8)[..., None], 3, axis=-1)
    session = Session(FloodModel(mask_prompt=True))
    crops = []

    def encode(index: int, crop: Crop) -> refinesam.EncodedImage:
        crops.append(crop)
        return session.encode(rgb[index, crop.y0 : crop.y1, crop.x0 : crop.x1])

    predict = predict_in_crops(encode, (200, 300))
    found = list(propagate({0: stack[0]}, predict, range(4), SETTINGS, capabilities))
    assert [one.index for one in found] == [1, 2, 3]
    for one in found:
        assert one.mask is not None
        assert np.array_equal(one.mask, stack[one.index])
    assert {(crop.y1 - crop.y0, crop.x1 - crop.x0) for crop in crops} == {(128, 128)}
    with pytest.raises(refinesam.PromptError, match="neither a mask nor a box"):
        predict(0, Prompt(points=[[240, 160]]))


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ({}, "There is no seed"),
        ({3: np.zeros(HW, bool)}, "seed in slice 3 is empty"),
        ({12: disc(20, 20, 5)}, "seed in slice 12 is outside the stack, slices 0 to 11"),
        ({3: np.ones((1, *HW), bool)}, "shapes"),
        ({3: disc(20, 20, 5), 4: np.ones((3, 3), bool)}, "the same for all"),
    ],
)
def test_bad_seeds_are_refused_at_once(seeds: dict[int, np.ndarray], message: str) -> None:
    with pytest.raises(refinesam.PromptError, match=message):
        propagate(seeds, Answering(column()), range(12), SETTINGS, MASKS)


def test_indices_with_steps_are_refused_at_once() -> None:
    with pytest.raises(refinesam.ConfigError, match="steps of 1"):
        propagate({2: column()[2]}, Answering(column()), range(0, 12, 2), SETTINGS, MASKS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("direction", "left"),
        ("min_agreement", 1.5),
        ("max_area_ratio", 0.5),
        ("min_score", -0.1),
        ("min_contrast", 2),
        ("max_slices", 0),
        ("points", 0),
    ],
)
def test_bad_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(refinesam.ConfigError, match=f"{name} is {value!r}; give"):
        PropagationSettings(**{name: value})


@pytest.fixture(scope="module")
def nuclei() -> tuple[np.ndarray, np.ndarray]:
    """A real stack, (31, 61, 57) uint16, and its ground truth."""
    spec = importlib.util.find_spec("stardist")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("stardist's sample stack is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "images"
    return tifffile.imread(folder / "img3d.tif"), tifffile.imread(folder / "mask3d.tif")


def test_real_nuclei_are_found_from_one_slice(nuclei: tuple[np.ndarray, np.ndarray]) -> None:
    image, truth = nuclei
    session = refinesam.load("builtin")
    planes = [refinesam.as_rgb(plane) for plane in image]

    def predict(index: int, prompt: Prompt) -> Prediction:
        return session.encode(planes[index]).predict(prompt)

    def read(index: int, crop: Crop) -> np.ndarray:
        return image[index, crop.y0 : crop.y1, crop.x0 : crop.x1]

    ious, copied = [], []
    for number in (23, 45, 61):
        wanted = truth == number
        slices = np.flatnonzero(wanted.any((1, 2)))
        middle = int(slices[len(slices) // 2])
        found = np.zeros_like(wanted)
        found[middle] = wanted[middle]
        for one in propagate({middle: wanted[middle]}, predict, range(31), SETTINGS, session.capabilities, read=read):
            assert (one.mask is None) <= (one.stopped is not None)
            if one.mask is not None:
                found[one.index] = one.mask
        ious.append((found & wanted).sum() / (found | wanted).sum())
        everywhere = np.broadcast_to(wanted[middle], wanted.shape)
        copied.append((everywhere & wanted).sum() / (everywhere | wanted).sum())
        assert 3 <= found.any((1, 2)).sum() <= len(slices) + 6
    assert np.mean(ious) > 0.5
    assert np.mean(ious) > np.mean(copied) + 0.15
