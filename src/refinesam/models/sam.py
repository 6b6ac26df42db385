"""Segment Anything (Kirillov et al. 2023) in the layout of the released checkpoints."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from refinesam.models.config import ModelConfig
from refinesam.models.image_encoder import PATCH_SIZE, ImageFeatures
from refinesam.models.mask_decoder import SamMaskDecoder
from refinesam.models.prompt_encoder import PADDING, TOP_LEFT, SamPromptEncoder
from refinesam.models.promptable import PromptableModel
from refinesam.models.sam_image_encoder import SamImageEncoder
from refinesam.models.tiny_vit import TinyViT

__all__ = ["Sam"]


class Sam(PromptableModel):
    """SAM with a ViT-B, ViT-L or ViT-H image encoder, or with MobileSAM's TinyViT."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.image_encoder = TinyViT() if config.encoder == "tiny_vit" else SamImageEncoder(config)
        self.prompt_encoder = SamPromptEncoder()
        self.mask_decoder = SamMaskDecoder()

    def decode(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts as `PromptableModel.decode`; T may be 0 beside a mask prompt."""
        points, labels = _with_padding_point(points, labels)
        side = features.embedding.shape[-1]
        padding = self.prompt_encoder.not_a_point_embed.weight
        sparse = self.prompt_encoder.embed_points(points, labels, side * PATCH_SIZE, padding)
        dense = self.prompt_encoder.embed_masks(mask_logits)
        image_pe = self.prompt_encoder.pe_layer.grid(side)
        logits, iou = self.mask_decoder(features, image_pe, sparse, dense, multimask_output)
        return logits, iou


def _with_padding_point(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Append one padding point where a prompt of clicks has none: SAM was trained with it whenever there is no box.

    Prompts of different lengths were already padded to one length. The reference decodes only prompts of equal length;
    every padding point beyond the first changes a prompt's masks a little.
    """
    if labels.shape[-1] == 0 or ((labels == TOP_LEFT) | (labels == PADDING)).any(-1).all():
        return points, labels
    return F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=PADDING)
