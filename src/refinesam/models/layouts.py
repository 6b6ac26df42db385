"""How others lay out the weights of a model that is known here, and the way from each layout to our names.

A state dict may be the file's whole content or one entry of a trainer's checkpoint, its names may stand under a prefix,
and the `transformers` library has names of its own. What none of this explains keeps its name, for the comparison with
the model's keys to find.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from refinesam.models.config import PIXEL_MEAN, PIXEL_STD

__all__ = ["in_our_names", "state_dict_of"]

# Under which key trainers keep the model: EfficientSAM's and MedSAM's, micro-sam's (torch-em), Lightning, others.
STATE_DICT_KEYS = ("model", "model_state", "state_dict", "model_state_dict")
# Before the encoder's name stands what wraps the model: "module." (data parallel), "sam." (micro-sam), "_orig_mod.".
ENCODER = re.compile(r"(.*?\.)?(image_encoder|vision_encoder)\.")
POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

# What `transformers` calls it, and the name here. The first pattern that fits a whole key counts.
_TRANSFORMERS = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"shared_image_embedding\.positional_embedding", POSITIONS),
        (r"prompt_encoder\.shared_embedding\.positional_embedding", POSITIONS),
        (r"prompt_encoder\.point_embed\.(.+)", r"prompt_encoder.point_embeddings.\1"),
        (r"prompt_encoder\.mask_embed\.conv1\.(.+)", r"prompt_encoder.mask_downscaling.0.\1"),
        (r"prompt_encoder\.mask_embed\.layer_norm1\.(.+)", r"prompt_encoder.mask_downscaling.1.\1"),
        (r"prompt_encoder\.mask_embed\.conv2\.(.+)", r"prompt_encoder.mask_downscaling.3.\1"),
        (r"prompt_encoder\.mask_embed\.layer_norm2\.(.+)", r"prompt_encoder.mask_downscaling.4.\1"),
        (r"prompt_encoder\.mask_embed\.conv3\.(.+)", r"prompt_encoder.mask_downscaling.6.\1"),
        (r"vision_encoder\.pos_embed", "image_encoder.pos_embed"),
        (r"vision_encoder\.patch_embed\.projection\.(.+)", r"image_encoder.patch_embed.proj.\1"),
        (r"vision_encoder\.layers\.(\d+)\.layer_norm(.+)", r"image_encoder.blocks.\1.norm\2"),
        (r"vision_encoder\.layers\.(.+)", r"image_encoder.blocks.\1"),
        (r"vision_encoder\.neck\.conv1\.(.+)", r"image_encoder.neck.0.\1"),
        (r"vision_encoder\.neck\.layer_norm1\.(.+)", r"image_encoder.neck.1.\1"),
        (r"vision_encoder\.neck\.conv2\.(.+)", r"image_encoder.neck.2.\1"),
        (r"vision_encoder\.neck\.layer_norm2\.(.+)", r"image_encoder.neck.3.\1"),
        (r"mask_decoder\.transformer\.layers\.(\d+)\.layer_norm(.+)", r"mask_decoder.transformer.layers.\1.norm\2"),
        (r"mask_decoder\.transformer\.layer_norm_final_attn\.(.+)", r"mask_decoder.transformer.norm_final_attn.\1"),
        (r"mask_decoder\.upscale_conv1\.(.+)", r"mask_decoder.output_upscaling.0.\1"),
        (r"mask_decoder\.upscale_layer_norm\.(.+)", r"mask_decoder.output_upscaling.1.\1"),
        (r"mask_decoder\.upscale_conv2\.(.+)", r"mask_decoder.output_upscaling.3.\1"),
        # Three layers each, of which the middle one is their "layers.0".
        (r"(mask_decoder\.\w+(?:\.\d+)?)\.proj_in\.(.+)", r"\1.layers.0.\2"),
        (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.(.+)", r"\1.layers.1.\2"),
        (r"(mask_decoder\.\w+(?:\.\d+)?)\.proj_out\.(.+)", r"\1.layers.2.\2"),
    )
)


def state_dict_of(content: object) -> object:
    """Return the state dict inside a trainer's checkpoint; the content itself where it is no such checkpoint."""
    if isinstance(content, Mapping):
        for key in STATE_DICT_KEYS:
            if key in content:
                return content[key]
    return content


def in_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors under the names of `refinesam.models`.

    Args:
        state: tensors by name, of any model in any layout.

    Raises:
        ValueError: two tensors that should be one differ.
    """
    state = _without_constants(_without_prefix(state))
    if not any(key.startswith("vision_encoder.layers.") for key in state):
        return state
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        ours = _from_transformers(key)
        # The random frequencies of positions are stored once for the image and once for the prompts.
        if ours in renamed and not torch.equal(renamed[ours], tensor):
            raise ValueError(f"{key} differs from the tensor that it should be the same as ({ours})")
        renamed[ours] = tensor
    return renamed


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take away what stands before the encoder's name, from every key that begins with it."""
    first = next((match for key in state if (match := ENCODER.match(key))), None)
    prefix = (first[1] or "") if first else ""
    shortened = {key: key.removeprefix(prefix) for key in state}
    if len(set(shortened.values())) < len(shortened):
        return dict(state)
    return {shortened[key]: tensor for key, tensor in state.items()}


def _without_constants(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take away the mean and deviation of pixels, which are no weights, where they are those of every SAM."""
    for key, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        if (
            key in state
            and state[key].numel() == 3
            and torch.allclose(state[key].float().flatten(), torch.tensor(values))
        ):
            del state[key]
    return state


def _from_transformers(key: str) -> str:
    for theirs, ours in _TRANSFORMERS:
        if match := theirs.fullmatch(key):
            return match.expand(ours)
    return key
