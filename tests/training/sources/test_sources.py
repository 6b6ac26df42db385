"""Layouts of training data: the same images from each, damage costs only itself, SA-1B stays small and held out."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from planted_sa1b import Members, Shapes, sa1b_json, sa1b_members, write_shard
from refinesam.cli import main
from refinesam.errors import DatasetError, ImageError, RefineSAMError
from refinesam.images import write_png
from refinesam.masks import decode_segmentation
from refinesam.training.finetune.config import DataConfig, PromptConfig
from refinesam.training.finetune.data import PromptedCrops, batches_from
from refinesam.training.finetune.validate import WholeImages
from refinesam.training.sources.layouts import load_sources
from refinesam.training.sources.sa1b import HELD_OUT, held_out
from refinesam.training.sources.source import Source

KINDS = ("files", "shard")


def sources_of(root: Path, split: str = "train", name: str = "data") -> Source:
    return load_sources(root, (name,), split)[0]


def crops(root: Path) -> PromptedCrops:
    config = DataConfig(sources=("data",))
    return PromptedCrops(load_sources(root, config.sources, "train"), 64, config, PromptConfig(per_image=2), seed=0)


def write_files(folder: Path, members: Members) -> None:
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write(kind: str, folder: Path, members: Members) -> None:
    if kind == "files":
        write_files(folder, members)
    else:
        write_shard(folder / "sa_000000.tar", members)


def write_coco(folder: Path, images: list[Shapes], splits: list[str], annotations: Path, lvis: bool = False) -> None:
    """Write images into COCO's folders, `splits` naming each one's; LVIS names images by their address alone."""
    records, objects = [], []
    for number, ((pixels, masks), split) in enumerate(zip(images, splits, strict=True), start=1):
        name = f"{number:012d}.png"
        (folder / split).mkdir(parents=True, exist_ok=True)
        write_png(folder / split / name, pixels)
        naming = {"coco_url": f"http://images.example.org/{split}/{name}"} if lvis else {"file_name": name}
        records.append({"id": number, "height": pixels.shape[0], "width": pixels.shape[1]} | naming)
        for one in sa1b_json(number, pixels, masks)["annotations"]:
            kept = {key: one[key] for key in ("segmentation", "bbox", "area")}
            objects.append({"id": len(objects) + 1, "image_id": number, "category_id": 1203} | kept)
    content = {"images": records, "annotations": objects, "categories": [{"id": 1203, "name": "zucchini"}]}
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(content), "utf-8")


def content_of(source: Source) -> list[tuple[bytes, list[bytes]]]:
    """All of a source's images and masks, in an order of their own."""
    found = []
    for index in range(len(source)):
        image = source.read(index)
        hw = image.pixels.shape[:2]
        masks = [decode_segmentation(one.segmentation, *hw).tobytes() for one in image.objects]
        found.append((image.pixels.tobytes(), masks))
    return sorted(found)


@pytest.fixture(scope="module")
def images(draw_shapes: Callable[..., Shapes]) -> list[Shapes]:
    return [draw_shapes(seed, (40 + seed, 50)) for seed in range(5)]


# ---------------------------------------------------------------- layouts


def test_all_layouts_give_the_same_images_and_objects(tmp_path: Path, images: list[Shapes], write_source: Any) -> None:
    train = ["train2017"] * 5
    write_source(tmp_path / "plain", "data", images)
    write_coco(tmp_path / "coco/data", images, train, tmp_path / "coco/data/annotations/instances_train2017.json")
    write_coco(tmp_path / "lvis/data", images, train, tmp_path / "lvis/data/annotations/lvis_v1_train.json", lvis=True)
    write_coco(tmp_path / "flat/data", images, train, tmp_path / "flat/data/lvis_v1_train.json", lvis=True)
    expected = content_of(sources_of(tmp_path / "plain"))
    assert len(expected) == 5 and all(masks for _, masks in expected)
    for layout in ("coco", "lvis", "flat"):
        assert content_of(sources_of(tmp_path / layout)) == expected, layout
    members = sa1b_members(tmp_path, images)
    for kind in KINDS:
        write(kind, tmp_path / kind / "data", members)
        train, val = (sources_of(tmp_path / kind, split) for split in ("train", "val"))
        assert sorted(content_of(train) + content_of(val)) == expected, kind


