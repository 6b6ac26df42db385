"""Segment everything, or what is like some objects: candidates to be filtered, accepted or discarded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import FloatSlider, Select, SpinBox
from numpy.typing import NDArray
from qtpy.QtCore import QObject, Signal

import refinesam
from refinesam import Prediction, PromptError, mask_iou
from refinesam.hosts import LIKELY_SIMILARITY, MOST_EXAMPLES
from refinesam_napari.controller import Controller
from refinesam_napari.controls import Panel, confidence, form, row, show
from refinesam_napari.document import Origin, PlanePrompts, Point, SegmentedObject
from refinesam_napari.engine import Work
from refinesam_napari.geometry import Crop, Plane, PlaneMask
from refinesam_napari.hints import photograph_hint
from refinesam_napari.inference import PredictionRequest, encode, mask_from_prediction, sessions
from refinesam_napari.placing import keeping_active, patch_of, place_of, place_patch
from refinesam_napari.preview import DISPLAY_ONLY
from refinesam_napari.workspace import Workspace

if TYPE_CHECKING:
    from napari.layers import Image, Labels

__all__ = ["Candidate", "EverythingPanel", "Filters", "Review"]

MOST_PIXELS = 2**31 - 1
# A candidate that agrees with an example by more is that example.
SAME_OBJECT = 0.5


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mask that was found.

    Attributes:
        mask: in the plane.
        score: predicted IoU.
        point: x, y in the plane, the click that found it.
        similarity: to the objects that it shall be like, None where everything is sought.
    """

    mask: PlaneMask
    score: float
    point: tuple[float, float]
    similarity: float | None = None

    @property
    def rank(self) -> float:
        """What candidates are ordered and filtered by: similarity, or else predicted IoU."""
        return self.score if self.similarity is None else self.similarity

    @classmethod
    def of(cls, prediction: Prediction, crop: Crop) -> Candidate:
        """Take a prediction of a crop to its plane."""
        x, y = prediction.prompt.points[0].tolist()
        point = (x * crop.step + crop.x0, y * crop.step + crop.y0)
        return cls(mask_from_prediction(prediction, crop), prediction.score, point, prediction.similarity)


@dataclass(frozen=True)
class Filters:
    """Which candidates are shown: least predicted IoU or similarity, least and greatest area (0: any)."""

    least_score: float = 0.0
    least_area: int = 0
    greatest_area: int = 0

    def passes(self, candidate: Candidate) -> bool:
        """Whether a candidate is shown."""
        area = candidate.mask.area
        return (
            candidate.rank >= self.least_score
            and area >= self.least_area
            and (not self.greatest_area or area <= self.greatest_area)
        )


