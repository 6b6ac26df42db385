"""Predictor, segment everything, segment_batch and overlays on a small model with random weights."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fakes import FloodModel, with_positive_scores
from refinesam.automatic import AutomaticMaskGenerator, _suppress
from refinesam.batch import Item, segment_batch
from refinesam.embeddings import EmbeddingStore
from refinesam.errors import ConfigError, PromptError
from refinesam.images import write_png
from refinesam.loading import DtypeName, load
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.overlay import draw_comparison, draw_everything, draw_mask, draw_prompt
from refinesam.predictor import Predictor
from refinesam.session import Session
from refinesam.types import Prompt


def random_predictor(name: str = "hybrid_ti", size: int = 64, dtype: torch.dtype = torch.float32) -> Predictor:
    torch.manual_seed(0)
    model = build_model(replace(config_named(name), input_size=size))
    with_positive_scores(model)
    return Predictor(model, name, torch.device("cpu"), dtype)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(random_predictor())


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    noise = np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 4))


def test_shapes_and_types(session: Session, photo: np.ndarray) -> None:
    prediction = session.encode(photo).predict(Prompt(points=[[10, 20]], box=[5, 5, 40, 45]))
    assert prediction.masks.shape == (3, 50, 70)
    assert prediction.masks.dtype == bool
    assert prediction.iou_predictions.dtype == np.float32
    assert prediction.low_res_logits.shape == (3, 16, 16)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (257, 63)])
def test_any_image_size(session: Session, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    prediction = session.encode(image).predict(Prompt(points=[[0.5, 0.5]]))
    assert prediction.masks.shape == (3, *shape)


def test_every_kind_of_prompt_changes_the_answer(session: Session, photo: np.ndarray) -> None:
    encoded = session.encode(photo)
    mask = np.zeros((50, 70), bool)
    mask[10:30, 10:30] = True
    base = encoded.predict(Prompt(points=[[10, 20]]))
    others = [
        Prompt(points=[[60, 40]]),
        Prompt(points=[[10, 20], [60, 40]], labels=[1, 0]),
        Prompt(points=[[10, 20], [60, 40]]),
        Prompt(points=[[10, 20]], box=[0, 0, 30, 30]),
        Prompt(points=[[10, 20]], mask=mask),
        Prompt(points=[[10, 20]], mask_logits=base.logits),
    ]
    answers = [base, *map(encoded.predict, others)]
    for i, first in enumerate(answers):
        for second in answers[i + 1 :]:
            assert not np.allclose(first.low_res_logits, second.low_res_logits, atol=1e-5)


def test_a_box_beyond_the_border_is_cut_there(session: Session, photo: np.ndarray) -> None:
    encoded = session.encode(photo)
    inside, beyond = Prompt(box=[0, 0, 70, 50]), Prompt(box=[-30, -10, 170, 90])
    assert (encoded.predict(inside).low_res_logits == encoded.predict(beyond).low_res_logits).all()


def test_logits_of_another_size_are_refused(session: Session, photo: np.ndarray) -> None:
    with pytest.raises(PromptError, match=r"needs \(16, 16\)"):
        session.encode(photo).predict(Prompt(points=[[1, 1]], mask_logits=np.zeros((64, 64))))


def test_threads_get_the_serial_answers(session: Session, photo: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    images = [np.roll(photo, 7 * i, axis=1) for i in range(4)]
    jobs = [(int(rng.integers(4)), Prompt(points=rng.uniform(0, 50, (2, 2)), labels=[1, 0])) for _ in range(60)]
    serial = [session.encode(images[i]).predict(prompt).masks for i, prompt in jobs]
    small = Session(session.model, cache_bytes=2 * session.encode(photo).features.nbytes)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: small.encode(images[job[0]]).predict(job[1]).masks, jobs))
    assert all((a == b).all() for a, b in zip(serial, found, strict=True))
    assert small.cache.nbytes <= small.cache.capacity


@pytest.mark.parametrize(
    ("name", "blocks"), [("hybrid_ti", 3), ("efficientsam_ti", 3), ("mobile_sam", 12), ("sam_vit_b", 3)]
)
def test_encode_counts_the_blocks_of_every_family(name: str, blocks: int, photo: np.ndarray) -> None:
    torch.manual_seed(0)
    config = replace(config_named(name), width=48, depth=3, heads=3, input_size=64, global_blocks=(1,))
    session = Session(Predictor(build_model(config), name, torch.device("cpu"), torch.float32))
    calls: list[tuple[int, int]] = []
    told = session.encode(photo, on_progress=lambda *step: calls.append(step))
    assert calls == [(done, blocks) for done in range(1, blocks + 1)]
    assert torch.equal(session.model.encode(photo).embedding, told.features.embedding)
    assert len(calls) == blocks, "a later encode does not call it"


def test_an_encode_is_cancelled_between_blocks(photo: np.ndarray) -> None:
    session = Session(random_predictor())
    calls: list[int] = []

    def cancel(done: int, total: int) -> None:
        calls.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.encode(photo, on_progress=cancel)
    assert calls == [1, 2]
    assert len(session.cache) == 0
    again = session.encode(photo)
    assert torch.equal(again.features.embedding, random_predictor().encode(photo).embedding)
    assert calls == [1, 2]


def test_threads_hear_of_their_own_encode_alone(photo: np.ndarray) -> None:
    session = Session(random_predictor())
    barrier = threading.Barrier(4)

    def encode(number: int) -> set[int]:
        heard = set()

        def listen(done: int, total: int) -> None:
            if done == 1:
                barrier.wait(30)  # All four are at work.
            heard.add(threading.get_ident())

        session.encode(np.roll(photo, number, axis=0), on_progress=listen)
        assert heard == {threading.get_ident()}
        return heard

    with ThreadPoolExecutor(4) as pool:
        assert len(set.union(*pool.map(encode, range(4)))) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_embedding_from_disk_answers_to_the_bit_as_a_fresh_one(
    dtype: DtypeName, photo: np.ndarray, tmp_path: Path
) -> None:
    fresh = load(dtype=dtype).encode(photo)
    written = load(dtype=dtype, cache_dir=tmp_path).encode(photo)

    def never(done: int, total: int) -> None:
        raise AssertionError("it was encoded again")

    found = load(dtype=dtype, cache_dir=str(tmp_path)).encode(photo, on_progress=never)
    prompts = [Prompt(points=[[10, 20], [60, 40]], labels=[1, 0]), Prompt(box=[5, 5, 40, 45])]
    for encoded in (written, found):
        maps = (encoded.features.embedding, *encoded.features.high_res)
        for one, other in zip(maps, (fresh.features.embedding, *fresh.features.high_res), strict=True):
            assert (one.dtype, one.stride()) == (other.dtype, other.stride())
            assert torch.equal(one, other)
        for prompt in prompts:
            expected, answer = fresh.predict(prompt), encoded.predict(prompt)
            assert (answer.low_res_logits == expected.low_res_logits).all()
            assert (answer.iou_predictions == expected.iou_predictions).all()
    assert found.features.nbytes == fresh.features.nbytes


def test_a_cut_embedding_is_encoded_and_written_again(photo: np.ndarray, tmp_path: Path) -> None:
    def session() -> Session:
        return Session(random_predictor(), store=EmbeddingStore(tmp_path, 10**8))

    fresh = session().encode(photo)
    (path,) = tmp_path.iterdir()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1000])
    calls: list[int] = []
    again = session().encode(photo, on_progress=lambda done, total: calls.append(done))
    assert len(calls) == 8
    assert torch.equal(again.features.embedding, fresh.features.embedding)
    assert path.stat().st_size == size
    session().encode(photo, on_progress=lambda done, total: calls.append(done))
    assert len(calls) == 8, "this time it was found"


def test_fingerprints_tell_apart_what_encodes_differently() -> None:
    base = random_predictor()
    others = [random_predictor(size=80), random_predictor(dtype=torch.bfloat16), random_predictor("efficientsam_ti")]
    changed = random_predictor()
    changed.model.image_encoder.neck[0].weight.data[0, 0] += 1
    prints = [base.fingerprint, changed.fingerprint, *(other.fingerprint for other in others)]
    assert len(set(prints)) == len(prints)
    assert random_predictor().fingerprint == base.fingerprint
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in prints)


def test_the_disk_cache_keeps_to_its_bytes(photo: np.ndarray, tmp_path: Path) -> None:
    one = load().encode(photo).features.nbytes
    capacity = 3 * one // 2
    session = load(cache_dir=tmp_path, disk_cache_bytes=capacity)
    for shift in range(3):
        session.encode(np.roll(photo, shift, axis=1))
        assert one <= sum(path.stat().st_size for path in tmp_path.iterdir()) <= capacity


def test_bfloat16_runs_and_stays_close(photo: np.ndarray) -> None:
    exact = Session(random_predictor()).encode(photo).predict(Prompt(points=[[10, 20]]))
    rounded = Session(random_predictor(dtype=torch.bfloat16)).encode(photo).predict(Prompt(points=[[10, 20]]))
    assert rounded.low_res_logits.dtype == np.float32
    assert np.abs(exact.low_res_logits - rounded.low_res_logits).mean() < 0.1 * np.abs(exact.low_res_logits).mean()


def test_negative_click_on_the_released_architecture_is_subtracted(photo: np.ndarray) -> None:
    encoded = Session(random_predictor("efficientsam_ti", 128)).encode(photo)
    prediction = encoded.predict(Prompt(points=[[10, 20], [60, 40]], labels=[1, 0]))
    positive = encoded.predict(Prompt(points=[[10, 20]]))
    assert prediction.negatives == "subtracted"
    assert (prediction.low_res_logits <= positive.low_res_logits).all()
    with pytest.raises(PromptError, match="takes no mask prompt"):
        encoded.predict(Prompt(points=[[10, 20]], mask=np.ones((50, 70), bool)))


def test_everything_is_sorted_thinned_and_in_the_images_frame(session: Session, photo: np.ndarray) -> None:
    settings = {"points_per_side": 4, "iou_threshold": 0.0, "stability_threshold": 0.0, "overlap_threshold": 0.5}
    settings |= {"skip_covered": False}
    calls = []
    generator = AutomaticMaskGenerator(session, **settings, prompts_per_batch=3)
    predictions = generator.generate(photo, on_progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (16, 16)
    assert len(calls) == 6
    scores = [p.score for p in predictions]
    assert scores == sorted(scores, reverse=True)
    for prediction in predictions:
        assert prediction.masks.shape == (1, 50, 70)
        assert prediction.mask.sum() >= 16
        again = session.encode(photo).predict(prediction.prompt)
        assert any(np.allclose(prediction.logits, other, atol=1e-4) for other in again.low_res_logits)
    calls.clear()
    progress = {"on_progress": lambda done, total: calls.append((done, total))}
    again = session.segment_everything(photo, **progress, **settings, prompts_per_batch=16)
    assert calls == [(16, 16)]
    assert len(again) == len(predictions)


def test_everything_can_be_cancelled(session: Session, photo: np.ndarray) -> None:
    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AutomaticMaskGenerator(session).generate(photo, on_progress=cancel)


def test_nothing_sure_enough_gives_an_empty_list(session: Session, photo: np.ndarray) -> None:
    assert session.segment_everything(photo, iou_threshold=1.0, points_per_side=2) == []


@pytest.mark.parametrize("setting", ["iou_threshold", "stability_threshold", "overlap_threshold"])
def test_thresholds_out_of_range(session: Session, setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        AutomaticMaskGenerator(session, **{setting: 1.5})


def test_everything_needs_a_loaded_model() -> None:
    with pytest.raises(ConfigError, match=r"refinesam\.load"):
        AutomaticMaskGenerator(Session(FloodModel()))


def test_suppression_equals_a_naive_one() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).random((30, 12, 12)) > 0.6)
    masks[10:20] = masks[:10]
    masks[15, 0] = True
    kept: list[int] = []
    for i, mask in enumerate(masks):
        ious = [float((mask & masks[k]).sum() / (mask | masks[k]).sum()) for k in kept]
        if all(iou <= 0.4 for iou in ious):
            kept.append(i)
    assert _suppress(masks, 0.4).tolist() == kept
    assert len(kept) < 30


def test_batch_isolates_failures_and_encodes_once(tmp_path: Path) -> None:
    model = FloodModel()
    image = np.zeros((20, 30, 3), np.uint8)
    image[5:15, 5:25, 0] = 200
    write_png(tmp_path / "good.png", image)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    good = Prompt(points=[[10, 10]])
    items = [
        Item(tmp_path / "good.png", [good, Prompt(points=[[99, 99]]), good], "a"),
        Item(tmp_path / "bad.png", [good], "b"),
        Item(tmp_path / "absent.png", [good], "c"),
        Item(np.zeros((4, 5, 9)), [good], "d"),
        Item(image[..., 0], [good], "e"),
        Item(image, [], "f"),
    ]
    records = list(segment_batch(Session(model), items, refine=True))
    assert [record.key for record in records] == list("abcdef")
    assert [record.error is None for record in records] == [True, False, False, False, True, True]
    first = records[0]
    assert first.image_hw == (20, 30)
    assert [answer.error is None for answer in first.answers] == [True, False, True]
    assert "outside the image" in str(first.answers[1].error)
    assert (first.answers[0].prediction.mask == (image[..., 0] == 200)).all()
    assert first.answers[0].refined.refinement is not None
    assert first.answers[0].result is first.answers[0].refined
    assert records[5].answers == ()
    # "f" is the picture of "a", found by content; "e" is gray, another picture.
    assert model.encoded == 2


def test_batch_without_prompts_segments_everything(session: Session, photo: np.ndarray) -> None:
    settings = {"points_per_side": 3, "iou_threshold": 0.0, "stability_threshold": 0.0}
    record = next(segment_batch(session, [Item(photo, None, "x")], everything=settings))
    expected = session.segment_everything(photo, **settings)
    assert len(record.answers) == len(expected) > 0
    assert (record.answers[0].result.mask == expected[0].mask).all()


def test_batch_is_lazy(session: Session, photo: np.ndarray) -> None:
    def endless() -> object:
        while True:
            yield Item(photo, [Prompt(points=[[1, 1]])])

    records = segment_batch(session, endless())
    assert next(records).error is None
    assert next(records).error is None


def test_overlays_leave_the_image_alone(session: Session, photo: np.ndarray) -> None:
    encoded = session.encode(photo)
    prompt = Prompt(points=[[10, 20], [60, 40]], labels=[1, 0], box=[3, 3, 60, 45])
    first = encoded.predict(prompt)
    before = photo.copy()
    comparison = draw_comparison(photo, [(first, encoded.refine(first))])
    assert comparison.shape[0] >= 480
    assert draw_everything(photo, [first]).shape == photo.shape
    assert not (draw_prompt(photo, prompt) == photo).all()
    assert (photo == before).all()


def test_a_drawn_mask_changes_its_own_pixels_only(photo: np.ndarray) -> None:
    mask = np.zeros((50, 70), bool)
    mask[10:30, 20:40] = True
    changed = (draw_mask(photo, mask) != photo).any(axis=2)
    assert changed[12:28, 22:38].mean() > 0.95
    near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) > 0
    assert not changed[~near].any()


# ---------------------------------------------------------------- input size


def test_images_are_fitted_into_the_size_that_load_is_given() -> None:
    image = np.full((50, 70, 3), 128, np.uint8)
    own, smaller = load(), load(input_size=128)
    assert own.capabilities.input_size == load(input_size=None).capabilities.input_size
    assert smaller.capabilities.input_size == 128
    assert smaller.encode(image).predict(Prompt(points=[[35, 25]])).low_res_logits.shape[-2:] == (32, 32)
    assert smaller.model.fingerprint != own.model.fingerprint


@pytest.mark.parametrize("size", [0, -16, 100, 256.0, "256", True])
def test_an_input_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match=r"input_size is .*multiple of 16 is needed"):
        load(input_size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hybrid_ti", "efficientsam_ti", "sam_vit_b"])
@pytest.mark.parametrize("multimask_output", [True, False])
def test_boxes_decoded_together_answer_as_one_by_one(name: str, multimask_output: bool, photo: np.ndarray) -> None:
    encoded = Session(random_predictor(name)).encode(photo)
    corners = np.random.default_rng(0).uniform([0, 0], [70, 50], (11, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1], axis=1)  # more than are decoded together
    boxes[3] += 10  # over the border
    for box, together in zip(boxes, encoded.predict_boxes(boxes, multimask_output), strict=True):
        alone = encoded.predict(Prompt(box=box), multimask_output)
        assert together.low_res_logits == pytest.approx(alone.low_res_logits, abs=1e-4)
        assert together.iou_predictions == pytest.approx(alone.iou_predictions, abs=1e-5)
        sure = np.abs(alone.low_res_logits) > 1e-3
        assert ((together.low_res_logits > 0) == (alone.low_res_logits > 0))[sure].all()
        assert together.masks.shape == alone.masks.shape and together.prompt.box == pytest.approx(alone.prompt.box)
        assert together.image_key == encoded.key
