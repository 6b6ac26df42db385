"""One image and what was segmented in it: settings, document, history, objects, answers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refinesam_napari.document import PlanePrompts
from refinesam_napari.editing import Editing
from refinesam_napari.geometry import Plane
from refinesam_napari.images import ImageSettings, ImageSnapshot
from refinesam_napari.inference import Answer

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["Workspace", "shape_of"]

ANSWERS_KEPT = 64


@dataclass(eq=False)
class Workspace(Editing):
    """What belongs to one image layer.

    Attributes:
        image: the layer.
        settings: how its pixels become what the model sees.
        generation: counts up whenever earlier answers lose their validity.
        shape: of the image that all of it belongs to, without colours.
        pixels: the layer's data that the answers are about.
    """

    image: Image
    settings: ImageSettings
    generation: int = 0
    _answers: OrderedDict[Any, Answer] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.shape, self.pixels = shape_of(self.image), self.image.data
        self.channel_axis = self.settings.channel_axis

    # -- answers ----------------------------------------------------------------------------------------------------

    def answer_for(self, plane: Plane, refine: bool) -> Answer | None:
        """Return the answer to the draft's prompts in a plane, None if there is none yet."""
        prompts = self.document.draft.get(plane)
        return None if prompts is None else self._answers.get(_question(plane, prompts, refine))

    def keep(self, answer: Answer) -> None:
        """Remember an answer, and what the model saw for it."""
        request = answer.request
        self.crops[request.plane] = answer.crop
        if request.refine and answer.report is None:
            return  # Overtaken before it was refined.
        self._answers[_question(request.plane, request.prompts, request.refine)] = answer
        while len(self._answers) > ANSWERS_KEPT:
            self._answers.popitem(last=False)

    def forget_answers(self) -> None:
        """Forget all answers: the pixels, or how they are seen, have changed."""
        self.generation += 1
        self._answers.clear()
        self.crops.clear()


def shape_of(image: Image) -> tuple[int, ...]:
    """Return the sizes of an image layer's axes at full resolution, without colours."""
    return ImageSnapshot.of(image, ImageSettings()).shape


def _question(plane: Plane, prompts: PlanePrompts, refine: bool) -> tuple[Any, ...]:
    """What an answer depends on."""
    return plane, prompts.points, prompts.box, refine
