"""From what a task says of its image to pixels: uploads, storages, allowed hosts, data URIs, folders named beforehand.

A task's data is written by whoever may import tasks, so it decides neither which files of this machine are read nor
which hosts are asked: see `image_for_task`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, unquote_to_bytes, urlsplit

import numpy as np
from numpy.typing import NDArray

from refinesam import ConfigError, ImageError, read_image
from refinesam.hosts import replacing
from refinesam_labelstudio.access import DEFAULT_MAX_BYTES, LabelStudioServer
from refinesam_labelstudio.hosts import without_query

__all__ = ["FileCache", "ImageAccess", "image_for_task"]

# Where Label Studio serves files; its other paths, such as /api, are no images' and are never asked for.
SERVED = ("/data/", "/storage-data/", "/tasks/", "/projects/", "/static/")
LOCAL_FILES = "/data/local-files"
UPLOADS = "/data/upload/"
# Seconds that a copy is used of a file which may be replaced under its name; an upload never is.
FRESH_SECONDS = 600.0
OWN_FILES = re.compile(r"\.?[0-9a-f]{32}(\.\w+)?\.image")
LOCKS = 64


class FileCache:
    """Downloaded files in a folder, at most `capacity` bytes, the least recently used going first.

    Threads and processes may share it: a file appears whole or not at all. Other files in the folder are left alone.
    """

    def __init__(self, folder: str | Path, capacity: int = 4 * 2**30) -> None:
        """Use a folder, which is made when the first file is written; one file is kept whatever its size."""
        self.folder, self.capacity = Path(folder), capacity
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def get(self, name: str, fetch: Callable[[Path], None], max_age_s: float | None = None) -> Path:
        """Return the file of a name; `fetch(path)` writes it where it is missing or older than `max_age_s`.

        Threads that ask for a file that is being fetched wait for it. A later call may remove the file again.
        """
        key = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        path = self.folder / f"{key}.image"
        with self._locks[int(key[:8], 16) % LOCKS]:
            with contextlib.suppress(FileNotFoundError):
                fetched = path.stat().st_mtime
                if max_age_s is None or abs(time.time() - fetched) < max_age_s:
                    os.utime(path, (time.time(), fetched))  # when it was used, beside when it was fetched
                    return path
            with replacing(path) as temporary:
                fetch(temporary)
            self._shrink(path)
        return path

    def _shrink(self, newest: Path) -> None:
        files: list[tuple[float, int, Path]] = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if OWN_FILES.fullmatch(entry.name) and entry.name != newest.name:
                    files.append((entry.stat().st_atime, entry.stat().st_size, Path(entry.path)))
        left = self.capacity - newest.stat().st_size
        for _, size, path in sorted(files, reverse=True):
            left -= size
            if left < 0:
                path.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class ImageAccess:
    """What images may be read from.

    Attributes:
        server: Label Studio; None leaves data URIs and local roots.
        cache: of downloaded files.
        local_roots: folders of this machine that "/data/local-files/?d=..." may be read from, in this order, before
            the server is asked: what Label Studio has as LOCAL_FILES_DOCUMENT_ROOT, as it is mounted here.
        max_bytes: a larger file is refused.
    """

    server: LabelStudioServer | None
    cache: FileCache
    local_roots: tuple[Path, ...] = ()
    max_bytes: int = DEFAULT_MAX_BYTES

    def __post_init__(self) -> None:
        """Resolve the roots, once; ConfigError if one is no folder."""
        roots = tuple(Path(root).resolve() for root in self.local_roots)
        for root in roots:
            if not root.is_dir():
                raise ConfigError(f"The local root {root} is no folder: make it, mount it, or leave it out.")
        object.__setattr__(self, "local_roots", roots)


def image_for_task(value: object, access: ImageAccess, task_id: int | None = None) -> NDArray[np.uint8]:
    """Read the image that a task's data names, the right way up.

    Taken are: paths that Label Studio serves ("/data/upload/...", "/data/local-files/?d=..."), addresses on its own
    origin or on an allowed host, addresses of cloud storages ("s3://...", which Label Studio resolves for the task),
    and data URIs. Everything else is refused: other hosts, file addresses and paths, and whatever leads out of them.

    Args:
        value: what the task's data has under the image tag's name.
        access: what may be read.
        task_id: the task's, needed for cloud storages.

    Returns:
        (H, W, 3) uint8 RGB, EXIF orientation applied.

    Raises:
        ImageError: refused, too large, or not an image.
        ServerError: Label Studio can't be reached or refuses.
    """
    if not isinstance(value, str) or not value.strip():
        raise ImageError(f"The task names no image, it has {value!r}: give a path or an address.")
    value = value.strip()
    if value[:5].lower() == "data:":
        return _from_data_uri(value, access.max_bytes)
    if (address := _address(value, access, task_id)).startswith(LOCAL_FILES) and access.local_roots:
        path = _local_file(address, access)
        if path is not None:
            return _read(path, value)
    return _downloaded(address, value, access)


def _downloaded(address: str, value: str, access: ImageAccess) -> NDArray[np.uint8]:
    server = access.server
    if server is None:
        raise ImageError(
            f"{without_query(value)} is on a server, and none is known: give Label Studio's address and a token "
            "(LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY)."
        )
    age = None if address.startswith(UPLOADS) else FRESH_SECONDS
    for _ in range(3):
        path = access.cache.get(
            f"{server.url} {address}", lambda to: server.download(address, to, max_bytes=access.max_bytes), age
        )
        try:
            return _read(path, value)
        except ImageError:
            if path.exists():
                raise
        # Another thread needed the room meanwhile: fetch it again.
    raise ImageError(f"{without_query(value)} is dropped from the cache before it is read: give the cache more room.")


def _address(value: str, access: ImageAccess, task_id: int | None) -> str:
    """Return what `LabelStudioServer.download` takes: a path on the server, or an address on an allowed host."""
    try:
        scheme = urlsplit(value).scheme if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value) else ""
    except ValueError as error:
        raise ImageError(f"{without_query(value)!r} is no address ({error}): correct it in the task's data.") from error
    if scheme in ("http", "https"):
        if access.server is None or not access.server.is_own(value):
            return value  # whether its host is allowed is `download`'s to say
        parts = urlsplit(value)
        return _served(parts.path + (f"?{parts.query}" if parts.query else ""), value, access)
    if scheme and scheme != "file":
        if not isinstance(task_id, int):
            raise ImageError(f"{without_query(value)} is in a storage that only a stored task leads to: give its id.")
        uri = base64.urlsafe_b64encode(value.encode("utf-8", "surrogatepass")).decode()
        return f"/tasks/{task_id}/resolve/?fileuri={quote(uri)}"
    return _served(value, value, access)


def _served(path: str, value: str, access: ImageAccess) -> str:
    """Return a path without the server's own prefix; ImageError unless Label Studio serves files there."""
    prefix = "" if access.server is None else urlsplit(access.server.url).path
    path = path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path
    route = unquote(path.partition("?")[0])
    if not route.startswith(SERVED) or ".." in re.split(r"[/\\]", route):
        raise ImageError(
            f"{without_query(value)!r} is refused: an image is named by a path that Label Studio serves, such as "
            "/data/upload/..., by an address, or by a data URI, and never by a path on a disk. Import the file, or "
            "connect its folder as a storage."
        )
    return path


