"""Mask files of a run: a folder of its own for each dataset and run, names that say what a file holds.

A file is never written again with another content: a label that was copied out of the run, or into a clone of the
dataset, keeps the mask it had. Files go only when no label but the run's own uses them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import fiftyone as fo
import numpy as np
from numpy.typing import NDArray

from .private import id_of
from .samples import Place
from .schema import ALL_ROLES, Fields, Role

__all__ = ["file_name", "folder_of", "remove", "split_files"]

_NAME: Final = re.compile(rf"[0-9a-f]{{24}}(-\d{{4,}})?-({'|'.join(ALL_ROLES)})-[0-9a-f]{{16}}\.png")
_SAMPLE: Final = re.compile(r"[0-9a-f]{24}")
# Attributes of FiftyOne's labels that name files.
_PATHS: Final = ("mask_path", "map_path", "filepath")


def folder_of(dataset: fo.Dataset, run: Fields, masks_dir: str) -> Path:
    """Return the folder of a run's masks; a clone of the dataset has another one."""
    return Path(masks_dir).absolute() / id_of(dataset) / run.key


def file_name(prompt_id: str, role: Role, mask: NDArray[np.bool_]) -> str:
    """Return the name of a mask's file, another one for another mask."""
    digest = hashlib.blake2b(repr(mask.shape).encode() + np.packbits(mask).tobytes(), digest_size=8).hexdigest()
    return f"{prompt_id}-{role}-{digest}.png"


def split_files(place: Place, run: Fields, folders: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the mask files that the run wrote, first those that its own labels alone use, then the others.

    Args:
        place: of the run's samples.
        run: names of its fields.
        folders: that the run wrote to; those of the dataset that this one was cloned from are not its own.
    """
    own = [Path(folder) for folder in folders if Path(folder).parent.name == id_of(place.root)]
    files = [
        file
        for folder in own
        for inner in sorted(folder.glob("*"))
        if _SAMPLE.fullmatch(inner.name)
        for file in sorted(inner.iterdir())
        if _NAME.fullmatch(file.name)
    ]
    if not files:
        return [], []
    used = _used_elsewhere(place, run, "|".join(re.escape(f"{folder}/") for folder in own))
    return [file for file in files if str(file) not in used], [file for file in files if str(file) in used]


def _used_elsewhere(place: Place, run: Fields, pattern: str) -> set[str]:
    used: set[str] = set()
    for name in fo.list_datasets():
        dataset = fo.load_dataset(name)
        own = {run.masks(role) for role in ALL_ROLES} if dataset.name == place.root.name else set()
        for other in (Place(dataset), *([Place(dataset, True)] if dataset.get_frame_field_schema() else [])):
            kept = own if other.frames == place.frames else set()
            for path in other.schema():
                if path.rpartition(".")[2] in _PATHS and path.partition(".")[0] not in kept:
                    used |= other.texts(path, f"({pattern})")
    return used


def remove(files: Iterable[Path]) -> None:
    """Delete files, and the folders of the run that are empty then."""
    folders = set()
    for file in files:
        file.unlink(missing_ok=True)
        folders |= set(file.parents[:3])
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
