"""Validation while training: which prompts are asked, which mask counts, and that the IoU is the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refinesam.models.build import build_model, normalise
from refinesam.models.config import ModelConfig
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.promptable import PromptableModel
from refinesam.training.finetune.validate import WholeImages, validate
from refinesam.training.sources.layouts import load_sources

CPU = torch.device("cpu")
CONFIG = ModelConfig("hybrid_ti", "hybrid", width=48, depth=1, heads=3, input_size=64, pos_grid=4)
PROTOCOLS = ("val_click", "val_3_clicks", "val_box")


def whole_images(root: Path, size: int = 64, per_source: int = 9) -> WholeImages:
    return WholeImages(load_sources(root, ("shapes",), "val"), size, per_source)


class Answers(PromptableModel):
    """Decodes given masks: three for every object, of which the claimed IoUs choose one; remembers what was asked."""

    def __init__(self, logits: list[Tensor], claims: list[Tensor]) -> None:
        super().__init__(CONFIG)
        self.logits, self.claims = logits, claims
        self.asked: list[tuple[Tensor, Tensor]] = []
        self.pixels: list[Tensor] = []

    def encode(self, pixels: Tensor) -> ImageFeatures:
        self.pixels.append(pixels)
        return ImageFeatures(pixels)

    def decode(
        self, features: Any, points: Tensor, labels: Tensor, mask_logits: Any = None, multimask_output: bool = True
    ) -> tuple[Tensor, Tensor]:
        image = len(self.pixels) - 1
        self.asked.append((points, labels))
        # The box is answered best, three clicks worse, one click worst.
        worse = {2: 0, 3: 1, 1: 2}[points.shape[2]] if labels[0, 0, 0] != 2 else 0
        return self.logits[image][None] - worse, self.claims[image][None]


def naive_iou(logits: np.ndarray, coverage: np.ndarray) -> float:
    both = either = 0
    for shown, covered in zip(logits.ravel() > 0, coverage.ravel() > 0.5, strict=True):
        both += shown and covered
        either += shown or covered
    return both / either


def test_the_mean_is_over_objects_of_the_mask_that_the_claims_choose(shapes_root: Path) -> None:
    samples = whole_images(shapes_root)
    rng = np.random.default_rng(0)
    all_logits, all_claims, expected = [], [], {name: [] for name in PROTOCOLS}
    for index in range(len(samples)):
        target = samples[index]["target"].numpy()
        logits = rng.normal(0, 1.5, (len(target), 3, 16, 16)) + 2 * (target[:, None] > 0.5)
        claims = rng.random((len(target), 3))
        for o, c in enumerate(claims.argmax(axis=1)):
            for name, worse in zip(PROTOCOLS, (2, 1, 0), strict=True):
                expected[name].append(naive_iou(logits[o, c] - worse, target[o]))
        all_logits.append(torch.from_numpy(logits))
        all_claims.append(torch.from_numpy(claims))
    found = validate(Answers(all_logits, all_claims), samples, CPU)
    assert found.pop("val_objects") == len(expected["val_box"]) > 5
    assert found == {name: pytest.approx(np.mean(values), abs=1e-4) for name, values in expected.items()}
    assert len(set(found.values())) == 3


def test_each_protocol_asks_its_own_prompts_without_padding(shapes_root: Path) -> None:
    samples = whole_images(shapes_root, per_source=1)
    sample = samples[0]
    objects = len(sample["target"])
    model = Answers([torch.zeros(objects, 3, 16, 16)], [torch.zeros(objects, 3)])
    validate(model, samples, CPU)
    assert torch.equal(model.pixels[0], normalise(sample["image"]))
    click, three, box = model.asked
    assert click[1].tolist() == [[[1]] * objects]
    assert three[1].tolist() == [[[1, 1, 1]] * objects]
    assert box[1].tolist() == [[[2, 3]] * objects]
    assert torch.equal(torch.cat([box[0], three[0]], dim=2), sample["points"][None])
    assert torch.equal(click[0], three[0][:, :, :1])


def test_a_sample_is_the_whole_image_with_tight_boxes_and_clicks_inside(shapes_root: Path) -> None:
    samples = whole_images(shapes_root, size=128)
    assert len(samples) == 3
    for index in range(3):
        sample, (source, number) = samples[index], samples.images[index]
        assert (sample["image"].shape, sample["image"].dtype) == ((1, 3, 128, 128), torch.uint8)
        assert sample["target"].shape[1:] == (32, 32)
        assert 0 < len(sample["target"]) <= len(source.read(number).objects)
        image = sample["image"][0].permute(1, 2, 0).numpy().astype(int)
        for target, points in zip(sample["target"].numpy(), sample["points"].numpy(), strict=True):
            y, x = np.nonzero(target > 0.5)
            # The box is that of the mask in input pixels, at most a stride-4 pixel around the thresholded one.
            tight = 4 * np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert abs(points[:2].reshape(4) - tight).max() <= 4
            clicked = image[tuple(points[2:].astype(int).T[::-1])]
            assert (clicked == clicked[0]).all() or np.ptp(clicked, axis=0).max() < 120, "one shape has one colour"
            assert (target[tuple((points[2:] / 4).astype(int).T[::-1])] > 0).all()


def test_samples_are_the_same_every_time(shapes_root: Path) -> None:
    first, second = (whole_images(shapes_root)[1] for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in ("image", "target", "points", "labels"))


def test_only_the_first_images_of_every_source_are_looked_at(shapes_root: Path) -> None:
    samples = whole_images(shapes_root, per_source=2)
    assert [source.name(number) for source, number in samples.images] == ["shapes/val1.png", "shapes/val2.png"]


def test_the_iou_at_stride_4_is_near_that_in_the_models_input(tmp_path: Path, write_source: Any) -> None:
    y, x = np.indices((256, 256))
    mask = np.hypot(x - 128, y - 110) < 80
    write_source(tmp_path, "shapes", [(np.zeros((256, 256, 3), np.uint8), [mask])], split="val")
    samples = whole_images(tmp_path, size=256)
    shifted = np.hypot(x - 140, y - 110) < 80
    logits = torch.from_numpy(shifted.reshape(64, 4, 64, 4).mean(axis=(1, 3)) - 0.5)
    found = validate(Answers([logits.expand(1, 3, 64, 64)], [torch.zeros(1, 3)]), samples, CPU)
    assert found["val_box"] == pytest.approx((mask & shifted).sum() / (mask | shifted).sum(), abs=0.01)


def test_damaged_images_and_specks_are_left_out(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    speck, thin, shape = np.zeros((3, 256, 256), bool)
    speck[8:11, 8:11] = True
    thin[100, 20:220] = True  # many pixels, but no stride-4 pixel is covered by half
    shape[50:90, 30:70] = True
    black = np.zeros((256, 256, 3), np.uint8)
    write_source(tmp_path, "shapes", [(black, [speck, thin, shape]), draw_shapes(1), (black, [thin])], split="val")
    (tmp_path / "shapes" / "images" / "val2.png").write_bytes(b"damaged")
    samples = whole_images(tmp_path, size=256)
    assert [len(samples[index]["target"]) for index in range(3)] == [1, 0, 0]
    assert [samples[index]["damaged"].partition(": ")[0] for index in range(3)] == ["", "shapes/val2.png", ""]
    assert samples[1]["points"].shape == (0, 5, 2)
    assert samples[1]["labels"].shape == (0, 5)
    with torch.random.fork_rng():
        model = build_model(CONFIG).eval()
    assert validate(model, samples, CPU)["val_objects"] == 1


def test_images_are_fitted_by_family_and_masks_alike(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    rng = np.random.default_rng(0)
    masks = draw_shapes(1, (200, 200))[1]
    write_source(tmp_path, "shapes", [(rng.integers(0, 256, (200, 200, 3), np.uint8), masks)], split="val")
    sources = load_sources(tmp_path, ("shapes",), "val")
    hybrid, other = (WholeImages(sources, 64, 9, family=family)[0] for family in ("hybrid", "efficientsam"))
    assert other["image"].float().std() > 1.5 * hybrid["image"].float().std(), "averaging takes contrast"
    assert all(torch.equal(other[key], hybrid[key]) for key in ("target", "points", "labels"))


def test_without_any_object_there_is_no_mean(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    folder = write_source(tmp_path, "shapes", [draw_shapes(1)], split="val")
    (folder / "images" / "val1.png").unlink()
    assert validate(Answers([], []), whole_images(tmp_path), CPU) == {"val_objects": 0}
