"""`doctor`: why predictions don't arrive or smart tools don't answer, and what to change, in words."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from refinesam import ConfigError
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.findings import Finding, object_of
from refinesam_labelstudio.project_doctor import Backend, examine_project
from refinesam_labelstudio.responses import ServerError

__all__ = ["Finding", "examine"]

# As long as Label Studio itself waits for a health check, and some more, since this tells the two apart.
HEALTH_S = 5.0


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
    # One that isn't up is asked nothing more.
    up = backend_url is not None and all(finding.good for finding in findings)
    backend = Backend(backend_url.rstrip("/"), basic_auth) if backend_url is not None and up else None
    try:
        server = ProjectServer(url, token or "0" * 40, attempts=2, timeout_s=15)
    except ConfigError as error:
        return [*findings, Finding("server" if "address" in str(error) else "token", False, str(error))]
    try:
        findings += _label_studio(server, token, project_id, backend)
    finally:
        server.close()
    return findings


def _label_studio(
    server: ProjectServer, token: str, project_id: int | None, backend: Backend | None
) -> Iterator[Finding]:
    yield (reached := _server(server))
    if not reached.good:
        return
    yield (known := _token(server, token))
    if known.good and project_id is not None:
        yield from examine_project(server, project_id, backend)


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
    state = object_of(health)
    if not health.is_success or state.get("status") != "UP" or "model" not in state:
        yield Finding("backend", False, f"{url}/health is no backend of refinesam: correct the address.")
    elif state["model"] == "failed":
        why = object_of(versions).get("error") or "Its log says why."
        then = "Then start it again, or with other --weights."
        yield Finding("backend", False, f"{url} could not load its weights. {why} {then}")
    elif versions.status_code == 401:
        yield Finding(
            "backend",
            False,
            f"{url} asks for a user name and password: set REFINESAM_LABELSTUDIO_USER and "
            "REFINESAM_LABELSTUDIO_PASSWORD here, and the same under the connection's Basic Authentication.",
        )
    else:
        loading = ", still loading or downloading its weights" if state["model"] == "loading" else ""
        yield Finding("backend", True, f"{url} is up{loading}; versions {object_of(versions).get('versions')}")


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
    release = object_of(response).get("release")
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
