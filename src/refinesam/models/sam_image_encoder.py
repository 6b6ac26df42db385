"""SAM's image encoder: a ViT with windowed and global attention and decomposed relative positions.

Kirillov et al. 2023 (appendix A) after Li et al. 2022, "Exploring plain vision transformer backbones for object
detection" and "MViTv2" (equation 4: the relative position of two tokens is the sum of a vertical and a horizontal one).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.models.config import ModelConfig
from refinesam.models.image_encoder import EMBED_DIM, ImageFeatures, PatchEmbed
from refinesam.models.layers import CachedPosEmbed, neck

__all__ = ["SamImageEncoder", "resize_rel_pos"]

WINDOW = 14


def resize_rel_pos(rel_pos: Tensor, side: int) -> Tensor:
    """Turn a table of relative positions into one vector per pair of rows (or columns).

    Args:
        rel_pos: (2 g - 1, D), the distances -(g - 1) to g - 1 of the grid it was trained on.
        side: of the wanted grid; the table is interpolated linearly where it was trained on another.

    Returns:
        (side, side, D), entry [i, j] for a query in row i and a key in row j.
    """
    if rel_pos.shape[0] != 2 * side - 1:
        resized = F.interpolate(rel_pos.float().T.unsqueeze(0), size=2 * side - 1, mode="linear", align_corners=False)
        rel_pos = resized[0].T.to(rel_pos.dtype)
    rows = torch.arange(side, device=rel_pos.device)
    return rel_pos[rows[:, None] - rows[None, :] + side - 1]


class RelativeAttention(nn.Module):
    """Multi-head self-attention over a square grid; a score is q.k / sqrt(D) + q.R_vertical + q.R_horizontal."""

    def __init__(self, width: int, heads: int, grid: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, width // heads))
        self._cached_h, self._cached_w = CachedPosEmbed(resize_rel_pos), CachedPosEmbed(resize_rel_pos)

    def forward(self, x: Tensor) -> Tensor:
        """(B, g, g, C) -> (B, g, g, C)."""
        batch, side, _, width = x.shape
        qkv = self.qkv(x).reshape(batch, side * side, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        vertical = self._cached_h.get(self.rel_pos_h, side)
        horizontal = self._cached_w.get(self.rel_pos_w, side)
        # Both are exact, neither holds a matrix of scores for all heads (0.8 GB per image for ViT-B at 1024, 1 GB for
        # ViT-H). On a CPU a mask per head costs half of what the three times wider queries cost at 64 x 64 tokens; a
        # GPU's flash kernel takes the wide queries but no mask.
        attend = attend_with_masks if x.device.type == "cpu" else attend_with_wide_queries
        x = attend(q, k, v, vertical, horizontal)
        return self.proj(x.transpose(1, 2).reshape(batch, side, side, width))


def _relative_scores(q: Tensor, vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
    """Queries (B, M, g * g, D) against (g, g, D) relative positions -> twice (B, M, g * g, g)."""
    side = vertical.shape[0]
    on_grid = q.unflatten(2, (side, side))
    rows = torch.einsum("bmhwc,hkc->bmhwk", on_grid, vertical)
    columns = torch.einsum("bmhwc,wkc->bmhwk", on_grid, horizontal)
    return rows.flatten(2, 3), columns.flatten(2, 3)


def attend_with_masks(q: Tensor, k: Tensor, v: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Attention (B, M, N, D) with the relative scores as an additive mask, made for one head at a time."""
    heads = []
    for qi, ki, vi in zip(q.split(1, dim=1), k.split(1, dim=1), v.split(1, dim=1), strict=True):
        rows, columns = (scores.contiguous() for scores in _relative_scores(qi, vertical, horizontal))
        mask = (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
        heads.append(F.scaled_dot_product_attention(qi, ki, vi, attn_mask=mask))
    return torch.cat(heads, dim=1)


def attend_with_wide_queries(q: Tensor, k: Tensor, v: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Attention (B, M, N, D) with the relative scores as further channels of the queries.

    [q / sqrt(D), rows, columns] . [k, one-hot row, one-hot column] = q.k / sqrt(D) + rows[row of k] + columns[column of
    k], so the mask of N x N never exists.
    """
    dim, side = q.shape[-1], vertical.shape[0]
    rows, columns = _relative_scores(q, vertical, horizontal)
    eye = torch.eye(side, dtype=k.dtype, device=k.device)
    place = torch.cat([eye.repeat_interleave(side, dim=0), eye.repeat(side, 1)], dim=-1)
    wide_q = torch.cat([q * dim**-0.5, rows, columns], dim=-1)
    wide_k = torch.cat([k, place.expand(*k.shape[:2], -1, -1)], dim=-1)
    # The fused kernels want queries, keys and values of one width.
    return F.scaled_dot_product_attention(wide_q, wide_k, F.pad(v, (0, 2 * side)), scale=1.0)[..., :dim]


class ImageMlp(nn.Module):
    """Two linear layers with exact GELU between them, under SAM's parameter names."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.lin2(F.gelu(self.lin1(x)))


class SamBlock(nn.Module):
    """Pre-norm transformer block that attends within 14 x 14 windows or over the whole grid."""

    def __init__(self, width: int, heads: int, grid: int | None) -> None:
        super().__init__()
        self.windowed = grid is None
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = RelativeAttention(width, heads, WINDOW if grid is None else grid)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = ImageMlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, g, g, C) -> (B, g, g, C)."""
        normed = self.norm1(x)
        x = x + (self._attend_in_windows(normed) if self.windowed else self.attn(normed))
        return x + self.mlp(self.norm2(x))

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        grid = x.shape[1]
        # Zeros after the normalisation; the padding takes part in its window's attention, as it did in training.
        missing = -grid % WINDOW
        count = (grid + missing) // WINDOW
        x = F.pad(x, (0, 0, 0, missing, 0, missing))
        x = x.unflatten(2, (count, WINDOW)).unflatten(1, (count, WINDOW))
        batch = x.shape[0]
        windows = self.attn(x.transpose(2, 3).flatten(0, 2))
        x = windows.unflatten(0, (batch, count, count)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, :grid, :grid]


class SamImageEncoder(nn.Module):
    """SAM's ViT-B, ViT-L or ViT-H image encoder."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, config.pos_grid, config.pos_grid, config.width))
        self.blocks = nn.ModuleList(
            SamBlock(config.width, config.heads, config.pos_grid if index in config.global_blocks else None)
            for index in range(config.depth)
        )
        self.neck = neck(config.width, EMBED_DIM)
        self._cached = CachedPosEmbed()

    def tokens(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S), S a multiple of 16, up to the neck: (B, S/16, S/16, C)."""
        x = self.patch_embed(pixels)
        x = x + self._cached.get(self.pos_embed, x.shape[1])
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (B, 3, S, S), S a multiple of 16."""
        return ImageFeatures(self.neck(self.tokens(pixels).permute(0, 3, 1, 2)))