class Review(QObject):
    """The candidates of one plane, in a labels layer of their own until they are accepted.

    Attributes:
        candidates: by number, from 1, the best first.
        chosen: number of the candidate that was clicked at, None if none was.

    Signals:
        changed: candidates, filters or the choice have changed.
    """

    changed = Signal()

    def __init__(self, controller: Controller) -> None:
        super().__init__(controller)
        self.controller = controller
        self.candidates: dict[int, Candidate] = {}
        self.filters = Filters()
        self.chosen: int | None = None
        self._layer: Labels | None = None
        self._request: PredictionRequest | None = None
        self._workspace: Workspace | None = None
        self._crop: Crop | None = None
        # What was sought last, and what was not.
        self._examples: Sequence[PlaneMask] = ()
        self._negatives: Sequence[PlaneMask] = ()

    def start(self, examples: Sequence[PlaneMask] = (), negatives: Sequence[PlaneMask] = ()) -> None:
        """Segment everything, or what is like some masks, in the plane in view, or in what of it the crop chooses."""
        controller, workspace, plane = self.controller, self.controller.workspace, self.controller.view.plane
        if workspace is None or plane is None:
            return
        request = controller.predictions.request_for(plane, PlanePrompts())
        if request.crop_mode == "auto":
            request = replace(request, crop_mode="whole")
        crop = request.crop
        shown, others = (
            [mask for mask in (_in_crop(mask, crop) for mask in masks) if mask.any()] for masks in (examples, negatives)
        )
        if examples and not shown:
            raise PromptError("None of the selected objects lies in what the model is shown: choose another crop.")

        def run(work: Work) -> tuple[list[Candidate], str]:
            found = find(work)
            return found, photograph_hint.text_for(request, controller.predictions.reader)

        def find(work: Work) -> list[Candidate]:
            session = sessions.get(request.model, work)
            encoded = encode(session, controller.predictions.reader, request.image, plane, crop, work)
            if not shown:
                step = work.step("Segmenting everything")
                return [Candidate.of(one, crop) for one in session.iterate_everything(encoded, on_progress=step)]
            search = refinesam.SimilarMaskGenerator(session, encoded, shown, others)
            return [
                Candidate.of(one, crop)
                for one in search.iterate(encoded, work.step("Finding what is similar"))
                if max(mask_iou(one.mask, mask) for mask in (*shown, *others)) < SAME_OBJECT
            ]

        def deliver(found: tuple[list[Candidate], str]) -> None:
            candidates, hint = found
            self.clear()
            self._request, self._workspace, self._crop = request, workspace, crop
            self._examples, self._negatives = examples, negatives
            self.candidates = dict(enumerate(candidates, start=1))
            self._show()
            told = f"{len(self.shown)} candidates. Accept what is good; click on one to choose it. {hint}"
            controller.tasks.tell(told.rstrip())

        controller.tasks.run(run, deliver)

    def start_similar(self, object_ids: Sequence[int]) -> None:
        """Find what is like some objects, in the plane in view.

        Raises:
            PromptError: there is none of them in the plane, or too many.
        """
        workspace, plane = self.controller.workspace, self.controller.view.plane
        if workspace is None or plane is None:
            return
        document = workspace.document.objects
        there = [one for one in object_ids if one in document and plane in document[one].planes]
        if not 1 <= len(there) <= MOST_EXAMPLES:
            raise PromptError(
                f"{len(there)} objects of this slice are selected. Select one to {MOST_EXAMPLES} of a kind in the list "
                "of objects (Ctrl-click for more than one), then press Find similar."
            )
        objects = workspace.objects
        self.start([objects.mask_of(one, plane) for one in there] if objects is not None else [])

    def exclude(self, numbers: Sequence[int]) -> None:
        """Search again: these candidates, and what is more like them than like the examples, are not sought.

        Raises:
            PromptError: nothing similar was sought in the plane in view, no candidate is given, or they are too many.
        """
        request, view = self._request, self.controller.view
        here = request is not None and view.plane == request.plane and self.controller.workspace is self._workspace
        if not self._examples or not here:
            raise PromptError("There are no candidates of Find similar in this slice: press Find similar first.")
        negatives = [*self._negatives, *(self.candidates[number].mask for number in numbers)]
        if not numbers or len(negatives) > MOST_EXAMPLES:
            raise PromptError(
                f"{len(numbers)} candidates are selected, beside {len(self._negatives)} that are excluded already: "
                f"select what is not sought in the list (Ctrl-click for more than one), {MOST_EXAMPLES} in all."
            )
        self.start(self._examples, negatives)

    def use_filters(self, filters: Filters) -> None:
        """Show other candidates."""
        self.filters = filters
        self._show()

    @property
    def shown(self) -> list[int]:
        """Numbers of the candidates that pass the filters, the best first."""
        return [number for number, candidate in self.candidates.items() if self.filters.passes(candidate)]

    @property
    def is_similar(self) -> bool:
        """Whether the candidates are what is like some objects."""
        return bool(self._examples)

    def accept(self, numbers: Iterable[int]) -> int:
        """Make objects of candidates, where nothing else is; returns how many."""
        workspace, request = self._workspace, self._request
        controller = self.controller
        if workspace is None or request is None or controller.workspace is not workspace:
            return 0
        numbers = list(numbers)
        try:
            controller.workspaces.ensure_objects()
            first = workspace.next_id()
            items = [self._object(first + i, self.candidates[n], request.plane) for i, n in enumerate(numbers)]
            count = workspace.commit_many(items, controller.predictions.options.overwrite)
        except Exception as error:
            controller.tasks.tell_error(error)
            return 0
        if count < len(numbers):
            controller.tasks.tell(f"{len(numbers) - count} candidates cover nothing that is free.")
        self.discard(numbers)
        controller.predictions.after_step()
        return count

    def _object(
        self, object_id: int, candidate: Candidate, plane: Plane
    ) -> tuple[SegmentedObject, dict[Plane, PlaneMask]]:
        prompts = PlanePrompts((Point(*candidate.point),), crop=self._crop)
        origin: Origin = "everything" if candidate.similarity is None else "similar"
        item = SegmentedObject(object_id, MappingProxyType({plane: prompts}), (plane,), origin, candidate.score)
        return item, {plane: candidate.mask}

    def discard(self, numbers: Iterable[int]) -> None:
        """Drop candidates."""
        for number in numbers:
            self.candidates.pop(number, None)
        self._show()

    def clear(self) -> None:
        """Drop all candidates and their layer."""
        self.candidates = {}
        self._show()
        # They hold the image's memory.
        self._request, self._workspace, self._examples, self._negatives = None, None, (), ()

    def _show(self) -> None:
        if self.chosen not in self.candidates:
            self.chosen = None
        viewer, crop, request = self.controller.view.viewer, self._crop, self._request
        there = self._layer is not None and self._layer in viewer.layers
        if not self.candidates or crop is None or request is None or self._workspace is None:
            if there:
                viewer.layers.remove(self._layer)
            self._layer = None
            self.changed.emit()
            return
        values = np.zeros((crop.y1 - crop.y0, crop.x1 - crop.x0), np.uint16)
        # The best last, so that it lies on top.
        for number in reversed(self.shown):
            mask = self.candidates[number].mask
            y, x = mask.y0 - crop.y0, mask.x0 - crop.x0
            values[y : y + mask.pixels.shape[0], x : x + mask.pixels.shape[1]][mask.pixels] = number
        pixels = patch_of(values, request.plane)
        if self._layer is None or not there:
            self._layer = self._new_layer(pixels, self._workspace.image)
        else:
            self._layer.data = pixels
        image, whole = self._workspace.image, PlaneMask(crop.y0, crop.x0, np.ones((1, 1), np.bool_))
        place_patch(self._layer, image, request.plane, whole, None)
        self.changed.emit()

    def _new_layer(self, pixels: Any, image: Image) -> Labels:
        with keeping_active(self.controller.view.viewer):
            layer = self.controller.view.viewer.add_labels(
                pixels, name="refinesam: candidates", opacity=0.5, metadata=DISPLAY_ONLY, **place_of(image)
            )
        layer.mouse_drag_callbacks.append(self._clicked)
        layer.editable = False
        return layer

    def _clicked(self, layer: Labels, event: Any) -> None:
        value = layer.get_value(event.position, world=True)
        self.chosen = int(value) if value else None
        layer.selected_label = self.chosen or 0
        self.changed.emit()


