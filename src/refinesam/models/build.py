"""From a configuration to a model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from refinesam.models.config import PIXEL_MEAN, PIXEL_STD, ModelConfig
from refinesam.models.efficient_sam import EfficientSam, HybridSam
from refinesam.models.image_encoder import ImageFeatures

__all__ = ["PromptableModel", "build_model", "normalise"]


class PromptableModel(Protocol):
    """What every model family offers to the predictor and to training."""

    config: ModelConfig

    def encode(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (B, 3, S, S)."""
        ...

    def decode(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts into logits (B, P, C, S/4, S/4) and predicted IoUs (B, P, C)."""
        ...


def build_model(config: ModelConfig) -> nn.Module:
    """Build a model with random weights; it is a `PromptableModel`."""
    return HybridSam(config) if config.family == "hybrid" else EfficientSam(config)


def normalise(pixels: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) RGB in 0..255 as every model expects it."""
    mean = torch.tensor(PIXEL_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=pixels.device).view(3, 1, 1)
    return (pixels.float() - mean) / std
