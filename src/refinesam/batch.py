"""Many images at once, each failing alone: what the adapters and the command line use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refinesam.amr import AMRConfig
from refinesam.channels import Channel
from refinesam.encoded_image import EncodedImage
from refinesam.errors import ConfigError, PromptError, RefineSAMError
from refinesam.images import IntensityPolicy, as_rgb, read_image
from refinesam.session import Session
from refinesam.types import Prediction, Prompt

__all__ = ["Answer", "Item", "Record", "segment_batch"]


@dataclass(frozen=True, eq=False)
class Item:
    """One image to segment.

    Attributes:
        image: an array as `refinesam.as_rgb` takes it, or a path.
        prompts: one for each object; None segments everything.
        key: the caller's name for the image, given back in the record.
        page: of a file with several, see `refinesam.read_image`.
        intensity: how values that are not 8-bit become 8-bit, see `refinesam.as_rgb`.
        channel: one, or three, of an image with others, see `refinesam.as_rgb`.
    """

    image: NDArray[Any] | str | Path
    prompts: Sequence[Prompt] | None
    key: str = ""
    page: int | None = None
    intensity: IntensityPolicy = "percentile"
    channel: Channel | None = None

    def __post_init__(self) -> None:
        """Check that prompts are a list."""
        if isinstance(self.prompts, Prompt):
            raise PromptError("prompts is one Prompt: give a list, [prompt], with one for each object.")

    def pixels(self) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB; raise ImageError where the image can't be read, ConfigError for a bad setting."""
        if isinstance(self.image, str | Path):
            return read_image(self.image, intensity=self.intensity, page=self.page, channel=self.channel)
        if self.page is not None:
            raise ConfigError(f"page={self.page} was given with an array, which has none: give that page's array.")
        return as_rgb(self.image, intensity=self.intensity, channel=self.channel)


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of one prompt: a prediction (and its refinement, when asked for), or the reason why not."""

    prompt: Prompt
    prediction: Prediction | None = None
    refined: Prediction | None = None
    error: str | None = None

    @property
    def result(self) -> Prediction | None:
        """The refined prediction where there is one, else the first, else None."""
        return self.refined or self.prediction


@dataclass(frozen=True, eq=False)
class Record:
    """What came of one item.

    Attributes:
        key: the item's.
        image_hw: height and width, None when the image could not be read.
        answers: one for each prompt, in order; for segment-everything, one for each mask found.
        error: why the whole item failed, None when it did not.
    """

    key: str
    image_hw: tuple[int, int] | None
    answers: tuple[Answer, ...] = ()
    error: str | None = None


def segment_batch(
    session: Session,
    items: Iterable[Item],
    *,
    refine: AMRConfig | bool = False,
    everything: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """Segment images one after the other; each is encoded once, whatever the number of its prompts.

    A damaged image costs only its own record, a bad prompt only its own answer; both say why. Errors that are not
    refinesam's own, such as running out of memory, are not swallowed.

    Args:
        session: the model.
        items: images with prompts; may be endless, and is read as the records are.
        refine: True or a configuration also runs Adaptive Mask Refinement on every prediction.
        everything: settings of `AutomaticMaskGenerator` for items without prompts.

    Yields:
        One record an item, in order.
    """
    if isinstance(items, Item):
        raise ConfigError("items is one Item: give a list, [item].")
    config = AMRConfig() if refine is True else refine or None
    for item in items:
        try:
            encoded = session.encode(item.pixels())
            if item.prompts is None:
                answers = tuple(_everything(session, encoded, config, everything or {}))
            else:
                answers = tuple(_answer(encoded, prompt, config) for prompt in item.prompts)
        except RefineSAMError as error:
            yield Record(item.key, None, error=str(error))
        else:
            yield Record(item.key, encoded.image_hw, answers)


def _answer(encoded: EncodedImage, prompt: Prompt, config: AMRConfig | None) -> Answer:
    try:
        prediction = encoded.predict(prompt)
        refined = None if config is None else encoded.refine(prediction, config)
    except RefineSAMError as error:
        return Answer(prompt, error=str(error))
    return Answer(prompt, prediction, refined)


def _everything(
    session: Session, encoded: EncodedImage, config: AMRConfig | None, settings: Mapping[str, Any]
) -> Iterator[Answer]:
    for prediction in session.segment_everything(encoded, **settings):
        refined = None if config is None else encoded.refine(prediction, config)
        yield Answer(prediction.prompt, prediction, refined)
