"""What every model family offers to the predictor and to training."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from refinesam.models.config import ModelConfig
from refinesam.models.image_encoder import ImageFeatures

__all__ = ["PromptableModel"]


class PromptableModel(nn.Module, ABC):
    """A promptable segmentation model: `image_encoder`, `prompt_encoder`, `mask_decoder`."""

    image_encoder: nn.Module

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (B, 3, S, S)."""
        features: ImageFeatures = self.image_encoder(pixels)
        return features

    @abstractmethod
    def decode(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts.

        Args:
            features: of B images.
            points: (B, P, T, 2) in pixels of the model's input.
            labels: (B, P, T); 1 on, 0 not on the object, 2 / 3 box corners, -1 padding.
            mask_logits: (B, P, S/4, S/4) logits of an earlier prediction, or None. A model whose capabilities have no
                mask_prompt must be given None.
            multimask_output: three masks, or one.

        Returns:
            Logits (B, P, C, S/4, S/4) and predicted IoUs (B, P, C).
        """
