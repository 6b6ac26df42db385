"""Where image embeddings are kept: `EmbeddingCache` in memory, `EmbeddingStore` on disk; both bounded in bytes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refinesam.errors import ConfigError
from refinesam.files import replacing

__all__ = ["EmbeddingCache", "EmbeddingStore", "Features", "check_bytes"]

Arrays = Mapping[str, NDArray[Any]]

# The store's own files, and temporary ones that a killed process left: nothing else in the folder is ever deleted.
OWN_FILES = re.compile(r"\.?[0-9a-f]{32}-[0-9a-f]{32}(\.\w+)?\.safetensors")

_logger = logging.getLogger(__name__)


def check_bytes(name: str, value: object) -> None:
    """Raise ConfigError unless a setting is a whole number of at least 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{name} is {value!r}; give a whole number of bytes, 0 for none.")


class Features(Protocol):
    """An image's embedding, opaque but for its size."""

    @property
    def nbytes(self) -> int:
        """Bytes that it occupies."""
        ...


class EmbeddingCache:
    """Least-recently-used features by key, never more than `capacity` bytes; each key is computed once at a time."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.misses = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Features] = OrderedDict()
        self._running: dict[str, Future[Features | None]] = {}
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str, compute: Callable[[], Features]) -> Features:
        """Return the features of a key; `compute()` makes them when they are not here.

        Threads that ask for a key that is being computed wait for it and share the result. Its error or cancellation
        is not theirs: if it fails, one of them computes in its place.
        """
        while True:
            with self._lock:
                if key in self._entries:
                    self._entries.move_to_end(key)
                    return self._entries[key]
                running = self._running.get(key)
                if running is None:
                    mine = self._running[key] = Future()
                    self.misses += 1
                    break
            shared = running.result()
            if shared is not None:
                return shared
        features: Features | None = None
        try:
            features = compute()
            return features
        finally:
            with self._lock:
                del self._running[key]
                if features is not None:
                    self._insert(key, features)
            # None tells those who wait that it failed.
            mine.set_result(features)

    def _insert(self, key: str, features: Features) -> None:
        size = features.nbytes
        if size > self.capacity:
            return
        while self._nbytes + size > self.capacity:
            _, old = self._entries.popitem(last=False)
            self._nbytes -= old.nbytes
        self._entries[key] = features
        self._nbytes += size

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._nbytes = 0


class EmbeddingStore:
    """Embeddings in a folder, each a safetensors file under its key, at most `capacity` bytes in all.

    Threads and processes may share it. A store only saves time, so it never fails: what it can't read is missing, what
    it can't write is logged. The least recently used files go first; a file's modification time says when it was used.
    """

    def __init__(self, folder: str | Path, capacity: int) -> None:
        """Use a folder, which is made when the first embedding is written.

        Args:
            folder: may hold other files too; they are left alone.
            capacity: most bytes that the store's files take.

        Raises:
            ConfigError: a capacity that is no whole number of at least 0.
        """
        check_bytes("disk_cache_bytes", capacity)
        self.folder, self.capacity = Path(folder), capacity

    def read(self, key: str) -> Arrays | None:
        """Return the arrays under a key; None if there are none, or the file is damaged or was not written here."""
        path = self._path(key)
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
                intact = file.metadata() == _metadata(key, arrays)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            _logger.info("%s is no embedding and will be replaced: %s", path, error)
            return None
        if not intact:
            _logger.info("%s is damaged or foreign and will be replaced.", path)
            return None
        with contextlib.suppress(OSError):  # A disk that may only be read is still good to read.
            os.utime(path, ns=(time.time_ns(),) * 2)
        return arrays

    def write(self, key: str, arrays: Arrays) -> None:
        """Keep contiguous arrays under a key of two 32-digit hexadecimal numbers with a hyphen between them."""
        if sum(array.nbytes for array in arrays.values()) > self.capacity:
            return
        try:
            with replacing(self._path(key)) as temporary:
                save_file(dict(arrays), temporary, metadata=_metadata(key, arrays))
            self._trim()
        except (SafetensorError, OSError) as error:
            _logger.warning("An embedding could not be kept in %s: %s", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _trim(self) -> None:
        """Delete the files longest unused until the others fit."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if OWN_FILES.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):  # Another process deleted it.
                        status = entry.stat()
                        files.append((status.st_mtime_ns, status.st_size, entry.path))
        excess = sum(size for _, size, _ in files) - self.capacity
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            Path(path).unlink(missing_ok=True)
            excess -= size


def _metadata(key: str, arrays: Arrays) -> dict[str, str]:
    """What a file says of itself: its key, and a digest, since safetensors itself would not notice a flipped bit."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return {"refinesam_embedding": key, "digest": digest.hexdigest()}
