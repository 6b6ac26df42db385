"""Runs on slices of groups, frames of videos and clones: the same as on plain samples, and kept where they belong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pytest

from fiftyone_flat import BOXES, documents, fill, session, truth, write_image
from fiftyone_panel import Shown
from refinesam import ConfigError, DatasetError
from refinesam_fiftyone.coco import coco_ap
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.deletion import delete_run
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.explain import explain
from refinesam_fiftyone.export import export_coco, tag_for_relabelling
from refinesam_fiftyone.ranking import rank
from refinesam_fiftyone.rows import read_rows
from refinesam_fiftyone.runs import list_runs, progress
from refinesam_fiftyone.schema import Fields
from refinesam_fiftyone.views import bucket_view, save_views

RUN = Fields()
PARAMS = {"boxes_field": "truth", "truth_field": "truth"}


@pytest.fixture
def groups(dataset, tmp_path) -> Any:
    """Three groups of a left and a right image and a video."""
    dataset.add_group_field("group", default="left")
    made = []
    for index in range(3):
        group = fo.Group()
        for place, name in enumerate(("left", "right")):
            path = tmp_path / f"{name}_{index}.png"
            write_image(path, 2 * index + place)
            made.append(fo.Sample(str(path), truth=truth(), group=group.element(name)))
        made.append(fo.Sample(str(tmp_path / f"{index}.mp4"), group=group.element("film")))
    dataset.add_samples(made)
    return dataset


@pytest.fixture
def videos(dataset, tmp_path) -> Any:
    """Two videos of three frames, which are files, too."""
    for video in range(2):
        sample = fo.Sample(str(tmp_path / f"{video}.mp4"), tags=["train"])
        for number in (1, 2, 3):
            path = tmp_path / f"{video}_{number}.png"
            write_image(path, 3 * video + number)
            sample.frames[number] = fo.Frame(filepath=str(path), truth=truth())
        dataset.add_sample(sample)
    return dataset


def everything(dataset) -> Any:
    """All documents, of samples and of frames."""
    frames = list(dataset._frame_collection.find().sort("_id")) if dataset._frame_collection_name else []
    return documents(dataset), [{k: v for k, v in one.items() if k != "last_modified_at"} for one in frames]


def use(samples, folder: Path, objects: int) -> None:
    """Do everything with a run, on a collection that it covers."""
    found = evaluate(samples)
    assert (found.objects, found.failures) == (objects, {})
    rows = read_rows(samples)
    assert len(rows) == objects and rows["base_iou"].notna().all()
    assert len(rank(samples)) == objects
    row = rows.iloc[0]
    for sample_id in (row["sample_id"], None):
        assert explain(samples, run_key="refinesam", prompt_id=row["prompt_id"], sample_id=sample_id).picture.any()
    assert export_coco(samples, folder / "coco.json").annotations == objects
    assert coco_ap(samples).loc["amr", "ap"] > 0
    assert tag_for_relabelling(samples, worst=1).objects == 1
    shown = Shown(samples)
    assert shown.state["kind"] == "evaluated" and shown.objects == objects
    shown.call("explain")
    shown.call("open_points", id=row["prompt_id"])
    assert shown.notes == [] and len(shown.view) == 1
    bucket = row["bucket"]
    assert len(save_views(samples)) == 5
    view = samples._root_dataset.load_saved_view(RUN.view_name(bucket))
    count = int((rows["bucket"] == bucket).sum())
    assert view.count(f"{RUN.amr}.detections") == count == bucket_view(samples, bucket).count(f"{RUN.amr}.detections")


def test_a_slice_of_groups(groups, tmp_path):
    before = everything(groups)
    right = groups.select_group_slices("right")
    done = compare(right, BOXES, session=session())
    assert (done.samples, done.done, done.prompts) == (3, 3, 6)
    images = groups.select_group_slices(media_type="image")
    assert sorted(images.exists(RUN.digest).values("id")) == sorted(right.values("id"))
    assert compare(right, BOXES, session=session()).skipped == 3
    assert progress(groups, RUN) == (3, 6)
    use(right, tmp_path, 6)
    # Of groups, all slices of images are meant.
    assert len(read_rows(groups)) == 6 and evaluate(groups).not_compared == 3
    left = compare(groups.select_group_slices("left"), BOXES, session=session())
    assert left.done == 3 and evaluate(groups).objects == 12
    groups.select_group_slices(media_type="image").untag_samples("relabel")
    delete_run(groups, RUN)
    for slice_ in ("left", "right"):
        groups.select_group_slices(slice_).untag_labels("relabel", label_fields="truth")
    assert (everything(groups), list_runs(groups), groups.list_saved_views()) == (before, [], [])


def test_groups_as_such_are_refused_and_their_slices_named(groups):
    for samples in (groups, groups.limit(2)):
        with pytest.raises(DatasetError, match=r"select_group_slices\(\['left', 'right'\]\)"):
            compare(samples, BOXES, session=session())


def test_a_failure_in_a_slice_that_is_not_shown_is_tagged(groups):
    right = groups.select_group_slices("right")
    Path(right.first().filepath).unlink()
    assert compare(right, BOXES, session=session()).failures == {"missing_file": 1}
    assert right.values("tags") == [["refinesam:missing_file"], [], []]
    delete_run(groups, RUN)
    assert right.values("tags") == [[], [], []]


@pytest.mark.parametrize(("slice_", "count"), [("right", 3), ("-", 6)])
def test_the_app_compares_a_slice(groups, slice_, count):
    foo.execute_operator("@refinesam/amr/compare", dataset=groups, params={**PARAMS, "slice": slice_})
    groups.reload()
    images = groups.select_group_slices(media_type="image")
    assert len(images.exists("refinesam_mean_delta")) == count
    view = groups.load_saved_view("refinesam: no change")
    assert set(view.values("id")) <= set(images.exists(RUN.digest).values("id"))


def test_frames_of_videos(videos, tmp_path):
    before = everything(videos)
    frames = videos.to_frames()
    done = compare(frames.match(fo.ViewField("frame_number") < 3), BOXES, session=session(), batch_size=2)
    assert (done.done, done.prompts) == (4, 8)
    assert videos.count(f"frames.{RUN.amr}.detections") == 8 and progress(videos, RUN) == (4, 6)
    again = compare(videos.to_frames(), BOXES, session=session())
    assert (again.done, again.skipped) == (2, 4)
    use(videos.to_frames(), tmp_path, 12)
    # What was evaluated is with the videos' frames, for the next view of them.
    assert videos.count("frames.truth.detections.refinesam_bucket") == 12
    assert None not in videos.values("frames.refinesam_worst_delta", unwind=True)
    assert read_rows(videos.to_frames())["bucket"].notna().all()

    delete_run(videos, RUN)

    videos.untag_labels("relabel", label_fields="frames.truth")
    assert (everything(videos), list_runs(videos), videos.list_saved_views()) == (before, [], [])
    # The view was made when there was a run.
    assert compare(frames, BOXES, session=session()).skipped == 0
    assert videos.count(f"frames.{RUN.amr}.detections") == 12


def test_patches_of_frames_stand_for_their_frames(videos):
    patches = videos.to_frames().limit(2).to_patches("truth")
    assert (len(patches), compare(patches, BOXES, session=session()).done) == (4, 2)
    assert evaluate(patches).objects == 4


def test_a_run_of_frames_is_told_from_one_of_samples(videos):
    compare(videos.to_frames(), BOXES, session=session())
    for act in (lambda: evaluate(videos), lambda: read_rows(videos), lambda: save_views(videos)):
        with pytest.raises(ConfigError, match="to_frames"):
            act()
    shown = Shown(videos)
    assert shown.state["kind"] == "empty" and "to_frames" in shown.state["headline"]
    with pytest.raises(DatasetError, match="to_frames"):
        compare(videos, BOXES, session=session())


def test_a_users_frame_field_is_refused(videos):
    videos.add_frame_field(RUN.baseline, fo.StringField)
    with pytest.raises(ConfigError, match=RUN.baseline):
        compare(videos.to_frames(), BOXES, session=session())


def test_the_app_compares_frames(videos):
    frames = videos.to_frames().limit(2)
    foo.execute_operator("@refinesam/amr/compare", view=frames, params=PARAMS)
    videos.reload()
    assert videos.count("frames.refinesam_mean_delta") == 2
    assert len(videos.load_saved_view("refinesam: no change")) <= 2


def masks(dataset) -> dict[str, bytes]:
    paths = dataset.values([f"{RUN.masks(role)}.detections.mask_path" for role in ("baseline", "amr")], unwind=True)
    return {path: Path(path).read_bytes() for one in paths for path in one}


@pytest.mark.parametrize("where", ["clone", "original"])
def test_a_clone_and_its_original_keep_their_own_masks(dataset, tmp_path, where):
    fill(dataset, tmp_path, 2)
    settings = replace(BOXES, masks="files", masks_dir=str(tmp_path / "masks"))
    compare(dataset, settings, session=session())
    clone = dataset.clone()
    again, other = (clone, dataset) if where == "clone" else (dataset, clone)
    before = masks(other)
    for sample in again:
        sample["truth"].detections[0].bounding_box = [0.1, 0.1, 0.3, 0.2]
        sample.save()
    assert compare(again, settings, session=session()).done == 2
    assert {path: Path(path).read_bytes() for path in before} == before == masks(other)
    assert masks(again).values() != before.values()
    delete_run(again, RUN)
    assert masks(other) == before
    clone.delete()
