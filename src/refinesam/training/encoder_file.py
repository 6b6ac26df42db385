"""An image encoder's pretrained weights as a file of their own: no decoder, and none of what pretraining never saw."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from refinesam.errors import WeightsError
from refinesam.files import replacing
from refinesam.models.promptable import PromptableModel
from refinesam.weights import load_model

__all__ = ["load_encoder", "pretrained_keys", "save_encoder"]

METADATA_KEY = "refinesam_encoder"
# Behind the blocks, or beside them, where the pretraining's loss does not reach.
UNTRAINED = ("neck.", "high_res8.", "high_res4.")


def pretrained_keys(model: PromptableModel) -> list[str]:
    """Names of the tensors that pretraining trains, in `model.image_encoder`."""
    return [key for key in model.image_encoder.state_dict() if not key.startswith(UNTRAINED)]


def save_encoder(model: PromptableModel, path: Path, made_by: str) -> None:
    """Write what pretraining has trained of a model, float32 safetensors, atomically.

    Args:
        model: whose image encoder was pretrained.
        path: is replaced.
        made_by: the method, for people.

    Raises:
        WeightsError: a weight is NaN or infinite.
    """
    state = model.image_encoder.state_dict()
    tensors = {key: state[key].detach().to("cpu", torch.float32).contiguous() for key in pretrained_keys(model)}
    if broken := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"The encoder cannot be written to {path}: NaN or infinity in {broken[0]}. Train it again.")
    described = {"variant": model.config.name, "made_by": made_by}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(described)})


def load_encoder(model: PromptableModel, source: str | Path) -> None:
    """Put pretrained weights into a model's image encoder, in place.

    A file of `save_encoder` fills what was pretrained and leaves neck and high-resolution maps as they are; anything
    that `refinesam.load` takes gives its whole image encoder. No other key is skipped, none is missing.

    Args:
        model: of the variant that the weights were made for.
        source: path of a file, or the name of known weights.

    Raises:
        WeightsError: unknown or damaged weights, or weights of another variant.
    """
    encoder_file = _encoder_file(source)
    if encoder_file is None:
        whole = load_model(source)
        variant, tensors = whole.config.name, dict(whole.image_encoder.state_dict())
        wanted = list(model.image_encoder.state_dict())
    else:
        variant, tensors = encoder_file
        wanted = pretrained_keys(model)
    if variant != model.config.name:
        raise WeightsError(f"{source} is for the encoder of {variant}, needed is one of {model.config.name}.")
    state = model.image_encoder.state_dict()
    shapes = {key: tuple(state[key].shape) for key in wanted}
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != shapes:
        odd = sorted(tensors.keys() ^ shapes.keys()) or [k for k, t in tensors.items() if tuple(t.shape) != shapes[k]]
        raise WeightsError(f"{source} does not fit {variant}: see {odd[0]}. Another version wrote it: pretrain again.")
    with torch.no_grad():
        for key, tensor in tensors.items():
            state[key].copy_(tensor)


def _encoder_file(source: str | Path) -> tuple[str, dict[str, Tensor]] | None:
    """Return variant and tensors of a file of `save_encoder`; None for anything else."""
    try:
        with safe_open(source, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            if not isinstance(described, dict):
                return None
            return str(described.get("variant")), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return None  # load_model says what is wrong with it.
