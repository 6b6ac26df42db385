"""From one task to its regions: read the image, find the prompts, ask the session, write and check the regions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import refinesam
from refinesam import DatasetError, EncodedImage, Prediction, Prompt, RefineSAMError, Session, mask_iou
from refinesam.hosts import MOST_EXAMPLES
from refinesam_labelstudio.detections import Detections
from refinesam_labelstudio.json_types import JsonObject, Task
from refinesam_labelstudio.labeling_config import ImageTag, LabelingConfig
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.outlines import mask_from_outline
from refinesam_labelstudio.prompts import PromptedObject, prompt_from_context, prompts_from_annotations
from refinesam_labelstudio.results import check_regions, regions_from_mask

__all__ = ["Answering", "TaskPrediction", "TaskPredictor", "ReadImage", "counted", "told_of_whole"]

# Takes what a task's data says of its image, and the task's id; returns (H, W, 3) uint8 RGB.
ReadImage = Callable[[object, int | None], NDArray[np.uint8]]
# A mask with at least this IoU with a prompted object is that object.
SAME_OBJECT = 0.5


class Job(NamedTuple):
    """One object to segment: how, its label, and the score of whoever found it, None for the predicted IoU."""

    make: Callable[[], Prediction]
    label: str | None
    score: float | None = None


@dataclass(frozen=True)
class TaskPrediction:
    """What came of a task.

    Attributes:
        regions: as Label Studio takes them, checked against the labeling config.
        score: mean of the masks' scores, None without any.
        problems: why something is missing, one sentence each.
        unprompted: nothing is asked for yet, so that there is time to encode the images.
        whole_s: seconds that it took to segment the whole images, for want of a prompt; None where there was one.
    """

    regions: tuple[JsonObject, ...] = ()
    score: float | None = None
    problems: tuple[str, ...] = ()
    unprompted: bool = False
    whole_s: float | None = None

    @property
    def done(self) -> bool:
        """Whether the model looked and this is what it found, if only that there is nothing."""
        return bool(self.regions) or not (self.unprompted or self.problems)


class Answering(Protocol):
    """What answers the tasks of a project one after the other.

    Attributes:
        config: the project's labeling config.
        unmatched: why images of a file are none of the project's, by what the file calls them.
    """

    @property
    def config(self) -> LabelingConfig: ...  # noqa: D102

    @property
    def unmatched(self) -> Mapping[str, str]: ...  # noqa: D102

    def answer(self, task: Task, /) -> TaskPrediction:
        """Answer a task; RefineSAMError if it can't be."""


