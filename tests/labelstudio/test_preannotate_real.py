"""preannotate and doctor against a real Label Studio."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from fakes import FloodModel
from refinesam import Session
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.doctor import examine
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.labeling_config import EXAMPLES, LabelingConfig
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.preannotate import Preannotation, preannotate
from refinesam_labelstudio.task_prediction import TaskPredictor

if TYPE_CHECKING:
    from real_label_studio import Backend, LabelStudio, Project

VERSION = "flood-1"
COUNT = 7


def png(number: int) -> bytes:
    pixels = np.full((24, 32, 3), number, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def box(number: int) -> dict[str, Any]:
    value = {"x": 0, "y": 0, "width": 50, "height": 25, "rotation": 0, "rectanglelabels": ["Object"]}
    size = {"original_height": 24, "original_width": 32, "image_rotation": 0}
    return {
        "id": f"r{number}",
        "from_name": "box",
        "to_name": "image",
        "type": "rectanglelabels",
        "value": value,
        **size,
    }


@pytest.fixture
def project(label_studio: LabelStudio) -> Project:
    """Seven images, each with a box that somebody predicted, and one file that is no image."""
    files = {f"{number}.png": png(number) for number in range(COUNT)}
    made = label_studio.project(EXAMPLES["brush"], {**files, "broken.png": b"not an image"})
    rows = [
        {"task": made.tasks[f"{number}.png"], "result": [box(number)], "score": 1.0, "model_version": "boxes"}
        for number in range(COUNT)
    ]
    label_studio.call("POST", f"/api/projects/{made.id}/import/predictions", json=rows)
    return made


def run(project: Project, folder: Path, **settings: Any) -> Preannotation:
    server = ProjectServer(project.server.url, project.server.personal_token)
    access = ImageAccess(server, FileCache(folder / "images"))
    predictor = TaskPredictor(
        Session(FloodModel()),
        lambda value, task_id: image_for_task(value, access, task_id),
        LabelingConfig.parse(server.project(project.id)["label_config"]),
        ServiceOptions(everything=None),
    )
    try:
        return preannotate(server, project.id, predictor, VERSION, folder / "journal.jsonl", chunk=3, **settings)
    finally:
        server.close()


def own(project: Project, name: str) -> list[dict[str, Any]]:
    return [item for item in project.predictions(name) if item["model_version"] == VERSION]


def test_every_task_once_and_again(project: Project, tmp_path: Path) -> None:
    report = run(project, tmp_path)
    assert (report.tasks, report.stored, list(report.failed)) == (COUNT + 1, COUNT, [project.tasks["broken.png"]])
    for number in range(COUNT):
        (prediction,) = own(project, f"{number}.png")
        assert prediction["score"] == pytest.approx(0.9)
        mask = project.masks(f"{number}.png")[-1]
        assert mask[:6, :16].all()
        assert mask.sum() == 6 * 16
    assert own(project, "broken.png") == []
    (tmp_path / "journal.jsonl").unlink()
    again = run(project, tmp_path)
    assert (again.stored, again.kept) == (0, COUNT)
    before = {number: own(project, f"{number}.png")[0]["id"] for number in range(COUNT)}
    replaced = run(project, tmp_path, overwrite_own=True)
    assert (replaced.stored, replaced.kept) == (COUNT, 0)
    assert {number: own(project, f"{number}.png")[0]["id"] for number in range(COUNT)} == before
    assert all(len(own(project, f"{number}.png")) == 1 for number in range(COUNT))


def test_a_deleted_task_costs_only_itself(project: Project, tmp_path: Path) -> None:
    server = ProjectServer(project.server.url, project.server.personal_token)
    original, gone = server.import_predictions, project.tasks["1.png"]

    def after_deletion(project_id: int, rows: Any) -> int:
        if any(row["task"] == gone for row in rows) and len(rows) > 1:
            project.server.client.request("DELETE", f"/api/tasks/{gone}/")
        return original(project_id, rows)

    server.import_predictions = after_deletion  # type: ignore[method-assign]
    access = ImageAccess(server, FileCache(tmp_path / "images"))
    config = LabelingConfig.parse(EXAMPLES["brush"])
    predictor = TaskPredictor(
        Session(FloodModel()), lambda v, i: image_for_task(v, access, i), config, ServiceOptions(everything=None)
    )
    report = preannotate(server, project.id, predictor, VERSION, tmp_path / "journal.jsonl", chunk=20)
    server.close()
    assert sorted(report.failed) == sorted([gone, project.tasks["broken.png"]])
    assert [item["model_version"] for item in project.predictions("broken.png")] == [f"{VERSION} failed"]
    assert all(len(own(project, f"{number}.png")) == 1 for number in range(COUNT) if number != 1)


def test_doctor(project: Project, backend: Backend) -> None:
    url, token = project.server.url, project.server.personal_token
    checks = ["backend", "server", "token", "labeling config", "smart tags", "answer", "connection"]
    checks += ["model version", "webhook"]
    found = examine(url, token, project_id=project.id, backend_url=backend.url)
    assert [finding.check for finding in found if not finding.good] == ["connection"]
    project.attach(backend.url)
    found = examine(url, token, project_id=project.id, backend_url=backend.url)
    assert [(finding.check, finding.good) for finding in found] == [(check, True) for check in checks], found
    wrong = examine(url, "f" * 40, project_id=project.id)
    assert [finding.check for finding in wrong if not finding.good] == ["token"]


def command_for(project: Project, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refinesam.cli", "labelstudio", "preannotate", f"--project={project.id}"]
    environment = {
        **os.environ,
        "LABEL_STUDIO_URL": project.server.url,
        "LABEL_STUDIO_API_KEY": project.server.personal_token,
    }
    command += [f"--folder={folder}", "--device=cpu", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_refined_predictions_reach_the_label_stream_and_the_data_manager(
    project: Project, backend: Backend, tmp_path: Path
) -> None:
    call = project.server.call
    project.attach(backend.url, extra_params={"everything": False})
    version = call("GET", "/api/ml", params={"project": project.id})[0]["model_version"]
    assert call("GET", f"/api/projects/{project.id}")["model_version"] == "refinesam"  # the connection's title
    done = command_for(project, tmp_path, "--refine")
    assert f"answers 'refinesam' as {version}, this command as {version}+amr" in " ".join(done.stderr.split())
    assert call("GET", f"/api/projects/{project.id}")["model_version"] == f"{version}+amr"
    task = call("GET", f"/api/projects/{project.id}/next/")
    assert [item["model_version"] for item in task["predictions"]] == [f"{version}+amr"]
    listed = call("GET", "/api/tasks", params={"project": project.id, "fields": "all"})["tasks"]
    broken = project.tasks["broken.png"]
    assert all((item["predictions_score"] is None) == (item["id"] == broken) for item in listed)


def test_the_command_answers_as_the_connection_does(project: Project, backend: Backend, tmp_path: Path) -> None:
    call = project.server.call
    project.attach(backend.url, extra_params={"everything": False, "amr": "fast"})
    connection = call("GET", "/api/ml", params={"project": project.id})[0]
    assert "+amr(" in connection["model_version"]
    done = command_for(project, tmp_path)
    assert "answers" not in done.stderr
    project.retrieve()
    for number in range(COUNT):
        versions = [item["model_version"] for item in project.predictions(f"{number}.png")]
        assert sorted(versions) == sorted(["boxes", connection["model_version"]])


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_ended_command_has_stored_what_it_answered(project: Project, tmp_path: Path, sign: signal.Signals) -> None:
    """The command itself; it is ended while it works on a task of a larger chunk."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "refinesam.cli", "labelstudio", "preannotate", f"--project={project.id}"]
    command += [f"--folder={tmp_path}", f"--report={report}", "--device=cpu", "--refine"]
    environment = {
        **os.environ,
        "LABEL_STUDIO_URL": project.server.url,
        "LABEL_STUDIO_API_KEY": project.server.personal_token,
    }
    # The last image never comes, so that the run is at work on it when it is ended.
    with closing(socket.create_server(("127.0.0.1", 0))) as never:
        address = f"127.0.0.1:{never.getsockname()[1]}"
        body = {"data": {"image": f"http://{address}/never.png"}}
        project.server.call("PATCH", f"/api/tasks/{project.tasks['broken.png']}/", json=body)
        # Under nohup and the like these tests, and what they start, would be deaf to SIGINT.
        heard = ["env", "--default-signal=INT", *command, f"--allow-host={address}"]
        process = subprocess.Popen(heard, env=environment, stdout=subprocess.DEVNULL)
        try:
            never.settimeout(300)
            connection, _ = never.accept()  # all other tasks are answered
            with connection:
                process.send_signal(sign)
                assert process.wait(300) == 130
        finally:
            process.kill()
            process.wait()
    assert json.loads(report.read_text())["stored"] == COUNT
    found = [item for number in range(COUNT) for item in project.predictions(f"{number}.png")]
    assert Counter(item["model_version"] == "boxes" for item in found) == {True: COUNT, False: COUNT}


