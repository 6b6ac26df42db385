"""`load`: from the name of some weights to a session on a device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from refinesam.embeddings import EmbeddingStore, check_bytes
from refinesam.errors import ConfigError
from refinesam.predictor import BackendName, Origin
from refinesam.session import DEFAULT_CACHE_BYTES, Session
from refinesam.threads import check_threads

__all__ = ["DtypeName", "device_of_rank", "load", "resolve_device", "resolve_dtype"]

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
BACKEND_VARIABLE = "REFINESAM_BACKEND"
DEFAULT_DISK_CACHE_BYTES = 4 * 2**30


def load(
    weights: str | Path = "builtin",
    *,
    device: str = "auto",
    dtype: DtypeName = "auto",
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    cache_dir: str | Path | None = None,
    disk_cache_bytes: int = DEFAULT_DISK_CACHE_BYTES,
    threads: int | None = None,
    input_size: int | None = None,
    backend: BackendName = "auto",
) -> Session:
    """Load a model.

    Args:
        weights: a name of `refinesam weights list`, or the path of a file.
        device: "auto" (CUDA where there is a GPU, else the CPU) or a torch device.
        dtype: "auto" (float32 on the CPU, bfloat16 or else float16 on CUDA) or a name.
        cache_bytes: most bytes of image embeddings that the session keeps in memory.
        cache_dir: folder that keeps embeddings on disk too, for later sessions with the same model; None means none.
            It is made where it is missing; a full or read-only disk costs a logged warning, not the answer.
        disk_cache_bytes: most bytes of embeddings in that folder; the least recently used go first.
        threads: that torch computes with on the CPU, in this whole process; None leaves them as they are. Fewer are
            faster beside other work; a process of your own is best begun with `refinesam.settle_threads`.
        input_size: side in pixels of the square that images are fitted into, a multiple of 16; None is the size that
            the weights are for. A larger one shows small objects better and takes longer; far from it, masks get worse.
        backend: what computes on a CPU. "auto" is $REFINESAM_BACKEND where that is set, else ONNX Runtime where it is
            installed (``pip install 'refinesam[onnx]'``) and the dtype is float32, for our own models; "torch" or
            "onnx" is that one, and masks agree but for the last digits of logits. "int8" is ONNX Runtime with the
            encoder's matrices in 8 bits: faster where the CPU has instructions for that, as accurate on average, with
            other pixels at rims. `session.model.backend` says which it is; the first load on a machine takes seconds
            longer.

    Returns:
        A session.

    Raises:
        WeightsError: unknown, missing or damaged weights.
        ConfigError: no such device, dtype or backend here, or a number of threads or an input size that is none.
    """
    if threads is not None:
        torch.set_num_threads(check_threads(threads))
    check_bytes("cache_bytes", cache_bytes)
    chosen = resolve_device(device)
    kind = resolve_dtype(dtype, chosen)
    store = None if cache_dir is None else EmbeddingStore(cache_dir, disk_cache_bytes)
    origin = Origin.of(str(weights), chosen, kind, input_size, _resolve_backend(backend))
    return Session(origin.load(str(weights)), cache_bytes, store)


def _resolve_backend(name: str) -> BackendName:
    chosen = name if name != "auto" else os.environ.get(BACKEND_VARIABLE) or "auto"
    if chosen not in get_args(BackendName):
        raise ConfigError(f"backend is {chosen!r}; use one of {', '.join(get_args(BackendName))}.")
    return cast(BackendName, chosen)


def resolve_device(name: str) -> torch.device:
    """Return the device of that name, "auto" being CUDA where there is a GPU; ConfigError if it can't be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # What it holds has to come back: not everything that torch calls a device computes.
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # torch raises whatever its backends stumble on, also assertions and TypeErrors
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"Device {name!r} can't be used here: {reason} Use 'auto' or 'cpu'.") from error
    return device


def device_of_rank(name: str, rank: int) -> str:
    """Return the device of one of several processes: "auto" and "cuda" deal the GPUs out by the process's number."""
    if name not in ("auto", "cuda") or (device := resolve_device(name)).type != "cuda":
        return name
    return f"{device.type}:{rank % torch.cuda.device_count()}"


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name, "auto" being what the device computes best; ConfigError if there is none."""
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"dtype {name!r} is unknown; use 'auto' or one of {', '.join(known)}.")
    return known[name]