@dataclass(frozen=True, eq=False)
class TaskPredictor:
    """Answers tasks of one project.

    Attributes:
        session: the model.
        read_image: from what the task says to pixels.
        config: the project's labeling config.
        options: the project's.
        detections: what to answer instead of what tasks hold.
    """

    session: Session
    read_image: ReadImage
    config: LabelingConfig
    options: ServiceOptions
    detections: Detections | None = None

    @property
    def unmatched(self) -> Mapping[str, str]:
        """Why images of the detections are none of the project's."""
        return {} if self.detections is None else self.detections.unmatched

    def answer(self, task: object, context: object = None) -> TaskPrediction:
        """Answer one task; what goes wrong with one of its objects costs that object alone.

        Args:
            task: with "data", and where there are any "annotations", "drafts" and "predictions".
            context: what an annotator drew, {"result": [...]}; None or {} where nobody waits at the screen.

        Raises:
            RefineSAMError: no task, no image that can be read, or no prompt in the context.
        """
        if not isinstance(task, Mapping) or not isinstance(context or {}, Mapping):
            raise DatasetError(
                f"A task and its context must be JSON objects, got a {type(task).__name__} and a "
                f"{type(context).__name__}: send them as Label Studio does."
            )
        if isinstance(context, Mapping) and "result" in context and not context["result"]:
            return TaskPrediction(unprompted=True)
        shown = self._shown(task, context)
        if self.detections is not None and not any(
            (task.get("id"), tag.name) in self.detections.prompts for tag in shown
        ):
            return TaskPrediction(unprompted=True)
        images = {tag.name: self._read(task, tag) for tag in shown}
        problems: list[str] = []
        objects = {
            name: self._objects(task, context, name, pixels.shape[:2], problems.append)
            for name, pixels in images.items()
        }
        prompted, started = any(objects.values()), time.monotonic()
        if not prompted and (problems or self.options.everything is None):
            return TaskPrediction(problems=counted(problems), unprompted=not problems)
        regions: list[JsonObject] = []
        scores: list[float] = []
        for name, pixels in images.items():
            encoded = self.session.encode(pixels)
            for job in self._jobs(encoded, name, objects[name] if prompted else None, bool(context)):
                try:
                    made = self._regions(job, name)
                except RefineSAMError as error:
                    problems.append(str(error))
                    continue
                regions += made
                scores += [made[0]["score"]] if made else []
        whole_s = None if prompted else time.monotonic() - started
        score = float(np.mean(scores)) if scores else None
        return TaskPrediction(tuple(regions), score, counted(problems), whole_s=whole_s)

    def images(self, task: Task) -> list[object]:
        """Return what a task's data says of the images of the labeling config that it has."""
        values = [tag.value_in(task.get("data")) for tag in self.config.images]
        return [value for value in values if value is not None]

    def _read(self, task: Task, tag: ImageTag) -> NDArray[np.uint8]:
        task_id = task.get("id")
        return self.read_image(tag.value_in(task.get("data")), task_id if isinstance(task_id, int) else None)

    def _shown(self, task: Task, context: object) -> list[ImageTag]:
        """Return the images that the context is about; without one, all that the task has."""
        shown = [tag for tag in self.config.images if tag.value_in(task.get("data")) is not None]
        if len(shown) > 1 and isinstance(context, Mapping) and isinstance(context.get("result"), list):
            about = [region.get("to_name") for region in context["result"] if isinstance(region, Mapping)]
            shown = [tag for tag in shown if tag.name in about]
        if not shown:
            wanted = ", ".join(tag.variable for tag in self.config.images)
            raise DatasetError(
                f"The task has no image: its data needs {wanted}, as the labeling config says. Import it with it, or "
                "correct the config."
            )
        return shown

    def _objects(
        self, task: Task, context: object, name: str, image_hw: tuple[int, ...], on_problem: Callable[[str], None]
    ) -> list[PromptedObject]:
        """Return what is asked for in the image of a name."""
        hw = (image_hw[0], image_hw[1])
        if isinstance(context, Mapping) and context:
            found = prompt_from_context(context, task, self.config, hw)
        elif self.detections is not None:
            return self.detections.objects((task["id"], name), self.config, self.options.label, on_problem)
        else:
            found = prompts_from_annotations(task, self.config, hw, on_problem)
        return [item for item in found if item.to_name == name]

    def _jobs(
        self, encoded: EncodedImage, name: str, objects: list[PromptedObject] | None, waited_for: bool
    ) -> Iterator[Job]:
        if objects is None:
            yield from self._everything(encoded, name)
            return
        answered: dict[str | None, list[NDArray[np.bool_]]] = {}
        for item in objects:
            make = partial(self._predicted, encoded, item, answered.setdefault(item.label, []))
            yield Job(make, item.label, item.score)
        if self.options.similar is not None and not waited_for:
            for label, masks in answered.items():
                try:
                    for prediction in islice(self._alike(encoded, masks), self.options.max_masks):
                        yield Job(partial(self._refined, encoded, prediction), label)
                except RefineSAMError as error:
                    yield Job(partial(_refuse, error), label)

    def _alike(self, encoded: EncodedImage, masks: list[NDArray[np.bool_]]) -> Iterator[Prediction]:
        """Find what is like the objects of a label, the first of them as examples, and none of them."""
        assert self.options.similar is not None
        if masks:
            search = refinesam.SimilarMaskGenerator(self.session, encoded, masks[:MOST_EXAMPLES])
            for one in search.iterate(encoded):
                likely = one.similarity is not None and one.similarity >= self.options.similar
                if likely and max(mask_iou(one.mask, mask) for mask in masks) < SAME_OBJECT:
                    yield one

    def _everything(self, encoded: EncodedImage, name: str) -> Iterator[Job]:
        tag = self.config.output_for(self.options.label, self.options.output, name)
        label = self.options.label or next(iter(tag.labels), None)
        settings: JsonObject = dict(self.options.everything or {})
        found = self.session.iterate_everything(encoded, **settings)
        for prediction in islice(found, self.options.max_masks):
            yield Job(partial(self._refined, encoded, prediction), label)

    def _predicted(self, encoded: EncodedImage, item: PromptedObject, answered: list[NDArray[np.bool_]]) -> Prediction:
        """Answer a prompt, and add its mask to those that were answered."""
        prediction = encoded.predict(self._prompt(encoded, item))
        if prediction.mask.any():
            answered.append(prediction.mask)
        return self._refined(encoded, prediction)

    def _prompt(self, encoded: EncodedImage, item: PromptedObject) -> Prompt:
        """Return the prompt, with what is known of the object beside its box."""
        if item.outline is None:
            return item.prompt
        asked = item.prompt
        if self.session.model.capabilities.mask_prompt:
            mask = mask_from_outline(item.outline, encoded.image_hw)
            if mask.any():
                return Prompt(points=asked.points, labels=asked.labels, box=asked.box, mask=mask)
        return asked if len(asked.points) else asked.with_points([item.outline.mean(axis=0)])

    def _refined(self, encoded: EncodedImage, prediction: Prediction) -> Prediction:
        return prediction if self.options.amr is None else encoded.refine(prediction, self.options.amr)

    def _regions(self, job: Job, name: str) -> list[JsonObject]:
        tag = self.config.output_for(job.label, self.options.output, name)
        regions: list[JsonObject] = []
        for number, (offered, words) in enumerate(_offered(job.make(), self.options.alternatives)):
            mask = offered.mask
            regions += regions_from_mask(
                mask,
                tag,
                job.label,
                (mask.shape[0], mask.shape[1]),
                _score(offered) if job.score is None or number else job.score,
                {"text": [words]} if words else None,
                tolerance=self.options.tolerance,
                smallest_part=self.options.smallest_part,
            )
        check_regions(regions, self.config)
        return regions


