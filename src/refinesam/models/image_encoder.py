"""Light image encoders: EfficientSAM's plain ViT and our hybrid of convolutions and a ViT."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.models.config import ModelConfig
from refinesam.models.efficientnet_lite import EfficientNetLite
from refinesam.models.layers import Block, CachedPosEmbed, neck

__all__ = ["HybridEncoder", "ImageFeatures", "LightEncoder", "LiteHybridEncoder", "PlainHybridEncoder", "ViTEncoder"]

EMBED_DIM = 256
PATCH_SIZE = 16
# Of the plain stem, at strides 2, 4 and 8.
PLAIN_STEM_WIDTHS = (24, 48, 96)


@dataclass(frozen=True)
class ImageFeatures:
    """What the mask decoder needs of an image.

    Attributes:
        embedding: (B, 256, S/16, S/16) for an input of side S.
        high_res: further maps from coarse to fine; hybrid: (B, 64, S/8, S/8) and (B, 32, S/4, S/4); others: none.
    """

    embedding: Tensor
    high_res: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that the maps occupy."""
        return sum(t.numel() * t.element_size() for t in (self.embedding, *self.high_res))


class PatchEmbed(nn.Module):
    """Non-overlapping patches, linearly embedded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, S/16, S/16, C)."""
        return self.proj(x).permute(0, 2, 3, 1)


class LightEncoder(nn.Module, ABC):
    """What the light encoders share: patches with positions, then blocks of global attention.

    Apart from each other, so that pretraining can leave patches out between the two.
    """

    blocks: nn.ModuleList
    pos_embed: nn.Parameter

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """Embed normalised pixels (B, 3, S, S), S a multiple of 16, with positions: (B, S/16, S/16, C)."""

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """Transform any N of the embedded patches: (B, N, C) -> (B, N, C)."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def tokens(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) up to the neck: (B, S/16, S/16, C)."""
        return self._on_grid(self.embed(pixels))

    def _on_grid(self, embedded: Tensor) -> Tensor:
        return self.run_blocks(embedded.flatten(1, 2)).unflatten(1, embedded.shape[1:3])


class ViTEncoder(LightEncoder):
    """EfficientSAM's image encoder: a plain ViT with global attention in every block, then SAM's neck."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width)
        # The released checkpoints keep the slot of ImageNet's class token in front.
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.pos_grid**2 + 1, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.neck = neck(config.width, EMBED_DIM)
        self._cached = CachedPosEmbed()
        self._pos_grid = config.pos_grid

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, S/16, S/16, C)."""
        x = self.patch_embed(pixels)
        pos = self.pos_embed[:, 1:].unflatten(1, (self._pos_grid, self._pos_grid))
        return x + self._cached.get(pos, x.shape[1])

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (B, 3, S, S), S a multiple of 16."""
        return ImageFeatures(self.neck(self.tokens(pixels).permute(0, 3, 1, 2)))


class ConvBlock(nn.Sequential):
    """3x3 convolution, GroupNorm, GELU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, out_channels),
            nn.GELU(),
        )


class ResidualConvBlock(ConvBlock):
    """`ConvBlock` around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + super().forward(x)  # type: ignore[no-untyped-call]


class HybridEncoder(LightEncoder):
    """Convolutions under ViT blocks: local features first, global context on top.

    The source paper's future work names it ("fuse lightweight CNN blocks with compact ViT layers"). The convolutions'
    maps at strides 8 and 4 go to the mask decoder.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        eighth, quarter = self._make_convolutions(config)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.pos_grid, config.pos_grid, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.neck = neck(config.width, EMBED_DIM)
        self.high_res8 = nn.Conv2d(eighth, 64, 1)
        self.high_res4 = nn.Conv2d(quarter, 32, 1)
        self._cached = CachedPosEmbed()

    @abstractmethod
    def _make_convolutions(self, config: ModelConfig) -> tuple[int, int]:
        """Make the modules that `convolve` runs, and return the channels of its maps at strides 8 and 4."""

    @abstractmethod
    def convolve(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn normalised pixels (B, 3, S, S) into patches (B, C, S/16, S/16) and the maps at strides 8 and 4."""

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, S/16, S/16, C)."""
        return self._with_positions(self.convolve(pixels)[0])

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (B, 3, S, S), S a multiple of 16."""
        patches, eighth, quarter = self.convolve(pixels)
        x = self._on_grid(self._with_positions(patches)).permute(0, 3, 1, 2)
        return ImageFeatures(self.neck(x), (self.high_res8(eighth), self.high_res4(quarter)))

    def _with_positions(self, patches: Tensor) -> Tensor:
        x = patches.permute(0, 2, 3, 1)
        return x + self._cached.get(self.pos_embed, x.shape[1])


class PlainHybridEncoder(HybridEncoder):
    """The hybrid over a plain stem, which starts at random."""

    def _make_convolutions(self, config: ModelConfig) -> tuple[int, int]:
        half, quarter, eighth = PLAIN_STEM_WIDTHS
        self.stem2 = ConvBlock(3, half, stride=2)
        self.stem4 = nn.Sequential(ConvBlock(half, quarter, stride=2), ResidualConvBlock(quarter))
        self.stem8 = nn.Sequential(ConvBlock(quarter, eighth, stride=2), ResidualConvBlock(eighth))
        self.stem16 = nn.Conv2d(eighth, config.width, 3, stride=2, padding=1)
        return eighth, quarter

    def convolve(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn normalised pixels (B, 3, S, S) into patches (B, C, S/16, S/16) and the maps at strides 8 and 4."""
        quarter = self.stem4(self.stem2(pixels))
        eighth = self.stem8(quarter)
        return self.stem16(eighth), eighth, quarter


class LiteHybridEncoder(HybridEncoder):
    """The hybrid over the stages of an EfficientNet-Lite, which start from ImageNet.

    Patches are made of the stages at stride 16 and, enlarged, at stride 32.
    """

    def _make_convolutions(self, config: ModelConfig) -> tuple[int, int]:
        assert config.stem != "plain"
        self.stages = EfficientNetLite(config.stem)
        quarter, eighth, sixteenth, last = self.stages.channels
        self.patches16 = nn.Conv2d(sixteenth, config.width, 1)
        self.patches32 = nn.Conv2d(last, config.width, 1, bias=False)
        return eighth, quarter

    def convolve(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn normalised pixels (B, 3, S, S) into patches (B, C, S/16, S/16) and the maps at strides 8 and 4."""
        quarter, eighth, sixteenth, last = self.stages.encode_normalised(pixels)
        patches = self.patches16(sixteenth)
        context = F.interpolate(self.patches32(last), scale_factor=2.0, mode="bilinear", align_corners=False)
        # Where stride 16 has an odd side, stride 32 has half of the next even one.
        return patches + context[..., : patches.shape[-2], : patches.shape[-1]], eighth, quarter
