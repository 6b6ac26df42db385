"""The image encoder by ONNX Runtime: sooner than by torch on a CPU.

The decoder stays with torch here: its prompts have any number of points, and little of a click is spent in it.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

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

    def __init__(
        self, encoder: nn.Module, input_size: int, store: EmbeddingStore, key: str, *, int8: bool = False
    ) -> None:
        """Export or find, and load.

        Args:
            encoder: float32, on the CPU, in evaluation mode.
            input_size: side in pixels of its input.
            store: keeps what was exported, for exporting takes a second.
            key: of this encoder at this size and precision, as the store takes it.
            int8: multiply matrices in 8 bits.

        Raises:
            ConfigError: ONNX or ONNX Runtime is not installed.
            OutputError: the encoder is too large for ONNX.
        """
        if not installed():
            raise ConfigError(
                f"The backend {'int8' if int8 else 'onnx'!r} needs ONNX and ONNX Runtime: "
                "pip install 'refinesam[onnx]', or use backend='torch'."
            )
        import onnxruntime

        kept = store.read(key)
        if kept is None:
            exported = export_encoder(encoder, input_size)
            kept = {"onnx": np.frombuffer(_in_int8(exported) if int8 else exported, np.uint8)}
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


def _in_int8(exported: bytes) -> bytes:
    """Quantise the matrices that the transformer multiplies by, a scale a column; activations as they come.

    Convolutions stay as they are: in 8 bits they put the features 10 to 35 % off.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        given, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "quantised"))
        given.write_bytes(exported)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantize_dynamic(
            prepared, quantised, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
        )
        return quantised.read_bytes()
