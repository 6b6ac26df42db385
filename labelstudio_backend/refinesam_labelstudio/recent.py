"""`RecentImages`: decoded images kept between clicks, since decoding a photograph takes longer than answering one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from refinesam_labelstudio.image_access import FRESH_SECONDS
from refinesam_labelstudio.task_prediction import ReadImage

__all__ = ["RecentImages"]

LONGEST_NAME = 4096


class RecentImages:
    """Wraps a reader of images, least recently used first to go; safe to call from any number of threads."""

    def __init__(self, read_image: ReadImage, capacity: int = 256 * 2**20, fresh_s: float = FRESH_SECONDS) -> None:
        """Keep what `read_image` returned.

        Args:
            read_image: is asked for what isn't here.
            capacity: most bytes of pixels that are kept.
            fresh_s: seconds after which an image is read again: it may have been replaced under its name.
        """
        self._read_image, self._capacity, self._fresh_s = read_image, capacity, fresh_s
        self._lock = threading.Lock()
        self._images: OrderedDict[tuple[str, int | None], tuple[float, NDArray[np.uint8]]] = OrderedDict()

    def __call__(self, value: object, task_id: int | None) -> NDArray[np.uint8]:
        """Return the image that a task names, (H, W, 3) uint8 RGB; it is shared, so don't write to it."""
        if not isinstance(value, str) or len(value) > LONGEST_NAME:  # a data URI would be its own copy
            return self._read_image(value, task_id)
        key, now = (value, task_id), time.monotonic()
        with self._lock:
            read_at, pixels = self._images.get(key, (-np.inf, None))
            if pixels is not None and now - read_at < self._fresh_s:
                self._images.move_to_end(key)
                return pixels
        pixels = self._read_image(value, task_id)
        with self._lock:
            self._images[key] = (now, pixels)
            self._images.move_to_end(key)
            while sum(image.nbytes for _, image in self._images.values()) > self._capacity:
                self._images.popitem(last=False)
        return pixels
