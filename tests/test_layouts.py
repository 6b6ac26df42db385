"""Weights in the layouts of others: each is written here by renaming our own, and has to load to the same tensors."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import formula
from refinesam.errors import WeightsError
from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS, PIXEL_MEAN, PIXEL_STD, ModelConfig
from refinesam.models.layouts import in_our_names
from refinesam.weights import load_model

State = dict[str, Tensor]

# SAM with an encoder of two blocks; its prompt encoder and mask decoder have one size in every SAM.
SMALL = ModelConfig("sam_small", "sam", width=32, depth=2, heads=2, pos_grid=64, global_blocks=(1,))


@pytest.fixture(autouse=True)
def small_sam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, SMALL.name, SMALL)


@pytest.fixture(scope="module")
def state() -> State:
    with torch.device("meta"):
        model = build_model(SMALL)
    return formula.weights(model.state_dict())


def in_transformers(state: State) -> State:
    """The same tensors under the names that `transformers` gives them, as its SamModel keeps them."""
    short = {
        "image_encoder": "vision_encoder",
        "blocks": "layers",
        "point_embeddings": "point_embed",
        "norm_final_attn": "layer_norm_final_attn",
        **{f"norm{i}": f"layer_norm{i}" for i in range(1, 5)},
    }
    pairs = {
        ("patch_embed", "proj"): ("patch_embed", "projection"),
        ("pe_layer", "positional_encoding_gaussian_matrix"): ("shared_embedding", "positional_embedding"),
        **{("neck", str(i)): ("neck", f"{n}") for i, n in enumerate(("conv1", "layer_norm1", "conv2", "layer_norm2"))},
        ("output_upscaling", "0"): ("upscale_conv1",),
        ("output_upscaling", "1"): ("upscale_layer_norm",),
        ("output_upscaling", "3"): ("upscale_conv2",),
        **{
            ("mask_downscaling", i): ("mask_embed", name)
            for i, name in {"0": "conv1", "1": "layer_norm1", "3": "conv2", "4": "layer_norm2", "6": "conv3"}.items()
        },
    }
    found = {}
    for key, tensor in state.items():
        parts = [short.get(part, part) for part in key.split(".")]
        for first in range(len(parts) - 1):
            if (old := (parts[first], parts[first + 1])) in pairs:
                parts[first : first + 2] = pairs[old]
                break
        if "iou_prediction_head" in parts or "output_hypernetworks_mlps" in parts:
            at = parts.index("layers")
            parts[at : at + 2] = [["proj_in"], ["layers", "0"], ["proj_out"]][int(parts[at + 1])]
        found[".".join(parts)] = tensor
    found["shared_image_embedding.positional_embedding"] = found["prompt_encoder.shared_embedding.positional_embedding"]
    return found


def without(state: State, *keys: str) -> State:
    return {key: tensor for key, tensor in state.items() if key not in keys}


def with_prefix(prefix: str, state: State) -> State:
    return OrderedDict((prefix + key, tensor) for key, tensor in state.items())


class Foreign:
    """Of a class that no reader of weights knows; unpickled as it is, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def torch_em(state: State, folder: Path) -> object:
    """What micro-sam's trainer writes: the loaders' data sets are in it, as objects."""
    parameters = {key: nn.Parameter(tensor) for key, tensor in with_prefix("sam.", state).items()}
    return {
        "iteration": 100,
        "epoch": 2,
        "best_metric": torch.tensor(0.5),
        "model_state": OrderedDict(parameters),
        "optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-5}]},
        "init": {"train_dataset": Foreign(folder / "executed"), "device": torch.device("cpu")},
        "decoder_state": {"decoder.0.weight": torch.zeros(1)},
    }


LAYOUTS: dict[str, Callable[[State, Path], object]] = {
    "plain": lambda s, f: s,
    "model": lambda s, f: {"model": s, "optimizer": {"state": {}}, "epoch": 3},
    "model_state, sam.": lambda s, f: {"model_state": with_prefix("sam.", s), "epoch": 3},
    "state_dict, model.sam.": lambda s, f: {"state_dict": with_prefix("model.sam.", s), "global_step": 9},
    "data parallel": lambda s, f: with_prefix("module.", s),
    "compiled": lambda s, f: {"model_state_dict": with_prefix("_orig_mod.", s)},
    "with the pixels' mean": lambda s, f: {
        **s,
        "pixel_mean": torch.tensor(PIXEL_MEAN).view(-1, 1, 1),
        "pixel_std": torch.tensor(PIXEL_STD).view(-1, 1, 1),
    },
    "micro-sam's trainer": torch_em,
    "transformers": lambda s, f: in_transformers(s),
    "transformers, positions once": lambda s, f: without(
        in_transformers(s), "prompt_encoder.shared_embedding.positional_embedding"
    ),
    "transformers, wrapped": lambda s, f: {"state_dict": with_prefix("model.", in_transformers(s))},
}


