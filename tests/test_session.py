"""Session and EncodedImage over a model made of arithmetic."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import FloodModel
from refinesam.amr import AMRConfig
from refinesam.embeddings import EmbeddingStore
from refinesam.errors import ConfigError, ImageError, PromptError
from refinesam.images import as_rgb, write_png
from refinesam.session import Session
from refinesam.types import Prompt


def patches(seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    """Four patches of distinct red values."""
    values = np.random.default_rng(seed).permutation(256)[:4].astype(np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2, 0], image[: height // 2, width // 2 :, 0] = values[:2]
    image[height // 2 :, : width // 2, 0], image[height // 2 :, width // 2 :, 0] = values[2:]
    return image


def test_predict_answers_in_the_images_own_frame() -> None:
    image = patches()
    prediction = Session(FloodModel()).encode(image).predict(Prompt(points=[[3, 4]]))
    assert prediction.masks.shape == (3, 24, 32)
    assert prediction.masks.dtype == bool
    assert (prediction.mask == (image[..., 0] == image[4, 3, 0])).all()
    assert prediction.score == pytest.approx(0.9)
    assert prediction.negatives == "none"


def test_single_mask_on_request() -> None:
    prediction = Session(FloodModel()).encode(patches()).predict(Prompt(points=[[3, 4]]), multimask_output=False)
    assert prediction.masks.shape == (1, 24, 32)
    assert prediction.iou_predictions.shape == (1,)


def test_cache_is_keyed_by_content_not_by_object() -> None:
    model = FloodModel()
    session = Session(model)
    image = patches()
    first = session.encode(image)
    assert session.encode(image.copy()).key == first.key
    assert session.encode(np.asfortranarray(image)).key == first.key
    assert model.encoded == 1
    image[0, 0, 0] ^= 1
    assert session.encode(image).key != first.key
    assert model.encoded == 2


def test_same_bytes_of_another_shape_are_another_image() -> None:
    model = FloodModel()
    session = Session(model)
    flat = np.zeros((4, 6, 3), np.uint8)
    assert session.encode(flat).key != session.encode(flat.reshape(6, 4, 3)).key
    assert model.encoded == 2


def test_a_handle_outlives_its_cache_entry() -> None:
    session = Session(FloodModel(), cache_bytes=24 * 32)
    image = patches(1)
    handle = session.encode(image)
    session.encode(patches(2))
    assert len(session.cache) == 1
    assert (handle.predict(Prompt(points=[[0, 0]])).mask == (image[..., 0] == image[0, 0, 0])).all()


def test_many_threads_many_images_equal_serial_answers() -> None:
    session = Session(FloodModel(), cache_bytes=3 * 24 * 32)
    images = [patches(seed) for seed in range(6)]
    rng = np.random.default_rng(0)
    jobs = [(int(rng.integers(6)), (int(rng.integers(32)), int(rng.integers(24)))) for _ in range(400)]

    def run(job: tuple[int, tuple[int, int]]) -> np.ndarray:
        return session.encode(images[job[0]]).predict(Prompt(points=[job[1]])).mask

    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(run, jobs))
    for (index, (x, y)), mask in zip(jobs, masks, strict=True):
        red = images[index][..., 0]
        assert (mask == (red == red[y, x])).all()
    assert session.cache.nbytes <= 3 * 24 * 32


def test_encode_tells_its_progress_once() -> None:
    session = Session(FloodModel())
    calls: list[tuple[int, int]] = []
    session.encode(patches(), on_progress=lambda *step: calls.append(step))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    session.encode(patches(), on_progress=lambda *step: calls.append(step))
    assert len(calls) == 3, "it was found in the cache"


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("last", [1, 3])
def test_a_cancelled_encode_leaves_nothing_behind(last: int, tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        if done == last:
            raise Cancelled

    model = FloodModel()
    session = Session(model, store=EmbeddingStore(tmp_path, 10**6))
    with pytest.raises(Cancelled):
        session.encode(patches(), on_progress=cancel)
    assert len(session.cache) == 0
    assert list(tmp_path.iterdir()) == []
    session.encode(patches())
    assert model.encoded == 2


def test_a_later_session_finds_the_embedding_on_disk(tmp_path: Path) -> None:
    image = patches()
    first = Session(FloodModel(), store=EmbeddingStore(tmp_path, 10**6)).encode(image)
    model = FloodModel()
    session = Session(model, store=EmbeddingStore(tmp_path, 10**6))
    calls: list[tuple[int, int]] = []
    found = session.encode(image, on_progress=lambda *step: calls.append(step))
    assert (model.encoded, calls) == (0, [])
    assert (found.features.red == first.features.red).all()
    assert len(session.cache) == 1
    session.encode(patches(1))
    assert model.encoded == 1


def test_another_model_does_not_take_an_embedding_from_disk(tmp_path: Path) -> None:
    Session(FloodModel(), store=EmbeddingStore(tmp_path, 10**6)).encode(patches())
    other = FloodModel()
    other.fingerprint = "0" * 32
    Session(other, store=EmbeddingStore(tmp_path, 10**6)).encode(patches())
    assert other.encoded == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_store_that_cannot_be_used_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    model = FloodModel()
    session = Session(model, store=EmbeddingStore(tmp_path / "file", 10**6))
    assert session.encode(patches()).predict(Prompt(points=[[3, 4]])).mask.any()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def boxed(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    rows, columns = np.indices((24, 32))
    return (rows >= y0) & (rows < y1) & (columns >= x0) & (columns < x1)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.indices((24, 32))
    return np.hypot(rows - int(y), columns - int(x)) <= radius


@pytest.mark.parametrize("trained", [False, True])
def test_a_negative_click_off_the_mask_changes_nothing(trained: bool) -> None:
    image, prompt = patches(), Prompt(points=[[3, 4], [20, 4]], labels=[1, 0])
    prediction = Session(FloodModel(negative_points=trained)).encode(image).predict(prompt)
    assert prediction.negatives == ("trained" if trained else "subtracted")
    assert (prediction.mask == (image[..., 0] == image[4, 3, 0])).all()


# To the nearest pixel off the box it is 2 from the one, 8 from the other: half of that goes.
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("click", "reach"), [((5.5, 12.5), 1), ((15.5, 11.5), 4)])
def test_an_ignored_click_takes_away_its_spot_and_nothing_else(
    click: tuple[float, float], reach: int, trained: bool
) -> None:
    encoded = Session(FloodModel(negative_points=trained)).encode(patches())
    found = encoded.predict(Prompt(points=[click], labels=[0], box=[4, 4, 28, 20]))
    assert found.negatives == "subtracted"
    assert np.array_equal(found.mask, boxed(4, 4, 28, 20) & ~disc(*click, reach))
    assert not found.masks[:, int(click[1]), int(click[0])].any(), "it is gone from all candidates"


def test_every_negative_click_takes_its_own_spot() -> None:
    encoded = Session(FloodModel()).encode(patches())
    found = encoded.predict(Prompt(points=[[8, 12], [24, 12]], labels=[0, 0], box=[4, 4, 28, 20]))
    assert np.array_equal(found.mask, boxed(4, 4, 28, 20) & ~disc(8, 12, 2.5) & ~disc(24, 12, 2))


class GivingUp(FloodModel):
    """Answers a negative click by giving up all of the box left of column 16."""

    def decode(self, features, image_hw, prompt, multimask_output):
        logits, ious = super().decode(features, image_hw, prompt, multimask_output)
        if len(prompt.negative_points):
            logits[:, :, :16] = -4
        return logits, ious


def test_what_a_trained_model_gives_up_goes_near_the_click_alone() -> None:
    encoded = Session(GivingUp(negative_points=True)).encode(patches())
    found = encoded.predict(Prompt(points=[[13, 12]], labels=[0], box=[4, 4, 28, 20]))
    assert found.negatives == "trained"
    left = boxed(0, 0, 16, 24)
    assert np.array_equal(found.mask, boxed(4, 4, 28, 20) & ~disc(13, 12, 4) & ~(left & disc(13, 12, 12)))
    rim = encoded.predict(Prompt(points=[[4, 12]], labels=[0], box=[4, 4, 28, 20]))
    assert np.array_equal(rim.mask, boxed(4, 4, 28, 20) & ~disc(4, 12, 1.5))


def test_clicks_that_correct_an_earlier_mask_get_the_models_own_answer() -> None:
    encoded = Session(GivingUp(negative_points=True, mask_prompt=True)).encode(patches())
    prompt = Prompt(points=[[20, 4], [30, 10]], labels=[1, 0], mask_logits=np.ones((24, 32)))
    found = encoded.predict(prompt)
    assert found.negatives == "subtracted", "the model ignored the click, which is in the part that it keeps"
    assert np.array_equal(found.mask, boxed(16, 0, 32, 12) & ~disc(30, 10, 1))
    away = encoded.predict(Prompt(points=[[3, 4], [13, 8]], labels=[1, 0], mask_logits=np.ones((24, 32))))
    assert away.negatives == "trained" and not away.mask.any(), "all that the model gives up is gone"


def test_a_small_spot_leaves_the_logits_as_they_are() -> None:
    encoded = Session(FloodModel()).encode(patches())
    plain = encoded.predict(Prompt(box=[4, 4, 28, 20]))
    rim = encoded.predict(Prompt(points=[[4, 12]], labels=[0], box=[4, 4, 28, 20]))
    assert np.array_equal(rim.logits, plain.logits)
    inside = encoded.predict(Prompt(points=[[15, 11]], labels=[0], box=[4, 4, 28, 20]))
    assert (inside.logits <= plain.logits).all() and inside.logits[11, 15] < 0


SIX = [[i, i] for i in range(6)]
BAD_PROMPTS = {
    "seven points": (Prompt(points=[*SIX, [7, 7]]), "at most 6"),
    "box and five points": (Prompt(points=SIX[:5], box=[0, 0, 5, 5]), "box counts as two"),
    "negative clicks alone": (Prompt(points=[[1, 1]], labels=[0]), "add a positive click"),
    "mask without mask prompt": (Prompt(mask=np.ones((24, 32), bool)), "takes no mask prompt"),
    "logits without mask prompt": (Prompt(mask_logits=np.ones((24, 32))), "takes no mask prompt"),
    "x too large": (Prompt(points=[[32, 0]]), "outside the image"),
    "y too large": (Prompt(points=[[0, 24]]), "column first"),
    "negative coordinate": (Prompt(points=[[-1, 3]]), "outside the image"),
    "box outside": (Prompt(box=[40, 0, 50, 5]), "wholly outside"),
    "mask of another size": (Prompt(points=[[1, 1]], mask=np.ones((5, 5), bool)), "needs"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_prompts_the_model_cannot_take(name: str) -> None:
    prompt, words = BAD_PROMPTS[name]
    encoded = Session(FloodModel()).encode(patches())
    with pytest.raises(PromptError, match=words):
        encoded.predict(prompt)


def test_six_points_are_allowed_and_negatives_beside_them() -> None:
    encoded = Session(FloodModel()).encode(patches())
    encoded.predict(Prompt(points=SIX))
    encoded.predict(Prompt(points=[*SIX, [30, 20]], labels=[1] * 6 + [0]))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((4, 4, 7), np.uint16),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), complex),
        np.full((4, 4), np.nan),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        [[0, 0, 0]],
        None,
        "no/such/file.png",
    ],
)
def test_encode_refuses_what_is_no_image(image: object) -> None:
    with pytest.raises(ImageError):
        Session(FloodModel()).encode(image)


def test_a_refined_prediction_keeps_the_masks_to_choose_between() -> None:
    encoded = Session(FloodModel(mask_prompt=True)).encode(patches())
    first = encoded.predict(Prompt(points=[[3, 4]]))
    kept = encoded.refine(first)
    assert kept.first is None and len(kept.candidates) == len(first.candidates)
    better = dataclasses.replace(first, iou_predictions=first.iou_predictions / 2)
    refined = encoded.refine(better, AMRConfig.named("paper"))
    assert refined.refinement is not None and refined.refinement.kept == "refined"
    assert refined.first is better
    assert {one.mask.sum() for one in first.candidates} <= {one.mask.sum() for one in refined.candidates}


def test_refine_reports_and_never_lowers_the_score() -> None:
    encoded = Session(FloodModel()).encode(patches())
    prediction = encoded.predict(Prompt(points=[[3, 4]]))
    refined = encoded.refine(prediction)
    assert refined.refinement is not None
    assert refined.refinement.kappa == 1
    assert refined.score >= prediction.score


def test_refine_leaves_room_for_the_models_point_limit() -> None:
    encoded = Session(FloodModel()).encode(patches(height=240, width=320))
    six = encoded.predict(Prompt(points=SIX))
    assert encoded.refine(six, AMRConfig.paper()).refinement.strategy == "none"
    full = Prompt(points=SIX[:4], box=[0, 0, 160, 120])
    for asked, placed in ((full, 0), (Prompt(points=SIX[:3], box=[0, 0, 160, 120]), 1)):
        report = encoded.refine(encoded.predict(asked)).refinement
        assert report is not None
        assert (report.iterations, len(report.points)) == (1, placed), report.reason
    # A negative click is decoded apart and takes no room.
    with_negative = Prompt(points=[*SIX[:3], [300, 200]], labels=[1] * 3 + [0], box=[0, 0, 160, 120])
    report = encoded.refine(encoded.predict(with_negative)).refinement
    assert report is not None
    assert (report.iterations, len(report.points)) == (1, 1), report.reason


def test_refine_refuses_a_prediction_of_another_image() -> None:
    session = Session(FloodModel())
    first, second, wider = (session.encode(image) for image in (patches(0), patches(1), patches(0, width=40)))
    prompt = Prompt(points=[[3, 4]])
    prediction = first.predict(prompt)
    for other in (second, wider):
        with pytest.raises(PromptError, match="another image"):
            other.refine(prediction)
        with pytest.raises(PromptError, match="another image"):
            other.refine(first.refine(prediction, AMRConfig.paper()))
    assert session.encode(patches(0).copy()).refine(prediction).refinement is not None, "the same image, again"
    # What another model predicted says nothing of its image but the size.
    foreign = dataclasses.replace(prediction, image_key="")
    assert second.refine(foreign).refinement is not None
    with pytest.raises(PromptError, match=r"\(24, 32\), this image is \(24, 40\)"):
        wider.refine(foreign)


def test_encode_takes_what_as_rgb_and_read_image_take(tmp_path: Path) -> None:
    session = Session(FloodModel())
    image = patches()
    gray, deep = image[..., 0], image[..., 0].astype(np.uint16) * 200
    write_png(tmp_path / "image.png", image)
    key = session.encode(image).key
    for same in (Image.fromarray(image), tmp_path / "image.png", str(tmp_path / "image.png"), np.dstack([image, gray])):
        assert session.encode(same).key == key
    assert session.encode(gray).key == session.encode(as_rgb(gray)).key
    assert session.encode(deep).key == session.encode(as_rgb(deep)).key
    minmax = session.encode(deep, intensity="minmax").key
    assert minmax == session.encode(as_rgb(deep, intensity="minmax")).key
    assert session.encode(deep, intensity="as_is").key != minmax
    with pytest.raises(ConfigError, match="Unknown intensity policy"):
        session.encode(deep, intensity="bright")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ([[0, 0, 0]], "got list"),
        (None, "got NoneType"),
        (np.zeros((3, 8, 8), np.uint8), "8 channels.*refinesam.as_rgb first"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        ("no/such/file.png", "^no/such/file.png is not there"),
    ],
)
def test_encode_says_what_it_takes(image: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        Session(FloodModel()).encode(image)  # type: ignore[arg-type]


def test_rgb_is_hashed_as_it_is_without_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refinesam.session.as_rgb", None)
    assert Session(FloodModel()).encode(patches()).image_hw == (24, 32)


def test_boxes_in_one_call_also_by_a_model_that_takes_one() -> None:
    encoded = Session(FloodModel()).encode(patches())
    boxes = np.array([[2, 3, 10, 12], [20, 15, 8, 5]])
    found = encoded.predict_boxes(boxes)
    for box, prediction in zip(boxes, found, strict=True):
        assert (prediction.masks == encoded.predict(Prompt(box=box)).masks).all()
    assert encoded.predict_boxes(np.zeros((0, 4))) == encoded.predict_boxes([]) == []


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([1, 2, 3, 4], r"takes boxes \(N, 4\).*got shape \(4,\)"),
        (np.zeros((2, 5)), r"got shape \(2, 5\)"),
        ([[1, 2, 9, 9], [3, 3, 3, 9]], "has no area"),
        ([[1, 2, 9, 9], [50, 60, 70, 80]], "lies wholly outside the image"),
        ([[1, 2, 9, np.nan]], "must be finite"),
    ],
)
def test_boxes_that_are_none(boxes: object, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        Session(FloodModel()).encode(patches()).predict_boxes(boxes)  # type: ignore[arg-type]
