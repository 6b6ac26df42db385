"""Remote shards and indexes: the same images as from this disk, few requests, and what fails costs only itself."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from file_server import FileServer
from planted_sa1b import Members, Shapes, sa1b_members, write_shard
from refinesam.cli import main
from refinesam.errors import DatasetError, ImageError
from refinesam.masks import decode_segmentation
from refinesam.training.finetune.run import finetune
from refinesam.training.sources import shards
from refinesam.training.sources.image_files import find_images
from refinesam.training.sources.layouts import load_sources
from refinesam.training.sources.shards import listed_shards, read_part, shard_members, write_index
from refinesam.training.sources.source import Source


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(shards, "PAUSES", (0.01, 0.01))
    (tmp_path / "far").mkdir()
    with FileServer(tmp_path / "far") as serving:
        yield serving


@pytest.fixture
def members(tmp_path: Path, draw_shapes: Callable[..., Shapes]) -> Members:
    return sa1b_members(tmp_path, [draw_shapes(seed, (40 + seed, 50)) for seed in range(8)])


def listed(folder: Path, *urls: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shards.txt").write_text("# far away\n\n" + "\n".join(urls) + "\n", "utf-8")
    return folder


def sources_of(root: Path, name: str) -> list[Source]:
    return [load_sources(root, (name,), split)[0] for split in ("train", "val")]


def content_of(root: Path, name: str) -> list[list[tuple[bytes, list[bytes]]]]:
    """Images and masks of both splits, in their order."""
    return [
        [
            (image.pixels.tobytes(), [decode_segmentation(one.segmentation, *hw).tobytes() for one in image.objects])
            for image in (source.read(index) for index in range(len(source)))
            for hw in [image.pixels.shape[:2]]
        ]
        for source in sources_of(root, name)
    ]


# ---------------------------------------------------------------- remote shards


@pytest.mark.parametrize("indexed", [False, True])
def test_remote_shards_give_what_local_ones_do(
    tmp_path: Path, server: FileServer, members: Members, indexed: bool
) -> None:
    half = len(members) // 2
    for number, names in enumerate((list(members)[:half], list(members)[half:])):
        shard = write_shard(tmp_path / "near" / f"{number}.tar", {name: members[name] for name in names})
        remote = server.folder / shard.name
        remote.write_bytes(shard.read_bytes())
        if indexed:
            write_index(remote)
    listed(tmp_path / "remote", f"{server.url}/0.tar", f"{server.url}/1.tar")
    assert content_of(tmp_path, "remote") == content_of(tmp_path, "near")
    told = {source.name(index) for source in sources_of(tmp_path, "remote") for index in range(len(source))}
    assert f"{server.url}/0.tar/sa_1.jpg" in told
    images = [find_images(tmp_path, [folder]) for folder in ("remote", "near")]
    assert [len(one) for one in images] == [8, 8]
    for index in range(8):
        assert np.array_equal(images[0].read(index), images[1].read(index))


def test_a_remote_index_takes_the_place_of_looking_through_the_shard(server: FileServer, members: Members) -> None:
    # Larger than what one request would fetch.
    shard = write_shard(server.folder / "a.tar", members | {f"filler{n}": bytes(6 << 20) for n in range(3)})
    url = f"{server.url}/a.tar"
    expected = shard_members(str(shard), "a", [])
    assert shard_members(url, "a", []) == expected
    looking = sum(request.startswith("GET /a.tar") and "index" not in request for request in server.requests)
    assert looking > 1
    write_index(shard)
    server.requests.clear()
    assert shard_members(url, "a", []) == expected
    assert not any(request == "GET /a.tar" for request in server.requests)


def test_a_failure_of_a_moment_is_none(server: FileServer, members: Members) -> None:
    shard = write_shard(server.folder / "a.tar", members)
    _, offset, size = shard_members(str(shard), "a", [])[0]
    server.failures = 2
    assert read_part(f"{server.url}/a.tar", offset, size) == members["sa_1.jpg"]
    server.failures = 3
    with pytest.raises(OSError, match="500"):
        read_part(f"{server.url}/a.tar", offset, size)


def test_a_listed_shard_that_is_not_there_is_told(tmp_path: Path, server: FileServer) -> None:
    listed(tmp_path / "data", f"{server.url}/gone.tar")
    with pytest.raises(
        DatasetError, match=rf"{server.url}/gone\.tar cannot be read: .*take its shard from shards\.txt"
    ):
        sources_of(tmp_path, "data")


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("succeeding", [0, 1])
def test_a_shard_out_of_reach_ends_the_start(
    tmp_path: Path, server: FileServer, members: Members, indexed: bool, succeeding: int
) -> None:
    shard = write_shard(server.folder / "a.tar", members)
    if indexed:
        write_index(shard)
    listed(tmp_path / "data", f"{server.url}/a.tar")
    server.failing_after = succeeding
    with pytest.raises(DatasetError, match=rf"{server.url}/a\.tar\S* cannot be read: .*Start again when it can"):
        sources_of(tmp_path, "data")


def test_what_is_not_there_costs_only_itself(tmp_path: Path, server: FileServer, members: Members) -> None:
    write_shard(server.folder / "a.tar", members)
    (server.folder / "page.tar").write_bytes(b"<html>" * 200)
    listed(tmp_path / "data", f"{server.url}/a.tar", f"{server.url}/page.tar")
    train, _ = sources_of(tmp_path, "data")
    assert [line.split(": ")[0] for line in train.left_out] == [f"{server.url}/page.tar"]
    (server.folder / "a.tar").unlink()
    with pytest.raises(DatasetError, match=rf"{server.url}/a\.tar/sa_\d\.json cannot be read"):
        train.read(0)
    write_shard(server.folder / "b.tar", {"x.jpg": members["sa_1.jpg"]})
    images = find_images(listed(tmp_path / "images", f"{server.url}/b.tar"), ())
    (server.folder / "b.tar").unlink()
    with pytest.raises(ImageError, match=rf"shard of {server.url}/b\.tar/x\.jpg"):
        images.read(0)


def test_a_server_without_parts_is_refused(server: FileServer, members: Members) -> None:
    write_shard(server.folder / "a.tar", members)
    server.ranges = False
    with pytest.raises(OSError, match="no parts of them"):
        read_part(f"{server.url}/a.tar", 512, 100)


def test_a_run_on_remote_shards_is_the_one_on_local_ones(
    tmp_path: Path, server: FileServer, members: Members, tiny_config: Any, assert_same: Any
) -> None:
    shard = write_shard(tmp_path / "near" / "data" / "0.tar", members)
    (server.folder / "0.tar").write_bytes(shard.read_bytes())
    listed(tmp_path / "remote" / "data", f"{server.url}/0.tar")
    weights = []
    for place in ("near", "remote"):
        # A worker process, which needs connections of its own.
        config = tiny_config(data={"sources": ["data"], "workers": 1, "val_images": 1}, optim={"steps": 2})
        weights.append(finetune(config, tmp_path / place, tmp_path / f"run_{place}", "cpu").read_bytes())
    assert weights[0] == weights[1]


# ---------------------------------------------------------------- lists


def test_a_line_that_is_no_url_is_named(tmp_path: Path) -> None:
    folder = listed(tmp_path / "data", "s3://bucket/0.tar", "/disk/1.tar")
    with pytest.raises(DatasetError, match=r"shards\.txt, line 4: '/disk/1\.tar' is no URL"):
        listed_shards(folder / "shards.txt")
    (folder / "shards.txt").write_bytes(b"s3://\xff")
    with pytest.raises(DatasetError, match=r"shards\.txt cannot be read"):
        sources_of(tmp_path, "data")


def test_storage_that_nothing_here_opens_is_told(tmp_path: Path) -> None:
    listed(tmp_path / "data", "carrier-pigeon://home/0.tar")
    with pytest.raises(DatasetError, match=r"carrier-pigeon://home/0\.tar.* cannot be opened: .*what fsspec names"):
        sources_of(tmp_path, "data")


# ---------------------------------------------------------------- indexes


def index_command(monkeypatch: pytest.MonkeyPatch, data: Path) -> int:
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setattr(sys, "argv", ["refinesam", "train", "index", str(data)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_an_index_says_what_the_shard_does(
    tmp_path: Path, members: Members, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_shard(tmp_path / "data" / "a.tar", members)
    broken = write_shard(tmp_path / "data" / "deep" / "b.tar", members)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    expected: list[str] = []
    without = [shard_members(str(shard), shard.name, expected) for shard in (whole, broken)]
    assert index_command(monkeypatch, tmp_path / "data") == 0
    told = capsys.readouterr().out
    assert "2 shards" in told and f"Damaged: {broken}" in told
    found: list[str] = []
    assert [shard_members(str(shard), shard.name, found) for shard in (whole, broken)] == without
    assert found == expected and expected[0].startswith("b.tar: ")
    assert json.loads(Path(f"{whole}.index.json").read_text("utf-8"))["size"] == whole.stat().st_size

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_json", full)
    assert index_command(monkeypatch, tmp_path / "data") != 0
    assert "a.tar.index.json cannot be written: [Errno 28] No space left" in capsys.readouterr().err


def test_an_index_of_an_earlier_shard_does_not_count(tmp_path: Path, members: Members) -> None:
    shard = write_shard(tmp_path / "a.tar", members)
    write_index(shard)
    index = Path(f"{shard}.index.json")
    write_shard(shard, dict(list(members.items())[:4]))
    os.utime(shard, (1, 1))
    assert len(shard_members(str(shard), "a", [])) == 4
    # Of the same size, but younger.
    write_index(shard)
    content = json.loads(index.read_text("utf-8"))
    index.write_text(json.dumps(content | {"members": []}), "utf-8")
    assert shard_members(str(shard), "a", []) == []
    os.utime(index, (0, 0))
    assert len(shard_members(str(shard), "a", [])) == 4


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"size": 1, "damage": "", "members": [["a", 1]]}', '{"size": "x"}']
)
def test_a_damaged_index_is_told(tmp_path: Path, members: Members, content: str) -> None:
    shard = write_shard(tmp_path / "a.tar", members)
    Path(f"{shard}.index.json").write_text(content, "utf-8")
    with pytest.raises(DatasetError, match=r"a\.tar\.index\.json is no index of a shard: .*refinesam train index"):
        shard_members(str(shard), "a", [])


def test_a_folder_without_shards_has_nothing_to_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index_command(monkeypatch, tmp_path / "nothing") != 0
    assert "holds no tar shard" in capsys.readouterr().err
