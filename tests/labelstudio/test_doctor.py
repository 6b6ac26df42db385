"""doctor: each thing that can be wrong is found, and what to change is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn

from fake_label_studio import LEGACY, PERSONAL, FakeLabelStudio, jwt, running
from fake_project import FakeProject, project
from fakes import FloodModel
from refinesam import Session, WeightsError
from refinesam_labelstudio.app import create_app
from refinesam_labelstudio.doctor import Finding, examine
from refinesam_labelstudio.labeling_config import EXAMPLES
from refinesam_labelstudio.service import Service

CONNECTED = {
    "id": 1,
    "title": "model",
    "url": "http://127.0.0.1:9090",
    "state": "CO",
    "is_interactive": True,
    "model_version": "v1",
    "error_message": None,
}


@pytest.fixture
def studio() -> Iterator[FakeProject]:
    with project(1) as server:
        server.backends = [CONNECTED]
        server.settings["model_version"] = "model"
        yield server


def bad(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.check, finding.message) for finding in findings if not finding.good]


@contextmanager
def backend(
    fails: bool = False, basic_auth: tuple[str, str] | None = None, studio: FakeProject | None = None
) -> Iterator[str]:
    def session() -> Session:
        if fails:
            raise WeightsError("damaged")
        return Session(FloodModel())

    service = Service(session, lambda value, task_id: np.zeros((24, 32, 3), np.uint8))
    if studio is not None:
        studio.answers = {"data": {"result": [], "backend": service.instance}}
    app = create_app(service, basic_auth=basic_auth)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started or service.health()["model"] == "loading":
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("token", [LEGACY, PERSONAL])
def test_nothing_is_wrong(studio: FakeProject, token: str) -> None:
    with backend(studio=studio) as url:
        findings = examine(studio.url, token, project_id=1, backend_url=url)
    assert bad(findings) == []
    checks = ["backend", "server", "token", "labeling config", "smart tags", "answer", "connection"]
    checks += ["model version", "webhook"]
    assert [finding.check for finding in findings] == checks
    said = " ".join(finding.message for finding in findings)
    for words in ("Label Studio 1.23.2", "annotator@example.org", "brush (mask)", "keypoint (point)", "version v1"):
        assert words in said


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_example_is_good(studio: FakeProject, kind: str) -> None:
    studio.label_config = EXAMPLES[kind]
    assert bad(examine(studio.url, LEGACY, project_id=1)) == []


def one(findings: list[Finding], check: str, *words: str) -> None:
    """Exactly one thing is wrong, and its message has the words."""
    ((found, message),) = bad(findings)
    assert found == check
    for word in words:
        assert word in message


def test_server(studio: FakeProject) -> None:
    closed = "http://127.0.0.1:9"
    one(examine(closed, LEGACY), "server", closed, "start Label Studio", "LABEL_STUDIO_URL")
    one(examine(f"{studio.url}/projects", LEGACY), "server", "names no release")
    one(examine("label.example.org", LEGACY), "server", "http or https")
    with running() as other:
        assert isinstance(other, FakeLabelStudio)
        one(examine(other.url, LEGACY), "server", "names no release")


def test_token(studio: FakeProject) -> None:
    one(examine(studio.url, ""), "token", "LABEL_STUDIO_API_KEY")
    one(examine(studio.url, "short"), "token", "5 characters", "copy it again")
    one(examine(studio.url, jwt(token_type="access")), "token", "lives for minutes")
    one(examine(studio.url, jwt(token_type="refresh", jti="revoked")), "token", "revoked", "Make another")
    studio.legacy_enabled = False
    one(examine(studio.url, LEGACY), "token", "disabled", "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true")
    assert bad(examine(studio.url, PERSONAL)) == []


def test_project_that_is_not_there(studio: FakeProject) -> None:
    one(examine(studio.url, LEGACY, project_id=2), "labeling config", "Project 2", "404")


def test_labeling_config(studio: FakeProject) -> None:
    studio.label_config = '<View><Text name="text" value="$text"/></View>'
    one(examine(studio.url, LEGACY, project_id=1), "labeling config", "<Image", "labelstudio configs")
    studio.label_config = EXAMPLES["brush"].replace("<View>", '<View><Image name="pages" valueList="$pages"/>')
    one(examine(studio.url, LEGACY, project_id=1), "labeling config", "'pages' is shown by valueList", "make a task of")
    studio.label_config = EXAMPLES["brush"].replace(' smart="true"', "")
    one(examine(studio.url, LEGACY, project_id=1), "smart tags", 'smart="true"', "add it")
    mask_labels, _, rest = EXAMPLES["brush"].partition("</BrushLabels>")
    studio.label_config = mask_labels.replace('value="Other"', 'value="Another"') + "</BrushLabels>" + rest
    one(examine(studio.url, LEGACY, project_id=1), "smart tags", "'Other'", "add <Label")
    studio.label_config = EXAMPLES["brush"].replace('<TextArea name="refinesam"', '<TextArea name="notes"')
    (told,) = [found for found in examine(studio.url, LEGACY, project_id=1) if found.check == "smart tags"]
    assert told.good and "not told why an answer is missing" in told.message and "labelstudio configs" in told.message


def test_connection(studio: FakeProject) -> None:
    studio.backends = []
    one(examine(studio.url, LEGACY, project_id=1, backend_url=None), "connection", "no model", "Settings, Model")
    studio.backends = [{**CONNECTED, "is_interactive": False}]
    one(examine(studio.url, LEGACY, project_id=1), "connection", "Interactive preannotations")
    studio.backends = [{**CONNECTED, "state": "ER", "error_message": "cannot connect"}]
    found = bad(examine(studio.url, LEGACY, project_id=1))
    assert [check for check, _ in found] == ["connection", "network"]
    assert "cannot connect" in found[0][1] and "shows annotators no reason" in found[0][1]
    for words in ("private address", "ML_BLOCK_LOCAL_IP=false", "SSRF_PROTECTION_ENABLED=false", "container"):
        assert words in found[1][1]
    # Neither a public address nor a name that this machine doesn't know is told to be private.
    for url in ("http://93.184.216.34:9090", "http://refinesam.invalid:9090"):
        studio.backends = [{**CONNECTED, "state": "DI", "url": url}]
        one(examine(studio.url, LEGACY, project_id=1), "connection", "disconnected", url)


def test_backend(studio: FakeProject) -> None:
    closed = "http://127.0.0.1:9"
    one(examine(studio.url, LEGACY, backend_url=closed), "backend", closed, "refinesam labelstudio serve")
    one(examine(studio.url, LEGACY, backend_url=studio.url), "backend", "no backend of refinesam")
    with backend(fails=True) as url:
        one(examine(studio.url, LEGACY, backend_url=url), "backend", "could not load its weights", "damaged")
    with backend(basic_auth=("ada", "secret")) as url:
        one(examine(studio.url, LEGACY, backend_url=url), "backend", "REFINESAM_LABELSTUDIO_PASSWORD")
        assert bad(examine(studio.url, LEGACY, backend_url=url, basic_auth=("ada", "secret"))) == []
