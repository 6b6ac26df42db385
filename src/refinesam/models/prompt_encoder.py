"""Prompt encoders: EfficientSAM's released one, SAM's, and ours, which also draws the prompts into dense maps.

Labels of points: 1 on the object, 0 not on the object, 2 / 3 a box's top-left / bottom-right corner, -1 padding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.layers import CachedPosEmbed, LayerNorm2d

__all__ = ["DRAWN_MAPS", "DrawnPromptEncoder", "EfficientSamPromptEncoder", "PositionEmbedding", "SamPromptEncoder"]

EMBED_DIM = 256
# Standard deviations of a drawn click in stride-4 pixels: one to hit the spot, one for its surroundings.
CLICK_SIGMAS = (1.5, 6.0)
# By sign of click: its spots and its two affinities; then box interior, earlier mask, presence of one.
DRAWN_MAPS = 2 * (len(CLICK_SIGMAS) + 2) + 3
PADDING, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3


class PositionEmbedding(nn.Module):
    """Random spatial frequencies (Tancik et al. 2020), as SAM uses them."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int = EMBED_DIM // 2) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))
        self._cached = CachedPosEmbed(_embedded_grid)

    def forward(self, unit_xy: Tensor) -> Tensor:
        """Positions in [0, 1], (..., 2) -> (..., 256)."""
        return _embedded(unit_xy, self.positional_encoding_gaussian_matrix)

    def grid(self, side: int) -> Tensor:
        """Positions of the centres of a side x side grid: (side * side, 256); remembered, it depends on no prompt."""
        return self._cached.get(self.positional_encoding_gaussian_matrix, side)


def _embedded(unit_xy: Tensor, matrix: Tensor) -> Tensor:
    # In float32, under autocast too: sin and cos of large phases are useless in half precision.
    with torch.autocast(matrix.device.type, enabled=False):
        phase = 2 * math.pi * ((2 * unit_xy.float() - 1) @ matrix.float())
    return torch.cat([phase.sin(), phase.cos()], dim=-1).to(matrix.dtype)


def _embedded_grid(matrix: Tensor, side: int) -> Tensor:
    centres = (torch.arange(side, dtype=torch.float32, device=matrix.device) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return _embedded(torch.stack([x, y], dim=-1), matrix).flatten(0, 1)


class EfficientSamPromptEncoder(nn.Module):
    """Points and boxes of the released EfficientSAM: no negative clicks, no mask prompt, always six points."""

    max_points = 6

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = PositionEmbedding()
        self.invalid_points = nn.Embedding(1, EMBED_DIM)
        self.point_embeddings = nn.Embedding(1, EMBED_DIM)
        self.bbox_top_left_embeddings = nn.Embedding(1, EMBED_DIM)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, EMBED_DIM)

    def forward(self, points: Tensor, labels: Tensor, input_size: int) -> Tensor:
        """Embed points (B, P, T <= 6, 2) in input pixels with labels (B, P, T) as tokens (B, P, 6, 256)."""
        missing = self.max_points - points.shape[2]
        # Padding sits at -1 exactly and keeps its position embedding: the released weights were trained so.
        points = F.pad(points, (0, 0, 0, missing), value=-1.0)
        labels = F.pad(labels, (0, missing), value=PADDING)
        tokens = self.pe_layer((points + 0.5) / input_size)
        for label, embedding in (
            (PADDING, self.invalid_points),
            (POSITIVE, self.point_embeddings),
            (TOP_LEFT, self.bbox_top_left_embeddings),
            (BOTTOM_RIGHT, self.bbox_bottom_right_embeddings),
        ):
            tokens = tokens + embedding.weight[0] * (labels == label).unsqueeze(-1)
        return tokens


