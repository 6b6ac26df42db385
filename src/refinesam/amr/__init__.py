"""Adaptive Mask Refinement (AMR): segment an object again, starting from its first mask, and keep the better mask.

It works on arrays and a ``decode`` callable, so it refines any SAM-like model. Nothing in it is random. Two algorithms:

- `refine_by_closer_look`, the default: look at the object again in a crop of its own, and keep what is better.
- `refine_by_paper`: section XI of the source paper, a pass with added points, judged by the predicted IoU.

`refine` takes the one that an `AMRConfig` names.
"""

from refinesam.amr.closer_look import refine_by_closer_look
from refinesam.amr.config import AMRConfig, Rule
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
    "refine_by_closer_look",
    "refine_by_paper",
]
