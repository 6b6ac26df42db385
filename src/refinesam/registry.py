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
from typing import Any, Literal

from refinesam.download import Progress, download, file_digest, remove_leftovers
from refinesam.errors import WeightsError
from refinesam.files import replacing

__all__ = [
    "REGISTRY",
    "Status",
    "WeightsEntry",
    "WeightsSource",
    "cache_dir",
    "entry_named",
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
        digest: "sha256:<hex>" or "git-blob-sha1:<hex>" of the file at `url`; empty when it could not be read.
        licence: SPDX identifier.
        size: of that file in bytes, None where it is not known for sure.
        note: one line for people.
    """

    name: str
    variant: str
    url: str | None
    digest: str
    licence: str
    size: int | None = None
    note: str = ""

    @property
    def packaged(self) -> bool:
        """Whether the file comes with refinesam."""
        return self.url is None

    @property
    def path(self) -> Path:
        """Where the file lies, or would lie after a fetch."""
        if self.url is None:
            return ASSETS / f"{self.name}.safetensors"
        return cache_dir() / self.url.rpartition("/")[2]

    @property
    def manual_step(self) -> str:
        """What to do where the download does not work."""
        return f"Download {self.url} yourself and put it at {self.path}, or give its path instead of the name."


# What a name, a path or an entry of one's own may be given as.
WeightsSource = str | os.PathLike[str] | WeightsEntry


def _packaged_entry(name: str) -> WeightsEntry:
    """Read {"sha256": ..., "size": ..., "variant": ...} beside the file, so that new weights need no new code."""
    described: Any = None
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
        note="refinesam's own weights, no download",
    )


def _efficient_sam(name: str, file: str, blob: str, note: str) -> WeightsEntry:
    # A commit, not a branch: the address then always gives the same bytes. Git names a file by its content.
    commit = "d525f622e6f640acf5a0fc37c7ca1f243da5bde0"
    url = f"https://github.com/yformer/EfficientSAM/raw/{commit}/weights/{file}"
    return WeightsEntry(name, name, url, f"git-blob-sha1:{blob}", "Apache-2.0", None, note)


def _sam(name: str, file: str, sha256: str, size: int) -> WeightsEntry:
    # Its publisher gives no SHA-256; these are the ones that independent projects pin for this address. The hex digits
    # in the file names are the beginning of the MD5.
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    return WeightsEntry(name, name, url, f"sha256:{sha256}", "Apache-2.0", size, "Segment Anything as released")


def _mobile_sam() -> WeightsEntry:
    commit = "34bbbfdface3c18e5221aa7de6032d7220c6c6a1"
    url = f"https://github.com/ChaoningZhang/MobileSAM/raw/{commit}/weights/mobile_sam.pt"
    digest = "git-blob-sha1:7ef2d090979fd9853adf17b7a99c8b94a1c5a6a7"
    return WeightsEntry("mobile_sam", "mobile_sam", url, digest, "Apache-2.0", None, "MobileSAM as released")


REGISTRY: Mapping[str, WeightsEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            _packaged_entry("builtin"),
            _efficient_sam(
                "efficientsam_ti",
                "efficient_sam_vitt.pt",
                "af883c49e33c68f01107be52df0ecad26a48355f",
                "EfficientSAM-Ti as released",
            ),
            _efficient_sam(
                "efficientsam_s",
                "efficient_sam_vits.pt.zip",
                "fa4e9f05f753e109dbde052f97d37903b833cf53",
                "EfficientSAM-S as released, zipped",
            ),
            _mobile_sam(),
            _sam(
                "sam_vit_b",
                "sam_vit_b_01ec64.pth",
                "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
                375_042_383,
            ),
            _sam(
                "sam_vit_l",
                "sam_vit_l_0b3195.pth",
                "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
                1_249_524_607,
            ),
            _sam(
                "sam_vit_h",
                "sam_vit_h_4b8939.pth",
                "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
                2_564_550_879,
            ),
        )
    }
)


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
        found = file_digest(path, algorithm)
    except OSError as error:
        return f"cannot be read ({error})"
    return None if found == expected else f"has {algorithm} {found} instead of {expected}"
