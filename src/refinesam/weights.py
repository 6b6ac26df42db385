"""From a weights file to a model, and back.

Read are refinesam's own safetensors, and the state dicts of others in the layouts of `refinesam.models.layouts`, as
.pt, .pth, .bin or .safetensors, also in a zip archive. Nothing that a file holds is ever executed, and every tensor has
to fit: no key is skipped, none is left at random.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from refinesam.errors import WeightsError
from refinesam.files import writing
from refinesam.models.build import build_model
from refinesam.models.checkpoints import read_torch, some
from refinesam.models.config import CONFIGS, ModelConfig, config_named
from refinesam.models.image_encoder import PATCH_SIZE
from refinesam.models.layouts import in_our_names, state_dict_of
from refinesam.models.promptable import PromptableModel
from refinesam.models.unsupported import unsupported_model
from refinesam.registry import WeightsSource, find_entry, weights_path

__all__ = ["load_model", "rounded", "save_weights", "variant_of"]

METADATA_KEY = "refinesam"


def save_weights(model: PromptableModel, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a model's weights, its variant and its input size as safetensors, atomically.

    Args:
        model: made by `refinesam.models.build.build_model`.
        path: is replaced; missing folders are made.
        dtype: of the stored tensors; `load_model` gives float32 again.

    Raises:
        WeightsError: a weight is NaN or infinite, or too large for `dtype`.
        OutputError: the file cannot be written.
    """
    config = model.config
    tensors = {
        key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for key, tensor in model.state_dict().items()
    }
    if broken := [key for key, tensor in tensors.items() if not _is_finite(tensor)]:
        raise WeightsError(
            f"The model cannot be written to {path}: NaN or infinity as {dtype} in {some(broken)}. "
            "Save with dtype=torch.float32 if the numbers are only too large, else train again from an earlier state."
        )
    described = {"variant": config.name, "input_size": config.input_size}
    with writing(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(described)})


def rounded(value: Tensor) -> Tensor:
    """Round to fp16 whose two last bits are zero: as good for weights, and a tenth smaller in an archive."""
    # Sign and magnitude: a carry goes to the exponent, as it should.
    return ((value.half().view(torch.int16) + 2) & ~3).view(torch.float16)


def variant_of(weights: WeightsSource) -> tuple[str, int]:
    """Return the model variant of some weights and the side of its input in pixels, which finetuning is told.

    Raises:
        WeightsError: as `load_model`.
    """
    config = load_model(weights).config
    return config.name, config.input_size


