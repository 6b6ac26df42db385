"""`refinesam labelstudio ...` as it is typed, against a small server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fake_label_studio import LEGACY, PERSONAL
from fake_project import FakeProject, box, project
from refinesam_labelstudio.doctor import examine
from refinesam_labelstudio.labeling_config import EXAMPLES, LabelingConfig

ROOT = Path(__file__).parents[2]
SETTINGS = ("LABEL_STUDIO", "REFINESAM")


@pytest.fixture
def studio() -> Iterator[FakeProject]:
    with project(2) as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The adapter installed, and nothing set."""
    info = tmp_path / "site" / "adapter-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[refinesam.commands]\nlabelstudio = refinesam_labelstudio.cli:app\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    paths = [str(tmp_path / "site"), str(ROOT / "labelstudio_backend")]
    folder = str(tmp_path / "folder")
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "300", "REFINESAM_LABELSTUDIO_FOLDER": folder}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "refinesam.cli", "labelstudio", *map(str, arguments)]


def run(environment: dict[str, str], *arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env={**environment, **settings}, capture_output=True, text=True, check=False
    )


def connection(studio: FakeProject, token: str = LEGACY) -> dict[str, str]:
    return {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": token}


def test_configs_print_what_can_be_pasted(environment: dict[str, str]) -> None:
    done = run(environment, "configs", "polygon")
    assert (done.returncode, done.stdout) == (0, EXAMPLES["polygon"])
    assert LabelingConfig.parse(done.stdout).outputs[0].kind == "polygon"
    assert done.stderr == ""
    bitmask = run(environment, "configs", "bitmask")
    assert bitmask.stdout == EXAMPLES["bitmask"]
    assert "labelstudio export" in " ".join(bitmask.stderr.split())


def test_the_commands_need_no_torch() -> None:
    program = "import sys, refinesam_labelstudio.cli; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "labelstudio_backend")}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_doctor_exits_with_its_verdict(environment: dict[str, str], studio: FakeProject) -> None:
    good = run(environment, "doctor", "--backend", "", **connection(studio, PERSONAL))
    assert good.returncode == 0, good.stdout + good.stderr
    assert "1.23.2" in good.stdout
    assert "personal token" in good.stdout
    wrong = run(environment, "doctor", "--backend", "", "--project", 1, **connection(studio))
    assert wrong.returncode == 1
    assert "connected to no model" in wrong.stdout
    assert "Traceback" not in wrong.stderr


def test_preannotate_with_the_builtin_weights(environment: dict[str, str], studio: FakeProject, tmp_path: Path) -> None:
    studio.tasks[1]["data"]["image"] = "file:///etc/passwd"
    path = tmp_path / "report.json"
    arguments = ("preannotate", "--project", 1, "--refine", "--report", path, "--device", "cpu")
    done = run(environment, *arguments, **connection(studio))
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert (report["stored"], list(report["failed"])) == (1, ["2"])
    assert "refused" in report["failed"]["2"]
    assert "Task 2:" in done.stdout
    version = report["model_version"]
    assert version.startswith("builtin-")
    assert version.endswith("+amr")
    assert studio.predictions(version) == {1: 1}
    assert len(list((tmp_path / "folder" / "journals").glob("*-1.jsonl"))) == 1


def test_a_model_that_only_its_backend_knows_is_asked_for(environment: dict[str, str], studio: FakeProject) -> None:
    arguments = ("preannotate", "--project", 1, "--extra-params", '{"model": "mine"}')
    done = run(environment, *arguments, **connection(studio))
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "The project's \"model\" is 'mine'" in said
    assert "Give the same file here, with --weights" in said


def test_prompts_of_other_images_are_refused(environment: dict[str, str], studio: FakeProject, tmp_path: Path) -> None:
    (tmp_path / "found.csv").write_text("image,x0,y0,x1,y1\nb.png,1,2,3,4\n")
    arguments = ("preannotate", "--project", 1, "--prompts", tmp_path / "found.csv")
    done = run(environment, *arguments, **connection(studio))
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "prompts for 1 images, and none is an image of the project (b.png: no image is called so)" in said
    assert "There are no images with a name" in said


def test_serve_answers_whom_it_should(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    secrets = {"REFINESAM_LABELSTUDIO_USER": "ada", "REFINESAM_LABELSTUDIO_PASSWORD": "secret"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command("serve", "--port", port, "--device", "cpu"), env={**environment, **secrets}, stdout=log, stderr=log
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            while process.poll() is None:
                try:
                    if client.get("/health").json()["model"] == "ready":
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            assert process.poll() is None, (tmp_path / "log").read_text()
            task = {"id": 1, "data": {"image": project_image()}, "predictions": [{"id": 1, "result": [box()]}]}
            body = {"tasks": [task], "project": "1.1", "label_config": EXAMPLES["brush"], "params": {}}
            assert client.post("/predict", json=body).status_code == 401
            answer = client.post("/predict", json=body, auth=("ada", "secret")).json()
            assert len(answer["results"]) == 1
            assert answer["model_version"].startswith("builtin-")
            assert answer["results"][0]["result"][0]["type"] == "brushlabels", (tmp_path / "log").read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    text = (tmp_path / "log").read_text()
    assert "only images in local roots and data URIs can be read" in " ".join(text.split())
    assert "secret" not in text
    # Label Studio's own answer to a connection at its first start says no more than 403.
    assert "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false" in " ".join(text.split())


def test_serve_says_what_its_models_are_and_what_to_do_without_a_download(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"REFINESAM_CACHE": str(tmp_path / "cache"), "REFINESAM_OFFLINE": "1"}
    arguments = ("--port", port, "--device", "cpu", "--weights", "efficientsam_ti", "--also", "builtin")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command("serve", *arguments), env={**environment, **settings}, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=120) as client:
            while process.poll() is None:
                try:
                    if client.get("/health").json()["model"] == "failed":
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            assert process.poll() is None, (tmp_path / "log").read_text()
            told = client.get("/versions").json()["error"]
        found = examine("http://127.0.0.1:9", "", backend_url=url)[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    by_hand = f"yourself and put it at {tmp_path / 'cache' / 'efficient_sam_vitt.pt'}"
    text = " ".join((tmp_path / "log").read_text().split())
    assert "Model efficientsam_ti: photographs, small download; about 41 MB, not downloaded yet" in text
    assert "Model builtin: micrographs" in text and "23 MB, comes with refinesam" in text
    assert "Without network: Download https://github.com/yformer/EfficientSAM/raw/" in text and by_hand in text
    assert "REFINESAM_OFFLINE forbids to download it" in text and "Traceback" not in text
    # doctor, who asks from elsewhere, says the same.
    assert "REFINESAM_OFFLINE forbids to download it" in told and by_hand in told
    assert not found.good and told in found.message


def project_image() -> str:
    from fake_project import data_uri

    return data_uri(1)


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["preannotate", "--project", 1], {}, "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"),
        (["serve"], {"LABEL_STUDIO_URL": "http://localhost"}, "LABEL_STUDIO_API_KEY is not set"),
        (["serve"], {"REFINESAM_LABELSTUDIO_USER": "ada"}, "REFINESAM_LABELSTUDIO_PASSWORD is not set"),
        (["serve", "--extra-params", '{"color": 1}'], {}, "'color'"),
        (["serve", "--learn"], {}, "--learn"),
        (["serve", "--local-root", "/nowhere/at/all"], {}, "/nowhere/at/all is no folder"),
        (["serve", "--weights", "none.json"], {}, "none.json lists no model version"),
        (["doctor"], {}, "LABEL_STUDIO_URL is not set"),
        (["finetune", "--project", 1], {}, "no accepted annotation"),
    ],
)
def test_bad_calls_end_with_one_clear_line(
    environment: dict[str, str], arguments: list[object], settings: dict[str, str], words: str
) -> None:
    done = run(environment, *arguments, **settings)
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
