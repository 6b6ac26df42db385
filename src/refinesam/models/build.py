"""From a configuration to a model."""

from __future__ import annotations

import torch
from torch import Tensor

from refinesam.models.config import PIXEL_MEAN, PIXEL_STD, ModelConfig
from refinesam.models.efficient_sam import EfficientSam, HybridSam
from refinesam.models.promptable import PromptableModel
from refinesam.models.sam import Sam

__all__ = ["build_model", "normalise"]

_FAMILIES: dict[str, type[PromptableModel]] = {"efficientsam": EfficientSam, "sam": Sam, "hybrid": HybridSam}


def build_model(config: ModelConfig) -> PromptableModel:
    """Build a model with random weights."""
    return _FAMILIES[config.family](config)


def normalise(pixels: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) RGB in 0..255 as every model expects it."""
    mean = torch.tensor(PIXEL_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(PIXEL_STD, device=pixels.device).view(3, 1, 1)
    return (pixels.float() - mean) / std
