"""Prompt checks what it is given; values don't change after they were made."""

from __future__ import annotations

import numpy as np
import pytest

from refinesam.errors import PromptError
from refinesam.types import Prediction, Prompt, RefinementReport

BAD_PROMPTS = {
    "nothing": ({}, "empty"),
    "no points": ({"points": []}, "empty"),
    "labels alone": ({"labels": [1]}, "without points"),
    "flat points": ({"points": [1, 2]}, r"\(N, 2\)"),
    "three coordinates": ({"points": [[1, 2, 3]]}, r"\(N, 2\)"),
    "ragged points": ({"points": [[1, 2], [3]]}, "must be numbers"),
    "words": ({"points": [["a", "b"]]}, "must be numbers"),
    "NaN point": ({"points": [[np.nan, 1]]}, "finite"),
    "infinite point": ({"points": [[np.inf, 1]]}, "finite"),
    "too few labels": ({"points": [[1, 2], [3, 4]], "labels": [1]}, "need labels of shape"),
    "label 2": ({"points": [[1, 2]], "labels": [2]}, "must be 1"),
    "label 0.5": ({"points": [[1, 2]], "labels": [0.5]}, "must be 1"),
    "label -1": ({"points": [[1, 2]], "labels": [-1]}, "must be 1"),
    "two boxes": ({"box": [[0, 0, 1, 1], [2, 2, 3, 3]]}, "four numbers"),
    "three numbers": ({"box": [0, 0, 1]}, "four numbers"),
    "box without width": ({"box": [3, 0, 3, 5]}, "no area"),
    "NaN box": ({"box": [0, 0, np.nan, 1]}, "finite"),
    "flat mask": ({"mask": [True, False]}, r"\(H, W\)"),
    "empty mask": ({"mask": np.zeros((0, 4), bool)}, r"\(H, W\)"),
    "logits as mask": ({"mask": [[-3.0, 4.0]]}, "use mask_logits"),
    "three-dimensional logits": ({"mask_logits": np.zeros((1, 4, 4))}, "one mask"),
    "NaN logits": ({"mask_logits": [[np.nan]]}, "finite"),
    "mask and logits": ({"mask": [[True]], "mask_logits": [[1.0]]}, "not both"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompts_say_what_is_wrong(name: str) -> None:
    arguments, words = BAD_PROMPTS[name]
    with pytest.raises(PromptError, match=words):
        Prompt(**arguments)


def test_box_corners_in_any_order() -> None:
    assert Prompt(box=[9, 8, 1, 2]).box.tolist() == [1, 2, 9, 8]


def test_values_are_private_and_read_only() -> None:
    points = np.array([[1.0, 2.0]])
    prompt = Prompt(points=points)
    points[0, 0] = 50
    assert prompt.points.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="read-only"):
        prompt.points[0, 0] = 7


def test_with_points_appends() -> None:
    prompt = Prompt(points=[[1, 2]], box=[0, 0, 5, 5]).with_points([[3, 4]], [0])
    assert prompt.points.tolist() == [[1, 2], [3, 4]]
    assert prompt.labels.tolist() == [1, 0]
    assert prompt.box.tolist() == [0, 0, 5, 5]
    assert prompt.positive_points.tolist() == [[1, 2]]
    assert prompt.negative_points.tolist() == [[3, 4]]


def test_repr_shows_only_what_was_given() -> None:
    assert repr(Prompt(points=[[1, 2]])) == "Prompt(points=[[1.0, 2.0]], labels=[1])"
    assert repr(Prompt(mask=np.ones((2, 3), bool))) == "Prompt(mask=<2x3>)"


def prediction(**changes: object) -> Prediction:
    values: dict[str, object] = {
        "masks": np.ones((3, 4, 5), bool),
        "iou_predictions": np.array([0.2, 0.5, 0.1], np.float32),
        "low_res_logits": np.zeros((3, 2, 2), np.float32),
        "prompt": Prompt(points=[[1, 1]]),
    }
    return Prediction(**values | changes)  # type: ignore[arg-type]


def report() -> RefinementReport:
    ends = {"score_before": 0.5, "score_after": 0.6, "kept": "first", "reason": "none"}
    points, rejected = np.zeros((2, 2), np.float32), np.ones((4, 5), bool)
    return RefinementReport(1, 0.5, "centre", "centre", points, **ends, rejected=rejected)  # type: ignore[arg-type]


VALUES = {
    "Prompt": Prompt(points=[[1, 1]], box=[0, 0, 2, 2], mask=np.ones((4, 5), bool)),
    "logits": Prompt(mask_logits=np.zeros((2, 2))),
    "Prediction": prediction(),
    "a refined one": prediction().with_refinement(report()),
    "RefinementReport": report(),
}


@pytest.mark.parametrize("name", VALUES)
def test_nothing_can_be_written_into_a_value(name: str) -> None:
    arrays = {key: value for key, value in vars(VALUES[name]).items() if isinstance(value, np.ndarray)}
    assert arrays
    for key, array in arrays.items():
        with pytest.raises(ValueError, match="read-only"):
            array.flat[0] = 1
        assert not array.flags.writeable, key


def test_a_prediction_holds_copies_of_what_its_maker_keeps() -> None:
    masks = np.ones((3, 4, 5), bool)
    made = prediction(masks=masks)
    masks[:] = False
    assert made.masks.all() and masks.flags.writeable


def test_predicted_ious_are_ious_and_keep_their_order() -> None:
    made = prediction(iou_predictions=np.array([1.02, 1.3, -0.2], np.float32))
    assert (made.iou_predictions >= 0).all() and (made.iou_predictions <= 1).all()
    assert made.best == 1 and made.iou_predictions.dtype == np.float32
    assert made.iou_predictions.argsort().tolist() == [2, 0, 1]
    assert made.iou_predictions == pytest.approx([1, 1, 0], abs=1e-6)
    assert prediction(iou_predictions=np.array([0.5, 1, 0], np.float32)).iou_predictions.tolist() == [0.5, 1, 0]
    broken = prediction(iou_predictions=np.array([np.inf, 1.5, np.nan], np.float32)).iou_predictions
    assert np.isnan(broken[[0, 2]]).all() and broken[1] == 1


def squares(*sides: int, size: int = 20) -> np.ndarray:
    masks = np.zeros((len(sides), size, size), bool)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side] = True
    return masks


