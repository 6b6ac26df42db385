"""The images of a job: a folder, a pattern, a list or a Parquet file; here, or wherever fsspec reaches."""

from __future__ import annotations

import glob
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refinesam.channels import Channel
from refinesam.errors import DatasetError, ImageError
from refinesam.images import IntensityPolicy, read_image
from refinesam.jobs.tables import read_table
from refinesam.training.sources.image_files import SUFFIXES, files_below
from refinesam.training.sources.shards import is_remote, listed_files, read_file

__all__ = ["Reading", "Source", "find_sources", "read_source"]

LISTS, TABLES = (".txt", ".lst"), (".parquet", ".pq", ".csv")
IMAGE_COLUMNS = ("image", "path", "file_name", "filename", "filepath", "url")


class Source(NamedTuple):
    """One image: the name that records give it, and the path or URL that it is read from."""

    name: str
    location: str


class Reading(NamedTuple):
    """How images become 8-bit RGB, see `refinesam.read_image`."""

    intensity: IntensityPolicy = "percentile"
    page: int | None = None
    channel: Channel | None = None


def find_sources(given: str, column: str | None = None) -> list[Source]:
    """Find the images of a job, in the order of their names; those of a list or table in its own order.

    Args:
        given: a folder (names are relative to it, at any depth), a pattern with ``*``, a list with a path or URL a line
            (``.txt``), a table (``.parquet``, ``.csv``) or one image. A folder or pattern may be a URL.
        column: of the table; by default the first of image, path, file_name, filename, filepath and url.

    Raises:
        DatasetError: nothing is there, no image is among it, or two images have the same name.
    """
    suffix = os.path.splitext(given)[1].lower()
    if suffix in LISTS:
        sources = _listed(given, [line.strip() for line in _lines(given)])
    elif suffix in TABLES:
        table = read_table(Path(given))
        sources = _listed(given, [str(row[_column(given, table.columns, column)] or "") for row in table.rows])
    elif is_remote(given):
        sources = _remote(given)
    else:
        sources = _local(given)
    if not sources:
        raise DatasetError(
            f"{given} holds no image. Give a folder, a pattern such as 'images/*.jpg', a list (.txt) with a path or "
            f"URL a line, or a table (.parquet, .csv). Images end in {', '.join(sorted(SUFFIXES))}."
        )
    names = Counter(source.name for source in sources)
    if twice := [name for name, count in names.items() if count > 1]:
        raise DatasetError(f"{given} names {len(twice)} images twice, such as {twice[0]}: leave each in once.")
    return sources


def read_source(source: Source, reading: Reading) -> NDArray[np.uint8]:
    """Read an image, (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it is not there, damaged, or not reached.
        ConfigError: a setting of `reading` is none.
    """
    intensity, page, channel = reading
    if not is_remote(source.location):
        return read_image(source.location, intensity=intensity, page=page, channel=channel)
    try:
        content = read_file(source.location)
    except (OSError, DatasetError) as error:
        raise ImageError(f"{source.location} cannot be read: {error}. Check the address and the access.") from error
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            return read_image(file.name, intensity=intensity, page=page, channel=channel)
        except ImageError as error:
            raise ImageError(str(error).replace(file.name, source.location)) from error


def _local(given: str) -> list[Source]:
    path = Path(given)
    if path.is_dir():
        below = (file for file in files_below(path) if file.suffix.lower() in SUFFIXES)
        return sorted(Source(file.relative_to(path).as_posix(), str(file)) for file in below)
    if path.is_file():
        return [Source(path.name, given)]
    if not glob.has_magic(given):
        raise DatasetError(f"There is no {given}. Give a folder of images, a pattern, a list or a table.")
    files = (file for file in glob.glob(given, recursive=True) if os.path.splitext(file)[1].lower() in SUFFIXES)
    root = _fixed_part(given)
    return sorted(Source(Path(file).relative_to(root).as_posix(), file) for file in files)


def _fixed_part(pattern: str) -> Path:
    """Return the folders of a pattern before the first part that holds a wildcard."""
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def _remote(given: str) -> list[Source]:
    try:
        urls = listed_files(given)
    except OSError as error:
        raise DatasetError(f"{given} cannot be listed: {error}. Give a list (.txt) with a URL a line.") from error
    images = sorted(url for url in urls if os.path.splitext(url)[1].lower() in SUFFIXES)
    root = f"{os.path.commonpath([os.path.dirname(path) for path in images])}/" if images else ""
    scheme = given.partition("://")[0]
    return [Source(path.removeprefix(root), path if is_remote(path) else f"{scheme}://{path}") for path in images]


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Give a text file with a path or URL a line.") from error
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _listed(given: str, entries: Sequence[str]) -> list[Source]:
    """Take relative paths from the list's own folder on."""
    if "" in entries:
        raise DatasetError(f"{given}: row {entries.index('') + 1} names no image: fill it in or take the row out.")
    folder = Path(given).parent
    return [Source(entry, entry if is_remote(entry) else str(folder / entry)) for entry in entries]


def _column(given: str, columns: Sequence[str], asked: str | None) -> str:
    names = [name for name in ([asked] if asked else IMAGE_COLUMNS) if name in columns]
    if not names:
        raise DatasetError(
            f"{given} has the columns {', '.join(columns)}, and no {asked or ', '.join(IMAGE_COLUMNS)}: name the "
            "column of the images with --column."
        )
    return names[0]
