"""SAM-leveraged masked image pretraining (Xiong et al., "EfficientSAM", CVPR 2024, section 3.2).

A light encoder sees a quarter of an image's patches; from them, a decoder and a linear head reconstruct what a frozen
teacher, SAM's image encoder, makes of the whole image. Decoder and head are thrown away afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refinesam.models.image_encoder import LightEncoder
from refinesam.models.layers import Mlp, attention
from refinesam.training.pretrain.masked import (
    DecoderShape,
    Masking,
    encode_visible,
    gather_tokens,
    initialise_like_mae,
    merge_tokens,
    positions_2d,
    width_of,
)

__all__ = ["CrossAttention", "CrossAttentionBlock", "CrossAttentionDecoder", "Sami"]


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """(B, M, C) attending to (B, N, C) -> (B, M, C)."""
        q = self.q(queries).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class CrossAttentionBlock(nn.Module):
    """Pre-norm block in which masked tokens ask, and visible and masked tokens answer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, masked: Tensor, visible: Tensor) -> Tensor:
        """(B, M, C) beside (B, V, C), which stays as it is -> (B, M, C)."""
        context = self.norm1(torch.cat([visible, masked], dim=1))
        masked = masked + self.attn(context[:, visible.shape[1] :], context)
        return masked + self.mlp(self.norm2(masked))


class CrossAttentionDecoder(nn.Module):
    """MAE's decoder with the masked tokens as its only queries; the encoder's tokens anchor the reconstruction."""

    def __init__(self, shape: DecoderShape, grid: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_buffer("positions", positions_2d(shape.width, grid), persistent=False)
        self.blocks = nn.ModuleList(CrossAttentionBlock(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions: Tensor

    def forward(self, visible: Tensor, masking: Masking) -> Tensor:
        """Reconstruct the masked tokens: (B, V, C) of the visible ones -> (B, M, C)."""
        visible = visible + gather_tokens(self.positions, masking.visible)
        masked = self.mask_token + gather_tokens(self.positions, masking.masked)
        for block in self.blocks:
            masked = block(masked, visible)
        return self.norm(masked)


class Sami(nn.Module):
    """Encoder, decoder and head with the weights W_e, W_d and W_theta of equation 2.

    Between encoder and decoder stand a norm and a linear layer that adapts the width, as in MAE; what they make of the
    visible tokens is what the decoder attends to and what is merged with its output. The paper names neither; without
    the norm the first gradients are some ten times as long. EfficientSAM's encoder itself has no last norm, so this one
    goes with the decoder.
    """

    def __init__(self, encoder: LightEncoder, decoder: DecoderShape, target_dim: int, grid: int) -> None:
        """Build the model around an encoder, which gets new weights.

        Args:
            encoder: the student.
            decoder: size of the decoder.
            target_dim: D, channels of the teacher's features; 1280 for SAM's ViT-H before its neck.
            grid: patches along each side of an image, 14 for 224 pixels.
        """
        super().__init__()
        self.encoder = encoder
        self.encoder_norm = nn.LayerNorm(width_of(encoder), eps=1e-6)
        self.embed = nn.Linear(width_of(encoder), decoder.width)
        self.decoder = CrossAttentionDecoder(decoder, grid)
        self.head = nn.Linear(decoder.width, target_dim)
        initialise_like_mae(self)

    def forward(self, pixels: Tensor, target: Tensor, masking: Masking) -> Tensor:
        """Equation 2, L = 1/N sum_j ||f_sam(x)_j - f_h(x)_j||^2 over all N tokens, masked and visible.

        The squared norm is the mean over channels, as the paper's "MSE" has it.

        Args:
            pixels: x, normalised, (B, 3, S, S).
            target: f_sam(x), the teacher's features, (B, N, D).
            masking: which of the N patches the student sees.

        Returns:
            The loss, a scalar.
        """
        return (target - self.reconstruct(pixels, masking)).square().mean()

    def reconstruct(self, pixels: Tensor, masking: Masking) -> Tensor:
        """Return f_h(x): (B, 3, S, S) -> (B, N, D), in image order."""
        visible = self.embed(self.encoder_norm(encode_visible(self.encoder, pixels, masking)))
        masked = self.decoder(visible, masking)
        return self.head(merge_tokens(visible, masked, masking)).float()
