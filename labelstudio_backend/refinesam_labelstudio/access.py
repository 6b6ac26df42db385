"""`LabelStudioServer`, and `ProjectServer` with what only the command line asks: the server's API and files.

A personal access token is never sent with a request; it is traded for access tokens that live some minutes and are
renewed in time. Requests are repeated while the server restarts, but one that may already have been carried out and
must not be carried out twice is not: that is the caller's to find out.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import httpx

from refinesam import ConfigError, ImageError
from refinesam_labelstudio.hosts import check_peer, check_public, host_of, origin_of, without_query
from refinesam_labelstudio.json_types import JsonObject, JsonView
from refinesam_labelstudio.responses import ServerError, check_status, json_object, unreached, write_body
from refinesam_labelstudio.tokens import TokenKind, kind_of, lifetime

__all__ = ["LabelStudioServer", "ProjectServer", "ServerError", "TokenKind"]

Result = TypeVar("Result")

# An access token is renewed when this share of its life is over.
RENEW_SHARE = 0.8
LONGEST_WAIT = 8.0
MAX_REDIRECTS = 3
DEFAULT_MAX_BYTES = 256 * 2**20


class LabelStudioServer:
    """A Label Studio server seen through its API; safe to share between threads.

    Attributes:
        url: the server's address without a slash at the end.
        token_kind: "personal" or "legacy", by the token's form.
        allowed_hosts: further hosts that `download` may fetch from, without the token.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        allowed_hosts: Iterable[str] = (),
        timeout_s: float = 30.0,
        attempts: int = 8,
        first_wait_s: float = 0.25,
    ) -> None:
        """Remember how to reach the server; nothing is sent yet.

        Args:
            url: such as "https://label.example.org" or "http://localhost:8080/prefix".
            token: a personal access token or a legacy token, from the server's "Account & Settings".
            allowed_hosts: "host", or "host:port" where the port isn't the scheme's default; compared exactly.
            timeout_s: seconds without a byte after which a request counts as failed.
            attempts: how often a request is tried, at least 1.
            first_wait_s: seconds before the second attempt; doubled each time, up to 8.

        Raises:
            ConfigError: an address or a token that can't be one.
        """
        try:
            self._origin = origin_of(url)
        except ImageError as error:
            raise ConfigError(f"The address of Label Studio: {error}") from error
        self.url = self._origin + urlsplit(url).path.rstrip("/")
        self._token = token.strip()
        self.token_kind: TokenKind = kind_of(self._token)
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._attempts, self._first_wait_s = attempts, first_wait_s
        self._client = httpx.Client(timeout=timeout_s)
        self._lock = threading.Lock()
        self._access, self._renew_at = "", 0.0

    def __repr__(self) -> str:
        """Show no token."""
        return f"LabelStudioServer({self.url!r}, token_kind={self.token_kind!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get_task(self, task_id: int) -> JsonObject:
        """Return a task with its data, annotations, drafts and predictions; ServerError if it isn't there."""
        return self._object("GET", f"/api/tasks/{int(task_id)}")

    def project(self, project_id: int) -> JsonObject:
        """Return a project, its labeling configuration under "label_config"; ServerError if it isn't there."""
        return self._object("GET", f"/api/projects/{int(project_id)}")

    def tasks(self, project_id: int, page: int = 1, page_size: int = 100, data_only: bool = False) -> list[JsonObject]:
        """Return a page of a project's tasks, by id; pages count from 1, and a page beyond the last is empty.

        Args:
            project_id: whose tasks.
            page: its number.
            page_size: tasks on a page.
            data_only: without annotations, drafts and predictions, and with addresses in storages as they were given.
        """
        params: dict[str, str | int] = {
            "project": int(project_id),
            "page": page,
            "page_size": page_size,
            "fields": "task_only" if data_only else "all",
            "ordering": "id",
        }
        if data_only:
            params["resolve_uri"] = "false"
        try:
            tasks = self._object("GET", "/api/tasks", params=params).get("tasks")
        except ServerError as error:
            if error.status == 404 and page > 1:
                return []
            raise
        if not isinstance(tasks, list):
            raise ServerError(f'{self.url} answered with no list of "tasks": is it Label Studio 1.x?')
        return tasks

    def import_predictions(self, project_id: int, rows: Sequence[JsonView]) -> int:
        """Store predictions, all of them or none, and return how many the server says it stored.

        Args:
            project_id: whose tasks they belong to.
            rows: each with "task", "result", "score" and "model_version".

        Raises:
            ServerError: not stored; or, where `may_have_run`, perhaps stored: look before trying again.
        """
        path = f"/api/projects/{int(project_id)}/import/predictions"
        return int(self._object("POST", path, content=list(rows), repeatable=False).get("created", len(rows)))

    def download(self, address: str, to: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Write a file of the server, or of an allowed host, to `to`.

        The token goes to the server's own origin alone. Redirects, such as to cloud storage, are followed to public
        addresses and allowed hosts.

        Args:
            address: a path on the server, beginning with "/", or a whole address.
            to: replaced if it exists; holds part of the file after an error.
            max_bytes: a larger file is refused.

        Raises:
            ImageError: a host that isn't allowed, or a file that is too large.
            ServerError: not reached, or refused.
        """
        url = self.own_url(address) if address.startswith("/") else address
        if origin_of(url) != self._origin and host_of(url) not in self.allowed_hosts:
            raise ImageError(
                f"{without_query(url)} is on a host that isn't allowed. If images are meant to come from "
                f"{host_of(url)!r}, add it to the allowed hosts (--allow-host)."
            )
        self._retrying(lambda: self._follow(url, to, max_bytes))

    def own_url(self, path: str) -> str:
        """Return the whole address of a path on the server; the server's own prefix may be in it already."""
        prefix = self.url.removeprefix(self._origin)
        return self._origin + path if prefix and path.startswith(f"{prefix}/") else self.url + path

    def is_own(self, url: str) -> bool:
        """Whether an http(s) address is on the server's own origin: the same scheme, host and port."""
        return origin_of(url) == self._origin

    def _object(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        content: object = None,
        repeatable: bool = True,
    ) -> JsonObject:
        def read(response: httpx.Response) -> JsonObject:
            return json_object(response, repeatable)

        return self._call(method, path, read, params=params, content=content, repeatable=repeatable)

    def _call(
        self,
        method: str,
        path: str,
        read: Callable[[httpx.Response], Result],
        *,
        params: Mapping[str, str | int] | None = None,
        content: object = None,
        repeatable: bool = True,
    ) -> Result:
        """Send a request until it is answered, with a token that is renewed where it expired, and read the answer."""

        def attempt() -> Result:
            header = self._authorization()
            request = self._client.build_request(method, self.url + path, params=params, json=content)
            response = self._send(request, header, repeatable=repeatable)
            if response.status_code == 401 and (renewed := self._authorization(rejected=header)) != header:
                response = self._send(request, renewed, repeatable=repeatable)
            return read(response)

        return self._retrying(attempt)

    def _retrying(self, attempt: Callable[[], Result]) -> Result:
        wait = self._first_wait_s
        for _ in range(self._attempts - 1):
            try:
                return attempt()
            except ServerError as error:
                if not error.retry:
                    raise
            # Apart from each other, or all threads come back at once.
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, LONGEST_WAIT)
        return attempt()

    def _authorization(self, rejected: str | None = None) -> str:
        """Return the header's value; a personal token's is renewed when it was rejected or is about to expire."""
        if self.token_kind == "legacy":
            return f"Token {self._token}"
        with self._lock:
            if time.monotonic() >= self._renew_at or f"Bearer {self._access}" == rejected:
                self._renew()
            return f"Bearer {self._access}"

    def _renew(self) -> None:
        started = time.monotonic()
        request = self._client.build_request("POST", f"{self.url}/api/token/refresh/", json={"refresh": self._token})
        response = self._send(request, None)
        if response.status_code in (400, 401, 403):
            raise ServerError(
                f"{self.url} refuses the personal access token (status {response.status_code}): {_reason(response)}. "
                'Make another one under "Account & Settings".',
                response.status_code,
            )
        access = json_object(response).get("access")
        if not isinstance(access, str) or not access:
            raise ServerError(
                f"{self.url} gave no access token for the personal one: is it Label Studio 1.16 or later?"
            )
        self._access = access
        self._renew_at = started + RENEW_SHARE * lifetime(self._access)

    def _send(
        self, request: httpx.Request, authorization: str | None, *, repeatable: bool = True, stream: bool = False
    ) -> httpx.Response:
        if authorization is not None:
            request.headers["Authorization"] = authorization
        try:
            return self._client.send(request, stream=stream)
        except httpx.RequestError as error:
            raise unreached(error, repeatable) from error

    def _follow(self, url: str, to: Path, max_bytes: int) -> None:
        """Download from an allowed address, through its redirects."""
        trusted = self.is_own(url)
        for _ in range(MAX_REDIRECTS + 1):
            header = self._authorization() if trusted else None
            response = self._open(url, header)
            if response.status_code == 401 and header and (renewed := self._authorization(rejected=header)) != header:
                response.close()
                response = self._open(url, renewed)
            try:
                self._check_peer_of(response, url, trusted)
                if not response.has_redirect_location:
                    check_status(response)
                    return write_body(response, to, max_bytes)
            finally:
                response.close()
            url = urljoin(url, response.headers["location"])
            trusted = trusted and self.is_own(url)
            if trusted and urlsplit(url).path.rstrip("/").endswith("/user/login"):
                raise ServerError(f"{self.url} asks to log in: the token is refused. Make another one.", 401)
            if not trusted and host_of(url) not in self.allowed_hosts:
                check_public(url)
        raise ServerError(f"{without_query(url)} comes after {MAX_REDIRECTS} redirects, which are too many.")

    def _open(self, url: str, authorization: str | None) -> httpx.Response:
        try:
            request = self._client.build_request("GET", url)
        except httpx.InvalidURL as error:
            raise ImageError(
                f"{without_query(url)!r} is no address ({error}): correct it in the task's data."
            ) from error
        return self._send(request, authorization, stream=True)

    def _check_peer_of(self, response: httpx.Response, url: str, trusted: bool) -> None:
        """Check where a foreign answer came from: a name may have been looked up anew since it was checked."""
        if trusted or host_of(url) in self.allowed_hosts:
            return
        peer = response.extensions["network_stream"].get_extra_info("server_addr")
        check_peer(host_of(url), str(peer[0]))


