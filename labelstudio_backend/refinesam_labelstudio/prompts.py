"""Prompts from what annotators drew: smart keypoints and rectangles, or those of a task's annotations.

Label Studio gives percent of the image's width and height; prompts are pixel (x, y) and XYXY. Points are moved inside
the image and boxes cut at its border.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from refinesam import Prompt, PromptError
from refinesam_labelstudio.json_types import JsonView, Region, Task
from refinesam_labelstudio.labeling_config import LabelingConfig

__all__ = ["PromptedObject", "prompt_from_context", "prompts_from_annotations"]

LONGEST_SIDE = 10**6

logger = logging.getLogger(__name__)


class PromptedObject(NamedTuple):
    """One object that is asked for.

    Attributes:
        prompt: where it is, in pixels.
        label: what it is called, None where nothing says so.
        region_id: of the first region of the prompt.
        to_name: name of its image.
        score: of whoever found it, in [0, 1]; None where nothing says so.
    """

    prompt: Prompt
    label: str | None
    region_id: str
    to_name: str
    score: float | None = None


@dataclass(frozen=True)
class _Mark:
    """A keypoint, or a rectangle as XYXY, in pixels."""

    region_id: str
    label: str | None
    to_name: str
    point: tuple[float, float] | None = None
    box: tuple[float, float, float, float] | None = None
    positive: bool = True
    score: float | None = None

    @property
    def centre(self) -> tuple[float, float]:
        if self.box is not None:
            return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2
        return self.point or (0, 0)

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1]) if self.box is not None else 0

    def belongs_to(self, other: _Mark) -> bool:
        return (self.label, self.to_name) == (other.label, other.to_name)

    def inside(self, other: _Mark) -> bool:
        x, y = self.centre
        return other.box is not None and other.box[0] <= x <= other.box[2] and other.box[1] <= y <= other.box[3]


def prompt_from_context(
    context: JsonView,
    task: Task,
    config: LabelingConfig,
    image_hw: tuple[int, int] | None = None,
) -> list[PromptedObject]:
    """Return the objects that an annotator's smart keypoints and rectangles ask for, rectangles first, oldest first.

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
    marks = list(_marks(_items(context, "result"), config, image_hw, _remembered(task)))
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
            marks = list(_marks(_items(version, "result"), config, image_hw, remembered, on_problem))
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


def _marks(
    regions: Iterable[Region],
    config: LabelingConfig,
    image_hw: tuple[int, int] | None,
    remembered: Mapping[str, bool],
    on_problem: Callable[[str], None] | None = None,
) -> Iterator[_Mark]:
    """Yield the keypoints and rectangles among regions of the config's images; malformed ones raise, or are told."""
    regions = list(regions)
    # A label from a Labels tag of its own is a second result of the same id.
    labels = {str(region.get("id")): _label(region) for region in regions if region.get("type") == "labels"}
    names = {image.name for image in config.images}
    for region in regions:
        kind = str(region.get("type")).removesuffix("labels")
        if kind not in ("keypoint", "rectangle") or str(region.get("to_name")) not in names:
            continue
        region_id, positive = str(region.get("id")), region.get("is_positive")
        label = _label(region) or labels.get(region_id)
        if not isinstance(positive, bool):
            positive = remembered.get(region_id, True)
        try:
            hw = image_hw or _size(region)
            box, point = (_box(region, hw), None) if kind == "rectangle" else (None, _point(region, hw))
            yield _Mark(region_id, label, str(region["to_name"]), point, box, positive, _score(region))
        except PromptError as error:
            if on_problem is None:
                raise
            on_problem(f"A {kind} is left out: {error}")


def _score(region: Region) -> float | None:
    score = region.get("score")
    return float(score) if isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1 else None


def _label(region: Region) -> str | None:
    value = region.get("value")
    labels = value.get(str(region.get("type"))) if isinstance(value, Mapping) else None
    return next((label for label in labels if isinstance(label, str)), None) if isinstance(labels, list) else None


def _size(region: Region) -> tuple[int, int]:
    sides = [region.get("original_height"), region.get("original_width")]
    height, width = (side if isinstance(side, int) and not isinstance(side, bool) else 0 for side in sides)
    if not (0 < height <= LONGEST_SIDE and 0 < width <= LONGEST_SIDE):
        raise PromptError(
            f"Region {region.get('id')!r} has original_height {sides[0]!r} and original_width {sides[1]!r}: both must "
            f"be whole numbers of pixels, 1 to {LONGEST_SIDE}."
        )
    return height, width


def _point(region: Region, hw: tuple[int, int]) -> tuple[float, float]:
    x, y = (_percent(region, key) * side / 100 for key, side in (("x", hw[1]), ("y", hw[0])))
    # The right and lower border lie outside of [0, W) x [0, H): the last pixel's centre is meant.
    return min(max(x, 0), hw[1] - 0.5), min(max(y, 0), hw[0] - 0.5)


def _box(region: Region, hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the part inside the image of the box around a rectangle, which may be turned around its first corner."""
    x, y, width, height = (
        _percent(region, key) * side / 100
        for key, side in (("x", hw[1]), ("y", hw[0]), ("width", hw[1]), ("height", hw[0]))
    )
    angle = math.radians(_percent(region, "rotation", 0))
    sine, cosine = math.sin(angle), math.cos(angle)
    xs = [x + across * cosine - down * sine for across in (0, width) for down in (0, height)]
    ys = [y + across * sine + down * cosine for across in (0, width) for down in (0, height)]
    x0, x1 = (min(max(edge(xs), 0), hw[1]) for edge in (min, max))
    y0, y1 = (min(max(edge(ys), 0), hw[0]) for edge in (min, max))
    return x0, y0, x1, y1


def _percent(region: Region, key: str, default: float | None = None) -> float:
    value = region.get("value")
    number = value.get(key, default) if isinstance(value, Mapping) else None
    if not isinstance(number, int | float) or isinstance(number, bool) or not abs(number) < 1e6:
        raise PromptError(
            f"Region {region.get('id')!r} has {key} {repr(number)[:40]}: a number is needed, of percent or degrees."
        )
    return float(number)


def _grouped(marks: list[_Mark], joined: bool) -> list[list[_Mark]]:
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


def _object(group: list[_Mark]) -> PromptedObject:
    first = group[0]
    points = [mark.point for mark in group if mark.point is not None]
    signs = [int(mark.positive) for mark in group if mark.point is not None]
    prompt = Prompt(points=points or None, labels=signs or None, box=first.box)
    return PromptedObject(prompt, first.label, first.region_id, first.to_name, first.score)


def _object_or_none(group: list[_Mark], on_problem: Callable[[str], None]) -> PromptedObject | None:
    try:
        if group[0].box is None and not any(mark.positive for mark in group):
            raise PromptError("it has negative keypoints only. Add a positive one or a rectangle.")
        return _object(group)
    except PromptError as error:
        on_problem(f"The object of region {group[0].region_id} is left out: {error}")
        return None
