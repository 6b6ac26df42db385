"""`refinesam export`: a folder that runs without torch, and that appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data

import formula
import refinesam
from refinesam import export
from refinesam.cli import main
from refinesam.errors import MissingExtraError, OutputError
from refinesam.export import export_model
from refinesam.models import onnx_export
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.frames import Frame
from refinesam.weights import save_weights

DOCS = Path(__file__).resolve().parent.parent / "docs" / "export.md"
FILES = ["decoder.onnx", "encoder.onnx", "model.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "random"
    export_model(weights, folder)
    return folder


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path, capsys: Any) -> None:
    folder = tmp_path / "new" / "model"
    monkeypatch.setattr(sys, "argv", ["refinesam", "export", str(weights), "--output", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert names(folder) == FILES and names(folder.parent) == ["model"]
    assert f"{folder / 'encoder.onnx'}: {(folder / 'encoder.onnx').stat().st_size:,} bytes" in capsys.readouterr().out


def test_the_description_is_that_of_the_files(exported: Path, weights: Path) -> None:
    described = json.loads((exported / "model.json").read_text())
    assert described["input_size"] == 64 and described["mask_prompt"] and described["max_points"] is None
    told = described["weights"]
    assert (told["name"], told["variant"], told["licence"]) == ("random.safetensors", "hybrid_ti", "not stated")
    assert told["sha256"] == subprocess.run(["sha256sum", weights], capture_output=True, text=True).stdout.split()[0]
    for part in ("encoder", "decoder"):
        session = onnxruntime.InferenceSession(exported / described[part]["file"])
        for values, own in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            assert {name: value["shape"] for name, value in described[part][values].items()} == {
                value.name: value.shape for value in own
            }
    assert described["decoder"]["inputs"]["points"] == {"dtype": "float32", "shape": ["prompts", "points", 2]}
    assert described["decoder"]["inputs"]["labels"]["dtype"] == "int64"
    assert described["decoder"]["outputs"]["low_res_logits"]["shape"] == ["prompts", 3, 16, 16]
    assert described["encoder"]["outputs"]["high_res8"]["shape"] == ["images", 64, 8, 8]


def test_an_earlier_export_is_replaced(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    export_model(weights, folder)
    (folder / "encoder.onnx").write_bytes(b"old")
    export_model(weights, folder)
    assert names(folder) == FILES and names(tmp_path) == ["model"]
    onnxruntime.InferenceSession(folder / "encoder.onnx")


@pytest.mark.parametrize(
    "held",
    [
        {"notes.txt": "mine"},
        {"model.json": "{}"},
        {"model.json": '{"format": "refinesam ONNX export"}', "notes.txt": "mine"},
        {"encoder.onnx": "mine"},
    ],
    ids=["something else", "another model.json", "an export and something else", "another encoder"],
)
def test_what_is_not_ours_stays(weights: Path, tmp_path: Path, held: dict[str, str]) -> None:
    for name, content in held.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(OutputError, match="holds no export of a model: give an empty or new folder"):
        export_model(weights, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == held


def test_places_that_cannot_be_written(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OutputError, match="holds no export"):
        export_model(weights, file)
    with pytest.raises(OutputError, match="Not a directory"):
        export_model(weights, file / "model")
    assert file.read_text() == "mine" and names(tmp_path) == ["file"]


def test_a_full_disk_costs_nothing(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "model"
    export_model(weights, folder)
    before = (folder / "model.json").read_bytes()
    monkeypatch.setattr(export.os, "fsync", full)
    for place in (folder, tmp_path / "other"):
        with pytest.raises(OutputError, match="No space left on device"):
            export_model(weights, place)
    assert names(tmp_path) == ["model"] and names(folder) == FILES
    assert (folder / "model.json").read_bytes() == before


def test_an_interruption_between_the_earlier_export_and_the_new_one(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    export_model(weights, folder)
    (folder / "encoder.onnx").write_bytes(b"earlier")
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        if source.name == "new":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(export.os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(weights, folder)
    assert names(tmp_path) == ["model"] and (folder / "encoder.onnx").read_bytes() == b"earlier"


def test_what_came_while_the_model_was_exported_stays(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"

    def slow(model: Any) -> bytes:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
        return b""

    monkeypatch.setattr(export, "export_decoder", slow)
    with pytest.raises(OutputError, match="holds no export of a model"):
        export_model(weights, folder)
    assert names(tmp_path) == ["model"] and (folder / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX")
def test_a_killed_export_leaves_no_half_folder(weights: Path, tmp_path: Path) -> None:
    """Killed when the first files are written."""
    program = (
        "import os, signal, sys; from refinesam import export; sync = os.fsync; done = []\n"
        "def killed(file):\n    sync(file); done.append(file)\n"
        "    len(done) == 2 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = killed; export.export_model(sys.argv[1], sys.argv[2])"
    )
    folder = tmp_path / "model"
    done = subprocess.run([sys.executable, "-c", program, weights, folder], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not folder.exists()
    export_model(weights, folder)
    assert names(folder) == FILES


def test_a_model_that_cannot_be_exported_is_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_BYTES", 1000)
    with pytest.raises(OutputError, match=r"random.safetensors, a hybrid_ti: The image encoder cannot be exported"):
        export_model(weights, tmp_path / "model")
    assert names(tmp_path) == []


def test_without_onnx(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"refinesam\[onnx\]"):
        export_model(weights, tmp_path / "model")


# Runs a program where torch, refinesam and OpenCV cannot be imported.
ALONE = """
import sys
sys.modules.update(dict.fromkeys(("torch", "refinesam", "cv2")))
del sys.argv[0]
exec(open(sys.argv[0]).read())
"""


def shown() -> list[str]:
    """The programs of the page."""
    return re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "builtin"
    export_model("builtin", folder)
    return folder


CLICKS = {"astronaut": (225, 130), "cell": (428, 388), "coins": (48, 46), "immunohistochemistry": (250, 250)}


def by_the_page(tmp_path: Path, folder: Path, click: tuple[int, int]) -> NDArray[np.bool_]:
    """What the page's program makes of photo.png."""
    program = tmp_path / "segment.py"
    program.write_text(shown()[0])
    command = [sys.executable, "-c", ALONE, program, folder, tmp_path / "photo.png", *map(str, click)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(tmp_path / "mask.png"))


