"""Models as ONNX: the image encoder, and the prompt encoder with the mask decoder.

They are traced, so what the sizes of the examples decide would be fixed: each input has its name for what may vary.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from refinesam.errors import OutputError
from refinesam.models.image_encoder import PATCH_SIZE, HybridEncoder, ImageFeatures
from refinesam.models.prompt_encoder import PADDING, TOP_LEFT, EfficientSamPromptEncoder
from refinesam.models.promptable import PromptableModel
from refinesam.models.sam import Sam

__all__ = ["FEATURES", "INPUT", "export_decoder", "export_encoder"]

# By name, the sizes of an array; a name in a size's place may be any number.
Shapes = dict[str, tuple[int | str, ...]]

INPUT = "pixels"
# The embedding, and of the hybrid its maps at strides 8 and 4.
FEATURES = ("embedding", "high_res8", "high_res4")
# Where sizes are equal by chance, a trace goes the way of equal sizes: these are not.
EXAMPLES = {"images": 2, "prompts": 3, "points": 2}
OPSET = 17
# What one file of ONNX holds, less some room for the graph.
LARGEST_BYTES = 2**31 - 2**24


def export_encoder(encoder: nn.Module, input_size: int, images: int | None = 1) -> bytes:
    """Export an image encoder to ONNX.

    The input "pixels" is (B, 3, S, S) float32, normalised as `refinesam.models.frames.Frame.resize` does; the outputs
    are "embedding" (B, 256, S/16, S/16), and of the hybrid "high_res8" (B, 64, S/8, S/8) and "high_res4"
    (B, 32, S/4, S/4).

    Args:
        encoder: float32, on the CPU, in evaluation mode.
        input_size: S, in pixels.
        images: B; None for any number.

    Returns:
        What a file of ONNX holds.

    Raises:
        OutputError: it is too large for one (2 GiB), as that of SAM ViT-H, or holds what ONNX has no form for.
    """
    number = images or "images"
    outputs = _features(isinstance(encoder, HybridEncoder), input_size, number)
    return _traced(_Encoder(encoder), {INPUT: (number, 3, input_size, input_size)}, outputs, "image encoder")


def export_decoder(model: PromptableModel) -> bytes:
    """Export a model's prompt encoder and mask decoder to ONNX, for any number of prompts P of T points on one image.

    The inputs are one image's features as of `export_encoder`, "points" (P, T, 2) float32 in pixels of the model's
    input, "labels" (P, T) int64 as `PromptableModel.decode` takes them, and "mask_logits" (P, S/4, S/4) float32 where
    the model takes a mask prompt; a map that is all zero is none. T is at least 1; a point of label -1 is none. The
    outputs are "low_res_logits" (P, 3, S/4, S/4) and "iou_predictions" (P, 3). Each prompt is answered as it is alone.

    Args:
        model: float32, on the CPU, in evaluation mode.

    Returns:
        What a file of ONNX holds.

    Raises:
        OutputError: it holds what ONNX has no form for.
    """
    side, masks = model.config.input_size, model.config.input_size // 4
    inputs: Shapes = {"points": ("prompts", "points", 2), "labels": ("prompts", "points")}
    if model.config.capabilities.mask_prompt:
        inputs["mask_logits"] = ("prompts", masks, masks)
    inputs |= _features(model.config.family == "hybrid", side, 1)
    outputs: Shapes = {"low_res_logits": ("prompts", 3, masks, masks), "iou_predictions": ("prompts", 3)}
    return _traced(_Decoder(model), inputs, outputs, "mask decoder")


def _features(hybrid: bool, side: int, images: int | str) -> Shapes:
    shapes = [(images, channels, side // stride, side // stride) for channels, stride in ((256, 16), (64, 8), (32, 4))]
    return dict(zip(FEATURES, shapes if hybrid else shapes[:1], strict=False))


class _Encoder(nn.Module):
    """Gives the maps as a tuple, which is what can be traced."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode normalised pixels (B, 3, S, S)."""
        features: ImageFeatures = self.encoder(pixels)
        return features.embedding, *features.high_res


