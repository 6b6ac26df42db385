"""Reading what torch.save wrote, without running anything of it.

torch's own reader refuses a file that holds more than tensors and plain containers. Trainers put more into their
checkpoints (micro-sam: the data sets, with all their transforms). Of those the state dict alone is read here: an object
of any other class becomes one that does nothing, and no program is looked up by its name.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refinesam.errors import WeightsError
from refinesam.models.layouts import state_dict_of
from refinesam.models.unsupported import unsupported_program

__all__ = ["read_torch", "some"]

# SAM's ViT-H has 2.6 GB; an archive that promises more than this is no model of ours.
LARGEST_ARCHIVE_MEMBER = 4 << 30
NAMES_IN_A_MESSAGE = 4


def read_torch(path: Path) -> object:
    """Read what torch.save wrote, or the only .pt or .pth file of an archive.

    Raises:
        WeightsError: the file is none, damaged, or holds a program; the message says which.
    """
    source: Path | io.BytesIO = path
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                source = _archived_weights(path, archive)
        # weights_only: an unpickler that makes tensors and plain containers and calls nothing else.
        return torch.load(source, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # Damaged bytes may make the readers raise anything.
        if isinstance(source, Path) and (state := _state_dict_alone(source)):
            return state
        raise WeightsError(_why_unreadable(path, error)) from error


def _archived_weights(path: Path, archive: zipfile.ZipFile) -> Path | io.BytesIO:
    """Return the weights file inside an archive, or the archive itself where it is one (torch.save writes zip too)."""
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(f"{path} is a TorchScript program. Give the state dict it was made from (.pt or .pth).")
    if any(name.endswith("/data.pkl") for name in names):
        return path
    # Nothing is unpacked to disk, but an archive that tries to leave its folder deserves no trust.
    if outside := [name for name in names if name[:1] in "/\\" or ".." in re.split(r"[/\\]", name) or name[1:2] == ":"]:
        raise WeightsError(f"{path} was refused: {some(outside)} in it points outside of the archive.")
    members = [
        member
        for member in archive.infolist()
        # macOS adds a folder of dotfiles with the same suffixes.
        if PurePosixPath(member.filename).suffix in (".pt", ".pth")
        and not PurePosixPath(member.filename).name.startswith(".")
    ]
    if len(members) != 1:
        raise WeightsError(
            f"{path} is an archive with {len(members)} weights files ({some(names) or 'it is empty'}); exactly one "
            ".pt or .pth file is needed. Unpack it and give the path of the file you mean."
        )
    if members[0].file_size > LARGEST_ARCHIVE_MEMBER:
        raise WeightsError(
            f"{path} was refused: {members[0].filename} in it takes {members[0].file_size:,} bytes. Unpack it yourself."
        )
    return io.BytesIO(archive.read(members[0]))


def _why_unreadable(path: Path, error: Exception) -> str:
    # torch's own messages advise weights_only=False: exactly what nobody should do with a file that was refused.
    if wanted := re.search(r"GLOBAL (\S+)", str(error)):
        if program := unsupported_program(wanted[1]):
            return program.refusal(path)
        return (
            f"{path} was refused: it holds a program, not only tensors (it asks for {wanted[1]}). "
            "Loading it could run anything. Get the weights from a source you trust, as a plain state dict."
        )
    damaged = isinstance(error, RuntimeError | EOFError | OSError | zipfile.BadZipFile)
    if damaged and "weights_only" not in str(error):
        reason = str(error).partition(". ")[0] or "it ends too early"
        return f"{path} cannot be read, perhaps it is truncated or damaged ({reason}). Download or copy it again."
    return (
        f"{path} is not a weights file ({type(error).__name__} while reading it). "
        "A .safetensors file of refinesam or a .pt or .pth file with a state dict is needed."
    )


class _Inert:
    """Stands for an object of a class that has no place in a state dict; whatever is done to it does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> _Inert:
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Forget the value."""

    def extend(self, values: object) -> None:
        """Forget the values."""

    def add(self, value: object) -> None:
        """Forget the value."""


class _StoredTensor(NamedTuple):
    """Where a tensor lies in the archive; only those of the state dict are read."""

    key: str
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self, archive: zipfile.ZipFile, folder: str) -> Tensor:
        member = archive.getinfo(f"{folder}/data/{self.key}")
        if member.file_size > LARGEST_ARCHIVE_MEMBER:
            raise ValueError(f"{member.filename} takes {member.file_size:,} bytes")
        storage = torch.frombuffer(bytearray(archive.read(member)), dtype=self.dtype)
        return storage.as_strided(self.size, self.stride, self.offset)


def _stored_tensor(storage: tuple[Any, ...], offset: int, size: Any, stride: Any, *_: object) -> _StoredTensor:
    return _StoredTensor(storage[2], storage[1], offset, tuple(size), tuple(stride))


def _stored_parameter(data: object, *_: object) -> object:
    return data


class _InertUnpickler(pickle.Unpickler):
    """Knows the few names that a state dict is made of; every other name is `_Inert`."""

    KNOWN = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _stored_tensor,
        ("torch._utils", "_rebuild_parameter"): _stored_parameter,
        ("torch", "FloatStorage"): torch.float32,
        ("torch", "HalfStorage"): torch.float16,
        ("torch", "BFloat16Storage"): torch.bfloat16,
        ("torch", "DoubleStorage"): torch.float64,
        ("torch", "LongStorage"): torch.int64,
    }

    def find_class(self, module: str, name: str) -> Any:
        return self.KNOWN.get((module, name), _Inert)

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _state_dict_alone(path: Path) -> dict[str, Tensor] | None:
    """Return the state dict of a trainer's checkpoint, None where the file is none or its state dict is not clean."""
    try:
        with zipfile.ZipFile(path) as archive:
            folder = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("/data.pkl")
            with archive.open(f"{folder}/data.pkl") as pickled:
                content = _InertUnpickler(pickled).load()
            state = state_dict_of(content)
            if not isinstance(state, Mapping) or not all(isinstance(value, _StoredTensor) for value in state.values()):
                return None
            return {str(key): stored.read(archive, folder) for key, stored in state.items()}
    except Exception:  # Whatever it is, torch's own reader has found it too, and its reason is told.
        return None


def some(names: Iterable[str]) -> str:
    """Join the first few names, and say how many there are further."""
    names = list(names)
    more = len(names) - NAMES_IN_A_MESSAGE
    return ", ".join(names[:NAMES_IN_A_MESSAGE]) + (f" and {more} more" if more > 0 else "")
