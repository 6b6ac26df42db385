"""Downloading a file, and telling it by its digest."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from refinesam.errors import WeightsError

__all__ = ["Progress", "download", "file_digest", "remove_leftovers"]

CHUNK_BYTES = 1 << 18
# A leftover of a killed process is older than this; a download under way writes all the time.
LEFTOVER_SECONDS = 24 * 3600.0

# Called while downloading with the bytes done and the bytes in all, None where the server does not say.
Progress = Callable[[int, int | None], None]


def download(url: str, target: Path, progress: Progress | None = None) -> None:
    """Download a file.

    Args:
        url: http or https.
        target: is written over.
        progress: told how far it is; an exception it raises ends the download.

    Raises:
        OSError: no network, an answer such as 404, a broken connection, a disk that is full.
        ValueError: an address that is none.
    """
    # They take a while to import, and most calls of the registry never download.
    import pooch
    import requests.exceptions

    bar = False if progress is None else _ProgressBar(progress)
    answers: list[Any] = []
    downloader = pooch.HTTPDownloader(
        progressbar=bar, chunk_size=CHUNK_BYTES, hooks={"response": lambda answer, **_: answers.append(answer)}
    )
    try:
        downloader(url, str(target), None)
    except (requests.exceptions.ProxyError, requests.exceptions.SSLError):
        raise  # Their texts name what has to be set up.
    except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        host = urlsplit(url).netloc
        raise OSError(f"the connection to {host} broke off" if answers else f"no connection to {host}") from error
    finally:
        # pooch leaves the connection of a download that breaks off to the garbage collector.
        for answer in answers:
            answer.close()


class _ProgressBar:
    """Turns the calls that pooch makes on a progress bar into calls of a function."""

    def __init__(self, progress: Progress) -> None:
        self.total = 0
        self._done = 0
        self._progress = progress

    def update(self, size: int) -> None:
        # pooch counts whole chunks, also for the last one.
        self._done = min(self._done + size, self.total) if self.total else self._done + size
        self._progress(self._done, self.total or None)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        """Nothing is held."""


def file_digest(path: Path, algorithm: str) -> str:
    """Return a file's digest in hex.

    Args:
        path: the file.
        algorithm: "sha256", or "git-blob-sha1", the SHA-1 by which git names a file's content:
            sha1("blob <size>" + NUL + content), or "xxh128", which tells damage and mistakes but no forgery.

    Raises:
        OSError: the file cannot be read.
        WeightsError: there is no such algorithm here.
    """
    with path.open("rb") as file:
        if algorithm == "sha256":
            return hashlib.file_digest(file, "sha256").hexdigest()
        if algorithm == "git-blob-sha1":
            header = b"blob %d\0" % os.fstat(file.fileno()).st_size
            return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()
        if algorithm == "xxh128":
            import xxhash

            hashed = xxhash.xxh128()
            while chunk := file.read(CHUNK_BYTES):
                hashed.update(chunk)
            return hashed.hexdigest()
    raise WeightsError(f"There is no digest {algorithm!r}; known are sha256, git-blob-sha1 and xxh128.")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left when they wrote `path` through `refinesam.files.replacing`."""
    for leftover in path.parent.glob(f".{escape(path.stem)}.*{escape(path.suffix)}"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                leftover.unlink()