@pytest.mark.parametrize("name", CLICKS)
def test_the_pages_program_gives_refinesams_mask(builtin: Path, tmp_path: Path, name: str) -> None:
    Image.fromarray(getattr(data, name)()).convert("RGB").save(tmp_path / "photo.png")
    expected = refinesam.load().encode(tmp_path / "photo.png").predict(refinesam.Prompt(points=[CLICKS[name]])).mask
    assert 0.01 < expected.mean() < 0.9
    assert refinesam.mask_iou(by_the_page(tmp_path, builtin, CLICKS[name]), expected) > 0.99


@pytest.mark.parametrize(("variant", "least"), [("mobile_sam", 0.97), ("efficientsam_ti", 0.9)])
def test_the_pages_program_fits_images_as_each_model_wants_them(tmp_path: Path, variant: str, least: float) -> None:
    """A wide picture: SAM keeps its shape, EfficientSAM does not.

    The masks of weights by formula are specks with long outlines: each way of enlarging them shows.
    """
    model = build_model(replace(config_named(variant), input_size=256))
    model.load_state_dict(formula.weights(model.state_dict()))
    save_weights(model, tmp_path / "formula.safetensors", torch.float32)
    export_model(tmp_path / "formula.safetensors", tmp_path / "model")
    Image.fromarray(formula.image(180, 240)).save(tmp_path / "photo.png")
    session = refinesam.load(tmp_path / "formula.safetensors")
    expected = session.encode(tmp_path / "photo.png").predict(refinesam.Prompt(points=[(100, 90)])).mask
    assert 0.1 < expected.mean() < 0.9
    assert refinesam.mask_iou(by_the_page(tmp_path, tmp_path / "model", (100, 90)), expected) > least


def test_the_pages_way_for_efficientsam_gives_its_pixels() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8))
    (_, program), (width, height) = shown(), (128, 128)
    values: dict[str, Any] = {"np": np, "Image": Image, "image": image, "size": np.array(image.size)}
    exec(program, values | {"width": width, "height": height}, values)
    frame = Frame("efficientsam", 128, (300, 401))
    mean, std = (np.array(v)[:, None, None] for v in (export.PIXEL_MEAN, export.PIXEL_STD))
    expected = frame.resize(np.asarray(image)).numpy() * std + mean
    assert np.abs(np.asarray(values["small"]).transpose(2, 0, 1) - expected).max() <= 1
    assert config_named("efficientsam_ti").family == frame.family
