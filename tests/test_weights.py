"""Loading and saving weights: every kind of file that is read, and a table of those that are refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from refinesam.errors import WeightsError
from refinesam.models import checkpoints
from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS
from refinesam.registry import REGISTRY, WeightsEntry
from refinesam.weights import _uninitialised_model, load_model, rounded, save_weights

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def hybrid() -> nn.Module:
    torch.manual_seed(0)
    return build_model(replace(CONFIGS["hybrid_ti"], input_size=128))


@pytest.fixture(scope="module")
def released() -> State:
    """A state dict in the layout of the released EfficientSAM-Ti; small on disk: each tensor is one number."""
    shapes = _uninitialised_model(CONFIGS["efficientsam_ti"]).state_dict().items()
    return {key: torch.tensor(0.001 * i).expand(tensor.shape) for i, (key, tensor) in enumerate(shapes, start=1)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test may reach the network: nothing is cached, and nothing may be downloaded."""
    monkeypatch.setenv("REFINESAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REFINESAM_OFFLINE", "1")
    return tmp_path / "cache"


def written(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def archived(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def assert_same_weights(model: nn.Module, state: State) -> None:
    loaded = model.state_dict()
    assert list(loaded) == list(state)
    for key, tensor in state.items():
        torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0, msg=key)


# Saving and loading again.


def test_a_saved_model_comes_back(hybrid: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "w.safetensors"
    save_weights(hybrid, path, torch.float32)
    model = load_model(str(path))
    assert_same_weights(model, hybrid.state_dict())
    assert model.config == hybrid.config
    assert not model.training
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_half_precision_comes_back_as_float32(hybrid: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(hybrid, path)
    assert path.stat().st_size < 2.1 * sum(tensor.numel() for tensor in hybrid.state_dict().values())
    assert_same_weights(load_model(path), {key: t.half().float() for key, t in hybrid.state_dict().items()})


def test_the_stored_description_is_json_beside_the_tensors(hybrid: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(hybrid, path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert json.loads(header["__metadata__"]["refinesam"]) == {"variant": "hybrid_ti", "input_size": 128}


def test_a_loaded_model_trains(hybrid: nn.Module, tmp_path: Path) -> None:
    save_weights(hybrid, tmp_path / "w.safetensors")
    model = load_model(tmp_path / "w.safetensors").train()
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in hybrid.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.stack([parameter.add(1).square().sum() for parameter in model.parameters()]).sum().backward()
    optimizer.step()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


def test_a_loaded_model_answers_like_the_saved_one(hybrid: nn.Module, tmp_path: Path) -> None:
    save_weights(hybrid, tmp_path / "w.safetensors", torch.float32)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 128, 128, generator=generator)
    points, labels = torch.tensor([[[[40.0, 50.0]]]]), torch.tensor([[[1]]])
    answers = []
    for model in (hybrid.eval(), load_model(tmp_path / "w.safetensors")):
        with torch.inference_mode():
            answers.append(model.decode(model.encode(pixels), points, labels))
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)


def test_loading_leaves_the_random_numbers_alone(hybrid: nn.Module, released: State, tmp_path: Path) -> None:
    save_weights(hybrid, tmp_path / "w.safetensors")
    before = torch.get_rng_state()
    load_model(tmp_path / "w.safetensors")
    load_model(written(tmp_path / "w.pt", released))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_outlives_its_file(hybrid: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(hybrid, path, torch.float32)
    model = load_model(path)
    with path.open("r+b") as file:
        file.seek(-(1 << 20), os.SEEK_END)
        file.write(b"\xff" * (1 << 20))
    assert_same_weights(model, hybrid.state_dict())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_dict_holds_all_of_a_model(name: str) -> None:
    """Loading skips the random initialisation, so nothing that a state dict leaves out may depend on it."""
    model = _uninitialised_model(CONFIGS[name])
    named = {key for key, _ in (*model.named_parameters(), *model.named_buffers())}
    assert named == set(model.state_dict())
    plain = [f"{key}.{a}" for key, m in model.named_modules() for a, v in vars(m).items() if isinstance(v, Tensor)]
    assert plain == []


# What others released.


def test_the_released_layout_is_recognised(released: State, tmp_path: Path) -> None:
    for model in (
        load_model(written(tmp_path / "a.pt", {"model": released})),
        load_model(written(tmp_path / "b.pth", released)),
        load_model(written(tmp_path / "c.bin", {"model": released}, legacy=True)),
    ):
        assert model.config == CONFIGS["efficientsam_ti"]
        assert_same_weights(model, released)
        assert not model.training


def test_shared_and_half_tensors_become_float32_of_their_own(released: State, tmp_path: Path) -> None:
    shared = torch.full((1,), 0.5, dtype=torch.bfloat16)
    state = {key: shared.expand(tensor.shape) for key, tensor in released.items()}
    model = load_model(written(tmp_path / "w.pt", state))
    parameters = list(model.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert len({p.untyped_storage().data_ptr() for p in parameters}) == len(parameters)
    assert all(p.is_contiguous() for p in parameters)


@pytest.mark.parametrize("extra", [(), ("__MACOSX/._efficient_sam_vits.pt", "README.md")], ids=["plain", "from macOS"])
def test_a_zipped_state_dict_is_read(released: State, tmp_path: Path, extra: tuple[str, ...]) -> None:
    content = written(tmp_path / "w.pt", {"model": released}).read_bytes()
    path = archived(tmp_path / "w.pt.zip", dict.fromkeys(extra, b"\0\5\x16\7") | {"efficient_sam_vits.pt": content})
    (tmp_path / "w.pt").unlink()
    model = load_model(path)
    assert_same_weights(model, released)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt.zip"]


@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("sam_vit_l", "sam_vit_h")])  # Those take gigabytes.
def test_every_variant_is_told_by_its_keys_and_shapes(name: str, tmp_path: Path) -> None:
    wanted = _uninitialised_model(CONFIGS[name]).state_dict()
    state = {key: torch.ones((), dtype=t.dtype).expand(t.shape) for key, t in wanted.items()}
    model = load_model(written(tmp_path / "w.pth", state))
    assert model.config == CONFIGS[name]
    assert {key: t.dtype for key, t in model.state_dict().items()} == {key: t.dtype for key, t in wanted.items()}


def test_counters_of_batches_stay_whole_numbers(tmp_path: Path) -> None:
    """Those of MobileSAM's norms; in half precision they would overflow."""
    wanted = _uninitialised_model(CONFIGS["mobile_sam"]).state_dict()
    counted = {key: torch.ones((), dtype=t.dtype).expand(t.shape) for key, t in wanted.items()}
    counters = {key: torch.tensor(123_457) for key, t in wanted.items() if not t.is_floating_point()}
    assert counters
    model = load_model(written(tmp_path / "w.pt", counted | counters))
    save_weights(model, tmp_path / "w.safetensors")
    for found in (model, load_model(tmp_path / "w.safetensors")):
        assert {key: found.state_dict()[key].item() for key in counters} == dict.fromkeys(counters, 123_457)


def test_a_registered_name_tells_the_variant(released: State, tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    content = written(cache / "w.pt", {"model": released}).read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    entry = WeightsEntry("mine", "efficientsam_ti", "https://example.invalid/w.pt", digest, "Apache-2.0", len(content))
    assert load_model(entry).config == CONFIGS["efficientsam_ti"]
    with pytest.raises(WeightsError, match="does not fit efficientsam_s.*instead of"):
        load_model(replace(entry, variant="efficientsam_s"))
    with pytest.raises(WeightsError, match="mine is damaged and REFINESAM_OFFLINE"):
        load_model(replace(entry, digest=f"sha256:{'0' * 64}"))


def test_offline_a_name_gives_the_manual_step() -> None:
    with pytest.raises(
        WeightsError, match=r"efficientsam_ti is missing.*efficient_sam_vitt\.pt yourself and put it at"
    ):
        load_model("efficientsam_ti")


@pytest.mark.skipif(not REGISTRY["builtin"].path.exists(), reason="this tree has no built-in weights yet")
def test_the_builtin_weights_load() -> None:
    assert load_model("builtin").config.name == REGISTRY["builtin"].variant


# What is refused. Each maker writes one bad file; the message has to say what is wrong with it.


class Malicious:
    """Unpickled by an ordinary unpickler, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_the_malicious_object_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


def raw(content: bytes, name: str = "w.pt") -> Callable[[Path, State], Path]:
    def make(folder: Path, state: State) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def saved(change: Callable[[State, Path], object], legacy: bool = False) -> Callable[[Path, State], Path]:
    """Write what `change` makes of a good state dict."""
    return lambda folder, state: written(folder / "w.pt", change(dict(state), folder), legacy)


def cut(share: float, legacy: bool = False) -> Callable[[Path, State], Path]:
    def make(folder: Path, state: State) -> Path:
        path = written(folder / "w.pt", {"model": state}, legacy)
        os.truncate(path, int(share * path.stat().st_size))
        return path

    return make


def malicious_pickle(folder: Path, state: State) -> Path:
    (folder / "w.pt").write_bytes(pickle.dumps(Malicious(folder / "executed"), protocol=2))
    return folder / "w.pt"


def malicious_zip(folder: Path, state: State) -> Path:
    inner = written(folder / "inner", {"model": Malicious(folder / "executed")})
    path = archived(folder / "w.pt.zip", {"w.pt": inner.read_bytes()})
    inner.unlink()
    return path


def zipped(members: dict[str, bytes]) -> Callable[[Path, State], Path]:
    return lambda folder, state: archived(folder / "w.zip", members)


def zip_with_a_flipped_byte(folder: Path, state: State) -> Path:
    path = archived(folder / "w.zip", {"w.pt": os.urandom(10_000)})
    content = bytearray(path.read_bytes())
    content[5000] ^= 0xFF
    path.write_bytes(content)
    return path


def torchscript(folder: Path, state: State) -> Path:
    return archived(folder / "w.pt", {"w/data.pkl": b"", "w/constants.pkl": b"", "w/code/__torch__.py": b""})


def tensors(
    metadata: dict[str, str] | None = None, name: str = "w.safetensors", share: float = 1.0, **changed: Tensor
) -> Callable[[Path, State], Path]:
    """Write a safetensors file with few tensors."""

    def make(folder: Path, state: State) -> Path:
        path = folder / name
        save_file({"x": torch.zeros(8)} | changed, path, metadata)
        os.truncate(path, int(share * path.stat().st_size))
        return path

    return make


def described(variant: object = "hybrid_ti", input_size: object = 256) -> dict[str, str]:
    return {"refinesam": json.dumps({"variant": variant, "input_size": input_size})}


def without(*keys: str) -> Callable[[State, Path], object]:
    return lambda state, folder: {key: tensor for key, tensor in state.items() if key not in keys}


def with_value(key: str, value: Any) -> Callable[[State, Path], object]:
    return lambda state, folder: state | {key: value}


def filled(key: str, value: float) -> Callable[[State, Path], object]:
    def change(state: State, folder: Path) -> object:
        broken = state[key].clone()
        broken.flatten()[-1] = value
        return state | {key: broken}

    return change


POS = "image_encoder.pos_embed"
BIAS = "image_encoder.patch_embed.proj.bias"
REFUSED = r"was refused: it holds a program, not only tensors \(it asks for \S*mkdir\)"

BAD_FILES: dict[str, tuple[Callable[[Path, State], Path], str]] = {
    "empty": (raw(b""), "is empty"),
    "one byte": (raw(b"x"), "is not a weights file|cannot be read"),
    "text": (raw(b"These are not the weights you are looking for. " * 40), "is not a weights file"),
    "a page": (raw(b"<!DOCTYPE html><html><body>404</body></html>"), "is not a weights file"),
    "git-lfs pointer": (raw(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "is not a weights file"),
    "image": (raw(b"\x89PNG\r\n\x1a\n" + bytes(200)), "is not a weights file|cannot be read"),
    "zeros": (raw(bytes(4096)), "is not a weights file|cannot be read"),
    "truncated": (cut(0.6), "truncated or damaged.*Download or copy it again"),
    "truncated at the start": (cut(0.001), "truncated or damaged"),
    "truncated, old format": (cut(0.6, legacy=True), "truncated or damaged"),
    "malicious": (saved(lambda s, f: {"model": Malicious(f / "executed")}), REFUSED),
    "malicious value": (saved(lambda s, f: s | {POS: Malicious(f / "executed")}), REFUSED),
    "malicious, old format": (saved(lambda s, f: Malicious(f / "executed"), legacy=True), REFUSED),
    "malicious pickle": (malicious_pickle, REFUSED),
    "malicious in a zip": (malicious_zip, REFUSED),
    "pickled model": (saved(lambda s, f: nn.Linear(1, 1)), r"was refused: .*it asks for torch\.nn\.\S*Linear"),
    "TorchScript": (torchscript, "is a TorchScript program"),
    "zip, two models": (zipped({"a.pt": b"", "b.pt": b""}), r"archive with 2 weights files \(a\.pt, b\.pt\)"),
    "zip, no model": (zipped({"readme.txt": b""}), r"archive with 0 weights files \(readme\.txt\)"),
    "zip, empty": (zipped({}), r"archive with 0 weights files \(it is empty\)"),
    "zip, upwards": (zipped({"../../w.pt": b""}), r"was refused: \.\./\.\./w\.pt in it points outside"),
    "zip, absolute": (zipped({"/tmp/w.pt": b""}), "was refused: .*points outside"),
    "zip, drive": (zipped({"C:/w.pt": b""}), "was refused: .*points outside"),
    "zip, backslashes": (zipped({"a\\..\\..\\w.pt": b""}), "was refused: .*points outside"),
    "zip, text inside": (zipped({"w.pt": b"hello hello"}), "is not a weights file"),
    "zip, flipped byte": (zip_with_a_flipped_byte, "truncated or damaged"),
    "list": (saved(lambda s, f: [1, 2]), "holds an object of type list"),
    "tensor": (saved(lambda s, f: torch.zeros(3)), "holds an object of type Tensor"),
    "empty dict": (saved(lambda s, f: {}), "holds nothing; a state dict"),
    "model is no dict": (saved(lambda s, f: {"model": 3}), "holds an object of type int"),
    "numbers": (
        saved(with_value(POS, 3)),
        "is no state dict: 'image_encoder.pos_embed' in it is an object of type int",
    ),
    "keys are numbers": (saved(lambda s, f: {1: torch.zeros(1)}), "is no state dict: 1 in it"),
    "training checkpoint": (saved(lambda s, f: {"model": s, "optimizer": {}, "step": 3}), "weights.safetensors"),
    "finetuning checkpoint": (
        saved(lambda s, f: {"config": {}, "step": 3, "model": s, "ema": {}, "optimizers": []}),
        "is a checkpoint of an unfinished training.*weights.safetensors",
    ),
    "another model": (saved(lambda s, f: {"conv1.weight": torch.zeros(1)}), r"none of the known models.*conv1\.weight"),
    "missing key": (saved(without(POS)), r"does not fit efficientsam_ti\. missing: image_encoder\.pos_embed\. Give"),
    "many missing": (
        saved(lambda s, f: {k: t for k, t in s.items() if not k.startswith("mask_decoder")}),
        r"does not fit efficientsam_ti\. missing: mask_decoder\..* and \d+ more",
    ),
    "unexpected key": (saved(with_value("extra", torch.zeros(1))), r"does not fit efficientsam_ti\. unexpected: extra"),
    "wrong shape": (
        saved(with_value(POS, torch.zeros(1, 50, 192))),
        r"wrong shapes: image_encoder\.pos_embed is \(1, 50, 192\) instead of \(1, 197, 192\)",
    ),
    "NaN": (saved(filled(POS, float("nan"))), r"image_encoder\.pos_embed holds NaN or infinity"),
    "infinity": (saved(filled(BIAS, float("-inf"))), "proj.bias holds NaN or infinity"),
    "integers": (saved(with_value(BIAS, torch.zeros(192, dtype=torch.int64))), r"torch\.int64.*floats are needed"),
    "complex": (saved(with_value(BIAS, torch.zeros(192, dtype=torch.complex64))), r"complex64.*floats are needed"),
    "sparse": (saved(with_value(BIAS, torch.zeros(192).to_sparse())), r"sparse.*floats are needed"),
    "safetensors, truncated": (tensors(described(), share=0.9), "is not a whole safetensors file"),
    "safetensors, header only": (tensors(described(), share=0.2), "is not a whole safetensors file"),
    "safetensors, empty": (raw(b"", "w.safetensors"), "is empty"),
    "safetensors, text": (raw(b"hello " * 50, "w.safetensors"), "is not a whole safetensors file"),
    "safetensors, no metadata": (tensors(), "does not say which model it is for.*save_weights"),
    "safetensors, other metadata": (tensors({"format": "pt"}), "does not say which model it is for"),
    "safetensors, other suffix": (tensors(name="w.pt"), "does not say which model it is for"),
    "safetensors, no JSON": (tensors({"refinesam": "hybrid_ti"}), "needs a variant and an input_size"),
    "safetensors, JSON list": (tensors({"refinesam": "[1]"}), "needs a variant and an input_size"),
    "safetensors, no size": (tensors({"refinesam": '{"variant": "hybrid_ti"}'}), "needs a variant and an input_size"),
    "safetensors, new variant": (tensors(described("hybrid_xxl")), "variant 'hybrid_xxl'; this refinesam knows"),
    "safetensors, odd variant": (tensors(described(["hybrid_ti"])), r"variant \['hybrid_ti'\]; this refinesam knows"),
    "safetensors, size 0": (tensors(described(input_size=0)), "input size 0; a positive multiple of 16"),
    "safetensors, size 100": (tensors(described(input_size=100)), "input size 100; a positive multiple of 16"),
    "safetensors, size true": (tensors(described(input_size=True)), "input size True; a positive multiple of 16"),
    "safetensors, size text": (tensors(described(input_size="256")), "input size '256'; a positive multiple of 16"),
    "safetensors, few keys": (
        tensors(described()),
        r"does not fit hybrid_ti\. missing: .* and \d+ more; unexpected: x",
    ),
}


# torch warns of the pickle protocol of files that it then refuses.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(case: str, released: State, tmp_path: Path) -> None:
    make, message = BAD_FILES[case]
    path = make(tmp_path, released)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(WeightsError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice to switch the protection off
    assert sorted(tmp_path.iterdir()) == before  # Nothing was executed, nothing unpacked.


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        load_model(tmp_path)


def test_an_archive_that_would_swell_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LARGEST_ARCHIVE_MEMBER", 1_000_000)
    path = archived(tmp_path / "w.zip", {"w.pt": bytes(2_000_000)})
    assert path.stat().st_size < 10_000
    with pytest.raises(WeightsError, match=r"was refused: w\.pt in it takes 2,000,000 bytes"):
        load_model(path)


# Saving what cannot be loaded again.


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e6, torch.float16)])
def test_broken_models_are_not_saved(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    model = _uninitialised_model(CONFIGS["hybrid_ti"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("image_encoder.pos_embed").view(-1)[0] = value
    (tmp_path / "w.safetensors").write_bytes(b"the earlier file")
    with pytest.raises(WeightsError, match=r"NaN or infinity as torch\.float\d\d in image_encoder\.pos_embed"):
        save_weights(model, tmp_path / "w.safetensors", dtype)
    assert (tmp_path / "w.safetensors").read_bytes() == b"the earlier file"
    assert len(list(tmp_path.iterdir())) == 1


def test_rounded_weights_are_near_and_end_in_zeros() -> None:
    values = torch.randn(10_000) * torch.logspace(-4, 3, 10_000)
    values = torch.cat([values, torch.tensor([0.0, 1.0, -2.0, 0.99999, -0.99999])])
    found = rounded(values)
    assert found.dtype == torch.float16
    assert not (found.view(torch.int16) & 3).any()
    normal = values.abs() > 1e-4
    assert ((found.float() - values).abs()[normal] <= 0.0025 * values.abs()[normal]).all()
    assert torch.equal(found[-5:-2].float(), values[-5:-2])
