"""Samples: a function of the seed and the index, image and masks transformed alike, damaged files passed over."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refinesam.errors import ConfigError, DatasetError, ImageError
from refinesam.images import read_image
from refinesam.models.build import normalise
from refinesam.models.frames import Frame
from refinesam.training.finetune import data as data_module
from refinesam.training.finetune.augment import augment_colors, flip_and_turn
from refinesam.training.finetune.config import DataConfig, PromptConfig
from refinesam.training.finetune.data import (
    PromptedCrops,
    Sample,
    batches_from,
    fit_image,
    fit_to_square,
    stride4_coverage,
)
from refinesam.training.sources.layouts import load_sources

SIZE = 64


def crops(root: Path, seed: int = 0, per_image: int = 2, **data: Any) -> PromptedCrops:
    config = DataConfig(**({"sources": ("shapes",)} | data))
    return PromptedCrops(
        load_sources(root, config.sources, "train"), SIZE, config, PromptConfig(per_image=per_image), seed
    )


def equal(a: Sample, b: Sample) -> bool:
    return all(torch.equal(a[key], b[key]) for key in ("image", "target", "points", "labels"))


@pytest.fixture
def plain_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the image's values as they are, so that they can be compared with what was written."""
    monkeypatch.setattr(data_module, "augment_colors", lambda image, rng: image)


# ---------------------------------------------------------------- samples


def test_a_sample_has_its_shapes_and_types(shapes_root: Path) -> None:
    samples = crops(shapes_root, per_image=3)
    for index in range(20):
        sample = samples[index]
        assert (sample["image"].shape, sample["image"].dtype) == ((3, 64, 64), torch.uint8)
        assert (sample["target"].shape, sample["target"].dtype) == ((3, 16, 16), torch.float32)
        assert (sample["points"].shape, sample["points"].dtype) == ((3, 9, 2), torch.float32)
        assert (sample["labels"].shape, sample["labels"].dtype) == ((3, 9), torch.int64)
        assert sample["target"].min() >= 0 and sample["target"].max() <= 1
        assert (sample["target"].sum(dim=(1, 2)) > 0).all()
        given = sample["points"][sample["labels"] >= 0]
        assert given.min() >= 0 and given.max() <= 64
        assert sample["damaged"] == ""


