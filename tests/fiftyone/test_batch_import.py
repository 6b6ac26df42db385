"""Import of what `refinesam batch` wrote: the command itself, and the real database."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pyarrow.parquet as pq
import pytest
from fiftyone.operators.executor import ExecutionContext, ExecutionError, Executor

from fiftyone_flat import documents
from planted_job import coco_boxes, write_images
from refinesam import ConfigError, DatasetError, decode_rle
from refinesam.cli import main
from refinesam.jobs import local
from refinesam.jobs.folder import result_rows
from refinesam.jobs.rows import COLUMNS, Task
from refinesam.jobs.worker import Asked, Machine, Worker
from refinesam_fiftyone.batch_import import import_batch
from refinesam_fiftyone.deletion import delete_run
from refinesam_fiftyone.labels import mask_from_detection
from refinesam_fiftyone.schema import Fields

URI = "@refinesam/amr/import_batch"
RUN = Fields("batch")
HW = (40, 56)


def in_this_process(asked: Asked, machine: Machine, tasks: list[Task], processes: int) -> Iterator[tuple[Task, Any]]:
    """Answer as the local engine does, without the seconds in which a process of its own starts."""
    worker = Worker(asked, machine)
    return ((task, worker.rows(task)) for task in tasks)


def batch(folder: Path, weights: Path, patch: pytest.MonkeyPatch) -> None:
    """Run the command in a folder, on images named relative to it."""
    arguments = ["images", "--prompts", "detections.json", "--coco", "boxes.json", "--output", "out", "--shard", "2"]
    options = ["--refine", "fast", "--weights", str(weights), "--device", "cpu", "--threads", "1"]
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["refinesam", "batch", *arguments, *options])
    patch.setattr(local, "run_local", in_this_process)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """Six images, one of them damaged, in three shards: boxes of a detector, with scores, one box off the image."""
    folder = tmp_path_factory.mktemp("job")
    names = write_images(folder / "images", 6)
    document = coco_boxes(names)
    boxes = [{key: one[key] for key in ("image_id", "category_id", "bbox")} for one in document["annotations"]]
    # A detector's file, from which each mask has its class and score.
    detections = [one | {"score": 0.5 + i / 100} for i, one in enumerate(boxes)]
    detections[3]["bbox"] = [900, 900, 5, 5]
    (folder / "boxes.json").write_text(json.dumps(document))
    (folder / "detections.json").write_text(json.dumps(detections))
    (folder / "images" / names[5]).write_bytes(b"no image")
    with pytest.MonkeyPatch.context() as patch:
        batch(folder, weights, patch)
    return folder


@pytest.fixture
def loaded(dataset: Any, job: Path) -> Iterator[Any]:
    """The images as samples, in another order, with a field of the user's."""
    files = sorted((job / "images").rglob("*.png"), reverse=True)
    dataset.add_samples([fo.Sample(str(path), mine=path.name) for path in files])
    yield dataset


def sample_of(dataset: Any, name: str) -> Any:
    return dataset.match(fo.ViewField("filepath").ends_with(f"/{name}")).first()


def test_masks_classes_and_scores_come_as_the_job_has_them(loaded: Any, job: Path) -> None:
    before = documents(loaded)
    done = import_batch(loaded, job / "out")
    assert (done.samples, done.done, done.labels) == (6, 6, 9)
    assert done.failures == {"bad_prompt": 1, "unreadable_image": 1} and not done.left_out
    loaded.reload()
    rows = [row for row in result_rows(job / "out") if row["rle"] is not None]
    assert len(rows) == 9
    for row in rows:
        labels = sample_of(loaded, row["image"])[RUN.labels].detections
        (label,) = [one for one in labels if one.confidence == row["score"]]
        assert (label.label, label.predicted_iou, label.kept) == (row["class_name"], row["predicted_iou"], row["kept"])
        expected = decode_rle({"size": list(HW), "counts": row["rle"]})
        np.testing.assert_array_equal(mask_from_detection(label, HW), expected)
        assert label.area_px == row["area"]
    (failed,) = loaded.match_tags("batch:unreadable_image")
    assert failed[RUN.failures].classifications[0].reason.count("0005.png")
    (outside,) = loaded.match_tags("batch:bad_prompt")
    assert len(outside[RUN.labels].detections) == 1

    assert import_batch(loaded, job / "out").skipped == 6
    delete_run(loaded, RUN)
    loaded.reload()
    assert documents(loaded) == before