def test_lvis_validates_on_images_of_both_folders(tmp_path: Path, images: list[Shapes]) -> None:
    folder = tmp_path / "data"
    splits = ["val2017", "train2017", "val2017", "train2017", "train2017"]
    write_coco(folder, images, splits, folder / "lvis_v1_val.json", lvis=True)
    source = sources_of(tmp_path, "val")
    assert [source.read(index).pixels.shape[0] for index in range(5)] == [40, 41, 42, 43, 44]
    (folder / "val2017").rename(folder / "elsewhere")
    with pytest.raises(DatasetError, match=r"lacks COCO's val2017, where images of its val split are\. Put"):
        sources_of(tmp_path, "val")
    with pytest.raises(DatasetError, match=r"Cannot read .*lvis_v1_train\.json"):
        sources_of(tmp_path, "train")


def test_lvis_takes_links_to_cocos_folders(tmp_path: Path, images: list[Shapes]) -> None:
    coco, folder = tmp_path / "coco", tmp_path / "data"
    write_coco(coco, images, ["train2017"] * 4 + ["val2017"], folder / "lvis_v1_val.json", lvis=True)
    for name in ("train2017", "val2017"):
        (folder / name).symlink_to(coco / name)
    assert len(content_of(sources_of(tmp_path, "val"))) == 5


def test_cocos_and_lviss_annotations_in_one_folder_are_ambiguous(tmp_path: Path, images: list[Shapes]) -> None:
    folder, other = tmp_path / "data", tmp_path / "coco"
    train = ["train2017"] * 5
    write_coco(folder, images, train, folder / "annotations/lvis_v1_train.json", lvis=True)
    write_coco(folder, images, train, folder / "annotations/instances_train2017.json")
    both = r"annotations/instances_\{train,val\}2017\.json and annotations/lvis_v1_\{train,val\}\.json: give each"
    with pytest.raises(DatasetError, match=both):
        sources_of(tmp_path)
    # What the message proposes.
    (other / "annotations").mkdir(parents=True)
    (folder / "annotations/instances_train2017.json").rename(other / "annotations/instances_train2017.json")
    (other / "train2017").symlink_to(folder / "train2017")
    assert content_of(sources_of(tmp_path)) == content_of(sources_of(tmp_path, name="coco"))


def test_an_annotation_file_decides_over_pairs_and_shards(
    tmp_path: Path, images: list[Shapes], write_source: Any
) -> None:
    folder = write_source(tmp_path, "data", images[:2])
    write_files(folder / "images", sa1b_members(tmp_path, images))
    write_shard(folder / "images.tar", sa1b_members(tmp_path, images))
    assert [sources_of(tmp_path).name(index) for index in range(2)] == ["data/train1.png", "data/train2.png"]


@pytest.mark.parametrize(
    ("members", "left_out"),
    [
        ({}, ""),
        ({"sa_1.jpg": b"x", "photo.jpg": b"x", "sa_2.json": b"x"}, r"Left out: 2 images .*/data/sa_1, .*/data/sa_2\."),
        ({"a.tar": b""}, r"Left out: a\.tar: empty file"),
        ({"a.tar": gzip.compress(b"x" * 2000)}, r"Left out: a\.tar: "),
        ({".hidden/sa_1.jpg": b"x", ".hidden/sa_1.json": b"x"}, ""),
    ],
)
def test_a_folder_of_no_layout_is_an_error_that_lists_them(tmp_path: Path, members: Members, left_out: str) -> None:
    write_files(tmp_path / "data", members)
    known = (
        r"data has none of: instances_train\.json with images; annotations/instances_train2017\.json with train2017; "
        r"annotations/lvis_v1_train\.json with train2017 and val2017; lvis_v1_train\.json with .*; SA-1B's sa_\*\.jpg "
        r"with sa_\*\.json beside each; \*\.tar with such pairs"
    )
    with pytest.raises(DatasetError, match=f"{known}.*{left_out}.*Put one of these there"):
        sources_of(tmp_path)


