"""preannotate over a project of a small server: once, again, killed, with restarts, with broken tasks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import refinesam
from fake_label_studio import LEGACY, PERSONAL
from fake_project import FakeProject, box, data_uri, project, task
from fakes import FloodModel
from refinesam import ConfigError, Session
from refinesam_labelstudio import preannotate as module
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.journal import Journal
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.preannotate import Preannotation, preannotate
from refinesam_labelstudio.progress import Pace
from refinesam_labelstudio.responses import ServerError
from refinesam_labelstudio.results import mask_from_region
from refinesam_labelstudio.task_prediction import TaskPredictor

VERSION = "flood-1"
# The whole run in a process of its own, which a test can kill.
PROGRAM = """
import sys
sys.path[:0] = ["tests", "labelstudio_backend"]
from test_preannotate import run_alone
run_alone(*sys.argv[1:])
"""


def run_alone(url: str, folder: str) -> None:
    report = run(ProjectServer(url, PERSONAL, first_wait_s=0.05), Path(folder))
    print(json.dumps(report.as_json()))


def run(
    server: ProjectServer,
    folder: Path,
    options: ServiceOptions | None = None,
    session: Session | None = None,
    **settings: Any,
) -> Preannotation:
    access = ImageAccess(server, FileCache(folder / "images"))
    predictor = TaskPredictor(
        session or Session(FloodModel()),
        lambda value, task_id: image_for_task(value, access, task_id),
        LabelingConfig.parse(server.project(1)["label_config"]),
        options or ServiceOptions(everything=None),
    )
    try:
        return preannotate(server, 1, predictor, VERSION, folder / "journal.jsonl", **settings)
    finally:
        server.close()


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProject]:
    monkeypatch.setattr(module, "SETTLE_S", 1.0)
    with project() as server:
        yield server


def server_of(studio: FakeProject, token: str = LEGACY) -> ProjectServer:
    return ProjectServer(studio.url, token, first_wait_s=0.01, attempts=9, timeout_s=5)


def each_once(studio: FakeProject) -> dict[int, int]:
    return {item["id"]: 1 for item in studio.tasks}


def test_every_task_gets_its_mask(studio: FakeProject, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = run(server_of(studio), tmp_path, chunk=2, on_progress=lambda *numbers: seen.append(numbers))
    assert (report.tasks, report.stored, report.kept, report.failed) == (5, 5, 0, {})
    assert studio.predictions(VERSION) == each_once(studio)
    assert seen == [(done, 5) for done in range(1, 6)]
    assert studio.count("POST /api/projects/1/import/predictions") == 3
    mask = mask_from_region(studio.stored[0]["result"][0])
    assert mask.shape == (24, 32)
    # The box in percent, on pixels.
    assert mask[2:14, 3:19].all()
    assert mask.sum() == 12 * 16


def test_a_second_run_stores_nothing(studio: FakeProject, tmp_path: Path) -> None:
    run(server_of(studio), tmp_path)
    (tmp_path / "journal.jsonl").unlink()  # the server alone tells, too
    report = run(server_of(studio), tmp_path)
    assert (report.stored, report.kept) == (0, 5)
    assert studio.predictions(VERSION) == each_once(studio)


def test_overwriting_replaces_in_place(studio: FakeProject, tmp_path: Path) -> None:
    run(server_of(studio), tmp_path)
    for item in studio.tasks:
        item["predictions"][-1]["result"] = []
    report = run(server_of(studio), tmp_path, overwrite_own=True)
    assert (report.stored, report.kept) == (5, 0)
    assert studio.predictions(VERSION) == each_once(studio)
    assert all(item["predictions"][-1]["result"] for item in studio.tasks)
    assert all(item["predictions"][0]["model_version"] == "boxes" for item in studio.tasks)


def test_own_boxes_are_no_prompts(studio: FakeProject, tmp_path: Path) -> None:
    own = studio.tasks[0]["predictions"][0]
    own["model_version"] = VERSION
    before = list(own["result"])
    report = run(server_of(studio), tmp_path, overwrite_own=True)
    assert report.unprompted == [1]  # nothing but its own earlier box marked an object
    assert report.stored == 4
    assert own["result"] == before


def test_only_an_answer_is_done(studio: FakeProject, tmp_path: Path) -> None:
    """Empty predictions that an earlier version stored for whatever it could not answer, and one that is an answer."""
    broken = "data:image/png;base64,bm90IGFuIGltYWdl"
    studio.tasks[1]["data"]["image"] = broken
    studio.tasks[2]["predictions"] = []
    for item in studio.tasks[:4]:
        score = None if item["id"] == 4 else 0.0
        row = {"id": 100 + item["id"], "model_version": VERSION, "result": [], "score": score}
        item["predictions"].append(row)
    report = run(server_of(studio), tmp_path)
    assert (report.stored, report.kept, report.unprompted, list(report.failed)) == (2, 1, [3], [2])
    assert report.repaired == [1, 2, 3]
    assert studio.predictions(VERSION) == {1: 1, 4: 1, 5: 1}
    assert studio.tasks[0]["predictions"][-1]["id"] == 101  # in place
    assert studio.tasks[0]["predictions"][-1]["result"]
    studio.tasks[1]["data"]["image"] = data_uri(2)
    studio.tasks[2]["predictions"] = [{"id": 3, "model_version": "boxes", "result": [box()]}]
    again = run(server_of(studio), tmp_path)
    assert (again.stored, again.kept, again.repaired) == (2, 3, [])
    assert studio.predictions(VERSION) == each_once(studio)


def test_nothing_found_is_done(studio: FakeProject, tmp_path: Path) -> None:
    studio.tasks[0]["predictions"] = []
    never: dict[str, Any] = {
        "options": ServiceOptions(everything={"points_per_side": 1, "iou_threshold": 1.0}),
        "session": refinesam.load("builtin", device="cpu"),
    }
    report = run(server_of(studio), tmp_path, **never)
    assert (report.stored, report.empty, report.unprompted, report.failed) == (5, [1], [], {})
    assert report.whole.startswith("1 tasks had no box and no click and were segmented whole: ")
    assert "nothing was found in 1." in report.whole
    (row,) = studio.tasks[0]["predictions"]
    assert (row["result"], row["score"]) == ([], None)
    again = run(server_of(studio), tmp_path, **never)
    assert (again.stored, again.kept, again.empty) == (0, 5, [])


def test_broken_tasks_cost_only_themselves(studio: FakeProject, tmp_path: Path) -> None:
    studio.tasks[1]["data"]["image"] = "data:image/png;base64,bm90IGFuIGltYWdl"
    studio.tasks[2]["data"] = {"text": "no image"}
    studio.tasks[3]["data"]["image"] = "/data/upload/1/gone.png"
    studio.tasks[4]["predictions"] = []
    studio.tasks.append(task(6))
    studio.tasks.append(task(7))
    studio.refused = {6}
    report = run(server_of(studio), tmp_path)
    assert studio.predictions(VERSION) == {1: 1, 7: 1}
    assert (report.tasks, report.stored, report.empty, report.unprompted) == (7, 2, [], [5])
    assert sorted(report.failed) == [2, 3, 4, 6]
    assert "status 404" in report.failed[4]
    assert "status 400" in report.failed[6]
    # Mended, they are answered by the next run.
    studio.refused = set()
    studio.tasks[1]["data"]["image"] = data_uri(2)
    again = run(server_of(studio), tmp_path)
    assert (again.stored, again.kept, again.unprompted, sorted(again.failed)) == (2, 2, [5], [3, 4])


def test_what_the_server_leaves_out_in_silence_is_told(studio: FakeProject, tmp_path: Path) -> None:
    studio.left_out = {2, 4}
    report = run(server_of(studio), tmp_path)
    assert (report.stored, sorted(report.failed)) == (3, [2, 4])
    assert "own check of predictions left it out" in report.failed[4]
    assert studio.predictions(VERSION) == {1: 1, 3: 1, 5: 1}


def test_a_lost_answer_doubles_nothing(studio: FakeProject, tmp_path: Path) -> None:
    studio.lose_answers = 2
    report = run(server_of(studio), tmp_path, chunk=2)
    assert report.stored == 5
    assert studio.predictions(VERSION) == each_once(studio)


def test_a_request_that_never_arrived_is_sent_again(studio: FakeProject, tmp_path: Path) -> None:
    server = server_of(studio)
    original, broken = server.import_predictions, [True]

    def breaking(project_id: int, rows: Any) -> int:
        if broken:
            broken.clear()
            studio.failing = [None]
        return original(project_id, rows)

    server.import_predictions = breaking  # type: ignore[method-assign]
    assert run(server, tmp_path).stored == 5
    assert studio.predictions(VERSION) == each_once(studio)


def test_busy_answers_and_expired_tokens_are_outlived(studio: FakeProject, tmp_path: Path) -> None:
    studio.life = 0.05  # of each access token
    studio.store_s = 0.06
    studio.failing = [503, 502, None, 503]
    report = run(server_of(studio, PERSONAL), tmp_path, chunk=1)
    assert report.stored == 5
    assert studio.predictions(VERSION) == each_once(studio)
    assert studio.count("POST /api/token/refresh/") >= 5


def test_an_unreachable_server_ends_the_run(studio: FakeProject, tmp_path: Path) -> None:
    studio.tasks[0]["data"]["image"] = "/data/upload/1/a.png"
    studio.files["/data/upload/1/a.png"] = b"never read"
    server = ProjectServer(studio.url, LEGACY, first_wait_s=0.001, attempts=2)
    original = server.tasks

    def then_down(*arguments: Any, **more: Any) -> Any:
        page = original(*arguments, **more)
        studio.failing = [503] * 2
        return page

    server.tasks = then_down  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="503"):
        run(server, tmp_path)
    assert studio.predictions(VERSION) == {}


def test_two_runs_at_once_are_refused(studio: FakeProject, tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal.jsonl", VERSION), pytest.raises(ConfigError, match="Another process"):
        run(server_of(studio), tmp_path)


def test_a_torn_journal_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    with Journal.open(path, VERSION) as journal:
        journal.note("sending", [1, 2])
        journal.note("failed", [3])
        journal.note("stored", [1])
    path.write_bytes(path.read_bytes() + b'{"version": "flood-1", "state": "sto')
    with Journal.open(path, VERSION) as journal:
        assert [journal.state(number) for number in (1, 2, 3, 4)] == ["stored", "sending", "failed", None]
        journal.note("failed", [4], "broken")
    with Journal.open(path, VERSION) as journal:
        assert journal.tasks("failed") == [3, 4]
    with Journal.open(path, "another version") as journal:
        assert journal.state(1) is None


def test_what_a_killed_run_sent_is_waited_for(studio: FakeProject, tmp_path: Path) -> None:
    studio.store_s = 0.5
    with Journal.open(tmp_path / "journal.jsonl", VERSION) as journal:
        journal.note("sending", [1, 2])
    sender = server_of(studio)
    rows = [{"task": number, "result": [], "score": None, "model_version": VERSION} for number in (1, 2)]
    request = threading.Thread(target=sender.import_predictions, args=(1, rows))
    request.start()
    while not studio.count("POST /api/projects/1/import/predictions"):
        time.sleep(0.002)
    report = run(server_of(studio), tmp_path)
    request.join()
    sender.close()
    assert (report.stored, report.kept) == (3, 2)
    assert studio.predictions(VERSION) == each_once(studio)


def test_killed_and_restarted_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """200 tasks; the run is killed whenever it stored some more, and the server restarts between."""
    with project(200) as studio:
        studio.store_s = 0.1
        command = [sys.executable, "-c", PROGRAM, studio.url, str(tmp_path)]
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        for kill in range(4):
            before = len(studio.requests)
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            # Every other kill falls between a request and what it stores.
            while process.poll() is None and not imports(studio, before) > 1:
                time.sleep(0.002)
            if kill % 2:
                time.sleep(0.12)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            if kill == 1:
                studio.restart(0.2)
        restart = threading.Timer(1.5, studio.restart, [0.5])
        restart.start()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        restart.join()
        assert done.returncode == 0, done.stderr
        assert studio.predictions(VERSION) == each_once(studio)
        report = json.loads(done.stdout)
        assert report["tasks"] == 200
        assert 0 < report["kept"] < 200
        assert report["stored"] + report["kept"] == 200


def test_answers_are_stored_when_time_is_up(studio: FakeProject, tmp_path: Path) -> None:
    run(server_of(studio), tmp_path, flush_s=0)
    assert studio.count("POST /api/projects/1/import/predictions") == 5
    assert studio.predictions(VERSION) == each_once(studio)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_run_stores_what_is_answered(studio: FakeProject, tmp_path: Path, overwrite: bool) -> None:
    if overwrite:
        for item in studio.tasks:
            item["predictions"].append({"id": 100 + item["id"], "model_version": VERSION, "result": [], "score": None})

    def on_progress(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    report = run(server_of(studio), tmp_path, on_progress=on_progress, overwrite_own=overwrite)
    assert report.interrupted
    assert (report.tasks, report.stored) == (3, 3)
    answered = [
        t["id"] for t in studio.tasks for p in t["predictions"] if p["model_version"] == VERSION and p["result"]
    ]
    assert answered == [1, 2, 3]
    again = run(server_of(studio), tmp_path)
    assert not again.interrupted
    assert studio.predictions(VERSION) == each_once(studio)


def test_an_image_server_that_is_down_costs_no_answer(studio: FakeProject, tmp_path: Path) -> None:
    studio.tasks[2]["data"]["image"] = "/data/upload/1/a.png"
    server = ProjectServer(studio.url, LEGACY, first_wait_s=0.001, attempts=1)
    original = server.download

    def down(*arguments: Any, **more: Any) -> Any:
        studio.failing = [503]
        return original(*arguments, **more)

    server.download = down  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="503"):
        run(server, tmp_path)
    assert studio.predictions(VERSION) == {1: 1, 2: 1}


def test_pace_is_that_of_the_most_recent_tasks() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    for done in range(1, 101):  # kept, in no time
        assert pace.after(done, 130) == ""
    for done in range(101, 121):
        now[0] += 15
        text = pace.after(done, 130)
    assert text == "4.0 tasks a minute, 2 minutes left"


def imports(studio: FakeProject, since: int) -> int:
    return [line for line, _ in studio.requests[since:]].count("POST /api/projects/1/import/predictions")
