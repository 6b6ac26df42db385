"""Several models behind one address: each project chooses, under Model in its settings."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from fake_project import box
from fakes import FloodModel
from refinesam import ConfigError, Session
from refinesam_labelstudio.app import create_app
from refinesam_labelstudio.environment import start_service
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.labeling_config import EXAMPLES
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.service import Service

if TYPE_CHECKING:
    from pathlib import Path

    from real_label_studio import LabelStudio


def session(name: str, made: list[str]) -> Session:
    made.append(name)
    model = FloodModel()
    model.name = name
    return Session(model)


@contextmanager
def serving_two(folder: Path, made: list[str]) -> Iterator[tuple[str, Service]]:
    from real_label_studio import serving

    access = ImageAccess(None, FileCache(folder))
    factories = {name: partial(session, name, made) for name in ("first", "second")}
    options = ServiceOptions(everything=None)
    service = Service(factories, lambda value, task_id: image_for_task(value, access, task_id), options=options)
    with closing(service), serving(partial(create_app, service)) as url:
        yield url, service


def test_each_project_has_its_model(label_studio: LabelStudio, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), 7, np.uint8)).save(buffer, "PNG")
    image = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    versions: dict[str, Any] = {}
    made: list[str] = []
    with serving_two(tmp_path, made) as (url, service):
        for name in (None, "second", "first"):
            project = label_studio.project(EXAMPLES["brush"])
            address = f"/api/projects/{project.id}/import?return_task_ids=true"
            body = [{"data": {"image": image}, "predictions": [{"result": [box()], "model_version": "boxes"}]}]
            (task_id,) = label_studio.call("POST", address, json=body)["task_ids"]
            project.attach(url, **({"extra_params": {"model": name}} if name else {}))
            assert label_studio.call("GET", "/api/ml", params={"project": project.id})[0]["state"] == "CO"
            project.retrieve()
            found = label_studio.call("GET", "/api/predictions", params={"task": task_id})
            versions[str(name)] = sorted(item["model_version"] for item in found)
        assert versions["None"] == versions["first"] == ["boxes", "first-ffffffff"]
        assert versions["second"] == ["boxes", "second-ffffffff"]
        assert made == ["first", "second"]  # each once, and the second only when it was asked for
        assert set(service.versions()["versions"]) >= {"first-ffffffff", "second-ffffffff", "first-ffffffff+amr"}
        # One that isn't served is refused, with what to do.
        refused = label_studio.project(EXAMPLES["brush"])
        body = {"url": url, "project": refused.id, "title": "refinesam", "extra_params": {"model": "third"}}
        label_studio.client.post("/api/ml", json=body)
        connections = label_studio.call("GET", "/api/ml", params={"project": refused.id})
        assert all(row["state"] != "CO" for row in connections)
        setup = {"project": "9.1", "schema": EXAMPLES["brush"], "extra_params": {"model": "third"}}
        with pytest.raises(ConfigError, match="serves first, second: choose .*, or start it with --also third"):
            service.setup(setup)


def test_a_model_loads_once_however_many_ask_for_it(tmp_path: Path) -> None:
    made: list[str] = []
    with serving_two(tmp_path, made) as (_, service):
        asking = [threading.Thread(target=service._session, args=(30, "second")) for _ in range(8)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert made.count("second") == 1


def test_two_weights_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="Two of the weights are called 'builtin'"):
        start_service("builtin", also=["builtin"])
