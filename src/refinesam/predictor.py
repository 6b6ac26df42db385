"""The border between numpy and torch: preprocess, encode, decode, postprocess; and `load`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refinesam.errors import ConfigError, PromptError
from refinesam.models.frames import Frame
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT
from refinesam.models.promptable import PromptableModel
from refinesam.session import DEFAULT_CACHE_BYTES, Features, Session
from refinesam.types import BoolArray, FloatArray, Prompt
from refinesam.weights import load_model

__all__ = ["DtypeName", "Predictor", "load", "resolve_device"]

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


class Predictor:
    """A torch model as `refinesam.session.SegmentationModel`: numpy in original pixels on the outside."""

    def __init__(self, model: PromptableModel, name: str, device: torch.device, dtype: torch.dtype) -> None:
        """Put a `PromptableModel` on a device; the image encoder computes in dtype, the decoder in mixed precision."""
        self.name = name
        self.device, self.dtype = device, dtype
        self.model = model.eval().requires_grad_(False).to(device)
        self.model.image_encoder.to(dtype)
        self.config = self.model.config
        self.capabilities = self.config.capabilities

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> ImageFeatures:
        """Encode (H, W, 3) RGB."""
        pixels = Frame.of(self.config, image.shape[:2]).resize(image)
        features: ImageFeatures = self.model.encode(pixels[None].to(self.device, self.dtype))
        return features

    @torch.inference_mode()
    def decode(
        self, features: Features, image_hw: tuple[int, int], prompt: Prompt, multimask_output: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Decode one prompt into low-resolution logits (C, h, w) and predicted IoUs (C,)."""
        frame = Frame.of(self.config, image_hw)
        points, labels = self._points(prompt, frame)
        with self._autocast():
            logits, iou = self.model.decode(
                cast(ImageFeatures, features), points, labels, self._mask_logits(prompt, frame), multimask_output
            )
        return logits[0, 0].float().cpu().numpy(), iou[0, 0].float().cpu().numpy()

    @torch.inference_mode()
    def decode_points(self, features: Features, image_hw: tuple[int, int], points: FloatArray) -> tuple[Tensor, Tensor]:
        """Decode points (P, 2), each an object of its own, into logits (P, 3, h, w) and predicted IoUs (P, 3)."""
        frame = Frame.of(self.config, image_hw)
        coords = torch.from_numpy(frame.to_input(points)).to(self.device)[None, :, None]
        labels = torch.ones(coords.shape[:3], dtype=torch.int64, device=self.device)
        with self._autocast():
            logits, iou = self.model.decode(cast(ImageFeatures, features), coords, labels)
        return logits[0].float(), iou[0].float()

    @torch.inference_mode()
    def upsample(self, low_res_logits: FloatArray, image_hw: tuple[int, int]) -> BoolArray:
        """Turn low-resolution logits (C, h, w) into masks (C, H, W)."""
        logits = Frame.of(self.config, image_hw).upsample(torch.from_numpy(low_res_logits).to(self.device))
        return (logits > 0).cpu().numpy()

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

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def load(
    weights: str | Path = "builtin",
    *,
    device: str = "auto",
    dtype: DtypeName = "auto",
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> Session:
    """Load a model.

    Args:
        weights: a name of `refinesam weights list`, or the path of a file.
        device: "auto" (CUDA where there is a GPU, else the CPU) or a torch device.
        dtype: "auto" (float32 on the CPU, bfloat16 or else float16 on CUDA) or a name.
        cache_bytes: most bytes of image embeddings that the session keeps.

    Returns:
        A session.

    Raises:
        WeightsError: unknown, missing or damaged weights.
        ConfigError: no such device or dtype here.
    """
    chosen = resolve_device(device)
    return Session(Predictor(load_model(str(weights)), str(weights), chosen, _dtype(dtype, chosen)), cache_bytes)


def resolve_device(name: str) -> torch.device:
    """Return the device of that name, "auto" being CUDA where there is a GPU; ConfigError if it can't be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # torch asserts where it was built without CUDA.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"Device {name!r} can't be used here: {error}. Use 'auto' or 'cpu'.") from error
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError(f"dtype {name!r} is unknown; use 'auto' or one of {', '.join(known)}.")
    return known[name]
