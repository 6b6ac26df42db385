"""A model as a folder that runs elsewhere, without refinesam and without torch.

::

    encoder.onnx   an image's features, once per image
    decoder.onnx   masks of prompts from these features
    model.json     how images are fitted in, what goes in and comes out, and which weights these are
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from refinesam.download import file_digest
from refinesam.errors import MissingExtraError, OutputError
from refinesam.files import JsonObject, check_outputs
from refinesam.models.config import PIXEL_MEAN, PIXEL_STD, ModelConfig
from refinesam.models.layers import fold_norms
from refinesam.models.onnx_export import export_decoder, export_encoder
from refinesam.registry import find_entry, weights_path
from refinesam.weights import load_model

__all__ = ["export_model"]

ENCODER, DECODER, MODEL = FILES = ("encoder.onnx", "decoder.onnx", "model.json")
FORMAT = "refinesam ONNX export"
VERSION = 1

# By family, as `refinesam.models.frames.Frame` does it.
RESIZING: dict[str, JsonObject] = {
    "efficientsam": {
        "keep_aspect_ratio": False,
        "shrink": "bilinear without antialiasing",
        "enlarge": "bilinear",
        "padding": "none",
        "masks": "bicubic",
    },
    "sam": {
        "keep_aspect_ratio": True,
        "shrink": "bilinear with antialiasing",
        "enlarge": "bilinear",
        "padding": "zeros at the right or bottom, after the normalisation",
        "masks": "bilinear",
    },
    "hybrid": {
        "keep_aspect_ratio": False,
        "shrink": "area",
        "enlarge": "bilinear",
        "padding": "none",
        "masks": "bilinear",
    },
}
LABELS = {
    "1": "on the object",
    "0": "not on the object",
    "2": "top left corner of a box",
    "3": "bottom right corner of a box",
    "-1": "no point: fills a shorter prompt up",
}


def export_model(weights: str | Path, folder: str | Path) -> dict[str, int]:
    """Write a model as two ONNX files and their description; the folder appears whole or not at all.

    Args:
        weights: a name of `refinesam weights list`, or the path of a file.
        folder: missing, empty, or an earlier export, which is replaced.

    Returns:
        The files and their sizes in bytes.

    Raises:
        MissingExtraError: ONNX is not installed.
        OutputError: the folder holds something else or cannot be written, or the model cannot be exported.
        WeightsError: unknown, missing or damaged weights.
    """
    target = Path(os.path.realpath(folder))
    _check_folder(target)
    if find_spec("onnx") is None:
        raise MissingExtraError("onnx", "onnx")
    model = load_model(weights).requires_grad_(False)
    config = model.config
    fold_norms(model.image_encoder)
    try:
        graphs = {
            ENCODER: export_encoder(model.image_encoder, config.input_size, images=None),
            DECODER: export_decoder(model),
        }
    except OutputError as error:
        raise OutputError(f"{weights}, a {config.name}: {error}") from error
    contents = graphs | {MODEL: json.dumps(_described(weights, config, graphs), indent=1).encode() + b"\n"}
    try:
        _write_folder(target, contents)
    except OutputError:
        raise
    except OSError as error:
        raise _unwritable(target, error) from error
    return {name: len(content) for name, content in contents.items()}


def _described(weights: str | Path, config: ModelConfig, graphs: Mapping[str, bytes]) -> JsonObject:
    entry = find_entry(weights)
    path = weights_path(weights)
    taken = config.capabilities
    return {
        "format": FORMAT,
        "version": VERSION,
        "refinesam": version("refinesam"),
        "weights": {
            "name": entry.name if entry else path.name,
            "variant": config.name,
            "sha256": file_digest(path, "sha256"),
            "licence": entry.licence if entry else "not stated",
            "citation": entry.citation if entry else "",
        },
        "input_size": config.input_size,
        "normalisation": {"of": "RGB in 0..255", "mean": PIXEL_MEAN, "std": PIXEL_STD},
        "resize": RESIZING[config.family],
        "labels": {label: means for label, means in LABELS.items() if label != "0" or taken.negative_points},
        "max_points": taken.max_points,
        "mask_prompt": taken.mask_prompt,
        "encoder": {"file": ENCODER, **_inputs_and_outputs(graphs[ENCODER])},
        "decoder": {"file": DECODER, **_inputs_and_outputs(graphs[DECODER])},
    }


def _inputs_and_outputs(graph: bytes) -> JsonObject:
    import onnx

    def described(values: Iterable[onnx.ValueInfoProto]) -> JsonObject:
        return {
            value.name: {
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim],
            }
            for value in values
        }

    read = onnx.load_model_from_string(graph).graph
    return {"inputs": described(read.input), "outputs": described(read.output)}


def _check_folder(folder: Path) -> None:
    """Find out before the work whether the folder can be written, and costs nobody anything."""
    try:
        replaced = not folder.exists() or _may_be_replaced(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not replaced:
        raise OutputError(f"{folder} is there and holds no export of a model: give an empty or new folder.")
    check_outputs([(folder / MODEL, (".json",))])


def _may_be_replaced(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    described: object = None
    with suppress(OSError, ValueError):
        described = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    return not names or (names <= set(FILES) and isinstance(described, dict) and described.get("format") == FORMAT)


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files beside the folder's place and put them there by one renaming.

    A process that is killed meanwhile leaves a hidden folder, and nothing in its place that looks like an export.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export.") as beside:
        new, old = Path(beside) / "new", Path(beside) / "old"
        new.mkdir()
        for name, content in contents.items():
            with (new / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            # Looked at again: what came in the meantime stays.
            _check_folder(folder)
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except BaseException:
            if old.exists() and not folder.exists():
                os.rename(old, folder)
            raise


def _unwritable(folder: Path, error: Exception) -> OutputError:
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    return OutputError(f"{folder} cannot be written ({reason}): give a folder in a place that can be written to.")
