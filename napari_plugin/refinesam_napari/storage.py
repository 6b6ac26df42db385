"""A session as one JSON file: prompts, committed objects with their masks, and the image and settings they belong to.

::

    {"format": "refinesam-napari", "version": 4, "image": {...}, "settings": {...}, "editing": 3,
     "classes": [{"name": "nucleus", "colour": "#e6194b"}, ...],
     "draft":   [{"plane": {...}, "prompts": {...}}, ...],
     "objects": [{"id": 3, "origin": "prompts", "score": 0.9, "class_name": "nucleus", "planes": [...],
                  "corrections": [{"plane": {...}, "added": {"y0": 10, "x0": 20, "rle": ...}, "erased": {...}}, ...],
                  "prompts": [{"plane": {...}, "prompts": {...}}, ...],
                  "masks":   [{"plane": {...}, "y0": 10, "x0": 20, "rle": {"size": [h, w], "counts": "..."}}, ...]}]}

A mask is the COCO RLE of its bounding box, null where it is empty. Numbers come back exactly as they were written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from refinesam import DatasetError, decode_rle, encode_rle
from refinesam.hosts import replacing
from refinesam_napari.classes import CLASS_COLOURS, new_class_id
from refinesam_napari.document import Correction, Document, ObjectClass, Origin, PlanePrompts, SegmentedObject
from refinesam_napari.geometry import FREE, Plane, PlaneMask

__all__ = ["SavedSession", "read_image_description", "read_session", "write_session"]

FORMAT, VERSION = "refinesam-napari", 4
# Before version 2 nothing was known of what was painted by hand, before 3 nothing of a choice between masks, before 4
# nothing of classes.
READ_VERSIONS = (1, 2, 3, 4)
# Of a class that objects name, but that the file does not describe.
UNKNOWN_COLOUR = CLASS_COLOURS[0]


@dataclass(frozen=True, eq=False)
class SavedSession:
    """All that is needed to go on working.

    Attributes:
        document: the user's work.
        masks: by object id and plane; every id is one of the document's objects.
        image: the layer it was made on. `name` and `shape` (one length for each entry of `Plane.position`) are needed;
            dtype, axis_labels, scale, translate, digest and source are used where they are known.
        settings: how it was made: weights, intensity policy, channels, crop mode, Adaptive Mask Refinement, version.
        problems: what a file said that could not be read, one sentence each, and was therefore left out.
    """

    document: Document
    masks: Mapping[tuple[int, Plane], PlaneMask]
    image: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def write_session(path: str | Path, saved: SavedSession) -> None:
    """Write a session; the file appears whole or not at all.

    In `image` and `settings` tuples and arrays become lists, numpy's numbers Python's and paths text. `problems` are
    not written.

    Raises:
        DatasetError: a value that JSON can't hold, an image without name or shape, or a mask of an unknown object.
        OSError: the place can't be written.
    """
    try:
        image = json.loads(_json(saved.image))
        _Image.model_validate(image)
        text = _json(
            {
                "format": FORMAT,
                "version": VERSION,
                "image": image,
                "settings": saved.settings,
                "editing": saved.document.editing,
                "classes": list(saved.document.classes.values()),
                "draft": _prompt_entries(saved.document.draft),
                "objects": _object_entries(saved),
            }
        )
    except ValidationError as error:
        raise DatasetError(f"The image's description: {_described(error)}. Give its name and shape.") from error
    except (TypeError, OverflowError) as error:
        raise DatasetError(
            f"The session can't be written as JSON ({error}): keep to text, numbers and lists."
        ) from error
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_session(path: str | Path) -> SavedSession:
    """Read a session.

    A damaged object, or a damaged plane of the draft, is left out and named in `problems`; the others are read.

    Raises:
        DatasetError: no such file, not a session, another version, or damage to more than a single object.
    """
    content = _read_content(Path(path))
    problems: list[str] = []
    classes = _classes(content, problems)
    draft: dict[Plane, PlanePrompts] = {}
    for index, entry in enumerate(content.draft):
        with _noting(problems, f"draft[{index}]"):
            draft |= _prompts([_PromptEntry.model_validate_json(json.dumps(entry))], content.image.shape, draft)
    objects: dict[int, SegmentedObject] = {}
    masks: dict[tuple[int, Plane], PlaneMask] = {}
    for index, entry in enumerate(content.objects):
        with _noting(problems, f"objects[{index}]"):
            # Through JSON once more, because only there pydantic is strict about scalars and yet takes lists as tuples.
            read = _ObjectEntry.model_validate_json(json.dumps(entry))
            if read.id in objects:
                raise DatasetError(f"id: {read.id} is another object's, and each object needs one of its own")
            item, item_masks = _object(read, content.image.shape)
            objects[item.id] = replace(item, class_id=_class_id(classes, read.class_name))
            masks |= item_masks
    editing = content.editing
    if editing is not None and editing not in objects:
        problems.append(f"editing: there is no object {editing}. The draft became a new object; commit it as such.")
        editing = None
    document = Document(MappingProxyType(draft), editing, MappingProxyType(objects), MappingProxyType(classes))
    return SavedSession(
        document, MappingProxyType(masks), content.image.model_dump(), content.settings, tuple(problems)
    )


def read_image_description(path: str | Path) -> dict[str, Any]:
    """Read only which image a session belongs to.

    Raises:
        DatasetError: as `read_session`.
    """
    return _read_content(Path(path)).image.model_dump()


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Image(_Entry):
    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    name: str
    shape: list[NonNegativeInt]


class _Content(_Entry):
    format: str
    version: int
    image: _Image
    settings: dict[str, Any]
    editing: int | None
    draft: list[Any]
    objects: list[Any]
    classes: list[Any] = []


class _ClassEntry(_Entry):
    name: str = Field(min_length=1)
    colour: str = Field(pattern="^#[0-9a-fA-F]{6}$")


class _PromptEntry(_Entry):
    plane: Plane
    prompts: PlanePrompts


class _Rle(_Entry):
    size: tuple[int, int]
    counts: str


class _Mask(_Entry):
    y0: NonNegativeInt
    x0: NonNegativeInt
    rle: _Rle | None


class _MaskEntry(_Mask):
    plane: Plane


class _CorrectionEntry(_Entry):
    plane: Plane
    added: _Mask
    erased: _Mask


class _ObjectEntry(_Entry):
    id: int
    origin: Origin
    score: float | None
    planes: tuple[Plane, ...]
    prompts: list[_PromptEntry]
    masks: list[_MaskEntry]
    corrections: list[_CorrectionEntry] = []
    class_name: str | None = Field(default=None, min_length=1)


def _json(content: object) -> str:
    try:
        return json.dumps(content, allow_nan=False, default=_plain)
    except ValueError as error:
        raise DatasetError(f"The session can't be written as JSON ({error}): every number must be finite.") from error


def _plain(value: object) -> object:
    """Turn the document's values, and what image and settings commonly hold, into JSON's own types."""
    if is_dataclass(value):
        return vars(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.dtype | Path):
        return str(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _prompt_entries(prompts: Mapping[Plane, PlanePrompts]) -> list[dict[str, Any]]:
    return [{"plane": plane, "prompts": in_plane} for plane, in_plane in prompts.items()]


def _object_entries(saved: SavedSession) -> list[dict[str, Any]]:
    masks: dict[int, list[dict[str, Any]]] = {object_id: [] for object_id in saved.document.objects}
    for (object_id, plane), mask in saved.masks.items():
        if object_id not in masks:
            raise DatasetError(f"There is a mask of object {object_id}, but no such object: commit it or leave it out.")
        masks[object_id].append({"plane": plane, **_mask_entry(mask)})
    return [
        {
            "id": object_id,
            "origin": item.origin,
            "score": item.score,
            "class_name": made.name if (made := saved.document.class_of(item)) is not None else None,
            "planes": item.planes,
            "prompts": _prompt_entries(item.prompts),
            "masks": masks[object_id],
            "corrections": [
                {"plane": plane, "added": _mask_entry(made.added), "erased": _mask_entry(made.erased)}
                for plane, made in item.corrections.items()
            ],
        }
        for object_id, item in saved.document.objects.items()
    ]


def _mask_entry(mask: PlaneMask) -> dict[str, Any]:
    return {"y0": mask.y0, "x0": mask.x0, "rle": encode_rle(mask.pixels) if mask.pixels.size else None}


def _read_content(path: Path) -> _Content:
    """Read a file as far as objects and draft, which stay as they are."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path} can't be read ({error.strerror}): check the path and its permissions.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON ({error}): it is damaged or cut off, take a copy of it.") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DatasetError(f'{path} is no session: its "format" must be "{FORMAT}". Open a file that was saved here.')
    if raw.get("version") not in READ_VERSIONS:
        raise DatasetError(
            f"{path} has version {raw.get('version')!r}, this refinesam reads versions up to {VERSION}: "
            "open it with the refinesam that wrote it, or update."
        )
    try:
        return _Content.model_validate(raw)
    except ValidationError as error:
        raise DatasetError(f"{path}: {_described(error)}. Correct the field, or take a copy of the file.") from error