def nested(*sides: int, scores: tuple[float, ...], **changes: object) -> Prediction:
    logits = np.arange(len(sides), dtype=np.float32)[:, None, None].repeat(2, 1).repeat(2, 2)
    return prediction(
        masks=squares(*sides), iou_predictions=np.array(scores, np.float32), low_res_logits=logits, **changes
    )


def shown(made: Prediction) -> list[tuple[int, float]]:
    return [(int(one.mask.sum()), pytest.approx(one.score)) for one in made.candidates]


def test_candidates_are_ordered_by_area_with_their_own_scores_and_logits() -> None:
    made = nested(16, 4, 8, scores=(0.3, 0.5, 0.9))
    assert shown(made) == [(16, 0.5), (64, 0.9), (256, 0.3)]
    assert [one.logits[0, 0] for one in made.candidates] == [1, 2, 0]
    assert all(one.masks.shape == (1, 20, 20) and one.prompt is made.prompt for one in made.candidates)


def test_candidates_leave_out_what_is_empty_and_of_near_duplicates_the_lower_score() -> None:
    # 19 squared is 0.9025 of 20 squared, 18 squared 0.8975 of 19 squared.
    assert shown(nested(20, 19, 0, scores=(0.5, 0.6, 0.9))) == [(361, 0.6)]
    assert shown(nested(19, 18, scores=(0.5, 0.6))) == [(324, 0.6), (361, 0.5)]
    assert nested(0, 0, scores=(0.5, 0.6)).candidates == ()


@pytest.mark.parametrize("scores", [(0.5, 0.5), (np.nan, 0.5), (0.5, np.nan)])
def test_the_mask_itself_is_a_candidate_whatever_the_scores(scores: tuple[float, float]) -> None:
    made = nested(20, 19, scores=scores)
    assert [one.mask.sum() for one in made.candidates] == [made.mask.sum()]


def test_the_first_answers_other_masks_stay_candidates_of_what_was_refined() -> None:
    first = nested(4, 8, 16, scores=(0.5, 0.6, 0.4))
    refined = nested(9, scores=(0.7,), first=first).with_refinement(report())
    assert shown(refined) == [(16, 0.5), (64, 0.6), (81, 0.7), (256, 0.4)]
    assert [one.refinement is not None for one in refined.candidates] == [False, False, True, False]
    twice = nested(9, scores=(0.8,), first=refined)
    assert shown(twice) == [(16, 0.5), (64, 0.6), (81, 0.8), (256, 0.4)]
