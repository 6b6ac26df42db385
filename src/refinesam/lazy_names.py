"""Names of a module that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["lazy_names"]


def lazy_names(module: str, holders: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a module's `__getattr__` and `__dir__`.

    Args:
        module: its name.
        holders: by module that holds some of the public names, those names with spaces between them.
    """
    holder_of = {name: holder for holder, names in holders.items() for name in names.split()}

    def get(name: str) -> object:
        if name not in holder_of:
            known = ", ".join(sorted(holder_of))
            raise AttributeError(f"module {module!r} has no attribute {name!r}; its public names are {known}.")
        from importlib import import_module

        value: object = getattr(import_module(holder_of[name]), name)
        setattr(sys.modules[module], name, value)  # The next access no longer comes through here.
        return value

    def names() -> list[str]:
        known = vars(sys.modules[module])
        return sorted({*known, *known["__all__"]})

    return get, names
