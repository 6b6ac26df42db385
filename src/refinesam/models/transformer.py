"""The two-way transformer of SAM's mask decoder (Kirillov et al. 2023, figure 14), in SAM's and EfficientSAM's form."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.models.layers import attention

__all__ = ["CrossAttention", "Flavour", "TwoWayTransformer"]

# SAM and EfficientSAM publish the same transformer with other activations, residuals and parameter names.
Flavour = Literal["sam", "efficientsam"]


class CrossAttention(nn.Module):
    """Multi-head attention with separate projections; the inner width may be smaller than the outer."""

    def __init__(self, width: int, heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = width // downsample_rate
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> Tensor:
        """Attend from q to k, v.

        Args:
            q: (B, P, N, C).
            k: (B, P', M, C).
            v: (B, P', M, C); P and P' are equal or 1. What has one entry for all prompts is projected only once.
            valid: (B, P, M), which of k, v are attended to; None means all.

        Returns:
            (B, max(P, P'), N, C).
        """
        if not self.training and not torch.is_grad_enabled() and q.shape[1] == k.shape[1]:
            # A map of one image for each prompt: its projections would cost most of the decoder.
            few = self.q_proj.out_features // self.heads
            if q.shape[2] < few <= k.shape[2]:
                return self._tokens_to_image(q, k, v, valid)
            if k.shape[2] < few <= q.shape[2]:
                return self._image_to_tokens(q, k, v, valid)
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        prompts = max(q.shape[1], k.shape[1])
        # Flat batches take the fused kernel; five dimensions would not.
        q, k, v = self._flat(q, prompts), self._flat(k, prompts), self._flat(v, prompts)
        mask = None if valid is None else valid.flatten(0, 1)[:, None, None]
        out = attention(q, k, v, mask)
        batch = out.shape[0] // prompts
        out = out.transpose(1, 2).reshape(batch, prompts, out.shape[2], -1)
        return self.out_proj(out)

    def _tokens_to_image(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """Attend from few to many, exactly, without projecting the many: q (W k) = (q W) k, and W sums = sum W.

        The keys' bias adds the same to all scores of a query, which softmax leaves out.
        """
        queries = self._split(self.q_proj(q)) * (self.q_proj.out_features // self.heads) ** -0.5
        queries = queries @ self.k_proj.weight.unflatten(0, (self.heads, -1))
        scores = queries.flatten(2, 3) @ k.mT
        if valid is not None:
            scores = scores.masked_fill(~valid[:, :, None], -torch.inf)
        attended = (scores.softmax(dim=-1).to(v.dtype) @ v).unflatten(2, queries.shape[2:4])
        out = attended @ self.v_proj.weight.unflatten(0, (self.heads, -1)).mT
        return self.out_proj(out.transpose(2, 3).flatten(3) + self.v_proj.bias)

    def _image_to_tokens(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
        """Attend from many to few, exactly, without projecting the many before or after."""
        keys = self._split(self.k_proj(k)) * (self.q_proj.out_features // self.heads) ** -0.5
        bias = keys @ self.q_proj.bias.unflatten(0, (self.heads, -1, 1))
        keys = keys @ self.q_proj.weight.unflatten(0, (self.heads, -1))
        # Tokens before pixels: softmax over so few is several times as fast with the pixels innermost.
        scores = (keys.flatten(2, 3) @ q.mT).unflatten(2, keys.shape[2:4]) + bias
        if valid is not None:
            scores = scores.masked_fill(~valid[:, :, None, :, None], -torch.inf)
        values = self._split(self.v_proj(v)) @ self.out_proj.weight.T.unflatten(0, (self.heads, -1))
        return scores.softmax(dim=3).flatten(2, 3).mT.to(values.dtype) @ values.flatten(2, 3) + self.out_proj.bias

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    @staticmethod
    def _flat(x: Tensor, prompts: int) -> Tensor:
        return x.expand(-1, prompts, -1, -1, -1).flatten(0, 1)


class SamMlp(nn.Module):
    """SAM's MLP block: ReLU, parameters `lin1` and `lin2`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.lin2(F.relu(self.lin1(x)))


class EfficientSamMlp(nn.Module):
    """EfficientSAM's MLP: GELU after every layer of `layers`, then `fc`."""

    def __init__(self, width: int, hidden: int, out: int, layers: int) -> None:
        super().__init__()
        widths = [width] + [hidden] * layers
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.fc = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        for layer in self.layers:
            x = layer(x)
        return self.fc(x)


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, tokens to image, MLP, image to tokens."""

    def __init__(self, width: int, heads: int, mlp_width: int, flavour: Flavour, first: bool) -> None:
        super().__init__()
        self.flavour, self.first = flavour, first
        self.self_attn = CrossAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = CrossAttention(width, heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = SamMlp(width, mlp_width) if flavour == "sam" else EfficientSamMlp(width, mlp_width, width, layers=1)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = CrossAttention(width, heads, downsample_rate=2)

    def _attend_to_self(self, queries: Tensor, query_pe: Tensor, valid: Tensor | None) -> Tensor:
        if self.flavour == "efficientsam":
            # The position goes into queries, keys, values and the residual alike.
            if not self.first:
                queries = queries + query_pe
            return queries + self.self_attn(queries, queries, queries, valid)
        if self.first:
            # SAM's first layer has no residual here.
            return self.self_attn(queries, queries, queries, valid)
        q = queries + query_pe
        return queries + self.self_attn(q, q, queries, valid)

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Update tokens (B, P, T, C) and image (B, P or 1, N, C); `valid` (B, P, T) says which tokens count."""
        queries = self.norm1(self._attend_to_self(queries, query_pe, valid))
        keys_at = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, keys_at, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(keys_at, queries + query_pe, queries, valid))
        return queries, keys


class TwoWayTransformer(nn.Module):
    """Tokens and image attend to each other, twice; then the tokens look at the image once more."""

    def __init__(
        self, width: int = 256, heads: int = 8, mlp_width: int = 2048, depth: int = 2, flavour: Flavour = "sam"
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(width, heads, mlp_width, flavour, first=index == 0) for index in range(depth)
        )
        self.final_attn_token_to_image = CrossAttention(width, heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, image_pe: Tensor, tokens: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decode tokens against an image.

        Args:
            image: (B, P or 1, N, C); one entry for all prompts when no prompt changed the image embedding.
            image_pe: (1, 1, N, C).
            tokens: (B, P, T, C).
            valid: (B, P, T), which tokens the others and the image attend to; None means all.

        Returns:
            Tokens (B, P, T, C) and image (B, P, N, C).
        """
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, image_pe, valid)
        attended = self.final_attn_token_to_image(queries + tokens, keys + image_pe, keys)
        return self.norm_final_attn(queries + attended), keys
