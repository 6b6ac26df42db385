"""The image encoder as ONNX: to take elsewhere, and to compute sooner than torch does on a CPU.

The decoder stays with torch here: its prompts have any number of points, and little of a click is spent in it.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refinesam.errors import ConfigError, OutputError
from refinesam.files import writing
from refinesam.models.image_encoder import ImageFeatures

__all__ = ["OnnxEncoder", "export_encoder", "installed"]

INPUT = "pixels"
# The embedding, and the maps of the hybrid at strides 8 and 4.
OUTPUTS = ("embedding", "high_res8", "high_res4")
OPSET = 17

_log = logging.getLogger(__name__)


def installed() -> bool:
    """Whether what exports and what computes is there."""
    return all(find_spec(package) is not None for package in ("onnx", "onnxruntime"))


class OnnxEncoder:
    """An image encoder, computed by ONNX Runtime on the CPU. Thread-safe."""

    def __init__(self, encoder: nn.Module, input_size: int, kept: Path) -> None:
        """Export or find, and load.

        Args:
            encoder: float32, on the CPU, in evaluation mode.
            input_size: side in pixels of its input.
            kept: the file of this encoder at this size; written if it is missing, for exporting takes a second.

        Raises:
            ConfigError: ONNX or ONNX Runtime is not installed.
            OutputError: the encoder is too large for ONNX.
        """
        if not installed():
            raise ConfigError(
                "The backend 'onnx' needs ONNX and ONNX Runtime: pip install 'refinesam[onnx]', or use backend='torch'."
            )
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait must not take the cores from torch, which decodes in between.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def loaded(content: bytes) -> Any:
            return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

        try:
            self._session = loaded(kept.read_bytes())
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            if kept.exists():
                _log.warning("%s is damaged and is made again: %s", kept, str(error).partition("\n")[0])
            content = export_encoder(encoder, input_size)
            self._session = loaded(content)
            _keep(content, kept)

    def __call__(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (1, 3, S, S), float32."""
        embedding, *high_res = map(torch.from_numpy, self._session.run(None, {INPUT: pixels.numpy()}))
        return ImageFeatures(embedding, tuple(high_res))


def _keep(content: bytes, path: Path) -> None:
    try:
        with writing(path) as temporary:
            temporary.write_bytes(content)
    except OutputError as error:  # The next process exports again.
        _log.warning("The encoder as ONNX is not kept: %s", error)


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
    maps = _Maps(encoder)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        path = Path(folder) / "encoder.onnx"
        # Of values that the tracer takes as constants, which they are at one input size; and of the exporter's age:
        # torch's newer one takes forty times as long and needs two packages more.
        warnings.simplefilter("ignore")
        names = list(OUTPUTS[: len(maps(example))])
        try:
            torch.onnx.export(
                maps,
                (example,),
                path,
                input_names=[INPUT],
                output_names=names,
                opset_version=OPSET,
                dynamo=False,
            )
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise OutputError(f"The image encoder cannot be exported to ONNX: {reason}") from error
        return path.read_bytes()