def _reason(refusal: httpx.Response) -> str:
    """Say why a personal access token is refused; it is asked for anew at each request, since no refusal is final."""
    if "Token is invalid" not in refusal.text:
        return "it was revoked or has expired"
    # A generated key that begins with "$", one in fifty, is taken for a variable's name when it is read back.
    return (
        "it isn't signed with the server's present key. Label Studio loses its first key at its first restart where "
        "that happens to begin with '$', and all tokens with it; SECRET_KEY in its environment prevents that"
    )


class ProjectServer(LabelStudioServer):
    """A Label Studio server whose projects are prepared and examined."""

    def whoami(self) -> JsonObject:
        """Return the token's user, with "email"; ServerError if the token is refused."""
        return self._object("GET", "/api/current-user/whoami")

    def update_prediction(self, prediction_id: int, row: JsonView) -> None:
        """Replace a stored prediction in place; doing so twice is the same as once.

        Args:
            prediction_id: the prediction's.
            row: with "result", "score" and "model_version".

        Raises:
            ServerError: not reached, or refused.
        """
        self._object("PATCH", f"/api/predictions/{int(prediction_id)}/", content=dict(row))

    def update_project(self, project_id: int, changes: JsonView) -> None:
        """Change settings of a project; ServerError if the server can't be reached or refuses."""
        self._object("PATCH", f"/api/projects/{int(project_id)}", content=dict(changes))

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete a stored prediction; ServerError if the server can't be reached or refuses."""

        def read(response: httpx.Response) -> None:
            if response.status_code != 404:  # gone already
                check_status(response)

        self._call("DELETE", f"/api/predictions/{int(prediction_id)}/", read)

    def ml_backends(self, project_id: int) -> list[JsonObject]:
        """Return the models that a project is connected to, each with "url", "state" and "is_interactive".

        The server asks each of them for its health and setup first, so "state" is fresh.

        Raises:
            ServerError: not reached, refused, or no list.
        """
        return self._list("/api/ml", project_id)

    def webhooks(self, project_id: int) -> list[JsonObject]:
        """Return a project's webhooks, each with "url", "headers" and "is_active"; ServerError as `ml_backends`."""
        return self._list("/api/webhooks/", project_id)

    def ask(self, connection_id: int, task_id: int, context: JsonView) -> JsonObject:
        """Return what a connected model answers to a context, as to an annotator's click; "error" says why not.

        Raises:
            ServerError: the server can't be reached or refuses.
        """
        path = f"/api/ml/{int(connection_id)}/interactive-annotating"
        answer = self._object("POST", path, content={"task": task_id, "context": dict(context)})
        data = answer.get("data")
        return data if isinstance(data, dict) else {"error": " ".join(map(str, answer.get("errors") or ["no answer"]))}

    def _list(self, path: str, project_id: int) -> list[JsonObject]:
        def read(response: httpx.Response) -> list[JsonObject]:
            check_status(response)
            content = response.json()
            if not isinstance(content, list):
                raise ServerError(f"{self.url}{path} answered with no list: is it Label Studio 1.x?")
            return content

        return self._call("GET", path, read, params={"project": int(project_id)})
