"""One image and what was segmented in it: settings, document, history, objects, predictions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from refinesam_napari.document import Change, Classes, Document, PlanePrompts
from refinesam_napari.editing import Editing
from refinesam_napari.geometry import Plane
from refinesam_napari.images import ImageSettings, ImageSnapshot
from refinesam_napari.inference import PlanePrediction

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["Workspace", "shape_of"]

PREDICTIONS_KEPT = 64


@dataclass(eq=False)
class Workspace(Editing):
    """What belongs to one image layer.

    Attributes:
        image: the layer.
        settings: how its pixels become what the model sees.
        generation: counts up whenever earlier predictions lose their validity.
        shape: of the image that all of it belongs to, without colours.
        pixels: the layer's data that the predictions are about.
        first_classes: those that came along from the image in hand before.
    """

    image: Image
    settings: ImageSettings
    generation: int = 0
    first_classes: Classes = field(default_factory=dict)
    _predictions: OrderedDict[Hashable, PlanePrediction] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.shape, self.pixels = shape_of(self.image), self.image.data
        self.channel_axis = self.settings.channel_axis

    @property
    def holds_work(self) -> bool:
        """Whether there is anything that could be lost."""
        document = self.document
        return bool(document.draft or document.objects or document.classes != self.first_classes)

    def note_score(self, change: Change, object_id: int, score: float | None) -> None:
        """Note the score of a mask that arrived after the step that committed its object."""
        if change not in self.history.steps or (committed := change.after.objects.get(object_id)) is None:
            return

        def noted(document: Document) -> Document:
            item = document.objects.get(object_id)
            same = item is not None and item.prompts is committed.prompts
            return document.with_object(replace(item, score=score)) if item is not None and same else document

        self.history.rewrite(change, None, noted)

    # -- predictions ------------------------------------------------------------------------------------------------

    def prediction_for(self, plane: Plane, refine: bool) -> PlanePrediction | None:
        """Return the prediction for the draft's prompts in a plane, None if there is none yet."""
        prompts = self.document.draft.get(plane)
        if prompts is None or (found := self._predictions.get(_question(plane, prompts, refine))) is None:
            return None
        return found.choosing(prompts.candidate)

    def keep(self, prediction: PlanePrediction) -> None:
        """Remember a prediction, and what the model saw for it."""
        request = prediction.request
        self.crops[request.plane] = prediction.crop
        if request.refine and prediction.report is None:
            return  # Overtaken before it was refined.
        self._predictions[_question(request.plane, request.prompts, request.refine)] = prediction
        while len(self._predictions) > PREDICTIONS_KEPT:
            self._predictions.popitem(last=False)

    def forget_predictions(self) -> None:
        """Forget all predictions: the pixels, or how they are seen, have changed."""
        self.generation += 1
        self._predictions.clear()
        self.crops.clear()


def shape_of(image: Image) -> tuple[int, ...]:
    """Return the sizes of an image layer's axes at full resolution, without colours."""
    return ImageSnapshot.of(image, ImageSettings()).shape


def _question(plane: Plane, prompts: PlanePrompts, refine: bool) -> Hashable:
    """What a prediction depends on."""
    return plane, prompts.points, prompts.box, refine
