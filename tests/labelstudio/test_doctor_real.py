"""doctor under a real Label Studio: whatever can be set wrong is named, and what to change."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from skimage import data

from refinesam import Session, WeightsError
from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.app import create_app
from refinesam_labelstudio.doctor import examine
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.labeling_config import EXAMPLES
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.service import Service

if TYPE_CHECKING:
    from real_label_studio import Backend, LabelStudio, Project

OTHER_TOKEN = "f" * 40
AUTH = ("ada", "secret")
NO_TAGS = '<View><Image name="image" value="$image"/></View>'
NOT_SMART = EXAMPLES["brush"].replace(' smart="true"', "")
OTHER_LABEL = EXAMPLES["brush"].replace('value="Object"', 'value="Mine"', 1)


@dataclass
class Setup:
    """How everything is set; a test changes one thing.

    Attributes:
        server, token: of Label Studio, as the doctor is told them; "" for the right ones.
        url: of the backend, which the doctor is told; None starts one.
        auth: user name and password that the doctor knows.
        backend_auth: that the backend asks for.
        backend_server, backend_token: of Label Studio, as the backend knows it; "" for none.
        fails: the backend's weights don't load.
        learns: the backend hears webhooks.
        connection: fields of the connection; None leaves the project unconnected.
        connected: the connected address, where it isn't the backend's.
        hook: fields of the webhook, which Label Studio made when it was connected.
        config: labeling config of the project.
        image: in the task's data, None for an upload.
        tasks: whether the project has any.
        change: of the project in the end.
    """

    server: str = ""
    token: str = ""
    url: str | None = None
    auth: tuple[str, str] | None = None
    backend_auth: tuple[str, str] | None = None
    backend_server: str | None = None
    backend_token: str | None = None
    fails: bool = False
    learns: bool = True
    connection: dict[str, Any] | None = field(default_factory=dict)
    connected: str | None = None
    hook: dict[str, Any] = field(default_factory=dict)
    config: str = EXAMPLES["brush"]
    image: str | None = None
    tasks: bool = True
    change: dict[str, Any] = field(default_factory=dict)


CLOSED = "http://127.0.0.1:9"
BASIC = {"auth_method": "BASIC_AUTH", "basic_auth_user": AUTH[0], "basic_auth_pass": AUTH[1]}
HEADER = {"Authorization": "Basic " + base64.b64encode(b"ada:secret").decode()}

RIGHT = [
    Setup(),
    Setup(learns=False, hook={"url": CLOSED}),
    Setup(auth=AUTH, backend_auth=AUTH, connection=BASIC, hook={"headers": HEADER}),
    Setup(connection={"extra_params": {"output": "brush", "amr": "fast"}}),
]
# What is wrong, which check finds it, and words of what it says.
WRONG: dict[str, tuple[Setup, str, tuple[str, ...]]] = {
    "Label Studio's address": (Setup(server=CLOSED), "server", (CLOSED, "LABEL_STUDIO_URL")),
    "the doctor's token": (Setup(token=OTHER_TOKEN), "token", ("legacy token is refused",)),
    "the backend isn't there": (Setup(url=CLOSED, connected=""), "backend", ("labelstudio serve",)),
    "the backend's weights": (Setup(fails=True, connection=None), "backend", ("could not load", "--weights")),
    "the backend's password": (Setup(backend_auth=AUTH, connection=None), "backend", ("PASSWORD",)),
    "the backend doesn't know Label Studio": (Setup(backend_server=""), "answer", ("LABEL_STUDIO_URL",)),
    "the backend's address of Label Studio": (Setup(backend_server=CLOSED), "answer", (CLOSED, "no answer")),
    "the backend's token": (Setup(backend_token=OTHER_TOKEN), "answer", ("401", "token")),
    "a host that isn't allowed": (
        Setup(image="http://images.example.org/1.png"),
        "answer",
        ("images.example.org", "allowed", "--allow-host"),
    ),
    "a file that is gone": (Setup(image="/data/upload/1/gone.png"), "answer", ("gone.png", "answered with status")),
    "a path on a disk": (Setup(image="/home/ada/1.png"), "answer", ("/home/ada/1.png", "Import the file")),
    "no task": (Setup(tasks=False), "answer", ("no task", "import")),
    "no connection": (Setup(connection=None), "connection", ("no model", "ML_BLOCK_LOCAL_IP=false", "SSRF")),
    "not interactive": (Setup(connection={"is_interactive": False}), "connection", ("Interactive preannotations",)),
    "another backend": (Setup(connected="other"), "connection", ("another backend", "--backend")),
    "the connection's output": (
        Setup(connection={"extra_params": {"output": "polygon"}}),
        "connection",
        ("polygon", "no tag for it", "brush"),
    ),
    "no tags that take masks": (Setup(config=NO_TAGS, connection=None), "labeling config", ("BrushLabels",)),
    "no smart tags": (Setup(config=NOT_SMART), "smart tags", ('smart="true"',)),
    "labels that don't fit": (Setup(config=OTHER_LABEL), "smart tags", ("'Object'", "add <Label")),
    "another version is shown": (Setup(change={"model_version": "boxes"}), "model version", ("boxes", "Predictions")),
    "no version is shown": (Setup(change={"show_collab_predictions": False}), "model version", ("prelabel",)),
    "the webhook gets 401": (
        Setup(auth=AUTH, backend_auth=AUTH, connection=BASIC),
        "webhook",
        ("401", "Authorization"),
    ),
    "the webhook is off": (Setup(hook={"is_active": False}), "webhook", ("is off",)),
    "the webhook leads elsewhere": (Setup(hook={"url": CLOSED}), "webhook", ("is missing", "/webhook")),
}


@contextmanager
def running(setup: Setup, studio: LabelStudio, session: Session, folder: Path) -> Iterator[str]:
    """Our app as it is set up."""
    from real_label_studio import serving

    url = studio.url if setup.backend_server is None else setup.backend_server
    token = studio.personal_token if setup.backend_token is None else setup.backend_token
    server = LabelStudioServer(url, token, attempts=1) if url else None
    access = ImageAccess(server, FileCache(folder))

    def load() -> Session:
        if setup.fails:
            raise WeightsError("damaged")
        return session

    service = Service(
        load,
        lambda value, task_id: image_for_task(value, access, task_id),
        options=ServiceOptions(everything=None),
        on_event=(lambda action, body: None) if setup.learns else None,
    )
    with serving(partial(create_app, service, basic_auth=setup.backend_auth)) as address:
        yield address
    if server is not None:
        server.close()


def findings(setup: Setup, studio: LabelStudio, backend: Backend, upload: bytes, folder: Path) -> list[tuple[str, str]]:
    """What the doctor finds wrong."""
    project = studio.project(setup.config)
    call = studio.call
    address = f"/api/projects/{project.id}/import?return_task_ids=true"
    if setup.tasks and setup.image is None:
        call("POST", address, files={"file": ("one.png", upload)})
    elif setup.tasks:
        call("POST", address, json=[{"data": {"image": setup.image}}])
    with running(setup, studio, backend.session, folder) as url:
        connected = {None: url, "other": backend.url}.get(setup.connected)
        if setup.connection is not None and connected:
            project.attach(connected, **setup.connection)
        for hook in call("GET", "/api/webhooks/", params={"project": project.id}):
            call("PATCH", f"/api/webhooks/{hook['id']}/", json={**hook, **setup.hook})
        if "model_version" in setup.change:
            rows = [{"task": t["id"], "result": [], "model_version": "boxes"} for t in tasks(studio, project)]
            call("POST", f"/api/projects/{project.id}/import/predictions", json=rows)
        if setup.change:
            call("PATCH", f"/api/projects/{project.id}", json=setup.change)
        found = examine(
            setup.server or studio.url,
            setup.token or studio.personal_token,
            project_id=project.id,
            backend_url=setup.url or url,
            basic_auth=setup.auth,
        )
    return [(finding.check, finding.message) for finding in found if not finding.good]


def tasks(studio: LabelStudio, project: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = studio.call("GET", "/api/tasks", params={"project": project.id})["tasks"]
    return found


@pytest.fixture(scope="module")
def upload() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(data.coins()[:120, :120]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("setup", RIGHT)
def test_nothing_is_wrong(
    setup: Setup, label_studio: LabelStudio, backend: Backend, upload: bytes, tmp_path: Path
) -> None:
    assert findings(setup, label_studio, backend, upload, tmp_path) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(
    name: str, label_studio: LabelStudio, backend: Backend, upload: bytes, tmp_path: Path
) -> None:
    setup, check, words = WRONG[name]
    found = findings(setup, label_studio, backend, upload, tmp_path)
    named = " ".join(message for where, message in found if where == check)
    assert named, found
    for word in words:
        assert word in named


def test_a_label_studio_that_refuses_private_addresses_is_told_from_one_without_a_connection(
    label_studio: LabelStudio, backend: Backend
) -> None:
    """As it is by default, at the first start."""
    label_studio.end()
    label_studio.start(ML_BLOCK_LOCAL_IP="true", SSRF_PROTECTION_ENABLED="true")
    try:
        project = label_studio.project(EXAMPLES["brush"])
        body = {"url": backend.url, "project": project.id, "title": "refinesam", "is_interactive": True}
        refused = label_studio.client.post("/api/ml", json=body)
        found = examine(label_studio.url, label_studio.personal_token, project_id=project.id, backend_url=backend.url)
    finally:
        label_studio.end()
        label_studio.start()
    assert refused.status_code == 403, refused.text
    assert "reserved" in refused.text
    said = " ".join(finding.message for finding in found if finding.check in ("connection", "network"))
    for words in ("403", "reserved", "ML_BLOCK_LOCAL_IP=false", "SSRF_PROTECTION_ENABLED=false", "restart"):
        assert words in said
