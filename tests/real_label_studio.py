"""A real Label Studio on a loopback port with an empty data directory, a real backend, and a hand on their APIs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np
import uvicorn

import refinesam
from refinesam import Session
from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.app import create_app
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.results import mask_from_region
from refinesam_labelstudio.service import Service

PROGRAM = Path(os.environ.get("LABEL_STUDIO_BIN", Path(__file__).parents[1] / ".venv-labelstudio/bin/label-studio"))
EMAIL, PASSWORD = "annotator@example.org", "a password for tests"
LEGACY_TOKEN = "0123456789abcdef0123456789abcdef01234567"
PATIENCE_S = 300  # of waiting for something that will come; the machine may be busy
# Few clicks, since they take time, and low thresholds, so that they find something.
EVERYTHING = {"points_per_side": 6, "iou_threshold": 0.3, "stability_threshold": 0.3}
SETTINGS = {
    # Its own would begin with "$" once in fifty times, and then not outlive a restart, nor would any token.
    "SECRET_KEY": "a key for tests, since one that Label Studio makes may be lost when it restarts",
    "LABEL_STUDIO_USERNAME": EMAIL,
    "LABEL_STUDIO_PASSWORD": PASSWORD,
    "LABEL_STUDIO_USER_TOKEN": LEGACY_TOKEN,
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    # The backend is on a private address.
    "ML_BLOCK_LOCAL_IP": "false",
    "SSRF_PROTECTION_ENABLED": "false",
    # Nothing is asked of hosts elsewhere.
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
}

Region = dict[str, Any]


@dataclass
class LabelStudio:
    """A server that runs, with its only user's tokens.

    Attributes:
        url: without a slash at the end.
        personal_token: that a backend is given.
        client: sends the legacy token.
        folder: of its data and its log.
    """

    url: str
    client: httpx.Client
    folder: Path
    personal_token: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self, **settings: str) -> None:
        """Start the server and wait until it answers; an error with the end of its log if it doesn't."""
        port = self.url.rpartition(":")[2]
        command = [str(PROGRAM), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", port]
        inherited = {name: os.environ[name] for name in os.environ if not name.startswith(("LABEL_STUDIO", "DJANGO"))}
        environment = {**inherited, **SETTINGS, "LABEL_STUDIO_BASE_DATA_DIR": str(self.folder), **settings}
        with (self.folder / "server.log").open("ab") as log:
            # A group of its own, which ends as a whole.
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/api/current-user/whoami").is_success:
                    return
            time.sleep(0.25)
        log_text = (self.folder / "server.log").read_text(errors="replace")
        raise AssertionError(f"Label Studio did not start. Its log ends:\n{log_text[-3000:]}")

    def end(self) -> None:
        """End the server and whatever it started."""
        if self.process is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(20)

    def call(self, method: str, path: str, **content: Any) -> Any:
        """The answer's JSON; a refusal is an error that shows what the server said."""
        response = self.client.request(method, path, **content)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text[:500]}"
        return response.json() if response.content else None

    def project(self, label_config: str, files: Mapping[str, bytes] | None = None) -> Project:
        """Make a project with these images, one task each."""
        body = {"title": "test", "label_config": label_config}
        made = Project(self, self.call("POST", "/api/projects", json=body)["id"])
        for name, content in (files or {}).items():
            upload = self.call(
                "POST", f"/api/projects/{made.id}/import?return_task_ids=true", files={"file": (name, content)}
            )
            made.tasks[name] = upload["task_ids"][0]
        return made


@dataclass
class Project:
    """A project on the server.

    Attributes:
        id: the project's.
        tasks: file name to task id.
        backend_id: of the backend that was attached last.
    """

    server: LabelStudio
    id: int
    tasks: dict[str, int] = field(default_factory=dict)
    backend_id: int = 0

    def attach(self, backend_url: str, **settings: Any) -> dict[str, Any]:
        """Connect a backend, as the settings page does."""
        body = {"url": backend_url, "project": self.id, "title": "refinesam", "is_interactive": True, **settings}
        answer: dict[str, Any] = self.server.call("POST", "/api/ml", json=body)
        self.backend_id = answer["id"]
        return answer

    def retrieve(self) -> None:
        """Ask the backend for predictions of all tasks, as the data manager's menu does."""
        self.server.call(
            "POST",
            f"/api/dm/actions?id=retrieve_tasks_predictions&project={self.id}",
            json={"selectedItems": {"all": True, "excluded": []}},
        )

    def predictions(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.call("GET", "/api/predictions", params={"task": self.tasks[name]})
        return found

    def masks(self, name: str) -> list[np.ndarray]:
        """The masks of a task's predictions, as they are stored on the server."""
        return [mask_from_region(region) for item in self.predictions(name) for region in item["result"]]

    def ask(self, name: str, regions: Sequence[Region]) -> list[Region]:
        """Send an interactive context, as the annotation page does, and return the regions of the answer."""
        answer = self.server.call(
            "POST",
            f"/api/ml/{self.backend_id}/interactive-annotating",
            json={"task": self.tasks[name], "context": {"result": list(regions)}},
        )
        assert "data" in answer, answer
        result: list[Region] = answer["data"]["result"]
        return result


@contextlib.contextmanager
def label_studio(folder: Path) -> Iterator[LabelStudio]:
    """Start a server with an empty data directory, and make its user a personal access token."""
    url = f"http://127.0.0.1:{free_port()}"
    header = {"Authorization": f"Token {LEGACY_TOKEN}"}
    with httpx.Client(base_url=url, timeout=PATIENCE_S, headers=header) as client:
        server = LabelStudio(url, client, folder)
        try:
            server.start()
            both = {"legacy_api_tokens_enabled": True, "api_tokens_enabled": True}
            server.call("POST", "/api/jwt/settings", json=both)
            server.personal_token = server.call("POST", "/api/token/")["token"]
            yield server
        finally:
            server.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class CountedEncoder:
    """Counts how often a model's image encoder runs."""

    def __init__(self, session: Session) -> None:
        self._encode, self._lock = session.model.encode, threading.Lock()
        self.runs = 0
        session.model.encode = self

    def __call__(self, *arguments: Any) -> Any:
        with self._lock:
            self.runs += 1
        return self._encode(*arguments)


@dataclass
class Backend:
    """Our app on a loopback port, with the built-in weights.

    Attributes:
        session: with the built-in weights.
        encoder: counts the image encoder's runs.
        access: to the server, with the personal access token.
    """

    url: str
    session: Session
    encoder: CountedEncoder
    access: LabelStudioServer


@contextlib.contextmanager
def backend(
    server: LabelStudio,
    cache: Path,
    session: Session | None = None,
    port: int = 0,
    service: Mapping[str, Any] = MappingProxyType({}),
    **app: Any,
) -> Iterator[Backend]:
    """Serve the app with the built-in weights, or a session that has them; images come by a personal access token."""
    session = session or refinesam.load("builtin")
    access = LabelStudioServer(server.url, server.personal_token, timeout_s=PATIENCE_S)
    images = ImageAccess(access, FileCache(cache))
    made = Service(
        lambda: session,
        lambda value, task_id: image_for_task(value, images, task_id),
        **{"options": ServiceOptions(everything=EVERYTHING), **service},
    )
    with contextlib.closing(access), serving(partial(create_app, made, **app), port) as url:
        yield Backend(url, session, CountedEncoder(session), access)


@contextlib.contextmanager
def serving(make_app: Any, port: int = 0) -> Iterator[str]:
    """Run an app in a thread and return its address."""
    server = uvicorn.Server(uvicorn.Config(make_app(), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the backend did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
