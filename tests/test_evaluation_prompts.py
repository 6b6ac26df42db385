"""Evaluation: prompts by protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evaluation_fakes import rectangle
from refinesam.errors import ConfigError, DatasetError, ImageError
from refinesam.evaluation.protocols import PROTOCOLS, prompt_for


def test_protocols_are_pinned() -> None:
    assert PROTOCOLS == ("box", "noisy-box", "points-1", "points-3", "points-5", "random-2")


def test_the_box_is_tight_on_pixel_edges() -> None:
    prompt = prompt_for("box", rectangle(3, 2, 8, 5), annotation_id=1)
    assert prompt.box is not None and prompt.box.tolist() == [3, 2, 8, 5] and not len(prompt.points)
    assert prompt_for("box", rectangle(19, 9, 20, 10), 1).box.tolist() == [19, 9, 20, 10]  # type: ignore[union-attr]


@pytest.mark.parametrize(("protocol", "count"), [("points-1", 1), ("points-3", 3), ("points-5", 5), ("random-2", 2)])
def test_clicks_are_distinct_pixel_centres_in_the_mask(protocol: Any, count: int) -> None:
    mask = rectangle(2, 1, 9, 8) & ~rectangle(4, 3, 7, 6)
    for number in range(50):
        prompt = prompt_for(protocol, mask, number)
        prompt.check_inside(mask.shape)
        x, y = prompt.points.T
        assert prompt.points.shape == (count, 2) and (prompt.labels == 1).all() and prompt.box is None
        assert (prompt.points % 1 == 0.5).all()
        assert mask[y.astype(int), x.astype(int)].all()
        assert len(np.unique(prompt.points, axis=0)) == count


def test_clicks_are_nested_and_fixed_by_annotation_and_seed() -> None:
    mask = rectangle(0, 0, 20, 10)
    five = prompt_for("points-5", mask, 7, seed=1).points.tolist()
    for protocol, count in (("points-1", 1), ("random-2", 2), ("points-3", 3)):
        assert prompt_for(protocol, mask, 7, seed=1).points.tolist() == five[:count]  # type: ignore[arg-type]
    assert prompt_for("points-5", mask, 8, seed=1).points.tolist() != five
    assert prompt_for("points-5", mask, 7, seed=2).points.tolist() != five
    assert prompt_for("points-5", mask.astype(np.uint8), 10**30).points.shape == (5, 2)


def test_clicks_are_the_same_on_every_machine() -> None:
    # Results are compared between releases: when this changes, every published click result has to be measured again.
    assert prompt_for("points-3", rectangle(0, 0, 20, 10), 7).points.tolist() == [
        [16.5, 7.5],
        [12.5, 5.5],
        [7.5, 0.5],
    ]


def test_a_small_object_is_clicked_on_each_pixel() -> None:
    mask = rectangle(5, 5, 7, 6)
    assert sorted(prompt_for("points-5", mask, 1).points.tolist()) == [[5.5, 5.5], [6.5, 5.5]]
    assert len(prompt_for("points-1", mask, 1).points) == 1


def test_first_clicks_fall_on_all_pixels_alike() -> None:
    mask = rectangle(1, 1, 3, 3) | rectangle(10, 7, 14, 8)
    counts = np.zeros(mask.shape, int)
    for number in range(1600):
        x, y = prompt_for("points-1", mask, number).points[0].astype(int)
        counts[y, x] += 1
    # 200 each; the bounds are five standard deviations (13.2) away.
    assert counts[mask].min() > 134 and counts[mask].max() < 266


def test_bad_prompt_requests_are_named() -> None:
    with pytest.raises(DatasetError, match="annotation 12 covers no pixel"):
        prompt_for("points-1", np.zeros((4, 4), bool), 12)
    with pytest.raises(ConfigError, match="'points-2': choose one of box, noisy-box, points-1"):
        prompt_for("points-2", rectangle(0, 0, 2, 2), 1)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        prompt_for("box", np.zeros((4, 4, 3), bool), 1)
    for seed in (-1, 1.5, True, None):
        with pytest.raises(ConfigError, match="seed"):
            prompt_for("box", rectangle(0, 0, 2, 2), 1, seed=seed)  # type: ignore[arg-type]
