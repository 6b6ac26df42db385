"""What masked image pretraining shares: which patches are hidden, the student that never sees them, positions.

After He et al., "Masked autoencoders are scalable vision learners" (CVPR 2022), section 3 and appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from refinesam.models.image_encoder import PATCH_SIZE, LightEncoder

__all__ = [
    "DecoderShape",
    "Masking",
    "encode_visible",
    "gather_tokens",
    "initialise_like_mae",
    "merge_tokens",
    "positions_2d",
    "random_masking",
    "width_of",
]


class Masking(NamedTuple):
    """Which patches of each image are visible and which are masked: indices in image order, row by row, ascending.

    visible: (B, V) int64. masked: (B, M) int64, V + M = N.
    """

    visible: Tensor
    masked: Tensor

    def to(self, device: torch.device) -> Masking:
        """Return the same on a device."""
        return Masking(self.visible.to(device), self.masked.to(device))


@dataclass(frozen=True)
class DecoderShape:
    """Size of the decoder that is thrown away after pretraining.

    Attributes:
        width, depth, heads: of its transformer blocks; those of MAE's decoder by default.
    """

    width: int = 512
    depth: int = 8
    heads: int = 16


def random_masking(noise: Tensor, ratio: float) -> Masking:
    """Choose for every image which of its patches are masked, uniformly.

    As many patches as MAE leaves visible, int((1 - ratio) N) but at least one, are those of least noise.

    Args:
        noise: (B, N), independent and uniform.
        ratio: share of the patches that is masked.
    """
    visible = max(1, int(noise.shape[1] * (1 - ratio)))
    order = noise.argsort(dim=1, stable=True)
    return Masking(order[:, :visible].sort(dim=1).values, order[:, visible:].sort(dim=1).values)


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Take some tokens of each image: (B or 1, N, C) at (B, V) -> (B, V, C)."""
    tokens = tokens.expand(len(indices), -1, -1)
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def merge_tokens(visible: Tensor, masked: Tensor, masking: Masking) -> Tensor:
    """Put tokens back in image order: (B, V, C) and (B, M, C) -> (B, N, C)."""
    place_of = torch.cat(masking, dim=1).argsort(dim=1)
    return gather_tokens(torch.cat([visible, masked], dim=1), place_of)


def encode_visible(encoder: LightEncoder, pixels: Tensor, masking: Masking) -> Tensor:
    """Encode the visible patches alone: normalised pixels (B, 3, S, S) -> (B, V, C).

    Masked patches are blanked first. A plain ViT's patches do not overlap, so nothing changes for it; a convolutional
    stem would carry them into their visible neighbours.
    """
    grid = pixels.shape[-1] // PATCH_SIZE
    shown = torch.zeros(len(pixels), grid**2, device=pixels.device, dtype=pixels.dtype)
    shown = shown.scatter(1, masking.visible, 1.0).view(-1, 1, grid, grid)
    shown = shown.repeat_interleave(PATCH_SIZE, dim=2).repeat_interleave(PATCH_SIZE, dim=3)
    tokens = encoder.embed(pixels * shown).flatten(1, 2)
    return encoder.run_blocks(gather_tokens(tokens, masking.visible))


def width_of(encoder: LightEncoder) -> int:
    """Channels of an encoder's tokens."""
    return encoder.pos_embed.shape[-1]


def positions_2d(width: int, grid: int) -> Tensor:
    """Fixed sine-cosine positions of a square grid: (1, grid * grid, width), width a multiple of 4.

    Half of the channels tell the row, half the column; of each, half are sines and half cosines, of wavelengths from
    2 pi to 10000 * 2 pi (Vaswani et al. 2017, section 3.5; MAE uses the same in two dimensions).
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = axis[:, None].expand(grid, grid, -1), axis[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).view(1, grid * grid, width).float()


@torch.no_grad()
def initialise_like_mae(model: nn.Module) -> None:
    """Draw first weights as MAE does: Xavier uniform for linear layers and the patch embedding, biases zero.

    An encoder's position embedding starts at sine-cosine positions, and is then trained: the released EfficientSAM's
    is a parameter, and finetuning resizes it to a larger grid.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size[0] == PATCH_SIZE):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, LightEncoder):
            _start_positions(module.pos_embed)


def _start_positions(pos_embed: Tensor) -> None:
    """Fill (1, [1 +] g * g, C), with a class token's slot in front, or (1, g, g, C)."""
    width = pos_embed.shape[-1]
    flat = pos_embed.view(-1, width)
    grid = int(len(flat) ** 0.5)
    flat.zero_()
    flat[len(flat) - grid**2 :] = positions_2d(width, grid)[0]
