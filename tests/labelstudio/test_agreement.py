"""Which version a project shows after a run, as a table over a small server; test_preannotate_real has the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fake_label_studio import LEGACY
from fake_project import FakeProject, project
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.agreement import compare_versions, options_of, show_version

VERSION = "builtin-1+amr"
CONNECTED = [{"title": "model", "model_version": "builtin-1", "extra_params": None}]


@pytest.fixture
def studio() -> Iterator[FakeProject]:
    with project() as server:
        yield server


@pytest.mark.parametrize(
    ("shown", "on", "wanted", "expected"),
    [
        (VERSION, True, None, "Project 1 shows builtin-1+amr."),
        ("", True, None, "Project 1 now shows builtin-1+amr."),
        ("model", True, None, "now shows builtin-1+amr instead of 'model'. For tasks to come, choose 'model' again"),
        ("builtin-1", True, None, "now shows builtin-1+amr instead of 'builtin-1'."),
        ("theirs", True, None, "shows 'theirs', so builtin-1+amr reaches neither"),
        ("theirs", True, True, "now shows builtin-1+amr instead of 'theirs'."),
        ("", False, None, "shows annotators no predictions"),
        ("", False, True, "now shows"),
        ("", True, False, "reaches neither"),
    ],
)
def test_show_version(studio: FakeProject, shown: str, on: bool, wanted: bool | None, expected: str) -> None:
    studio.settings = before = {"model_version": shown, "show_collab_predictions": on}
    before = dict(before)
    server = ProjectServer(studio.url, LEGACY)
    assert expected in show_version(server, 1, VERSION, CONNECTED, wanted)
    server.close()
    changed = {"model_version": VERSION, "show_collab_predictions": True}
    assert studio.settings == (changed if "now shows" in expected else before)


def test_compare_versions() -> None:
    assert compare_versions([], VERSION) == ""
    assert compare_versions([*CONNECTED, {"title": "other", "model_version": VERSION}], VERSION) == ""
    assert "'model' as builtin-1, this command as builtin-1+amr" in compare_versions(CONNECTED, VERSION)


def test_the_connections_extra_params_hold() -> None:
    row = {"title": "model", "extra_params": {"amr": True}}
    assert (
        options_of([row]).version("w") == options_of([{**row, "extra_params": '{"amr": true}'}]).version("w") == "w+amr"
    )
    assert options_of([]).version("w") == options_of([row, row]).version("w") == "w"
    assert options_of([{"extra_params": {"theirs": 1}}]).version("w") == "w"
