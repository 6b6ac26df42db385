"""`Detections`: a detector's boxes (or points) of the images of a project, with class and score."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refinesam import DatasetError, RefineSAMError
from refinesam.hosts import ObjectPrompt, prompts_by_image
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.prompts import PromptedObject
from refinesam_labelstudio.task_images import Place, TaskImages

__all__ = ["Detections", "detections_version"]

EXAMPLES = 3


@dataclass(frozen=True)
class Detections:
    """What a file says of the images of a project.

    Attributes:
        prompts: of each task's image.
        unmatched: why what the file says of an image is used nowhere, by what the file calls it.
    """

    prompts: Mapping[Place, Sequence[ObjectPrompt]]
    unmatched: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, images: TaskImages, document: Path | None = None) -> Detections:
        """Read boxes or points, as `refinesam batch` takes them.

        Args:
            path: COCO annotations or COCO results (JSON), CSV or Parquet.
            images: of the project.
            document: the COCO document that says what the ids of COCO results mean.

        Raises:
            DatasetError: the file can't be read, or names none of the project's images.
        """
        prompts = prompts_by_image(path, document)
        matched, unmatched = images.match(prompts)
        if not matched:
            said = "; ".join(f"{name}: {why}" for name, why in list(unmatched.items())[:EXAMPLES])
            known = ", ".join(list(images.places)[:EXAMPLES]) or "no images with a name"
            raise DatasetError(
                f"{path} has prompts for {len(prompts)} images, and none is an image of the project ({said}). There "
                f"are {known}: give the file of these images."
            )
        return cls({place: tuple(prompts[given]) for place, given in matched.items()}, unmatched)

    def objects(
        self, place: Place, config: LabelingConfig, label: str | None, on_problem: Callable[[str], None]
    ) -> list[PromptedObject]:
        """Return what is asked for in an image.

        Args:
            place: the image's.
            config: the project's; a class is the label of its name, whatever the case where only one is so alike.
            label: of objects without a class.
            on_problem: is told why an object can't be asked for.
        """
        objects = []
        for number, asked in enumerate(self.prompts.get(place, ())):
            try:
                prompt, called = asked.prompt(), config.label_for(asked.class_name, place[1], label)
            except RefineSAMError as error:
                on_problem(str(error))
                continue
            score = asked.score if asked.score is not None and 0 <= asked.score <= 1 else None
            if score is None and asked.score is not None:
                on_problem(f"A score of {asked.score:g} is not from 0 to 1; the mask has its predicted IoU instead.")
            objects.append(PromptedObject(prompt, called, asked.prompt_id or str(number), place[1], score))
        return objects


def detections_version(version: str, *files: Path | None) -> str:
    """Return the model version of predictions that answer files: other boxes are other predictions."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes() if path is not None else b"")
    return f"{version}+prompts-{digest.hexdigest()[:8]}"
