"""Sessions and images in other processes: sent as little, loaded once in each, and refused where they would hang."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refinesam
from fakes import FloodModel
from refinesam import ConfigError, EncodedImage, Prompt, Session, WeightsError

PROMPT = Prompt(points=[[10, 20]])


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)


def answer(work: tuple[Session, np.ndarray]) -> tuple[np.ndarray, int, int]:
    session, image = work
    return session.encode(image).predict(PROMPT).low_res_logits, id(session.model), os.getpid()


def refined(encoded: EncodedImage) -> np.ndarray:
    return encoded.refine(encoded.predict(PROMPT)).mask


def test_a_pool_of_processes_answers_like_this_one(weights: Path, photo: np.ndarray) -> None:
    session = refinesam.load(weights, cache_bytes=12_345)
    encoded = session.encode(photo)
    images = [np.roll(photo, shift, axis=1) for shift in (0, 7, 14)]
    expected = [session.encode(image).predict(PROMPT).low_res_logits for image in images]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(answer, [(session, image) for image in images], chunksize=1)
        (mask,) = pool.map(refined, [encoded])
    for (logits, _, _), wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
    assert len({model for _, model, _ in found}) == 1, "the process loaded it once"
    assert {process for _, _, process in found}.isdisjoint({os.getpid()})
    assert (mask == refined(encoded)).all()


def test_what_travels_is_small(weights: Path, photo: np.ndarray, tmp_path: Path) -> None:
    session = refinesam.load(weights, cache_bytes=12_345_678, cache_dir=tmp_path / "kept", disk_cache_bytes=99)
    encoded = session.encode(photo)
    assert len(pickle.dumps(session)) < 2000 < weights.stat().st_size / 1000
    assert len(pickle.dumps(encoded)) < encoded.features.nbytes + photo.nbytes + 4000
    again: Session = pickle.loads(pickle.dumps(session))
    assert (again.cache.capacity, len(again.cache)) == (12_345_678, 0)
    assert again.store is not None and (again.store.folder, again.store.capacity) == (tmp_path / "kept", 99)
    back: EncodedImage = pickle.loads(pickle.dumps(encoded))
    assert (back.key, back.image_hw) == (encoded.key, encoded.image_hw)
    assert back.pixels is not None and not back.pixels.flags.writeable


def test_weights_that_changed_meanwhile_are_refused(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.read_bytes())
    sent = pickle.dumps(refinesam.load(path))
    os.utime(path, (1, 1))
    with pytest.raises(WeightsError, match="has changed since"):
        pickle.loads(sent)


def test_a_model_that_was_not_loaded_by_name_says_so(weights: Path) -> None:
    from refinesam.predictor import Predictor

    model: Any = refinesam.load(weights).model
    own = Predictor(model.model, "mine", model.device, model.dtype)
    with pytest.raises(ConfigError, match="mine was not loaded by refinesam.load"):
        pickle.dumps(Session(own))


def test_a_session_with_a_model_of_the_users_own_keeps_that_models_ways(photo: np.ndarray) -> None:
    session = Session(FloodModel(), cache_bytes=77)
    with pytest.raises(TypeError, match="lock"):
        pickle.dumps(session)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_a_fork_after_load_is_told(weights: Path, photo: np.ndarray) -> None:
    session = refinesam.load(weights)
    encoded = session.encode(photo)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        told = []
        for call in (lambda: session.encode(np.ascontiguousarray(photo[::-1])), lambda: encoded.predict(PROMPT)):
            try:
                call()
                told.append("answered")
            except BaseException as error:
                told.append(f"{type(error).__name__}: {error}")
        os.write(writing, "\n".join(told).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        told = pipe.read().splitlines()
    assert len(told) == 2
    for line in told:
        assert line.startswith("ConfigError: This process was forked from") and '"spawn"' in line
    assert encoded.predict(PROMPT).masks.shape == (3, 50, 70), "here all goes on"


@pytest.mark.skipif(sys.platform == "win32", reason="tests the multiprocessing context of other systems")
def test_fork_context_of_a_pool_is_told_too(weights: Path, photo: np.ndarray) -> None:
    session = refinesam.load(weights)
    with multiprocessing.get_context("fork").Pool(1, initializer=_keep, initargs=(session,)) as pool:
        (told,) = pool.map(_ask_kept, [photo])
    assert told.startswith("This process was forked")


KEPT: list[Session] = []


def _keep(session: Session) -> None:
    KEPT.append(session)


def _ask_kept(image: np.ndarray) -> str:
    try:
        KEPT[0].encode(image)
    except ConfigError as error:
        return str(error)
    return "answered"
