"""The prompts of a job: boxes or points for each image, from COCO annotations or results, CSV or Parquet.

A detector's boxes, with class and score, become named and scored masks: its COCO results are read as they are, and its
categories are named by the COCO document of the images, where one is given.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from refinesam.errors import DatasetError, PromptError
from refinesam.evaluation.dataset import categories_of, checked_lists
from refinesam.evaluation.json_fields import bbox_of, field_of, is_number, read_json
from refinesam.files import JsonObject
from refinesam.jobs.tables import read_table
from refinesam.rle import shown
from refinesam.types import Prompt

__all__ = ["ImageMatches", "ObjectPrompt", "match_images", "prompts_by_image", "read_prompts"]

BOX, POINT = ("x0", "y0", "x1", "y1"), ("x", "y")
IMAGE_COLUMNS = ("image", "file_name", "path", "filename", "filepath", "url")
EXAMPLES = 3
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObjectPrompt:
    """What is known of one object before it is segmented.

    Attributes:
        box: XYXY in pixels, or None.
        points: (x, y) in pixels.
        labels: 1 on the object, 0 not on it, one for each point.
        class_id: a number of the class, such as COCO's category_id, or None.
        class_name: or None.
        score: the detector's.
        prompt_id: of the annotation or row, as text.
        error: why it is none; the object is not segmented and keeps the reason.
    """

    box: tuple[float, ...] | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    class_id: int | None = None
    class_name: str | None = None
    score: float | None = None
    prompt_id: str | None = None
    error: str | None = None

    def prompt(self) -> Prompt:
        """Return what the model is asked; PromptError where it is none."""
        if self.error is not None:
            raise PromptError(self.error)
        return Prompt(points=self.points or None, labels=self.labels or None, box=self.box)

    def to_json(self) -> str:
        """Return box, points and labels as JSON."""
        given = {"box": self.box, "points": self.points, "labels": self.labels}
        return json.dumps({name: value for name, value in given.items() if value})


class ImageMatches(NamedTuple):
    """What a file's names for images mean: by an image's name the file's, and by the file's why it means no image."""

    given: dict[str, str]
    unmatched: dict[str, str]


def match_images(given: Iterable[str], names: Iterable[str]) -> ImageMatches:
    """Find the images that a file means: by their names, else by the last part of the path, or more parts of it.

    Args:
        given: what the file calls its images.
        names: of the images: paths, from any folder on.
    """
    ends = defaultdict[str, list[str]](list)
    for name in dict.fromkeys(names):
        path = PurePosixPath(name)
        for end in dict.fromkeys((path.name, path.stem, path.stem.lstrip("0") or "0")):
            ends[end].append(name)
    claims, matches = defaultdict[str, dict[str, int]](dict), ImageMatches({}, {})
    for one in dict.fromkeys(given):
        agreements = {name: _agreement(one, name) for name in ends.get(PurePosixPath(one).name, [])}
        found = _best(agreements)
        if len(found) == 1:
            claims[found[0]][one] = agreements[found[0]]
        else:
            several = f"{len(found)} images are called so, such as {found[0]}: give more of the path" if found else ""
            matches.unmatched[one] = several or "no image is called so"
    for name, claiming in claims.items():
        best = _best(claiming)
        if len(best) == 1:
            matches.given[name] = best[0]
        for one in claiming:
            if one != matches.given.get(name):
                others = ", ".join(other for other in claiming if other != one)
                matches.unmatched[one] = f"{name} may be it, or {others}: give more of the path"
    return matches


def _agreement(one: str, name: str) -> int:
    """Return how well a name fits another of the same last part: 2 as it is, 1 as far as both go, else 0."""
    if one == name:
        return 2
    return int(f"/{name}".endswith(f"/{one}") or f"/{one}".endswith(f"/{name}"))


def _best(agreements: Mapping[str, int]) -> list[str]:
    """Return the names that fit best."""
    most = max(agreements.values(), default=0)
    return [name for name, agreement in agreements.items() if agreement == most]


def prompts_by_image(path: Path, document: Path | None = None) -> dict[str, list[ObjectPrompt]]:
    """Read prompts.

    Args:
        path: COCO annotations or COCO results (``.json``), CSV or Parquet, see docs/batch.md.
        document: the COCO document that says which images and categories the ids of COCO results mean. Without it
            they are found by `file_name`, or by an `image_id` that is the file's name without its suffix.

    Returns:
        The prompts of each image, by what the file calls it, in the file's order. What is malformed keeps its place,
        with the reason.

    Raises:
        DatasetError: the file cannot be read, or holds no prompts.
    """
    prompts = defaultdict[str, list[ObjectPrompt]](list)
    for image, prompt in _from_coco(path, document) if path.suffix.lower() == ".json" else _from_table(path):
        prompts[image].append(prompt)
    if not prompts:
        raise DatasetError(f"{path} holds no prompt for any of the images. It is empty. Give matching files.")
    return dict(prompts)


def read_prompts(path: Path, names: Sequence[str], document: Path | None = None) -> dict[str, list[ObjectPrompt]]:
    """Read the prompts of a job's images.

    Args:
        path: as for `prompts_by_image`.
        names: of the job's images.
        document: as for `prompts_by_image`.

    Returns:
        The prompts of each image. A warning that is logged counts what belongs to none of the images.

    Raises:
        DatasetError: the file cannot be read, holds no prompts, or none of them belongs to any of the images.
    """
    prompts = prompts_by_image(path, document)
    matches = match_images(prompts, names)
    examples = ", ".join(list(matches.unmatched)[:EXAMPLES])
    if not matches.given:
        raise DatasetError(
            f"{path} holds no prompt for any of the images. It names {examples}; the images are "
            f"{', '.join(names[:EXAMPLES])}. Give matching files."
        )
    if matches.unmatched:
        _logger.warning(
            "%d prompts of %s belong to none of the images, or to several, such as %s.",
            sum(len(prompts[given]) for given in matches.unmatched),
            path,
            examples,
        )
    return {name: prompts[given] for name, given in matches.given.items()}


def _from_coco(path: Path, document: Path | None) -> Iterable[tuple[str, ObjectPrompt]]:
    content = read_json(path)
    if isinstance(content, list):
        described = {} if document is None else checked_lists(read_json(document), str(document))
        entries, where = content, f"{path}: results"
    else:
        described = checked_lists(content, str(path))
        entries, where = described["annotations"], f"{path}: annotations"
    categories = categories_of(described.get("categories", []), str(document or path))
    files = {raw.get("id"): raw.get("file_name") for raw in described.get("images", []) if isinstance(raw, dict)}
    for index, raw in enumerate(entries):
        place = f"{where}[{index}]"
        if not isinstance(raw, dict):
            raise DatasetError(f"{place} must be an object, got {shown(raw)}: see COCO's format.")
        if raw.get("iscrowd") == 1:
            continue
        image_id = raw.get("image_id")
        yield str(files.get(image_id) or raw.get("file_name") or image_id), _coco_prompt(raw, place, categories)


def _coco_prompt(raw: JsonObject, place: str, categories: Mapping[int, str]) -> ObjectPrompt:
    category, score, number = raw.get("category_id"), raw.get("score"), raw.get("id")
    named = category if isinstance(category, int) and not isinstance(category, bool) else None
    known: JsonObject = {
        "class_id": named,
        "class_name": raw.get("category_name") or (None if named is None else categories.get(named, str(named))),
        "score": float(score) if score is not None and is_number(score) else None,
        "prompt_id": None if number is None else str(number),
    }
    try:
        if "bbox" not in raw and "keypoints" in raw:
            points = _visible(field_of(raw, "keypoints", list, place), place)
            return ObjectPrompt(points=points, labels=(1,) * len(points), **known)
        x, y, width, height = bbox_of(raw, place)
    except DatasetError as error:
        return ObjectPrompt(error=str(error), **known)
    return ObjectPrompt(box=(x, y, x + width, y + height), **known)


def _visible(keypoints: list[float], place: str) -> tuple[tuple[float, float], ...]:
    """Return COCO's keypoints [x, y, v, ...] that are visible, v = 2."""
    if len(keypoints) % 3 or not all(is_number(value) for value in keypoints):
        raise DatasetError(f"{place}.keypoints must be x, y, v for each, got {shown(keypoints)}.")
    triples = zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=True)
    return tuple((float(x), float(y)) for x, y, visibility in triples if visibility == 2)


