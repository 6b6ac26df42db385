"""Writing files: whole or not at all, only where nothing is lost by it, and known to work before hours of computing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refinesam.errors import OutputError, RefineSAMError

__all__ = [
    "HTML",
    "JSON",
    "PARQUET",
    "PNG",
    "JsonObject",
    "check_outputs",
    "replacing",
    "write_json",
    "write_outputs",
    "writing",
]

# An object of a JSON document.
JsonObject = dict[str, Any]

# The suffixes that tell the truth about what is written.
HTML, JSON, PARQUET, PNG = (".html", ".htm"), (".json",), (".parquet", ".pq"), (".png",)
# Of a temporary file's name, whose random part would else not fit beside a name as long as a file system takes.
LONGEST_STEM = 100


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    Missing folders are made. The temporary file keeps the suffix, for writers that go by it. A killed process leaves
    the old file or the new one, never half of one.

    Raises:
        OSError: the place cannot be written, or holds a read-only file, a folder or a device.
    """
    path = Path(path)
    if problem := _why_kept(path):
        raise PermissionError(errno.EACCES, problem, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = os.fsencode(path.stem)[:LONGEST_STEM].decode(errors="ignore")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{stem}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; give this one the permissions any other new file would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[Path]:
    """Do what `replacing` does, and raise OutputError, which names the file, where that raises OSError."""
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise _unwritable(path, error) from error


def write_json(path: str | Path, content: object, indent: int | None = None) -> None:
    """Write JSON atomically; NaN and infinities are refused, since JSON has none.

    Raises:
        OutputError: the file cannot be written.
    """
    with writing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def check_outputs(
    outputs: Iterable[tuple[str | Path | None, tuple[str, ...]]], inputs: Iterable[str | Path | None] = ()
) -> None:
    """Find out before the work whether its results can be written; nothing is written and no folder made.

    Args:
        outputs: paths, None for none, each with the suffixes that tell the truth about its content. A name without
            a suffix lies about nothing.
        inputs: what is read; names that are no files are passed over.

    Raises:
        OutputError: a suffix of another format, one path twice, a file that is read, a read-only file, a folder or a
            device, or a place that cannot be written.
    """
    seen: set[str] = set()
    sources = [Path(source) for source in inputs if source is not None]
    for given, suffixes in outputs:
        if given is None:
            continue
        path = Path(given)
        if path.suffix and path.suffix.lower() not in suffixes:
            raise OutputError(f"{path} will hold {suffixes[0][1:].upper()}: name it {path.stem}{suffixes[0]}.")
        try:
            _check_place(path, sources)
            place = os.path.realpath(path)
        except (OSError, ValueError) as error:  # ValueError: a NUL character
            raise _unwritable(path, error) from error
        if place in seen:
            raise OutputError(f"{path} is to be written twice: give each result a file of its own.")
        seen.add(place)


def write_outputs(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write a command's results; none is lost, and none keeps the others from being written.

    Args:
        writers: by path, what writes there.

    Raises:
        OutputError: names what could not be written, and where in the system's temporary folder it is instead.
    """
    problems = []
    for path, write in writers.items():
        try:
            write(path)
        except (RefineSAMError, OSError) as error:
            reason = str(error) if isinstance(error, RefineSAMError) else str(_unwritable(path, error))
            problems.append(f"{reason} {_rescued(path, write)}".rstrip())
    if problems:
        raise OutputError(" ".join(problems))


def _rescued(path: Path, write: Callable[[Path], object]) -> str:
    """Write a result elsewhere and return a sentence that says where; an empty one if it cannot be written at all."""
    with suppress(OSError):
        folder = Path(tempfile.mkdtemp(prefix="refinesam-"))
        try:
            write(folder / path.name)
        except (RefineSAMError, OSError):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return f"What it was to hold is in {folder / path.name}."
    return ""


def _check_place(path: Path, sources: Iterable[Path]) -> None:
    if problem := _why_kept(path):
        raise PermissionError(errno.EACCES, problem, str(path))
    for source in sources:
        if source.exists() and path.exists() and path.samefile(source):
            raise PermissionError(errno.EACCES, "it is read here and would be lost", str(path))
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder):  # The one sure way to know.
        pass


def _why_kept(path: Path) -> str:
    """Say why what is there must stay; "" where nothing is there, or a file that may be replaced."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return ""
    if stat.S_ISDIR(mode):
        return "it is a folder"
    if not stat.S_ISREG(mode):
        return "it is no regular file"
    # The owner of a folder, and root anywhere, could replace a file that may not be written.
    return "" if mode & 0o222 and os.access(path, os.W_OK) else "it is read-only"


def _unwritable(path: str | Path, error: Exception) -> OutputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return OutputError(
        f"{path} cannot be written ({reason}): give a new file name, in a folder that can be written to and has space "
        "left."
    )
