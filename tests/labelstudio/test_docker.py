"""Dockerfile and compose file, as far as they can be checked without Docker."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from refinesam_labelstudio.cli import app
from refinesam_labelstudio.cli import serve as serve_function

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "labelstudio_backend"


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile and its arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def ignored(path: str) -> bool:
    """Whether the build leaves out a path: the last pattern that fits decides."""
    verdict = False
    for pattern in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            bare = pattern.removeprefix("!").removeprefix("**/")
            parts = [path, path.split("/")[0]] if not pattern.startswith("**/") else path.split("/")
            if any(fnmatch.fnmatch(part, bare) for part in parts):
                verdict = not pattern.startswith("!")
    return verdict


def test_every_instruction_is_known() -> None:
    known = [
        "ARG",
        "FROM",
        "RUN",
        "ENV",
        "WORKDIR",
        "COPY",
        "USER",
        "VOLUME",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    ]
    assert {name for name, _ in instructions()} <= set(known)
    assert [name for name, _ in instructions()][:2] == ["ARG", "FROM"]
    for name in ("ENTRYPOINT", "CMD"):
        assert all(isinstance(json.loads(rest), list) for rest in arguments(name))


def test_every_source_exists_and_travels() -> None:
    sources = [source for rest in arguments("COPY") for source in rest.split()[:-1]]
    assert len(sources) >= 6
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert ignored("runs/weights.pt")
    assert ignored("labelstudio_backend/.env")
    assert ignored("src/refinesam/__pycache__")


def test_the_wheel_has_all_it_names() -> None:
    """What pyproject.toml puts into the wheel is what the image copies."""
    import tomllib

    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = [rest.split()[-1] for rest in arguments("COPY")]
    for package in [*wheel["packages"], *wheel["shared-data"]]:
        assert any(package == target or package.startswith(f"{target}/") for target in copied), package


def test_the_command_is_one_of_ours() -> None:
    entry, command = json.loads(arguments("ENTRYPOINT")[0]), json.loads(arguments("CMD")[0])
    assert entry == ["refinesam", "labelstudio"]
    serve: Any = typer.main.get_command(app).commands[command[0]]  # type: ignore[attr-defined]
    context = serve.make_context("serve", list(command[1:]))
    assert (context.params["host"], context.params["port"], context.params["learn"]) == ("0.0.0.0", 9090, True)
    assert arguments("EXPOSE") == ["9090"]
    assert serve_function.__name__ == "serve"


@pytest.mark.parametrize(("answer", "code"), [("ready", 0), ("loading", 0), ("failed", 1), (None, 1)])
def test_the_health_check_tells(answer: str | None, code: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "UP", "model": answer}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    (program,) = re.findall(r'CMD \["python", "-c", (".*")\]', arguments("HEALTHCHECK")[0])
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    port = server.server_port
    if answer is None:
        server.shutdown()
        server.server_close()
    source = json.loads(program).replace("9090", str(port))
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, check=False)
    if answer is not None:
        server.shutdown()
        server.server_close()
    thread.join()
    assert done.returncode == code, done.stderr


def test_compose() -> None:
    services = yaml.safe_load((FOLDER / "docker-compose.yml").read_text())["services"]
    studio, ours = services["label-studio"]["environment"], services["refinesam"]["environment"]
    assert studio["ML_BLOCK_LOCAL_IP"] == studio["SSRF_PROTECTION_ENABLED"] == "false"
    assert studio["LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN"] == "true"
    assert "LABEL_STUDIO_TOKEN" in studio["LABEL_STUDIO_USER_TOKEN"]
    assert "LABEL_STUDIO_TOKEN" in ours["LABEL_STUDIO_API_KEY"]
    assert ours["LABEL_STUDIO_URL"] == "http://label-studio:8080"
    build = services["refinesam"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).is_file()
    names = {argument.partition("=")[0] for argument in arguments("ARG")}
    assert set(build["args"]) <= names
    # A variable that the command line doesn't read would be set in vain.
    source = "".join((FOLDER / "refinesam_labelstudio" / name).read_text() for name in ("cli.py", "environment.py"))
    assert all(f'"{name}"' in source for name in ours)
