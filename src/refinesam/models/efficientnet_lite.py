"""EfficientNet-Lite's convolutional stages (Tan & Le 2019; the Lite variants have ReLU6 and no squeeze-excite)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.models.config import LITE_STEMS, PIXEL_MEAN, PIXEL_STD, LiteStem

__all__ = ["EfficientNetLite"]

STEM_CHANNELS = 32


class Stage(NamedTuple):
    """Inverted bottlenecks of one output size; `channels` and `repeats` by variant, as `LITE_STEMS` has them."""

    kernel: int
    stride: int
    expansion: int
    channels: tuple[int, int, int]
    repeats: tuple[int, int, int]


STAGES = (
    Stage(kernel=3, stride=1, expansion=1, channels=(16, 16, 16), repeats=(1, 1, 1)),
    Stage(kernel=3, stride=2, expansion=6, channels=(24, 24, 24), repeats=(2, 3, 3)),
    Stage(kernel=5, stride=2, expansion=6, channels=(40, 40, 48), repeats=(2, 3, 3)),
    Stage(kernel=3, stride=2, expansion=6, channels=(80, 80, 88), repeats=(3, 4, 4)),
    Stage(kernel=5, stride=1, expansion=6, channels=(112, 112, 120), repeats=(3, 4, 4)),
    Stage(kernel=5, stride=2, expansion=6, channels=(192, 192, 208), repeats=(4, 5, 5)),
    Stage(kernel=3, stride=1, expansion=6, channels=(320, 320, 352), repeats=(1, 1, 1)),
)
# The stages whose outputs are used, at strides 4, 8, 16 and 32.
OUTPUT_STAGES = (1, 2, 4, 6)


class ChannelAffine(nn.Module):
    """A scale and a shift for each channel: a batch norm whose statistics are fixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])


class ConvNorm(nn.Module):
    """Convolution, `ChannelAffine`, ReLU6 where it is activated; padded as TensorFlow pads."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, activated: bool = True
    ) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm: nn.Module = ChannelAffine(out_channels)
        self.activation = nn.ReLU6() if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if stride == 2:
            vertical, horizontal = (kernel - 2 + side % 2 for side in x.shape[-2:])
            left, top = horizontal // 2, vertical // 2
            x = F.pad(x, (left, horizontal - left, top, vertical - top))
        return self.activation(self.norm(self.conv(x)))

    @torch.no_grad()
    def fold(self) -> None:
        """Put scale and shift into the convolution, in place: the same function, for inference."""
        norm = self.norm
        if isinstance(norm, ChannelAffine):
            self.conv.weight *= norm.weight[:, None, None, None]
            self.conv.bias = norm.bias
            self.norm = nn.Identity()


class InvertedBottleneck(nn.Module):
    """Expand, filter each channel alone, project; the input is added where the shapes agree (Sandler et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = ConvNorm(in_channels, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, out_channels, 1, activated=False)
        self.added = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.added else y


class EfficientNetLite(nn.Module):
    """The stages without ImageNet's head.

    Attributes:
        channels: of the outputs at strides 4, 8, 16 and 32.
    """

    def __init__(self, variant: LiteStem) -> None:
        super().__init__()
        number = LITE_STEMS.index(variant)
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = STEM_CHANNELS
        for stage in STAGES:
            blocks = []
            for repeat in range(stage.repeats[number]):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(
                    InvertedBottleneck(channels, stage.channels[number], stage.kernel, stride, stage.expansion)
                )
                channels = stage.channels[number]
            self.stages.append(nn.Sequential(*blocks))
        self.channels = tuple(STAGES[i].channels[number] for i in OUTPUT_STAGES)

    def encode_normalised(self, pixels: Tensor) -> list[Tensor]:
        """Encode pixels (B, 3, H, W) that are normalised as for every model of ours; see `forward`."""
        mean, std = (torch.tensor(v, dtype=pixels.dtype, device=pixels.device) for v in (PIXEL_MEAN, PIXEL_STD))
        lite = torch.addcmul(((mean - 127) / 128)[:, None, None], pixels, (std / 128)[:, None, None])
        # Half of the time of the other layout on a CPU.
        return self(lite.contiguous(memory_format=torch.channels_last))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Encode (B, 3, H, W), that is (RGB - 127) / 128, into maps at strides 4, 8, 16 and 32."""
        x = self.stem(pixels)
        outputs = []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in OUTPUT_STAGES:
                outputs.append(x)
        return outputs
