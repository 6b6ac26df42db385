"""`Finding`: one thing that `doctor` looked at, and where a backend of ours is told from any other."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import httpx

from refinesam import ImageError
from refinesam_labelstudio.hosts import check_public
from refinesam_labelstudio.json_types import JsonView

__all__ = ["SSRF", "Finding", "is_private", "object_of"]

Check = Literal[
    "server",
    "token",
    "backend",
    "labeling config",
    "smart tags",
    "answer",
    "connection",
    "network",
    "model version",
    "webhook",
]

SSRF = (
    "Label Studio refuses private addresses (403, a reserved network address) unless it was started with "
    "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false: set both and restart it."
)


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


def is_private(url: str) -> bool:
    """Whether an address is one that Label Studio refuses by default; no for a name that only its network knows."""
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    try:
        check_public(url)
    except ImageError:
        return True
    return False


def object_of(response: httpx.Response) -> JsonView:
    """Return the JSON object of an answer, an empty one where there is none."""
    try:
        content = response.json()
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
