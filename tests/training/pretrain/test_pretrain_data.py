"""Images without labels and their views: found everywhere, functions of seed and number, damage costs only itself."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from planted_sa1b import write_shard
from refinesam.errors import DatasetError, ImageError
from refinesam.images import read_image, write_png
from refinesam.training.pretrain import data as data_module
from refinesam.training.pretrain.config import ViewSection
from refinesam.training.pretrain.data import View, Views, random_resized_crop, view_batches
from refinesam.training.sources.image_files import ImageFiles, find_images


def png(seed: int, size: int = 40) -> bytes:
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size + 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(6):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "photos"


def views_of(root: Path, size: int = 32, seed: int = 0, **data: Any) -> Views:
    return Views(find_images(root, ()), ViewSection(**({"workers": 0} | data)), size, seed)


def names(images: ImageFiles) -> list[str]:
    return [image.name for image in images]


# ---------------------------------------------------------------- finding


def test_images_are_found_at_any_depth_and_in_shards(tmp_path: Path) -> None:
    for name in ("flat.JPEG", "n01/a.jpg", "n01/b.txt", "coco/images/c.PNG", ".hidden/d.png", "n01/._a.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(0))
    (tmp_path / "coco" / "instances_train.json").write_text("{}")
    write_shard(tmp_path / "s" / "00.tar", {"x.jpg": png(1), "x.cls": b"5", "y.png": png(2), "._y.png": b"mac"})
    assert names(find_images(tmp_path, ())) == [
        "flat.JPEG", "coco/images/c.PNG", "n01/a.jpg", "s/00.tar/x.jpg", "s/00.tar/y.png"
    ]  # fmt: skip
    assert names(find_images(tmp_path, ["n01", "s"])) == ["n01/a.jpg", "s/00.tar/x.jpg", "s/00.tar/y.png"]
    overlapping = find_images(tmp_path, ["coco", "coco/images", "s"])
    assert names(overlapping) == ["coco/images/c.PNG", "s/00.tar/x.jpg", "s/00.tar/y.png"]
    assert overlapping[-1] == overlapping[2]
    assert overlapping.read(2).shape == (40, 48, 3)
    with pytest.raises(IndexError):
        overlapping[3]


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no folder .*nowhere.*data\.folders"):
        find_images(tmp_path, ["nowhere"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    with pytest.raises(DatasetError, match=r"empty holds no image.*\.jpg"):
        find_images(tmp_path, ["empty"])


def test_a_shards_images_are_read_as_files_are(tmp_path: Path) -> None:
    members = {f"{number}.png": png(number) for number in range(3)}
    write_shard(tmp_path / "a.tar", members)
    images = find_images(tmp_path, ())
    for number, content in enumerate(members.values()):
        (tmp_path / "one.png").write_bytes(content)
        assert np.array_equal(images.read(number), read_image(tmp_path / "one.png"))


def test_a_damaged_member_costs_only_itself(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "a.tar", {"good.png": png(0), "bad.png": png(1)[:200], "nothing.png": b"", "last.png": png(2)}
    )
    images = find_images(tmp_path, ())
    assert images.read(0).shape == images.read(3).shape == (40, 48, 3)
    for index, name in ((1, "bad"), (2, "nothing")):
        with pytest.raises(ImageError, match=rf"a\.tar/{name}\.png cannot be read"):
            images.read(index)


def test_a_shard_that_breaks_off_keeps_what_is_before(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {f"{number}.png": png(number) for number in range(4)})
    with tarfile.open(path) as shard:
        third = shard.getmembers()[2]
    content = path.read_bytes()
    path.write_bytes(content[: third.offset_data + 100])
    images = find_images(tmp_path, ())
    assert names(images) == ["a.tar/0.png", "a.tar/1.png"]
    assert images.read(1).shape == (40, 48, 3)
    assert [line.partition(":")[0] for line in images.damaged_shards] == ["a.tar"]


def test_shards_that_are_none_are_named(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "z" / "a.tar", {"x.png": png(0)})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"holds no image.*z/a\.tar.*uncompressed"):
        find_images(tmp_path, ())
    write_shard(tmp_path / "z" / "b.tar", {"x.png": png(0)})
    images = find_images(tmp_path, ())
    assert (names(images), len(images.damaged_shards)) == (["z/b.tar/x.png"], 1)


def test_a_shard_that_is_gone_is_an_image_error(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", {"x.png": png(0)})
    images = find_images(tmp_path, ())
    path.unlink()
    with pytest.raises(ImageError, match=r"shard of a\.tar/x\.png"):
        images.read(0)


# ---------------------------------------------------------------- order


def test_an_epoch_takes_every_image_once_in_its_own_order(photos: Path) -> None:
    images = find_images(photos, ())
    orders = [images.order(seed, epoch, 100).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert images.order(0, 1, 100).tolist() == orders[1]


def test_shards_are_read_one_after_the_other(tmp_path: Path) -> None:
    for shard in range(5):
        write_shard(tmp_path / f"{shard}.tar", {f"{number}.png": b"x" for number in range(20)})
    images = find_images(tmp_path, ())
    order = images.order(0, 0, 20)
    assert sorted(order.tolist()) == list(range(100))
    for start in range(0, 100, 20):
        window = order[start : start + 20]
        assert len({index // 20 for index in window.tolist()}) == 1
        assert window.tolist() != sorted(window.tolist())
    assert len({index // 20 for index in images.order(0, 0, 100)[:20].tolist()}) > 2, "a wider window mixes shards"
    assert {int(images.order(0, epoch, 20)[0]) // 20 for epoch in range(30)} == set(range(5))


# ---------------------------------------------------------------- crops


def test_crops_have_the_area_and_ratio_they_should() -> None:
    rng, config = np.random.default_rng(0), ViewSection()
    crops = np.array([random_resized_crop((300, 400), config, rng) for _ in range(3000)], float)
    left, top, width, height = crops.T
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 400).all() and (top + height <= 300).all()
    area, ratio = width * height / 120_000, width / height
    # A pixel's rounding.
    assert 0.195 < area.min() < 0.21 and 0.9 < area.max() <= 1.0
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.345
    assert left.min() == top.min() == 0 and (left + width).max() == 400 and (top + height).max() == 300


def test_area_is_uniform_and_ratio_log_uniform() -> None:
    rng, config = np.random.default_rng(0), ViewSection(crop_area=(0.1, 0.5))  # all of which fit at the first draw
    crops = np.array([random_resized_crop((400, 400), config, rng) for _ in range(4000)], float)
    area, ratio = crops[:, 2] * crops[:, 3] / 160_000, crops[:, 2] / crops[:, 3]
    for values, low, high in ((area, 0.1, 0.5), (np.log(ratio), np.log(3 / 4), np.log(4 / 3))):
        shares, _ = np.histogram(values, bins=np.linspace(low, high, 5))
        # Five standard deviations of a quarter of 4000, and the draws that rounding moves across an edge.
        assert abs(shares - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75) + 30


@pytest.mark.parametrize(
    ("hw", "expected"), [((10, 1000), (493, 0, 13, 10)), ((1000, 10), (0, 493, 10, 13)), ((1, 1), (0, 0, 1, 1))]
)
def test_an_image_that_no_crop_fits_is_cut_around_its_centre(hw: Any, expected: Any) -> None:
    rng = np.random.default_rng(0)
    assert random_resized_crop(hw, ViewSection(crop_area=(0.9, 1.0)), rng) == expected


def test_a_view_is_its_crop_resized_and_half_of_them_are_mirrored(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (120, 1, 3))
    write_png(tmp_path / "ramp.png", ramp)
    views = views_of(tmp_path, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    mirrored = 0
    for number in range(60):
        row = views[number]["image"][0, 16].int()
        mirrored += int(row[0] > row[-1])
        expected = np.asarray(Image.fromarray(ramp).resize((32, 32), Image.Resampling.BICUBIC))[16, :, 0]
        assert row.tolist() in (expected.tolist(), expected[::-1].tolist())
    assert 15 < mirrored < 45


# ---------------------------------------------------------------- views


def same(a: View, b: View) -> bool:
    return torch.equal(a["image"], b["image"]) and a["damaged"] == b["damaged"]


def test_a_view_follows_from_seed_and_number(photos: Path) -> None:
    views, again, other = views_of(photos), views_of(photos), views_of(photos, seed=1)
    for number in (13, 2, 7, 2):
        assert same(views[number], again[number])
    assert not any(same(views[number], other[number]) for number in range(6))
    assert not same(views[0], views[6])
    assert views[0]["image"].shape == (3, 32, 32)


def test_fixed_views_come_in_turns_and_stay_when_images_are_added(photos: Path) -> None:
    def of(views: Views) -> dict[str, list[Any]]:
        return {
            image.name: [views.fixed(3 * index + turn) for turn in range(3)] for index, image in enumerate(views.images)
        }

    views = views_of(photos, fixed_views=3)
    pairs = of(views)
    for epoch in range(6):
        order = views.images.order(0, epoch, 5000)
        for place in range(6):
            expected = pairs[f"{order[place]}.png"][epoch % 3]
            assert np.array_equal(views[epoch * 6 + place]["image"].numpy(), expected.transpose(2, 0, 1))
    assert all(not np.array_equal(a, b) for a, b, _ in pairs.values())
    (photos / "00.png").write_bytes(png(50))
    grown = of(views_of(photos, fixed_views=3))
    assert all(np.array_equal(a, b) for name in pairs for a, b in zip(pairs[name], grown[name], strict=True))


def test_a_damaged_image_is_replaced_and_named(photos: Path) -> None:
    (photos / "4.png").write_bytes(png(4)[:100])
    views = views_of(photos)
    for epoch in range(3):
        lines = [views[6 * epoch + place]["damaged"] for place in range(6)]
        assert [line.partition(": ")[0] for line in lines if line] == ["4.png"]
        assert "\n" not in next(line for line in lines if line)
        assert all(views[6 * epoch + place]["image"].float().std() > 10 for place in range(6))


def test_only_damaged_images_end_a_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in photos.iterdir():
        path.write_bytes(b"nothing")
    monkeypatch.setattr(data_module, "MAX_DRAWS", 7)
    with pytest.raises(DatasetError, match=r"7 images in a row could not be used; the last: \d\.png: .*Check the data"):
        views_of(photos)[0]


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(("processes", "part"), [(1, 6), (1, 2), (2, 3), (3, 1)])
def test_processes_and_parts_divide_each_steps_views(photos: Path, processes: int, part: int) -> None:
    views = views_of(photos)
    for step in (2, 3):
        found: list[torch.Tensor] = []
        for rank in range(processes):
            with view_batches(views, (2, 4), 6, part, rank, processes) as parts:
                given = list(parts)
            assert len(given) == 2 * 6 // processes // part
            half = len(given) // 2
            found += [image for batch in given[(step - 2) * half : (step - 1) * half] for image in batch["image"]]
        assert torch.equal(torch.stack(found), torch.stack([views[6 * step + place]["image"] for place in range(6)]))


def test_worker_processes_change_nothing_and_end_with_the_block(photos: Path) -> None:
    (photos / "0.png").write_bytes(b"damaged")
    collected = []
    for workers in (0, 1):
        with view_batches(views_of(photos, workers=workers), (1, 3), 4, 2, 0, 1) as parts:
            collected.append(list(parts))
        assert not multiprocessing.active_children()
    for alone, helped in zip(*collected, strict=True):
        assert torch.equal(alone["image"], helped["image"])
        assert alone["damaged"] == helped["damaged"]


def test_a_moved_folder_gives_the_same_views(photos: Path, tmp_path: Path) -> None:
    before: Callable[[], View] = lambda: views_of(tmp_path / "photos", fixed_views=1)[3]  # noqa: E731
    first = before()
    shutil.move(photos, tmp_path / "elsewhere")
    assert same(first, views_of(tmp_path / "elsewhere", fixed_views=1)[3])
