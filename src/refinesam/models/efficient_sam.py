"""The light models: the released EfficientSAM, and our hybrid under the same interface."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from refinesam.models.config import ModelConfig
from refinesam.models.image_encoder import (
    PATCH_SIZE,
    ImageFeatures,
    LiteHybridEncoder,
    PlainHybridEncoder,
    ViTEncoder,
)
from refinesam.models.mask_decoder import EfficientSamMaskDecoder, HybridMaskDecoder
from refinesam.models.prompt_encoder import PADDING, DrawnPromptEncoder, EfficientSamPromptEncoder
from refinesam.models.promptable import PromptableModel

__all__ = ["EfficientSam", "HybridSam"]


class EfficientSam(PromptableModel):
    """EfficientSAM in the layout of the released checkpoints (Xiong et al., CVPR 2024)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.image_encoder = ViTEncoder(config)
        self.prompt_encoder = EfficientSamPromptEncoder()
        self.mask_decoder = EfficientSamMaskDecoder()

    def decode(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts as `PromptableModel.decode`; mask_logits must be None."""
        if mask_logits is not None:
            raise ValueError(f"{self.config.name} takes no mask prompt.")
        side = features.embedding.shape[-1]
        sparse = self.prompt_encoder(points, labels, side * PATCH_SIZE)
        image_pe = self.prompt_encoder.pe_layer.grid(side)
        logits, iou = self.mask_decoder(features, image_pe, sparse, multimask_output)
        return logits, iou


class HybridSam(PromptableModel):
    """Our model: convolutions under a ViT, drawn prompts, negative clicks and mask prompts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.image_encoder = PlainHybridEncoder(config) if config.stem == "plain" else LiteHybridEncoder(config)
        self.prompt_encoder = DrawnPromptEncoder()
        self.mask_decoder = HybridMaskDecoder()

    def decode(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts as `PromptableModel.decode`."""
        if points.shape[2] == 0:
            # A mask alone: maxima over the points need one, and padding changes nothing.
            points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=PADDING)
        side = features.embedding.shape[-1]
        sparse, dense, drawn = self.prompt_encoder(features, points, labels, mask_logits, side * PATCH_SIZE)
        image_pe = self.prompt_encoder.pe_layer.grid(side)
        logits, iou = self.mask_decoder(features, image_pe, sparse, dense, drawn, labels != PADDING, multimask_output)
        return logits, iou