def counted(problems: Sequence[str]) -> tuple[str, ...]:
    """Return each problem once, with how often there was it."""
    return tuple(text if count == 1 else f"{text} ({count} times)" for text, count in Counter(problems).items())


def _refuse(error: RefineSAMError) -> Prediction:
    raise error


def _offered(prediction: Prediction, alternatives: int) -> list[tuple[Prediction, str]]:
    """Return the model's own choice, then the other masks that the prompt may mean, the smallest first; each in words.

    Without alternatives there are no words.
    """
    candidates = prediction.candidates if alternatives else ()
    if len(candidates) < 2:
        return [(prediction, "")]
    words = [
        f"Candidate {index} of {len(candidates)} by size, predicted IoU {_score(one):.2f}"
        for index, one in enumerate(candidates, start=1)
    ]
    told = list(zip(candidates, words, strict=True))
    own = [item for item in told if np.array_equal(item[0].mask, prediction.mask)]
    others = [item for item in told if not np.array_equal(item[0].mask, prediction.mask)]
    return own + others[:alternatives]


def told_of_whole(answers: Sequence[TaskPrediction]) -> str:
    """Return in words what it cost to segment images whole, and how often for nothing; "" where none was."""
    whole = [answer for answer in answers if answer.whole_s is not None]
    if not whole:
        return ""
    mean = sum(answer.whole_s or 0 for answer in whole) / len(whole)
    empty = sum(not answer.regions for answer in whole)
    return (
        f"{len(whole)} tasks had no box and no click and were segmented whole: {mean:.1f} seconds each, and nothing "
        f'was found in {empty}. Boxes or clicks are quicker and surer; {{"everything": false}} in the extra params '
        "leaves such tasks out."
    )


def _score(prediction: Prediction) -> float:
    """The predicted IoU; a model may predict more than 1, which Label Studio has no room for."""
    return min(max(prediction.score, 0.0), 1.0)
