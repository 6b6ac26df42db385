"""The vote over the masks of several passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mask_arrays import scores, square
from refinesam.amr.vote import THRESHOLDS, Candidates, vote
from refinesam.masks import mask_iou


def naive_decision(first: np.ndarray, decodes: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Expected IoU of the first mask and of the best vote, on whole images, written out; no vote on a threshold."""
    masks, weights = [], []
    for own, predicted in decodes:
        shares = np.exp((predicted.astype(float) - predicted.max()) / 0.1)
        masks += list(own)
        weights += list(shares / shares.sum() / len(decodes))
    votes = sum(weight * mask for weight, mask in zip(weights, masks, strict=True))

    # Such a vote falls to either side of it with the last digit.
    assume(all(np.abs(votes - threshold).min() > 1e-5 for threshold in THRESHOLDS))

    def expected(option: np.ndarray) -> float:
        return sum(weight * mask_iou(option, mask) for weight, mask in zip(weights, masks, strict=True))

    return expected(first), max(expected(votes > threshold) for threshold in THRESHOLDS)


small_masks = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
    lambda shape: st.lists(
        st.tuples(
            hnp.arrays(np.bool_, (3, *shape)),
            hnp.arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
        ),
        min_size=1,
        max_size=4,
    )
)


@settings(max_examples=150, deadline=None)
@given(small_masks)
def test_the_vote_is_the_definition_written_out(decodes: list[tuple[np.ndarray, np.ndarray]]) -> None:
    first = decodes[0][0][int(decodes[0][1].argmax())]
    decision = vote(first, [Candidates(masks, predicted) for masks, predicted in decodes])
    if not any(masks.any() for masks, _ in decodes):
        assert decision is None
        return
    assert decision is not None
    before, after = naive_decision(first, decodes)
    assert decision.first_expected_iou == pytest.approx(before, abs=1e-5)
    assert decision.expected_iou == pytest.approx(after, abs=1e-5)
    everything = [mask for masks, _ in decodes for mask in masks]
    np.testing.assert_allclose(decision.ious, [mask_iou(decision.mask, mask) for mask in everything], atol=1e-6)


def test_the_majority_wins_and_an_outlier_does_not() -> None:
    first, other = square(20, 20, 40), square(20, 20, 60)
    # Scores of different decodes are not compared.
    decision = vote(first, [Candidates(first[None], scores(0.9)), *[Candidates(other[None], scores(0.1))] * 2])
    assert decision is not None
    np.testing.assert_array_equal(decision.mask, other)
    overlap = 40**2 / 60**2
    assert decision.expected_iou == pytest.approx((2 + overlap) / 3)
    assert decision.first_expected_iou == pytest.approx((1 + 2 * overlap) / 3)


def test_predicted_ious_weigh_the_masks_of_one_decode() -> None:
    first, other = square(20, 20, 40), square(20, 20, 60)
    decision = vote(first, [Candidates(np.stack([first, other]), scores(0.5, 0.9))])
    assert decision is not None
    np.testing.assert_array_equal(decision.mask, other)
    decision = vote(first, [Candidates(np.stack([first, other]), scores(0.5, math.nan))])
    assert decision is not None
    np.testing.assert_array_equal(decision.mask, first)


def test_masks_of_a_window_are_put_where_they_belong() -> None:
    window = (70, 40, 130, 90)
    in_window = Candidates(square(50, 80, 30)[None, 40:90, 70:130], scores(0.5), window)
    decision = vote(square(50, 80, 30), [in_window])
    assert decision is not None
    np.testing.assert_array_equal(decision.mask, square(50, 80, 30))
    assert decision.expected_iou == decision.first_expected_iou == pytest.approx(1)


def test_large_masks_are_compared_on_a_grid_and_kept_in_full() -> None:
    shape = (1000, 900)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    first = (rows - 500) ** 2 + (columns - 450) ** 2 < 300**2
    other = (rows - 480) ** 2 + (columns - 470) ** 2 < 330**2
    decision = vote(first, [Candidates(mask[None], scores(0.5)) for mask in (first, other, other)])
    assert decision is not None
    np.testing.assert_array_equal(decision.mask, other)
    assert decision.first_expected_iou == pytest.approx((1 + 2 * mask_iou(first, other)) / 3, abs=0.01)


def test_a_decode_can_have_more_weight() -> None:
    first, other = square(20, 20, 40), square(20, 20, 60)
    decision = vote(first, [Candidates(first[None], scores(0.9)), Candidates(other[None], scores(0.1), weight=3)])
    assert decision is not None
    np.testing.assert_array_equal(decision.mask, other)
    assert decision.expected_iou == pytest.approx((3 + 40**2 / 60**2) / 4)
