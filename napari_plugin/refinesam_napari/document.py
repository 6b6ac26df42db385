"""What the user has made: prompts of the object in hand, committed objects, and one history over both (no napari)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from refinesam_napari.geometry import NO_MASK, Crop, Plane, PlaneMask

__all__ = [
    "Change",
    "Classes",
    "Correction",
    "Document",
    "History",
    "ObjectClass",
    "Origin",
    "PlanePrompts",
    "Point",
    "SegmentedObject",
    "Write",
]

# How an object came about: from prompts in each of its planes, from segment-everything, through propagation from
# prompted planes to others, by hand in the labels layer, or it was in a layer that the user chose.
Origin = Literal["prompts", "everything", "similar", "propagated", "painted", "found"]


@dataclass(frozen=True)
class Point:
    """A click at the plane's (x, y), on the object or not on it."""

    x: float
    y: float
    positive: bool = True


@dataclass(frozen=True)
class PlanePrompts:
    """The prompts of one object in one plane.

    Attributes:
        points: clicks in the order in which they were made.
        box: x0, y0, x1, y1 in the plane, or None.
        crop: what the model saw when it answered, None until it did. Kept, because the same prompts on another crop
            can give another mask.
        refine: whether the answer went through Adaptive Mask Refinement.
        candidate: which of the masks that the answer offers was chosen, from 0, the smallest; None for the model's own
            choice.
    """

    points: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None
    crop: Crop | None = None
    refine: bool = False
    candidate: int | None = None

    @property
    def names_an_object(self) -> bool:
        """Whether there is anything but negative clicks."""
        return self.box is not None or any(point.positive for point in self.points)

    def __bool__(self) -> bool:
        return bool(self.points) or self.box is not None

    def after(self, before: PlanePrompts) -> PlanePrompts:
        """Return new prompts with what stays of those before: what the model saw, and a choice if they are the same."""
        same = (self.points, self.box) == (before.points, before.box)
        candidate = before.candidate if same else self.candidate
        return replace(self, crop=before.crop, refine=before.refine, candidate=candidate)


PromptsByPlane = Mapping[Plane, PlanePrompts]
NO_PROMPTS: PromptsByPlane = MappingProxyType({})


@dataclass(frozen=True)
class ObjectClass:
    """What objects may be, such as nuclei; `colour` as "#rrggbb". No two of an image have the same name."""

    name: str
    colour: str


Classes = Mapping[int, ObjectClass]


@dataclass(frozen=True, eq=False)
class Correction:
    """Pixels of a plane that were painted into an object, and others that were erased from it.

    Attributes:
        added, erased: no pixel is in both.
    """

    added: PlaneMask = NO_MASK
    erased: PlaneMask = NO_MASK

    def then(self, later: Correction) -> Correction:
        """Return both corrections as one; where they disagree the later one holds."""
        return Correction(
            self.added.without(later.erased).united(later.added), self.erased.without(later.added).united(later.erased)
        )

    def of(self, mask: PlaneMask) -> PlaneMask:
        """Return a mask corrected."""
        return mask.without(self.erased).united(self.added)


@dataclass(frozen=True)
class SegmentedObject:
    """A committed object; its pixels are those of its id in the labels.

    Attributes:
        id: its value in the labels, from 1.
        prompts: by plane; empty for an object that was painted.
        planes: all planes in which it has pixels.
        origin: how it came about.
        score: predicted IoU, of the plane committed last; None for an object that was painted.
        corrections: what was painted and erased by hand, by plane. It belongs to the object: whatever its mask becomes
            through prompts or propagation, this holds.
        class_id: key of its class among the document's, None without one.
    """

    id: int
    prompts: PromptsByPlane = field(default_factory=lambda: NO_PROMPTS)
    planes: tuple[Plane, ...] = ()
    origin: Origin = "prompts"
    score: float | None = None
    corrections: Mapping[Plane, Correction] = field(default_factory=lambda: MappingProxyType({}), compare=False)
    class_id: int | None = None

    def after(self, before: SegmentedObject) -> SegmentedObject:
        """Return the object outlined anew, with what stays of it as it was: corrections and class."""
        return replace(self, corrections=before.corrections, class_id=before.class_id)

    def corrected(self, plane: Plane, correction: Correction) -> SegmentedObject:
        """Return the object after it was painted or erased in a plane."""
        before = self.corrections.get(plane)
        correction = correction if before is None else before.then(correction)
        planes = (*self.planes, plane) if plane not in self.planes and correction.added.pixels.size else self.planes
        return replace(self, planes=planes, corrections=MappingProxyType({**self.corrections, plane: correction}))


