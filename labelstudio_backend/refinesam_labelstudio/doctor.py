"""`doctor`: why predictions don't arrive or smart tools don't answer, and what to change, in words."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from refinesam import ConfigError, ImageError
from refinesam_labelstudio.administration import ProjectServer
from refinesam_labelstudio.hosts import check_public
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.responses import ServerError

__all__ = ["Finding", "examine"]

Check = Literal["server", "token", "backend", "labeling config", "smart tags", "connection", "network"]

LOOPBACK = "Where Label Studio runs in a container, 'localhost' is that container: give the backend's service name."
SSRF = (
    "Label Studio refuses private addresses unless it was started with ML_BLOCK_LOCAL_IP=false and "
    "SSRF_PROTECTION_ENABLED=false: set both and restart it."
)
# How the server writes a connection's state.
STATES = {"CO": "connected", "DI": "disconnected", "ER": "error", "TR": "training", "PR": "predicting"}
# As long as Label Studio itself waits for a health check, and some more, since this tells the two apart.
HEALTH_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what it was.
        good: whether it is as it should be.
        message: what was found and, where it isn't good, what to change.
    """

    check: Check
    good: bool
    message: str


def examine(
    url: str,
    token: str,
    *,
    project_id: int | None = None,
    backend_url: str | None = None,
    basic_auth: tuple[str, str] | None = None,
) -> list[Finding]:
    """Look at a server, a backend and a project, in the order in which the one needs the other.

    Args:
        url: of Label Studio.
        token: personal or legacy; "" if there is none.
        project_id: of the project to look at; None looks at none.
        backend_url: as it is reached from here; None leaves it out.
        basic_auth: the backend's user name and password.

    Returns:
        What was found; nothing is changed.
    """
    findings = [] if backend_url is None else list(_backend(backend_url, basic_auth))
    try:
        server = ProjectServer(url, token or "0" * 40, attempts=2, timeout_s=15)
    except ConfigError as error:
        return [*findings, Finding("server" if "address" in str(error) else "token", False, str(error))]
    try:
        findings += _label_studio(server, token, project_id, backend_url)
    finally:
        server.close()
    return findings


def _label_studio(
    server: ProjectServer, token: str, project_id: int | None, backend_url: str | None
) -> Iterator[Finding]:
    yield (found := _server(server))
    if not found.good:
        return
    yield (known := _token(server, token))
    if known.good and project_id is not None:
        yield from _project(server, project_id, backend_url)


def _backend(url: str, basic_auth: tuple[str, str] | None) -> Iterator[Finding]:
    """Ask the backend what Label Studio asks it."""
    try:
        with httpx.Client(base_url=url, timeout=HEALTH_S, auth=basic_auth) as client:
            health, versions = client.get("/health"), client.get("/versions")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield Finding(
            "backend",
            False,
            f"{url} gave no answer ({type(error).__name__}: {error}): start it with `refinesam labelstudio serve`, or "
            "correct host and port. In a container it must listen on --host 0.0.0.0.",
        )
        return
    state = _object(health)
    if not health.is_success or state.get("status") != "UP" or "model" not in state:
        yield Finding("backend", False, f"{url}/health is no backend of refinesam: correct the address.")
    elif state["model"] == "failed":
        yield Finding("backend", False, f"{url} could not load its weights: its log says why; correct --weights.")
    elif versions.status_code == 401:
        yield Finding(
            "backend",
            False,
            f"{url} asks for a user name and password: set REFINESAM_LABELSTUDIO_USER and "
            "REFINESAM_LABELSTUDIO_PASSWORD here, and the same under the connection's Basic Authentication.",
        )
    else:
        loading = ", still loading its weights" if state["model"] == "loading" else ""
        yield Finding("backend", True, f"{url} is up{loading}; versions {_object(versions).get('versions')}")


