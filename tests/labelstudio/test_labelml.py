"""The label-studio-ml subclass under its PyPI release, in a process of its own.

The release pins dependencies of 2020, so it stays out of this environment: it is looked for in LABEL_STUDIO_ML_SITE, a
folder that `pip install --target FOLDER flask rq redis colorama appdirs requests lxml` and then `pip install --target
FOLDER --no-deps label-studio-ml==1.0.9 label-studio-tools==0.0.4` filled.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fake_project import box, data_uri
from refinesam_labelstudio.labeling_config import EXAMPLES
from refinesam_labelstudio.results import mask_from_region

ROOT = Path(__file__).parents[2]
SITE = Path(os.environ.get("LABEL_STUDIO_ML_SITE", ROOT / ".site-labelstudio-ml"))

pytestmark = pytest.mark.skipif(
    not (SITE / "label_studio_ml").is_dir(), reason="LABEL_STUDIO_ML_SITE names no folder with label-studio-ml"
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("labelml")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LABEL_STUDIO", "REFINESAM"))}
    environment = {
        **kept,
        # Behind this environment's own packages, which are newer.
        "PYTHONPATH": os.pathsep.join([str(ROOT / "labelstudio_backend"), *sys.path[1:], str(SITE)]),
        "PORT": str(port),
        "MODEL_DIR": str(folder),
        "REFINESAM_DEVICE": "cpu",
        "REFINESAM_LABELSTUDIO_FOLDER": str(folder),
    }
    with (folder / "log").open("wb") as log:
        command = [sys.executable, str(ROOT / "labelstudio_backend" / "_wsgi.py")]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while process.poll() is None:
                try:
                    if client.get("/health").json()["status"] == "UP":
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            assert process.poll() is None, (folder / "log").read_text()
            yield client
    finally:
        process.terminate()
        process.wait(30)


def ask(client: httpx.Client, project: str, kind: str, *seeds: int, context: Any = None) -> list[dict[str, Any]]:
    tasks = [
        {"id": seed, "data": {"image": data_uri(seed)}, "predictions": [{"id": seed, "result": [box()]}]}
        for seed in seeds
    ]
    body = {"tasks": tasks, "project": project, "label_config": EXAMPLES[kind], "params": {"context": context}}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def test_predict_before_setup_in_order(client: httpx.Client) -> None:
    results = ask(client, "1.1", "brush", 1, 2, 3)
    assert len(results) == 3
    assert all(result["model_version"].startswith("builtin-") for result in results)
    masks = [mask_from_region(result["result"][0]) for result in results]
    assert all(mask.shape == (24, 32) and mask.any() for mask in masks)
    again = ask(client, "1.1", "brush", 3, 1)
    for found, expected in zip(again, (masks[2], masks[0]), strict=True):
        assert np.array_equal(mask_from_region(found["result"][0]), expected)


def test_projects_do_not_leak(client: httpx.Client) -> None:
    for project, kind in (("1.1", "polygon"), ("2.1", "bitmask")):
        body = {"project": project, "schema": EXAMPLES[kind], "extra_params": {"amr": project == "2.1"}}
        assert client.post("/setup", json=body).status_code == 200
    one, two = ask(client, "1.1", "polygon", 1), ask(client, "2.1", "bitmask", 1)
    assert one[0]["result"][0]["type"] == "polygonlabels"
    assert two[0]["result"][0]["type"] == "bitmasklabels"
    assert not one[0]["model_version"].endswith("+amr")
    assert two[0]["model_version"].endswith("+amr")


def test_a_click(client: httpx.Client) -> None:
    click = {**box(), "type": "keypointlabels", "from_name": "point", "is_positive": True, "id": "k"}
    click["value"] = {"x": 50, "y": 50, "width": 0.5, "keypointlabels": ["Other"]}
    (result,) = ask(client, "1.1", "brush", 1, context={"result": [click]})
    assert result["result"][0]["value"]["brushlabels"] == ["Other"]
    assert mask_from_region(result["result"][0]).any()


def test_a_config_that_is_not_served_says_why(client: httpx.Client) -> None:
    answer = client.post("/setup", json={"project": "3.1", "schema": "<View><Text name='t' value='$t'/></View>"})
    assert answer.status_code == 500
    assert "<Image" in answer.text