def _from_table(path: Path) -> Iterable[tuple[str, ObjectPrompt]]:
    """Give a prompt a row; rows of one image with the same value of `object` are points (and a box) of one prompt."""
    table = read_table(path)
    image = next((name for name in IMAGE_COLUMNS if name in table.columns), None)
    has_box, has_point = (set(part) <= set(table.columns) for part in (BOX, POINT))
    if image is None or not (has_box or has_point):
        raise DatasetError(
            f"{path} has the columns {', '.join(table.columns)}; prompts need image, and x0, y0, x1, y1 (a box) or x, "
            "y and label (points), in pixels."
        )
    grouped: dict[tuple[str, int | str], list[tuple[int, JsonObject]]] = {}
    for index, row in enumerate(table.rows):
        key = (str(row[image]), index if row.get("object") is None else str(row["object"]))
        grouped.setdefault(key, []).append((index, row))
    for (name, _), rows in grouped.items():
        yield name, _table_prompt(path, rows)


def _table_prompt(path: Path, rows: Sequence[tuple[int, JsonObject]]) -> ObjectPrompt:
    index, first = rows[0]
    place, class_id = f"{path}, row {index + 1}", first.get("class_id")
    name = first.get("class_name") or first.get("class")
    known: JsonObject = {
        "class_name": None if name is None and class_id is None else str(class_id if name is None else name),
        "prompt_id": str(first.get("id") or first.get("object") or index + 1),
    }
    try:
        known["class_id"] = None if class_id is None else int(_number(first, "class_id", place))
        known["score"] = None if first.get("score") is None else _number(first, "score", place)
        box = None
        for at, row in rows:
            if any(row.get(side) is not None for side in BOX):
                box = tuple(_number(row, side, f"{path}, row {at + 1}") for side in BOX)
        clicks = [(f"{path}, row {at + 1}", row) for at, row in rows if row.get("x") is not None]
        points = tuple((_number(row, "x", at), _number(row, "y", at)) for at, row in clicks)
        labels = tuple(int(_number(row, "label", at)) if row.get("label") is not None else 1 for at, row in clicks)
    except DatasetError as error:
        return ObjectPrompt(error=str(error), **known)
    return ObjectPrompt(box, points, labels, **known)


def _number(row: JsonObject, column: str, place: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = float("nan")
    if not is_number(value):
        raise DatasetError(f"{place}: {column} must be a number, got {shown(row.get(column))}: correct the row.")
    return value
