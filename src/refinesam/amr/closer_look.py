"""Refinement by a closer look: ask for the object again in a crop of its own, and keep what is better.

`refine_by_closer_look` has the steps. `objection` decides between the two masks; it is pure, so that
`benchmarks/amr_study.py` compares other settings on stored answers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final, Literal

import numpy as np

from refinesam.amr.config import AMRConfig
from refinesam.amr.crop import Decode, Window, Zoom, prompt_in_window, window_around
from refinesam.amr.points import centre_points, mask_quality
from refinesam.errors import PromptError
from refinesam.masks import mask_iou
from refinesam.types import BoolArray, FloatArray, Prediction, Prompt, RefinementReport

__all__ = ["objection", "refine_by_closer_look"]

Strategy = Literal["feedback", "zoom", "none"]

# Of the IoU with the first mask, for a model that takes no mask prompts and for a second look at the whole image.
LEAST_AGREEMENT_OF_OTHERS: Final = 0.8
NO_POINTS: Final = np.zeros((0, 2), np.float32)


def refine_by_closer_look(
    prediction: Prediction,
    decode: Decode,
    config: AMRConfig,
    *,
    max_points: int | None = None,
    mask_prompt: bool = True,
    zoom: Zoom | None = None,
) -> Prediction:
    """Look at the object again in a crop of its own, and keep what is better.

    1. Cut a square window around the first mask and the prompt, ``config.crop_factor`` times as wide as they are.
    2. Encode it, and decode the user's prompt there, with the first mask as mask prompt and points in its middle.
    3. Keep the answer unless there is an `objection`.

    There is no closer look where the object fills too much of the image, or where the pixels are not at hand. A model
    that takes no mask prompts is asked without one, and only after a box: in a crop, clicks alone mean another object
    too often. Without a crop (``config.crop_factor`` is None) the same is asked on the whole image, with the first
    mask's logits, and only after a box, too: after clicks it would hurt as often as it helps.

    The arguments are those of `refinesam.amr.refine`, and the rule is "closer_look".

    Returns:
        The refined prediction, of one mask, or the first one. Its `refinement` gives kappa and Q of the first mask, and
        the points that were placed.
    """
    if problem := _no_look(prediction, config, mask_prompt, zoom):
        return _kept_first(prediction, problem)
    first, prompt, window = prediction.mask, prediction.prompt, _window(prediction, config)
    if window is None:
        return _kept_first(prediction, "The object fills so much of the image that a crop would not enlarge it.")
    x0, y0, x1, y1 = window
    if config.crop_factor is None or zoom is None:
        asked = Prompt(prompt.points, prompt.labels, prompt.box, mask_logits=prediction.logits)
    else:
        asked, decode = prompt_in_window(prompt, window, first if mask_prompt else None), zoom(window)
    count = _point_count(prompt, asked, config, max_points)
    points = centre_points(first[y0:y1, x0:x1], count, config.depth) if count > 0 else NO_POINTS
    try:
        answer = decode(asked.with_points(points))
    except PromptError as error:
        return _kept_first(prediction, f"The model refused the prompt of the closer look: {error}")
    mask = np.zeros(first.shape, np.bool_)
    mask[y0:y1, x0:x1] = answer.mask
    mask.flags.writeable = False
    # Without the first mask as a prompt, or without a crop, another mask than nearly the same is mostly a worse one.
    surest = mask_prompt and config.crop_factor is not None
    least = config.least_agreement if surest else max(config.least_agreement, LEAST_AGREEMENT_OF_OTHERS)
    against = objection(prompt, first, mask, answer.score - prediction.score, least, config.min_gain)
    return _better(prediction, mask, answer.score, points + np.array((x0, y0), np.float32), window, config, against)


def _point_count(prompt: Prompt, asked: Prompt, config: AMRConfig, most: int | None) -> int:
    """Return how many points may be placed beside what is asked, of a model that takes `most`."""
    # Negative clicks may have been counted out of the limit, and may lie outside of the window.
    lost = len(prompt.negative_points) - len(asked.negative_points)
    return config.point_count if most is None else min(config.point_count, most - asked.slots - lost)


def _no_look(prediction: Prediction, config: AMRConfig, mask_prompt: bool, zoom: Zoom | None) -> str:
    """Say why there can be no closer look, "" if there can."""
    if not prediction.mask.any():
        return "The first mask is empty, so there is nothing to look at."
    with_box = prediction.prompt.box is not None
    if config.crop_factor is None:
        if not mask_prompt:
            return "There was no second look: it needs the mask as a prompt, and this model takes none."
        return "" if with_box else "There was no second look: without a box, one at the whole image helps too rarely."
    if zoom is None:
        return "There was no closer look: the image's pixels are not at hand."
    if not mask_prompt and not with_box:
        return "There was no closer look: without a box it needs the mask as a prompt, and this model takes none."
    return ""


def _window(prediction: Prediction, config: AMRConfig) -> Window | None:
    """Return the part of the image to look at, None where a crop would not enlarge the object."""
    if config.crop_factor is None:
        height, width = prediction.mask.shape
        return 0, 0, width, height
    return window_around(prediction.mask, prediction.prompt, config.crop_factor)


def objection(
    prompt: Prompt,
    first: BoolArray,
    other: BoolArray,
    gain: float,
    least_agreement: float,
    min_gain: float | None = None,
) -> str:
    """Say what keeps a second mask from replacing the first one, "" if nothing does.

    Args:
        prompt: the user's.
        first: (H, W), the first mask.
        other: (H, W), that of the closer look.
        gain: its predicted IoU less that of the first mask.
        least_agreement: of their IoU.
        min_gain: None for no limit.
    """
    if not other.any():
        return "it found nothing"
    if _missed(other, prompt) > _missed(first, prompt):
        return "it goes against a click"
    agreement = mask_iou(first, other)
    if agreement < least_agreement:
        return f"it is about something else (IoU with the first mask {agreement:.2f}, below {least_agreement:g})"
    if min_gain is not None and gain <= min_gain:
        return f"its predicted IoU is not higher by more than {min_gain:g}"
    return ""


def _missed(mask: BoolArray, prompt: Prompt) -> int:
    """Count the clicks that a mask goes against."""
    height, width = mask.shape
    columns, rows = np.clip(np.floor(prompt.points).astype(np.int64), 0, (width - 1, height - 1)).T
    return int((mask[rows, columns] != (prompt.labels == 1)).sum())


def _better(
    prediction: Prediction,
    mask: BoolArray,
    score: float,
    points: FloatArray,
    window: Window,
    config: AMRConfig,
    against: str,
) -> Prediction:
    """Return what a closer look found, or the first prediction, with what it changed and why it was kept or not."""
    first = prediction.mask
    side = f"{window[2] - window[0]} x {window[3] - window[1]}"
    changed = int(np.count_nonzero(mask != first))
    look = "A second look" if config.crop_factor is None else f"A closer look, in a crop of {side} pixels,"
    strategy: Strategy = "feedback" if config.crop_factor is None else "zoom"
    looked = f"{look} changed {changed} pixels of a mask of {np.count_nonzero(first)}"
    scores = f"predicted IoU {prediction.score:.2f} before, {score:.2f} after"
    if against:
        reason = f"{looked} ({scores}). The first mask was kept, because {against}."
        report = _report(prediction, reason, strategy, points, score, rejected=mask)
        return prediction.with_refinement(report)
    reason = f"{looked} (IoU of the two masks {mask_iou(first, mask):.2f}; {scores}). Its mask was kept."
    refined = replace(
        prediction,
        masks=mask[None],
        iou_predictions=np.array([score], np.float32),
        low_res_logits=_nearest_logits(prediction, mask)[None],
    )
    return refined.with_refinement(_report(prediction, reason, strategy, points, score))


def _nearest_logits(prediction: Prediction, mask: BoolArray) -> FloatArray:
    """Return the logits of that one of the first masks, decoded on the whole image, that comes nearest to a mask."""
    nearest = int(np.argmax([mask_iou(mask, other) for other in prediction.masks]))
    return np.asarray(prediction.low_res_logits[nearest])


def _kept_first(prediction: Prediction, reason: str) -> Prediction:
    return prediction.with_refinement(_report(prediction, reason, "none", NO_POINTS, math.nan))


def _report(
    prediction: Prediction,
    reason: str,
    strategy: Strategy,
    points: FloatArray,
    score: float,
    rejected: BoolArray | None = None,
) -> RefinementReport:
    quality, looked = mask_quality(prediction.mask), strategy != "none"
    return RefinementReport(
        kappa=quality.kappa,
        compactness=quality.compactness,
        strategy=strategy,
        rule="closer_look",
        points=points,
        score_before=prediction.score,
        score_after=score,
        kept="refined" if looked and rejected is None else "first",
        reason=reason,
        iterations=int(looked),
        rejected=rejected,
    )
