"""What objects are: the classes of an image, and the steps that make, change and give them (no napari)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from refinesam import ConfigError
from refinesam_napari.document import Classes, Document, History, ObjectClass, SegmentedObject

__all__ = ["CLASS_COLOURS", "Classifying", "new_class_id"]

# Of new classes, one after the other: none is like the preview's blue and orange, or gray.
CLASS_COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#f032e6", "#911eb4", "#bfef45", "#fabed4", "#800000")

# No two classes of a process have the same key, so that a class is the same one in all images that it came to.
_numbers = itertools.count(1)


def new_class_id() -> int:
    """Return a key that no class has."""
    return next(_numbers)


@dataclass(eq=False, kw_only=True)
class Classifying:
    """The history of an image, and its steps that are about classes.

    Attributes:
        history: the document, and the steps to it.
        class_id: what new objects are, None for no class. It may be a class that was undone; see `current_class`.
    """

    history: History = field(default_factory=History)
    class_id: int | None = None

    @property
    def document(self) -> Document:
        """The current document."""
        return self.history.document

    @property
    def current_class(self) -> int | None:
        """Key of the class that new objects get, None for none."""
        return self.class_id if self.class_id in self.document.classes else None

    def classed(self, item: SegmentedObject) -> SegmentedObject:
        """Return a new object with the class that new objects get."""
        return replace(item, class_id=self.current_class)

    def take_classes(self, classes: Classes, current: int | None) -> None:
        """Know the classes of the image that was in hand before, too, and go on with its current one; no step."""
        self.history.rewrite_all(lambda document: document.with_classes_of(classes))
        self.class_id = self.document.known_class(classes, current)

    def add_class(self, name: str) -> int:
        """Make a class that new objects get from now on, and return its key.

        Raises:
            ConfigError: no name, or that of another class.
        """
        name, class_id = self._checked(name), new_class_id()
        taken = [made.colour for made in self.document.classes.values()]
        again = CLASS_COLOURS[len(taken) % len(CLASS_COLOURS)]
        colour = next((colour for colour in CLASS_COLOURS if colour not in taken), again)
        self.history.do(f"add class {name}", self.document.with_class(class_id, ObjectClass(name, colour)))
        self.class_id = class_id
        return class_id

    def rename_class(self, class_id: int, name: str) -> None:
        """Give a class another name.

        Raises:
            ConfigError: no name, or that of another class.
        """
        made = self.document.classes[class_id]
        if name.strip() != made.name:
            made = replace(made, name=self._checked(name))
            self.history.do(f"rename class {made.name}", self.document.with_class(class_id, made))

    def recolour_class(self, class_id: int, colour: str) -> None:
        """Give a class another colour, "#rrggbb"."""
        made = self.document.classes[class_id]
        if colour != made.colour:
            document = self.document.with_class(class_id, replace(made, colour=colour))
            self.history.do(f"recolour class {made.name}", document)

    def remove_class(self, class_id: int) -> None:
        """Drop a class; its objects have none then."""
        name = self.document.classes[class_id].name
        classes = {key: made for key, made in self.document.classes.items() if key != class_id}
        objects = {
            key: replace(item, class_id=None) if item.class_id == class_id else item
            for key, item in self.document.objects.items()
        }
        document = replace(self.document, classes=MappingProxyType(classes), objects=MappingProxyType(objects))
        self.history.do(f"remove class {name}", document)

    def give_class(self, object_ids: Iterable[int], class_id: int | None) -> int:
        """Change the class of objects, None for none, in one step; returns how many had another."""
        changed = {
            key: replace(item, class_id=class_id)
            for key in object_ids
            if (item := self.document.objects.get(key)) is not None and item.class_id != class_id
        }
        if changed:
            name = "no class" if class_id is None else f"class {self.document.classes[class_id].name}"
            which = f"object {next(iter(changed))}" if len(changed) == 1 else f"{len(changed)} objects"
            objects = MappingProxyType({**self.document.objects, **changed})
            self.history.do(f"give {which} {name}", replace(self.document, objects=objects))
        return len(changed)

    def _checked(self, name: str) -> str:
        name = name.strip()
        if not name:
            raise ConfigError("The class has no name: type one, such as “nucleus”.")
        if self.document.class_named(name) is not None:
            raise ConfigError(f"There is a class {name!r} already: choose another name.")
        return name
