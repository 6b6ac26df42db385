"""Windows around an object, and prompts moved into them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mask_arrays import square
from refinesam.amr.crop import LEAST_SIDE, MOST_OF_IMAGE, prompt_in_window, window_around
from refinesam.types import Prompt


@settings(max_examples=200, deadline=None)
@given(data=st.data(), factor=st.floats(1, 8), height=st.integers(1, 300), width=st.integers(1, 300))
def test_a_window_holds_the_mask_and_the_prompt(data: st.DataObject, factor: float, height: int, width: int) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    mask = np.zeros((height, width), bool)
    mask[top : top + data.draw(st.integers(1, 60)), left : left + data.draw(st.integers(1, 60))] = True
    inside = st.tuples(
        st.floats(0, width, exclude_max=True, width=32), st.floats(0, height, exclude_max=True, width=32)
    )
    points = data.draw(st.lists(inside, min_size=1, max_size=3))
    labels = [1, *data.draw(st.lists(st.integers(0, 1), min_size=len(points) - 1, max_size=len(points) - 1))]
    prompt = Prompt(points, labels)
    window = window_around(mask, prompt, factor)
    if window is None:
        return
    x0, y0, x1, y1 = window
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert (x1 - x0) * (y1 - y0) <= MOST_OF_IMAGE * width * height
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    moved = prompt_in_window(prompt, window, mask)
    moved.check_inside((y1 - y0, x1 - x0))
    assert len(moved.positive_points) == len(prompt.positive_points)
    np.testing.assert_array_equal(moved.mask, mask[y0:y1, x0:x1])


def test_windows_by_hand() -> None:
    mask = square(80, 100, 20)
    # The longer side of what it holds is 20; twice that is less than a window's least side.
    assert window_around(mask, Prompt(points=[[105, 85]]), 2) == (86, 66, 135, 115)
    assert LEAST_SIDE == 48
    # 4 x 20 = 80 around the middle, (110, 90).
    assert window_around(mask, Prompt(points=[[105, 85]]), 4) == (70, 50, 151, 131)
    # A positive click elsewhere counts, a negative one does not.
    assert window_around(mask, Prompt(points=[[105, 85], [180, 85]], labels=[1, 0]), 4) == (70, 50, 151, 131)
    assert window_around(mask, Prompt(points=[[105, 85], [180, 85]]), 2) == (60, 10, 221, 171)
    # Moved into the image.
    assert window_around(square(0, 0, 30), Prompt(box=[-9, 0, 40, 30]), 4) == (0, 0, 161, 161)
    # No more than half of the image, 173 x 173 of 200 x 300, and cut where it is narrow.
    assert MOST_OF_IMAGE == 0.5
    assert window_around(square(80, 100, 60), Prompt(points=[[105, 85]]), 6) == (44, 24, 217, 197)
    flat = square(40, 140, 20, (100, 300))
    assert window_around(flat, Prompt(points=[[145, 45]]), 6) == (90, 0, 211, 100)
    # Such an object would fill its window.
    assert window_around(mask, Prompt(box=[60, 20, 205, 165]), 6) is None
    assert window_around(mask, Prompt(box=[10, 10, 290, 190]), 1.5) is None


def test_a_prompt_in_a_window() -> None:
    prompt = Prompt([[105, 85], [10, 10]], [1, 0], box=[60, 40, 160, 120], mask_logits=np.ones((4, 4)))
    mask = square(80, 100, 20)
    moved = prompt_in_window(prompt, (70, 50, 151, 131), mask)
    assert moved.points.tolist() == [[35, 35]]
    assert moved.labels.tolist() == [1]
    assert moved.box is not None
    assert moved.box.tolist() == [0, 0, 81, 70]
    np.testing.assert_array_equal(moved.mask, mask[50:131, 70:151])
    assert moved.mask_logits is None
