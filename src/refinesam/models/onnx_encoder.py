"""The image encoder by ONNX Runtime: sooner than by torch on a CPU.

The decoder stays with torch here: its prompts have any number of points, and little of a click is spent in it.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from refinesam.embeddings import EmbeddingStore
from refinesam.errors import ConfigError
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.onnx_export import INPUT, export_encoder

__all__ = ["OnnxEncoder", "installed"]


def installed() -> bool:
    """Whether what exports and what computes is there."""
    return all(find_spec(package) is not None for package in ("onnx", "onnxruntime"))


class OnnxEncoder:
    """An image encoder, computed by ONNX Runtime on the CPU. Thread-safe."""

    def __init__(self, encoder: nn.Module, input_size: int, store: EmbeddingStore, key: str) -> None:
        """Export or find, and load.

        Args:
            encoder: float32, on the CPU, in evaluation mode.
            input_size: side in pixels of its input.
            store: keeps what was exported, for exporting takes a second.
            key: of this encoder at this size, as the store takes it.

        Raises:
            ConfigError: ONNX or ONNX Runtime is not installed.
            OutputError: the encoder is too large for ONNX.
        """
        if not installed():
            raise ConfigError(
                "The backend 'onnx' needs ONNX and ONNX Runtime: pip install 'refinesam[onnx]', or use backend='torch'."
            )
        import onnxruntime

        kept = store.read(key)
        if kept is None:
            kept = {"onnx": np.frombuffer(export_encoder(encoder, input_size), np.uint8)}
            store.write(key, kept)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait must not take the cores from torch, which decodes in between.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = kept["onnx"].tobytes()
        self._session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    def __call__(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (1, 3, S, S), float32."""
        embedding, *high_res = map(torch.from_numpy, self._session.run(None, {INPUT: pixels.numpy()}))
        return ImageFeatures(embedding, tuple(high_res))