def test_files_beside_shards_are_ambiguous(tmp_path: Path, images: list[Shapes]) -> None:
    members = sa1b_members(tmp_path, images)
    write_shard(tmp_path / "data/sa_000000.tar", members)
    write_files(tmp_path / "data/unpacked", members)
    with pytest.raises(DatasetError, match=r"as files, in .*unpacked, and tar shards, such as .*sa_000000\.tar: move"):
        sources_of(tmp_path)


# ---------------------------------------------------------------- SA-1B


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_found_at_any_depth_by_container_and_name(tmp_path: Path, images: list[Shapes], kind: str) -> None:
    folder = tmp_path / "data"
    for place, first in (("b/c", 1), ("", 11), ("a", 21)):
        members = sa1b_members(tmp_path, images, first)
        shuffled = dict(sorted(members.items(), key=lambda member: member[0][::-1]))
        if kind == "files":
            write_files(folder / place, shuffled | {"._sa_3.jpg": b"x", "licence.txt": b"x"})
        else:
            write_shard(folder / place / "x.tar", {f"./sub/{name}": content for name, content in shuffled.items()})
    within = "" if kind == "files" else "x.tar/sub/"
    expected = [
        f"data/{place}{within}sa_{first + i}.jpg"
        for place, first in (("", 11), ("a/", 21), ("b/c/", 1))
        for i in range(5)
    ]
    both = [sources_of(tmp_path, split) for split in ("train", "val")]
    names = [[source.name(index) for index in range(len(source))] for source in both]
    assert names[0] == [name for name in expected if name in names[0]]
    assert sorted(names[0] + names[1]) == sorted(expected)
    assert all(source.left_out == () for source in both)
    for source in both:
        for index in range(len(source)):
            number = int(source.name(index).rpartition("_")[2].removesuffix(".jpg"))
            assert np.array_equal(source.read(index).pixels, images[(number - 1) % 10][0])


def test_a_share_of_the_names_is_held_out_whatever_else_there_is() -> None:
    stems = np.array([f"sa_{number}".encode() for number in range(20_000)])
    held = held_out(stems)
    assert held.mean() == pytest.approx(HELD_OUT, abs=0.003)
    assert np.array_equal(held_out(stems[:10_000]), held[:10_000]), "more images move none across"
    assert np.array_equal(held_out(stems[::-1]), held[::-1])
    in_folders = np.array([b"./sub/" + stem for stem in stems])
    assert np.array_equal(held_out(in_folders), held)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10])
def test_of_two_or_more_images_some_are_on_each_side(count: int) -> None:
    for start in range(0, 3000, 10):
        held = held_out(np.array([f"sa_{start + i}".encode() for i in range(count)], "S10"))
        assert held.sum() in ({0} if count < 2 else set(range(1, count)))


def test_names_that_occur_twice_stay_on_one_side() -> None:
    held = held_out(np.array([b"a/sa_1", b"b/sa_1", b"a/sa_2", b"b/sa_2", b"a/sa_3"]))
    assert held[0] == held[1] and held[2] == held[3] and 0 < held.sum() < 5
    assert held_out(np.array([b"a/sa_1", b"b/sa_1"])).tolist() == [False, False]


def test_a_single_image_is_for_training(tmp_path: Path, images: list[Shapes]) -> None:
    write_files(tmp_path / "data", sa1b_members(tmp_path, images[:1]))
    assert len(sources_of(tmp_path)) == 1
    with pytest.raises(DatasetError, match=r"single image of SA-1B.*data\.val_images to 0"):
        sources_of(tmp_path, "val")


