"""Which masks of one prompt are worth choosing between: a click on a button may mean it, the shirt or the person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from refinesam.arrays import BoolArray

__all__ = ["SAME_IOU", "distinct"]

# Masks that agree by more are one object to a person: a choice between them would be none.
SAME_IOU: Final = 0.9


def distinct(masks: Sequence[BoolArray], same_iou: float = SAME_IOU) -> list[int]:
    """Return the indices of the masks that differ from each other, the smallest area first.

    Args:
        masks: (H, W) each, the preferred ones first: of two that agree the earlier one stays.
        same_iou: two masks whose IoU is above it agree.

    Returns:
        Indices without those of empty masks.
    """
    areas = [int(np.count_nonzero(mask)) for mask in masks]
    kept: list[int] = []
    for index, area in enumerate(areas):
        if area and not any(_iou(masks[index], masks[other], area + areas[other]) > same_iou for other in kept):
            kept.append(index)
    return sorted(kept, key=areas.__getitem__)


def _iou(a: BoolArray, b: BoolArray, areas: int) -> float:
    both = int(np.count_nonzero(a & b))
    return both / (areas - both)
