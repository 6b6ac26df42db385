"""The image encoder as ONNX: to take elsewhere, and to compute sooner than torch does on a CPU.

The decoder stays with torch here: its prompts have any number of points, and little of a click is spent in it.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from refinesam.embeddings import EmbeddingStore
from refinesam.errors import ConfigError, OutputError
from refinesam.models.image_encoder import HybridEncoder, ImageFeatures

__all__ = ["OnnxEncoder", "export_encoder", "installed"]

INPUT = "pixels"
# The embedding, and the maps of the hybrid at strides 8 and 4.
OUTPUTS = ("embedding", "high_res8", "high_res4")
OPSET = 17


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


class _Maps(nn.Module):
    """Gives the maps as a tuple, which is what can be traced."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode normalised pixels (1, 3, S, S)."""
        features: ImageFeatures = self.encoder(pixels)
        return features.embedding, *features.high_res


def export_encoder(encoder: nn.Module, input_size: int) -> bytes:
    """Export an image encoder to ONNX.

    The input "pixels" is (1, 3, S, S) float32, normalised as `refinesam.models.frames.Frame.resize` does; the outputs
    are "embedding" (1, 256, S/16, S/16), and of the hybrid "high_res8" (1, 64, S/8, S/8) and "high_res4"
    (1, 32, S/4, S/4).

    Args:
        encoder: float32, on the CPU, in evaluation mode.
        input_size: S, in pixels.

    Returns:
        What a file of ONNX holds.

    Raises:
        OutputError: it is too large for one (2 GiB), as that of SAM ViT-H.
    """
    example = torch.zeros(1, 3, input_size, input_size)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        path = Path(folder) / "encoder.onnx"
        # Of values that the tracer takes as constants, which they are at one input size; and of the exporter's age:
        # torch's newer one takes forty times as long and needs two packages more.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _Maps(encoder),
                (example,),
                path,
                input_names=[INPUT],
                output_names=list(OUTPUTS if isinstance(encoder, HybridEncoder) else OUTPUTS[:1]),
                opset_version=OPSET,
                dynamo=False,
            )
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise OutputError(f"The image encoder cannot be exported to ONNX: {reason}") from error
        return path.read_bytes()