class _Decoder(nn.Module):
    """Decodes on one image, without a decision that depends on the prompts: a trace would keep the first."""

    def __init__(self, model: PromptableModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, points: Tensor, labels: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        """Decode points (P, T, 2) with labels (P, T), mask logits (P, S/4, S/4) where the model takes some."""
        points, labels = points[None], labels[None]
        mask_logits = None
        if self.model.config.capabilities.mask_prompt:
            mask_logits, rest = rest[0][None], rest[1:]
        features = ImageFeatures(rest[0], rest[1:])
        if isinstance(self.model, Sam):
            assert mask_logits is not None
            logits, iou = _decode_by_sam(self.model, features, points, labels, mask_logits)
        else:
            if self.model.config.family == "efficientsam":
                points, labels = _six_points(points, labels)
            logits, iou = self.model.decode(features, points, labels, mask_logits)
        return logits[0], iou[0]


def _six_points(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Pad as EfficientSAM does, but refuse more than it takes: padding by less than nothing would leave points out."""
    missing = (*labels.shape[:2], EfficientSamPromptEncoder.max_points - labels.shape[2])
    points = points.masked_fill((labels == PADDING).unsqueeze(-1), -1.0)
    points = torch.cat([points, torch.full((*missing, 2), -1.0)], dim=2)
    return points, torch.cat([labels, torch.full(missing, PADDING)], dim=2)


def _decode_by_sam(
    model: Sam, features: ImageFeatures, points: Tensor, labels: Tensor, mask_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Answer each prompt as `Sam.decode` does alone: clicks without a box have one token of padding, others none."""
    given = labels != PADDING
    clicks_alone = given.any(-1, keepdim=True) & ~(labels == TOP_LEFT).any(-1, keepdim=True)
    points, labels = F.pad(points, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=PADDING)
    encoder, side = model.prompt_encoder, features.embedding.shape[-1]
    sparse = encoder.embed_points(points, labels, side * PATCH_SIZE, encoder.not_a_point_embed.weight)
    has_mask = (mask_logits != 0).flatten(2).any(-1)[..., None, None, None]
    dense = torch.where(has_mask, encoder.embed_masks(mask_logits), encoder.embed_masks(None))
    valid = torch.cat([given, clicks_alone], dim=-1)
    logits, iou = model.mask_decoder(features, encoder.pe_layer.grid(side), sparse, dense, True, valid)
    return logits, iou


class _Exportable(TorchFunctionMode):
    """Says in other words what the exporter has no form for, or (unflatten) forgets after which sizes vary."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.unflatten:
            x, dim, sizes = args
            dim %= x.ndim
            return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])
        if func == Tensor.mT.__get__:  # type: ignore[attr-defined]
            return args[0].transpose(-2, -1)
        if func is Tensor.diff:
            x, dim = args[0], kwargs["dim"]
            return x.narrow(dim, 1, x.shape[dim] - 1) - x.narrow(dim, 0, x.shape[dim] - 1)
        return func(*args, **kwargs)


def _traced(module: nn.Module, inputs: Shapes, outputs: Shapes, what: str) -> bytes:
    size = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if size > LARGEST_BYTES:
        raise OutputError(
            f"The {what} cannot be exported to ONNX: its weights have {size / 1e9:.1f} GB and one file holds 2 GB. "
            "Take a smaller model."
        )
    example = tuple(
        torch.zeros(
            [side if isinstance(side, int) else EXAMPLES[side] for side in shape],
            dtype=torch.int64 if name == "labels" else torch.float32,
        )
        for name, shape in inputs.items()
    )
    vary = {name: {i: side for i, side in enumerate(shape) if isinstance(side, str)} for name, shape in inputs.items()}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        path = Path(folder) / "model.onnx"
        # Of values that the tracer takes as constants, which they are at one input size; and of the exporter's age:
        # torch's newer one takes forty times as long and needs two packages more.
        warnings.simplefilter("ignore")
        try:
            with _Exportable():
                # In evaluation mode itself: the exporter leaves all that is in the module in the module's own.
                torch.onnx.export(
                    module.eval(),
                    example,
                    path,
                    input_names=list(inputs),
                    output_names=list(outputs),
                    dynamic_axes={name: axes for name, axes in vary.items() if axes},
                    opset_version=OPSET,
                    dynamo=False,
                )
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise OutputError(f"The {what} cannot be exported to ONNX: {reason}") from error
        return _with_output_shapes(path, outputs)


def _with_output_shapes(path: Path, outputs: Shapes) -> bytes:
    """Say the outputs' sizes, which the exporter loses where one size may vary."""
    import onnx

    model = onnx.load_model(path)
    for value in model.graph.output:
        for dim, side in zip(value.type.tensor_type.shape.dim, outputs[value.name], strict=True):
            if isinstance(side, int):
                dim.dim_value = side
            else:
                dim.dim_param = side
    return bytes(model.SerializeToString())
