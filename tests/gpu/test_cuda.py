"""Everything that computes, on CUDA: the same answers as on the CPU, in every dtype and on every path.

Skipped where there is no GPU. `make gpu` runs it where there is one; REFINESAM_TEST_DEVICE=cpu tries the tests alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import refinesam
from refinesam import Prompt
from refinesam.images import write_png
from refinesam.loading import DtypeName
from refinesam.masks import encode_rle, mask_iou
from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS
from refinesam.predictor import Predictor
from refinesam.session import Session
from refinesam.training.finetune.config import FinetuneConfig
from refinesam.training.finetune.run import finetune
from refinesam.training.pretrain.config import MaeConfig, SamiConfig
from refinesam.training.pretrain.run import pretrain
from refinesam.weights import load_model

DEVICE = os.environ.get("REFINESAM_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA GPU")

# Of logits, mean over pixels, in their standard deviations. A GPU's products are rounded otherwise than a CPU's.
LARGEST_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
SMALL = {"efficientsam_ti": 256, "sam_vit_b": 256, "hybrid_ti": 256, "hybrid_lite0": 256}


def picture() -> np.ndarray:
    y, x = np.mgrid[:240, :320]
    image = np.stack([127 + 100 * np.sin(x / 37), 127 + 100 * np.cos(y / 23), x % 256], axis=-1).astype(np.uint8)
    image[(x - 130) ** 2 + (y - 120) ** 2 < 60**2] = (240, 40, 60)
    return image


def session(name: str, device: str, dtype: DtypeName = "float32") -> Session:
    if name == "builtin":
        return refinesam.load("builtin", device=device, dtype=dtype)
    torch.manual_seed(0)
    config = replace(CONFIGS[name], input_size=SMALL[name])
    if config.family == "sam":
        config = replace(config, pos_grid=SMALL[name] // 16)
    return Session(Predictor(build_model(config), name, torch.device(device), getattr(torch, dtype)))


def prompts(name: str) -> list[Prompt]:
    asked = [Prompt(points=[[130.5, 120.5]]), Prompt(box=[60, 50, 200, 190]), Prompt(points=[[130, 120], [150, 110]])]
    # Random weights answer a negative click by chance, and what follows differs by it.
    if name == "builtin":
        asked.append(Prompt(points=[[130, 120], [20, 20]], labels=[1, 0], box=[60, 50, 200, 190]))
    return asked


@pytest.mark.parametrize("dtype", list(LARGEST_DIFFERENCE))
@pytest.mark.parametrize("name", ["builtin", *SMALL])
def test_answers_are_those_of_the_cpu(name: str, dtype: DtypeName) -> None:
    here, there = session(name, "cpu"), session(name, DEVICE, dtype)
    expected, found = here.encode(picture()), there.encode(picture())
    for prompt in prompts(name):
        a, b = expected.predict(prompt), found.predict(prompt)
        difference = np.abs(a.low_res_logits - b.low_res_logits).mean() / a.low_res_logits.std()
        assert difference < LARGEST_DIFFERENCE[dtype]
        assert np.abs(a.iou_predictions - b.iou_predictions).max() < LARGEST_DIFFERENCE[dtype]
        if name == "builtin":
            assert mask_iou(a.mask, b.mask) > (0.999 if dtype == "float32" else 0.97)


@pytest.mark.parametrize("dtype", ["auto", *LARGEST_DIFFERENCE])
def test_every_path_of_a_session(dtype: Any, tmp_path: Path) -> None:
    loaded = refinesam.load("builtin", device=DEVICE, dtype=dtype, cache_dir=tmp_path)
    image = loaded.encode(picture())
    first = image.predict(Prompt(box=[60, 50, 200, 190]))
    again = image.predict(Prompt(box=[60, 50, 200, 190], mask_logits=first.logits))
    assert not np.array_equal(first.low_res_logits, again.low_res_logits)
    for preset in (refinesam.AMRConfig.full, refinesam.AMRConfig.fast, refinesam.AMRConfig.paper):
        refined = image.refine(first, preset())
        assert refined.mask.shape == (240, 320) and refined.refinement is not None
    assert isinstance(loaded.segment_everything(picture()), list)
    # Features from the disk are the same bits.
    other = refinesam.load("builtin", device=DEVICE, dtype=dtype, cache_dir=tmp_path).encode(picture())
    assert np.array_equal(other.predict(Prompt(box=[60, 50, 200, 190])).low_res_logits, first.low_res_logits)


def write_shapes(root: Path) -> None:
    folder = root / "shapes"
    (folder / "images").mkdir(parents=True)
    mask = np.zeros((96, 96), bool)
    mask[20:70, 30:80] = True
    image = np.where(mask[..., None], 200, 40).repeat(3, axis=2).astype(np.uint8)
    one = {
        "segmentation": dict(encode_rle(mask)),
        "bbox": [30, 20, 50, 50],
        "area": 2500,
        "iscrowd": 0,
        "category_id": 1,
    }
    for split in ("train", "val"):
        write_png(folder / "images" / f"{split}.png", image)
        content = {
            "images": [{"id": 1, "file_name": f"{split}.png", "height": 96, "width": 96}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **one}],
            "categories": [{"id": 1, "name": "shape"}],
        }
        (folder / f"instances_{split}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("resident", [0, 96])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_decoder"])
def test_finetuning(resident: int, precision: str, tmp_path: Path) -> None:
    write_shapes(tmp_path)
    config = FinetuneConfig.model_validate(
        {
            "precision": precision,
            "pictures": 0,
            "model": {"variant": "hybrid_lite0", "input_size": 64},
            "data": {"sources": ["shapes"], "workers": 0, "resident": resident, "val_images": 1},
            "prompts": {"per_image": 2, "correction_probability": 0.5, "self_probability": 0.5},
            "optim": {"steps": 6, "batch_size": 2, "optimizer": "muon", "warmup_steps": 2},
        }
    )
    model = load_model(finetune(config, tmp_path, tmp_path / "run", DEVICE))
    assert model.config.name == "hybrid_lite0"


@pytest.mark.parametrize("method", ["sami", "mae"])
def test_pretraining(method: str, tmp_path: Path) -> None:
    write_shapes(tmp_path)
    values: dict[str, Any] = {
        "student": {"variant": "efficientsam_ti", "input_size": 64},
        "decoder": {"width": 64, "depth": 1, "heads": 2},
        "data": {"workers": 0},
        "optim": {"epochs": 2, "batch_size": 2, "warmup_epochs": 1},
    }
    kind = MaeConfig if method == "mae" else SamiConfig
    if method == "sami":
        values["teacher"] = {"weights": "builtin"}
    assert pretrain(kind.model_validate(values), tmp_path / "shapes", tmp_path / "run", DEVICE).exists()
