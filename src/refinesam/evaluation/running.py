"""What `refinesam evaluate` asks of a model, in one place: prompts or clicks, average precision, proposals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Protocol

from refinesam.amr import AMRConfig
from refinesam.errors import ConfigError
from refinesam.evaluation.click_report import ClickEvaluation
from refinesam.evaluation.clicks import ClickableSession, count_clicks
from refinesam.evaluation.coco_documents import load_document, restricted, without_damaged
from refinesam.evaluation.dataset import CocoFolder, read_coco_folder
from refinesam.evaluation.image_run import OnImage
from refinesam.evaluation.mask_ap import MaskAP, evaluation_ap, mask_ap, segment_detections
from refinesam.evaluation.matching import Backend, check_backend
from refinesam.evaluation.proposals import ProposalScores, ProposingSession, proposal_scores, propose
from refinesam.evaluation.protocols import Choice, PromptProtocol, evaluate
from refinesam.evaluation.report import Evaluation, without_nan
from refinesam.files import JsonObject

__all__ = ["EvaluableSession", "EvaluationOutcome", "EvaluationRequest", "run_request"]

# Called with what is being done, how many images are done, and how many there are.
OnProgress = Callable[[str, int, int], object]


class EvaluableSession(ClickableSession, ProposingSession, Protocol):
    """What everything together needs of a session; `refinesam.Session` is one."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure.

    Attributes:
        annotations: COCO JSON.
        images: folder of the images that it names.
        protocol: a name of `PROTOCOLS`, or "noc": clicks until the mask is good.
        refine: settings of Adaptive Mask Refinement, None without it.
        seed: of clicks and noise.
        limit_images: only the first images.
        choose: which of several masks counts; None means "box" for a detector's boxes, "score" for the others.
        feed_back: let each click's prompt carry the logits before.
        ap: also mask AP: "boxes" of the ground truth, the "prompts" of the protocol, or a detector's results file.
        lvis: average precision by LVIS' rules.
        proposals: also average recall of "segment everything".
        keep_masks: keep the masks in the records.
        backend: who counts for average precision and recall.
    """

    annotations: Path
    images: Path
    protocol: PromptProtocol | Literal["noc"] = "box"
    refine: AMRConfig | None = None
    seed: int = 0
    limit_images: int | None = None
    choose: Choice | None = None
    feed_back: bool = True
    ap: str | None = None
    lvis: bool = False
    proposals: bool = False
    keep_masks: bool = False
    backend: Backend = "pycocotools"

    def __post_init__(self) -> None:
        """Check what goes together."""
        if self.protocol == "noc" and self.ap == "prompts":
            raise ConfigError(
                "Protocol noc has no one prompt an object to score: give --ap boxes, or another protocol."
            )
        if self.protocol == "noc" and self.refine is not None:
            raise ConfigError("Protocol noc corrects masks by clicks, not by refinement: leave one of them out.")
        if self.ap not in (None, "boxes", "prompts") and not Path(str(self.ap)).is_file():
            raise ConfigError(f"--ap {self.ap} is neither boxes nor prompts nor a file of COCO results.")


@dataclass(frozen=True)
class EvaluationOutcome:
    """What was measured; None for what was not asked for.

    Attributes:
        folder: images and ground truth.
        evaluation: of prompts.
        clicks: of clicks.
        ap: mask AP.
        proposals: average recall of "segment everything".
    """

    folder: CocoFolder
    evaluation: Evaluation | None = None
    clicks: ClickEvaluation | None = None
    ap: MaskAP | None = None
    proposals: ProposalScores | None = None

    def document(self, *, records: bool = True) -> JsonObject:
        """Return plain Python values for JSON: {"summary", "records"}, and "ap" and "proposals" where measured.

        Args:
            records: with one entry an object.
        """
        content: JsonObject = {}
        for measured in (self.evaluation, self.clicks):
            if measured is not None:
                content |= {"summary": measured.summary()} | ({"records": measured.rows()} if records else {})
        if self.ap is not None:
            content["ap"] = self.ap.summary()
        if self.proposals is not None:
            content["proposals"] = self.proposals.summary()
        return dict(without_nan(content))


def run_request(
    session: EvaluableSession, request: EvaluationRequest, folder: CocoFolder, on_progress: OnProgress | None = None
) -> EvaluationOutcome:
    """Measure what was asked for.

    Args:
        session: the model.
        request: what.
        folder: the request's images and ground truth, read with its `lvis`.
        on_progress: called after every image.

    Raises:
        ConfigError: a setting out of range.
        DatasetError: the folder has no object, or the detections are malformed.
        MissingExtraError: the backend is not installed.
    """
    run = _Run(session, request, folder, on_progress)
    # What a file holds can be wrong, so it comes before hours of work.
    check_backend(request.backend)
    if request.ap is not None:
        run.truth  # noqa: B018 - read and checked once, here
    ap = None if request.ap in (None, "boxes", "prompts") else run.detections_ap(Path(str(request.ap)))
    evaluation = clicks = None
    if request.protocol == "noc":
        clicks = run.clicks()
    else:
        evaluation = run.evaluated(request.protocol)
    if request.ap in ("boxes", "prompts"):
        own = request.ap == "prompts" or request.protocol == "box"
        scored = evaluation if own and evaluation is not None else run.evaluated("box")
        ap = evaluation_ap(scored, run.truth, lvis=request.lvis, backend=request.backend)
    return EvaluationOutcome(folder, evaluation, clicks, ap, run.proposals() if request.proposals else None)


@dataclass(frozen=True)
class _Run:
    """One request being carried out."""

    session: EvaluableSession
    request: EvaluationRequest
    folder: CocoFolder
    on_progress: OnProgress | None

    @cached_property
    def truth(self) -> JsonObject:
        """The ground truth that can be scored."""
        return without_damaged(*load_document(self.request.annotations), lvis=self.request.lvis)

    def evaluated(self, protocol: PromptProtocol) -> Evaluation:
        """Prompt for every object."""
        return evaluate(
            self.session,
            self.folder,
            protocol,
            refine=self.request.refine,
            seed=self.request.seed,
            limit_images=self.request.limit_images,
            choose=self.request.choose or "score",
            keep_masks=self.request.keep_masks or self.request.ap in ("boxes", "prompts"),
            on_image=self._telling("Evaluating"),
        )

    def clicks(self) -> ClickEvaluation:
        """Click on every object."""
        return count_clicks(
            self.session,
            self.folder,
            feed_back=self.request.feed_back,
            limit_images=self.request.limit_images,
            on_image=self._telling("Clicking"),
        )

    def detections_ap(self, path: Path) -> MaskAP:
        """Turn a detector's boxes into masks and score them."""
        request = self.request
        segmented = segment_detections(
            self.session,
            read_coco_folder(request.annotations, request.images, keep_empty=True, lvis=request.lvis),
            path,
            refine=request.refine,
            choose=request.choose or "box",
            limit_images=request.limit_images,
            on_image=self._telling("Segmenting detections"),
        )
        return mask_ap(segmented, self.truth, prompts=path.name, lvis=request.lvis, backend=request.backend)

    def proposals(self) -> ProposalScores:
        """Segment everything and see how much of the ground truth is there."""
        proposals = propose(
            self.session, self.folder, limit_images=self.request.limit_images, on_image=self._telling("Proposing")
        )
        truth = restricted(self.truth, proposals.images)
        return proposal_scores(truth, proposals.results, backend=self.request.backend)

    def _telling(self, what: str) -> OnImage | None:
        if self.on_progress is None:
            return None
        return partial(self.on_progress, what)