def assert_same(model: nn.Module, state: State) -> None:
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_by_its_content(layout: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "anything.bin"
    torch.save(LAYOUTS[layout](state, tmp_path), path)
    model = load_model(path)
    assert model.config == SMALL
    assert_same(model, state)
    assert [p.name for p in tmp_path.iterdir()] == ["anything.bin"]  # Nothing was executed.


@pytest.mark.parametrize("change", [in_transformers, dict], ids=["transformers", "plain"])
def test_safetensors_of_others_load(change: Callable[[State], State], state: State, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({key: tensor.clone() for key, tensor in change(state).items()}, path, metadata={"format": "pt"})
    assert_same(load_model(path), state)


@pytest.mark.parametrize("name", ["sam_vit_b", "sam_vit_l", "sam_vit_h"])
def test_every_sam_of_transformers_has_our_keys(name: str) -> None:
    with torch.device("meta"):
        ours = build_model(CONFIGS[name]).state_dict()
    theirs = without(in_transformers(ours), "shared_image_embedding.positional_embedding")
    assert len(theirs) == len(ours)
    found = in_our_names(theirs)
    assert {key: tensor.shape for key, tensor in found.items()} == {key: t.shape for key, t in ours.items()}


def test_a_checkpoint_of_transformers_is_strict(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    theirs = in_transformers(state)
    for broken, message in (
        (without(theirs, "mask_decoder.upscale_conv1.bias"), r"missing: mask_decoder\.output_upscaling\.0\.bias"),
        (theirs | {"vision_encoder.cls_token": torch.zeros(1)}, r"unexpected: vision_encoder\.cls_token"),
        (
            theirs | {"shared_image_embedding.positional_embedding": torch.zeros(2, 128)},
            r"is broken: shared_image_embedding\.positional_embedding differs",
        ),
    ):
        torch.save(broken, path)
        with pytest.raises(WeightsError, match=message):
            load_model(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda s, f: s | {"model_state": s["model_state"] | {"sam.extra": Foreign(f / "executed")}},
        lambda s, f: s | {"model_state": Foreign(f / "executed")},
        lambda s, f: Foreign(f / "executed"),
    ],
    ids=["among the tensors", "as the state dict", "as the whole"],
)
def test_a_program_within_the_weights_is_refused(
    change: Callable[[dict[str, State], Path], object], state: State, tmp_path: Path
) -> None:
    path = tmp_path / "w.pt"
    torch.save(change(torch_em(state, tmp_path), tmp_path), path)
    with pytest.raises(WeightsError, match=r"was refused: it holds a program.*mkdir"):
        load_model(path)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_the_foreign_object_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Foreign(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


def test_what_is_not_under_the_prefix_is_unexpected(state: State, tmp_path: Path) -> None:
    torch.save(with_prefix("sam.", state) | {"loss.weight": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"does not fit sam_small\. unexpected: loss\.weight\."):
        load_model(tmp_path / "w.pt")


def test_another_mean_of_the_pixels_is_no_constant(state: State, tmp_path: Path) -> None:
    torch.save(state | {"pixel_mean": torch.zeros(3, 1, 1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"does not fit sam_small\. unexpected: pixel_mean"):
        load_model(tmp_path / "w.pt")


# Keys of the public implementations, and what the message calls the model.
OTHERS = {
    "mask_decoder.hf_token.weight": "SAM-HQ",
    "mask_decoder.hq_token.weight": "SAM-HQ",
    "image_encoder.features.0.0.c.weight": "EdgeSAM",
    "image_encoder.fuse_stage2.weight": "EdgeSAM",
    "image_encoder.backbone.input_stem.op_list.0.conv.weight": "EfficientViT-SAM",
    "image_encoder.trunk.pos_embed": r"SAM 2 or SAM 2\.1",
    "sam_mask_decoder.obj_score_token.weight": r"SAM 2 or SAM 2\.1",
    "vision_encoder.backbone.pos_embed": r"SAM 2 or SAM 2\.1",
    "detector.backbone.vision_backbone.trunk.pos_embed": "SAM 3",
    "model.22.proto.cv1.conv.weight": "FastSAM",
    "image_encoder.blocks.0.attn.qkv.w_a_linear_q.weight": "a SAM with adapters",
}


@pytest.mark.parametrize("key", OTHERS)
def test_a_model_that_does_not_run_here_is_named(key: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    # Some of them share most of SAM's keys.
    torch.save({"model": {key: torch.zeros(1)} | without(state, *list(state)[:20])}, path)
    with pytest.raises(WeightsError, match=rf"w\.pt is {OTHERS[key]}.*, which refinesam does not run\. Use ."):
        load_model(path)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (b"ultralytics.nn.tasks\nSegmentationModel", r"is FastSAM, or another YOLO model.*Use mobile_sam or efficient"),
        (b"tinysam.modeling.sam\nSam", r"is the quantised TinySAM, .*Use TinySAM in full precision"),
    ],
)
def test_a_model_that_was_pickled_with_its_program_is_named(wanted: bytes, message: str, tmp_path: Path) -> None:
    # Only the name of the class stands in the file; the class itself need not be here.
    path = tmp_path / "w.pt"
    torch.save({"model": Foreign(tmp_path / "executed")}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert any(b"posix\nmkdir" in member for member in members.values())
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member.replace(b"posix\nmkdir", wanted))
    with pytest.raises(WeightsError, match=message):
        load_model(path)
    assert not (tmp_path / "executed").exists()


def test_slimsam_is_named(tmp_path: Path) -> None:
    pruned = {"image_encoder.neck.0.weight": torch.zeros(256, 168, 1, 1)}
    torch.save(pruned | {"image_encoder.blocks.0.attn.rel_pos_h": torch.zeros(27, 14)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"is SlimSAM, which refinesam does not run"):
        load_model(tmp_path / "w.pt")
