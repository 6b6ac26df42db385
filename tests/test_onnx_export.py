"""Models as ONNX files: what ONNX Runtime makes of them is what torch makes of the models, within 1e-4."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import formula
from refinesam.errors import OutputError
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.frames import Frame
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.layers import fold_norms
from refinesam.models.onnx_export import export_decoder, export_encoder
from refinesam.models.promptable import PromptableModel
from refinesam.weights import load_model

TOLERANCE = 1e-4
# Small ones of each family and encoder; the released encoders' depth and width would only take time.
SAM = {"width": 64, "depth": 2, "heads": 2, "global_blocks": (1,), "pos_grid": 4}
SMALL: dict[str, dict[str, Any]] = {
    "hybrid_lite0": {"input_size": 64},
    "hybrid_ti": {"input_size": 80},
    "efficientsam_ti": {"input_size": 64},
    "sam_vit_b": {"input_size": 64, **SAM},
    "sam_vit_b, another size": {"input_size": 96, **SAM},
    "mobile_sam": {"input_size": 128},
}


@dataclass
class Exported:
    """A model by torch and by ONNX Runtime, and one image's features."""

    model: PromptableModel
    features: ImageFeatures
    encoder: Any
    decoder: Any

    @property
    def side(self) -> int:
        return self.model.config.input_size

    def decode(self, points: Tensor, labels: Tensor, mask_logits: Tensor | None = None) -> list[NDArray[np.float32]]:
        """By ONNX Runtime, prompts (P, T)."""
        values = {"points": points, "labels": labels, "embedding": self.features.embedding}
        values |= dict(zip(("high_res8", "high_res4"), self.features.high_res, strict=False))
        if self.model.config.capabilities.mask_prompt:
            none = torch.zeros(len(points), self.side // 4, self.side // 4)
            values["mask_logits"] = none if mask_logits is None else mask_logits
        found: list[NDArray[np.float32]] = self.decoder.run(None, {k: v.numpy() for k, v in values.items()})
        return found

    def expected(self, points: Tensor, labels: Tensor, mask_logits: Tensor | None = None) -> list[NDArray[np.float32]]:
        """By torch, each prompt alone and without its padding."""
        answers = []
        for i in range(len(points)):
            there = labels[i] != -1
            mask = None if mask_logits is None or not mask_logits[i].any() else mask_logits[None, None, i]
            with torch.inference_mode():
                answers.append(
                    self.model.decode(self.features, points[None, None, i, there], labels[None, None, i, there], mask)
                )
        return [torch.cat([answer[k][0] for answer in answers]).numpy() for k in (0, 1)]


@pytest.fixture(scope="module", params=SMALL)
def exported(request: pytest.FixtureRequest) -> Exported:
    config = replace(config_named(request.param.partition(",")[0]), **SMALL[request.param])
    model = build_model(config).eval().requires_grad_(False)
    model.load_state_dict(formula.weights(model.state_dict()))
    fold_norms(model.image_encoder)
    side = config.input_size
    with torch.inference_mode():
        features = model.encode(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)))
    files = export_encoder(model.image_encoder, side, None), export_decoder(model)
    return Exported(model, features, *(onnxruntime.InferenceSession(file) for file in files))


def prompts(exported: Exported, count: int, points: int) -> tuple[Tensor, Tensor]:
    """Clicks at random; negative ones too where the model was trained on them."""
    numbers = torch.Generator().manual_seed(count * 100 + points)
    trained = exported.model.config.capabilities.negative_points
    labels = torch.randint(0 if trained else 1, 2, (count, points), generator=numbers)
    return exported.side * torch.rand(count, points, 2, generator=numbers), labels


