"""Writing files: what is there already is safe, and what cannot be written is known before the work."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from refinesam.errors import OutputError, RefineSAMError
from refinesam.files import HTML, JSON, PNG, check_outputs, replacing, write_json, write_outputs


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder of what an output may not replace."""
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "kept.json").write_text("kept")
    (tmp_path / "kept.json").chmod(0o444)
    (tmp_path / "read.json").write_text("read")
    (tmp_path / "link.json").symlink_to("read.json")
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path


BAD_PLACES = {
    "a folder": ("folder.json", "folder"),
    "a read-only file": ("kept.json", "read-only"),
    "no regular file": ("pipe.json", "regular"),
    "in a file": ("file/a.json", "Not a directory"),
    "a name too long": ("a" * 300 + ".json", "too long"),
    "a NUL character": ("a\0.json", "null|NUL"),
    "what is read": ("read.json", "read here"),
    "a link to what is read": ("link.json", "read here"),
    "another format's name": ("a.png", "JSON: name it a.json"),
    "deep in a file": ("file/new/a.json", "Not a directory"),
}


@pytest.mark.parametrize("name", BAD_PLACES)
def test_a_bad_place_is_known_before_the_work(places: Path, name: str) -> None:
    path, words = BAD_PLACES[name]
    before = sorted(places.rglob("*"))
    with pytest.raises(OutputError, match=words):
        check_outputs([(places / path, JSON)], inputs=[places / "read.json", "builtin", None])
    assert sorted(places.rglob("*")) == before


def test_good_places_are_left_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    good = [tmp_path / "old.json", tmp_path / "new" / "deep" / "a.JSON", tmp_path / "without_suffix", None]
    check_outputs([(path, JSON) for path in good], inputs=[tmp_path / "nowhere"])
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_one_path_cannot_hold_two_results(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="twice"):
        check_outputs([(tmp_path / "a", HTML), (tmp_path / "." / "a", PNG)])


@pytest.mark.parametrize("name", ["folder.json", "kept.json", "pipe.json"])
def test_writing_spares_what_must_stay(places: Path, name: str) -> None:
    mode = (places / name).stat().st_mode
    with pytest.raises(OSError, match="it is"), replacing(places / name):
        raise AssertionError("the work has begun")
    with pytest.raises(OutputError, match=name):
        write_json(places / name, {})
    assert (places / name).stat().st_mode == mode


def test_a_name_as_long_as_the_system_takes(tmp_path: Path) -> None:
    path = tmp_path / f"{'ä' * 120}.json"
    write_json(path, [1])
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_result_that_cannot_be_written_is_kept_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "file").touch()
    bad, good = tmp_path / "file" / "bad.json", tmp_path / "good.json"

    def fails(path: Path) -> None:
        raise RefineSAMError("No number of this kind.")

    writers = {bad: lambda path: write_json(path, [1]), tmp_path / "c.json": fails, good: lambda p: write_json(p, [2])}
    with pytest.raises(OutputError, match=r"bad\.json cannot be written .* is in .*No number of this kind\.$") as told:
        write_outputs(writers)
    assert json.loads(good.read_text()) == [2]
    (kept,) = (tmp_path / "elsewhere").rglob("*.json")
    assert json.loads(kept.read_text()) == [1]
    assert str(kept) in str(told.value)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a device that is always full")
def test_a_device_is_never_replaced() -> None:
    with pytest.raises(OutputError, match="regular file"):
        check_outputs([("/dev/full", JSON)])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.json").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_json(tmp_path / "out.json", {"new": 1})
    assert (tmp_path / "out.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