def _server(server: ProjectServer) -> Finding:
    try:
        response = httpx.get(f"{server.url}/api/version", timeout=15, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(
            "server",
            False,
            f"{server.url} gave no answer ({type(error).__name__}: {error}): start Label Studio, or correct "
            "LABEL_STUDIO_URL to what this machine reaches it as.",
        )
    release = _object(response).get("release")
    if not isinstance(release, str):
        return Finding(
            "server",
            False,
            f"{server.url}/api/version (status {response.status_code}) names no release of Label Studio: correct "
            "LABEL_STUDIO_URL, which may need a prefix, and has no /projects at its end.",
        )
    return Finding("server", True, f"{server.url} is Label Studio {release}")


def _token(server: ProjectServer, token: str) -> Finding:
    if not token:
        return Finding(
            "token",
            False,
            'There is no token: make a personal access token under "Account & Settings" and set LABEL_STUDIO_API_KEY.',
        )
    try:
        user = server.whoami()
    except ServerError as error:
        if server.token_kind == "legacy" and error.status == 401:
            return Finding(
                "token",
                False,
                "The legacy token is refused: it was reset, or legacy tokens are disabled, as they are by default. Use "
                'a personal access token, or enable legacy tokens under "Organization", "API Tokens Settings" (at the '
                "first start by LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN=true).",
            )
        return Finding("token", False, str(error))
    return Finding("token", True, f"a {server.token_kind} token of {user.get('email') or 'a user'}")


def _project(server: ProjectServer, project_id: int, backend_url: str | None) -> Iterator[Finding]:
    try:
        project, connections = server.project(project_id), server.ml_backends(project_id)
    except ServerError as error:
        yield Finding("labeling config", False, f"Project {project_id}: {error}")
        return
    yield from _labeling_config(str(project.get("label_config") or ""))
    if not connections:
        address = backend_url or "the backend's address"
        yield Finding(
            "connection",
            False,
            f"Project {project_id} is connected to no model: under Settings, Model, connect {address}, with "
            "Interactive preannotations on.",
        )
    for row in connections:
        yield from _connection(row)


def _labeling_config(xml: str) -> Iterator[Finding]:
    try:
        config = LabelingConfig.parse(xml)
    except ConfigError as error:
        yield Finding(
            "labeling config", False, f"{error} `refinesam labelstudio configs` has whole ones, ready to paste."
        )
        return
    outputs = ", ".join(f"{tag.kind} ({tag.from_name})" for tag in config.outputs)
    yield Finding("labeling config", True, f"answers go to {outputs}")
    if not config.prompts:
        yield Finding(
            "smart tags",
            False,
            'No KeyPointLabels or RectangleLabels has smart="true", so clicks ask for nothing: add it, as in '
            '<KeyPointLabels name="point" toName="image" smart="true"><Label value="Object"/></KeyPointLabels>.',
        )
    problems: dict[str, None] = {}
    for prompt in config.prompts:
        for label in prompt.labels:
            try:
                config.output_for(label, None, prompt.to_name)
            except ConfigError as error:
                problems[str(error)] = None
    for problem in problems:
        yield Finding("smart tags", False, problem)
    if config.prompts and not problems:
        names = ", ".join(f"{tag.kind} ({tag.from_name})" for tag in config.prompts)
        yield Finding("smart tags", True, f"clicks come from {names}")


def _connection(row: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at a model as Label Studio sees it."""
    url, state = str(row.get("url")), str(row.get("state"))
    if state not in ("CO", "TR", "PR"):
        said = str(row.get("error_message") or "")[:300]
        yield Finding(
            "connection",
            False,
            f"Label Studio has {url} as {STATES.get(state, state)}{f' ({said})' if said else ''}: see that the backend "
            "runs and that its user name and password are entered, then press Validate and Save.",
        )
        yield from _network(url)
    elif row.get("is_interactive") is False:
        yield Finding(
            "connection",
            False,
            f"{url} is connected, but not for smart tools: turn on Interactive preannotations in its settings.",
        )
    else:
        yield Finding("connection", True, f"{url} is connected, version {row.get('model_version') or 'not named yet'}")


def _network(url: str) -> Iterator[Finding]:
    """Say why Label Studio may not reach an address that it isn't connected to."""
    try:
        host = urlsplit(url).hostname or ""
        private = bool(host) and _is_private(url)
    except ValueError:
        yield Finding("network", False, f"{url!r} is no address: correct it in the project's settings, under Model.")
        return
    if private:
        inside = f" {LOOPBACK}" if host == "localhost" or host.startswith("127.") else ""
        yield Finding("network", False, f"{host} is a private address. {SSRF}{inside}")


def _is_private(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False  # a name that only Label Studio's own network knows
    try:
        check_public(url)
    except ImageError:
        return True
    return False


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