@dataclass(frozen=True)
class Document:
    """All that can be undone but the labels' pixels.

    Attributes:
        draft: prompts of the object in hand.
        editing: id of the committed object whose prompts these are; None for a new object.
        objects: by id.
        classes: those that objects may have, by keys that stay the same when a class gets another name.
    """

    draft: PromptsByPlane = field(default_factory=lambda: NO_PROMPTS)
    editing: int | None = None
    objects: Mapping[int, SegmentedObject] = field(default_factory=lambda: MappingProxyType({}))
    classes: Classes = field(default_factory=lambda: MappingProxyType({}))

    def with_object(self, item: SegmentedObject) -> Document:
        """Return the document with an object added or replaced."""
        return replace(self, objects=MappingProxyType({**self.objects, item.id: item}))

    def without_object(self, object_id: int) -> Document:
        """Return the document without an object; a draft that edits it becomes a new object's."""
        objects = {key: value for key, value in self.objects.items() if key != object_id}
        editing = None if self.editing == object_id else self.editing
        return replace(self, objects=MappingProxyType(objects), editing=editing)

    def choosing(self, plane: Plane, candidate: int) -> Document:
        """Return the document with another choice of what the draft's prompts in a plane mean."""
        chosen = replace(self.draft[plane], candidate=candidate)
        return replace(self, draft=MappingProxyType({**self.draft, plane: chosen}))

    def class_of(self, item: SegmentedObject) -> ObjectClass | None:
        """Return the class of an object, None without one."""
        return None if item.class_id is None else self.classes.get(item.class_id)

    def with_class(self, class_id: int, made: ObjectClass) -> Document:
        """Return the document with a class added or replaced."""
        return replace(self, classes=MappingProxyType({**self.classes, class_id: made}))

    def with_classes_of(self, others: Classes) -> Document:
        """Return the document with classes of another added, but those that it has, perhaps by another name."""
        new = {
            class_id: made
            for class_id, made in others.items()
            if class_id not in self.classes and self.class_named(made.name) is None
        }
        return replace(self, classes=MappingProxyType({**self.classes, **new})) if new else self

    def known_class(self, others: Classes, class_id: int | None) -> int | None:
        """Return the key that a class of another document has here, by its key or its name; None if it has none."""
        if class_id is None or class_id not in others:
            return None
        return class_id if class_id in self.classes else self.class_named(others[class_id].name)

    def class_named(self, name: str) -> int | None:
        """Return the key of the class of a name."""
        return next((class_id for class_id, made in self.classes.items() if made.name == name), None)

    def cleared(self) -> Document:
        """Return the document with no object in hand."""
        return replace(self, draft=NO_PROMPTS, editing=None)


@dataclass(frozen=True, eq=False)
class Write:
    """Pixels written to the labels: where `mask` holds, values went from `old` to `new`.

    Attributes:
        key: index of a box in the labels, slices on all axes.
        mask: of the box's shape, bool.
        old: of the box's shape.
        new: of the box's shape, or one value.
    """

    key: tuple[slice, ...]
    mask: NDArray[np.bool_]
    old: NDArray[np.generic]
    new: NDArray[np.generic] | int

    def gives(self, object_id: int) -> bool:
        """Whether an object gets pixels."""
        if isinstance(self.new, int):
            return self.new == object_id
        return bool((self.new[self.mask] == object_id).any())

    def backward(self, now: NDArray[np.generic]) -> tuple[NDArray[np.bool_], NDArray[np.generic]]:
        """Return where in the box, now `now`, to write what, to undo: only where what was written still stands."""
        return self.mask & (now == self.new), self.old

    def forward(self, now: NDArray[np.generic]) -> tuple[NDArray[np.bool_], NDArray[np.generic] | int]:
        """Return where in the box, now `now`, to write what, to do it again: only where the old values stand."""
        return self.mask & (now == self.old), self.new


@dataclass(eq=False)
class Change:
    """One step of the history.

    Attributes:
        name: what the user did, in words for a menu.
        before, after: the document.
        writes: what was written to the labels, in order. Masks that are still being computed when an object is
            committed are added here when they arrive.
        undone: whether it was stepped back over.
    """

    name: str
    before: Document
    after: Document
    writes: list[Write] = field(default_factory=list)
    undone: bool = False


class History:
    """The current document, and the changes to go back and forth over."""

    def __init__(self, document: Document | None = None) -> None:
        self.document = document or Document()
        self._done: list[Change] = []
        self._undone: list[Change] = []

    def do(self, name: str, after: Document, writes: Iterable[Write] = ()) -> Change:
        """Record a change, which is now the last; what was undone before can't be redone any more."""
        change = Change(name, self.document, after, list(writes))
        self._done.append(change)
        self._undone.clear()
        self.document = after
        return change

    def undo(self) -> Change | None:
        """Step back and return the change to revert, None at the beginning."""
        if not self._done:
            return None
        change = self._done.pop()
        self._undone.append(change)
        change.undone = True
        self.document = change.before
        return change

    def redo(self) -> Change | None:
        """Step forward and return the change to make again, None at the end."""
        if not self._undone:
            return None
        change = self._undone.pop()
        self._done.append(change)
        change.undone = False
        self.document = change.after
        return change

    def rewrite(self, first: Change, stop: int | None, edit: Callable[[Document], Document]) -> None:
        """Change the documents after a step, up to before the step of an index, or to the end, if it is None."""
        steps, position = self.steps, self.position
        start = steps.index(first)
        for index in range(start, len(steps) if stop is None else stop):
            steps[index].after = edit(steps[index].after)
            if index + 1 < len(steps):
                steps[index + 1].before = steps[index].after
        if position:
            self.document = steps[position - 1].after

    def rewrite_all(self, edit: Callable[[Document], Document]) -> None:
        """Change the documents before and after every step, so that no step takes it back."""
        for change in self.steps:
            change.before, change.after = edit(change.before), edit(change.after)
        self.document = edit(self.document)

    @property
    def steps(self) -> list[Change]:
        """All changes from the oldest on: those that are done, then those that were undone."""
        return [*self._done, *reversed(self._undone)]

    @property
    def position(self) -> int:
        """How many of the steps are done."""
        return len(self._done)

    @property
    def last(self) -> Change | None:
        """The change that `undo` would revert."""
        return self._done[-1] if self._done else None

    @property
    def next(self) -> Change | None:
        """The change that `redo` would make again."""
        return self._undone[-1] if self._undone else None

    @property
    def undo_name(self) -> str | None:
        """Name of the change that `undo` would revert."""
        return self._done[-1].name if self._done else None

    @property
    def redo_name(self) -> str | None:
        """Name of the change that `redo` would make again."""
        return self._undone[-1].name if self._undone else None
