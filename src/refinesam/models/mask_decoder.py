"""Mask decoders: tokens for masks and IoU through the two-way transformer, hypernetworks onto upscaled features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.layers import LayerNorm2d, Upscale2d
from refinesam.models.prompt_encoder import DRAWN_MAPS
from refinesam.models.transformer import EfficientSamMlp, Flavour, TwoWayTransformer

__all__ = ["EfficientSamMaskDecoder", "HybridMaskDecoder", "SamMaskDecoder"]

EMBED_DIM = 256
MULTIMASK_OUTPUTS = 3
# Of predicted IoU, see `merged_mask`.
MERGING_TEMPERATURE = 0.05


class SamHead(nn.Module):
    """SAM's MLP head: three linear layers with ReLU."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., out)."""
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


class MaskDecoder(nn.Module):
    """What the three decoders share; a subclass upscales the image features to stride 4.

    Of SAM's four mask tokens, 0 makes the single mask for an unambiguous prompt, 1 to 3 the multimask output.
    """

    def __init__(self, flavour: Flavour, masks: int = 1 + MULTIMASK_OUTPUTS) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(EMBED_DIM, flavour=flavour)
        self.iou_token = nn.Embedding(1, EMBED_DIM)
        self.mask_tokens = nn.Embedding(masks, EMBED_DIM)
        if flavour == "sam":
            self.output_hypernetworks_mlps = nn.ModuleList(SamHead(EMBED_DIM, EMBED_DIM, 32) for _ in range(masks))
            self.iou_prediction_head: nn.Module = SamHead(EMBED_DIM, 256, masks)
        else:
            self.output_hypernetworks_mlps = nn.ModuleList(
                EfficientSamMlp(EMBED_DIM, EMBED_DIM, 32, layers=2) for _ in range(masks)
            )
            self.iou_prediction_head = EfficientSamMlp(EMBED_DIM, 256, masks, layers=2)

    def tokens_with(self, sparse: Tensor) -> Tensor:
        """Put the IoU and mask tokens in front of prompt tokens (B, P, T, C)."""
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([own.expand(*sparse.shape[:2], -1, -1), sparse], dim=2)

    def heads(self, tokens: Tensor, upscaled: Tensor, multimask_output: bool) -> tuple[Tensor, Tensor]:
        """Turn tokens (B, P, T, C) and upscaled features (B, P, 32, h, w) into masks and IoU predictions.

        Returns:
            Logits (B, P, C, h, w) and predicted IoUs (B, P, C); C is 3, or 1 without `multimask_output`.
        """
        chosen = range(1, 1 + MULTIMASK_OUTPUTS) if multimask_output else range(1)
        iou = self.iou_prediction_head(tokens[:, :, 0])[..., chosen.start : chosen.stop]
        return self.masks(tokens, upscaled, chosen), iou

    def masks(self, tokens: Tensor, upscaled: Tensor, chosen: range) -> Tensor:
        """Make the chosen masks, and no others: (B, P, C, h, w) logits."""
        weights = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, :, 1 + i]) for i in chosen], dim=2)
        return (weights @ upscaled.flatten(3)).unflatten(-1, upscaled.shape[-2:])


