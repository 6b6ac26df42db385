"""FiftyOne's private parts that the plugin needs: they are there and do what they are for; one missing is told."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import fiftyone as fo
import pytest
from fiftyone.core.collections import SampleCollection

import refinesam_fiftyone
from fiftyone_flat import BOXES, fill, session, truth
from refinesam_fiftyone import private
from refinesam_fiftyone.compare import compare

SOURCES = sorted(Path(refinesam_fiftyone.__file__).parent.rglob("*.py"))


@pytest.fixture
def video(dataset: Any, tmp_path: Path) -> Any:
    """A video of two frames, which are files, too."""
    sample = fo.Sample(str(tmp_path / "a.mp4"))
    for number in (1, 2):
        sample.frames[number] = fo.Frame(filepath=str(tmp_path / f"{number}.png"), truth=truth())
    dataset.add_sample(sample)
    return dataset


def test_what_collections_are_made_of(dataset: Any, tmp_path: Path) -> None:
    fill(dataset, tmp_path, 2)
    view = dataset.limit(1)
    patches = view.to_patches("truth")
    assert {private.root_dataset(samples).name for samples in (dataset, view, patches)} == {dataset.name}
    assert private.backing_dataset(view).name == dataset.name != private.backing_dataset(patches).name
    assert [private.is_patches(samples) for samples in (dataset, view, patches)] == [False, False, True]
    assert private.source_of(patches) == view
    assert private.documents_of(dataset).count_documents({}) == 2
    assert (
        private.id_of(dataset)
        == private.id_of(fo.load_dataset(dataset.name))
        != private.id_of(private.backing_dataset(patches))
    )


def test_fields_are_added_to_samples_and_frames(video: Any) -> None:
    private.add_fields(video, {"of_sample": fo.IntField(info={"made": "here"})})
    private.add_fields(video, {"of_frame": fo.FloatField()}, frames=True)
    assert video.get_field("of_sample").info == {"made": "here"}
    assert isinstance(video.get_field("frames.of_frame"), fo.FloatField)


def test_frames_are_written_to_their_videos(video: Any) -> None:
    frames = video.to_frames()
    assert private.documents_of(video, frames=True).count_documents({}) == 2
    assert len(private.all_frames(frames.limit(1))) == 2
    video.add_frame_field("note", fo.StringField)
    private.add_fields(private.backing_dataset(frames), {"note": fo.StringField()})
    private.documents_of(private.backing_dataset(frames)).update_many({}, {"$set": {"note": "written"}})
    assert video.values("frames.note", unwind=True) == [None, None]
    private.write_to_videos(frames, ["note"], frames.values("id")[:1])
    assert video.values("frames.note", unwind=True) == ["written", None]


@pytest.mark.parametrize("name", ["_is_patches", "_merge_sample_field_schema", "_sample_collection"])
def test_a_fiftyone_without_one_of_them_is_told(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fill(dataset, tmp_path, 1)
    with monkeypatch.context() as other, pytest.raises(private.FiftyOneVersionError) as told:
        for owner in (SampleCollection, fo.Dataset):
            if name in vars(owner):
                other.delattr(owner, name)
        compare(dataset, BOXES, session=session())
    assert f"FiftyOne {fo.__version__} has no Dataset.{name}" in str(told.value)
    assert 'pip install "fiftyone==' in str(told.value)


def test_no_other_module_uses_a_private_name_of_another_object() -> None:
    used = [
        f"{path.name}:{node.lineno} {node.attr}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert used == []
