"""What a user painted into an object and erased from it by hand, which no model may take back (numpy only)."""

from __future__ import annotations

from dataclasses import dataclass

from refinesam_napari.geometry import NO_MASK, PlaneMask

__all__ = ["Correction"]


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
