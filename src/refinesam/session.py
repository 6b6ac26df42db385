"""`Session`: a loaded model and bounded caches of image embeddings."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refinesam.embeddings import EmbeddingCache, EmbeddingStore, Features, check_bytes
from refinesam.encoded_image import EncodedImage, SegmentationModel
from refinesam.errors import ImageError
from refinesam.types import Capabilities, OnProgress, Prediction

__all__ = ["Session"]

DEFAULT_CACHE_BYTES = 512 * 2**20


class Session:
    """A loaded model and its caches of image embeddings. Thread-safe; holds no current image.

    For a pool of processes: a session that `refinesam.load` made pickles as its settings, without weights and cached
    embeddings, and every process loads it once. The processes have to be started by "spawn" or "forkserver": a forked
    one has no threads to compute with, and says so.

    Attributes:
        model: the model.
        cache: embeddings in memory, by image content.
        store: embeddings on disk, by image content and model, or None.
    """

    def __init__(
        self, model: SegmentationModel, cache_bytes: int = DEFAULT_CACHE_BYTES, store: EmbeddingStore | None = None
    ) -> None:
        """Wrap a model; `refinesam.load` makes one by name."""
        check_bytes("cache_bytes", cache_bytes)
        self.model, self.store = model, store
        self.cache = EmbeddingCache(cache_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the embeddings in memory."""
        return Session, (self.model, self.cache.capacity, self.store)

    @property
    def capabilities(self) -> Capabilities:
        """What the model can be asked."""
        return self.model.capabilities

    def encode(self, image: NDArray[np.uint8], on_progress: OnProgress | None = None) -> EncodedImage:
        """Encode an image, or find it in the caches by its content.

        Args:
            image: (H, W, 3) uint8 RGB; `refinesam.as_rgb` makes one of anything else.
            on_progress: called in this thread with the image encoder's blocks done so far and their number; an
                exception it raises ends the work and passes through, and nothing is kept. Not called for an image that
                is found in a cache or that another thread encodes meanwhile. It must not encode the same image.

        Raises:
            ImageError: wrong shape or dtype.
        """
        shape, dtype = np.shape(image), getattr(image, "dtype", None)
        if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            got = type(image).__name__ if dtype is None else f"{dtype} {shape}"
            raise ImageError(f"encode needs a (H, W, 3) uint8 RGB array, got {got}. Convert it with refinesam.as_rgb.")
        if not image.size:
            raise ImageError(f"The image is empty: shape {image.shape}. Give one with pixels.")
        contiguous = np.ascontiguousarray(image)
        digest = hashlib.blake2b(contiguous.data, digest_size=16)
        digest.update(repr(contiguous.shape).encode())
        key = digest.hexdigest()
        features = self.cache.get(key, lambda: self._features(key, contiguous, on_progress))
        # The caller may write to its array later.
        pixels = contiguous.copy() if np.may_share_memory(contiguous, image) else contiguous
        pixels.flags.writeable = False
        return EncodedImage((image.shape[0], image.shape[1]), key, features, self.model, pixels)

    def _features(self, key: str, image: NDArray[np.uint8], on_progress: OnProgress | None) -> Features:
        if self.store is None:
            return self.model.encode(image, on_progress)
        key = f"{key}-{self.model.fingerprint}"
        arrays = self.store.read(key)
        if arrays is not None:
            return self.model.features_from_arrays(arrays)
        features = self.model.encode(image, on_progress)
        self.store.write(key, self.model.features_to_arrays(features))
        return features

    def segment_everything(
        self, image: NDArray[np.uint8] | EncodedImage, on_progress: OnProgress | None = None, **settings: Any
    ) -> list[Prediction]:
        """Segment everything in an image.

        Args:
            image: (H, W, 3) uint8 RGB, or an image already encoded.
            on_progress: called with the clicks decoded so far and their number; an exception it raises ends the work.
            **settings: as for `AutomaticMaskGenerator`.
        """
        # Deferred: the generator imports torch.
        from refinesam.automatic import AutomaticMaskGenerator

        return AutomaticMaskGenerator(self, **settings).generate(image, on_progress)