def _in_crop(mask: PlaneMask, crop: Crop) -> NDArray[np.bool_]:
    """Return an object's mask in the pixels that the model is shown of a crop."""
    part, shown = mask.cut(crop), np.zeros((crop.y1 - crop.y0, crop.x1 - crop.x0), np.bool_)
    y, x = part.y0 - crop.y0, part.x0 - crop.x0
    shown[y : y + part.pixels.shape[0], x : x + part.pixels.shape[1]] = part.pixels
    return shown[:: crop.step, :: crop.step]


class EverythingPanel(Panel):
    """Segment everything, or what is like some objects, then accept or discard."""

    def __init__(self, controller: Controller, review: Review, selected: Callable[[], Sequence[int]]) -> None:
        super().__init__(controller, "Segment everything")
        self.review = review
        self._selected = selected
        # Unlikely ones come, too: they are hidden until the threshold is lowered.
        self._similar, self._other_threshold = False, LIKELY_SIMILARITY
        self.start = self.button("Segment everything", "In the plane in view", self._start)
        tip = "What is like the objects that are selected in the list above, one to five of a kind"
        self.similar = self.button("Find similar", tip, self._start_similar)
        tip = "Search again, without the chosen candidates and what is more like them than like the examples"
        self.exclude = self.button("Not these", tip, lambda: review.exclude(self.chosen))
        self.score = FloatSlider(label="Least confidence or similarity", max=1.0, step=0.05)
        self.least_area = SpinBox(label="Least area, px", max=MOST_PIXELS, step=50)
        self.greatest_area = SpinBox(label="Greatest area (0: any)", max=MOST_PIXELS, step=500)
        self.list = Select(choices=self._candidates)
        self.list.native.setMaximumHeight(120)
        tip = "Make objects of them, the best first"
        self.accept_all = self.button("Accept all shown", tip, lambda: review.accept(review.shown))
        self.accept = self.button("Accept", "Make an object of the chosen ones", lambda: review.accept(self.chosen))
        self.discard = self.button("Discard", "Drop the chosen ones", lambda: review.discard(self.chosen))
        self.clear = self.button("Drop all", "Drop all candidates", review.clear)
        self._form = form(self.score, self.least_area, self.greatest_area)
        self._buttons = row(self.accept_all, self.accept, self.discard, self.clear)
        self.fill(row(self.start, self.similar, self.exclude), self._form, self.list, self._buttons)
        self.on_change(self._filter, self.score, self.least_area, self.greatest_area)
        review.changed.connect(self.update_shown)

    @property
    def chosen(self) -> list[int]:
        """Numbers of the candidates selected in the list."""
        return list(self.list.value)

    def _candidates(self, _: object) -> list[tuple[str, object]]:
        found = [(number, self.review.candidates[number]) for number in self.review.shown]
        return [(f"{n}: {_told(item)}, {item.mask.area:,} px", n) for n, item in found]

    def update_shown(self) -> None:
        """Show the state of now."""
        self.setEnabled(self.controller.view.plane is not None)
        review = self.review
        chosen = [number for number in self.chosen if number in review.shown]
        if review.chosen is not None:
            chosen = [number for number in review.shown if number == review.chosen]
        show(self.list, chosen, anew=True)
        if chosen:
            self.list.native.scrollToItem(self.list.native.selectedItems()[-1])
        for made in (self.accept_all, self.accept, self.discard, self.clear):
            made.enabled = bool(review.candidates)
        self.exclude.enabled = bool(review.candidates) and review.is_similar

    def _start(self) -> None:
        self.review.start()
        self._use_threshold(similar=False)

    def _start_similar(self) -> None:
        self.review.start_similar(self._selected())
        self._use_threshold(similar=True)

    def _use_threshold(self, similar: bool) -> None:
        """Confidence and similarity have a threshold each, which stays where it was set."""
        if similar != self._similar:
            self._similar = similar
            self._other_threshold, self.score.value = self.score.value, self._other_threshold

    def _filter(self, _: object) -> None:
        self.review.use_filters(Filters(self.score.value, self.least_area.value, self.greatest_area.value))


def _told(candidate: Candidate) -> str:
    return confidence(candidate.score) if candidate.similarity is None else f"similarity {candidate.similarity:.0%}"