def test_killed_with_its_server_restarted_200_tasks_are_stored_once(label_studio: LabelStudio, tmp_path: Path) -> None:
    """The command itself, with the built-in weights: killed three times, the server restarted under the last run."""
    names = [f"{number}.png" for number in range(200)]
    project = label_studio.project(EXAMPLES["brush"])
    tasks: list[int] = []
    for start in range(0, len(names), 50):  # Label Studio takes at most 100 files at once.
        files = [(names[number], (names[number], png(number))) for number in range(start, start + 50)]
        address = f"/api/projects/{project.id}/import?return_task_ids=true"
        tasks += label_studio.call("POST", address, files=files)["task_ids"]
    rows = [
        {"task": task, "result": [box(number)], "score": 1.0, "model_version": "boxes"}
        for number, task in enumerate(tasks)
    ]
    label_studio.call("POST", f"/api/projects/{project.id}/import/predictions", json=rows)
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "refinesam.cli", "labelstudio", "preannotate", f"--project={project.id}"]
    command += ["--chunk=5", f"--folder={tmp_path}", f"--report={report}", "--device=cpu"]
    environment = {
        **os.environ,
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_token,
    }

    def stored() -> Counter[int]:
        found = label_studio.call("GET", f"/api/predictions?project={project.id}")
        return Counter(item["task"] for item in found if item["model_version"] != "boxes")

    def until_more_than(count: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        while sum(stored().values()) <= count and time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.05)

    assert len(tasks) == 200
    for kill in range(3):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        until_more_than(sum(stored().values()) + 10 * kill, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = sum(stored().values())
    assert 0 < before < 200
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    until_more_than(before, process)
    label_studio.end()
    label_studio.start()
    assert process.wait(timeout=300) == 0
    assert stored() == Counter(dict.fromkeys(tasks, 1))
    assert json.loads(report.read_text())["tasks"] == 200
