"""Samples made on the device: the same kind of crops, augmentation and prompts as those read from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refinesam.errors import ConfigError, DatasetError
from refinesam.models.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, PADDING, POSITIVE, TOP_LEFT
from refinesam.training.finetune import resident as resident_module
from refinesam.training.finetune import run as finetune_module
from refinesam.training.finetune.config import DataConfig, PromptConfig
from refinesam.training.finetune.data import PromptedCrops, Sample
from refinesam.training.finetune.resident import ResidentImages, ResidentSamples
from refinesam.training.finetune.resident_prompts import first_prompts
from refinesam.training.finetune.run import finetune
from refinesam.training.finetune.state import Finetuning
from refinesam.training.processes import Processes
from refinesam.training.sources.layouts import load_sources

CPU = torch.device("cpu")
CPU_RUN = Processes(0, 1, CPU)
SIZE, SIDE = 64, 96


def resident(root: Path, side: int = SIDE, prompts: PromptConfig | None = None, **data: Any) -> ResidentSamples:
    config = DataConfig(**({"sources": ("shapes",), "resident": side} | data))
    images = ResidentImages.read(load_sources(root, config.sources, "train"), side, CPU)
    return ResidentSamples(images, SIZE, config, prompts or PromptConfig(per_image=2), seed=0)


@pytest.fixture
def plain_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "_augment", lambda pixels, rng, generator: pixels)


def equal(a: Sample, b: Sample) -> bool:
    return all(torch.equal(a[key], b[key]) for key in ("image", "target", "points", "labels"))


def test_a_batch_has_its_shapes_and_types(shapes_root: Path) -> None:
    batch = resident(shapes_root, prompts=PromptConfig(per_image=3)).batch(0, 5)
    assert (batch["image"].shape, batch["image"].dtype) == ((5, 3, 64, 64), torch.uint8)
    assert (batch["target"].shape, batch["target"].dtype) == ((5, 3, 16, 16), torch.float32)
    assert (batch["points"].shape, batch["points"].dtype) == ((5, 3, 9, 2), torch.float32)
    assert (batch["labels"].shape, batch["labels"].dtype) == ((5, 3, 9), torch.int64)
    assert (batch["target"].sum(dim=(-2, -1)) > 0).all()
    given = batch["points"][batch["labels"] >= 0]
    assert given.min() >= 0 and given.max() <= 64


def test_a_batch_follows_from_seed_and_step_whatever_the_order(shapes_root: Path) -> None:
    samples = resident(shapes_root)
    later, first = samples.batch(7, 3), samples.batch(0, 3)
    assert equal(later, samples.batch(7, 3)) and equal(first, resident(shapes_root).batch(0, 3))
    assert not torch.equal(later["image"], first["image"])


def test_an_image_that_is_its_mask_stays_its_mask(
    tmp_path: Path, plain_colors: None, draw_shapes: Any, write_source: Any
) -> None:
    images = []
    # The last one is larger than what is kept of it.
    for seed, hw in enumerate([(90, 88), (40, 30), (64, 64), (300, 200)]):
        mask = draw_shapes(seed, hw)[1][0]
        images.append((np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), [mask]))
    write_source(tmp_path, "shapes", images)
    samples, seen, right = resident(tmp_path), set(), []
    for step in range(20):
        batch = samples.batch(step, 4)
        shown = batch["image"][:, 0].float() / 255
        coverage = torch.nn.functional.avg_pool2d(shown, 4)
        # A mask that was shrunk has hard edges, its image has soft ones.
        assert (batch["target"] - coverage[:, None]).abs().mean() < 0.01
        for image, points, labels in zip(shown, batch["points"].flatten(1, 2), batch["labels"].flatten(1), strict=True):
            for label, wanted in ((POSITIVE, True), (NEGATIVE, False)):
                x, y = points[labels == label].long().T
                right += ((image[y, x] > 0.5) == wanted).tolist()
        seen |= {image.numpy().tobytes() for image in batch["image"]}
    assert len(right) > 200 and np.mean(right) > 0.98
    assert len(seen) > 60, "crops, mirrorings and turns differ"


def test_crops_and_prompts_are_like_those_read_from_files(shapes_root: Path) -> None:
    prompts = PromptConfig(per_image=2)
    config = DataConfig(sources=("shapes",))
    read = PromptedCrops(load_sources(shapes_root, config.sources, "train"), SIZE, config, prompts, seed=1)
    made = resident(shapes_root)
    files = [read[index] for index in range(400)]
    batches = [made.batch(step, 40) for step in range(10)]
    for label in (PADDING, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT):
        share = np.mean([(one["labels"] == label).float().mean() for one in files])
        assert np.mean([(one["labels"] == label).float().mean() for one in batches]) == pytest.approx(share, abs=0.02)
    area = np.mean([one["target"].mean() for one in files])
    assert np.mean([one["target"].mean() for one in batches]) == pytest.approx(area, rel=0.1)
    brightness = np.mean([one["image"].float().mean() for one in files])
    assert np.mean([one["image"].float().mean() for one in batches]) == pytest.approx(brightness, rel=0.1)
    contrast = np.mean([one["image"].float().std() for one in files])
    deviations = [one["image"].float().flatten(1).std(dim=1).mean() for one in batches]
    assert np.mean(deviations) == pytest.approx(contrast, rel=0.1)


def prompts_for(mask: np.ndarray, count: int, **shares: Any) -> tuple[torch.Tensor, torch.Tensor]:
    masks = torch.from_numpy(mask).expand(count, -1, -1)
    return first_prompts(masks, PromptConfig(**shares), torch.Generator().manual_seed(0))


def test_half_of_the_boxes_are_tight_and_none_leaves_the_image() -> None:
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:60] = True
    points, labels = prompts_for(mask, 400, box_probability=1.0, negative_probability=0.0)
    assert (labels[:, :2] == torch.tensor([TOP_LEFT, BOTTOM_RIGHT])).all()
    tight = (points[:, :2] == torch.tensor([[10.0, 20.0], [60.0, 40.0]])).flatten(1).all(1)
    assert tight.float().mean() == pytest.approx(0.5, abs=0.08)
    assert points[:, :2].min() >= 0 and points[:, :2].max() <= 64
    assert (points[:, 1] > points[:, 0] + 1).all()


@pytest.mark.parametrize(("boxed", "low", "high"), [(1.0, (10, 20), (60, 40)), (0.0, (0, 2), (64, 58))])
def test_negative_clicks_lie_near_the_object_and_in_its_box(
    boxed: float, low: tuple[int, int], high: tuple[int, int]
) -> None:
    mask = np.zeros((64, 64), bool)
    mask[20:40, 10:60] = True
    mask[20:30, 10:30] = False
    points, labels = prompts_for(mask, 300, box_probability=boxed, negative_probability=1.0)
    clicks = points[labels == NEGATIVE]
    assert set((labels == NEGATIVE).sum(dim=1).tolist()) == {1, 2}
    assert (clicks >= torch.tensor(low)).all() and (clicks <= torch.tensor(high)).all()
    x, y = clicks.long().T
    assert not torch.from_numpy(mask)[y, x].any()


def test_objects_without_room_or_pixels_get_what_there_is() -> None:
    whole, empty = np.ones((32, 32), bool), np.zeros((32, 32), bool)
    _, labels = prompts_for(whole, 50, negative_probability=1.0)
    assert NEGATIVE not in labels
    _, labels = prompts_for(empty, 50, negative_probability=1.0)
    assert (labels == PADDING).all()


def test_sources_are_drawn_by_their_power_and_weight(tmp_path: Path, plain_colors: None, write_source: Any) -> None:
    for name, count, gray in (("few", 1, 60), ("many", 9, 200)):
        mask = np.zeros((40, 40), bool)
        mask[5:35, 5:35] = True
        write_source(tmp_path, name, [(np.full((40, 40, 3), gray, np.uint8), [mask])] * count)
    for data, share in (
        ({"sampling_power": 1.0}, 0.9),
        ({"sampling_power": 0.0, "source_weights": {"few": 3.0}}, 0.25),
    ):
        samples = resident(tmp_path, sources=("few", "many"), **data)
        found = (samples.batch(0, 300)["image"].flatten(1).amax(1) == 200).float().mean()
        assert found == pytest.approx(share, abs=0.08)


def test_a_damaged_image_costs_itself_and_is_told(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    folder = write_source(tmp_path, "shapes", [draw_shapes(1), draw_shapes(2)])
    (folder / "images" / "train1.png").write_bytes(b"no picture")
    samples = resident(tmp_path)
    assert len(samples.images.pixels) == 1 and "train1.png" in samples.images.damaged[0]
    (folder / "images" / "train2.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="No image has an object"):
        resident(tmp_path)


def test_a_killed_run_resumes(tiny_config: Any, shapes_root: Path, tmp_path: Path) -> None:
    config = tiny_config(data={"resident": SIDE, "val_images": 0}, prompts={"correction_probability": 1.0})
    whole = finetune(config, shapes_root, tmp_path / "whole", "cpu").read_bytes()

    def stop(report: Any) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(config, shapes_root, tmp_path / "killed", "cpu", on_step=stop)
    assert finetune(config, shapes_root, tmp_path / "killed", "cpu").read_bytes() == whole


def test_several_processes_are_refused(tiny_config: Any) -> None:
    run = Finetuning(tiny_config(data={"resident": SIDE}), CPU_RUN)
    run.processes = Processes(0, 2, CPU)
    with pytest.raises(ConfigError, match="data.resident makes the batches of one process"):
        finetune_module._batches(run, [], lambda step, **values: None)
