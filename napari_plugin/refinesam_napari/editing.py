"""The steps that a user takes with an image: document, history and labels, which each step leaves in agreement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from refinesam import RefineSAMError
from refinesam_napari.classes import Classifying
from refinesam_napari.document import Change, Document, History, Origin, PlanePrompts, SegmentedObject, Write
from refinesam_napari.geometry import NO_MASK, Crop, Plane, PlaneMask
from refinesam_napari.objects_layer import ObjectsLayer, ids_in
from refinesam_napari.painting import corrections_of

__all__ = ["Editing"]


@dataclass(eq=False, kw_only=True)
class Editing(Classifying):
    """What was made of one image, and what can be done with it.

    Pixels are written before a step is recorded. No step leaves an object without a pixel, but those whose masks are
    still being computed.

    Attributes:
        objects: the labels layer with the committed objects, None before the first.
        crops: what the model saw last, by plane, for the object in hand.
        channel_axis: the data axis that objects have no place on, or None.
    """

    objects: ObjectsLayer | None = None
    crops: dict[Plane, Crop] = field(default_factory=dict)
    channel_axis: int | None = None

    def edit_draft(self, name: str, prompts: Mapping[Plane, PlanePrompts]) -> bool:
        """Replace the draft's prompts; False if they are the same."""
        old = self.document.draft
        merged = {plane: new.after(old[plane]) if plane in old else new for plane, new in prompts.items()}
        if merged == dict(old):
            return False
        self.history.do(name, replace(self.document, draft=MappingProxyType(merged)))
        return True

    def choose(self, plane: Plane, candidate: int, name: str) -> None:
        """Choose one of the masks that the draft's prompts in a plane may mean."""
        self.history.do(name, self.document.choosing(plane, candidate))

    def next_id(self) -> int:
        """Return the next id that no object has."""
        before = 0 if self.objects is None else self.objects.highest_before
        return max([before, *self.document.objects]) + 1

    def commit(
        self, object_id: int, prompts: Mapping[Plane, PlanePrompts], masks: Mapping[Plane, PlaneMask], overwrite: bool,
        score: float | None, origin: Origin = "prompts",
    ) -> Change | None:  # fmt: skip
        """Make an object of the draft, or put it in place of the one that the draft edits.

        Args:
            object_id: its id.
            prompts: by plane, with crop and refinement.
            masks: by plane, as far as they are known already.
            overwrite: whether it may cover other objects.
            score: predicted IoU.
            origin: how it came about.

        Returns:
            The step; None if the object would not have a pixel, and then nothing is changed.

        Raises:
            ConfigError: the id does not fit into the labels, or they can't be written to; nothing is changed then.
        """
        self._check_ids([object_id])
        before = self.document.objects.get(object_id)
        planes = dict.fromkeys([*prompts, *masks])
        writes = []
        if before is not None:
            given_up = {
                plane: self._corrected(object_id, plane, NO_MASK) for plane in before.prompts if plane not in planes
            }
            writes += self.plan(object_id, given_up, overwrite)
            kept = [plane for plane in before.planes if plane not in given_up or given_up[plane].pixels.size]
            planes.update(dict.fromkeys(kept))
        corrected = {plane: self._corrected(object_id, plane, mask) for plane, mask in masks.items()}
        writes += self.plan(object_id, corrected, overwrite)
        item = SegmentedObject(object_id, MappingProxyType(dict(prompts)), tuple(planes), origin, score)
        item = self.classed(item) if before is None else item.after(before)
        name = f"{'change' if before else 'add'} object {object_id}"
        with self._pixels_first() as written:
            self._write(writes, written)
            given = any(write.gives(object_id) for write in writes)
            if masks.keys() >= prompts.keys() and not given and not self.has_pixels(item):
                self._take_back(written)
                return None
        change = self._record(name, self.document.with_object(item).cleared(), written, object_id)
        self.crops.clear()
        return change

    def commit_many(self, items: Iterable[tuple[SegmentedObject, Mapping[Plane, PlaneMask]]], overwrite: bool) -> int:
        """Add several new objects in one step; those that nothing free is left for are left out. Returns how many.

        Raises:
            ConfigError: see `commit`.
        """
        items = list(items)
        self._check_ids(item.id for item, _ in items)
        document, count = self.document, 0
        with self._pixels_first() as written:
            for item, masks in items:
                # Each is written before the next is planned, so that they don't overlap.
                planned = self.plan(item.id, masks, overwrite)
                if planned:
                    self._write(planned, written)
                    document = document.with_object(self.classed(item))
                    count += 1
        if count:
            self._record(f"add {count} objects", document, written)
        return count

    def extend(self, object_id: int, masks: Mapping[Plane, PlaneMask], overwrite: bool) -> None:
        """Give an object masks in further planes; an empty mask takes the plane from it."""
        item = self.document.objects.get(object_id)
        if item is None:
            return
        masks = {plane: self._corrected(object_id, plane, mask) for plane, mask in masks.items()}
        writes = self.plan(object_id, masks, overwrite)
        planes = dict.fromkeys([*item.planes, *masks])
        kept = tuple(
            plane for plane in planes if plane in item.prompts or plane not in masks or masks[plane].pixels.size
        )
        item = replace(item, planes=kept, origin="propagated")
        with self._pixels_first() as written:
            self._write(writes, written)
        self._record(f"propagate object {object_id}", self.document.with_object(item), written)

    def replace_all(self, document: Document, masks: Mapping[tuple[int, Plane], PlaneMask], name: str) -> list[int]:
        """Put another document and its masks in place of all that was made here, in one step.

        What was in the labels before stays, but for objects of the same ids.

        Returns:
            Ids of the objects that have no pixel: they are left out, but those with prompts, whose masks can be
            computed.

        Raises:
            ConfigError: see `commit`.
        """
        self._check_ids(object_id for object_id, _ in masks)
        before = self.document
        document = document.with_classes_of(before.classes)
        stay = {
            item.id: replace(item, class_id=document.known_class(before.classes, item.class_id))
            for item in before.objects.values()
            if item.id not in document.objects and item.origin == "found"
        }
        if stay:
            document = replace(document, objects=MappingProxyType({**stay, **document.objects}))
        with self._pixels_first() as written:
            for object_id, item in self.document.objects.items():
                if object_id not in stay:
                    self._write(self.plan(object_id, dict.fromkeys(item.planes, NO_MASK), overwrite=False), written)
            for (object_id, plane), mask in masks.items():
                self._write(self.plan(object_id, {plane: mask}, overwrite=False), written)
        empty = [object_id for object_id, item in document.objects.items() if not self.has_pixels(item)]
        for object_id in empty:
            if not document.objects[object_id].prompts:
                document = document.without_object(object_id)
        self.history.do(name, document, written)
        self.class_id = document.known_class(before.classes, self.class_id)
        self.crops.clear()
        return empty

    def recompute(self, masks: Mapping[tuple[int, Plane], PlaneMask], name: str) -> set[int]:
        """Give objects new masks in planes, in one step; what one object has it does not lose to another.

        Returns:
            Ids of the objects that all new masks are empty of: they stay as they are.

        Raises:
            ConfigError: see `commit`.
        """
        corrected = {key: self._corrected(*key, mask) for key, mask in masks.items()}
        lost = {key[0] for key in corrected} - {key[0] for key, mask in corrected.items() if mask.pixels.size}
        corrected = {key: mask for key, mask in corrected.items() if key[0] not in lost}
        with self._pixels_first() as written:
            # First what they give up, so that it doesn't matter which comes first.
            for (object_id, plane), mask in corrected.items():
                now = self.mask_of(object_id, plane)
                self._write(self.plan(object_id, {plane: now.without(now.without(mask))}, overwrite=False), written)
            for (object_id, plane), mask in corrected.items():
                self._write(self.plan(object_id, {plane: mask}, overwrite=False), written)
        self._record(name, self.document, written)
        return lost

    def complete(self, change: Change, object_id: int, plane: Plane, mask: PlaneMask, overwrite: bool) -> None:
        """Add the mask of a plane that was not known yet when its object was committed.

        If the object was deleted or committed again meanwhile, the mask is there only between these steps, for undo. An
        object that was there before does not lose its last pixel to an empty mask.
        """
        steps, position = self.history.steps, self.history.position
        if change not in steps:
            return  # Undone, and then other things were done: nothing leads there any more.
        superseding = self._superseding(change, object_id)
        if superseding is not None:
            self._go(superseding)
        try:
            writes = self.plan(object_id, {plane: self._corrected(object_id, plane, mask)}, overwrite)
            item = self.document.objects.get(object_id)
            emptied = bool(writes) and not any(write.gives(object_id) for write in writes)
            others = () if item is None else tuple(other for other in item.planes if other != plane)
            if emptied and item is not None and not self.has_pixels(replace(item, planes=others)):
                return
            if change.undone:
                change.writes += writes
            else:
                self._write(writes, change.writes)
            if superseding is not None:
                steps[superseding].writes[:0] = self.plan(object_id, {plane: NO_MASK}, overwrite)
        finally:
            self._go(position)

    def drop_ghost(self, change: Change, object_id: int) -> bool:
        """Once all masks of a new object have come: if it got no pixel, nobody sees it any more. Whether that is so."""
        if change.writes or object_id in change.before.objects or object_id not in change.after.objects:
            return False
        superseding = self._superseding(change, object_id)
        self.history.rewrite(change, superseding, lambda document: document.without_object(object_id))
        return True

    def _superseding(self, change: Change, object_id: int) -> int | None:
        """Index of the step that deletes an object or commits it again, after the one that committed it."""
        steps, committed = self.history.steps, change.after.objects.get(object_id)
        if change not in steps or committed is None:
            return None
        for index in range(steps.index(change) + 1, len(steps)):
            item = steps[index].after.objects.get(object_id)
            if item is None or item.prompts is not committed.prompts:
                return index
        return None

    def delete(self, object_id: int) -> bool:
        """Delete an object and its pixels; False if there is none of this id."""
        item = self.document.objects.get(object_id)
        if item is None:
            return False
        with self._pixels_first() as written:
            self._write(self.plan(object_id, dict.fromkeys(item.planes, NO_MASK), overwrite=False), written)
        self.history.do(f"delete object {object_id}", self.document.without_object(object_id), written)
        return True

    def edit_object(self, object_id: int) -> bool:
        """Take an object's prompts in hand again; False if there is none of this id."""
        item = self.document.objects.get(object_id)
        if item is None:
            return False
        document = replace(self.document, draft=item.prompts, editing=object_id)
        self.history.do(f"edit object {object_id}", document)
        self.crops = {plane: prompts.crop for plane, prompts in item.prompts.items() if prompts.crop is not None}
        return True

    def discard_draft(self) -> bool:
        """Drop the object in hand; False if there is none."""
        if not self.document.draft and self.document.editing is None:
            return False
        self.history.do("drop prompts", self.document.cleared())
        self.crops.clear()
        return True

    def painted(self, writes: tuple[Write, ...], axes: tuple[int, int]) -> None:
        """Record what the user painted into the labels."""
        document = self.document
        for (object_id, plane), correction in corrections_of(writes, axes, self.channel_axis).items():
            item = document.objects.get(object_id)
            if item is not None or correction.added.pixels.size:
                item = item or self.classed(SegmentedObject(object_id, origin="painted"))
                document = document.with_object(item.corrected(plane, correction))
        self._record("paint", document, writes)

    def found(self, planes: Mapping[int, Sequence[Plane]], anew: bool = False) -> None:
        """Take the objects that are in the labels for those of the document: new ones in, those that are gone out.

        Args:
            planes: in which planes each has pixels.
            anew: begin the history there, since another layer is meant from now on.
        """
        before = {} if anew else self.document.objects
        objects = {
            object_id: before.get(object_id) or SegmentedObject(object_id, planes=tuple(where), origin="found")
            for object_id, where in planes.items()
        }
        editing = self.document.editing if self.document.editing in objects else None
        document = replace(self.document, objects=MappingProxyType(objects), editing=editing)
        if anew:
            self.history = History(replace(document, editing=None))
        elif objects.keys() != before.keys():
            self.history.do("update objects", document)

    def undo(self) -> Change | None:
        """Step back; None at the beginning.

        Raises:
            ConfigError: the labels can't be written to; nothing is changed then.
        """
        if self.objects is not None and self.history.last is not None:
            self.objects.undo(self.history.last.writes)
        return self.history.undo()

    def redo(self) -> Change | None:
        """Step forward; None at the end.

        Raises:
            ConfigError: the labels can't be written to; nothing is changed then.
        """
        if self.objects is not None and self.history.next is not None:
            self.objects.redo(self.history.next.writes)
        return self.history.redo()

    def _go(self, position: int) -> None:
        """Step back or forward until so many steps are done."""
        while self.history.position > position:
            self.undo()
        while self.history.position < position:
            self.redo()

    def plan(self, object_id: int, masks: Mapping[Plane, PlaneMask], overwrite: bool) -> list[Write]:
        """Plan to give an object new masks in some planes."""
        return [] if self.objects is None else list(self.objects.plans(object_id, masks, overwrite))

    def has_pixels(self, item: SegmentedObject) -> bool:
        """Whether an object has a pixel in the labels."""
        return any(self.mask_of(item.id, plane).pixels.size for plane in item.planes)

    def mask_of(self, object_id: int, plane: Plane) -> PlaneMask:
        """Return the pixels of an object in a plane, as they are in the labels now."""
        return NO_MASK if self.objects is None else self.objects.mask_of(object_id, plane)

    def previewed(self, plane: Plane, mask: PlaneMask) -> PlaneMask:
        """Return what the object in hand would be with a mask: with what was painted and erased by hand."""
        editing = self.document.editing
        return mask if editing is None else self._corrected(editing, plane, mask)

    def _corrected(self, object_id: int, plane: Plane, mask: PlaneMask) -> PlaneMask:
        item = self.document.objects.get(object_id)
        correction = None if item is None else item.corrections.get(plane)
        return mask if correction is None else correction.of(mask)

    def masks(self) -> dict[tuple[int, Plane], PlaneMask]:
        """Return the pixels of every object in each of its planes, as they are in the labels now."""
        if self.objects is None:
            return {}
        return {
            (object_id, plane): self.objects.mask_of(object_id, plane)
            for object_id, item in self.document.objects.items()
            for plane in item.planes
        }

    def _check_ids(self, object_ids: Iterable[int]) -> None:
        if self.objects is not None:
            for object_id in object_ids:
                self.objects.check_id(object_id)

    @contextmanager
    def _pixels_first(self) -> Iterator[list[Write]]:
        """Collect what is written before its step is recorded; if a part fails, all of it is taken back."""
        written: list[Write] = []
        try:
            yield written
        except Exception:
            with suppress(RefineSAMError):
                self._take_back(written)
            raise

    def _take_back(self, written: Sequence[Write]) -> None:
        if self.objects is not None:
            self.objects.undo(written)

    def _record(self, name: str, document: Document, written: Sequence[Write], awaited: int | None = None) -> Change:
        """Record a step whose pixels are written; objects that it took the last pixel from go with it.

        Args:
            name: of the step.
            document: after it.
            written: its pixels.
            awaited: id of an object whose masks may still come.
        """
        touched = {object_id for write in written for object_id in ids_in(write.old[write.mask])} - {awaited}
        for object_id in touched & document.objects.keys():
            if not self.has_pixels(document.objects[object_id]):
                document = document.without_object(object_id)
        return self.history.do(name, document, written)

    def _write(self, writes: Sequence[Write], written: list[Write]) -> None:
        if self.objects is not None:
            self.objects.apply(writes)
        written += writes
