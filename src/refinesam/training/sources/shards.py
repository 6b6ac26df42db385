"""Tar shards, here or remote: what lies where in them, and the bytes of a part.

A shard is a path or the URL of anything that fsspec opens (https, s3, gs, ...). Remote shards stay where they are, so
that a data set need not fit the disk: of each image its own bytes alone are fetched. What lies where is told by the
headers, which lie all over a shard. An index beside it, written once by `refinesam train index`, spares every later run
looking for them, and a remote shard being read nearly whole for that.
"""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from fsspec.core import url_to_fs

from refinesam.errors import DatasetError
from refinesam.evaluation.json_fields import field_of
from refinesam.files import write_json

__all__ = [
    "INDEX_SUFFIX",
    "SHARD_LIST",
    "ShardIndex",
    "is_remote",
    "listed_files",
    "listed_shards",
    "read_file",
    "read_part",
    "shard_members",
    "write_index",
]

# Names remote shards among a folder's files, one a line.
SHARD_LIST: Final = "shards.txt"
INDEX_SUFFIX: Final = ".index.json"
# Before another try: a network that fails for a moment must not change what is trained on.
PAUSES: Final = (0.5, 2.0)

# Name, offset and size in bytes of a file in a shard.
Member = tuple[str, int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class ShardIndex:
    """What lies where in a shard.

    Attributes:
        size: of the shard in bytes.
        members: name, offset and size of every file that is there whole and not hidden.
        damage: why the shard could not be read, or not to its end; "" if it could.
    """

    size: int
    members: list[Member]
    damage: str = ""


def is_remote(shard: str) -> bool:
    """Whether a shard is a URL."""
    return "://" in shard


def listed_shards(path: Path) -> list[str]:
    """Read a list of remote shards: a URL on each line, but for empty lines and those that begin with #.

    Raises:
        DatasetError: it cannot be read, or a line is no URL.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Give it one URL of a tar shard a line.") from error
    shards = []
    for number, line in enumerate(lines, start=1):
        shard = line.strip()
        if not shard or shard.startswith("#"):
            continue
        if not is_remote(shard):
            raise DatasetError(
                f"{path}, line {number}: {shard!r} is no URL. Shards on this machine need no list: put them, or links "
                "to them, beside it."
            )
        shards.append(shard)
    return shards


def read_part(shard: str, offset: int, size: int) -> bytes:
    """Return `size` bytes of a shard from `offset` on, fewer where it ends before.

    Raises:
        OSError: it cannot be read.
    """
    if not is_remote(shard):
        with open(shard, "rb") as file:
            file.seek(offset)
            return file.read(size)
    part = _asked(shard, lambda system, path: system.cat_file(path, start=offset, end=offset + size))
    if len(part) > size:
        raise OSError("its server sends whole files only, no parts of them")
    return bytes(part)


def read_file(url: str) -> bytes:
    """Return the content of a remote file.

    Raises:
        OSError: it cannot be read.
        DatasetError: nothing here opens such a URL.
    """
    return bytes(_asked(url, lambda system, path: system.cat_file(path)))


def listed_files(url: str) -> list[str]:
    """Return the files below a remote folder, or those that match a pattern with ``*``; the scheme may be missing.

    Raises:
        OSError: it cannot be listed.
        DatasetError: nothing here opens such a URL.
    """
    return list(_asked(url, lambda system, path: system.glob(path) if "*" in path else system.find(path)))


def shard_members(shard: str, name: str, damaged: list[str]) -> list[Member]:
    """Return name, offset and size in bytes of every file in a shard that is there whole and not hidden.

    Args:
        shard: path or URL; uncompressed.
        name: of the shard, for messages.
        damaged: takes a line if the shard cannot be read, or not to its end; what lies before the break is returned.

    Raises:
        DatasetError: its index is damaged, it is remote and cannot be reached, or nothing here opens such a URL.
    """
    index = _stored_index(shard) or _scanned(shard)
    if index.damage:
        damaged.append(f"{name}: {index.damage}")
    return index.members


def write_index(shard: Path) -> ShardIndex:
    """Scan a shard on this machine and write its index beside it.

    Raises:
        DatasetError: the index cannot be written.
    """
    index, path = _scanned(str(shard)), f"{shard}{INDEX_SUFFIX}"
    try:
        write_json(path, asdict(index))
    except OSError as error:
        raise DatasetError(f"{path} cannot be written: {error}. Make room, or make the folder writable.") from error
    return index


def _scanned(shard: str) -> ShardIndex:
    members: list[Member] = []
    size = -1
    try:
        size = _size(shard)
        # "r:" takes no compression: a compressed member has no place of its own to be read from.
        with _opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                hidden = os.path.basename(member.name).startswith(".")
                if member.isreg() and not hidden and member.offset_data + member.size <= size:
                    members.append((member.name, member.offset_data, member.size))
            end = tar.offset
        # tarfile takes a damaged header, too, for the end; that is a block of zeros.
        whole = read_part(shard, end, tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        return ShardIndex(size, members, "" if whole else f"at byte {end} of {size} it is damaged or cut off")
    except tarfile.TarError as error:
        return ShardIndex(size, members, str(error))
    except Exception as error:  # Besides the system's, every storage has errors of its own.
        if is_remote(shard):
            raise _unreachable(shard, error) from error
        return ShardIndex(size, members, str(error))


def _stored_index(shard: str) -> ShardIndex | None:
    """Return what stands beside a shard; None where nothing does, or what does is of an earlier shard."""
    where = f"{shard}{INDEX_SUFFIX}"
    try:
        if not is_remote(shard):
            if os.path.getmtime(shard) > os.path.getmtime(where):
                return None
            content = Path(where).read_bytes()
        else:
            content = _asked(where, lambda system, path: system.cat_file(path))
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as error:
        raise _unreachable(where, error) from error
    try:
        raw = json.loads(content)
        members = [(str(n), int(offset), int(length)) for n, offset, length in field_of(raw, "members", list, where)]
        index = ShardIndex(field_of(raw, "size", int, where), members, field_of(raw, "damage", str, where))
    except (DatasetError, TypeError, ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is no index of a shard: {error} Write it anew: refinesam train index.") from error
    try:
        return index if index.size == _size(shard) else None
    except OSError as error:
        raise _unreachable(shard, error) from error


def _unreachable(url: str, error: Exception) -> DatasetError:
    """Not left out like a damaged shard: a run that is resumed when it is there again would see other images."""
    return DatasetError(f"{url} cannot be read: {error}. Start again when it can, or take its shard from {SHARD_LIST}.")


def _size(shard: str) -> int:
    if not is_remote(shard):
        return os.stat(shard).st_size
    size = _asked(shard, lambda system, path: system.size(path))
    if size is None:
        raise OSError("its server does not tell its size")
    return int(size)


def _opened(shard: str) -> Any:
    return _asked(shard, lambda system, path: system.open(path, "rb")) if is_remote(shard) else open(shard, "rb")


def _asked(url: str, question: Callable[[Any, str], T]) -> T:
    """Ask a URL's storage, again where it fails for a moment.

    Raises:
        OSError: it failed every time, or has no such file.
        DatasetError: nothing here opens such a URL.
    """
    try:
        # Anew each time: fsspec keeps its connections, and makes others in a forked process.
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DatasetError(f"{url} cannot be opened: {error}. Correct it, or install what fsspec names.") from error
    for pause in (*PAUSES, None):
        try:
            return question(system, path)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # Every storage has errors of its own.
            if pause is None:
                raise OSError(f"{type(error).__name__}: {error}") from error
            time.sleep(pause)
    raise AssertionError
