"""Names of a module that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["lazy_names"]


def lazy_names(module: str, holders: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a module's `__getattr__` and `__dir__`.

    Args:
        module: its name.
        holders: by public name, the module that holds it.
    """

    def get(name: str) -> object:
        if name not in holders:
            known = ", ".join(sorted(holders))
            raise AttributeError(f"module {module!r} has no attribute {name!r}; its public names are {known}.")
        value: object = getattr(import_module(holders[name]), name)
        setattr(sys.modules[module], name, value)  # The next access no longer comes through here.
        return value

    def names() -> list[str]:
        known = vars(sys.modules[module])
        return sorted({*known, *known["__all__"]})

    return get, names
