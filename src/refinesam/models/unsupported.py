"""Models of others that people own files of and that refinesam does not run, told by keys that only they have.

The keys are those of the public implementations: SAM-HQ's `mask_decoder_hq.py`, EdgeSAM's `rep_vit.py`, EfficientViT's
`sam.py`, SAM 2's `sam2_base.py`, SAM 3's `model_builder.py`, `transformers` for its versions of them, micro-sam's
`peft_sam.py`, Ultralytics' YOLO for FastSAM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

__all__ = ["UnsupportedModel", "unsupported_model", "unsupported_program"]


class UnsupportedModel(NamedTuple):
    """A model that is recognised, and what to use in its place."""

    name: str
    instead: str

    def refusal(self, path: Path) -> str:
        """Return the message about a file of it."""
        return f"{path} is {self.name}, which refinesam does not run. Use {self.instead}."


_SAM = "the SAM that it was made from (sam_vit_b, sam_vit_l or sam_vit_h)"
_LIGHT = "mobile_sam or efficientsam_ti, which are as small"
_FASTSAM = UnsupportedModel("FastSAM, or another YOLO model of Ultralytics", f"{_LIGHT} and take prompts themselves")

_BY_PROGRAM = {
    "ultralytics": _FASTSAM,
    "tinysam": UnsupportedModel("the quantised TinySAM", "TinySAM in full precision (tinysam_42.3.pth), or mobile_sam"),
}

# The first pattern that is found in any key counts.
_BY_KEY = tuple(
    (re.compile(pattern), UnsupportedModel(name, instead))
    for pattern, name, instead in (
        (r"(^|\.)mask_decoder\.(hf_token|hq_token)\.", "SAM-HQ", f"{_SAM}; for Light HQ-SAM, mobile_sam"),
        (r"^(detector|tracker)\.|(^|\.)inst_interactive_predictor\.", "SAM 3", "sam_vit_b or sam_vit_l"),
        (
            r"(^|\.)image_encoder\.trunk\.|(^|\.)sam_mask_decoder\.|(^|\.)vision_encoder\.backbone\.",
            "SAM 2 or SAM 2.1",
            "sam_vit_b or sam_vit_l",
        ),
        (r"(^|\.)image_encoder\.backbone\.", "EfficientViT-SAM", _LIGHT),
        (r"(^|\.)image_encoder\.(features\.\d+\.|fuse_stage)", "EdgeSAM", _LIGHT),
        (
            r"\.w_[ab]_linear|\.lora_[ABab]\b|(^|\.)base_model\.",
            "a SAM with adapters (LoRA) beside its weights",
            "the weights after the adapters were merged into them",
        ),
        (r"^model\.\d+\.(conv|cv\d|m|proto)\.", *_FASTSAM),
    )
)


def unsupported_model(state: Mapping[str, Tensor]) -> UnsupportedModel | None:
    """Return the model that a state dict is of, None where it is none of these."""
    for pattern, model in _BY_KEY:
        if any(pattern.search(key) for key in state):
            return model
    # SlimSAM has SAM's own names, and widths that were pruned.
    neck = state.get("image_encoder.neck.0.weight")
    pruned = neck is not None and neck.ndim == 4 and neck.shape[1] in (168, 384)
    if pruned and "image_encoder.blocks.0.attn.rel_pos_h" in state:
        return UnsupportedModel("SlimSAM", _LIGHT)
    return None


def unsupported_program(wanted: str) -> UnsupportedModel | None:
    """Return the model that was pickled together with its program, by the class that the file asks for."""
    return _BY_PROGRAM.get(wanted.partition(".")[0])