def test_a_sample_follows_from_seed_and_index_whatever_the_order(shapes_root: Path) -> None:
    forward = [crops(shapes_root)[i] for i in range(8)]
    samples = crops(shapes_root)
    backward = [samples[i] for i in reversed(range(8))]
    assert all(equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    assert not equal(forward[0], forward[1])
    assert not equal(forward[0], crops(shapes_root, seed=1)[0])


def test_samples_are_those_of_earlier_versions(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    write_source(tmp_path, "shapes", [draw_shapes(seed) for seed in range(6)])
    wide = write_source(tmp_path, "wide", [draw_shapes(seed, (40, 130)) for seed in range(20, 23)])
    (wide / "images" / "train2.png").write_bytes(b"damaged")
    samples = crops(tmp_path, seed=5, per_image=3, sources=("shapes", "wide"))
    # Two of the image's values, its mean, the targets' sum, the labels and the sum of the points, recorded before there
    # were other layouts than this one; a negative click with a box has moved into it since.
    for index, (one, another, mean, covered, labels, points) in enumerate(RECORDED):
        sample = samples[index]
        given = sample["labels"] >= 0
        assert sample["labels"][given].tolist() == labels
        assert sample["points"][given].sum().item() == pytest.approx(points, abs=0.02)
        assert sample["target"].sum().item() == pytest.approx(covered, abs=0.5)
        assert sample["image"].float().mean().item() == pytest.approx(mean, abs=0.5)
        assert sample["image"][0, 5, 9].item() == pytest.approx(one, abs=3)
        assert sample["image"][1, 40, 30].item() == pytest.approx(another, abs=3)


RECORDED = [
    (120, 185, 153.54, 108.22, [1, 0, 0, 1, 1, 1, 1, 1, 1], 505.0),
    (0, 70, 35.29, 104.53, [2, 3, 2, 3, 1, 1, 1, 1, 1, 0, 0], 805.29),
    (120, 66, 114.09, 113.0, [1, 2, 3, 1], 198.0),
    (49, 145, 87.88, 118.04, [2, 3, 1, 1, 1], 266.0),
    (186, 153, 140.66, 114.74, [2, 3, 2, 3, 1, 1, 1], 394.0),
    (37, 10, 81.96, 105.26, [1, 0, 0, 2, 3, 1, 1], 492.69),
    (44, 96, 65.15, 104.53, [2, 3, 1, 2, 3, 0], 404.37),
    (160, 44, 56.35, 78.65, [1, 1, 1, 1, 1, 1, 0, 0, 1], 354.0),
]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(shapes_root: Path, workers: int) -> None:
    samples = crops(shapes_root)
    with batches_from(samples, range(2, 7), 2, workers) as batches:
        found = list(batches)
    assert multiprocessing.active_children() == []
    assert len(found) == 5
    for number, batch in enumerate(found):
        for row in range(2):
            one = {key: batch[key][row] for key in batch}
            assert equal(one, samples[4 + 2 * number + row])


def test_processes_share_each_steps_batch(shapes_root: Path) -> None:
    samples = crops(shapes_root)
    with batches_from(samples, range(1, 3), 4, 0) as batches:
        whole = list(batches)
    shares = []
    for rank in range(2):
        with batches_from(samples, range(1, 3), 4, 0, rank, 2) as batches:
            shares.append(list(batches))
    for number, batch in enumerate(whole):
        for name in ("image", "points", "target"):
            assert torch.equal(batch[name], torch.cat([share[number][name] for share in shares]))


def test_a_finished_run_has_no_batches_left(shapes_root: Path) -> None:
    with batches_from(crops(shapes_root), range(3, 3), 2, 0) as batches:
        assert list(batches) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_no_worker_outlives_an_error(shapes_root: Path, error: type[BaseException]) -> None:
    with pytest.raises(error) as caught, batches_from(crops(shapes_root), range(9), 2, 1) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 1
        raise error
    assert caught.value is not None, "its traceback is still held here"
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_the_same_error_here(tmp_path: Path, shapes_root: Path, write_source: Any) -> None:
    speck = np.zeros((300, 300), bool)
    speck[5, 5] = True
    write_source(tmp_path, "shapes", [(np.zeros((300, 300, 3), np.uint8), [speck])])
    samples = crops(tmp_path, zoom_probability=0)
    with pytest.raises(DatasetError, match="50 draws") as caught, batches_from(samples, range(9), 2, 1) as batches:
        next(batches)
    assert caught.value is not None
    assert multiprocessing.active_children() == []


# ---------------------------------------------------------------- image and masks alike


def test_an_image_that_is_its_mask_stays_its_mask(
    tmp_path: Path, plain_colors: None, draw_shapes: Any, write_source: Any
) -> None:
    images = []
    for seed, hw in enumerate([(90, 140), (40, 30), (64, 64), (200, 50)]):
        mask = draw_shapes(seed, hw)[1][0]
        images.append((np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), [mask]))
    write_source(tmp_path, "shapes", images)
    samples = crops(tmp_path)
    seen = set()
    for index in range(150):
        sample = samples[index]
        shown = sample["image"][0].numpy()
        coverage = shown.reshape(16, 4, 16, 4).mean(axis=(1, 3)) / 255
        for target in sample["target"].numpy():
            assert np.allclose(target, coverage, atol=1e-6)
        for points, labels in zip(sample["points"].numpy(), sample["labels"].numpy(), strict=True):
            x, y = points[labels == 1].astype(int).T
            assert (shown[y, x] > 127).all()
            x, y = points[labels == 0].astype(int).T
            assert (shown[y, x] <= 127).all()
        seen.add(shown.tobytes())
    assert len(seen) > 100, "crops, mirrorings and turns differ"


@pytest.mark.parametrize(("claimed_box", "alone"), [([370, 10, 20, 20], {120, 240}), ([0, 0, 400, 40], {120})])
def test_an_object_outside_the_crop_is_never_used(
    tmp_path: Path, plain_colors: None, write_source: Any, claimed_box: list[int], alone: set[int]
) -> None:
    # Two squares far apart, each of a gray of its own; the second one's annotated box is right, or claims everything.
    image = np.zeros((40, 400, 3), np.uint8)
    left, right = np.zeros((2, 40, 400), bool)
    left[10:30, 10:30] = right[10:30, 370:390] = True
    image[left], image[right] = 120, 240
    write_source(tmp_path, "shapes", [(image, [left, right])], changes={1: {"bbox": claimed_box}})
    samples = crops(tmp_path, zoom_probability=1.0)
    views = []
    for index in range(100):
        sample = samples[index]
        shown = sample["image"][0].numpy().reshape(16, 4, 16, 4).mean(axis=(1, 3))
        grays = []
        for target in sample["target"].numpy():
            assert target.any()
            # Resized alike, the object's part of a block tells how bright the block is.
            covered = target[target > 0]
            grays += [gray for gray in (120, 240) if np.allclose(shown[target > 0], gray * covered, atol=2)]
        assert len(grays) == 2
        views.append(set(grays))
    assert {gray for gray in (120, 240) if {gray} in views} == alone, "some crops must leave one of them out"
    assert {120, 240} in views


def test_every_object_of_a_crowded_image_gets_its_turn(tmp_path: Path, plain_colors: None, write_source: Any) -> None:
    masks, image = [], np.zeros((64, 64, 3), np.uint8)
    for number in range(9):
        mask = np.zeros((64, 64), bool)
        mask[20 * (number // 3) + 2 :, 20 * (number % 3) + 2 :][:16, :16] = True
        image[mask] = 20 * (number + 1)
        masks.append(mask)
    write_source(tmp_path, "shapes", [(image, masks)])
    samples = crops(tmp_path, per_image=4, zoom_probability=0)
    counts = np.zeros(9, int)
    for index in range(60):
        sample = samples[index]
        grays = [
            int(sample["image"][0].numpy()[np.kron(t > 0.99, np.ones((4, 4))) > 0][0]) for t in sample["target"].numpy()
        ]
        assert len(set(grays)) == 4, "four prompts, four objects"
        for gray in grays:
            counts[round(gray / 20) - 1] += 1
    assert counts.min() > 10


def test_sources_are_drawn_by_their_power(tmp_path: Path, plain_colors: None, write_source: Any) -> None:
    for name, count, gray in (("few", 1, 60), ("many", 9, 200)):
        mask = np.zeros((40, 40), bool)
        mask[5:35, 5:35] = True
        write_source(tmp_path, name, [(np.full((40, 40, 3), gray, np.uint8), [mask])] * count)
    for power, share in ((0.0, 0.5), (0.5, 0.75), (1.0, 0.9)):
        samples = crops(tmp_path, sources=("few", "many"), sampling_power=power)
        found = np.mean([samples[i]["image"].max().item() == 200 for i in range(250)])
        assert found == pytest.approx(share, abs=0.08)
    samples = crops(tmp_path, sources=("few", "many"), sampling_power=1.0, source_weights={"few": 27.0})
    assert np.mean([samples[i]["image"].max().item() == 200 for i in range(250)]) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize("hw", [(16, 16), (50, 50), (64, 64), (65, 63), (300, 20)])
def test_fitting_keeps_constant_images_and_gives_a_square(hw: tuple[int, int]) -> None:
    assert (fit_to_square(np.full((*hw, 3), 77, np.uint8), 64) == np.full((64, 64, 3), 77)).all()


@pytest.mark.parametrize("family", ["hybrid", "efficientsam"])
@pytest.mark.parametrize("hw", [(30, 50), (64, 64), (64, 200), (333, 250)])
def test_images_are_fitted_as_the_family_fits_them(family: Any, hw: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    shown = normalise(torch.from_numpy(fit_image(image, SIZE, family).transpose(2, 0, 1).copy()))
    difference = (shown - Frame(family, SIZE, hw).resize(image)).abs()
    # One of 255 values, in units of ImageNet's smallest standard deviation.
    assert difference.max() <= 1.001 / 255 / 0.224


def test_samples_and_their_masks_are_fitted_by_family(
    tmp_path: Path, plain_colors: None, draw_shapes: Any, write_source: Any
) -> None:
    rng = np.random.default_rng(0)
    write_source(tmp_path, "shapes", [(rng.integers(0, 256, (200, 200, 3), np.uint8), draw_shapes(1, (200, 200))[1])])
    config = DataConfig(sources=("shapes",), zoom_probability=0.0)
    sources = load_sources(tmp_path, config.sources, "train")
    hybrid, other = (
        PromptedCrops(sources, SIZE, config, PromptConfig(), 0, family=family) for family in ("hybrid", "efficientsam")
    )
    for index in range(5):
        # Without averaging, a reduced noise keeps its contrast.
        assert other[index]["image"].float().std() > 1.5 * hybrid[index]["image"].float().std()
        assert all(torch.equal(other[index][key], hybrid[index][key]) for key in ("target", "points", "labels"))


def test_a_family_that_pads_images_is_an_error(shapes_root: Path) -> None:
    config = DataConfig(sources=("shapes",))
    samples = PromptedCrops(
        load_sources(shapes_root, config.sources, "train"), SIZE, config, PromptConfig(), 0, family="sam"
    )
    with pytest.raises(ConfigError, match="'sam' does not stretch .* choose hybrid or efficientsam"):
        samples[0]


def test_coverage_is_the_mean_of_each_block() -> None:
    soft = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    found = stride4_coverage(soft)
    assert found.shape == (2, 2)
    for y, x in np.ndindex(2, 2):
        assert found[y, x] == pytest.approx(soft[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].astype(float).mean() / 255)


# ---------------------------------------------------------------- augmentation


def test_flips_and_turns_move_image_and_masks_alike_and_reach_all_eight() -> None:
    rng = np.random.default_rng(0)
    mask = np.arange(36, dtype=np.uint8).reshape(6, 6)
    image = np.stack([mask, mask + 100, mask + 200], axis=-1)
    seen = set()
    for _ in range(300):
        turned, (moved,) = flip_and_turn(image, [mask], rng)
        assert np.array_equal(turned[..., 0], moved)
        assert np.array_equal(turned[..., 2], moved + 200)
        seen.add(moved.tobytes())
    assert len(seen) == 8


def test_colors_change_without_moving_anything() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = 200
    results = set()
    for seed in range(60):
        changed = augment_colors(image, np.random.default_rng(seed))
        assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
        assert np.array_equal(changed, augment_colors(image, np.random.default_rng(seed)))
        inside, outside = changed[12:20, 12:20].astype(int), changed[:4, :4].astype(int)
        assert abs(inside.mean() - outside.mean()) > 30, "object and background stay apart"
        results.add(changed.tobytes())
    assert len(results) == 60
    assert (image[:4] == 0).all(), "the original is left alone"


# ---------------------------------------------------------------- damaged data


def test_damaged_images_are_passed_over(tmp_path: Path, plain_colors: None, write_source: Any) -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    grays = (50, 100, 150, 200)
    folder = write_source(tmp_path, "shapes", [(np.full((40, 40, 3), gray, np.uint8), [mask]) for gray in grays])
    damaged = folder / "images" / "train1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    (folder / "images" / "train2.png").unlink()
    # Another size than annotated: the masks would lie elsewhere.
    write_source(tmp_path, "other", [(np.full((30, 50, 3), 150, np.uint8), [mask[:30, :30]])])
    (tmp_path / "other" / "images" / "train1.png").replace(folder / "images" / "train3.png")
    samples = crops(tmp_path)
    assert {samples[index]["image"].max().item() for index in range(40)} == {200}
    lines = {line for index in range(40) for line in samples[index]["damaged"].splitlines()}
    assert {line.partition(": ")[0] for line in lines} == {f"shapes/train{number}.png" for number in (1, 2, 3)}
    reasons = {line.partition(": ")[2] for line in lines}
    assert len(lines) == 3 and any("its annotations are for 40 x 40" in reason for reason in reasons)
    with batches_from(samples, range(1), 8, 0) as batches:
        assert next(batches)["damaged"] == [samples[index]["damaged"] for index in range(8)]


@pytest.mark.parametrize("segmentation", [{"size": [9, 9], "counts": [0, 81]}, [[1, 2, 3]], [["a", "b"]], [], {}])
def test_a_damaged_segmentation_costs_only_its_image(
    tmp_path: Path, plain_colors: None, write_source: Any, segmentation: Any
) -> None:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    images = [(np.full((40, 40, 3), gray, np.uint8), [mask]) for gray in (50, 100)]
    write_source(tmp_path, "shapes", images, changes={0: {"segmentation": segmentation}})
    samples = crops(tmp_path)
    assert {samples[index]["image"].max().item() for index in range(20)} == {100}


def test_without_a_readable_image_the_last_reason_is_told(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    folder = write_source(tmp_path, "shapes", [draw_shapes(0)])
    (folder / "images" / "train1.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"50 draws .*train1\.png"):
        crops(tmp_path)[0]


def test_objects_too_small_to_be_seen_are_an_error(tmp_path: Path, write_source: Any) -> None:
    mask = np.zeros((300, 300), bool)
    mask[5:8, 5:8] = True
    write_source(tmp_path, "shapes", [(np.zeros((300, 300, 3), np.uint8), [mask])])
    with pytest.raises(DatasetError, match="none covered 12 pixels"):
        crops(tmp_path, zoom_probability=0)[0]


def test_an_error_of_the_program_is_not_taken_for_a_damaged_file(
    shapes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise ValueError("a mistake in the code")

    monkeypatch.setattr(data_module, "augment_colors", broken)
    with pytest.raises(ValueError, match="a mistake in the code"):
        crops(shapes_root)[0]


def test_crowds_are_left_out(tmp_path: Path, plain_colors: None, write_source: Any) -> None:
    left, right = np.zeros((2, 40, 80), bool)
    left[5:35, 5:35] = right[5:35, 45:75] = True
    image = np.zeros((40, 80, 3), np.uint8)
    image[left], image[right] = 100, 200
    write_source(
        tmp_path, "shapes", [(image, [left, right]), (image, [left])], changes={1: {"iscrowd": 1}, 2: {"iscrowd": 1}}
    )
    samples = crops(tmp_path, zoom_probability=0)
    assert [len(source) for source in samples.sources] == [1]
    for index in range(20):
        sample = samples[index]
        shown = sample["image"][0].numpy()
        for target in sample["target"].numpy():
            assert set(shown[np.kron(target == 1, np.ones((4, 4))) > 0].tolist()) == {100}


def test_a_source_of_crowds_only_is_an_error(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    image, masks = draw_shapes(0)
    write_source(tmp_path, "shapes", [(image, masks[:1])], changes={0: {"iscrowd": 1}})
    with pytest.raises(DatasetError, match=r"'shapes' has no train image with an object.*data\.sources"):
        crops(tmp_path)


@pytest.mark.parametrize(("source", "split"), [("nowhere", "train"), ("shapes", "test")])
def test_a_missing_source_or_split_is_an_error(shapes_root: Path, source: str, split: str) -> None:
    with pytest.raises(DatasetError, match=rf"{source}.*instances_{split}\.json"):
        load_sources(shapes_root, ("shapes", source), split)


def test_malformed_annotations_are_an_error(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    folder = write_source(tmp_path, "shapes", [draw_shapes(0)])
    (folder / "instances_train.json").write_text('{"images": 3}', "utf-8")
    with pytest.raises(DatasetError, match="'images' and 'annotations'"):
        crops(tmp_path)


def test_an_image_is_read_only_in_the_size_of_its_annotations(
    tmp_path: Path, draw_shapes: Callable[..., Any], write_source: Any
) -> None:
    folder = write_source(tmp_path, "shapes", [draw_shapes(0), draw_shapes(1, (30, 50))])
    source, first = crops(tmp_path).sources[0], folder / "images" / "train1.png"
    assert np.array_equal(source.read(0).pixels, read_image(first))
    (folder / "images" / "train2.png").replace(first)
    with pytest.raises(DatasetError, match=r"train1\.png is 50 x 30 pixels .* 96 x 72"):
        source.read(0)
    first.unlink()
    with pytest.raises(ImageError):
        source.read(0)