def masks(exported: Exported, count: int) -> Tensor:
    numbers = torch.Generator().manual_seed(count)
    return 4 * torch.randn(count, exported.side // 4, exported.side // 4, generator=numbers)


def assert_same(found: list[NDArray[np.float32]], expected: list[NDArray[np.float32]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("images", [1, 2, 5])
def test_any_number_of_images(exported: Exported, images: int) -> None:
    pixels = torch.randn(images, 3, exported.side, exported.side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = exported.model.encode(pixels)
    found = exported.encoder.run(None, {"pixels": pixels.numpy()})
    assert_same(found, [m.numpy() for m in (expected.embedding, *expected.high_res)])


@pytest.mark.parametrize("points", [1, 4, 6, 20])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("mask", [False, True])
def test_any_number_of_prompts_and_points(exported: Exported, count: int, points: int, mask: bool) -> None:
    taken = exported.model.config.capabilities
    if (mask and not taken.mask_prompt) or points > (taken.max_points or points):
        pytest.skip("the model does not take it")
    clicks, labels = prompts(exported, count, points)
    earlier = masks(exported, count) if mask else None
    found = exported.decode(clicks, labels, earlier)
    assert found[0].shape == (count, 3, exported.side // 4, exported.side // 4) and found[1].shape == (count, 3)
    assert_same(found, exported.expected(clicks, labels, earlier))
    # Answers that agree because nothing matters would show nothing.
    other = exported.decode(exported.side - clicks, labels, earlier)
    assert np.abs(other[0] - found[0]).max() > 100 * TOLERANCE


def test_prompts_of_every_kind_together(exported: Exported) -> None:
    """Each is answered as it is alone, whatever is beside it and however it is filled up."""
    high = float(exported.side)
    box = [[0.2 * high, 0.1 * high], [0.8 * high, 0.7 * high]]
    click = [0.4 * high, 0.5 * high]
    rows = [
        ([*box, [5.0, 5.0]], [2, 3, -1]),
        ([*box, click], [2, 3, 1]),
        ([click, [9.0, 9.0], [0.5, high]], [1, -1, -1]),
        ([[9.0, 9.0], click, click], [-1, 1, 1]),
    ]
    points, labels = (torch.tensor(part) for part in zip(*rows, strict=True))
    earlier = None
    if exported.model.config.capabilities.mask_prompt:
        earlier = masks(exported, len(rows))
        earlier[1:3] = 0
    assert_same(exported.decode(points, labels, earlier), exported.expected(points, labels, earlier))


def test_a_mask_alone(exported: Exported) -> None:
    if not exported.model.config.capabilities.mask_prompt:
        pytest.skip("the model takes no mask")
    points, labels = torch.zeros(2, 1, 2), torch.full((2, 1), -1)
    earlier = masks(exported, 2)
    assert_same(exported.decode(points, labels, earlier), exported.expected(points, labels, earlier))


def test_more_points_than_the_model_takes_are_not_left_out(exported: Exported) -> None:
    most = exported.model.config.capabilities.max_points
    if most is None:
        pytest.skip("the model takes any number")
    with pytest.raises(Exception, match="(?i)shape"):
        exported.decode(*prompts(exported, 2, most + 1))


def test_the_model_stays_in_evaluation_mode(exported: Exported) -> None:
    assert not any(module.training for module in exported.model.modules())


def test_what_is_too_large_for_a_file() -> None:
    with torch.device("meta"):
        model = build_model(config_named("sam_vit_h"))
    with pytest.raises(OutputError, match="image encoder cannot be exported to ONNX: its weights have 2.5 GB"):
        export_encoder(model.image_encoder, 1024, None)


def test_the_built_in_weights() -> None:
    model = load_model("builtin").requires_grad_(False)
    fold_norms(model.image_encoder)
    frame = Frame.of(model.config, (480, 640))
    with torch.inference_mode():
        features = model.encode(frame.resize(formula.image())[None])
    files = (export_encoder(model.image_encoder, frame.input_size, None), export_decoder(model))
    exported = Exported(model, features, *(onnxruntime.InferenceSession(file) for file in files))
    pixels = frame.resize(formula.image())[None].numpy()
    assert_same(exported.encoder.run(None, {"pixels": pixels}), [features.embedding.numpy(), *features.high_res])
    for count, points in ((1, 1), (5, 4)):
        for earlier in (None, masks(exported, count)):
            clicks, labels = prompts(exported, count, points)
            assert_same(exported.decode(clicks, labels, earlier), exported.expected(clicks, labels, earlier))


def test_what_has_no_form_in_onnx() -> None:
    class Odd(torch.nn.Module):
        def forward(self, pixels: Tensor) -> ImageFeatures:
            return ImageFeatures(torch.linalg.svd(pixels)[1])

    with pytest.raises(OutputError, match="image encoder cannot be exported to ONNX: .*svd"):
        export_encoder(Odd(), 16)
