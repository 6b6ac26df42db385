"""An HTTP server of a folder's files and of parts of them, which can fail, or stop half-way, when it is told to."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FileServer:
    """Serves a folder by HTTP; counts requests, can fail for some, and can send whole files alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests, self.failures, self.ranges = folder, list[str](), 0, True
        self.failing_after: int | None = None
        # Clear it, and only the first half of a file is sent until it is set.
        self.going_on = threading.Event()
        self.going_on.set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> FileServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.going_on.set()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: FileServer, *arguments: Any) -> None:
        self.of = server
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.of.requests.append(f"{self.command} {self.path}")
        path = self.of.folder / self.path.lstrip("/")
        late = self.of.failing_after is not None and len(self.of.requests) > self.of.failing_after
        if self.of.failures or late:
            self.of.failures = max(0, self.of.failures - 1)
            return self._send(500, b"", with_body)
        if not path.is_file():
            return self._send(404, b"", with_body)
        content, wanted = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted or not self.of.ranges:
            return self._send(200, content, with_body)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first >= len(content):
            return self._send(416, b"", with_body)
        return self._send(206, content[first : last + 1], with_body, f"bytes {first}-{last}/{len(content)}")

    def _send(self, status: int, content: bytes, with_body: bool, part: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if self.of.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if part:
            self.send_header("Content-Range", part)
        self.end_headers()
        if with_body:
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.of.going_on.wait()
            with suppress(ConnectionError):  # nobody may listen any more
                self.wfile.write(content[half:])
