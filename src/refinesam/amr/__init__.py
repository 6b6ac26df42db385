"""Adaptive Mask Refinement (AMR): segment an object again, starting from its first mask, and keep the better mask.

It works on arrays and a ``decode`` callable, so it refines any SAM-like model. Nothing in it is random. Two algorithms:

- `refine_by_consensus`, the default: a pass in a crop of the image around the object, and a vote of all masks.
- `refine_by_paper`: section XI of the source paper, a pass with added points, judged by the predicted IoU.

`refine` takes the one that an `AMRConfig` names.
"""

from refinesam.amr.config import AMRConfig, Rule
from refinesam.amr.consensus import refine_by_consensus
from refinesam.amr.crop import Decode, Window, Zoom
from refinesam.amr.paper import Strategy, choose_strategy, refine_by_paper
from refinesam.amr.points import MaskQuality, boundary_points, centre_points, mask_quality
from refinesam.amr.refine import refine

__all__ = [
    "AMRConfig",
    "Decode",
    "MaskQuality",
    "Rule",
    "Strategy",
    "Window",
    "Zoom",
    "boundary_points",
    "centre_points",
    "choose_strategy",
    "mask_quality",
    "refine",
    "refine_by_consensus",
    "refine_by_paper",
]