def _local_file(address: str, access: ImageAccess) -> Path | None:
    """Return the file in a local root that "?d=..." names; None if no root has it.

    Raises:
        ImageError: it leads out of its root, directly or by a link, or is no file.
    """
    relative = parse_qs(urlsplit(address).query).get("d", [""])[0]
    for root in access.local_roots:
        try:
            path = (root / relative).resolve()
            inside, exists = path.is_relative_to(root), path.exists()
            readable = path.is_file() and path.stat().st_size <= access.max_bytes
        except (ValueError, OSError, RuntimeError) as error:
            raise ImageError(
                f"The local file {relative[:200]!r} is no path ({type(error).__name__}): correct the task's data."
            ) from error
        if not relative or not inside:
            raise ImageError(f"The local file {relative!r} leads out of {root} and is refused: move it there.")
        if exists and not readable:
            raise ImageError(
                f"The local file {relative!r} is no file or larger than {access.max_bytes} bytes, the limit: give "
                "another, or raise the limit."
            )
        if exists:
            return path
    return None


def _from_data_uri(value: str, max_bytes: int) -> NDArray[np.uint8]:
    header, comma, payload = value.partition(",")
    try:
        # What is packed takes a third more than its content; this bounds the memory before it is unpacked.
        content = b"" if len(payload) > 3 * max_bytes else _payload(header, payload)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"The data URI {header!r} can't be unpacked ({error}): encode it as base64.") from error
    if not comma or not content or len(content) > max_bytes:
        raise ImageError(
            f"The data URI {header[:50]!r} is empty, or larger than {max_bytes} bytes, the limit: give another, or "
            "raise the limit."
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        path.write_bytes(content)
        return _read(path, header[:50])


def _payload(header: str, payload: str) -> bytes:
    plain = unquote_to_bytes(payload)
    return base64.b64decode(plain) if header.rstrip().endswith(";base64") else plain


def _read(path: Path, value: str) -> NDArray[np.uint8]:
    try:
        return read_image(path)
    except ImageError as error:
        # The path is the cache's; whoever reads this knows the task's own words.
        raise ImageError(str(error).replace(str(path), without_query(value))) from error