def test_masks_of_nearly_the_whole_image_are_left_out(tmp_path: Path) -> None:
    masks = [np.arange(1000).reshape(20, 50) < pixels for pixels in (900, 901, 1000, 300)]
    pixels = np.zeros((20, 50, 3), np.uint8)
    all_kinds, too_large = (pixels, masks), (pixels + np.uint8(255), masks[1:3])
    write_files(tmp_path / "data", sa1b_members(tmp_path, [all_kinds, too_large] * 6))
    source = sources_of(tmp_path)
    areas = set()
    for index in range(len(source)):
        image = source.read(index)
        areas.add(tuple(decode_segmentation(one.segmentation, 20, 50).sum() for one in image.objects))
    assert areas == {(900, 300), ()}
    # An image without any is not used, and not called damaged.
    samples = crops(tmp_path)
    for index in range(10):
        assert samples[index]["damaged"] == ""
        assert samples[index]["target"].sum() > 0
    every = WholeImages([source], 64, 100)
    assert {(len(every[index]["target"]), every[index]["damaged"]) for index in range(len(every))} == {(2, ""), (0, "")}


def test_an_index_is_small(tmp_path: Path, images: list[Shapes], write_source: Any) -> None:
    pixels, masks = images[0]
    filler = {f"sa_{number}.{suffix}": b"" for number in range(10_000, 14_000) for suffix in ("jpg", "json")}
    for kind in KINDS:
        write(kind, tmp_path / kind / "data", filler)
        source = sources_of(tmp_path / kind)
        assert len(pickle.dumps(source)) < 60 * len(source)
    # 2,000 polygons of 100 numbers: apart, their 200,000 floats alone would take 24 bytes each and 8 to find them.
    polygon = [[0.5 + i % 7 for i in range(100)]]
    folder = write_source(tmp_path, "coco", [(pixels, masks[:1])])
    content = json.loads((folder / "instances_train.json").read_text())
    content["annotations"] = [content["annotations"][0] | {"id": i, "segmentation": polygon} for i in range(2000)]
    (folder / "instances_train.json").write_text(json.dumps(content))
    assert len(pickle.dumps(sources_of(tmp_path, name="coco"))) < 12 * 200_000


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
def test_worker_processes_read_the_same_samples_from_a_shard(tmp_path: Path, images: list[Shapes]) -> None:
    write_shard(tmp_path / "data/sa_000000.tar", sa1b_members(tmp_path, images))
    samples = crops(tmp_path)
    with batches_from(samples, range(4), 2, 2) as batches:
        found = list(batches)
    for index in range(8):
        for key in ("image", "target", "points", "labels"):
            assert torch.equal(found[index // 2][key][index % 2], samples[index][key])
    assert found[0]["damaged"] == ["", ""]


# ---------------------------------------------------------------- damage


def holder(content: Any, path: str) -> tuple[Any, Any]:
    """What holds a value deep in a JSON document, and its key there; `path` has dots between the keys."""
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in parents:
        content = content[key]
    return content, last


def without(path: str) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        inner, key = holder(content, path)
        del inner[key]

    return change


def with_value(path: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        inner, key = holder(content, path)
        inner[key] = value

    return change


FIELDS = [
    (without("image"), r"sa_2\.json\.image must be dict, got nothing"),
    (without("annotations"), r"sa_2\.json\.annotations must be list"),
    (with_value("image.height", "high"), r"sa_2\.json: image\.height must be int, got 'high'"),
    (with_value("image.width", 0), r"height 41 and width 0; both must be at least 1"),
    (with_value("image.width", 51), r"sa_2\.jpg is 50 x 41 pixels .* its annotations are for 51 x 41"),
    (without("image.file_name"), r"image\.file_name must be str"),
    (with_value("image.file_name", "sa_3.jpg"), r"image\.file_name is 'sa_3\.jpg', but sa_2\.jpg lies beside it"),
    (with_value("annotations.0", 7), r"annotations\[0\] must be an object, got int"),
    (without("annotations.0.segmentation"), r"annotations\[0\]\.segmentation must be dict"),
    (with_value("annotations.0.bbox", [1, 2, 3]), r"annotations\[0\]\.bbox must be four finite numbers"),
    (with_value("annotations.0.area", -1), r"annotations\[0\]\.area must be a finite number"),
    (without("annotations.0.area"), r"annotations\[0\]\.area must be a finite number"),
]  # fmt: skip
BYTES = [
    ("sa_2.json", lambda content: content[:-5], DatasetError, r"sa_2\.json is not JSON"),
    ("sa_2.json", lambda content: b"", DatasetError, r"sa_2\.json is not JSON"),
    ("sa_2.json", lambda content: b"\xff\xfe\xfd", DatasetError, r"sa_2\.json is not JSON"),
    ("sa_2.json", lambda content: b"[" * 100_000, DatasetError, r"sa_2\.json is not JSON"),
    ("sa_2.json", lambda content: b"[]", DatasetError, r"sa_2\.json must be an object, got list"),
    ("sa_2.jpg", lambda content: content[: len(content) // 2], ImageError, r"sa_2\.jpg cannot be"),
    ("sa_2.jpg", lambda content: b"no image", ImageError, r"sa_2\.jpg.*the content is no image"),
    ("sa_2.jpg", lambda content: b"", ImageError, r"sa_2\.jpg.*is empty"),
]  # fmt: skip


def check_only_one_is_lost(root: Path, error: type[Exception], message: str) -> None:
    """Image 2 cannot be read, for a reason; every sample is of the others and says so."""
    train, val = (sources_of(root, split) for split in ("train", "val"))
    source, index = next((s, i) for s in (train, val) for i in range(len(s)) if s.name(i).endswith("sa_2.jpg"))
    assert source is train, "the test's images are named so that this one is not held out"
    with pytest.raises(error, match=message):
        source.read(index)
    assert all(source.read(other).objects for other in range(len(source)) if other != index)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("change", "message"), FIELDS)
def test_annotations_that_break_the_format_cost_only_their_image(
    tmp_path: Path, images: list[Shapes], kind: str, change: Callable[[Any], None], message: str
) -> None:
    members = sa1b_members(tmp_path, images)
    content = json.loads(members["sa_2.json"])
    change(content)
    write(kind, tmp_path / "data", members | {"sa_2.json": json.dumps(content).encode()})
    check_only_one_is_lost(tmp_path, DatasetError, message)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "change", "error", "message"), BYTES)
def test_damaged_files_cost_only_their_image(
    tmp_path: Path,
    images: list[Shapes],
    kind: str,
    name: str,
    change: Callable[[bytes], bytes],
    error: type[Exception],
    message: str,
) -> None:
    members = sa1b_members(tmp_path, images)
    write(kind, tmp_path / "data", members | {name: change(members[name])})
    check_only_one_is_lost(tmp_path, error, message)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_pass_over_damage_and_name_it(tmp_path: Path, images: list[Shapes], kind: str) -> None:
    members = sa1b_members(tmp_path, images)
    content = json.loads(members["sa_2.json"])
    for one in content["annotations"]:
        one["segmentation"]["counts"] = "00"
    members |= {"sa_2.json": json.dumps(content).encode(), "sa_3.json": b"{", "sa_4.jpg": b"no image"}
    write(kind, tmp_path / "data", members)
    samples = crops(tmp_path)
    lines = {line for index in range(40) for line in samples[index]["damaged"].splitlines()}
    within = "data/sa_000000.tar/" if kind == "shard" else "data/"
    told = {line.partition(": ")[0] for line in lines}
    train = sources_of(tmp_path)
    assert told == {f"{within}sa_{n}.jpg" for n in (2, 3, 4)} & {train.name(index) for index in range(len(train))}
    assert len(told) >= 2 and len(lines) == len(told), "a reason is the same each time"
    looked_at = WholeImages([train], 64, 9)
    for index in range(len(train)):
        damaged = looked_at[index]["damaged"]
        assert (len(looked_at[index]["target"]) == 0) == (damaged != "") == (train.name(index) in told)
        assert damaged in lines | {""}


def test_a_source_that_is_damaged_throughout_is_an_error(tmp_path: Path, images: list[Shapes]) -> None:
    members = {name: b"" for name in sa1b_members(tmp_path, images)}
    write("shard", tmp_path / "data", members)
    with pytest.raises(
        DatasetError, match=r"50 draws found no usable object; .*sa_000000\.tar/sa_\d\.json is not JSON"
    ):
        crops(tmp_path)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_what_lacks_its_other_half_is_left_out_and_told(tmp_path: Path, images: list[Shapes], kind: str) -> None:
    members = sa1b_members(tmp_path, images)
    del members["sa_2.json"], members["sa_4.jpg"]
    write(kind, tmp_path / "data", members)
    both = [sources_of(tmp_path, split) for split in ("train", "val")]
    names = [source.name(index).rpartition("/")[2] for source in both for index in range(len(source))]
    assert sorted(names) == ["sa_1.jpg", "sa_3.jpg", "sa_5.jpg"]
    (told,) = both[0].left_out
    assert told.startswith("2 images or annotations that lack the other, such as ") and "sa_2, " in told
    assert both[1].left_out == both[0].left_out


@pytest.mark.parametrize("damage", ["cut in an image", "cut in annotations", "cut between members", "damaged header"])
def test_a_shard_that_breaks_off_keeps_what_is_before(tmp_path: Path, images: list[Shapes], damage: str) -> None:
    members = sa1b_members(tmp_path, images)
    path = tmp_path / "data/sa_000000.tar"
    write_shard(path, members)
    write_shard(tmp_path / "data/sa_000001.tar", sa1b_members(tmp_path, images, first=11))
    with tarfile.open(path) as shard:
        fourth, annotations = shard.getmember("sa_4.jpg"), shard.getmember("sa_4.json")
    content = bytearray(path.read_bytes())
    if damage == "damaged header":
        content[fourth.offset + 3] ^= 0xFF
    else:
        cuts = {
            "cut in an image": fourth.offset_data + 100,
            "cut in annotations": annotations.offset_data + 100,
            "cut between members": fourth.offset,
        }
        del content[cuts[damage] :]
    path.write_bytes(content)
    both = [sources_of(tmp_path, split) for split in ("train", "val")]
    numbers = [int(s.name(i).rpartition("_")[2].removesuffix(".jpg")) for s in both for i in range(len(s))]
    assert sorted(numbers) == [1, 2, 3, 11, 12, 13, 14, 15]
    assert both[0].left_out[0].startswith("sa_000000.tar: ")
    assert all(source.read(index).objects for source in both for index in range(len(source)))


@pytest.mark.parametrize("size", [0, None])
def test_a_shard_that_changes_after_it_was_listed_is_passed_over(
    tmp_path: Path, images: list[Shapes], size: int | None
) -> None:
    for number in range(2):
        members = sa1b_members(tmp_path, images, first=1 + 10 * number)
        write_shard(tmp_path / f"data/sa_00000{number}.tar", members)
    samples, path = crops(tmp_path), tmp_path / "data/sa_000000.tar"
    if size is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size])
    source = samples.sources[0]
    with pytest.raises(RefineSAMError, match=r"sa_000000\.tar"):
        source.read(0)
    damaged = [samples[index]["damaged"] for index in range(30)]
    assert "" in damaged and all(
        line.startswith("data/sa_000000.tar/") for text in damaged for line in text.split("\n") if line
    )


# ---------------------------------------------------------------- a run


def test_a_run_learns_from_a_shard(
    tmp_path: Path,
    output: Path,
    draw_shapes: Callable[..., Shapes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    members = sa1b_members(tmp_path, [draw_shapes(seed) for seed in range(6)])
    write_shard(tmp_path / "sa1b/sa_000000.tar", members | {"sa_2.json": b"damaged"})
    config = tmp_path / "run.toml"
    config.write_text(
        'precision = "fp32"\nlog_every = 1\n[model]\nvariant = "hybrid_ti"\ninput_size = 64\n'
        '[data]\nsources = ["sa1b"]\nworkers = 0\nval_images = 2\n[prompts]\nper_image = 2\n'
        "[optim]\nsteps = 2\nbatch_size = 2\nwarmup_steps = 1\n",
        "utf-8",
    )
    arguments = ["train", "finetune", config, "--data", tmp_path, "--output", output, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["refinesam", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, capsys.readouterr()
    assert (output / "weights.safetensors").stat().st_size > 1e6
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
    assert {line["step"] for line in lines} == {1, 2}
    (validated,) = [line for line in lines if "val_objects" in line]
    assert validated["val_objects"] >= 1 and 0 <= validated["val_box"] <= 1
