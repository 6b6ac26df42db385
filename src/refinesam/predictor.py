"""The border between numpy and torch: preprocess, encode, decode, postprocess."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refinesam.embeddings import EmbeddingStore, Features
from refinesam.errors import ConfigError, PromptError, WeightsError
from refinesam.models import onnx_backend
from refinesam.models.config import ModelConfig
from refinesam.models.frames import Frame
from refinesam.models.image_encoder import PATCH_SIZE, ImageFeatures
from refinesam.models.layers import fold_norms
from refinesam.models.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT
from refinesam.models.promptable import PromptableModel
from refinesam.registry import cache_dir, find_entry, weights_path
from refinesam.types import BoolArray, FloatArray, OnProgress, Prompt
from refinesam.weights import load_model

__all__ = ["Backend", "BackendName", "Origin", "Predictor"]

# What computes.
Backend = Literal["torch", "onnx", "int8"]
BackendName = Literal["auto", "torch", "onnx", "int8"]

# Boxes decoded together. On a CPU of one thread, 8 took a quarter less CPU time than one by one, and 16 more again.
BOXES_ON_CPU, BOXES_ON_GPU = 8, 64

# Of exported models on disk; each has the size of its weights.
ONNX_CACHE_BYTES = 2**29

# Of the encode that runs in this thread: the encoder's blocks, whose hooks ask for it, serve all threads.
_ON_PROGRESS: ContextVar[OnProgress | None] = ContextVar("_ON_PROGRESS", default=None)


@dataclass(frozen=True)
class Origin:
    """What it takes to load a model again.

    Attributes:
        weights: their name, or the absolute path of their file.
        file: the file that was loaded.
        stamp: its size and time of change, by which another one is told.
        device: of torch.
        dtype: of torch.
        input_size: as `load` takes it.
        backend: as `load` takes it; "auto" is ONNX Runtime where it is installed, on a CPU, for our models.
    """

    weights: str
    file: Path
    stamp: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    input_size: int | None = None
    backend: BackendName = "torch"

    @classmethod
    def of(
        cls,
        weights: str,
        device: torch.device,
        dtype: torch.dtype,
        input_size: int | None = None,
        backend: BackendName = "torch",
    ) -> Origin:
        """Find the file of some weights."""
        file = weights_path(weights).absolute()
        name = weights if find_entry(weights) else str(file)
        return cls(name, file, _stamp(file), device, dtype, input_size, backend)

    def load(self, name: str) -> Predictor:
        """Load the model, under the name that the user gave it.

        Raises:
            ConfigError: the input size is none.
            WeightsError: the weights are unknown, missing or damaged.
        """
        size = self.input_size
        if size is not None and (type(size) is not int or size <= 0 or size % PATCH_SIZE):
            raise ConfigError(f"input_size is {size!r}; a positive multiple of {PATCH_SIZE} is needed.")
        model = load_model(self.weights)
        model.config = replace(model.config, input_size=size or model.config.input_size)
        return Predictor(model, name, self.device, self.dtype, self, self._backend_for(model.config))

    def _backend_for(self, config: ModelConfig) -> Backend:
        if self.backend != "auto":
            return self.backend
        # The plain ViTs are as fast by torch, and SAM's large ones take so long that people want to see progress.
        fit = self.device.type == "cpu" and self.dtype == torch.float32 and config.family == "hybrid"
        return "onnx" if fit and onnx_backend.installed() else "torch"


class Predictor:
    """A torch model as `refinesam.encoded_image.SegmentationModel`: numpy in original pixels on the outside."""

    def __init__(
        self,
        model: PromptableModel,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        origin: Origin | None = None,
        backend: Backend = "torch",
    ) -> None:
        """Put a `PromptableModel` on a device; the image encoder computes in dtype, the decoder in mixed precision.

        Raises:
            ConfigError: ONNX Runtime is asked for and not installed, or for another device or dtype.
            OutputError: the encoder is too large for ONNX.
        """
        self.name, self.origin, self.backend = name, origin, backend
        self._process = os.getpid()
        self.device, self.dtype = device, dtype
        self.model = model.eval().requires_grad_(False).to(device)
        self.config = self.model.config
        fold_norms(self.model.image_encoder)
        self.model.image_encoder.to(dtype)
        self._encoder: onnx_backend.OnnxEncoder | None = None
        self._decoder: onnx_backend.OnnxDecoder | None = None
        if backend != "torch":
            self._encoder, self._decoder = self._by_onnx()
        self.capabilities = self.config.capabilities
        blocks = cast(nn.ModuleList, self.model.image_encoder.blocks)
        self._blocks = len(blocks)
        for done, block in enumerate(blocks, start=1):
            block.register_forward_hook(partial(_report, done, len(blocks)))

    def _by_onnx(self) -> tuple[onnx_backend.OnnxEncoder, onnx_backend.OnnxDecoder]:
        if self.device.type != "cpu" or self.dtype != torch.float32:
            raise ConfigError(
                f"The backend {self.backend!r} needs the CPU and the dtype float32: use backend='torch' for others."
            )
        onnx_backend.check_installed(self.backend)
        store = EmbeddingStore(cache_dir() / "onnx", ONNX_CACHE_BYTES)
        exporter = hashlib.blake2b(torch.__version__.encode(), digest_size=16).hexdigest()
        encoder = onnx_backend.OnnxEncoder(
            self.model, store, f"{self.fingerprint}-{exporter}", int8=self.backend == "int8"
        )
        tensors = self.model.state_dict().items()
        decoding = {name: tensor for name, tensor in tensors if not name.startswith("image_encoder.")}
        decoder = _digest((self.config, version("refinesam")), decoding)
        return encoder, onnx_backend.OnnxDecoder(self.model, store, f"{decoder}-{exporter}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it takes to load the model again."""
        if self.origin is None:
            raise ConfigError(f"The model {self.name} was not loaded by refinesam.load and cannot be sent elsewhere.")
        return _loaded_here, (self.name, self.origin)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise ConfigError(
                f"This process was forked from {self._process}, where {self.name} was loaded; a forked process has no "
                "threads to compute with, and would wait for them for ever. Start processes by multiprocessing's "
                '"spawn" or "forkserver" and send them the session, or load in each of them.'
            )

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of all that decides on an image's features: weights, variant, size, dtype, version."""
        setting = (self.config, str(self.dtype), self.backend, self.device.type, version("refinesam"))
        return _digest(setting, self.model.image_encoder.state_dict())

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8], on_progress: OnProgress | None = None) -> ImageFeatures:
        """Encode (H, W, 3) RGB; on_progress is called with the image encoder's blocks done so far and their number.

        ONNX Runtime tells of none but the last.
        """
        self._check_process()
        pixels = Frame.of(self.config, image.shape[:2]).resize(image)
        token = _ON_PROGRESS.set(on_progress)
        try:
            encode = self.model.encode if self._encoder is None else self._encoder
            features = encode(pixels[None].to(self.device, self.dtype))
        finally:
            _ON_PROGRESS.reset(token)
        if self._encoder is not None and on_progress is not None:
            on_progress(self._blocks, self._blocks)
        # In one memory layout: fresh and from a store, the same bits are decoded by the same kernels.
        return ImageFeatures(features.embedding.contiguous(), tuple(m.contiguous() for m in features.high_res))

    def features_to_arrays(self, features: Features) -> dict[str, NDArray[np.uint8]]:
        """Turn maps into bytes (B, C, h, bytes of w values) by number: NumPy has no bfloat16."""
        maps = cast(ImageFeatures, features)
        return {str(i): _as_bytes(m) for i, m in enumerate((maps.embedding, *maps.high_res))}

    @torch.inference_mode()
    def features_from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> ImageFeatures:
        """Undo `features_to_arrays`."""
        # Copies: a file's arrays are read-only, and not aligned as torch's own.
        maps = [torch.tensor(arrays[str(i)]).view(self.dtype).to(self.device) for i in range(len(arrays))]
        return ImageFeatures(maps[0], tuple(maps[1:]))

    @torch.inference_mode()
    def decode(
        self, features: Features, image_hw: tuple[int, int], prompt: Prompt, multimask_output: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Decode one prompt into low-resolution logits (C, h, w) and predicted IoUs (C,)."""
        self._check_process()
        frame = Frame.of(self.config, image_hw)
        points, labels = self._points(prompt, frame)
        logits, iou = self._decoded(features, points, labels, self._mask_logits(prompt, frame), multimask_output)
        return logits[0, 0].float().cpu().numpy(), iou[0, 0].float().cpu().numpy()

    @torch.inference_mode()
    def decode_points(self, features: Features, image_hw: tuple[int, int], points: FloatArray) -> tuple[Tensor, Tensor]:
        """Decode points (P, 2), each an object of its own, into logits (P, 3, h, w) and predicted IoUs (P, 3)."""
        self._check_process()
        frame = Frame.of(self.config, image_hw)
        coords = torch.from_numpy(frame.to_input(points)).to(self.device)[None, :, None]
        labels = torch.ones(coords.shape[:3], dtype=torch.int64, device=self.device)
        logits, iou = self._decoded(features, coords, labels)
        return logits[0].float(), iou[0].float()

    @torch.inference_mode()
    def decode_boxes(
        self, features: Features, image_hw: tuple[int, int], boxes: FloatArray, multimask_output: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Decode boxes (N, 4), each an object of its own, into logits (N, C, h, w) and predicted IoUs (N, C)."""
        self._check_process()
        frame = Frame.of(self.config, image_hw)
        height, width = image_hw
        corners = np.clip(boxes, 0, np.array([width, height] * 2, np.float32)).reshape(-1, 2)
        coords = torch.tensor(frame.to_input(corners), device=self.device).reshape(1, -1, 2, 2)
        labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=self.device).expand(1, len(boxes), 2)
        logits, ious = [], []
        together = BOXES_ON_CPU if self.device.type == "cpu" else BOXES_ON_GPU
        for start in range(0, len(boxes), together):
            part = slice(start, start + together)
            parts = self._decoded(features, coords[:, part], labels[:, part], None, multimask_output)
            logits.append(parts[0][0].float().cpu().numpy())
            ious.append(parts[1][0].float().cpu().numpy())
        return np.concatenate(logits), np.concatenate(ious)

    @torch.inference_mode()
    def upsample(self, low_res_logits: FloatArray, image_hw: tuple[int, int]) -> BoolArray:
        """Turn low-resolution logits (C, h, w) into masks (C, H, W)."""
        frame = Frame.of(self.config, image_hw)
        if self.device.type == "cpu":
            return frame.masks(low_res_logits)
        return (frame.upsample(torch.from_numpy(low_res_logits).to(self.device)) > 0).cpu().numpy()

    def value_at(self, low_res_logits: FloatArray, image_hw: tuple[int, int], points: FloatArray) -> FloatArray:
        """Read logits (C, h, w) at image points (N, 2): (C, N)."""
        side = low_res_logits.shape[-1]
        cells = Frame.of(self.config, image_hw).to_input(points) * (side / self.config.input_size)
        x, y = np.clip(cells.astype(np.int64), 0, side - 1).T
        return low_res_logits[:, y, x]

    def _points(self, prompt: Prompt, frame: Frame) -> tuple[Tensor, Tensor]:
        """Box corners and clicks as (1, 1, T, 2) input pixels and (1, 1, T) labels."""
        points, labels = prompt.points, prompt.labels
        if prompt.box is not None:
            height, width = frame.image_hw
            box = np.clip(prompt.box, 0, np.array([width, height] * 2, np.float32))
            points = np.concatenate([box.reshape(2, 2), points])
            labels = np.concatenate([[TOP_LEFT, BOTTOM_RIGHT], labels])
        # Copies: a prompt's arrays are read-only, which torch does not know.
        coords = torch.tensor(frame.to_input(points), device=self.device)
        return coords[None, None], torch.tensor(labels, device=self.device)[None, None]

    def _mask_logits(self, prompt: Prompt, frame: Frame) -> Tensor | None:
        if prompt.mask is not None:
            logits = frame.from_mask(prompt.mask)
        elif prompt.mask_logits is not None:
            logits, side = prompt.mask_logits, self.config.input_size // 4
            if logits.shape != (side, side):
                raise PromptError(
                    f"mask_logits have shape {logits.shape}, {self.name} needs {(side, side)}: one mask of an earlier "
                    "prediction's low_res_logits."
                )
        else:
            return None
        return torch.tensor(logits, device=self.device)[None, None]

    def _decoded(
        self,
        features: Features,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        decode = self.model.decode if self._decoder is None else self._decoder
        with self._autocast():
            return decode(cast(ImageFeatures, features), points, labels, mask_logits, multimask_output)

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)  # A pool's process gets the same session with every task.
def _loaded_here(name: str, origin: Origin) -> Predictor:
    """Load a model that another process loaded."""
    if find_entry(origin.weights) is None and _stamp(origin.file) != origin.stamp:
        raise WeightsError(f"{origin.file} has changed since it was loaded: load it anew with refinesam.load.")
    return origin.load(name)


def _report(done: int, total: int, *_: object) -> None:
    """Forward hook of an encoder's block."""
    if (on_progress := _ON_PROGRESS.get()) is not None:
        on_progress(done, total)


def _digest(setting: object, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(repr(setting).encode(), digest_size=16)
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(_as_bytes(tensor).data)
    return digest.hexdigest()


def _as_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
