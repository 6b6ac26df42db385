"""The web face of `Service`: /health, /setup, /predict, /versions, /webhook, each within Label Studio's time-outs."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI, HTTPException, Request, Response

from refinesam import RefineSAMError
from refinesam_labelstudio.json_types import JsonView
from refinesam_labelstudio.service import NotReadyError, Service

__all__ = ["create_app"]

# A batch comes in one request, with all annotations of its tasks.
MAX_BODY_BYTES = 256 * 2**20
# Predictions that run at the same time; further ones wait, while setup and the webhook don't.
PREDICTIONS = 8

Action = Callable[[JsonView], JsonView]


def create_app(
    service: Service, *, basic_auth: tuple[str, str] | None = None, max_body_bytes: int = MAX_BODY_BYTES
) -> FastAPI:
    """Return the app; when it shuts down, it closes the service.

    Whatever JSON comes is answered: with status 400 and {"error": ...} where it can't be served, with 503 while the
    weights are missing.

    Args:
        service: what answers.
        basic_auth: user name and password that every request but a health check needs; None lets everybody in.
        max_body_bytes: a larger request is answered with 413.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # No pages of documentation: they load scripts from elsewhere.
    app = FastAPI(title="refinesam", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    guarded = [] if basic_auth is None else [Depends(_asks_for(*basic_auth))]
    limiter = anyio.CapacityLimiter(PREDICTIONS)

    @app.get("/")
    @app.get("/health")
    async def health() -> Response:
        # On the event loop, which is free even when every thread is busy.
        return _json(200, service.health())

    @app.get("/versions", dependencies=guarded)
    async def versions() -> Response:
        return _json(200, service.versions())

    def serve(path: str, action: Action, limiter: anyio.CapacityLimiter | None = None) -> None:
        async def endpoint(request: Request) -> Response:
            body = await _body(request, max_body_bytes)
            if body is None:
                return _json(413, {"error": f"The request is larger than {max_body_bytes} bytes: send fewer tasks."})
            return await anyio.to_thread.run_sync(_answered, action, body, limiter=limiter)

        app.post(path, dependencies=guarded)(endpoint)

    serve("/setup", service.setup)
    serve("/webhook", service.webhook)
    serve("/predict", service.predict, limiter)
    return app


async def _body(request: Request, most: int) -> bytes | None:
    """Read what was sent; None, and no further, where it is larger than `most` bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def _asks_for(user: str, password: str) -> Callable[[Request], Awaitable[None]]:
    """Return a check of the header; clients differ in how they encode what isn't ASCII."""
    pair = f"{user}:{password}"
    encodings = ["utf-8", *(["latin-1"] if all(ord(character) < 256 for character in pair) else [])]
    known = [b"Basic " + base64.b64encode(pair.encode(name, "surrogateescape")) for name in encodings]

    async def check(request: Request) -> None:
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if not any([secrets.compare_digest(given, item) for item in known]):
            raise HTTPException(
                401,
                "User name and password are needed: enter them where the model is connected, as Basic Authentication.",
                {"WWW-Authenticate": 'Basic realm="refinesam"'},
            )

    return check


def _answered(action: Action, content: bytes) -> Response:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        return _json(400, {"error": f"The request is no JSON ({error}): an object is needed."})
    if not isinstance(body, dict):
        return _json(400, {"error": f"The request is a JSON {type(body).__name__}: an object is needed."})
    try:
        return _json(200, action(body))
    except RefineSAMError as error:
        return _json(503 if isinstance(error, NotReadyError) else 400, {"error": str(error)})


def _json(status: int, content: JsonView) -> Response:
    # In ASCII: text that came as JSON may hold half a character, which UTF-8 has no form for.
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")
