"""The labels that one sample's answers become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np

from refinesam import ImageError, Prediction

from .files import file_name
from .labels import detection_from_mask, holes_in, keypoint_from_points, label_id
from .prompting import Asked
from .schema import Failure, Fields, Role

__all__ = ["SampleResult", "failed_sample", "failure_label", "sample_result"]


@dataclass(frozen=True, eq=False)
class SampleResult:
    """What is stored of one sample.

    Attributes:
        sample_id: of the sample.
        digest: of what the result was made from.
        baseline: one label an answered prompt, in order.
        amr: the same prompts, in the same order.
        rejected: those that have a rejected candidate.
        candidates: all masks that each prompt may mean, the smallest first; empty where they are not asked for.
        points: those for which AMR placed points.
        labels: of a run that compares nothing, all it has.
        failures: one a prompt that was not answered, or one for the whole sample.
    """

    sample_id: str
    digest: str
    baseline: list[fo.Detection] = field(default_factory=list)
    amr: list[fo.Detection] = field(default_factory=list)
    rejected: list[fo.Detection] = field(default_factory=list)
    candidates: list[fo.Detection] = field(default_factory=list)
    points: list[fo.Keypoint] = field(default_factory=list)
    labels: list[fo.Detection] = field(default_factory=list)
    failures: list[fo.Classification] = field(default_factory=list)


def failed_sample(run: Fields, sample_id: str, digest: str, failure: Failure, reason: str) -> SampleResult:
    """Return the result of a sample that failed as a whole."""
    return SampleResult(sample_id, digest, failures=[failure_label(run, sample_id, failure, reason)])


def sample_result(
    run: Fields,
    folder: Path | None,
    sample_id: str,
    digest: str,
    image_hw: tuple[int, int],
    asked: Sequence[Asked],
    answers: Sequence[Any],
    candidates: bool = False,
) -> SampleResult:
    """Return the labels of one sample.

    Args:
        run: names of the fields.
        folder: of the run's mask files; None keeps masks in the database.
        sample_id: of the sample.
        digest: of what the result was made from.
        image_hw: height and width.
        asked: the prompts and failures, in order.
        answers: `refinesam.batch.Answer`, one for each of `asked` that has a prompt.
        candidates: whether all candidates are wanted.
    """
    result = SampleResult(sample_id, digest)
    remaining = iter(answers)
    for prompted in asked:
        if prompted.prompt is None:
            result.failures.append(
                failure_label(run, prompted.prompt_id, prompted.failure or "bad_prompt", prompted.reason)
            )
            continue
        answer = next(remaining)
        if answer.prediction is None or answer.refined is None:
            result.failures.append(failure_label(run, prompted.prompt_id, "bad_prompt", answer.error or "No answer."))
            continue
        try:
            own_folder = folder and folder / sample_id
            labels = _Labels(run, own_folder, prompted, image_hw, answer.prediction, answer.refined)
            _add(result, labels, candidates)
        except OSError as error:
            reason = f"The mask could not be written: {error.strerror}. Make room or choose another folder, run again."
            result.failures.append(failure_label(run, prompted.prompt_id, "not_stored", reason))
    return result


def _add(result: SampleResult, labels: _Labels, with_candidates: bool) -> None:
    # Made before any is added: a mask that cannot be written leaves the prompt out of all fields.
    baseline, amr = labels.detection("baseline"), labels.detection("amr")
    rejected, points = list(labels.rejected()), list(labels.points())
    candidates = list(labels.candidates()) if with_candidates else []
    result.baseline.append(baseline)
    result.amr.append(amr)
    result.rejected.extend(rejected)
    result.candidates.extend(candidates)
    result.points.extend(points)


def failure_label(run: Fields, prompt_id: str, failure: Failure, reason: str) -> fo.Classification:
    """Return what is listed of a prompt, or of a sample as a whole, that failed."""
    return fo.Classification(
        id=label_id(run.key, prompt_id, "failure"), label=failure, prompt_id=prompt_id, reason=reason
    )


@dataclass(frozen=True, eq=False)
class _Labels:
    """One prompt's labels."""

    run: Fields
    folder: Path | None
    asked: Asked
    image_hw: tuple[int, int]
    first: Prediction
    refined: Prediction

    def detection(self, role: Role, mask: Any = None, score: float | None = None) -> fo.Detection:
        prediction = self.first if role == "baseline" else self.refined
        report = self.refined.refinement
        if report is None:
            raise ImageError("A refined prediction came without its report: this refinesam is not the one expected.")
        mask = prediction.mask if mask is None else mask
        return detection_from_mask(
            mask,
            mask_path=self.folder and self.folder / file_name(self.asked.prompt_id, role, mask),
            id=label_id(self.run.key, self.asked.prompt_id, role),
            label=self.asked.label,
            confidence=prediction.score if score is None else score,
            prompt_id=self.asked.prompt_id,
            kappa=report.kappa,
            compactness=report.compactness,
            holes=holes_in(mask),
            strategy=report.strategy,
            predicted_iou=prediction.score if score is None else score,
            kept=report.kept,
            reason=report.reason,
        )

    def rejected(self) -> Iterator[fo.Detection]:
        report = self.refined.refinement
        if report is not None and report.rejected is not None:
            yield self.detection("rejected", report.rejected, report.score_after)

    def candidates(self) -> Iterator[fo.Detection]:
        for number, one in enumerate(self.refined.candidates, start=1):
            yield detection_from_mask(
                one.mask,
                mask_path=self.folder and self.folder / file_name(self.asked.prompt_id, "candidates", one.mask),
                id=label_id(self.run.key, self.asked.prompt_id, "candidates", str(number)),
                label=self.asked.label,
                confidence=one.score,
                prompt_id=self.asked.prompt_id,
                candidate=number,
                chosen=bool(np.array_equal(one.mask, self.refined.mask)),
                holes=holes_in(one.mask),
                predicted_iou=one.score,
            )

    def points(self) -> Iterator[fo.Keypoint]:
        report = self.refined.refinement
        if report is not None and len(report.points):
            yield keypoint_from_points(
                report.points,
                self.image_hw,
                id=label_id(self.run.key, self.asked.prompt_id, "points"),
                label=report.strategy,
                prompt_id=self.asked.prompt_id,
                kept=report.kept,
            )
