"""One example, all its likes: what is found with the built-in weights, its order, and what examples are refused."""

from __future__ import annotations

import numpy as np
import pytest

import refinesam
from refinesam import PromptError, Session, SimilarMaskGenerator, mask_iou
from refinesam.found import Found
from refinesam.similar import _thinned


@pytest.fixture(scope="module")
def session() -> Session:
    return refinesam.load("builtin", device="cpu", threads=1)


def discs(
    side: int, radius: int, centres: list[tuple[int, int]], colour: tuple[int, int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    rows, columns = np.indices((side, side))
    masks = [(rows - y) ** 2 + (columns - x) ** 2 <= radius**2 for x, y in centres]
    noise = np.random.default_rng(0).normal(0, 4, (side, side, 3))
    image = np.full((side, side, 3), (40, 45, 50)) + noise
    for mask in masks:
        image[mask] = np.array(colour) + noise[mask]
    return image.clip(0, 255).astype(np.uint8), masks


CENTRES = [(40, 40), (110, 50), (190, 60), (60, 140), (140, 150), (210, 200)]


def sure(predictions: list[refinesam.Prediction], threshold: float = 0.5) -> list[refinesam.Prediction]:
    return [one for one in predictions if one.similarity is not None and one.similarity >= threshold]


@pytest.mark.parametrize("as_box", [False, True])
def test_one_example_finds_all_objects_of_its_kind(session: Session, as_box: bool) -> None:
    image, masks = discs(256, 16, CENTRES, (200, 160, 150))
    example = [24, 24, 57, 57] if as_box else masks[0]
    steps: list[tuple[int, int]] = []
    found = session.segment_similar(image, [example], on_progress=lambda *at: steps.append(at))
    assert steps[-1][0] == steps[-1][1] == len(steps) - 1
    similarities = [one.similarity for one in found]
    assert similarities == sorted(similarities, key=lambda value: -(value or 0)) and all(similarities)
    kept = sure(found)
    assert len(kept) == len(masks)
    for mask in masks:
        assert max(mask_iou(one.mask, mask) for one in kept) > 0.7


def test_objects_far_smaller_than_the_image_are_found_in_crops(session: Session) -> None:
    image, masks = discs(700, 8, [(60 + 190 * i, 60 + 190 * k) for i in range(4) for k in range(4)], (210, 200, 120))
    generator = SimilarMaskGenerator(session, image, [masks[5]])
    kept = sure(generator.generate(image))
    assert sum(max(mask_iou(one.mask, mask) for one in kept) > 0.5 for mask in masks) >= 15
    assert len(kept) <= 18


def test_examples_of_one_image_find_objects_in_another(session: Session) -> None:
    image, masks = discs(256, 16, CENTRES[:2], (200, 160, 150))
    other, wanted = discs(256, 16, CENTRES[2:], (200, 160, 150))
    kept = sure(session.segment_similar(other, masks, examples_image=image))
    assert len(kept) == len(wanted)
    assert all(max(mask_iou(one.mask, mask) for one in kept) > 0.7 for mask in wanted)


def test_negatives_make_what_is_like_them_less_similar(session: Session) -> None:
    image, masks = discs(256, 16, CENTRES[:3], (200, 160, 150))
    green, others = discs(256, 16, CENTRES[3:], (60, 190, 70))
    for mask in others:
        image[mask] = green[mask]

    def highest(negatives: list[np.ndarray], of: list[np.ndarray]) -> float:
        found = session.segment_similar(image, [masks[0]], negatives)
        return max((one.similarity or 0) for one in found for mask in of if mask_iou(one.mask, mask) > 0.5)

    without = highest([], others[1:])
    assert highest([], masks[1:]) > without
    gap = highest([], masks[1:]) - without
    found = session.segment_similar(image, [masks[0]], [others[0]])
    alike = [one.similarity or 0 for one in found for mask in others[1:] if mask_iou(one.mask, mask) > 0.5]
    assert max(alike, default=0) < without
    assert highest([others[0]], masks[1:]) - max(alike, default=0) > gap


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "Got 0 examples: give 1 to 5"),
        ([np.ones((256, 256), bool)] * 6, "Got 6 examples: give 1 to 5"),
        ([np.zeros((256, 256), bool)], "Number 1 of the examples shows nothing"),
        ([np.ones((9, 9), bool)], r"shape \(9, 9\)"),
        ([[300, 300, 400, 400]], "outside the image"),
        ([[10, 10, 10, 40]], "has no area"),
    ],
)
def test_examples_that_are_none_are_refused(session: Session, examples: list[object], message: str) -> None:
    image, _ = discs(256, 16, CENTRES, (200, 160, 150))
    with pytest.raises(PromptError, match=message):
        session.segment_similar(image, examples)  # type: ignore[arg-type]


def square(x0: int, y0: int, side: int, similarity: float) -> Found:
    return Found(
        x0, y0, np.ones((side, side), bool), 1, 0.9, np.zeros(2, np.float32), (0, 0, 99, 99), similarity=similarity
    )


def test_a_threshold_after_the_search_leaves_what_one_before_it_would() -> None:
    found = [square(0, 0, 10, 0.9), square(2, 0, 10, 0.6), square(0, 0, 30, 0.7), square(40, 0, 10, 0.3)]
    kept = _thinned(found)
    assert [one.similarity for one in kept] == [0.9, 0.3]
    for threshold in (0.2, 0.5, 0.8):
        before = _thinned([one for one in found if (one.similarity or 0) >= threshold])
        assert before == [one for one in kept if (one.similarity or 0) >= threshold]
