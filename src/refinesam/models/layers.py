"""Layers that the model families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "Block", "LayerNorm2d", "Mlp", "Upscale2d", "attention", "fold_norms", "resize_pos_embed"]


@runtime_checkable
class Foldable(Protocol):
    """A convolution with a norm that can be put into it."""

    def fold(self) -> None:
        """Put the norm into the convolution, in place."""


def fold_norms(model: nn.Module) -> None:
    """Put every norm into its convolution where that is the same function, in place: sooner; for inference."""
    for module in model.modules():
        if isinstance(module, Foldable):
            module.fold()


def attention(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention from (B, H, N, C) to (B, H, M, C).

    Args:
        q: queries.
        k: keys.
        v: values.
        attended: booleans that spread over (B, H, N, M), which keys count; None means all.

    Returns:
        (B, H, N, C).
    """
    if not (q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attended)
    # On a CPU the fused kernel goes backward in bfloat16 much more slowly than the products themselves.
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if attended is not None:
        scores = scores.masked_fill(~attended, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W) maps."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with global attention."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, mlp_ratio * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Upscale2d(nn.ConvTranspose2d):
    """Transposed convolution of kernel 2 and stride 2: no two of its outputs overlap.

    So it is a matrix product and a reordering of its result, which takes a CPU about half the time.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C', 2 H, 2 W)."""
        products = self.weight.flatten(1).T @ x.flatten(2)
        bias = cast(Tensor, self.bias).to(products.dtype)  # Under autocast the product is in half precision.
        return F.pixel_shuffle(products.unflatten(2, x.shape[2:]), 2) + bias[:, None, None]


def neck(width: int, out_channels: int) -> nn.Sequential:
    """SAM's neck: 1x1 and 3x3 convolutions without bias, each followed by LayerNorm2d."""
    return nn.Sequential(
        nn.Conv2d(width, out_channels, 1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


def resize_pos_embed(pos_embed: Tensor, grid: int) -> Tensor:
    """Resize a square position embedding by bicubic interpolation.

    Args:
        pos_embed: (1, g, g, C).
        grid: side of the wanted grid.

    Returns:
        (1, grid, grid, C).
    """
    if pos_embed.shape[1] == grid:
        return pos_embed
    # In float32 whatever the model's dtype: bicubic weights lose too much in half precision.
    resized = F.interpolate(
        pos_embed.permute(0, 3, 1, 2).float(), size=(grid, grid), mode="bicubic", align_corners=False
    )
    return resized.permute(0, 2, 3, 1).to(pos_embed.dtype)


class CachedPosEmbed:
    """Remembers the last resized position embedding, so that it is interpolated once and not per call."""

    def __init__(self, resize: Callable[[Tensor, int], Tensor] = resize_pos_embed) -> None:
        self._resize = resize
        self._entry: tuple[tuple[object, ...], Tensor, Tensor] | None = None

    def get(self, pos_embed: Tensor, grid: int) -> Tensor:
        """Return `resize(pos_embed, grid)`, computed anew only when the parameter changed.

        A parameter that is being trained is resized every time: its gradient has to flow.
        """
        if pos_embed.requires_grad and torch.is_grad_enabled():
            return self._resize(pos_embed, grid)
        version = -1 if pos_embed.is_inference() else pos_embed._version
        key = (pos_embed.data_ptr(), version, pos_embed.dtype, pos_embed.device, grid)
        entry = self._entry
        if entry is None or entry[0] != key:
            # An ordinary tensor even in inference mode: autograd may meet it later.
            with torch.inference_mode(False), torch.no_grad():
                source = pos_embed.detach()
                # Replaced as one, for concurrent readers. It keeps the source: no other tensor gets that address.
                entry = self._entry = (key, source, self._resize(source, grid))
        return entry[2]
