from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from refinesam import ConfigError, ImageError
from refinesam_napari.crops import SIDE, WHOLE_SIDE, choose_crop
from refinesam_napari.document import PlanePrompts, Point
from refinesam_napari.geometry import Crop

NONE = PlanePrompts()
HUGE = (30_000, 40_000)


def clicks(*at: tuple[float, float]) -> PlanePrompts:
    return PlanePrompts(tuple(Point(x, y) for x, y in at))


# ---------------------------------------------------------------- invariants

sides = st.integers(1, 5000) | st.sampled_from([1, SIDE, WHOLE_SIDE, WHOLE_SIDE + 1, 2049, 100_000])
planes = st.tuples(sides, sides)
numbers = st.floats(-100, 100_100, allow_nan=False)
modes: Any = st.sampled_from(["auto", "whole", "view"])


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x0, y0 = draw(numbers), draw(numbers)
    return x0, y0, x0 + draw(st.floats(0.5, 50_000)), y0 + draw(st.floats(0.5, 50_000))


@st.composite
def prompts_in(draw: st.DrawFn, plane_hw: tuple[int, int]) -> PlanePrompts:
    """Points and boxes inside the plane and around it."""
    height, width = plane_hw
    x, y = st.floats(-10, width + 10), st.floats(-10, height + 10)
    points = draw(st.lists(st.builds(Point, x, y, st.booleans()), max_size=4))
    corners = draw(st.none() | st.tuples(x, x, y, y))
    box = None
    if corners is not None:
        (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
        box = (x0, y0, x1, y1)
    return PlanePrompts(tuple(points), box)


questions = planes.flatmap(lambda hw: st.tuples(st.just(hw), prompts_in(hw)))


def inside(crop: Crop, plane_hw: tuple[int, int]) -> bool:
    return 0 <= crop.x0 < crop.x1 <= plane_hw[1] and 0 <= crop.y0 < crop.y1 <= plane_hw[0]


@given(questions, modes, rectangles())
def test_a_crop_lies_in_the_plane_and_holds_the_prompts(question: Any, mode: Any, view: Any) -> None:
    plane_hw, prompts = question
    crop = choose_crop(plane_hw, prompts, None, mode, view)
    assert inside(crop, plane_hw)
    for point in prompts.points:
        if 0 <= point.x < plane_hw[1] and 0 <= point.y < plane_hw[0]:
            assert crop.contains(point.x, point.y)
    if prompts.box is not None:
        x0, y0, x1, y1 = prompts.box
        if x1 > 0 and y1 > 0 and x0 < plane_hw[1] and y0 < plane_hw[0]:
            assert crop.x0 <= max(x0, 0) and min(x1, plane_hw[1]) <= crop.x1
            assert crop.y0 <= max(y0, 0) and min(y1, plane_hw[0]) <= crop.y1


@given(questions, modes, rectangles())
def test_no_more_than_2048_pixels_a_side_are_read(question: Any, mode: Any, view: Any) -> None:
    plane_hw, prompts = question
    crop = choose_crop(plane_hw, prompts, None, mode, view)
    assert max(crop.hw) <= 2048
    # Not needlessly few either.
    assert crop.step == 1 or max(crop.x1 - crop.x0, crop.y1 - crop.y0) > SIDE


@given(questions, modes, rectangles())
def test_a_chosen_crop_is_chosen_again_and_kept(question: Any, mode: Any, view: Any) -> None:
    plane_hw, prompts = question
    crop = choose_crop(plane_hw, prompts, None, mode, view)
    assert choose_crop(plane_hw, prompts, None, mode, view) == crop
    assert choose_crop(plane_hw, prompts, crop, mode, view) == crop


@given(questions)
def test_a_new_crop_leaves_a_margin_where_the_plane_allows(question: Any) -> None:
    plane_hw, prompts = question
    assume(prompts.box is None)
    crop = choose_crop(plane_hw, prompts, None, "auto")
    across, down = (crop.x1 - crop.x0) // 4, (crop.y1 - crop.y0) // 4
    for point in prompts.points:
        if 0 <= point.x < plane_hw[1] and 0 <= point.y < plane_hw[0]:
            assert crop.x0 == 0 or point.x - crop.x0 >= across
            assert crop.y0 == 0 or point.y - crop.y0 >= down
            assert crop.x1 == plane_hw[1] or crop.x1 - point.x >= across
            assert crop.y1 == plane_hw[0] or crop.y1 - point.y >= down


@pytest.mark.parametrize("apart", range(0, 2048, 16))
def test_the_crop_of_two_clicks_leaves_a_margin(apart: int) -> None:
    crop = choose_crop(HUGE, clicks((10_000, 5000), (10_000 + apart, 5000)), None, "auto")
    quarter = (crop.x1 - crop.x0) // 4
    assert crop.x0 + quarter <= 10_000 and 10_000 + apart < crop.x1 - quarter


@given(st.integers(0, HUGE[1] - 1), st.integers(0, HUGE[0] - 1))
@example(HUGE[1] - 1, HUGE[0] - 1)
def test_a_crop_around_clicks_begins_on_a_grid(x: int, y: int) -> None:
    crop = choose_crop(HUGE, clicks((x, y)), None, "auto")
    assert (crop.x1 - crop.x0, crop.y1 - crop.y0, crop.step) == (SIDE, SIDE, 1)
    assert crop.x0 % (SIDE // 4) == 0 or crop.x1 == HUGE[1]
    assert crop.y0 % (SIDE // 4) == 0 or crop.y1 == HUGE[0]


# ---------------------------------------------------------------- auto


@pytest.mark.parametrize("plane_hw", [(1, 1), (WHOLE_SIDE, 200), (900, WHOLE_SIDE)])
def test_a_plane_of_moderate_size_is_taken_whole(plane_hw: tuple[int, int]) -> None:
    whole = Crop(0, 0, plane_hw[1], plane_hw[0])
    assert choose_crop(plane_hw, clicks((0, 0)), Crop(0, 0, 1, 1), "auto") == whole


def test_neighbouring_clicks_find_the_same_crop() -> None:
    crops = {choose_crop(HUGE, clicks((x, 5000)), None, "auto") for x in range(10_000, 10_512)}
    assert len(crops) <= 3


def test_a_long_thin_plane_is_cut_on_its_long_side_only() -> None:
    assert choose_crop((300, 9000), clicks((5000, 10)), None, "auto") == Crop(4608, 0, 5632, 300)


@pytest.mark.parametrize(("size", "step"), [(100, 1), (500, 1), (700, 2), (1400, 4), (5000, 8)])
def test_a_crop_grows_with_its_box_and_is_read_with_a_step(size: int, step: int) -> None:
    prompts = PlanePrompts(box=(10_000, 10_100, 10_000 + size, 10_100 + size))
    crop = choose_crop(HUGE, prompts, None, "auto")
    assert (crop.x1 - crop.x0, crop.step, crop.hw) == (SIDE * step, step, (SIDE, SIDE))
    margin = size / 4
    assert crop.x0 <= 10_000 - margin and 10_000 + size + margin <= crop.x1


def test_a_box_of_nearly_the_whole_plane_gets_the_whole_plane() -> None:
    assert choose_crop((3000, 4001), PlanePrompts(box=(-5, 3, 3990, 2999)), None, "auto") == Crop(0, 0, 4001, 3000, 4)


def test_the_last_crop_ends_with_the_plane_and_begins_on_a_step() -> None:
    box = PlanePrompts(box=(8500, 8500, 10_000, 10_000))
    crop = choose_crop((10_001, 10_003), box, None, "auto")
    assert (crop.x1, crop.y1) == (10_003, 10_001)
    assert crop.step == 2 and crop.x0 % 2 == 0 == crop.y0 % 2
    assert crop.x1 - crop.x0 in (2047, 2048) and crop.y1 - crop.y0 in (2047, 2048)


def test_without_prompts_the_middle_is_taken() -> None:
    crop = choose_crop((10_000, 20_000), NONE, None, "auto")
    assert crop.contains(10_000, 5000) and crop.hw == (SIDE, SIDE)
    assert choose_crop((10_000, 20_000), clicks((-5, 3), (20_000, 4)), None, "auto") == crop


PREVIOUS = Crop(2048, 2048, 3072, 3072)


@pytest.mark.parametrize(
    ("prompts", "kept"),
    [
        (clicks((2560, 2560)), True),
        (clicks((2160, 2960)), True),
        (clicks((2560, 2560), (2140, 2560)), False),  # less than a tenth from the left edge
        (clicks((2560, 2980)), False),
        (clicks((2560, 5000)), False),
        (clicks((2560, 2560), (-3, 5)), True),  # outside the plane: doesn't count
        (PlanePrompts(box=(2200, 2200, 2900, 2900)), True),
        (PlanePrompts(box=(2200, 2200, 2990, 2900)), False),
    ],
)
def test_the_previous_crop_is_kept_while_the_prompts_lie_well_inside(prompts: PlanePrompts, kept: bool) -> None:
    crop = choose_crop(HUGE, prompts, PREVIOUS, "auto")
    assert (crop == PREVIOUS) == kept
    assert inside(crop, HUGE)


def test_at_the_planes_border_no_margin_is_asked() -> None:
    corner = Crop(0, 0, SIDE, SIDE)
    assert choose_crop(HUGE, clicks((0, 3)), corner, "auto") == corner
    last = Crop(HUGE[1] - SIDE, HUGE[0] - SIDE, HUGE[1], HUGE[0])
    assert choose_crop(HUGE, clicks((HUGE[1] - 1, HUGE[0] - 0.5)), last, "auto") == last


def test_a_previous_crop_of_another_plane_is_not_kept() -> None:
    outside = Crop(39_500, 2000, 40_500, 3000)
    assert inside(choose_crop(HUGE, clicks((39_900, 2500)), outside, "auto"), HUGE)


# ---------------------------------------------------------------- whole and view


@pytest.mark.parametrize(("side", "step"), [(100, 1), (2048, 1), (2049, 2), (12_000, 8)])
def test_whole_is_read_with_a_step(side: int, step: int) -> None:
    assert choose_crop((50, side), clicks((3, 3)), Crop(0, 0, 9, 9), "whole") == Crop(0, 0, side, 50, step)


def test_the_view_is_snapped_outward() -> None:
    crop = choose_crop(HUGE, NONE, None, "view", (1001, 2003, 1901, 2600))
    assert crop == Crop(960, 1984, 1920, 2624)  # by 64, the power of two below an eighth of 900


def test_the_view_stays_while_it_is_moved_a_little() -> None:
    crops = {choose_crop(HUGE, NONE, None, "view", (1001 + dx, 2003, 1871 + dx, 2600)) for dx in range(16)}
    assert len(crops) == 1


def test_the_view_is_clipped_and_read_with_a_step() -> None:
    assert choose_crop((900, 800), NONE, None, "view", (-5000, -5000, 5000, 5000)) == Crop(0, 0, 800, 900)
    assert choose_crop(HUGE, NONE, None, "view", (-1000, 0, 39_999, 8000)) == Crop(0, 0, 40_000, 8192, 32)


def test_what_the_view_does_not_show_of_the_prompts_is_added() -> None:
    crop = choose_crop(HUGE, clicks((5000, 2100)), PREVIOUS, "view", (1000, 2000, 1900, 2600))
    assert crop == Crop(960, 1984, 5056, 2624, 2)


def test_a_view_of_nothing_gives_the_whole_plane() -> None:
    assert choose_crop((3000, 4000), NONE, None, "view", (5000, 0, 6000, 100)) == Crop(0, 0, 4000, 3000, 2)


def test_a_view_of_part_of_a_pixel_gives_that_pixel() -> None:
    assert choose_crop((30, 40), NONE, None, "view", (3.2, 5.1, 3.4, 5.2)) == Crop(3, 5, 4, 6)


@pytest.mark.parametrize(
    ("plane_hw", "mode", "error", "message"),
    [
        ((0, 9), "auto", ImageError, r"no pixels \(height 0, width 9\)"),
        ((9, 9), "tiles", ConfigError, "Unknown crop mode 'tiles': choose one of auto, whole, view"),
        ((9, 9), "view", ConfigError, "needs the visible rectangle"),
    ],
)
def test_bad_questions_are_refused(plane_hw: Any, mode: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        choose_crop(plane_hw, NONE, None, mode)
