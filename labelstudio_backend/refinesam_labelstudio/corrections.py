"""What annotators accepted, kept as COCO folders that `refinesam train finetune` reads.

An event says only which task may have changed. What is kept, and that something is gone, comes from the server, so that
nobody who can reach the webhook can teach the model something or make it forget. What a model made and nobody changed
is not kept, and nothing is trained on before somebody approved it: `approve`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from refinesam import DatasetError, RefineSAMError, coco_annotation
from refinesam.hosts import replacing, write_json
from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.json_types import JsonObject, JsonView, Region, Task
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.responses import ServerError
from refinesam_labelstudio.results import is_unchanged, mask_from_region
from refinesam_labelstudio.task_prediction import ReadImage

__all__ = [
    "Corrections",
    "approve",
    "masks_from_annotation",
    "newest_accepted",
    "project_folder",
    "waiting",
    "write_dataset",
]

KEPT = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")
# One of so many tasks is for validation, by its id, so that it stays where it is.
VALIDATION_EVERY = 5
APPROVED = "approved.json"

_logger = logging.getLogger(__name__)


def project_folder(root: Path, project_id: int) -> Path:
    """Return the folder of a project, with `images`, `instances_train.json` and `instances_val.json`."""
    return root / f"project-{int(project_id)}"


def newest_accepted(task: Task) -> JsonObject | None:
    """Return the newest annotation of a task that isn't a skip; None without one."""
    accepted = [item for item in task.get("annotations") or [] if not item.get("was_cancelled")]
    return max(accepted, key=lambda item: (str(item.get("updated_at") or ""), item.get("id") or 0), default=None)


