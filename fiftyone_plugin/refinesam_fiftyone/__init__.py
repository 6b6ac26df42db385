"""Compare masks with and without Adaptive Mask Refinement in FiftyOne: a plugin, and the functions behind it.

FiftyOne loads this folder by its path and calls `register`; from Python the modules are imported as any others.
"""

from __future__ import annotations

from typing import Any

__all__ = ["register"]


def register(plugin: Any) -> None:
    """Register the operators and the panel with FiftyOne."""
    # Imported here, so that `import refinesam_fiftyone` asks for no App.
    from .operators import OPERATORS
    from .panel import ComparisonPanel

    for operator in (*OPERATORS, ComparisonPanel):
        plugin.register(operator)
