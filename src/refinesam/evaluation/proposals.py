"""AR@1000: how many of the annotated objects are among the masks of "segment everything", whatever their class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from refinesam.evaluation.coco_documents import (
    CocoResult,
    Document,
    IoUType,
    Results,
    coco_result,
    read_ground_truth,
    read_results,
)
from refinesam.evaluation.dataset import CocoFolder
from refinesam.evaluation.image_run import ImageRun, OnImage, PromptableSession, limited
from refinesam.evaluation.matching import Backend, measured, recall_and_precision
from refinesam.evaluation.report import Failure
from refinesam.files import JsonObject
from refinesam.masks import encode_rle
from refinesam.types import Prediction

__all__ = ["RECALL_SETTINGS", "Proposals", "ProposalScores", "ProposingSession", "propose", "proposal_scores"]

_MOST = (10, 100, 1000)
# Recall counts the best 1000 proposals, so nothing is left out and only near-copies go (as Kirillov et al. 2023,
# appendix D.2, whose overlap this is). The generator's own settings are for people, who want few and sure masks.
RECALL_SETTINGS: Final = {
    "iou_threshold": 0.0,
    "stability_threshold": 0.0,
    "overlap_threshold": 0.9,
    "crops": True,
    "skip_covered": False,
}


class ProposingSession(PromptableSession, Protocol):
    """What proposals need of a session; `refinesam.Session` is one."""

    def iterate_everything(self, image: Any, **settings: Any) -> Iterator[Prediction]:
        """Segment everything in an image already encoded, one prediction at a time."""
        ...


@dataclass(frozen=True)
class ProposalScores:
    """Average recall over IoU 0.50, 0.55, ..., 0.95, between 0 and 1; None where no ground truth counts.

    Attributes:
        ar10: with the 10 best proposals an image.
        ar100: with the 100 best.
        ar1000: with the 1000 best.
        ar1000_small: of objects below 32^2 pixels.
        ar1000_medium: of objects between.
        ar1000_large: of objects from 96^2 pixels on.
    """

    ar10: float | None
    ar100: float | None
    ar1000: float | None
    ar1000_small: float | None
    ar1000_medium: float | None
    ar1000_large: float | None

    def summary(self) -> JsonObject:
        """Return plain Python values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Proposals:
    """The masks of "segment everything".

    Attributes:
        results: COCO results of category 1, scored by predicted IoU.
        images: ids of the images that could be read.
        failures: images that could not.
        encode_milliseconds: one per image.
    """

    results: tuple[CocoResult, ...]
    images: frozenset[int]
    failures: tuple[Failure, ...]
    encode_milliseconds: tuple[float, ...] = field(compare=False)


def proposal_scores(
    ground_truth: Document,
    results: Results,
    *,
    iou_type: IoUType = "segm",
    backend: Backend = "pycocotools",
) -> ProposalScores:
    """Return the average recall of proposals by COCO's definition, categories ignored.

    Args:
        ground_truth: a COCO document, or the path of its file.
        results: COCO results, or the path of their file; their categories may be any.
        iou_type: what is compared, "segm" or "bbox".
        backend: who counts.

    Raises:
        DatasetError: a file or an entry that is malformed; the message names the place.
        ConfigError: an unknown setting.
        MissingExtraError: the backend is not installed.
    """
    truth = read_ground_truth(ground_truth, iou_type)
    proposals = read_results(results, truth, iou_type, class_agnostic=True)
    recall, _ = recall_and_precision(truth, proposals, iou_type, _MOST, class_agnostic=True, backend=backend)
    ar10, ar100, ar1000 = (measured(recall[:, :, 0, most]) for most in range(3))
    small, medium, large = (measured(recall[:, :, area, 2]) for area in (1, 2, 3))
    return ProposalScores(ar10, ar100, ar1000, small, medium, large)


def propose(
    session: ProposingSession,
    folder: CocoFolder,
    *,
    limit_images: int | None = None,
    on_image: OnImage | None = None,
    **settings: object,
) -> Proposals:
    """Segment everything in every image of a folder.

    Args:
        session: the model.
        folder: the images; what is annotated is not looked at.
        limit_images: take only the first so many images.
        on_image: called after every image with how many are done and how many there are.
        **settings: as for `refinesam.AutomaticMaskGenerator`, over `RECALL_SETTINGS`.

    Raises:
        ConfigError: a setting or a limit out of range.
        DatasetError: the folder has no image.
    """
    images = limited(folder.images, limit_images)
    run = ImageRun(session, folder.damaged)
    results: list[CocoResult] = []
    settings = RECALL_SETTINGS | settings
    for image, encoded in run.encoded(images, on_image):
        with run.isolated(image):
            for prediction in session.iterate_everything(encoded, **settings):
                results.append(coco_result(image.image_id, 1, encode_rle(prediction.mask), prediction.score))
    return Proposals(
        tuple(results),
        frozenset(image.image_id for image in images) - run.unread,
        tuple(run.failures),
        tuple(run.encode_ms),
    )
