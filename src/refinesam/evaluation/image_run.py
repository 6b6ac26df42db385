"""Going through a folder's images with a model, where what is damaged costs only itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from refinesam.amr import AMRConfig
from refinesam.errors import ConfigError, DatasetError, ImageError, PromptError
from refinesam.evaluation.dataset import CocoImage
from refinesam.evaluation.json_fields import DamagedRecord
from refinesam.evaluation.report import Failure
from refinesam.images import read_image
from refinesam.types import Prediction, Prompt

__all__ = [
    "ImageRun",
    "OnImage",
    "PromptableImage",
    "PromptableSession",
    "is_whole",
    "limited",
    "milliseconds_since",
    "pixels_of",
]

# Called after every image with how many are done and how many there are.
OnImage = Callable[[int, int], object]
# What one image or object can do wrong. Anything else is wrong everywhere and must stop the evaluation.
_ITEM_ERRORS = (ImageError, PromptError, DatasetError)


class PromptableImage(Protocol):
    """What evaluation needs of an encoded image; `refinesam.EncodedImage` is one."""

    def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
        """Answer a prompt with masks in the image's own pixels."""
        ...

    def refine(self, prediction: Prediction, config: AMRConfig | None = None) -> Prediction:
        """Refine a prediction; the result carries a refinement report."""
        ...


class PromptableSession(Protocol):
    """What evaluation needs of a session; `refinesam.Session` is one."""

    def encode(self, image: NDArray[np.uint8]) -> PromptableImage:
        """Encode (H, W, 3) uint8 RGB."""
        ...


@dataclass
class ImageRun:
    """One evaluation in progress.

    Attributes:
        session: the model.
        damaged: records that are missing from the images.
        failures: what could not be evaluated so far.
        encode_ms: time each image took to encode.
        unread: ids of the images that failed as a whole.
    """

    session: PromptableSession
    damaged: InitVar[Iterable[DamagedRecord]] = ()
    failures: list[Failure] = field(default_factory=list)
    encode_ms: list[float] = field(default_factory=list)
    unread: set[int] = field(default_factory=set)

    def __post_init__(self, damaged: Iterable[DamagedRecord]) -> None:
        """List the damaged records as failures."""
        for record in damaged:
            # Of an image and of a category, each object is a damaged record of its own.
            objects = int(record.part == "annotations")
            path, _, place = record.reason.partition(f": {record.part}[")
            # Without a file, the reason begins with the place.
            name, reason = (Path(path).name, f"{record.part}[{place}") if place else ("", record.reason)
            self.failures.append(Failure(None, name, None, objects, reason))

    def encoded(
        self, images: Sequence[CocoImage], on_image: OnImage | None = None
    ) -> Iterator[tuple[CocoImage, PromptableImage]]:
        """Yield each image that can be read, with its embedding."""
        for done, image in enumerate(images, start=1):
            try:
                pixels = pixels_of(image)
                start = perf_counter()
                encoded = self.session.encode(pixels)
                self.encode_ms.append(milliseconds_since(start))
            except _ITEM_ERRORS as error:
                self.unread.add(image.image_id)
                self._fail(image, None, len(image.objects), str(error))
            else:
                yield image, encoded
            if on_image is not None:
                on_image(done, len(images))

    @contextmanager
    def isolated(self, image: CocoImage, annotation_id: int | None = None, what: str = "") -> Iterator[None]:
        """List what goes wrong in the block as the failure of one object.

        Args:
            image: where it lies.
            annotation_id: of the object.
            what: names it in the reason, where it has no annotation.
        """
        try:
            yield
        except _ITEM_ERRORS as error:
            self._fail(image, annotation_id, 1, f"{what}: {error}" if what else str(error))

    def _fail(self, image: CocoImage, annotation_id: int | None, objects: int, reason: str) -> None:
        # Results are shared and compared between machines, whose folders differ.
        reason = reason.replace(str(image.path), image.path.name)
        self.failures.append(Failure(image.image_id, image.path.name, annotation_id, objects, reason))


def pixels_of(image: CocoImage) -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it cannot be read.
        DatasetError: its size is not the annotated one.
    """
    pixels = read_image(image.path)
    if pixels.shape[:2] != (image.height, image.width):
        raise DatasetError(
            f"The image is {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height, upright as its orientation "
            f"tag says), its annotation says {image.width} x {image.height}: annotate this file again, or put back "
            "the file that was annotated."
        )
    return pixels


def limited(images: Sequence[CocoImage], limit_images: int | None) -> Sequence[CocoImage]:
    """Return the first images.

    Raises:
        ConfigError: a limit that is none.
        DatasetError: there is no image.
    """
    if limit_images is not None and not is_whole(limit_images, at_least=1):
        raise ConfigError(f"limit_images is {limit_images!r}; give a whole number of at least 1, or None for all.")
    if not images:
        raise DatasetError("There is nothing to evaluate: the annotations hold no object besides crowd regions.")
    return images[:limit_images]


def is_whole(value: object, at_least: int) -> bool:
    """Whether a value is an integer, no boolean, of at least so much."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def milliseconds_since(start: float) -> float:
    """Return the time since `perf_counter()` was `start`."""
    return (perf_counter() - start) * 1000