def best_mask(logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """Of masks (B, P, C, h, w) take the one with the highest predicted IoU (B, P, C)."""
    best = iou.argmax(dim=-1, keepdim=True)
    return logits.take_along_dim(best[..., None, None], dim=2), iou.take_along_dim(best, dim=2)


def merged_mask(logits: Tensor, iou: Tensor, temperature: float = MERGING_TEMPERATURE) -> Tensor:
    """Average masks (B, P, C, h, w) by what their predicted IoUs (B, P, C) make of them: (B, P, h, w) logits.

    Masks with close scores are mostly drafts of one object, and their mean is better than any; a mask with a clearly
    higher score stands alone.
    """
    weights = (iou.float() / temperature).softmax(dim=-1)
    return (weights[..., None, None].to(logits.dtype) * logits).sum(dim=2)


def with_merged_best(logits: Tensor, iou: Tensor, temperature: float = MERGING_TEMPERATURE) -> Tensor:
    """Put the merged mask in the place of the one with the highest predicted IoU."""
    best = iou.argmax(dim=-1)[..., None, None, None].expand(-1, -1, 1, *logits.shape[-2:])
    return logits.scatter(2, best, merged_mask(logits, iou, temperature).unsqueeze(2))


class MaskScoreHead(nn.Module):
    """Predicts each mask's IoU from its token and from the mask itself.

    SAM's head sees one token and none of the masks. A small model's masks differ widely in quality, and most of that
    shows: does the mask cover the clicks and fill the box, is what it covers alike, is it stable, in one piece, and do
    the other masks agree with it?
    """

    def __init__(self) -> None:
        super().__init__()
        evidence = 2 * (32 + DRAWN_MAPS) + 5
        self.mlp = EfficientSamMlp(2 * EMBED_DIM + evidence, 256, 1, layers=2)

    def forward(self, tokens: Tensor, logits: Tensor, maps: Tensor) -> Tensor:
        """Predict IoUs (B, P, C).

        Args:
            tokens: (B, P, T, 256); the IoU token, then the mask tokens.
            logits: (B, P, C, h, w).
            maps: (B, P, 43, h, w), the decoder's upscaled features and the drawn prompts.
        """
        masks = logits.shape[2]
        # The score must not shape the masks.
        evidence = self.evidence(logits.detach().float(), maps.detach().float()).to(tokens.dtype)
        shared = tokens[:, :, :1].expand(-1, -1, masks, -1)
        return self.mlp(torch.cat([shared, tokens[:, :, 1 : 1 + masks], evidence], dim=-1)).squeeze(-1)

    @staticmethod
    def evidence(logits: Tensor, maps: Tensor) -> Tensor:
        """What a mask shows: (B, P, C, 2 * 43 + 5)."""
        inside = logits.sigmoid()
        area = inside.sum(dim=(-2, -1))
        covered = torch.einsum("bpchw,bpkhw->bpck", inside, maps)
        total = maps.abs().sum(dim=(-2, -1)).unsqueeze(2)
        mean_inside = covered / (area.unsqueeze(-1) + 1)
        share_covered = covered / (total + 1)
        stability = (logits > 1).sum(dim=(-2, -1)) / (logits > -1).sum(dim=(-2, -1)).clamp(min=1)
        outline = inside.diff(dim=-1).abs().sum(dim=(-2, -1)) + inside.diff(dim=-2).abs().sum(dim=(-2, -1))
        both = torch.einsum("bpchw,bpdhw->bpcd", inside, inside)
        agreement = both / (area.unsqueeze(-1) + area.unsqueeze(-2) - both + 1)
        statistics = [
            (area / inside[0, 0, 0].numel() + 1e-4).log() / 4,
            stability,
            outline / (4 * (area + 1).sqrt()),
            inside.square().sum(dim=(-2, -1)) / (area + 1e-4),
            (agreement.sum(dim=-1) - agreement.diagonal(dim1=-2, dim2=-1)) / 2,
        ]
        return torch.cat([mean_inside, share_covered, torch.stack(statistics, dim=-1)], dim=-1)


def _as_tokens(maps: Tensor) -> Tensor:
    return maps.flatten(-2).transpose(-1, -2)


def _as_maps(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, P, N, C) tokens -> (B * P, C, h, w) maps of the size of `like`."""
    return tokens.flatten(0, 1).transpose(1, 2).unflatten(-1, like.shape[-2:])


class SamMaskDecoder(MaskDecoder):
    """SAM's mask decoder."""

    def __init__(self) -> None:
        super().__init__("sam")
        self.output_upscaling = nn.Sequential(
            Upscale2d(EMBED_DIM, 64),
            LayerNorm2d(64),
            nn.GELU(),
            Upscale2d(64, 32),
            nn.GELU(),
        )

    def forward(
        self,
        features: ImageFeatures,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        multimask_output: bool,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts: sparse tokens (B, P, T, 256), dense (B or 1, P or 1, 256, h, w), image_pe (N, 256).

        `valid` (B, P, T) says which tokens count; None means all, padding too, as SAM was trained.
        """
        embedding = features.embedding
        image = _as_tokens(embedding.unsqueeze(1) + dense)
        if valid is not None:
            valid = F.pad(valid, (self.iou_token.num_embeddings + self.mask_tokens.num_embeddings, 0), value=True)
        tokens, image = self.transformer(image, image_pe, self.tokens_with(sparse), valid)
        upscaled = self.output_upscaling(_as_maps(image, embedding))
        return self.heads(tokens, upscaled.unflatten(0, sparse.shape[:2]), multimask_output)


class EfficientSamMaskDecoder(MaskDecoder):
    """The released EfficientSAM's mask decoder."""

    def __init__(self) -> None:
        super().__init__("efficientsam")
        self.final_output_upscaling_layers = nn.ModuleList(
            [
                nn.Sequential(Upscale2d(EMBED_DIM, 64), nn.GroupNorm(1, 64), nn.GELU()),
                nn.Sequential(Upscale2d(64, 32), nn.Identity(), nn.GELU()),
            ]
        )

    def forward(
        self, features: ImageFeatures, image_pe: Tensor, sparse: Tensor, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """Decode sparse prompt tokens (B, P, T, 256) on an image; image_pe is (N, 256)."""
        embedding = features.embedding
        tokens, image = self.transformer(_as_tokens(embedding).unsqueeze(1), image_pe, self.tokens_with(sparse))
        upscaled = _as_maps(image, embedding)
        for layer in self.final_output_upscaling_layers:
            upscaled = layer(upscaled)
        return self.heads(tokens, upscaled.unflatten(0, sparse.shape[:2]), multimask_output)


class HybridMaskDecoder(MaskDecoder):
    """Our mask decoder: EfficientSAM's, with the stem's and the drawn prompts' maps added while upscaling.

    Its IoU head also sees the masks that it judges: see `MaskScoreHead`.
    """

    def __init__(self) -> None:
        super().__init__("efficientsam", masks=MULTIMASK_OUTPUTS)
        self.iou_prediction_head = MaskScoreHead()
        self.merging_temperature = MERGING_TEMPERATURE
        self.upscale8 = Upscale2d(EMBED_DIM, 64)
        self.fuse8 = nn.Sequential(nn.GroupNorm(1, 64), nn.GELU())
        self.upscale4 = Upscale2d(64, 32)
        # Separable: a full 3x3 convolution here would cost as much per prompt as the whole transformer.
        self.fuse4 = nn.Sequential(
            nn.GELU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1), nn.GELU()
        )

    def forward(
        self,
        features: ImageFeatures,
        image_pe: Tensor,
        sparse: Tensor,
        dense: tuple[Tensor, Tensor, Tensor],
        drawn: Tensor,
        valid: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts: sparse tokens (B, P, T, 256), dense maps (B * P, C, side, side) at strides 16, 8, 4.

        `drawn` (B, P, 11, S/4, S/4) are the prompts as they were drawn; `valid` (B, P, T) says which tokens are prompts
        and which padding. Padding changes nothing, so a prompt's answer does not depend on those beside it.
        """
        batch_prompts = sparse.shape[:2]
        dense16, dense8, dense4 = (d.unflatten(0, batch_prompts) for d in dense)
        embedding = features.embedding
        high8, high4 = features.high_res
        image = _as_tokens(embedding.unsqueeze(1) + dense16)
        own = self.iou_token.num_embeddings + self.mask_tokens.num_embeddings
        tokens, image = self.transformer(image, image_pe, self.tokens_with(sparse), F.pad(valid, (own, 0), value=True))
        x = self.upscale8(_as_maps(image, embedding))
        x = self.fuse8(x + (high8.unsqueeze(1) + dense8).flatten(0, 1))
        x = self.upscale4(x)
        x = self.fuse4(x + (high4.unsqueeze(1) + dense4).flatten(0, 1))
        upscaled = x.unflatten(0, batch_prompts)
        logits = self.masks(tokens, upscaled, range(MULTIMASK_OUTPUTS))
        iou = self.iou_prediction_head(tokens, logits, torch.cat([upscaled, drawn], dim=2))
        if not self.training:
            logits = with_merged_best(logits, iou, self.merging_temperature)
        return (logits, iou) if multimask_output else best_mask(logits, iou)
