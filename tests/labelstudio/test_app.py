"""The app in a real uvicorn on a loopback port: the protocol, basic auth, and whatever JSON a client may send."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fakes import FloodModel
from refinesam import ImageError, Session
from refinesam_labelstudio.app import create_app
from refinesam_labelstudio.labeling_config import EXAMPLES
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.results import mask_from_region
from refinesam_labelstudio.service import Service

IMAGE = np.zeros((24, 32, 3), np.uint8)
IMAGE[:12, :16, 0] = 200


def read_image(value: object, task_id: int | None) -> np.ndarray:
    if value != "/data/upload/1/a.png":
        raise ImageError(f"{value!r} is not there.")
    return IMAGE


@contextmanager
def serving(service: Service, **options: Any) -> Iterator[httpx.Client]:
    """Serve in a thread; the client waits 20 seconds, so that an answer that never comes is a failure."""
    config = uvicorn.Config(create_app(service, **options), port=0, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    service = Service(lambda: Session(FloodModel()), read_image, options=ServiceOptions(everything=None))
    with serving(service) as client:
        yield client


def keypoint(**changes: Any) -> dict[str, Any]:
    value = {"x": 20, "y": 20, "width": 0.5, "labels": ["Object"], "keypointlabels": ["Object"]}
    size = {"original_height": 24, "original_width": 32, "image_rotation": 0, "is_positive": True}
    return {
        **size,
        "id": "k1",
        "from_name": "point",
        "to_name": "image",
        "type": "keypointlabels",
        "value": value,
    } | changes


TASK = {"id": 1, "project": 5, "data": {"image": "/data/upload/1/a.png"}, "annotations": [], "drafts": [],
        "predictions": []}  # fmt: skip
CLICK = {
    "tasks": [TASK],
    "project": "5.1700000000",
    "label_config": EXAMPLES["brush"],
    "params": {"login": None, "password": None, "context": {"result": [keypoint()]}},
}
SETUP = {
    "project": "5.1700000000",
    "schema": EXAMPLES["polygon"],
    "hostname": "http://localhost:8080",
    "access_token": "x",
    "extra_params": {"amr": True, "everything": False},
}


def test_the_protocol(client: httpx.Client) -> None:
    for path in ("/", "/health"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "UP")
    assert client.post("/setup", json=SETUP).json() == {"model_version": "flood-ffffffff+amr"}
    (result,) = client.post("/predict", json=CLICK).json()["results"]
    assert result["model_version"] == "flood-ffffffff+amr"
    assert np.array_equal(mask_from_region(result["result"][0]), IMAGE[..., 0] == 200)
    assert "flood-ffffffff+amr" in client.get("/versions").json()["versions"]
    assert client.post("/webhook", json={"action": "ANNOTATION_CREATED"}).json() == {"status": "ignored"}
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"text"', b"3", b"null", b"\xff\xfe", b"NaN", b"[" * 100_000, b"1" * 10_000, b'{"a": ' * 2_000],
)
def test_no_json_object(client: httpx.Client, content: bytes) -> None:
    for path in ("/setup", "/predict", "/webhook"):
        answer = client.post(path, content=content)
        assert answer.status_code == 400
        assert "object is needed" in answer.json()["error"]


def test_config_that_cannot_be_answered_is_said_in_words(client: httpx.Client) -> None:
    answer = client.post("/setup", json={"project": "5.1", "schema": "<View></View>"})
    assert answer.status_code == 400
    assert '<Image name="image" value="$image"/>' in answer.json()["error"]


def test_half_a_character_is_answered(client: httpx.Client) -> None:
    answer = client.post("/setup", content=b'{"project": "5", "schema": "\\ud800", "extra_params": {"\\ud800": 1}}')
    assert answer.status_code == 400
    answer.json()


def test_too_large() -> None:
    service = Service(lambda: Session(FloodModel()), read_image)
    with serving(service, max_body_bytes=1000) as client:
        assert client.post("/predict", content=b" " * 1001).status_code == 413
        assert client.post("/webhook", content=b'{"action": "A"}').status_code == 200


def test_basic_auth() -> None:
    service = Service(lambda: Session(FloodModel()), read_image)
    with serving(service, basic_auth=("label", "pässword")) as client:
        assert client.get("/health").status_code == 200
        for auth in (None, ("label", "wrong"), ("", ""), ("pässword", "label")):
            for answer in (client.post("/setup", json=SETUP, auth=auth), client.get("/versions", auth=auth)):
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert client.post("/setup", json=SETUP, auth=("label", "pässword")).status_code == 200
        latin = {"Authorization": "Basic bGFiZWw6cORzc3dvcmQ="}  # as `requests` encodes it
        assert client.get("/versions", headers=latin).status_code == 200


def test_weights_that_do_not_load_are_no_500() -> None:
    def factory() -> Session:
        raise OSError("disk full")

    with serving(Service(factory, read_image)) as client:
        answer = client.post("/predict", json={**CLICK, "params": {}})
        assert answer.status_code == 503
        assert "disk full" in answer.json()["error"]
        (told,) = client.post("/predict", json=CLICK).json()["results"]
        assert "disk full" in told["result"][0]["value"]["text"][0]
        assert client.get("/health").json() == {"status": "UP", "model": "failed"}


def test_health_and_setup_answer_while_every_prediction_waits() -> None:
    go = threading.Event()

    def slow(value: object, task_id: int | None) -> np.ndarray:
        assert go.wait(30)
        return IMAGE

    with serving(Service(lambda: Session(FloodModel()), slow)) as client, ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(client.post, "/predict", json=CLICK) for _ in range(60)]
        try:
            assert client.get("/health").status_code == 200
            assert client.post("/setup", json=SETUP).status_code == 200
            assert client.post("/webhook", json={"action": "A"}).status_code == 200
            assert not any(item.done() for item in waiting)
        finally:
            go.set()
        assert all(len(item.result().json()["results"]) == 1 for item in waiting)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
KEYS = st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 50, 100, 1e300, 10**400])


def bent(value: Any) -> st.SearchStrategy[Any]:
    """The value with one thing in it, at any depth, taken away or replaced."""
    if isinstance(value, dict) and value:
        return st.sampled_from(sorted(value)).flatmap(
            lambda key: st.one_of(
                JSON.map(lambda other: {**value, key: other}),
                NUMBERS.map(lambda other: {**value, key: other}),
                st.just({name: item for name, item in value.items() if name != key}),
                bent(value[key]).map(lambda other: {**value, key: other}),
            )
        )
    if isinstance(value, list) and value:
        return bent(value[0]).map(lambda other: [other, *value[1:]]) | st.just(value * 2) | st.just([])
    return JSON


def annotated() -> dict[str, Any]:
    box = {"x": 0, "y": 0, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["Object"]}
    region = {**keypoint(), "type": "rectanglelabels", "from_name": "box", "value": box}
    marks = [{"result": [region, keypoint(id="k2")], "created_at": "2024-01-01", "was_cancelled": False}]
    return {**CLICK, "tasks": [{**TASK, "annotations": marks}], "params": {"context": None}}


BODIES = [CLICK, annotated(), {**SETUP, "extra_params": {"amr": {"rule": "centre", "depth": 0.5}, "output": "polygon"}}]


class Mishaps(logging.Handler):
    """Collects what was caught though it should not happen: it costs a task its answer, and hides a mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.records.append(record)


