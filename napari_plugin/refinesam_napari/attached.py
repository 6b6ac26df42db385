"""What is kept for a layer or a window as long as it lives, and no longer."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, MutableMapping
from typing import Generic, TypeVar

__all__ = ["Attached"]

K = TypeVar("K")
V = TypeVar("V")


class Attached(MutableMapping[K, V], Generic[K, V]):
    """Values by objects, kept on the objects themselves: both go together when nothing else holds the object.

    In a `WeakKeyDictionary` a value that refers to its own key keeps it for ever, and with it the image's memory.
    """

    def __init__(self) -> None:
        self._owners: weakref.WeakValueDictionary[int, K] = weakref.WeakValueDictionary()

    def __getitem__(self, owner: K) -> V:
        value: V = self._values(owner)[self]
        return value

    def __setitem__(self, owner: K, value: V) -> None:
        self._values(owner)[self] = value
        self._owners[id(owner)] = owner

    def __delitem__(self, owner: K) -> None:
        del self._values(owner)[self]
        del self._owners[id(owner)]

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._owners.values()))

    def __len__(self) -> int:
        return len(self._owners)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def _values(self, owner: K) -> weakref.WeakKeyDictionary[Attached[K, V], V]:
        values: weakref.WeakKeyDictionary[Attached[K, V], V]
        values = vars(owner).setdefault("_refinesam", weakref.WeakKeyDictionary())
        return values
