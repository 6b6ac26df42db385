"""FiftyOne finds and loads the plugin: from a folder that is named to it, and downloaded as a user downloads it."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "fiftyone_plugin" / "refinesam_fiftyone"
NAME = "@refinesam/amr"
OPERATORS = {
    "import_batch",
    "cancel",
    "compare",
    "comparison",
    "delete_run",
    "evaluate",
    "explain",
    "export",
    "find_similar",
    "match_detections",
    "rank",
    "rank_labels",
}
LIST = """
import json, sys
import fiftyone.operators as foo
from fiftyone.operators.registry import OperatorRegistry
registry = OperatorRegistry()
found = [one.uri for one in registry.list_operators() if one.uri.startswith("@refinesam/")]
print(json.dumps({"uris": found, "errors": registry.list_errors(), "torch": "torch" in sys.modules}))
"""


def fresh(plugins: Path, *command: str) -> str:
    """Run a command in a process of its own that has these plugins."""
    environment = {**os.environ, "FIFTYONE_PLUGINS_DIR": str(plugins), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed(plugins: Path) -> Any:
    return json.loads(fresh(plugins, sys.executable, "-c", LIST).splitlines()[-1])


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def archive_url(tmp_path: Path) -> Iterator[str]:
    """Where a server offers the plugin's folder as an archive."""
    served = tmp_path / "served"
    shutil.copytree(FOLDER, tmp_path / "packed" / FOLDER.name, ignore=shutil.ignore_patterns("__pycache__"))
    served.mkdir()
    shutil.make_archive(str(served / "refinesam_fiftyone"), "zip", tmp_path / "packed")
    handler = functools.partial(QuietHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/refinesam_fiftyone.zip"
        server.shutdown()
        thread.join()


def test_every_operator_is_declared_and_loads_from_the_folder_without_torch() -> None:
    found = listed(FOLDER.parent)

    assert found["errors"] == []
    assert set(found["uris"]) == {f"{NAME}/{name}" for name in OPERATORS}
    assert not found["torch"]
    declared = yaml.safe_load((FOLDER / "fiftyone.yml").read_text())
    assert {*declared["operators"], *declared["panels"]} == OPERATORS


def test_the_download_command_installs_it(tmp_path: Path, archive_url: str) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    command = Path(sys.executable).with_name("fiftyone")

    fresh(plugins, str(command), "plugins", "download", archive_url)

    assert {path.name for path in plugins.rglob("fiftyone.yml")} == {"fiftyone.yml"}
    found = listed(plugins)
    assert found["errors"] == []
    assert set(found["uris"]) == {f"{NAME}/{name}" for name in OPERATORS}
