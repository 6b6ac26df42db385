"""Accepted annotations become COCO folders, and these a new model version by the core's own finetuning."""

from __future__ import annotations

import io
import json
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import refinesam
from fake_label_studio import LEGACY
from fake_project import FakeProject, box, project
from refinesam import ConfigError, DatasetError, RefineSAMError
from refinesam_labelstudio import corrections as module
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.corrections import Corrections, approve, masks_from_annotation, project_folder, waiting
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.labeling_config import OutputTag
from refinesam_labelstudio.learning import finetune_project, weights_for
from refinesam_labelstudio.results import regions_from_mask

HW = (48, 64)


def disc(x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.indices(HW)
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def regions(mask: np.ndarray, kind: Any = "brush", label: str = "Object", **more: Any) -> list[dict[str, Any]]:
    """Regions that somebody drew: their ids are none of ours."""
    tag = OutputTag(kind, "mask", "image", ("Object", "Other"), **more)
    made = regions_from_mask(mask, tag, label, HW, tolerance=0)
    renamed = {region["id"]: f"{kind}-{label}-{number}" for number, region in enumerate(made)}
    parents = [{"parentID": renamed[region["parentID"]]} if "parentID" in region else {} for region in made]
    return [{**region, "id": renamed[region["id"]], **parent} for region, parent in zip(made, parents, strict=True)]


@pytest.fixture
def studio() -> Iterator[FakeProject]:
    """Tasks 1 to 5, each an image with a bright disc that an annotator accepted."""
    with project(5) as server:
        for item in server.tasks:
            mask = disc(20 + item["id"], 24, 12)
            buffer = io.BytesIO()
            Image.fromarray(np.where(mask, 220, 40).astype(np.uint8)).convert("RGB").save(buffer, "PNG")
            name = f"/data/upload/1/{item['id']}.png"
            server.files[name] = buffer.getvalue()
            annotation = {"id": 70 + item["id"], "updated_at": "2026-01-01", "result": regions(mask)}
            item.update(project=1, data={"image": name}, annotations=[annotation])
        yield server


@pytest.fixture
def corrections(studio: FakeProject, tmp_path: Path) -> Iterator[Corrections]:
    server = ProjectServer(studio.url, LEGACY, attempts=1)
    access = ImageAccess(server, FileCache(tmp_path / "images"))
    yield Corrections(tmp_path / "data", server, lambda value, task_id: image_for_task(value, access, task_id))
    server.close()


def created(task_id: int, action: str = "ANNOTATION_CREATED") -> tuple[str, dict[str, Any]]:
    return action, {"action": action, "annotation": {"id": 70 + task_id, "task": task_id}, "project": {"id": 1}}


def documents(tmp_path: Path) -> dict[str, Any]:
    """What is trained on, after all that waits is approved."""
    folder = project_folder(tmp_path / "data", 1)
    approve(folder, waiting(folder))
    return {split: json.loads((folder / f"instances_{split}.json").read_text()) for split in ("train", "val")}


def test_events_become_coco(studio: FakeProject, corrections: Corrections, tmp_path: Path) -> None:
    for task_id in range(1, 6):
        corrections.on_event(*created(task_id))
    found = documents(tmp_path)
    assert [image["file_name"] for image in found["train"]["images"]] == [f"{n}-0.png" for n in range(1, 5)]
    assert [image["file_name"] for image in found["val"]["images"]] == ["5-0.png"]
    assert found["train"]["categories"] == [{"id": 1, "name": "Object"}]
    mask = refinesam.decode_rle(found["train"]["annotations"][1]["segmentation"])
    assert (mask == disc(22, 24, 12)).all()
    pixels = refinesam.read_image(project_folder(tmp_path / "data", 1) / "images" / "2-0.png")
    assert (pixels[mask] == 220).all()
    assert (pixels[~mask] == 40).all()


def test_the_newest_annotation_counts_once(studio: FakeProject, corrections: Corrections, tmp_path: Path) -> None:
    corrections.on_event(*created(1))
    other = regions(disc(40, 20, 8), label="Other")
    studio.tasks[0]["annotations"] += [
        {"id": 90, "updated_at": "2026-02-01", "result": other},
        {"id": 91, "updated_at": "2026-03-01", "result": [], "was_cancelled": True},
    ]
    corrections.on_event(*created(1, "ANNOTATION_UPDATED"))
    train = documents(tmp_path)["train"]
    assert [category["name"] for category in train["categories"]] == ["Other"]
    assert [item["area"] for item in train["annotations"]] == [disc(40, 20, 8).sum()]


def test_deleted_annotations_are_forgotten(studio: FakeProject, corrections: Corrections, tmp_path: Path) -> None:
    for task_id in (1, 2):
        corrections.on_event(*created(task_id))
    deleted = "ANNOTATIONS_DELETED", {"annotations": [{"id": 71}]}
    corrections.on_event(*deleted)  # it is not, the server says
    assert [image["file_name"] for image in documents(tmp_path)["train"]["images"]] == ["1-0.png", "2-0.png"]
    studio.failing = [503]
    corrections.on_event(*deleted)
    assert len(documents(tmp_path)["train"]["images"]) == 2
    studio.tasks[0]["annotations"] = []
    corrections.on_event(*deleted)
    assert [image["file_name"] for image in documents(tmp_path)["train"]["images"]] == ["2-0.png"]
    studio.tasks[1]["annotations"] = []
    assert corrections.collect(2) == 0
    assert documents(tmp_path)["train"]["images"] == []


def test_annotations_of_a_deleted_task_are_forgotten(
    studio: FakeProject, corrections: Corrections, tmp_path: Path
) -> None:
    corrections.on_event(*created(1))
    del studio.tasks[0]
    corrections.on_event("ANNOTATIONS_DELETED", {"annotations": [{"id": 71}]})
    assert documents(tmp_path)["train"]["images"] == []


@pytest.mark.parametrize("kind", ["brush", "bitmask", "polygon"])
def test_what_nobody_changed_is_not_collected(
    studio: FakeProject, corrections: Corrections, tmp_path: Path, kind: str
) -> None:
    tag = OutputTag(kind, "mask", "image", ("Object",))  # type: ignore[arg-type]
    two = disc(12, 24, 8) | disc(48, 24, 7)
    ours = json.loads(json.dumps(regions_from_mask(two, tag, "Object", HW)))
    others = [{**region, "origin": "prediction"} for region in regions(disc(20, 20, 5))]
    studio.tasks[0]["annotations"][0]["result"] = ours + others
    assert corrections.collect(1) == 0
    assert waiting(project_folder(tmp_path / "data", 1)) == {}
    other = regions_from_mask(disc(12, 24, 9) | disc(48, 24, 7), tag, "Object", HW)[0]["value"]
    studio.tasks[0]["annotations"][0]["result"] = [{**ours[0], "value": other}, *ours[1:], *others]
    assert corrections.collect(1) == 1  # a corrected object is collected whole
    (item,) = documents(tmp_path)["train"]["annotations"]
    assert item["area"] > two.sum()


def test_nothing_is_trained_on_before_it_is_approved(
    studio: FakeProject, corrections: Corrections, tmp_path: Path
) -> None:
    folder = project_folder(tmp_path / "data", 1)
    for task_id in (1, 2):
        corrections.on_event(*created(task_id))
    assert waiting(folder) == {1: ["Object"], 2: ["Object"]}
    assert json.loads((folder / "instances_train.json").read_text())["images"] == []
    with pytest.raises(DatasetError, match="2 tasks wait .* approve --project 1"):
        finetune_project(tmp_path / "data", 1)
    with pytest.raises(DatasetError, match="Nothing was collected of task 3"):
        approve(folder, [3])
    approve(folder, [2])
    names = [image["file_name"] for image in json.loads((folder / "instances_train.json").read_text())["images"]]
    assert names == ["2-0.png"]
    corrections.on_event(*created(2, "ANNOTATION_UPDATED"))  # nothing of it was changed
    assert list(waiting(folder)) == [1]
    studio.tasks[1]["annotations"][0]["result"] = regions(disc(40, 20, 8))
    corrections.on_event(*created(2, "ANNOTATION_UPDATED"))
    assert list(waiting(folder)) == [1, 2]
    assert json.loads((folder / "instances_train.json").read_text())["images"] == []


def test_what_another_process_approves_meanwhile_counts(
    studio: FakeProject, corrections: Corrections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project_folder(tmp_path / "data", 1)
    corrections.on_event(*created(1))
    write_splits, written = module._write_splits, []

    def late(*arguments: Any) -> None:
        if not written:  # The other process is done between our reading and our writing.
            written.append(True)
            approve(folder, [1])
        write_splits(*arguments)

    monkeypatch.setattr(module, "_write_splits", late)
    module.write_dataset(folder)
    train = json.loads((folder / "instances_train.json").read_text())
    assert [image["file_name"] for image in train["images"]] == ["1-0.png"]


def test_a_damaged_record_costs_only_itself(
    studio: FakeProject, corrections: Corrections, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for task_id in (1, 2):
        corrections.on_event(*created(task_id))
    folder = project_folder(tmp_path / "data", 1)
    (folder / "tasks" / "1.json").write_text('{"annotation": 71, "ima')
    (folder / "tasks" / "notes.json").write_text("[]")
    corrections.on_event(*created(3))
    assert [image["file_name"] for image in documents(tmp_path)["train"]["images"]] == ["2-0.png", "3-0.png"]
    assert "1.json is left out" in caplog.text
    (folder / "approved.json").write_text("{")
    with pytest.raises(DatasetError, match="approve again"):
        waiting(folder)


def test_only_what_the_server_has_is_kept(
    studio: FakeProject, corrections: Corrections, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    action, body = created(1)
    body["annotation"]["result"] = regions(disc(5, 5, 3), label="Other")
    corrections.on_event(action, body)
    assert [category["name"] for category in documents(tmp_path)["train"]["categories"]] == ["Object"]
    for strange in ({}, {"annotation": {"task": "../../x"}}, {"annotation": {"task": 999}}, {"annotation": 5}):
        corrections.on_event("ANNOTATION_CREATED", strange)
    assert "404" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "images"]
    studio.files.clear()
    corrections.on_event(*created(2))
    assert "is not collected" in caplog.text


def test_masks_from_annotation() -> None:
    two = disc(12, 24, 8) | disc(48, 24, 8)
    polygons = regions(two, "polygon")
    assert len(polygons) == 2
    drawn = [*polygons, *regions(disc(20, 20, 5), "bitmask", "Other"), box()]
    found = masks_from_annotation(
        [*drawn, {"id": "x", "type": "brushlabels", "to_name": "image", "value": {}}, 3], "image"
    )
    assert [label for label, _ in found] == ["Object", "Other"]
    assert (found[0][1] ^ two).sum() <= 0.02 * two.sum()
    assert (found[1][1] == disc(20, 20, 5)).all()
    separate = regions(disc(20, 20, 5), "brush", "Other", labels_from="label")
    assert [label for label, _ in masks_from_annotation(separate, "image")] == ["Other"]
    assert masks_from_annotation(drawn, "another") == []


def test_finetuning_makes_a_version(studio: FakeProject, corrections: Corrections, tmp_path: Path) -> None:
    """The core's own command, on the CPU, for two steps from the built-in weights."""
    for task_id in range(1, 6):
        corrections.on_event(*created(task_id))
    documents(tmp_path)
    settings: dict[str, Any] = {"steps": 2, "batch_size": 1, "device": "cpu"}
    versions = finetune_project(tmp_path / "data", 1, **settings)
    made = weights_for(str(versions))
    assert Path(made).name == "project1_1.safetensors"
    session = refinesam.load(made, device="cpu")
    assert session.model.name == made


def test_versions_add_up(studio: FakeProject, corrections: Corrections, weights: Path, tmp_path: Path) -> None:
    corrections.on_event(*created(1))
    documents(tmp_path)
    asked: list[list[str]] = []
    told: list[tuple[str, int]] = []

    def run(command: Sequence[str]) -> int:
        asked.append(list(command))
        output = Path(command[command.index("--output") + 1])
        shutil.copyfile(weights, output / "weights.safetensors")
        recipe = tomllib.loads(Path(command[5]).read_text())
        told.append((recipe["model"]["variant"], recipe["model"]["input_size"]))
        return 0

    first = weights_for(str(finetune_project(tmp_path / "data", 1, run=run)))
    versions = finetune_project(tmp_path / "data", 1, weights=str(tmp_path / "data/project-1/versions.json"), run=run)
    listed = json.loads(versions.read_text())["versions"]
    assert [entry["weights"] for entry in listed] == ["project1_1.safetensors", "project1_2.safetensors"]
    assert [entry["started_from"] for entry in listed] == ["builtin", first]
    assert Path(weights_for(str(versions))).read_bytes() == weights.read_bytes()
    # Of what each started from: the built-in weights, and those of the first run.
    assert told == [("hybrid_lite0", 448), ("hybrid_ti", 64)]
    assert asked[0][1:5] == ["-m", "refinesam.cli", "train", "finetune"]


def test_finetuning_says_what_is_missing(studio: FakeProject, corrections: Corrections, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no accepted annotation"):
        finetune_project(tmp_path / "data", 1)
    corrections.on_event(*created(1))
    documents(tmp_path)
    with pytest.raises(RefineSAMError, match="exit code 3"):
        finetune_project(tmp_path / "data", 1, run=lambda command: 3)
    assert not (project_folder(tmp_path / "data", 1) / "versions.json").exists()


def test_weights_for(tmp_path: Path) -> None:
    assert weights_for("builtin") == "builtin"
    assert weights_for("some/file.safetensors") == "some/file.safetensors"
    for content in ("", "[]", '{"versions": []}', '{"versions": [{}]}'):
        (tmp_path / "versions.json").write_text(content)
        with pytest.raises(ConfigError, match="no model version"):
            weights_for(str(tmp_path / "versions.json"))
    with pytest.raises(ConfigError, match="none"):
        weights_for(str(tmp_path / "none.json"))
