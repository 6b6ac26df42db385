"""From prompts in a plane to masks in it: what the engine's thread does with the core's session."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import refinesam
from refinesam import EncodedImage, Prediction, Prompt, RefinementReport, Session
from refinesam_napari.crops import CropMode, choose_crop
from refinesam_napari.document import PlanePrompts
from refinesam_napari.downloads import downloads
from refinesam_napari.engine import Work
from refinesam_napari.geometry import Crop, Plane, PlaneMask
from refinesam_napari.images import CropReader, ImageSnapshot

__all__ = [
    "Candidates",
    "Model",
    "PlanePrediction",
    "PredictionRequest",
    "encode",
    "mask_from_prediction",
    "predict",
    "prompt_from_plane",
    "sessions",
]

# What each strategy of refinement does, in few words.
_STRATEGIES = {
    "centre": "points in the centre",
    "boundary": "points on the boundary",
    "feedback": "a second look",
    "zoom": "a closer look",
    "none": "nothing to try",
}


@dataclass(frozen=True)
class Model:
    """Which weights, where; and where their embeddings are kept on disk, if anywhere."""

    weights: str = "builtin"
    device: str = "auto"
    cache_dir: Path | None = None


class Sessions:
    """The process's sessions: viewers that ask for the same model share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: dict[Model, Session] = {}

    def get(self, model: Model, work: Work | None = None) -> Session:
        """Return the session of a model; the first time it is loaded, which takes seconds, or a download.

        Args:
            model: which.
            work: is told how far a download is, and ends the wait for it.

        Raises:
            WeightsError, ConfigError: see `refinesam.load`.
            Cancelled: the work was cancelled meanwhile.
        """
        with self._lock:
            if model in self._sessions:
                return self._sessions[model]
        # Not under the lock: other models can be used meanwhile.
        downloads.wait_for(model.weights, work or Work(lambda progress: None))
        with self._lock:
            if model not in self._sessions:
                self._sessions[model] = refinesam.load(model.weights, device=model.device, cache_dir=model.cache_dir)
            return self._sessions[model]

    def device_of(self, model: Model) -> str:
        """Return the device that a loaded model is on, "" for one that is not loaded."""
        session = self._sessions.get(model)
        return "" if session is None else str(getattr(session.model, "device", ""))


sessions = Sessions()


@dataclass(frozen=True)
class PredictionRequest:
    """Prompts in a plane of an image that want a mask.

    Attributes:
        image: the image as it was when they were made.
        plane, prompts: where and what; `prompts.crop` is kept as long as the prompts lie well inside it.
        refine: whether to apply Adaptive Mask Refinement.
        model: which model predicts.
        crop_mode: how the crop is chosen; `view` is the visible rectangle, x0, y0, x1, y1.
        fixed_crop: the crop itself, where it was chosen before.
    """

    image: ImageSnapshot
    plane: Plane
    prompts: PlanePrompts
    refine: bool
    model: Model
    crop_mode: CropMode = "auto"
    view: tuple[float, float, float, float] | None = None
    fixed_crop: Crop | None = None

    @property
    def crop(self) -> Crop:
        """What the model is to see."""
        if self.fixed_crop is not None:
            return self.fixed_crop
        hw = self.image.plane_hw(self.plane)
        return choose_crop(hw, self.prompts, self.prompts.crop, self.crop_mode, self.view)


@dataclass(frozen=True, eq=False)
class Candidates:
    """What prompts may mean: masks of different extent, the smallest first.

    Attributes:
        masks: in the plane, none of them empty.
        scores: predicted IoU of each.
        own: index of the one that the model chooses, None where that is empty.
    """

    masks: tuple[PlaneMask, ...] = ()
    scores: tuple[float, ...] = ()
    own: int | None = None

    @classmethod
    def of(cls, prediction: Prediction, crop: Crop) -> Candidates:
        """Return the candidates of a prediction for a crop."""
        found = prediction.candidates
        own = [index for index, one in enumerate(found) if np.array_equal(one.mask, prediction.mask)]
        masks = tuple(mask_from_prediction(one, crop) for one in found)
        return cls(masks, tuple(one.score for one in found), own[0] if own else None)

    def index(self, choice: int | None) -> int | None:
        """Return which one a choice means: None is the model's own, one beyond the largest is that."""
        return self.own if choice is None or not self.masks else min(choice, len(self.masks) - 1)