def test_a_job_in_progress_is_read_as_far_as_it_is(loaded: Any, job: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(job / "out", copy)
    (copy / "shards" / "00001.parquet").write_bytes(b"PAR1 and no more")
    (copy / "shards" / "00002.parquet").unlink()
    first = import_batch(loaded, copy, masks_dir=str(tmp_path / "masks"))
    assert (first.done, list(first.left_out)) == (2, ["00001.parquet"])
    assert "cannot be read" in first.left_out["00001.parquet"]
    for name in ("00001.parquet", "00002.parquet"):
        shutil.copy(job / "out" / "shards" / name, copy / "shards")
    # A label that the user draws into the field, and a tag, stay.
    sample = sample_of(loaded, "0003.png")
    sample.tags = ["seen"]
    sample.save()
    second = import_batch(loaded, copy, masks_dir=str(tmp_path / "masks"))
    assert (second.done, second.skipped, second.left_out) == (4, 2, {})
    assert "seen" in sample_of(loaded, "0003.png").tags
    files = list((tmp_path / "masks").rglob("*.png"))
    assert len(files) == 9 == loaded.count(f"{RUN.labels}.detections.mask_path")
    delete_run(loaded, RUN)
    assert not any(file.exists() for file in files)


def test_a_shard_that_is_damaged_inside_costs_itself(loaded: Any, job: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(job / "out", copy)
    shard = copy / "shards" / "00001.parquet"
    masks = pq.ParquetFile(shard).metadata.row_group(0).column([*COLUMNS].index("rle"))
    content = bytearray(shard.read_bytes())
    start = masks.dictionary_page_offset or masks.data_page_offset
    content[start : start + masks.total_compressed_size] = bytes(masks.total_compressed_size)
    shard.write_bytes(bytes(content))
    done = import_batch(loaded, copy)
    assert (done.done, list(done.left_out)) == (4, ["00001.parquet"]), "its images are named, its masks can't be read"
    shutil.copy(job / "out" / "shards" / shard.name, shard)
    assert import_batch(loaded, copy).done == 2


def test_what_cannot_be_matched_is_told_and_costs_itself(dataset: Any, job: Path, tmp_path: Path) -> None:
    images = job / "images"
    moved, small, twice = (tmp_path / name for name in ("moved", "small", "twice"))
    write_images(small, 2, 24, 24)
    for folder in (moved, twice, twice / "again"):
        folder.mkdir()
    shutil.copy(images / "0002.png", moved)
    for folder in (twice, twice / "again"):
        shutil.copy(images / "deep" / "0003.png", folder)
    files = [images / "deep" / "0000.png", small / "0001.png", moved / "0002.png", *sorted(twice.rglob("*.png"))]
    dataset.add_samples([fo.Sample(str(path)) for path in files])

    done = import_batch(dataset, job / "out")

    assert (done.done, done.labels) == (2, 4)
    assert len(sample_of(dataset, "moved/0002.png")[RUN.labels].detections) == 2
    assert done.left_out["0001.png"].startswith("The image had 56 x 40 pixels, and that of the sample has 24 x 24")
    assert done.left_out["deep/0003.png"] == "2 files of samples end in 0003.png: which one is not known."
    assert done.left_out["0004.png"] == "No sample has a file 0004.png."
    assert set(done.left_out) == {"0001.png", "deep/0003.png", "0004.png", "0005.png"}


def test_the_operator_imports_and_refuses_what_would_mix(loaded: Any, job: Path, tmp_path: Path) -> None:
    def form(folder: Path) -> dict[str, Any]:
        request = {"dataset_name": loaded.name, "params": {"folder": str(folder)}}
        ctx = ExecutionContext(request, executor=Executor(), operator_uri=URI)
        found: dict[str, Any] = foo.get_operator(URI).resolve_type(ctx, "inputs").to_json()["type"]["properties"]
        return found

    assert "holds no results" in form(tmp_path)["problem"]["error_message"]
    assert form(job / "out")["job"]["view"]["label"] == "A job of 6 images."
    with pytest.raises(ExecutionError, match="holds no results"):
        foo.execute_operator(URI, dataset=loaded, params={"folder": str(tmp_path)})
    ctx = ExecutionContext(
        {"dataset_name": loaded.name, "params": {"folder": str(job / "out")}}, executor=Executor(), operator_uri=URI
    )
    said = [one.to_json()["body"]["params"].get("label") for one in foo.get_operator(URI).execute(ctx)]
    assert said[-1] == "9 masks in 6 of 6 samples; failed in the job: 1 bad prompt, 1 unreadable image."

    other = tmp_path / "other"
    shutil.copytree(job / "out", other)
    document = json.loads((other / "job.json").read_text())
    (other / "job.json").write_text(json.dumps(document | {"refine": None}))
    with pytest.raises(ConfigError, match="something else"):
        import_batch(loaded, other)
    with pytest.raises(DatasetError, match="holds no results"):
        import_batch(loaded, tmp_path, run_key="b")
