"""Prompts from what annotators drew: smart key points and boxes, or those of a task's annotations."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refinesam import Prompt, PromptError
from refinesam_labelstudio.json_types import JsonView, Task
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.marks import Mark, marks_of

__all__ = ["PromptedObject", "prompt_from_context", "prompts_from_annotations"]

logger = logging.getLogger(__name__)


class PromptedObject(NamedTuple):
    """One object that is asked for.

    Attributes:
        prompt: where it is, in pixels.
        label: what it is called, None where nothing says so.
        region_id: of the first region of the prompt.
        to_name: name of its image.
        score: of whoever found it, in [0, 1]; None where nothing says so.
        outline: (N, 2), pixel (x, y), of an ellipse about the object, beside the box around it, or None.
    """

    prompt: Prompt
    label: str | None
    region_id: str
    to_name: str
    score: float | None = None
    outline: NDArray[np.float64] | None = None


def prompt_from_context(
    context: JsonView,
    task: Task,
    config: LabelingConfig,
    image_hw: tuple[int, int] | None = None,
) -> list[PromptedObject]:
    """Return the objects that an annotator's smart key points and boxes ask for, rectangles first, oldest first.

    All keypoints of a label are one object, every rectangle is one; keypoints inside a rectangle of their label belong
    to it. A keypoint is negative when it says so or, since a reload loses that, when the draft says so of the same
    region.

    Args:
        context: of the request, {"result": [...]}.
        task: the first of the request's, with its drafts.
        config: the project's.
        image_hw: the image's height and width; None takes them from each region's original_height and original_width.

    Raises:
        PromptError: a region that is malformed or has no area, or none at all that points at something.
    """
    marks = list(marks_of(_items(context, "result"), config, image_hw, _remembered(task)))
    if not marks:
        raise PromptError(
            "The request holds no keypoint and no rectangle on an image of the labeling config: click or draw with a "
            "smart tool."
        )
    return [_object(group) for group in _grouped(marks, joined=True)]


def prompts_from_annotations(
    task: Task,
    config: LabelingConfig,
    image_hw: tuple[int, int] | None = None,
    on_problem: Callable[[str], None] = logger.warning,
) -> list[PromptedObject]:
    """Return the objects that a task's own keypoints and rectangles mark, for answering without an annotator.

    They come from one version, so that no object is asked for twice: the newest annotation that holds any, else the
    newest draft, else the newest prediction; skipped annotations don't count. Every rectangle is an object, and so is
    every positive keypoint outside of the rectangles of its label. A negative keypoint belongs to the rectangle around
    it, else to the nearest object of its label. What is malformed is left out, and told.

    Args:
        task: with its annotations, drafts and predictions.
        config: the project's.
        image_hw: as for `prompt_from_context`.
        on_problem: is told what is left out, and why.
    """
    remembered = _remembered(task)
    for kind in ("annotations", "drafts", "predictions"):
        for version in _newest_first(task, kind):
            marks = list(marks_of(_items(version, "result"), config, image_hw, remembered, on_problem))
            groups = _grouped(marks, joined=False)
            objects = [found for group in groups if (found := _object_or_none(group, on_problem))]
            if objects:
                return objects
    return []


def _items(holder: object, key: str) -> list[JsonView]:
    """Return the mappings of a list in what came as JSON; anything else there is nothing."""
    items = holder.get(key) if isinstance(holder, Mapping) else None
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _newest_first(task: Task, kind: str) -> list[JsonView]:
    versions = [version for version in _items(task, kind) if version.get("was_cancelled") is not True]
    dated = [(str(version.get("updated_at") or version.get("created_at") or ""), version) for version in versions]
    # Of equal dates, as of versions without one, the last in the list is the newest.
    return [version for _, version in sorted(reversed(dated), key=lambda item: item[0], reverse=True)]


def _remembered(task: Task) -> dict[str, bool]:
    """Return by id which regions of the drafts are positive."""
    regions = [region for draft in reversed(_newest_first(task, "drafts")) for region in _items(draft, "result")]
    signs = ((str(region.get("id")), region.get("is_positive")) for region in regions)
    return {region_id: positive for region_id, positive in signs if isinstance(positive, bool)}


def _grouped(marks: list[Mark], joined: bool) -> list[list[Mark]]:
    """Return the marks of each object, its rectangle or first keypoint first."""
    groups = [[mark] for mark in marks if mark.box is not None]
    boxes, lone = list(groups), []
    for mark in (mark for mark in marks if mark.box is None):
        around = [group for group in boxes if mark.belongs_to(group[0]) and mark.inside(group[0])]
        same = [group for group in groups[len(boxes) :] if joined and mark.belongs_to(group[0])]
        if around:
            min(around, key=lambda group: group[0].area).append(mark)
        elif not mark.positive:
            lone.append(mark)
        elif same:
            same[0].append(mark)
        else:
            groups.append([mark])
    for mark in lone:
        near = [group for group in groups if mark.belongs_to(group[0])]
        if near:
            min(near, key=lambda group: math.dist(group[0].centre, mark.centre)).append(mark)
        else:
            groups.append([mark])
    return groups


def _object(group: list[Mark]) -> PromptedObject:
    first = group[0]
    points = [mark.point for mark in group if mark.point is not None]
    signs = [int(mark.positive) for mark in group if mark.point is not None]
    prompt = Prompt(points=points or None, labels=signs or None, box=first.box)
    return PromptedObject(prompt, first.label, first.region_id, first.to_name, first.score, first.outline)


def _object_or_none(group: list[Mark], on_problem: Callable[[str], None]) -> PromptedObject | None:
    try:
        if group[0].box is None and not any(mark.positive for mark in group):
            raise PromptError("it has negative keypoints only. Add a positive one or a rectangle.")
        return _object(group)
    except PromptError as error:
        on_problem(f"The object of region {group[0].region_id} is left out: {error}")
        return None
