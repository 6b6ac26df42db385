"""`export`: a project's accepted annotations as COCO with exact masks, and as PNG.

Label Studio's own exports turn brushes into polygons in COCO, and know no bitmasks.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refinesam import ConfigError, RefineSAMError, coco_annotation
from refinesam.hosts import replacing, write_json
from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.corrections import masks_from_annotation, newest_accepted
from refinesam_labelstudio.json_types import JsonObject, Task
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.responses import ServerError
from refinesam_labelstudio.task_prediction import ReadImage

__all__ = ["Export", "export_project"]

INSTANCES = "instances.json"
MASKS = "masks"

_logger = logging.getLogger(__name__)


@dataclass
class Export:
    """What an export did.

    Attributes:
        images: that it holds, those without objects too.
        objects: in them.
        unannotated: tasks without an accepted annotation.
        failed: why a task is not in it, by its id.
    """

    images: int = 0
    objects: int = 0
    unannotated: int = 0
    failed: dict[int, str] = field(default_factory=dict)


def export_project(
    server: LabelStudioServer,
    project_id: int,
    read_image: ReadImage,
    output: Path,
    *,
    png: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Export:
    """Write the newest accepted annotation of each task.

    Args:
        server: Label Studio.
        project_id: the project's.
        read_image: is asked only for the size of an image without any object.
        output: a folder; `instances.json` (COCO, masks as RLE) is written into it.
        png: also write `masks/<task>-<category id>-<label>.png` there, 255 where an object of the label is; with the
            image tag's name after the task where tasks have several images.
        on_progress: is called with the tasks done and all tasks, after each.

    Raises:
        ConfigError: the folder has an export already, or the labeling config no image or masks.
        ServerError: Label Studio can't be reached or refuses; nothing is written.
    """
    if (output / INSTANCES).exists() or (png and (output / MASKS).exists()):
        raise ConfigError(f"{output} has an export already: name another folder, or move that one away.")
    project = server.project(project_id)
    config = LabelingConfig.parse(str(project.get("label_config") or ""))
    labels = sorted({label for tag in config.outputs for label in tag.labels})
    document: JsonObject = {"images": [], "annotations": [], "categories": []}
    done, total = Export(), int(project.get("task_number") or 0)
    folder = output / MASKS if png else None
    count = 0
    for page in itertools.count(1):
        tasks = server.tasks(project_id, page)
        if not tasks:
            break
        for task in tasks:
            try:
                _add(task, config, labels, read_image, document, folder, done)
            except (RefineSAMError, OSError) as error:
                if isinstance(error, ServerError) and (error.retry or error.status == 401):
                    raise
                done.failed[int(task["id"])] = str(error)
            count += 1
            on_progress(count, max(total, count))
    document["categories"] = [{"id": number, "name": label} for number, label in enumerate(labels, start=1)]
    done.images, done.objects = len(document["images"]), len(document["annotations"])
    write_json(output / INSTANCES, document)
    return done


def _add(
    task: Task,
    config: LabelingConfig,
    labels: list[str],
    read_image: ReadImage,
    document: JsonObject,
    folder: Path | None,
    done: Export,
) -> None:
    """Add a task's images and objects to a COCO document; labels that the config doesn't have are added to them."""
    task_id, annotation = int(task["id"]), newest_accepted(task)
    if annotation is None:
        done.unannotated += 1
        return
    annotated = []
    for tag in config.images:
        if (value := tag.value_in(task.get("data"))) is not None:
            masks = masks_from_annotation(annotation.get("result") or [], tag.name)
            hw = masks[0][1].shape if masks else read_image(value, task_id).shape[:2]
            annotated.append((tag.name, value, masks, hw))
    for tag_name, value, masks, (height, width) in annotated:
        image_id = len(document["images"]) + 1
        name = Path(unquote(urlsplit(str(value)[:4096]).path)).name or f"{task_id}"
        size = {"height": int(height), "width": int(width)}
        document["images"].append({"id": image_id, "file_name": name, **size, "task_id": task_id})
        for label, mask in masks:
            if label not in labels:
                labels.append(label)
            category, number = labels.index(label) + 1, len(document["annotations"]) + 1
            document["annotations"].append(coco_annotation(mask, image_id, category, number))
        if folder is not None:
            several = f"{tag_name}-" if len(config.images) > 1 else ""
            _write_masks(masks, labels, folder, f"{task_id}-{several}")


def _write_masks(masks: list[tuple[str, NDArray[np.bool_]]], labels: list[str], folder: Path, prefix: str) -> None:
    together: dict[str, NDArray[np.bool_]] = {}
    for label, mask in masks:
        together[label] = together[label] | mask if label in together else mask
    for label, mask in together.items():
        # The number keeps labels apart that differ in what a file's name can't have.
        name = re.sub(r"[^\w.-]+", "_", label)
        with replacing(folder / f"{prefix}{labels.index(label) + 1}-{name}.png") as temporary:
            Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, "PNG")
