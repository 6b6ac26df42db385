"""Hints that come once: other weights may suit the image better."""

from __future__ import annotations

import threading
from collections.abc import Hashable

import numpy as np

from refinesam.hosts import known_weights
from refinesam_napari.images import CropReader
from refinesam_napari.inference import PredictionRequest

__all__ = ["PhotographHint", "photograph_hint"]

# Where the built-in weights are weak.
FOR_PHOTOGRAPHS = "efficientsam_ti"
# A pixel is coloured when its channels differ by more; lossy files of gray images have a few such at most.
GRAY_DIFFERENCE, GRAY_SHARE = 16, 0.01


class PhotographHint:
    """Says once in a process that other weights suit photographs better than the built-in ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told = False
        self._looked_at: Hashable = None

    def text_for(self, request: PredictionRequest, reader: CropReader) -> str:
        """Return the hint if a request was answered on a coloured RGB image by the built-in weights, else ""."""
        if self._told or request.model.weights != "builtin" or not request.image.rgb:
            return ""
        # Of many clicks on one picture, the first alone looks at its colours.
        picture = (id(request.image.levels[0]), request.plane, request.crop)
        if picture == self._looked_at:
            return ""
        self._looked_at = picture
        pixels = reader.read(request.image, request.plane, request.crop)
        if (np.ptp(pixels, axis=-1) > GRAY_DIFFERENCE).mean() < GRAY_SHARE:
            return ""
        if not self._take_turn():
            return ""
        better = known_weights()[FOR_PHOTOGRAPHS]
        where = "which is here already" if better.is_here else f"{better.size_words} to download"
        return (
            f"For a photograph of many things choose {better.name} under Model ({where}): the built-in weights are "
            "weak on these."
        )

    def _take_turn(self) -> bool:
        with self._lock:
            told, self._told = self._told, True
        return not told


photograph_hint = PhotographHint()
