"""The operators of the App: a form each, checked before it runs, and the public function that does the work."""

from __future__ import annotations

from typing import Final

from .comparing import Compare
from .evaluating import Evaluate, Rank, RankLabels
from .explaining import Explain
from .exporting import Export
from .finding import FindSimilar
from .importing import ImportBatch
from .matching import MatchDetections
from .runs import Cancel, DeleteRun

__all__ = ["OPERATORS"]

OPERATORS: Final = (
    Compare,
    Evaluate,
    MatchDetections,
    Rank,
    RankLabels,
    Explain,
    Export,
    FindSimilar,
    ImportBatch,
    Cancel,
    DeleteRun,
)
