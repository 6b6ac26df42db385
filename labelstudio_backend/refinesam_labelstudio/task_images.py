"""`TaskImages`: which tasks' images a file means, by the names of their files.

Label Studio keeps an upload as "/data/upload/7/1a2b3c4d-photo_1.png": with eight digits before its name, and without
blanks and signs in it.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from refinesam.hosts import match_images
from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.labeling_config import LabelingConfig

__all__ = ["Place", "TaskImages", "image_name"]

# A task's id, and the name of one of its images' tags.
Place = tuple[int, str]

UPLOAD = re.compile(r"/data/upload/\d+/[0-9a-f]{8}-")
PAGE = 500


def image_name(value: object) -> str | None:
    """Return the path of an image's file as far as a task's data tells it, None for a data URI or no address at all."""
    if not isinstance(value, str) or not value.strip() or value[:5].lower() == "data:":
        return None
    try:
        parts = urlsplit(value.strip())
    except ValueError:
        return None
    if parts.path.endswith("/data/local-files/"):
        return parse_qs(parts.query).get("d", [""])[0].lstrip("/") or None
    upload = UPLOAD.search(parts.path)
    path = parts.path[upload.end() :] if upload else f"{parts.netloc}/{parts.path.lstrip('/')}"
    return unquote(path).lstrip("/") or None


@dataclass(frozen=True)
class TaskImages:
    """The images of a project's tasks: by their files' names, and by what the tasks' data says, where they are."""

    places: Mapping[str, Mapping[str, tuple[Place, ...]]]

    @classmethod
    def of_project(cls, server: LabelStudioServer, project_id: int, config: LabelingConfig) -> TaskImages:
        """Ask for the images of all tasks; ServerError if Label Studio can't be reached or refuses."""
        places: dict[str, dict[str, list[Place]]] = defaultdict(lambda: defaultdict(list))
        for page in itertools.count(1):
            tasks = server.tasks(project_id, page, page_size=PAGE, data_only=True)
            if not tasks:
                break
            for task in tasks:
                for tag in config.images:
                    value = tag.value_in(task.get("data"))
                    if (name := image_name(value)) is not None:
                        places[name][value].append((int(task["id"]), tag.name))
        return cls({name: {value: tuple(at) for value, at in found.items()} for name, found in places.items()})

    def match(self, given: Iterable[str]) -> tuple[dict[Place, str], dict[str, str]]:
        """Return where the images are that a file means, by place what it calls them, and why others are nowhere."""
        found, unmatched = match_images(given, self.places)
        # As a name becomes when it is uploaded.
        uploaded = {_upload_name(one): one for one in unmatched}
        more, _ = match_images(uploaded, self.places.keys() - found.keys())
        for name, one in more.items():
            found[name] = uploaded[one]
            del unmatched[uploaded[one]]
        matched: dict[Place, str] = {}
        for name, one in found.items():
            by_value = self.places[name]
            if len(by_value) > 1:
                tasks = ", ".join(str(task_id) for task_id, _ in _all(by_value))
                unmatched[one] = f"the images of several tasks are called so: {tasks}"
            else:
                matched |= dict.fromkeys(_all(by_value), one)
        return matched, unmatched


def _all(by_value: Mapping[str, tuple[Place, ...]]) -> Iterator[Place]:
    return itertools.chain.from_iterable(by_value.values())


def _upload_name(given: str) -> str:
    return re.sub(r"[^-\w.]", "", given.rpartition("/")[2].strip().replace(" ", "_"))
