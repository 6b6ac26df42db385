"""The weights that have a name: where they come from, their digests, fetching and verifying them (no torch).

Downloaded files lie in `cache_dir()`. Nothing is used before its digest was compared, and nothing gets its final name
before: a fetch that fails or is interrupted leaves no file, and several processes may fetch the same weights at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from refinesam.download import Progress, download, file_digest, remove_leftovers
from refinesam.errors import WeightsError
from refinesam.files import replacing
from refinesam.published import PUBLISHED

__all__ = [
    "REGISTRY",
    "Status",
    "WeightsEntry",
    "WeightsSource",
    "cache_dir",
    "entry_named",
    "known_weights",
    "fetch",
    "find_entry",
    "status",
    "verify",
    "weights_path",
]

ASSETS = Path(__file__).resolve().parent / "assets"

# packaged: comes with refinesam; cached: downloaded; missing: not here; damaged: here, but not the registered bytes.
Status = Literal["packaged", "cached", "missing", "damaged"]


@dataclass(frozen=True)
class WeightsEntry:
    """One set of weights.

    Attributes:
        name: what `refinesam.load` takes.
        variant: the model variant it was made for, a name of `refinesam.models.config.CONFIGS`.
        url: where to download it; None for weights that come with refinesam.
        digest: "sha256:<hex>", "git-blob-sha1:<hex>" or "xxh128:<hex>" of the file at `url`; empty when it could not be
            read.
        licence: SPDX identifier, or "not stated" where no licence was found for the weights.
        size: of that file in bytes, None where it is not known for sure.
        note: what it is good at, one line for people.
        about: its size in bytes as the number of parameters lets expect, where `size` is not known.
        citation: what its authors ask to be cited.
        file: its name in the cache; empty for the last part of `url`.
    """

    name: str
    variant: str
    url: str | None
    digest: str
    licence: str
    size: int | None = None
    note: str = ""
    about: int | None = None
    citation: str = ""
    file: str = ""

    @property
    def packaged(self) -> bool:
        """Whether the file comes with refinesam."""
        return self.url is None

    @property
    def path(self) -> Path:
        """Where the file lies, or would lie after a fetch."""
        if self.url is None:
            return ASSETS / f"{self.name}.safetensors"
        return cache_dir() / (self.file or self.url.rpartition("/")[2])

    @property
    def is_here(self) -> bool:
        """Whether there is a file at `path`; it is not read, `status` compares its digest."""
        return os.path.isfile(self.path)

    @property
    def size_words(self) -> str:
        """Its size in words, such as "375 MB" or "about 41 MB"; empty where nothing is known of it."""
        if self.size:
            return f"{self.size / 1e6:.0f} MB"
        return f"about {self.about / 1e6:.0f} MB" if self.about else ""

    @property
    def summary(self) -> str:
        """What it is good at, how large it is, whether its file is here, and its licence: one line for people."""
        here = "comes with refinesam" if self.packaged else "downloaded" if self.is_here else "not downloaded yet"
        return f"{self.note}; {', '.join(filter(None, (self.size_words, here)))}; licence: {self.licence}"

    @property
    def manual_step(self) -> str:
        """What to do where the download does not work."""
        return f"Download {self.url} yourself and put it at {self.path}, or give its path instead of the name."


# What a name, a path or an entry of one's own may be given as.
WeightsSource = str | os.PathLike[str] | WeightsEntry


def _packaged_entry(name: str) -> WeightsEntry:
    """Read {"sha256": ..., "size": ..., "variant": ...} beside the file, so that new weights need no new code."""
    described: object = None
    with suppress(OSError, ValueError):
        described = json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))
    if not isinstance(described, dict):
        described = {}
    sha256, size, variant = (described.get(key) for key in ("sha256", "size", "variant"))
    return WeightsEntry(
        name,
        variant if isinstance(variant, str) else "hybrid_ti",
        url=None,
        digest=f"sha256:{sha256}" if isinstance(sha256, str) else "",
        licence="Apache-2.0",
        size=size if isinstance(size, int) else None,
        note="micrographs and single objects, on a CPU; weak on photographs of many things",
    )


REGISTRY: Mapping[str, WeightsEntry] = MappingProxyType(
    {entry.name: entry for entry in (_packaged_entry("builtin"), *(WeightsEntry(**row._asdict()) for row in PUBLISHED))}
)


def known_weights() -> Mapping[str, WeightsEntry]:
    """Return all weights that `refinesam.load` knows, by name."""
    return REGISTRY


def cache_dir() -> Path:
    """Return the folder of downloaded weights: $REFINESAM_CACHE, else the user's cache folder of this system."""
    chosen = os.environ.get("REFINESAM_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen)).absolute()
    import pooch  # Here and below: it takes a while to import, and most calls never need it.

    return Path(os.path.expanduser(pooch.os_cache("refinesam")))


def find_entry(weights: WeightsSource) -> WeightsEntry | None:
    """Return the entry of a name, an entry itself, and None for anything else (a file, perhaps)."""
    if isinstance(weights, WeightsEntry):
        return weights
    return REGISTRY.get(weights) if isinstance(weights, str) else None


def entry_named(weights: str | WeightsEntry) -> WeightsEntry:
    """Return the entry of a name.

    Raises:
        WeightsError: there is none.
    """
    entry = find_entry(weights)
    if entry is None:
        raise WeightsError(f"There are no weights named {weights!r}; known are {', '.join(REGISTRY)}.")
    return entry


def weights_path(weights: WeightsSource, download: bool = True) -> Path:
    """Return the file of some weights; those with a name are verified, and fetched where they are missing.

    Args:
        weights: a name of `REGISTRY` (names go before files: write ./builtin for a file of that name), or a path.
        download: whether missing or damaged weights may be downloaded.

    Raises:
        WeightsError: neither a name nor a file; or missing or damaged and not to be had.
    """
    entry = find_entry(weights)
    if entry is not None:
        return fetch(entry) if download else verify(entry)
    text = os.fspath(weights)  # type: ignore[arg-type]  # find_entry has dealt with entries
    path = Path(os.path.expanduser(text))
    # os.path answers False where pathlib raises, for names that no file can have.
    if text and os.path.isfile(path):
        return path
    if text and os.path.isdir(path):
        raise WeightsError(f"{path} is a folder; give the weights file in it.")
    raise WeightsError(
        f"{text!r} is neither the name of known weights ({', '.join(REGISTRY)}) nor an existing file. "
        "Give one of these names, or the path of a .safetensors, .pt or .pth file."
    )


def status(weights: str | WeightsEntry) -> Status:
    """Say whether weights are here and whole; reads the whole file to compare its digest.

    Raises:
        WeightsError: there are no weights of that name.
    """
    entry = entry_named(weights)
    if not os.path.isfile(entry.path):
        return "missing"
    if _complaint(entry, entry.path):
        return "damaged"
    return "packaged" if entry.packaged else "cached"


def verify(weights: str | WeightsEntry) -> Path:
    """Return the file of some weights after comparing its digest; never downloads.

    Raises:
        WeightsError: unknown, missing or damaged; the message says what to do.
    """
    entry = entry_named(weights)
    if not os.path.isfile(entry.path):
        wrong = f"is missing: there is no file {entry.path}"
    elif complaint := _complaint(entry, entry.path):
        wrong = f"is damaged: {entry.path} {complaint}"
    else:
        return entry.path
    if entry.packaged:
        others = ", ".join(name for name, other in REGISTRY.items() if not other.packaged)
        raise WeightsError(f"{entry.name} {wrong}. Install refinesam anew, or use other weights: {others}, or a file.")
    raise WeightsError(f"{entry.name} {wrong}. Run: refinesam weights fetch {entry.name}. Or: {entry.manual_step}")


def fetch(weights: str | WeightsEntry, progress: Progress | None = None) -> Path:
    """Return the verified file of some weights, downloading it where it is missing or damaged.

    Args:
        weights: a name of `REGISTRY`, or an entry.
        progress: told how far the download is; an exception it raises ends the download.

    Raises:
        WeightsError: unknown; no network, or REFINESAM_OFFLINE is set; or the download is not the registered file.
    """
    entry = entry_named(weights)
    if entry.packaged:
        return verify(entry)
    before = status(entry)
    if before == "cached":
        return entry.path
    if os.environ.get("REFINESAM_OFFLINE", "").strip().lower() not in ("", "0", "false", "no"):
        raise WeightsError(
            f"{entry.name} is {before} and REFINESAM_OFFLINE forbids to download it. "
            f"Unset REFINESAM_OFFLINE, or: {entry.manual_step}"
        )
    remove_leftovers(entry.path)
    try:
        with replacing(entry.path) as temporary:
            _download_verified(entry, temporary, progress)
    except OSError as error:
        # Windows refuses to replace a file that is open; fetched by another process in the meantime, it is there.
        if status(entry) != "cached":
            raise WeightsError(
                f"{entry.name} could not be written to {entry.path}: {error}. "
                "Set REFINESAM_CACHE to a folder that can be written to and has room."
            ) from error
    return entry.path


def _download_verified(entry: WeightsEntry, target: Path, progress: Progress | None) -> None:
    try:
        download(str(entry.url), target, progress)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{entry.name} could not be downloaded ({error}). {entry.manual_step}") from error
    if complaint := _complaint(entry, target):
        raise WeightsError(
            f"What {entry.url} sent is not {entry.name}: the file {complaint}. It was thrown away. Try again; "
            f"something between you and the server may have answered in its place. Or: {entry.manual_step}"
        )


def _complaint(entry: WeightsEntry, path: Path) -> str | None:
    """Return what is wrong with a file, None when it is the registered one."""
    if not entry.digest:
        return f"has no digest to compare with ({path.with_suffix('.json').name} beside it is missing or unreadable)"
    try:
        size = path.stat().st_size
        if entry.size is not None and size != entry.size:
            return f"has {size:,} bytes instead of {entry.size:,}"
        algorithm, _, expected = entry.digest.partition(":")
        actual = file_digest(path, algorithm)
    except OSError as error:
        return f"cannot be read ({error})"
    return None if actual == expected else f"has {algorithm} {actual} instead of {expected}"
