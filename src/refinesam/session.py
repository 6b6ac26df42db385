"""`Session`: a loaded model and bounded caches of image embeddings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from refinesam.embeddings import EmbeddingCache, EmbeddingStore, Features, check_bytes
from refinesam.encoded_image import EncodedImage, SegmentationModel
from refinesam.errors import ImageError
from refinesam.images import IntensityPolicy, as_rgb, read_image
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

    def encode(
        self,
        image: NDArray[Any] | Image.Image | str | os.PathLike[str],
        on_progress: OnProgress | None = None,
        *,
        intensity: IntensityPolicy = "percentile",
    ) -> EncodedImage:
        """Encode an image, or find it in the caches by its content.

        Args:
            image: (H, W, 3) uint8 RGB, which is taken as it is; or any array or Pillow image as `refinesam.as_rgb`
                takes it, gray or of 16 bits, too; or the path of a file for `refinesam.read_image`.
            on_progress: called in this thread with the image encoder's blocks done so far and their number; an
                exception it raises ends the work and passes through, and nothing is kept. Not called for an image that
                is found in a cache or that another thread encodes meanwhile. It must not encode the same image.
            intensity: how values that are not 8-bit become 8-bit, see `refinesam.as_rgb`.

        Raises:
            ImageError: no image: wrong shape or dtype, or a file that cannot be read.
            ConfigError: an unknown intensity policy.
        """
        image = _rgb(image, intensity)
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
        self,
        image: NDArray[Any] | Image.Image | str | os.PathLike[str] | EncodedImage,
        on_progress: OnProgress | None = None,
        **settings: Any,
    ) -> list[Prediction]:
        """Segment everything in an image.

        Args:
            image: as `encode` takes it, or an image already encoded.
            on_progress: called with the clicks decoded so far and their number; an exception it raises ends the work.
            **settings: as for `AutomaticMaskGenerator`.

        Raises:
            ImageError: the masks would take more than 8 GiB together, or an image that can't be encoded.
        """
        # Deferred: the generator imports torch.
        from refinesam.automatic import AutomaticMaskGenerator

        generator = AutomaticMaskGenerator(self, **settings)
        return generator.generate(image if isinstance(image, EncodedImage) else self.encode(image), on_progress)

    def iterate_everything(
        self,
        image: NDArray[Any] | Image.Image | str | os.PathLike[str] | EncodedImage,
        on_progress: OnProgress | None = None,
        **settings: Any,
    ) -> Iterator[Prediction]:
        """Segment everything, as `segment_everything` does, and give one prediction at a time.

        Each holds a mask of the whole image: of a large one keep just what is needed, such as its run-length encoding.
        """
        from refinesam.automatic import AutomaticMaskGenerator

        generator = AutomaticMaskGenerator(self, **settings)
        return generator.iterate(image if isinstance(image, EncodedImage) else self.encode(image), on_progress)

    def segment_similar(
        self,
        image: NDArray[Any] | Image.Image | str | os.PathLike[str] | EncodedImage,
        examples: Sequence[ArrayLike],
        negatives: Sequence[ArrayLike] = (),
        *,
        examples_image: NDArray[Any] | Image.Image | str | os.PathLike[str] | EncodedImage | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[Prediction]:
        """Segment every object that is like the examples, without training anything.

        Args:
            image: to be searched, as `encode` takes it, or an image already encoded.
            examples: one to five objects of a kind, each a mask (H, W) or a box (4,) XYXY in pixels.
            negatives: up to five objects that are not of that kind, in the same forms.
            examples_image: that of the examples and negatives, where it is not the one to be searched. For many images
                take a `SimilarMaskGenerator`, which looks at the examples once.
            on_progress: called with the parts of the image that are done and their number; an exception it raises ends
                the work.

        Returns:
            One prediction an object, each with one mask and a `similarity` in [0, 1], by falling similarity. Unlikely
            ones are among them: take those of at least 0.5, or move that threshold, which decodes nothing anew.

        Raises:
            ConfigError: the session's model can't decode grids.
            PromptError: no example or too many, an empty mask, or one of another image's shape.
            ImageError: the masks would take more than 8 GiB together.
        """
        # Deferred: the generator imports torch.
        from refinesam.similar import SimilarMaskGenerator

        searched = image if isinstance(image, EncodedImage) else self.encode(image)
        shown = searched if examples_image is None else examples_image
        shown = shown if isinstance(shown, EncodedImage) else self.encode(shown)
        return SimilarMaskGenerator(self, shown, examples, negatives).generate(searched, on_progress)


def _rgb(image: object, intensity: IntensityPolicy) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 with pixels; the array itself where it is that."""
    if isinstance(image, str | os.PathLike):
        return read_image(image, intensity=intensity)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if not image.size:
            raise ImageError(f"The image is empty: shape {image.shape}. Give one with pixels.")
        return image
    if not isinstance(image, Image.Image) and not hasattr(image, "dtype"):
        raise ImageError(
            f"encode takes a (H, W, 3) uint8 RGB array, a Pillow image or a path, got {type(image).__name__}."
        )
    try:
        return as_rgb(image, intensity=intensity)  # type: ignore[arg-type]  # it says what it cannot take
    except ImageError as error:
        raise ImageError(f"{error} Or convert it with refinesam.as_rgb first, which takes these settings.") from error
