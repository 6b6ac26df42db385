"""A project on the small Label Studio: predictions belong to tasks, models are connected, and the server restarts."""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from fake_label_studio import FakeLabelStudio, _Handler
from refinesam_labelstudio.labeling_config import EXAMPLES


def box(x: float = 10, y: float = 10, width: float = 50, height: float = 50) -> dict[str, Any]:
    """A rectangle that somebody drew."""
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["Object"]}
    size = {"original_height": 24, "original_width": 32, "image_rotation": 0}
    return {"id": "r1", "from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value, **size}


def data_uri(seed: int) -> str:
    """A small image that comes with the task."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def task(number: int, image: str | None = None) -> dict[str, Any]:
    """A task with an image and a box to answer."""
    prediction = {"id": number, "model_version": "boxes", "result": [box()]}
    return {"id": number, "data": {"image": image or data_uri(number)}, "predictions": [prediction]}


class FakeProject(FakeLabelStudio):
    """Project 1.

    Attributes:
        store_s: seconds that the server takes to store predictions; the rows appear at the end, all together.
        lose_answers: answers of stored predictions that get lost on their way back.
        refused: tasks whose predictions make the server refuse a request.
        left_out: tasks whose predictions the server says nothing of and doesn't store.
        label_config: the project's. backends: models that it is connected to.
        legacy_enabled: whether a legacy token is taken.
        settings: of the project, what it shows.
        answers: to whatever a connected model is asked.
    """

    def __init__(self, tasks: int = 5) -> None:
        super().__init__()
        self.RequestHandlerClass = _ProjectHandler
        self.tasks = [task(number) for number in range(1, tasks + 1)]
        self.next_id = 10_000
        self.store_s, self.lose_answers = 0.0, 0
        self.refused: set[int] = set()
        self.left_out: set[int] = set()
        self.label_config = EXAMPLES["brush"]
        self.backends: list[dict[str, Any]] = []
        self.legacy_enabled = True
        self.answers: dict[str, Any] = {"data": {"result": [], "backend": None}}
        self.settings: dict[str, Any] = {"model_version": "", "show_collab_predictions": True}
        self.start = 0

    def knows(self, authorization: str | None) -> bool:
        return (self.legacy_enabled or not (authorization or "").startswith("Token")) and super().knows(authorization)

    def predictions(self, version: str) -> Counter[int]:
        """How many predictions of a version each task has."""
        with self.lock:
            return Counter(t["id"] for t in self.tasks for p in t["predictions"] if p["model_version"] == version)

    def store(self, rows: list[dict[str, Any]]) -> None:
        """Store rows, as one transaction."""
        time.sleep(self.store_s)
        with self.lock:
            for row in rows:
                self.next_id += 1
                found = next(item for item in self.tasks if item["id"] == row["task"])
                stored = {"id": self.next_id, "created_at": f"2026-01-01T00:00:{self.next_id % 60:02d}Z", **row}
                found["predictions"].append(stored)
            self.stored += rows

    def restart(self, down_s: float) -> None:
        """Stop listening, end every connection at its next request, and come back on the same port."""
        self.shutdown()
        self.socket.close()
        self.start += 1
        self.issued.clear()
        time.sleep(down_s)
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class _ProjectHandler(_Handler):
    server: FakeProject

    def setup(self) -> None:
        super().setup()
        self.start = self.server.start

    def begin(self) -> tuple[str, dict[str, list[str]], Any] | None:
        begun = super().begin()
        if begun is not None and self.start != self.server.start:
            self.close_connection = True
            return None
        return begun

    def do_POST(self) -> None:
        if urlsplit(self.path).path == "/api/ml/1/interactive-annotating":
            self.begin()
            return self.answer(200, self.server.answers)
        if urlsplit(self.path).path != "/api/projects/1/import/predictions":
            return super().do_POST()
        begun = self.begin()
        if begun is None:
            return None
        rows = begun[2]
        if not self.server.knows(self.headers.get("Authorization")):
            return self.answer(401, {"detail": "Invalid token."})
        if self.server.refused & {row["task"] for row in rows}:
            return self.answer(400, {"detail": "invalid task"})
        rows = [row for row in rows if row["task"] not in self.server.left_out]
        self.server.store(rows)
        if self.server.lose_answers:
            self.server.lose_answers -= 1
            self.close_connection = True
            return None
        return self.answer(201, {"created": len(rows)})

    def do_PATCH(self) -> None:
        begun = self.begin()
        if begun is None:
            return None
        path, _, content = begun
        if path == "/api/projects/1":
            self.server.settings.update(content)
            return self.answer(200, self.server.settings)
        for item in self.server.tasks:
            for prediction in item["predictions"]:
                if path == f"/api/predictions/{prediction['id']}/":
                    prediction.update(content)
                    return self.answer(200, prediction)
        return self.answer(404, {"detail": "Not found."})

    def do_DELETE(self) -> None:
        if self.begin() is None:
            return None
        for item in self.server.tasks:
            for prediction in list(item["predictions"]):
                if self.path == f"/api/predictions/{prediction['id']}/":
                    item["predictions"].remove(prediction)
                    return self.answer(204, b"")
        return self.answer(404, {"detail": "Not found."})

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path not in ("/api/version", "/api/projects/1", "/api/ml", "/api/webhooks/", "/api/current-user/whoami"):
            return super().do_GET()
        if self.begin() is None:
            return None
        if path == "/api/version":
            return self.answer(200, {"release": "1.23.2", "label-studio-os-package": {"version": "1.23.2"}})
        if not self.server.knows(self.headers.get("Authorization")):
            reason = "" if self.server.legacy_enabled else ": legacy token authentication has been disabled"
            return self.answer(401, {"detail": f"Authentication token no longer valid{reason}"})
        if path == "/api/ml":
            return self.answer(200, self.server.backends)
        if path == "/api/webhooks/":
            return self.answer(200, [])
        if path == "/api/current-user/whoami":
            return self.answer(200, {"id": 1, "email": "annotator@example.org"})
        project = {"id": 1, "label_config": self.server.label_config, "task_number": len(self.server.tasks)}
        return self.answer(200, {**project, **self.server.settings})


@contextmanager
def project(tasks: int = 5) -> Iterator[FakeProject]:
    """The server in a thread of its own."""
    server = FakeProject(tasks)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