def load_model(weights: WeightsSource) -> PromptableModel:
    """Load a model in evaluation mode: float32, on the CPU, parameters ready to be trained.

    The variant is told by the file's own metadata, else by the registered name, else by the keys and shapes.

    Args:
        weights: a name of `refinesam.registry.REGISTRY`, which is downloaded where needed, or the path of a file.

    Returns:
        A `refinesam.models.build.PromptableModel`; it does not depend on the file afterwards.

    Raises:
        WeightsError: unknown or damaged weights, a file that is none, or one whose keys, shapes or numbers don't fit.
    """
    entry = find_entry(weights)
    path = weights_path(weights)
    state, config = _read(path)
    if config is None:
        state = _in_our_names(path, state)
        config = config_named(entry.variant) if entry else _recognised(path, state)
    model = _uninitialised_model(config)
    _check_fit(path, config.name, state, _shapes_of(model))
    counters = {key for key, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    model.load_state_dict(_float32(path, state, counters), strict=True, assign=True)
    return model.eval()


def _read(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    """Return a file's state dict, and its configuration where the file tells it. The content counts, not the suffix."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error}). Check that it is a file you may read.") from error
    if not start:
        raise WeightsError(f"{path} is empty. Download or copy it again.")
    # A safetensors file begins with the length of its JSON header, eight bytes.
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _state_dict(path, read_torch(path)), None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelConfig | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            config = _described(path, metadata) if METADATA_KEY in metadata else None
            return {key: file.get_tensor(key) for key in file.keys()}, config  # noqa: SIM118  # it is no dict
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}). Download or copy it again.") from error


def _described(path: Path, metadata: Mapping[str, str]) -> ModelConfig:
    try:
        described = json.loads(metadata[METADATA_KEY])
        variant, input_size = described["variant"], described["input_size"]
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"The metadata of {path} is {metadata[METADATA_KEY]!r}; it needs a variant and an input_size. "
            "Write the file with refinesam.weights.save_weights."
        ) from error
    if variant not in tuple(CONFIGS):  # Compared, not hashed: it may be anything that JSON can hold.
        raise WeightsError(
            f"{path} is for the model variant {variant!r}; this refinesam knows {', '.join(CONFIGS)}. "
            "Perhaps a later version wrote it."
        )
    if type(input_size) is not int or input_size <= 0 or input_size % PATCH_SIZE:
        raise WeightsError(
            f"{path} gives the input size {input_size!r}; a positive multiple of {PATCH_SIZE} is needed."
        )
    return replace(CONFIGS[variant], input_size=input_size)


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    # Trainers of others count epochs or iterations; ours counts steps.
    if isinstance(content, Mapping) and "step" in content and {"optimizer", "optimizers"} & content.keys():
        raise WeightsError(
            f"{path} is a checkpoint of an unfinished training. Give the weights.safetensors that the training writes "
            "beside it, or finish the training first."
        )
    content = state_dict_of(content)
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"{path} holds {_kind(content)}; a state dict (names and tensors) or {{'model': state dict}} is needed."
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path} is no state dict: {key!r} in it is {_kind(value)}; tensors by name are needed.")
    return dict(content)


def _kind(value: object) -> str:
    return "nothing" if isinstance(value, Mapping) and not value else f"an object of type {type(value).__name__}"


def _in_our_names(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        renamed = in_our_names(state)
    except ValueError as error:
        raise WeightsError(f"{path} is broken: {error}. Download it again, or export it again.") from error
    if unsupported := unsupported_model(renamed):
        raise WeightsError(unsupported.refusal(path))
    return renamed


def _recognised(path: Path, state: Mapping[str, Tensor]) -> ModelConfig:
    """Return the variant that the keys and shapes are of, or the nearest; `_check_fit` then tells the difference."""
    shapes = {key: tensor.shape for key, tensor in state.items()}
    common: dict[str, float] = {}
    for name in CONFIGS:
        wanted = _shapes_of_variant(name)
        if shapes == wanted:
            return CONFIGS[name]
        common[name] = len(shapes.items() & wanted.items()) / max(len(wanted), len(shapes))
    nearest = max(common, key=lambda name: common[name])
    if not common[nearest]:
        raise WeightsError(
            f"{path} does not say which model it is for, and holds none of the known models ({', '.join(CONFIGS)}): "
            f"not one of its {len(shapes)} tensors ({some(shapes)}) fits any. Give weights of one of these; "
            "refinesam.weights.save_weights writes some that can be loaded again."
        )
    return CONFIGS[nearest]


def _check_fit(path: Path, variant: str, state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> None:
    """Raise WeightsError unless keys and shapes are exactly those of the variant."""
    reshaped = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    differences = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "wrong shapes": reshaped,
    }
    listed = "; ".join(f"{what}: {some(names)}" for what, names in differences.items() if names)
    if listed:
        raise WeightsError(f"{path} does not fit {variant}. {listed}. Give weights made for {variant}.")


def _float32(path: Path, state: dict[str, Tensor], counters: Collection[str]) -> dict[str, Tensor]:
    """Return float32 copies, int64 of `counters` (of the batches that a norm has seen).

    `state` is emptied, so that a large model is never in memory twice.
    """
    copies = {}
    for key in list(state):
        tensor = state.pop(key).detach()
        dtype = torch.int64 if key in counters else torch.float32
        if tensor.layout != torch.strided or not (tensor.is_floating_point() or tensor.dtype == dtype):
            raise WeightsError(f"{path} is broken: {key} is {tensor.dtype}, {tensor.layout}; dense floats are needed.")
        # A copy in any case: what torch reads may be mapped from the file, or shared between two keys.
        copies[key] = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if not _is_finite(copies[key]):
            raise WeightsError(f"{path} is broken: {key} holds NaN or infinity. Download it again, or train it again.")
    return copies


def _is_finite(tensor: Tensor) -> bool:
    # NaN goes through aminmax, which unlike isfinite needs no second array.
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


class _SkipInit(TorchFunctionMode):
    """Leaves tensors as they are where modules would fill them with random numbers.

    Every one of them is replaced by the file's. Filling them takes ten times as long as loading, and would move the
    caller's random number generator. (The meta device does the same but imports 800 modules for it.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def _uninitialised_model(config: ModelConfig) -> PromptableModel:
    with _SkipInit():
        return build_model(config)


def _shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


@cache
def _shapes_of_variant(name: str) -> dict[str, torch.Size]:
    return _shapes_of(_uninitialised_model(CONFIGS[name]))
