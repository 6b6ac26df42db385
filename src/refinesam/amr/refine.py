"""`refine`: the algorithm that the configuration names."""

from __future__ import annotations

from refinesam.amr.closer_look import refine_by_closer_look
from refinesam.amr.config import AMRConfig
from refinesam.amr.crop import Decode, Zoom
from refinesam.amr.paper import refine_by_paper
from refinesam.types import Prediction

__all__ = ["refine"]


def refine(
    prediction: Prediction,
    decode: Decode,
    config: AMRConfig | None = None,
    *,
    max_points: int | None = None,
    mask_prompt: bool = True,
    zoom: Zoom | None = None,
) -> Prediction:
    """Refine a prediction's best mask, and keep whichever mask is better.

    Args:
        prediction: what to refine; its prompt counts as the user's.
        decode: answers a prompt on the same image. A PromptError that it raises costs the pass, and its message is part
            of the reason; anything else that it raises passes through.
        config: the rule and its settings; None means `AMRConfig.full`.
        max_points: how many points the model takes in all, None for no limit. Every click of the prompt counts as one
            and a box as two; generated points that don't fit are left out.
        mask_prompt: whether the model takes masks as prompts. Without it there is no closer look.
        zoom: encodes a window (x0, y0, x1, y1) of the image and returns what decodes prompts in the window's frame.
            Without it there is no closer look.

    Returns:
        The better prediction. Its `refinement` says what was tried, what was kept, and why.
    """
    config = config or AMRConfig()
    if config.rule == "closer_look":
        return refine_by_closer_look(
            prediction, decode, config, max_points=max_points, mask_prompt=mask_prompt, zoom=zoom
        )
    return refine_by_paper(prediction, decode, config, max_points=max_points)
