"""Masked autoencoding (He et al., CVPR 2022), the baseline that SAMI is compared with: the target is the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refinesam.models.image_encoder import PATCH_SIZE, LightEncoder
from refinesam.models.layers import Block
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

__all__ = ["PIXELS_PER_PATCH", "Mae", "pixel_targets"]

PIXELS_PER_PATCH = 3 * PATCH_SIZE**2


def pixel_targets(pixels: Tensor, normalise_patches: bool) -> Tensor:
    """Cut images into patches: (B, 3, S, S) -> (B, N, 768), a patch's pixels row by row, channels last.

    Args:
        pixels: normalised.
        normalise_patches: each patch gets mean 0 and variance 1 of its own (MAE, section 3, "reconstruction target").
    """
    batch, channels, side, _ = pixels.shape
    grid = side // PATCH_SIZE
    patches = pixels.view(batch, channels, grid, PATCH_SIZE, grid, PATCH_SIZE)
    patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid**2, PIXELS_PER_PATCH)
    if not normalise_patches:
        return patches
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()


class Mae(nn.Module):
    """Asymmetric autoencoder: the encoder sees the visible patches, a self-attention decoder sees all tokens."""

    def __init__(self, encoder: LightEncoder, decoder: DecoderShape, grid: int) -> None:
        """Build the model around an encoder, which gets new weights.

        Args:
            encoder: the student.
            decoder: size of the decoder.
            grid: patches along each side of an image, 14 for 224 pixels.
        """
        super().__init__()
        self.encoder = encoder
        # MAE's encoder ends in a norm. EfficientSAM's has none, so it stands here and goes with the decoder.
        self.encoder_norm = nn.LayerNorm(width_of(encoder), eps=1e-6)
        self.embed = nn.Linear(width_of(encoder), decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.register_buffer("positions", positions_2d(decoder.width, grid), persistent=False)
        self.blocks = nn.ModuleList(Block(decoder.width, decoder.heads) for _ in range(decoder.depth))
        self.norm = nn.LayerNorm(decoder.width, eps=1e-6)
        self.head = nn.Linear(decoder.width, PIXELS_PER_PATCH)
        initialise_like_mae(self)
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions: Tensor

    def forward(self, pixels: Tensor, target: Tensor, masking: Masking) -> Tensor:
        """Mean squared error per pixel, over the masked patches alone.

        Args:
            pixels: normalised, (B, 3, S, S).
            target: of `pixel_targets`, (B, N, 768).
            masking: which of the N patches the encoder sees.

        Returns:
            The loss, a scalar.
        """
        error = gather_tokens(target - self.reconstruct(pixels, masking), masking.masked)
        return error.square().mean()

    def reconstruct(self, pixels: Tensor, masking: Masking) -> Tensor:
        """Return every patch's pixels as the decoder has them: (B, 3, S, S) -> (B, N, 768), in image order."""
        visible = self.embed(self.encoder_norm(encode_visible(self.encoder, pixels, masking)))
        mask_tokens = self.mask_token.expand(*masking.masked.shape, -1)
        tokens = merge_tokens(visible, mask_tokens, masking) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)).float()
