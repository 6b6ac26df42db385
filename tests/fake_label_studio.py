"""A small HTTP server that answers like Label Studio: token refresh, expiry, restarts, files, redirects."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(**claims: Any) -> str:
    """A JSON web token with these claims; its signature is nobody's."""
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


PERSONAL = jwt(token_type="refresh", exp=8054814900, iat=1747614900, jti="p", user_id=1)


class FakeLabelStudio(ThreadingHTTPServer):
    """Serves on a loopback port; what it does next is set from the test.

    Attributes:
        life: seconds that an access token lives.
        failing: statuses that the next requests are answered with, None for a connection that breaks off.
        files: path to bytes. redirects: path to location.
        requests: "METHOD path" of every request, with its Authorization header.
        stored: rows of predictions.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.life = 300.0
        self.failing: list[int | None] = []
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.stored: list[dict[str, Any]] = []
        self.tasks = [{"id": number, "data": {"image": f"/data/upload/1/{number}.png"}} for number in range(1, 6)]
        self.issued: dict[str, float] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def count(self, request: str) -> int:
        return Counter(line for line, _ in self.requests)[request]

    def issue(self) -> str:
        with self.lock:
            now = time.time()
            access = jwt(token_type="access", iat=now, exp=now + self.life, jti=str(len(self.issued)))
            self.issued[access] = now + self.life
        return access

    def knows(self, authorization: str | None) -> bool:
        kind, _, token = (authorization or "").partition(" ")
        if kind == "Token":
            return token == LEGACY
        return kind == "Bearer" and self.issued.get(token, 0) > time.time()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeLabelStudio

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def begin(self) -> tuple[str, dict[str, list[str]], Any] | None:
        """Read the request; None where the answer, a failure, was given already."""
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        content = json.loads(self.rfile.read(length)) if length else None
        with self.server.lock:
            self.server.requests.append((f"{self.command} {parts.path}", self.headers.get("Authorization")))
            failing = self.server.failing.pop(0) if self.server.failing else 200
        if failing is None:
            self.close_connection = True
            return None
        if failing != 200:
            self.answer(failing, {"detail": "failing"})
            return None
        return parts.path, parse_qs(parts.query), content

    def do_POST(self) -> None:
        begun = self.begin()
        if begun is None:
            return
        path, _, content = begun
        if path == "/api/token/refresh/":
            known = content == {"refresh": PERSONAL}
            self.answer(200 if known else 401, {"access": self.server.issue()} if known else {"detail": "no"})
        elif not self.server.knows(self.headers.get("Authorization")):
            self.answer(401, {"detail": "Invalid token."})
        elif path == "/api/projects/1/import/predictions":
            self.server.stored += content
            self.answer(201, {"created": len(content)})
        else:
            self.answer(404, {"detail": "Not found."})

    def do_GET(self) -> None:
        begun = self.begin()
        if begun is None:
            return
        path, query, _ = begun
        if path.startswith("/open/"):
            self.serve(path, query)
        elif not self.server.knows(self.headers.get("Authorization")):
            self.answer(401, {"detail": "Invalid token."})
        elif path == "/api/tasks":
            page, size = int(query["page"][0]), int(query["page_size"][0])
            tasks = self.server.tasks[(page - 1) * size : page * size]
            self.answer(200 if tasks else 404, {"tasks": tasks, "total": len(self.server.tasks)})
        elif path.startswith("/api/tasks/"):
            found = [task for task in self.server.tasks if f"/api/tasks/{task['id']}" == path]
            self.answer(200 if found else 404, found[0] if found else {"detail": "Not found."})
        elif path == "/api/projects/1":
            self.answer(200, {"id": 1, "label_config": "<View/>"})
        else:
            self.serve(path, query)

    def serve(self, path: str, query: dict[str, list[str]]) -> None:
        whole = path + (f"?{urlsplit(self.path).query}" if query else "")
        for name in (whole, path):
            if name in self.server.redirects:
                return self.answer(303, b"", Location=self.server.redirects[name])
            if name in self.server.files:
                return self.answer(200, self.server.files[name])
        return self.answer(404, {"detail": "Not found."})


@contextmanager
def running() -> Iterator[FakeLabelStudio]:
    """A server in a thread of its own."""
    server = FakeLabelStudio()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
