"""A model by ONNX Runtime: sooner than by torch on a CPU, above all beside other work.

torch's threads spin while they wait for each other, and a process beside them that needs a core makes each wait long.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refinesam.embeddings import EmbeddingStore
from refinesam.errors import ConfigError
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.onnx_export import FEATURES, INPUT, export_decoder, export_encoder
from refinesam.models.prompt_encoder import PADDING
from refinesam.models.promptable import PromptableModel

__all__ = ["OnnxDecoder", "OnnxEncoder", "check_installed", "installed"]


def installed() -> bool:
    """Whether what exports and what computes is there."""
    return all(find_spec(package) is not None for package in ("onnx", "onnxruntime"))


def check_installed(backend: str) -> None:
    """Raise ConfigError if ONNX or ONNX Runtime is not installed."""
    if not installed():
        raise ConfigError(
            f"The backend {backend!r} needs ONNX and ONNX Runtime: pip install 'refinesam[onnx]', or use "
            "backend='torch'."
        )


class OnnxEncoder:
    """A model's image encoder, computed by ONNX Runtime on the CPU. Thread-safe."""

    def __init__(self, model: PromptableModel, store: EmbeddingStore, key: str, *, int8: bool = False) -> None:
        """Export or find, and load.

        Args:
            model: float32, on the CPU, in evaluation mode.
            store: keeps what was exported, for exporting takes a second.
            key: of this encoder at this size and precision, as the store takes it.
            int8: multiply matrices in 8 bits.

        Raises:
            OutputError: the encoder is too large for ONNX.
        """

        def export() -> bytes:
            exported = export_encoder(model.image_encoder, model.config.input_size)
            return _in_int8(exported) if int8 else exported

        self._session = _loaded(store, key, export)

    def __call__(self, pixels: Tensor) -> ImageFeatures:
        """Encode normalised pixels (1, 3, S, S), float32."""
        embedding, *high_res = map(torch.from_numpy, self._session.run(None, {INPUT: pixels.numpy()}))
        return ImageFeatures(embedding, tuple(high_res))


class OnnxDecoder:
    """A model's prompt encoder and mask decoder, computed by ONNX Runtime on the CPU. Thread-safe."""

    def __init__(self, model: PromptableModel, store: EmbeddingStore, key: str) -> None:
        """Export or find, and load: see `OnnxEncoder`."""
        self._model, self._side = model, model.config.input_size // 4
        self._session = _loaded(store, key, lambda: export_decoder(model))
        self._takes_masks = model.config.capabilities.mask_prompt

    def __call__(
        self,
        features: ImageFeatures,
        points: Tensor,
        labels: Tensor,
        mask_logits: Tensor | None = None,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts on one image, as `PromptableModel.decode` does."""
        if not multimask_output:  # Three masks are what was exported.
            return self._model.decode(features, points, labels, mask_logits, multimask_output)
        if not labels.shape[-1]:
            points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=PADDING)
        given = dict(zip(FEATURES, (features.embedding, *features.high_res), strict=False))
        given |= {"points": points[0], "labels": labels[0]}
        if self._takes_masks:
            given["mask_logits"] = (
                torch.zeros(labels.shape[1], self._side, self._side) if mask_logits is None else mask_logits[0]
            )
        found = self._session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        logits, iou = map(torch.from_numpy, found)
        return logits[None], iou[None]


def _loaded(store: EmbeddingStore, key: str, export: Callable[[], bytes]) -> Any:
    """Return ONNX Runtime's session of what a store keeps, or else is exported now and kept."""
    import onnxruntime

    kept = store.read(key)
    if kept is None:
        kept = {"onnx": np.frombuffer(export(), np.uint8)}
        store.write(key, kept)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait must not take the cores from torch, which computes in between, nor from other processes.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(kept["onnx"].tobytes(), settings, providers=["CPUExecutionProvider"])


def _in_int8(exported: bytes) -> bytes:
    """Quantise the matrices that the transformer multiplies by, a scale a column; activations as they come.

    Convolutions stay as they are: in 8 bits they put the features far off.
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