def masks_from_annotation(
    result: Sequence[Any], to_name: str, *, only_changed: bool = False
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return the masks of an image in an annotation, each with its label, "object" where it has none.

    Brushes, bitmasks and polygons are masks; rectangles and key points are not. Polygons that name one of the same
    label as their parent are parts of it. What is malformed is left out and logged.

    Args:
        result: the annotation's regions.
        to_name: name of the image's tag.
        only_changed: leave out an object of which nothing was changed since a model made it.
    """
    regions = [region for region in result if isinstance(region, Mapping) and region.get("to_name") == to_name]
    # A label from a Labels tag of its own is a second result of the same id.
    names = {region.get("id"): name for region in regions if (name := _label(region)) is not None}
    masks: dict[Any, tuple[str, NDArray[np.bool_]]] = {}
    changed: set[Any] = set()
    for region in regions:
        if str(region.get("type")).removesuffix("labels") not in ("brush", "bitmask", "polygon"):
            continue
        try:
            mask = mask_from_region(region)
        except DatasetError as error:
            _logger.warning("Region %s is left out: %s", region.get("id"), error)
            continue
        label = names.get(region.get("id"), "object")
        parent = masks.get(region.get("parentID"))
        if not is_unchanged(region, mask):
            changed |= {region.get("id"), region.get("parentID")}
        if parent is not None and parent[0] == label and parent[1].shape == mask.shape:
            masks[region["parentID"]] = label, parent[1] | mask
        else:
            masks[region.get("id")] = label, mask
    return [
        (label, mask)
        for region_id, (label, mask) in masks.items()
        if mask.any() and (region_id in changed or not only_changed)
    ]


def _label(region: Region) -> str | None:
    value = region.get("value")
    names = value.get(str(region.get("type"))) if isinstance(value, Mapping) else None
    return next((name for name in names if isinstance(name, str)), None) if isinstance(names, list) else None


class Corrections:
    """Collects accepted annotations in a folder for each project; not for two processes with the same folder."""

    def __init__(self, root: Path, server: LabelStudioServer, read_image: ReadImage) -> None:
        """Collect under `root`, which is made when the first annotation comes."""
        self._root, self._server, self._read_image = root, server, read_image

    def on_event(self, action: str, body: JsonView) -> None:
        """Take what the webhook hears: annotations that are made, changed or deleted; what goes wrong is logged."""
        try:
            self._take(action, body)
        except (RefineSAMError, OSError) as error:
            _logger.warning("%s is not collected: %s", action, error)
        except Exception:
            _logger.exception("%s is not collected.", action)

    def _take(self, action: str, body: JsonView) -> None:
        annotation = body.get("annotation")
        if action in KEPT and isinstance(annotation, Mapping):
            task = annotation.get("task")
            self.collect(int(task["id"] if isinstance(task, Mapping) else task))  # type: ignore[arg-type]
        elif action == "ANNOTATIONS_DELETED" and isinstance(body.get("annotations"), list):
            said = {item.get("id") for item in body["annotations"] if isinstance(item, Mapping)}
            for folder in self._root.glob("project-*"):
                for task_id, record in _records(folder).items():
                    if record.get("annotation") in said:
                        self._check(folder / "tasks" / f"{task_id}.json")

    def _check(self, record: Path) -> None:
        """Look on the server whether what was kept of a task is gone."""
        try:
            self.collect(int(record.stem))
        except ServerError as error:
            if error.status != 404:
                raise
            # The task is gone, if this token may still see its project.
            self._server.project(int(record.parent.parent.name.rpartition("-")[2]))
            self._forget(record)

    def collect(self, task_id: int) -> int:
        """Keep the newest accepted annotation of a task, in place of what was kept of it, and return its masks' number.

        Raises:
            ServerError: Label Studio can't be reached or refuses, or the task isn't there; nothing is changed.
            ConfigError: a labeling config without an image or a tag that takes masks.
            ImageError: the image can't be read.
        """
        task = self._server.get_task(task_id)
        project_id = int(task["project"])
        folder = project_folder(self._root, project_id)
        record = folder / "tasks" / f"{task_id}.json"
        newest = newest_accepted(task)
        if newest is None:
            self._forget(record)
            return 0
        config = LabelingConfig.parse(self._server.project(project_id)["label_config"])
        images = list(self._images(task, task_id, newest.get("result") or [], config, folder))
        if not images:
            self._forget(record)
            return 0
        write_json(record, {"annotation": newest.get("id"), "images": images})
        write_dataset(folder)
        return sum(len(image["objects"]) for image in images)

    def _images(
        self, task: Task, task_id: int, result: Sequence[Any], config: LabelingConfig, folder: Path
    ) -> Iterator[JsonObject]:
        for number, tag in enumerate(config.images):
            masks = masks_from_annotation(result, tag.name, only_changed=True)
            if not masks or (value := tag.value_in(task.get("data"))) is None:
                continue
            pixels = self._read_image(value, task_id)
            fitting = [(label, mask) for label, mask in masks if mask.shape == pixels.shape[:2]]
            if len(fitting) < len(masks):
                _logger.warning("Task %s has masks of another size than its image; they are left out.", task_id)
            name = f"{task_id}-{number}.png"
            with replacing(folder / "images" / name) as temporary:
                Image.fromarray(pixels).save(temporary, "PNG")
            objects = [{"label": label, **coco_annotation(mask, 0, 0, 0)} for label, mask in fitting]
            height, width = pixels.shape[:2]
            yield {"file_name": name, "height": height, "width": width, "objects": objects}

    def _forget(self, record: Path) -> None:
        if record.exists():
            record.unlink()
            write_dataset(record.parent.parent)


def waiting(folder: Path) -> dict[int, list[str]]:
    """Return the labels of what was collected of each task of a project and isn't approved, or has changed since."""
    approved = _approved(folder)
    return {
        task_id: [item["label"] for image in record["images"] for item in image["objects"]]
        for task_id, record in _records(folder).items()
        if approved.get(str(task_id)) != _seal(record)
    }


def approve(folder: Path, task_ids: Iterable[int]) -> None:
    """Let a project's tasks be trained on, as they are now: one that changes later has to be approved again.

    Raises:
        DatasetError: a task of which nothing was collected.
    """
    records, approved = _records(folder), _approved(folder)
    for task_id in task_ids:
        if task_id not in records:
            raise DatasetError(f"Nothing was collected of task {task_id}; there are {sorted(records)}.")
        approved[str(task_id)] = _seal(records[task_id])
    # Beside the records, which the backend may be writing at this moment.
    write_json(folder / APPROVED, approved)
    write_dataset(folder)


def _approved(folder: Path) -> dict[str, str]:
    path = folder / APPROVED
    try:
        return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(
            f"{path} can't be read ({type(error).__name__}: {error}): move it away and approve again."
        ) from error


def _records(folder: Path) -> dict[int, JsonObject]:
    """Return what was collected of a project's tasks; a damaged record costs itself and is logged."""
    records: dict[int, JsonObject] = {}
    for path in sorted((folder / "tasks").glob("*.json")):
        try:
            record = json.loads(path.read_text("utf-8"))
            if all(isinstance(item["label"], str) for image in record["images"] for item in image["objects"]):
                records[int(path.stem)] = record
        except (OSError, ValueError, LookupError, TypeError) as error:
            _logger.warning("%s is left out, it can't be read (%s): %s", path, type(error).__name__, error)
    return records


def _seal(record: JsonView) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_dataset(folder: Path) -> None:
    """Write a project's `instances_train.json` and `instances_val.json` from the records that are approved."""
    written: dict[int, JsonObject] | None = None
    # Another process may approve or collect meanwhile, and what is written last must not be what was read before.
    while (records := _approved_records(folder)) != written:
        _write_splits(folder, records)
        written = records


def _approved_records(folder: Path) -> dict[int, JsonObject]:
    approved = _approved(folder)
    return {n: record for n, record in _records(folder).items() if approved.get(str(n)) == _seal(record)}


def _write_splits(folder: Path, records: Mapping[int, JsonObject]) -> None:
    labels = sorted({item["label"] for record in records.values() for i in record["images"] for item in i["objects"]})
    for split in ("train", "val"):
        document: JsonObject = {
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": label} for number, label in enumerate(labels, start=1)],
        }
        chosen = [task_id for task_id in sorted(records) if (task_id % VALIDATION_EVERY == 0) == (split == "val")]
        for image in (image for task_id in chosen for image in records[task_id]["images"]):
            image_id = len(document["images"]) + 1
            document["images"].append({"id": image_id, **{k: image[k] for k in ("file_name", "height", "width")}})
            for item in image["objects"]:
                ids = {"id": len(document["annotations"]) + 1, "image_id": image_id}
                content = {key: value for key, value in item.items() if key != "label"}
                document["annotations"].append({**content, **ids, "category_id": labels.index(item["label"]) + 1})
        write_json(folder / f"instances_{split}.json", document)
