"""The table of model variants, over one dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from refinesam.errors import WeightsError
from refinesam.types import Capabilities

__all__ = ["CONFIGS", "LITE_STEMS", "PIXEL_MEAN", "PIXEL_STD", "LiteStem", "ModelConfig", "config_named"]

# Mean and standard deviation of RGB in 0..255, the same for every variant (SAM's constants; EfficientSAM's times 255).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
LiteStem = Literal["lite0", "lite1", "lite2"]
LITE_STEMS: Final[tuple[LiteStem, ...]] = get_args(LiteStem)


@dataclass(frozen=True)
class ModelConfig:
    """One model variant.

    Attributes:
        family: "efficientsam" (released layout), "sam" (Segment Anything) or "hybrid" (ours: convolutions under a ViT,
            prompts also drawn into dense maps, high-resolution features in the mask decoder).
        width, depth, heads: of the image encoder's transformer blocks.
        input_size: side in pixels of the square input.
        pos_grid: side of the grid of the stored position embedding.
        global_blocks: SAM only, the blocks that attend over the whole image; the others use 14x14 windows.
        encoder: SAM only, its own ViT or MobileSAM's TinyViT, whose widths and depths stand in `models/tiny_vit.py`.
        stem: hybrid only, the convolutions under the ViT: a plain stem, or the stages of an EfficientNet-Lite.
    """

    name: str
    family: Literal["efficientsam", "sam", "hybrid"]
    width: int
    depth: int
    heads: int
    input_size: int = 1024
    pos_grid: int = 14
    global_blocks: tuple[int, ...] = ()
    encoder: Literal["vit", "tiny_vit"] = "vit"
    stem: Literal["plain", "lite0", "lite1", "lite2"] = "plain"

    @property
    def capabilities(self) -> Capabilities:
        """What the variant was trained to answer."""
        trained = self.family != "efficientsam"
        return Capabilities(
            negative_points=trained,
            mask_prompt=trained,
            # The released prompt encoder always sees six points, padded; more were never trained.
            max_points=None if trained else 6,
            input_size=self.input_size,
        )


CONFIGS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        ModelConfig("efficientsam_ti", "efficientsam", width=192, depth=12, heads=3),
        ModelConfig("efficientsam_s", "efficientsam", width=384, depth=12, heads=6),
        ModelConfig("sam_vit_b", "sam", width=768, depth=12, heads=12, pos_grid=64, global_blocks=(2, 5, 8, 11)),
        ModelConfig("sam_vit_l", "sam", width=1024, depth=24, heads=16, pos_grid=64, global_blocks=(5, 11, 17, 23)),
        ModelConfig("sam_vit_h", "sam", width=1280, depth=32, heads=16, pos_grid=64, global_blocks=(7, 15, 23, 31)),
        ModelConfig("mobile_sam", "sam", width=320, depth=12, heads=10, encoder="tiny_vit"),
        ModelConfig("hybrid_ti", "hybrid", width=192, depth=8, heads=3, input_size=256, pos_grid=16),
        *(
            ModelConfig(f"hybrid_{stem}", "hybrid", width=192, depth=8, heads=3, input_size=384, pos_grid=16, stem=stem)
            for stem in LITE_STEMS
        ),
    )
}


def config_named(name: str) -> ModelConfig:
    """Return the variant of that name.

    Raises:
        WeightsError: there is no such variant.
    """
    try:
        return CONFIGS[name]
    except KeyError:
        raise WeightsError(f"There is no model variant {name!r}; known are {', '.join(CONFIGS)}.") from None
