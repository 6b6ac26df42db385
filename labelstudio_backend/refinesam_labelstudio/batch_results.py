"""`BatchResults`: what `refinesam batch` made of a project's images, as regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refinesam import DatasetError, RefineSAMError, decode_rle
from refinesam.hosts import JobImages
from refinesam_labelstudio.json_types import JsonObject, JsonView, Task
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.results import check_regions, regions_from_mask
from refinesam_labelstudio.task_images import Place, TaskImages
from refinesam_labelstudio.task_prediction import TaskPrediction, counted

__all__ = ["BatchResults"]

EXAMPLES = 3


@dataclass(frozen=True, eq=False)
class BatchResults:
    """Answers tasks with masks that are there already, each with its class as label and its score.

    Attributes:
        results: of the job, as far as it is.
        config: the project's labeling config.
        options: of them, those that say what regions are like.
        images: the job's names of the tasks' images.
        unmatched: why the results of an image are used nowhere, by the job's name of it.
    """

    results: JobImages
    config: LabelingConfig
    options: ServiceOptions
    images: Mapping[Place, str]
    unmatched: Mapping[str, str]

    @classmethod
    def read(cls, path: Path, images: TaskImages, config: LabelingConfig, options: ServiceOptions) -> BatchResults:
        """Find the images of a project among the results in a folder.

        Raises:
            DatasetError: no results, or none of the project's images is among them.
        """
        results = JobImages(path)
        matched, unmatched = images.match(results.names)
        if not matched:
            known = ", ".join(list(images.places)[:EXAMPLES]) or "no images with a name"
            raise DatasetError(
                f"{path} has results of {len(results.names)} images, such as {results.names[0]}, and none is an image "
                f"of the project ({next(iter(unmatched.values()))}). There are {known}: give the results of these."
            )
        return cls(results, config, options, matched, unmatched)

    @property
    def version(self) -> str:
        """The model version: other settings, images or prompts of the job are another."""
        return f"batch-{self.results.digest[:8]}"

    def answer(self, task: Task) -> TaskPrediction:
        """Return the regions of a task; what is wrong with an object costs that object alone.

        Raises:
            RefineSAMError: its results are damaged.
        """
        names = {tag.name: self.images.get((int(task["id"]), tag.name)) for tag in self.config.images}
        if not any(names.values()):
            return TaskPrediction(unprompted=True)
        regions: list[JsonObject] = []
        scores: list[float] = []
        problems: list[str] = []
        for to_name, name in names.items():
            for row in self.results.rows(name) if name is not None else []:
                made = self._guarded(row, to_name, problems.append)
                regions += made
                scores += [made[0]["score"]] if made else []
        score = float(np.mean(scores)) if scores else None
        return TaskPrediction(tuple(regions), score, counted(problems))

    def _guarded(self, row: JsonView, to_name: str, on_problem: Callable[[str], None]) -> list[JsonObject]:
        if row["error"] is not None:
            on_problem(str(row["error"]))
        if row["rle"] is None:
            return []
        try:
            return self._regions(row, to_name)
        except RefineSAMError as error:
            on_problem(str(error))
            return []

    def _regions(self, row: JsonView, to_name: str) -> list[JsonObject]:
        label = self.config.label_for(row["class_name"], to_name, self.options.label)
        tag = self.config.output_for(label, self.options.output, to_name)
        hw = (row["height"], row["width"])
        score = row["predicted_iou"] if row["score"] is None else row["score"]
        regions = regions_from_mask(
            decode_rle({"size": list(hw), "counts": row["rle"]}),
            tag,
            label,
            hw,
            min(max(float(score), 0.0), 1.0),
            tolerance=self.options.tolerance,
            smallest_part=self.options.smallest_part,
        )
        check_regions(regions, self.config)
        return regions