@contextmanager
def _noting(problems: list[str], where: str) -> Iterator[None]:
    """Turn the error of one entry into a sentence, so that the others are read."""
    try:
        yield
    except (DatasetError, ValidationError) as error:
        said = _described(error) if isinstance(error, ValidationError) else str(error).rstrip(".")
        problems.append(f"{where} was left out: {said}. Correct the field in the file, or segment it again.")


def _described(error: ValidationError) -> str:
    """Name the first field that is wrong, in the words of the file."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    shown = repr(first["input"])
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{where}: {first['msg']}, got {shown}".removeprefix(": ")


def _object(entry: _ObjectEntry, shape: Sequence[int]) -> tuple[SegmentedObject, dict[tuple[int, Plane], PlaneMask]]:
    if entry.id < 1:
        raise DatasetError(f"id: objects are numbered from 1, got {entry.id}")
    for plane in entry.planes:
        _check_plane(plane, shape, "planes")
    prompts = MappingProxyType(_prompts(entry.prompts, shape, {}))
    masks: dict[tuple[int, Plane], PlaneMask] = {}
    for mask in entry.masks:
        if (entry.id, mask.plane) in masks:
            raise DatasetError(f"masks: {mask.plane} comes twice, and an object has one mask in a plane")
        masks[entry.id, mask.plane] = _mask(mask, mask.plane, shape, "masks")
    corrections = {}
    for made in entry.corrections:
        added, erased = (_mask(part, made.plane, shape, "corrections") for part in (made.added, made.erased))
        corrections[made.plane] = Correction(added, erased)
    item = SegmentedObject(entry.id, prompts, entry.planes, entry.origin, entry.score, MappingProxyType(corrections))
    return item, masks


def _classes(content: _Content, problems: list[str]) -> dict[int, ObjectClass]:
    classes: dict[int, ObjectClass] = {}
    for index, entry in enumerate(content.classes):
        with _noting(problems, f"classes[{index}]"):
            read = _ClassEntry.model_validate(entry)
            if any(made.name == read.name for made in classes.values()):
                raise DatasetError(f"name: {read.name!r} is another class's, and each class needs one of its own")
            classes[new_class_id()] = ObjectClass(read.name, read.colour)
    return classes


def _class_id(classes: dict[int, ObjectClass], name: str | None) -> int | None:
    """Return the key of the class of a name, which is added if it is missing, so that no object loses its class."""
    if name is None:
        return None
    known = Document(classes=classes).class_named(name)
    if known is None:
        known = new_class_id()
        classes[known] = ObjectClass(name, UNKNOWN_COLOUR)
    return known


def _prompts(
    entries: Sequence[_PromptEntry], shape: Sequence[int], earlier: Mapping[Plane, PlanePrompts]
) -> dict[Plane, PlanePrompts]:
    prompts: dict[Plane, PlanePrompts] = {}
    for entry in entries:
        _check_plane(entry.plane, shape, "prompts")
        if entry.plane in prompts or entry.plane in earlier:
            raise DatasetError(f"prompts: {entry.plane} comes twice, and its prompts belong together")
        crop = entry.prompts.crop
        if crop is not None and (crop.step < 1 or crop.x0 >= crop.x1 or crop.y0 >= crop.y1):
            raise DatasetError(f"prompts: {crop} is empty; it needs x0 < x1, y0 < y1 and a step of 1 or more")
        candidate = entry.prompts.candidate
        if candidate is not None and candidate < 0:
            raise DatasetError(f"prompts: candidate is {candidate}; masks to choose from are counted from 0")
        prompts[entry.plane] = entry.prompts
    return prompts


def _check_plane(plane: Plane, shape: Sequence[int], where: str) -> None:
    axes, position = plane.axes, plane.position
    fits = len(position) == len(shape) and axes[0] != axes[1] and all(0 <= axis < len(shape) for axis in axes)
    if not fits or any(position[axis] != FREE for axis in axes):
        raise DatasetError(
            f"{where}: {plane} is no plane of an image of shape {tuple(shape)}; its position needs an index for each "
            f"axis, and {FREE} for the two axes of the plane"
        )
    if any(index != FREE and not 0 <= index < length for index, length in zip(position, shape, strict=True)):
        raise DatasetError(f"{where}: {plane} lies outside the image of shape {tuple(shape)}")


def _mask(entry: _Mask, plane: Plane, shape: Sequence[int], where: str) -> PlaneMask:
    _check_plane(plane, shape, where)
    if entry.rle is None:
        pixels = np.zeros((0, 0), np.bool_)
    else:
        bottom, right = entry.y0 + entry.rle.size[0], entry.x0 + entry.rle.size[1]
        # Before decoding, so that a damaged size doesn't claim memory.
        if bottom > shape[plane.axes[0]] or right > shape[plane.axes[1]]:
            raise DatasetError(
                f"{where}: {entry.rle.size} pixels from y0 {entry.y0}, x0 {entry.x0} reach outside the plane; offset "
                "and size must lie in the image"
            )
        pixels = decode_rle(entry.rle.model_dump())
    pixels.flags.writeable = False
    return PlaneMask(entry.y0, entry.x0, pixels)
