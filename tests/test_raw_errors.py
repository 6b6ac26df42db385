"""What is given wrongly is told in words of ours, whatever numpy, torch or Pillow would say."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import refinesam
from fakes import FloodModel
from refinesam import AutomaticMaskGenerator, ConfigError, EncodedImage, ImageError, Item, PromptError, Session
from refinesam.types import Prompt

GRAD = torch.ones((4, 4), requires_grad=True)


@pytest.fixture(scope="module")
def session(weights: Path) -> Session:
    return refinesam.load(weights)


@pytest.fixture(scope="module")
def encoded(session: Session) -> EncodedImage:
    return session.encode(np.zeros((20, 30, 3), np.uint8))


@pytest.mark.parametrize(
    "device", ["mps", "meta", "xla", "cuda:77", "abacus", "", None, 7.5, "cpu:x"], ids=lambda device: repr(device)
)
def test_devices_that_compute_nothing_here(device: str, weights: Path) -> None:
    with pytest.raises(ConfigError, match="Use 'auto' or 'cpu'"):
        refinesam.load(weights, device=device)


BAD_ARRAYS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "points in training": (lambda: Prompt(points=GRAD[:, :2]), PromptError, "detach"),
    "labels in training": (lambda: Prompt(points=[[1, 2]], labels=GRAD[0, :1]), PromptError, "detach"),
    "box in training": (lambda: Prompt(box=GRAD[0]), PromptError, "detach"),
    "mask in training": (lambda: Prompt(mask=GRAD), PromptError, "detach"),
    "logits in training": (lambda: Prompt(mask_logits=GRAD), PromptError, "detach"),
    "image in training": (lambda: refinesam.as_rgb(GRAD), ImageError, "detach"),
    "box of a mask in training": (lambda: refinesam.box_from_mask(GRAD), ValueError, "detach"),
    "overlap in training": (lambda: refinesam.mask_iou(GRAD, GRAD), ValueError, "detach"),
    "RLE in training": (lambda: refinesam.encode_rle(GRAD), ValueError, "detach"),
    "outlines in training": (lambda: refinesam.polygons_from_mask(GRAD), ValueError, "detach"),
    "bytes as a file": (lambda: refinesam.read_image(io.BytesIO(b"x")), ImageError, "PIL.Image.open"),
    "no file": (lambda: refinesam.read_image(None), ImageError, "takes a path"),
    "half a page": (lambda: refinesam.read_image("a.png", page=0.5), ConfigError, "page is 0.5"),
    "page by name": (lambda: refinesam.read_image("a.png", page="1"), ConfigError, "page is '1'"),
    "half a pixel": (lambda: refinesam.read_image("a.png", max_pixels=0.5), ConfigError, "max_pixels is 0.5"),
    "a prompt without its list": (lambda: Item(np.zeros((2, 2)), Prompt(points=[[1, 1]])), PromptError, "[prompt]"),
    "an item without its list": (
        lambda: list(refinesam.segment_batch(Session(FloodModel()), Item("a.png", None))),
        ConfigError,
        "[item]",
    ),
    "cache below nothing": (lambda: refinesam.load("builtin", cache_bytes=-1), ConfigError, "cache_bytes is -1"),
    "half a byte": (lambda: Session(FloodModel(), cache_bytes=0.5), ConfigError, "cache_bytes is 0.5"),
    "disk below nothing": (
        lambda: refinesam.load("builtin", cache_dir="kept", disk_cache_bytes=-5),
        ConfigError,
        "disk_cache_bytes is -5",
    ),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_files_and_settings(name: str) -> None:
    call, error, words = BAD_ARRAYS[name]
    with pytest.raises(error) as caught:
        call()
    assert isinstance(caught.value, refinesam.RefineSAMError)
    assert words in str(caught.value)


@pytest.mark.parametrize("given", [[[3, 4]], {"points": [[3, 4]]}, None, np.zeros((1, 2))])
def test_predict_takes_prompts(encoded: EncodedImage, given: object) -> None:
    with pytest.raises(PromptError, match="predict takes a Prompt"):
        encoded.predict(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [np.zeros((4, 4), bool), None, Prompt(points=[[1, 1]])])
def test_refine_takes_predictions(encoded: EncodedImage, given: object) -> None:
    with pytest.raises(PromptError, match="refine takes a Prediction"):
        encoded.refine(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["points_per_side", "prompts_per_batch", "min_area"])
@pytest.mark.parametrize("value", [-1, 2.5, "4", True])
def test_counts_of_everything(session: Session, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        AutomaticMaskGenerator(session, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["iou_threshold", "stability_threshold", "overlap_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5"])
def test_thresholds_of_everything(session: Session, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        AutomaticMaskGenerator(session, **{name: value})  # type: ignore[arg-type]
