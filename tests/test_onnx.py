"""The image encoder by ONNX Runtime: torch's features and masks, from a file that is made once."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

import refinesam
from refinesam import mask_iou, predictor
from refinesam.embeddings import EmbeddingStore
from refinesam.errors import ConfigError
from refinesam.models import onnx_backend
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.layers import fold_norms
from refinesam.predictor import Predictor
from refinesam.registry import cache_dir
from refinesam.types import Prompt

BOXES = np.array([[20, 20, 100, 80], [5, 10, 60, 70]], np.float32)
KEY = "0" * 32 + "-" + "1" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and nothing said of the backend."""
    monkeypatch.setenv("REFINESAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REFINESAM_BACKEND")
    return tmp_path / "cache"


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def kept() -> list[Path]:
    return sorted((cache_dir() / "onnx").glob("*"))


@pytest.mark.parametrize(
    ("variant", "side"),
    [("hybrid_ti", 64), ("hybrid_lite0", 80), ("efficientsam_ti", 64), ("mobile_sam", 256)],
)
def test_features_are_those_of_torch(variant: str, side: int, cache: Path) -> None:
    torch.manual_seed(0)
    model = build_model(replace(config_named(variant), input_size=side)).eval().requires_grad_(False)
    fold_norms(model.image_encoder)
    pixels = torch.randn(1, 3, side, side)
    expected = model.encode(pixels)

    found = onnx_backend.OnnxEncoder(model, EmbeddingStore(cache, 2**30), KEY)(pixels)

    assert len(found.high_res) == len(expected.high_res)
    for ours, theirs in zip((found.embedding, *found.high_res), (expected.embedding, *expected.high_res), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_the_built_in_model_answers_the_same(image: np.ndarray) -> None:
    prompt = Prompt(points=[(60, 45)], box=(20, 20, 100, 80))
    by_torch = refinesam.load(backend="torch").encode(image).predict(prompt)
    session = refinesam.load(backend="onnx")
    by_onnx = session.encode(image).predict(prompt)
    assert session.model.backend == "onnx"
    np.testing.assert_allclose(by_onnx.low_res_logits, by_torch.low_res_logits, rtol=0, atol=1e-3)
    np.testing.assert_allclose(by_onnx.iou_predictions, by_torch.iou_predictions, rtol=0, atol=1e-4)
    assert (by_onnx.masks != by_torch.masks).mean() < 1e-3


PROMPTS = {
    "click": Prompt(points=[(60, 45)]),
    "clicks": Prompt(points=[(60, 45), (20, 30), (100, 80)], labels=[1, 1, 0]),
    "box and click": Prompt(points=[(60, 45)], box=(20, 20, 100, 80)),
    "mask": Prompt(mask=np.eye(90, 120, dtype=bool)),
    "mask and click": Prompt(points=[(60, 45)], mask=np.eye(90, 120, dtype=bool)),
}


@pytest.mark.parametrize("variant", ["hybrid_lite0", "efficientsam_ti", "mobile_sam"])
def test_prompts_are_answered_as_by_torch(variant: str, image: np.ndarray) -> None:
    torch.manual_seed(0)
    model = build_model(replace(config_named(variant), input_size=256))
    by_torch, by_onnx = (
        Predictor(model, variant, torch.device("cpu"), torch.float32, backend=backend) for backend in ("torch", "onnx")
    )
    features, image_hw = by_torch.encode(image), image.shape[:2]
    asked = [
        prompt
        for prompt in PROMPTS.values()
        if (prompt.mask is None or model.config.capabilities.mask_prompt)
        and (prompt.labels.all() or model.config.capabilities.negative_points)
    ]
    assert len(asked) >= 2
    clicks = np.array([[10, 20], [60, 45], [100, 80]], np.float32)
    answers = [
        [model.decode(features, image_hw, prompt, several) for prompt in asked for several in (True, False)]
        + [model.decode_points(features, image_hw, clicks), model.decode_boxes(features, image_hw, BOXES)]
        for model in (by_torch, by_onnx)
    ]
    for ours, theirs in zip(*answers, strict=True):
        for found, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_int8_finds_the_same_things() -> None:
    picture, prompt = data.coins(), Prompt(points=[(48, 50)])
    exact = refinesam.load(backend="onnx").encode(picture)
    session = refinesam.load(backend="int8")
    quantised = session.encode(picture)
    assert session.model.backend == "int8"
    off = (quantised.features.embedding - exact.features.embedding).norm() / exact.features.embedding.norm()
    assert 1e-4 < off < 0.1
    assert mask_iou(quantised.predict(prompt).mask, exact.predict(prompt).mask) > 0.95
    # Each encoder is kept by itself, the decoder once.
    assert len(kept()) == 3


def test_it_is_exported_once(weights: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    first = refinesam.load(weights, backend="onnx").encode(image).features
    files = kept()
    assert len(files) == 2
    for name in ("export_encoder", "export_decoder"):
        monkeypatch.setattr(onnx_backend, name, lambda *_: pytest.fail("exported again"))
    again = refinesam.load(weights, backend="onnx").encode(image).features
    assert kept() == files
    torch.testing.assert_close(again.embedding, first.embedding, rtol=0, atol=0)


def test_another_size_or_other_weights_are_another_file(weights: Path) -> None:
    refinesam.load(weights, backend="onnx")
    refinesam.load(weights, backend="onnx", input_size=128)
    refinesam.load(backend="onnx")
    assert len(kept()) == 6


def test_old_files_go_where_there_are_too_many(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refinesam.load(weights, backend="onnx")
    first = kept()
    own = first[0].parent / "mine.onnx"
    own.write_bytes(b"mine")
    monkeypatch.setattr(predictor, "ONNX_CACHE_BYTES", sum(file.stat().st_size for file in first) + 10_000)
    refinesam.load(weights, backend="onnx", input_size=128)
    assert len(kept()) == 3 and own in kept() and not set(first) & set(kept())


def test_a_damaged_file_is_made_again(weights: Path, image: np.ndarray) -> None:
    expected = refinesam.load(weights, backend="onnx").encode(image).features
    files = kept()
    sizes = [file.stat().st_size for file in files]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(file.read_bytes()[: size // 2])
    found = refinesam.load(weights, backend="onnx").encode(image).features
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=0, atol=0)
    assert kept() == files and [file.stat().st_size for file in files] == sizes


def test_it_works_where_nothing_can_be_kept(
    weights: Path, image: np.ndarray, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    assert refinesam.load(weights, backend="onnx").encode(image).image_hw == (90, 120)
    assert "could not be kept" in caplog.text


def test_auto_takes_it_for_light_models(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refinesam.load(weights).model.backend == "onnx"
    assert refinesam.load(weights, dtype="bfloat16").model.backend == "torch"
    monkeypatch.setenv("REFINESAM_BACKEND", "torch")
    assert refinesam.load(weights).model.backend == "torch"
    assert refinesam.load(weights, backend="onnx").model.backend == "onnx"


def test_what_cannot_be(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="backend is 'tensorrt'; use one of auto, torch, onnx, int8"):
        refinesam.load(weights, backend="tensorrt")
    for backend in ("onnx", "int8"):
        with pytest.raises(ConfigError, match=f"{backend}.*float32"):
            refinesam.load(weights, backend=backend, dtype="bfloat16")
    monkeypatch.setattr(onnx_backend, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'refinesam\[onnx\]'"):
        refinesam.load(weights, backend="onnx")


def test_the_backend_travels(weights: Path, image: np.ndarray) -> None:
    session = refinesam.load(weights, backend="onnx")
    again = pickle.loads(pickle.dumps(session))
    assert isinstance(again.model, Predictor) and again.model.backend == "onnx"
    # A store of embeddings must not mix what differs in the last digits.
    assert again.model.fingerprint == session.model.fingerprint
    assert again.model.fingerprint != refinesam.load(weights, backend="torch").model.fingerprint


def test_progress_is_told_at_the_end(weights: Path, image: np.ndarray) -> None:
    told: list[tuple[int, int]] = []
    refinesam.load(weights, backend="onnx").encode(image, lambda done, total: told.append((done, total)))
    assert told and told[-1][0] == told[-1][1]
