"""A tiny data set of coloured shapes, and settings that train on it in seconds on one core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refinesam.images import write_png
from refinesam.masks import box_from_mask, encode_rle
from refinesam.training.finetune.config import FinetuneConfig
from refinesam.training.finetune.data import PromptedCrops, Sample, batches_from
from refinesam.training.sources.layouts import load_sources

Shapes = tuple[np.ndarray, list[np.ndarray]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _draw_shapes(seed: int, hw: tuple[int, int] = (72, 96)) -> Shapes:
    rng = np.random.default_rng(seed)
    y, x = np.indices(hw)
    image = np.full((*hw, 3), rng.integers(0, 60, 3), np.uint8)
    owner = np.full(hw, -1)
    for number in range(3):
        cy, cx = rng.uniform(0.2, 0.8, 2) * hw
        ry, rx = rng.uniform(9, 20, 2)
        inside = (
            (abs(y - cy) < ry) & (abs(x - cx) < rx) if number % 2 else ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        )
        image[inside], owner[inside] = rng.integers(100, 255, 3), number
    return image, [owner == number for number in range(3) if (owner == number).sum() > 60]


def _write_source(
    root: Path, name: str, images: list[Shapes], split: str = "train", changes: dict[int, dict[str, Any]] | None = None
) -> Path:
    """Write `root/name` as training reads it; `changes` are made to annotations by their number, from 0."""
    folder = root / name
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records, annotations = [], []
    for number, (pixels, masks) in enumerate(images, start=1):
        file_name = f"{split}{number}.png"
        write_png(folder / "images" / file_name, pixels)
        records.append({"id": number, "file_name": file_name, "height": pixels.shape[0], "width": pixels.shape[1]})
        for mask in masks:
            x0, y0, x1, y1 = box_from_mask(mask).tolist()
            one = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 1,
                "segmentation": dict(encode_rle(mask)),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
            annotations.append(one | (changes or {}).get(len(annotations), {}))
    content = {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "shape"}]}
    (folder / f"instances_{split}.json").write_text(json.dumps(content), "utf-8")
    return folder


def _tiny_config(**sections: Any) -> FinetuneConfig:
    values: dict[str, Any] = {
        "seed": 3,
        "precision": "fp32",
        "checkpoint_every": 2,
        "validate_every": 2,
        "log_every": 1,
        "model": {"variant": "hybrid_ti", "input_size": 64},
        "data": {"sources": ["shapes"], "workers": 0, "val_images": 2},
        "prompts": {"per_image": 2},
        "optim": {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 2},
    }
    for name, value in sections.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return FinetuneConfig.model_validate(values)


def _batches_of(config: FinetuneConfig, root: Path, count: int) -> list[Sample]:
    folders = load_sources(root, config.data.sources, "train")
    samples = PromptedCrops(folders, 64, config.data, config.prompts, config.seed)
    with batches_from(samples, range(count), config.optim.batch_size, 0) as batches:
        return [next(batches) for _ in range(count)]


def _flat(state: Any, path: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict, to compare tensors bit for bit and the rest by value."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        return {path: state}
    return {key: value for name, part in items for key, value in _flat(part, f"{path}/{name}").items()}


def _assert_same(a: Any, b: Any) -> None:
    first, second = _flat(a), _flat(b)
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        elif key != "/seconds":
            assert value == second[key], key


@pytest.fixture(scope="session")
def draw_shapes() -> Callable[..., Shapes]:
    """`draw_shapes(seed, hw)` gives an image of shapes and the masks of what is seen of each."""
    return _draw_shapes


@pytest.fixture(scope="session")
def write_source() -> Callable[..., Path]:
    """`write_source(root, name, images, split, changes)` writes a source that training reads."""
    return _write_source


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., FinetuneConfig]:
    """`tiny_config(seed=1, optim={"steps": 2})` gives settings for a run of seconds, with the changes named."""
    return _tiny_config


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one source "shapes": six images to train on, three to validate on. Not to be changed."""
    root = tmp_path_factory.mktemp("data")
    _write_source(root, "shapes", [_draw_shapes(seed) for seed in range(6)])
    _write_source(root, "shapes", [_draw_shapes(seed, (64, 80)) for seed in range(10, 13)], split="val")
    return root


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """A folder for a run; removed, because a checkpoint takes 137 MB."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture(scope="session")
def batches_of() -> Callable[..., list[Sample]]:
    """`batches_of(config, root, count)` gives the first batches of a run at 64 x 64."""
    return _batches_of


@pytest.fixture
def in_two_processes(tmp_path: Path) -> Callable[..., None]:
    """`in_two_processes(run, config, data, output)` calls a training function under torchrun, on one thread each."""

    def call(run: Callable[..., Any], config: Any, data: Path, output: Path) -> None:
        kind, script = type(config), tmp_path / "run.py"
        script.write_text(
            "import torch\n"
            "from pathlib import Path\n"
            f"from {run.__module__} import {run.__name__}\n"
            f"from {kind.__module__} import {kind.__name__}\n"
            "torch.set_num_threads(1)\n"
            f"config = {kind.__name__}.model_validate_json({config.model_dump_json()!r})\n"
            f"{run.__name__}(config, Path({str(data)!r}), Path({str(output)!r}), 'cpu')\n"
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        environment = inherited | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

    return call


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """`assert_same(a, b)` holds if two nested states agree bit for bit, but for the top's seconds."""
    return _assert_same