@dataclass(frozen=True, eq=False)
class PlanePrediction:
    """The masks for a request.

    Attributes:
        request: what was asked.
        crop: what the model saw.
        first, first_score: the mask without refinement, and its predicted IoU.
        refined, refined_score: with refinement; the same as the first where that was kept; None without it.
        report: of the refinement; its points are the crop's pixels, `report_points` has them in the plane.
        negatives: how negative clicks were met, see `refinesam.Prediction`.
        candidates, first_candidates: what to choose from, with refinement and before it; the request's prompts say
            which was chosen.
    """

    request: PredictionRequest
    crop: Crop
    first: PlaneMask
    first_score: float
    refined: PlaneMask | None = None
    refined_score: float | None = None
    report: RefinementReport | None = None
    negatives: str = "none"
    candidates: Candidates = Candidates()
    first_candidates: Candidates = Candidates()

    @property
    def mask(self) -> PlaneMask:
        """The chosen mask, by default the refined one where there is one, else the first."""
        return self.shown()[0]

    @property
    def score(self) -> float:
        """Predicted IoU of `mask`."""
        return self.shown()[1]

    def shown(self, before: bool = False) -> tuple[PlaneMask, float]:
        """Return the chosen mask, with refinement or before it, and its predicted IoU."""
        offered, choice = self.offered(before), self.request.prompts.candidate
        if choice is not None and (index := offered.index(choice)) is not None:
            return offered.masks[index], offered.scores[index]
        if before or self.refined is None:
            return self.first, self.first_score
        return self.refined, self.first_score if self.refined_score is None else self.refined_score

    def offered(self, before: bool = False) -> Candidates:
        """Return what there is to choose from, with refinement or before it."""
        return self.first_candidates if before or self.refined is None else self.candidates

    def is_refined(self, before: bool = False) -> bool:
        """Whether what is shown went through refinement: what the model did not choose itself did not."""
        offered = self.offered(before)
        return not before and self.report is not None and offered.index(self.request.prompts.candidate) == offered.own

    def choosing(self, candidate: int | None) -> PlanePrediction:
        """Return it with another choice."""
        if candidate == self.request.prompts.candidate:
            return self
        return replace(self, request=replace(self.request, prompts=replace(self.request.prompts, candidate=candidate)))

    def told(self) -> str:
        """Return what refinement came to, in plain words; "" without it."""
        if self.report is None:
            return ""
        return "The outline was refined." if self.report.kept == "refined" else "Refinement found nothing better."

    def details(self) -> str:
        """Return what refinement saw, did and decided, in its own terms; "" without it."""
        report = self.report
        if report is None:
            return f"predicted IoU {self.first_score:.2f}"
        after = "none" if report.score_after != report.score_after else f"{report.score_after:.2f}"
        return (
            f"κ {report.kappa}, Q {report.compactness:.2f} → {_STRATEGIES[report.strategy]}\n"
            f"predicted IoU {report.score_before:.2f} before, {after} after: kept {report.kept}\n{report.reason}"
        )

    @property
    def report_points(self) -> list[tuple[float, float]]:
        """The points that refinement made, as the plane's (x, y)."""
        if self.report is None:
            return []
        crop = self.crop
        return [(x * crop.step + crop.x0, y * crop.step + crop.y0) for x, y in self.report.points.tolist()]


def prompt_from_plane(prompts: PlanePrompts, crop: Crop) -> Prompt:
    """Turn prompts of a plane into the core's, in the pixels of a crop. Points outside the crop are left out.

    Raises:
        PromptError: nothing is left, or the box has no area.
    """
    inside = [point for point in prompts.points if crop.contains(point.x, point.y)]
    box = None
    if prompts.box is not None:
        box = [*crop.to_crop(*prompts.box[:2]), *crop.to_crop(*prompts.box[2:])]
    return Prompt(
        points=[crop.to_crop(point.x, point.y) for point in inside] or None,
        labels=[int(point.positive) for point in inside] or None,
        box=box,
    )


def mask_from_prediction(prediction: Prediction, crop: Crop) -> PlaneMask:
    """Turn a prediction's best mask into a mask of the plane."""
    return PlaneMask.of(prediction.mask, crop)


def encode(
    session: Session, reader: CropReader, image: ImageSnapshot, plane: Plane, crop: Crop, work: Work
) -> EncodedImage:
    """Read a crop and encode it, or find its embedding by its content.

    Raises:
        ImageError: the crop can't be read, or holds no finite value.
        Cancelled: the job was cancelled meanwhile.
    """
    pixels: NDArray[np.uint8] = reader.read(image, plane, crop)
    work.check()
    return session.encode(pixels, on_progress=work.step("Encoding the image"))


class _Overtaken(Exception):  # noqa: N818  # No error: a newer request waits.
    pass


def predict(
    request: PredictionRequest,
    session: Session,
    reader: CropReader,
    work: Work,
    overtaken: Callable[[], bool] = lambda: False,
    on_first: Callable[[PlanePrediction], None] = lambda first: None,
) -> PlanePrediction | None:
    """Predict the masks of a request; None if a newer one came while the image was encoded.

    Args:
        request: what is asked.
        session: of its model.
        reader: reads its pixels.
        work: the job's line to the outside.
        overtaken: whether a newer request waits; then there is no refinement.
        on_first: is given the prediction before it is refined, so that no click waits for refinement.

    Raises:
        ImageError, PromptError: see `refinesam.EncodedImage`.
        Cancelled: the job was cancelled meanwhile.
    """
    crop = request.crop
    encoded = encode(session, reader, request.image, request.plane, crop, work)
    if overtaken():
        return None
    first = encoded.predict(prompt_from_plane(request.prompts, crop))
    offered = Candidates.of(first, crop)
    plain = PlanePrediction(
        request,
        crop,
        mask_from_prediction(first, crop),
        first.score,
        negatives=first.negatives,
        first_candidates=offered,
    )
    if not request.refine:
        return plain
    on_first(plain)
    if overtaken():
        return plain

    def on_progress(done: int, total: int) -> None:
        work.check()
        if overtaken():
            raise _Overtaken

    try:
        refined = encoded.refine(first, on_progress=on_progress)
    except _Overtaken:
        return plain
    return replace(
        plain,
        refined=mask_from_prediction(refined, crop),
        refined_score=refined.score,
        report=refined.refinement,
        candidates=offered if refined.masks is first.masks else Candidates.of(refined, crop),
    )
