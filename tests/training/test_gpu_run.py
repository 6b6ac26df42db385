"""What `make gpu` does, tried on the CPU with a tiny budget: the pack of data, and training until a deadline."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refinesam.masks import decode_segmentation, mask_iou
from refinesam.training.finetune.config import DataConfig
from refinesam.training.finetune.resident import ResidentImages
from refinesam.training.sources.layouts import load_sources
from refinesam.weights import load_model
from scripts import script

CPU = torch.device("cpu")


def test_a_pack_is_a_folder_of_the_same_objects(
    tmp_path: Path, draw_shapes: Any, write_source: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_source(tmp_path / "data", "shapes", [draw_shapes(1), draw_shapes(2, (300, 200)), draw_shapes(3)])
    (folder / "images" / "train3.png").write_bytes(b"no picture")
    packed = tmp_path / "pack" / "data.tar.xz"
    script("training/pack").pack(tmp_path / "data", ("shapes",), 96, 80, packed, "builtin")
    assert "left out: shapes/train3.png" in capsys.readouterr().out
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    start, shipped = load_model(tmp_path / "unpacked" / "start.safetensors"), load_model("builtin")
    for name, value in start.state_dict().items():
        assert torch.allclose(value, shipped.state_dict()[name], rtol=0.003, atol=1e-6), name
    config = DataConfig(sources=("shapes",))
    (whole,), (small,) = (load_sources(tmp_path / root, config.sources, "train") for root in ("data", "unpacked"))
    assert len(small) == 2
    same, shrunk = small.read(0), small.read(1)
    assert same.pixels.shape == whole.read(0).pixels.shape and max(shrunk.pixels.shape) == 96
    assert np.abs(same.pixels.astype(int) - whole.read(0).pixels).mean() < 6
    for ours, theirs in zip(same.objects, whole.read(0).objects, strict=True):
        a, b = (decode_segmentation(one.segmentation, *same.pixels.shape[:2]) for one in (ours, theirs))
        assert mask_iou(a, b) == 1.0


def test_training_ends_by_its_deadline_with_weights_in_parts(
    tiny_config: Any, shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = script("training/gpu")
    monkeypatch.setattr(gpu, "PART_BYTES", 5 * 2**20)
    recipe = tiny_config(model={"variant": "hybrid_lite0"}, data={"resident": 96, "val_images": 0})
    images = ResidentImages.read(load_sources(shapes_root, recipe.data.sources, "train"), 96, CPU)
    gpu.train(recipe, gpu.TINY_PHASES, images, CPU, time.monotonic() + 8, tmp_path)
    phases = json.loads((tmp_path / "training.json").read_text())["phases"]
    assert [phase["input_size"] for phase in phases] == [64, 96]
    assert all(phase["steps"] >= 1 and phase["tflop_per_second"] > 0 for phase in phases)
    parts = sorted(tmp_path.glob("weights.part*"))
    assert len(parts) > 2 and all(part.stat().st_size <= 5 * 2**20 for part in parts)
    joined = tmp_path / "joined.safetensors"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    model, exact = load_model(joined), load_model(tmp_path / "weights.safetensors")
    assert model.config == exact.config and model.config.input_size == 96
    for name, value in model.state_dict().items():
        assert torch.equal(value, exact.state_dict()[name].half().float()), name
