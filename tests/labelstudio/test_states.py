"""What the team sees of a pre-annotation: in the data manager's columns, and as `status` counts it."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fake_project import box
from fakes import FloodModel
from refinesam import Session
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.cli import app
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.labeling_config import EXAMPLES, LabelingConfig
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.preannotate import preannotate
from refinesam_labelstudio.states import VersionState, project_states
from refinesam_labelstudio.task_prediction import TaskPredictor

if TYPE_CHECKING:
    from real_label_studio import LabelStudio, Project


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), 7, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_pace_is_that_of_what_was_stored_last() -> None:
    begun = datetime(2026, 1, 1, tzinfo=UTC)
    # Long ago, then two in one go, and four in the two minutes after them.
    seconds = (0, 7200, 7200, 7230, 7260, 7290, 7320)
    state = VersionState(times=[begun + timedelta(seconds=second) for second in seconds])
    assert state.tasks_a_minute == pytest.approx(2)
    assert VersionState(times=[begun]).tasks_a_minute is None
    assert VersionState().tasks_a_minute is None


def run(project: Project, server: ProjectServer, folder: Path) -> dict[int, str]:
    access = ImageAccess(server, FileCache(folder / "images"))
    config = LabelingConfig.parse(EXAMPLES["brush"])
    predictor = TaskPredictor(
        Session(FloodModel()), lambda v, i: image_for_task(v, access, i), config, ServiceOptions(everything=None)
    )
    return preannotate(server, project.id, predictor, "flood", folder / "journal.jsonl").failed


def column(project: Project, name: str) -> dict[str, Any]:
    """A column of the data manager, by file."""
    listed = project.server.call("GET", "/api/tasks", params={"project": project.id, "fields": "all"})["tasks"]
    by_id = {task["id"]: task[name] for task in listed}
    return {file: by_id[task_id] for file, task_id in project.tasks.items()}


def test_the_data_manager_and_the_command_show_what_failed_and_why(
    label_studio: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"broken.png": b"not an image", "good.png": png(), "unasked.png": png()}
    project = label_studio.project(EXAMPLES["brush"], files)
    for name in ("good.png", "broken.png"):
        body = {"task": project.tasks[name], "result": [box()], "score": 1.0, "model_version": "boxes"}
        label_studio.call("POST", "/api/predictions/", json=body)
    server = ProjectServer(label_studio.url, label_studio.personal_token)
    try:
        for _ in range(2):  # nothing is marked twice
            run(project, server, tmp_path)
        versions = column(project, "predictions_model_versions")
        told = {name: sorted((found or "").split(",")) for name, found in versions.items()}
        assert told == {"good.png": ["boxes", "flood"], "broken.png": ["boxes", "flood failed"], "unasked.png": [""]}
        assert len(project.predictions("broken.png")) == 2
        assert "broken.png" in column(project, "predictions_results")["broken.png"]
        # No annotator is shown it.
        stream = label_studio.call("GET", f"/api/projects/{project.id}/next/")
        assert not [item for item in stream["predictions"] if item["model_version"] == "flood failed"]
        assert label_studio.call("GET", f"/api/projects/{project.id}")["model_version"] != "flood failed"
        states = project_states(server, project.id)
        state = states.versions["flood"]
        assert (states.tasks, state.done, list(state.failed)) == (3, 1, [project.tasks["broken.png"]])
        monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.personal_token)
        shown = CliRunner().invoke(app, ["status", "--project", str(project.id)])
        assert shown.exit_code == 0, shown.output
        assert "has 3 tasks" in shown.output
        assert "Failed with flood:" in shown.output and f": tasks {project.tasks['broken.png']}" in shown.output
        # Mended, it is answered, and its mark goes.
        good = column(project, "data")["good.png"]
        label_studio.call("PATCH", f"/api/tasks/{project.tasks['broken.png']}/", json={"data": good})
        assert run(project, server, tmp_path) == {}
        assert sorted(item["model_version"] for item in project.predictions("broken.png")) == ["boxes", "flood"]
    finally:
        server.close()
