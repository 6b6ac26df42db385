"""MobileSAM's image encoder: Tiny-ViT-5M with SAM's neck, in the layout of the released checkpoint.

Wu et al. 2022, "TinyViT", and Zhang et al. 2023, "Faster Segment Anything". Convolutions at stride 4, then attention
within windows, with a learnt bias for each distance between two tokens, at strides 8 and 16.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from refinesam.models.image_encoder import EMBED_DIM, ImageFeatures
from refinesam.models.layers import neck

__all__ = ["TinyViT"]

MLP_RATIO = 4
IMAGENET_CLASSES = 1000


class Stage(NamedTuple):
    """Blocks of one width; those of the first stage are convolutions and have no heads and windows."""

    width: int
    depth: int
    heads: int
    window: int


STAGES = (Stage(64, 2, 2, 7), Stage(128, 2, 4, 7), Stage(160, 6, 5, 14), Stage(320, 2, 10, 7))


class ConvNorm(nn.Module):
    """Convolution without bias and batch norm, under TinyViT's parameter names."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        return self.bn(self.c(x))

    @torch.no_grad()
    def fold(self) -> None:
        """Put the norm into the convolution, in place: the same function, for inference."""
        norm = self.bn
        if isinstance(norm, nn.BatchNorm2d):
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None and variance is not None
            self.c.weight, self.c.bias = fuse_conv_bn_weights(
                self.c.weight, self.c.bias, mean, variance, norm.eps, norm.weight, norm.bias
            )
            self.bn = nn.Identity()


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(3, width // 2, 3, 2), nn.GELU(), ConvNorm(width // 2, width, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C, S/4, S/4)."""
        return self.seq(x)


class InvertedBottleneck(nn.Module):
    """Expand, filter each channel alone, project, add the input (Sandler et al. 2018); GELU also after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """From one stage's width to the next one's, at half the resolution or at the same."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Multi-head attention within square windows; a score is q.k / sqrt(D) plus a bias of the distance |dy|, |dx|."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = x.shape[1:3]
        # Zeros before the normalisation: the padding takes part in its window's attention, as it did in training.
        down, right = -height % self.window, -width % self.window
        x = F.pad(x, (0, 0, 0, right, 0, down))
        rows, columns = x.shape[1] // self.window, x.shape[2] // self.window
        x = x.unflatten(2, (columns, self.window)).unflatten(1, (rows, self.window)).transpose(2, 3)
        windows = self._attend(x.flatten(3, 4).flatten(0, 2))
        x = windows.unflatten(1, (self.window, self.window)).unflatten(0, (-1, rows, columns)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]

    def _attend(self, x: Tensor) -> Tensor:
        """Windows (B, N, C), N tokens row by row -> (B, N, C)."""
        # Each head has its queries, keys and values beside each other.
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias(x.device).to(x.dtype))
        return self.proj(x.transpose(1, 2).flatten(2))

    def _bias(self, device: torch.device) -> Tensor:
        """Of all pairs of a window's tokens: (heads, N, N)."""
        sides = torch.arange(self.window, device=device)
        distance = (sides[:, None] - sides).abs()
        pairs = distance[:, None, :, None] * self.window + distance[None, :, None, :]
        return self.attention_biases[:, pairs.flatten(2).flatten(0, 1)]


class Mlp(nn.Module):
    """Layer norm and two linear layers with exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, MLP_RATIO * width)
        self.fc2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class AttentionBlock(nn.Module):
    """Attention within windows, a convolution of each channel alone, then the MLP."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + self.attn(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.local_conv(x)
        return x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TinyViTStage(nn.Module):
    """A stage's blocks, and what leads to the next stage."""

    def __init__(self, number: int) -> None:
        super().__init__()
        width, depth, heads, window = STAGES[number]
        self.blocks = nn.Sequential(
            *(InvertedBottleneck(width) if number == 0 else AttentionBlock(width, heads, window) for _ in range(depth))
        )
        self.downsample: nn.Module = nn.Identity()
        if number + 1 < len(STAGES):
            # SAM's decoder wants stride 16, so MobileSAM's last stage has the resolution of the third.
            self.downsample = PatchMerging(width, STAGES[number + 1].width, stride=1 if number == 2 else 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.downsample(self.blocks(x))


class TinyViT(nn.Module):
    """TinyViT-5M; the classifier's head is in the checkpoint and not used."""

    def __init__(self) -> None:
        super().__init__()
        width = STAGES[-1].width
        self.patch_embed = PatchEmbed(STAGES[0].width)
        self.layers = nn.Sequential(*(TinyViTStage(number) for number in range(len(STAGES))))
        self.norm_head = nn.LayerNorm(width)
        self.head = nn.Linear(width, IMAGENET_CLASSES)
        self.neck = neck(width, EMBED_DIM)

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in their order, by which progress is told."""
        return [block for layer in self.layers for block in cast(TinyViTStage, layer).blocks]

    def tokens(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S), S a multiple of 16, up to the neck: (B, S/16, S/16, C)."""
        # The convolutions take a CPU less time in this layout.
        x = self.patch_embed(pixels.contiguous(memory_format=torch.channels_last))
        return self.layers(x).permute(0, 2, 3, 1)

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (B, 3, S, S), S a multiple of 16."""
        return ImageFeatures(self.neck(self.tokens(pixels).permute(0, 3, 1, 2)))