@pytest.fixture(scope="module")
def mishaps() -> Iterator[Mishaps]:
    handler = Mishaps()
    logger = logging.getLogger("refinesam_labelstudio.service")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(["/predict", "/setup", "/webhook"]),
    body=st.sampled_from(BODIES).flatmap(lambda body: bent(body) | bent(body).flatmap(bent)) | JSON,
)
@example(path="/predict", body={**CLICK, "tasks": [None, 1, "a", [], {}, TASK]})
@example(path="/predict", body={**CLICK, "params": {"context": {"result": [keypoint(original_width=10**400)]}}})
def test_whatever_json_comes_is_answered(client: httpx.Client, mishaps: Mishaps, path: str, body: Any) -> None:
    answer = client.post(path, content=json.dumps(body))
    assert answer.status_code in (200, 400), answer.text
    assert [record.getMessage() for record in mishaps.records] == []
    content = answer.json()
    if answer.status_code == 400:
        assert len(content["error"]) > 10
    elif path == "/predict":
        assert len(content["results"]) == len(body["tasks"])
        # Nothing is stored for a batch's task that can't be answered; an annotator is told why.
        for result in (result for result in content["results"] if result != []):
            assert set(result) - {"problems", "backend"} == {"result", "score", "model_version"}
            drawn = [region for region in result["result"] if region["type"] != "textarea"]
            assert all(region["id"] and region["original_width"] == 32 for region in drawn)