class SparsePromptEncoder(nn.Module):
    """SAM's point and box embeddings: a position and one vector per label."""

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = PositionEmbedding()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, EMBED_DIM) for _ in range(4))

    def embed_points(self, points: Tensor, labels: Tensor, input_size: int, padding: Tensor) -> Tensor:
        """Embed points (B, P, T, 2) in input pixels with labels (B, P, T) as tokens (B, P, T, 256).

        `padding` (1, 256) is the token of label -1, which has no position.
        """
        by_label = torch.cat([padding, *self.point_embeddings.parameters()])
        position = self.pe_layer((points + 0.5) / input_size)
        position = position.masked_fill((labels == PADDING).unsqueeze(-1), 0.0)
        return position + by_label[labels + 1]


class SamPromptEncoder(SparsePromptEncoder):
    """SAM's prompt encoder: sparse points and boxes, dense mask prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.not_a_point_embed = nn.Embedding(1, EMBED_DIM)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, stride=2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, stride=2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, EMBED_DIM, 1),
        )
        self.no_mask_embed = nn.Embedding(1, EMBED_DIM)

    def embed_masks(self, mask_logits: Tensor | None) -> Tensor:
        """Embed mask prompts (B, P, h, w) as (B, P, 256, h/4, w/4), or return the (1, 1, 256, 1, 1) for none."""
        if mask_logits is None:
            return self.no_mask_embed.weight.view(1, 1, EMBED_DIM, 1, 1)
        batch, prompts = mask_logits.shape[:2]
        return self.mask_downscaling(mask_logits.flatten(0, 1).unsqueeze(1)).unflatten(0, (batch, prompts))


class DrawnPromptEncoder(SparsePromptEncoder):
    """Our prompt encoder: SAM's sparse tokens, and every prompt also drawn into dense maps at strides 16, 8 and 4.

    A small model trained on little data learns from a drawn prompt what a large one gets from attention alone: which
    pixels the user pointed at. Clicks are drawn twice: as spots, and as affinity, how much each pixel's features
    resemble those under the click.
    """

    affinity_width = 32

    def __init__(self) -> None:
        super().__init__()
        self.affinity16 = nn.Conv2d(EMBED_DIM, self.affinity_width, 1)
        self.affinity4 = nn.Conv2d(32, self.affinity_width, 1)
        self.draw4 = nn.Sequential(nn.Conv2d(DRAWN_MAPS, 16, 3, padding=1), nn.GELU())
        self.draw8 = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU())
        self.draw16 = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GELU())
        self.dense4 = nn.Conv2d(16, 32, 1)
        self.dense8 = nn.Conv2d(32, 64, 1)
        self.dense16 = nn.Conv2d(64, EMBED_DIM, 1)

    def forward(
        self, features: ImageFeatures, points: Tensor, labels: Tensor, mask_logits: Tensor | None, input_size: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
        """Embed prompts sparsely and densely.

        Args:
            features: of the hybrid encoder, B images.
            points: (B, P, T, 2) in input pixels, T at least 1.
            labels: (B, P, T).
            mask_logits: (B, P, S/4, S/4) logits of an earlier prediction, or None. A map that is all zero says
                nothing: it draws the same as None.
            input_size: S.

        Returns:
            Tokens (B, P, T, 256); maps (B * P, 256 / 64 / 32, side, side) at strides 16, 8 and 4; and what was drawn,
            (B, P, 11, S/4, S/4).
        """
        drawn = self.draw(points, labels, mask_logits, input_size)
        affinity = self.affinity(features, points / input_size, labels)
        drawn = torch.cat([drawn, affinity], dim=2)
        x4 = self.draw4(drawn.flatten(0, 1))
        x8 = self.draw8(x4)
        x16 = self.draw16(x8)
        dense = (self.dense16(x16), self.dense8(x8), self.dense4(x4))
        # The decoder leaves padding out; no token has to be learnt for it.
        padding = next(self.point_embeddings.parameters()).new_zeros(1, EMBED_DIM)
        return self.embed_points(points, labels, input_size, padding), dense, drawn

    def draw(self, points: Tensor, labels: Tensor, mask_logits: Tensor | None, input_size: int) -> Tensor:
        """Draw prompts as (B, P, 7, S/4, S/4): clicks by sign and width, box interior, earlier mask, its presence."""
        side = input_size // 4
        centres = torch.arange(side, device=points.device, dtype=torch.float32) + 0.5
        xy = points.float() / 4
        dx2 = (xy[..., 0:1] - centres) ** 2
        dy2 = (xy[..., 1:2] - centres) ** 2
        maps = []
        for label in (POSITIVE, NEGATIVE):
            chosen = (labels == label)[..., None].float()
            for sigma in CLICK_SIGMAS:
                # A Gaussian is separable: two small exponentials instead of one per pixel and point.
                # Far from the click it stays at e^-40: products of two stay clear of slow denormal numbers.
                gx = torch.exp(-(dx2 / (2 * sigma**2)).clamp(max=40)) * chosen
                gy = torch.exp(-(dy2 / (2 * sigma**2)).clamp(max=40))
                # The strongest click counts, so that many clicks don't add up to something never seen.
                maps.append((gy.unsqueeze(-1) * gx.unsqueeze(-2)).amax(dim=2))
        maps.append(self._draw_boxes(xy, labels, centres))
        earlier = torch.zeros_like(maps[0]) if mask_logits is None else torch.tanh(mask_logits.float() / 4)
        present = (earlier != 0).flatten(2).any(-1)[..., None, None].expand_as(earlier).float()
        drawn = torch.stack([*maps, earlier, present], dim=2)
        return drawn.to(self.dense4.weight.dtype)

    def affinity(self, features: ImageFeatures, unit_xy: Tensor, labels: Tensor) -> Tensor:
        """Cosine similarity to the features under the clicks, by sign, at strides 16 and 4: (B, P, 4, S/4, S/4).

        Args:
            features: of the hybrid encoder, B images.
            unit_xy: (B, P, T, 2) clicks in [0, 1].
            labels: (B, P, T).
        """
        high4 = features.high_res[-1]
        maps = []
        for keys in (self.affinity16(features.embedding), self.affinity4(high4)):
            keys = _unit_vectors(keys)
            under = _unit_vectors(F.grid_sample(keys, (2 * unit_xy - 1).to(keys.dtype), align_corners=False))
            similarity = torch.einsum("bdpt,bdhw->bpthw", under, keys)
            for label in (POSITIVE, NEGATIVE):
                chosen = (labels == label)[..., None, None]
                # The most similar click counts; without any click of this sign the map is empty.
                strongest = similarity.masked_fill(~chosen, -1.0).amax(dim=2)
                maps.append(torch.where(chosen.any(dim=2), strongest, 0.0))
        coarse = torch.stack(maps[:2], dim=2)
        fine = torch.stack(maps[2:], dim=2)
        enlarged = F.interpolate(coarse.flatten(0, 1), size=high4.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat([enlarged.unflatten(0, labels.shape[:2]), fine], dim=2)

    @staticmethod
    def _draw_boxes(xy: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
        """Fill each box's interior, softly at its edges so that sub-pixel boxes are seen: (B, P, side, side)."""
        low = (xy * (labels == TOP_LEFT).unsqueeze(-1)).sum(2)
        high = (xy * (labels == BOTTOM_RIGHT).unsqueeze(-1)).sum(2)
        has_box = (labels == TOP_LEFT).any(2).float()[..., None, None]
        inside = [
            ((centres - low[..., i : i + 1] + 0.5).clamp(0, 1) * (high[..., i : i + 1] - centres + 0.5).clamp(0, 1))
            for i in (0, 1)
        ]
        return inside[1].unsqueeze(-1) * inside[0].unsqueeze(-2) * has_box


def _unit_vectors(maps: Tensor) -> Tensor:
    """Bring the vectors of (B, C, H, W) maps to length 1: `F.normalize`, whose norm over channels is slow on a CPU."""
    maps = maps.float()
    return maps * (maps.square().sum(dim=1, keepdim=True) + 1e-16).rsqrt()
