"""A MongoDB of the tests' own, started before FiftyOne is first imported, which is when it reads where to find one.

FiftyOne would start one itself, but shares it with every other process of FiftyOne's on the machine.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOME = Path(tempfile.mkdtemp(prefix="refinesam-fiftyone-"))
START_SECONDS = 60


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_mongod(folder: Path) -> str:
    """Start the mongod that comes with FiftyOne, until this process ends; returns its address."""
    spec = importlib.util.find_spec("fiftyone")
    assert spec is not None and spec.origin is not None, "FiftyOne is not installed: make test does it."
    binary, port = Path(spec.origin).parent / "db" / "bin" / "mongod", free_port()
    folder.mkdir()
    command = [str(binary), "--dbpath", str(folder), "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket"]
    with (folder.parent / "mongod.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    atexit.register(stop, process)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return f"mongodb://127.0.0.1:{port}"
        assert process.poll() is None, (folder.parent / "mongod.log").read_text()
        time.sleep(0.1)
    raise AssertionError(f"mongod did not listen within {START_SECONDS} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End mongod and remove its files."""
    process.terminate()
    process.wait()
    shutil.rmtree(HOME, ignore_errors=True)


os.environ.update(
    FIFTYONE_CONFIG_PATH=str(HOME / "config.json"),
    FIFTYONE_APP_CONFIG_PATH=str(HOME / "app_config.json"),
    FIFTYONE_DATABASE_URI=start_mongod(HOME / "mongo"),
    FIFTYONE_DATABASE_VALIDATION="false",
    FIFTYONE_DEFAULT_DATASET_DIR=str(HOME / "datasets"),
    FIFTYONE_DATASET_ZOO_DIR=str(HOME / "zoo"),
    FIFTYONE_PLUGINS_DIR=str(ROOT / "fiftyone_plugin"),
    FIFTYONE_DO_NOT_TRACK="true",
    FIFTYONE_SHOW_PROGRESS_BARS="false",
)

with warnings.catch_warnings():
    # Of FiftyOne itself, with a strawberry and a mongoengine that are newer than it is, as it starts and connects.
    warnings.simplefilter("ignore")
    import fiftyone as fo

    fo.list_datasets()


@pytest.fixture
def dataset() -> Iterator[Any]:
    """An empty dataset, deleted afterwards."""
    made = fo.Dataset()
    yield made
    made.delete()


@pytest.fixture(scope="module")
def judged() -> Iterator[Any]:
    """Planted and evaluated; only to be read."""
    from fiftyone_planted import evaluated_copy

    planted = evaluated_copy("judged")
    yield planted
    planted.dataset.delete()


@pytest.fixture
def own() -> Iterator[Any]:
    """Planted and evaluated, to be changed; its mask files are not."""
    from fiftyone_planted import evaluated_copy

    planted = evaluated_copy("own")
    yield planted
    planted.dataset.delete()
