"""A detector's file: whose boxes they are, which label each has, and what is told of the others."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fake_project import box
from fakes import FloodModel
from refinesam import DatasetError, Session
from refinesam.hosts import ObjectPrompt
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.cli import app
from refinesam_labelstudio.detections import Detections, detections_version
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.labeling_config import LabelingConfig
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.preannotate import Preannotation, preannotate
from refinesam_labelstudio.results import mask_from_region
from refinesam_labelstudio.task_images import TaskImages, image_name
from refinesam_labelstudio.task_prediction import TaskPredictor

if TYPE_CHECKING:
    from real_label_studio import LabelStudio, Project

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Cat"/><Label value="Dog"/></RectangleLabels>
</View>"""
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "Dog"}, {"id": 3, "name": "bird"}]
IMAGES = [
    {"id": 10, "file_name": "photos/my photo (1).png"},
    {"id": 11, "file_name": "photos/second.png"},
    {"id": 12, "file_name": "photos/gone.png"},
    {"id": 13, "file_name": "photos/twice.png"},
]


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def found(image: int, category: int, *xywh: Any, score: float = 0.5) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": list(xywh), "score": score}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("/data/upload/7/1a2b3c4d-photo_1.png", "photo_1.png"),
        ("http://host/prefix/data/upload/7/1a2b3c4d-photo%201.png", "photo 1.png"),
        ("/data/local-files/?d=day/one.png", "day/one.png"),
        ("s3://bucket/day/one.png", "bucket/day/one.png"),
        ("https://host/day/one.png?token=1", "host/day/one.png"),
        ("data:image/png;base64,AAAA", None),
        ("", None),
        (7, None),
    ],
)
def test_the_name_of_a_tasks_image(value: object, name: str | None) -> None:
    assert image_name(value) == name


def images_of(**names: str) -> TaskImages:
    return TaskImages({name: {name: ((int(key[1:]), "image"),)} for key, name in names.items()})


def test_a_file_of_other_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "found.csv").write_text("image,x0,y0,x1,y1\nb.png,1,2,3,4\n")
    with pytest.raises(
        DatasetError, match=r"1 images, and none .*\(b\.png: no image is called so\)\. There are a\.png"
    ):
        Detections.read(tmp_path / "found.csv", images_of(t1="a.png"))
    assert detections_version("v", tmp_path / "found.csv").startswith("v+prompts-")


@pytest.mark.parametrize(
    ("class_name", "label", "says"),
    [("Cat", "Cat", ""), ("dog", "Dog", ""), ("bird", "bird", ""), (None, None, "no class, and .* 2 labels")],
)
def test_a_class_is_the_label_of_its_name(class_name: str | None, label: str | None, says: str) -> None:
    problems: list[str] = []
    detections = Detections({(1, "image"): [ObjectPrompt((1, 2, 3, 4), class_name=class_name, score=7)]}, {})
    objects = detections.objects((1, "image"), LabelingConfig.parse(CONFIG), None, problems.append)
    if label is None:
        assert objects == []
        assert re.search(says, problems[0])
    else:
        assert (objects[0].label, objects[0].score) == (label, None)
        assert problems == ["A score of 7 is not from 0 to 1; the mask has its predicted IoU instead."]
    (named,) = detections.objects((1, "image"), LabelingConfig.parse(CONFIG), "Cat", lambda problem: None)
    assert named.label == (class_name and label or "Cat")


def run(project: Project, folder: Path, results: list[Any] | None, model: FloodModel | None = None) -> Preannotation:
    server = ProjectServer(project.server.url, project.server.personal_token)
    access = ImageAccess(server, FileCache(folder / "images"))
    config = LabelingConfig.parse(server.project(project.id)["label_config"])
    detections, version = None, "flood"
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "coco.json").write_text(json.dumps({"images": IMAGES, "annotations": [], "categories": CATEGORIES}))
        paths = (folder / "results.json", folder / "coco.json")
        detections = Detections.read(paths[0], TaskImages.of_project(server, project.id, config), paths[1])
        version = detections_version(version, *paths)
    reader = lambda value, task_id: image_for_task(value, access, task_id)  # noqa: E731
    options = ServiceOptions(everything=None)
    predictor = TaskPredictor(Session(model or FloodModel()), reader, config, options, detections)
    try:
        return preannotate(server, project.id, predictor, version, folder / "journal.jsonl")
    finally:
        server.close()


def regions(project: Project, name: str) -> list[tuple[str, float, tuple[int, ...]]]:
    """Label, score and bounds (XYXY) of the masks that a task got."""
    masks = [item for found in project.predictions(name) for item in found["result"] if item["type"] == "brushlabels"]
    told = []
    for region in masks:
        rows, columns = np.nonzero(mask_from_region(region))
        bounds = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        told.append((region["value"]["brushlabels"][0], region["score"], bounds))
    return told


def test_a_detectors_boxes_become_named_masks(label_studio: LabelStudio, tmp_path: Path) -> None:
    """Two classes, and whatever may be wrong with a box or a file: told, and it costs nothing else."""
    names = ("my photo (1).png", "second.png", "other.png")
    project = label_studio.project(CONFIG, {name: png(number) for number, name in enumerate(names)})
    for number in (5, 6):
        address = f"/api/projects/{project.id}/import"
        label_studio.call("POST", address, files={"file": ("twice.png", png(number))})
    results = [
        found(10, 1, 2, 3, 10, 8, score=0.75),
        found(10, 2, 16, 4, 40, 12, score=0.5),  # reaches over the border
        found(10, 3, 1, 1, 9, 9),
        found(10, 1, 200, 3, 10, 8),
        found(10, 1, 2, 3, -10, 8),
        found(10, 3, 1, 1, 5, 5),
        found(11, 3, 1, 1, 9, 9),
        found(12, 1, 1, 1, 9, 9),
        found(13, 1, 1, 1, 9, 9),
    ]
    report = run(project, tmp_path, results)
    assert regions(project, "my photo (1).png") == [("Cat", 0.75, (2, 3, 12, 11)), ("Dog", 0.5, (16, 4, 32, 16))]
    assert project.predictions("my photo (1).png")[0]["score"] == 0.625
    first, second, other = (project.tasks[name] for name in names)
    problems = " ".join(report.problems[first])
    for said in ("sizes not negative", "'bird', only 'Cat', 'Dog': add", "(2 times)", "wholly outside the image"):
        assert said in problems, problems
    assert list(report.failed) == [second] and "'bird'" in report.failed[second]
    assert report.unmatched["photos/gone.png"] == "no image is called so"
    assert "the images of several tasks are called so: " in report.unmatched["photos/twice.png"]
    assert other in report.unprompted and len(report.unprompted) == 3
    assert project.predictions("other.png") == []
    again = run(project, tmp_path, results)
    assert (again.stored, again.kept, list(again.failed)) == (0, 1, [second])
    # Other boxes are other predictions, beside those that are there.
    assert run(project, tmp_path, [found(11, 1, 1, 1, 9, 9, score=1)]).stored == 1
    assert regions(project, "second.png") == [("Cat", 1.0, (1, 1, 10, 10))]


def test_the_command_answers_a_detectors_boxes(
    label_studio: LabelStudio, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is typed: masks on the server, and in words what was done, what is left out, and how far the project is."""
    project = label_studio.project(CONFIG, {"my photo (1).png": png(1), "other.png": png(2)})
    file = tmp_path / "results.json"
    file.write_text(json.dumps([found(10, 1, 2, 3, 10, 8, score=0.75), found(12, 1, 1, 1, 9, 9)]))
    (tmp_path / "coco.json").write_text(json.dumps({"images": IMAGES, "annotations": [], "categories": CATEGORIES}))
    monkeypatch.setenv("LABEL_STUDIO_URL", project.server.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", project.server.personal_token)
    asked = ["preannotate", "--project", project.id, "--prompts", file, "--coco", tmp_path / "coco.json"]
    done = CliRunner().invoke(app, [*map(str, asked), "--weights", str(weights), "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert [(label, score) for label, score, _ in regions(project, "my photo (1).png")] == [("Cat", 0.75)]
    assert "1 tasks have images that the file has no prompts for" in done.output
    assert "photos/gone.png: no image is called so" in done.output
    told = CliRunner().invoke(app, ["status", "--project", str(project.id)]).output
    assert f"Project {project.id} has 2 tasks" in told and "+prompts-" in told


def test_boxes_that_a_task_holds_become_named_masks(label_studio: LabelStudio, tmp_path: Path) -> None:
    project = label_studio.project(CONFIG, {"one.png": png(1), "two.png": png(2)})
    sound, unknown, flat, odd = ({**box(0, 0, 50, 25), "id": f"r{number}"} for number in range(4))
    for region in (sound, flat, odd):
        region["value"]["rectanglelabels"] = ["Dog"]
    sound["score"] = 0.25
    unknown["value"]["rectanglelabels"] = ["Bird"]
    flat["value"]["width"] = 0
    odd["value"]["width"] = "wide"
    for name, result in {"one.png": [flat, sound, unknown, odd], "two.png": [odd]}.items():
        address = f"/api/tasks/{project.tasks[name]}/annotations/"
        label_studio.call("POST", address, json={"result": result})
    report = run(project, tmp_path, None)
    assert regions(project, "one.png") == [("Dog", 0.25, (0, 0, 16, 6))]
    problems = " ".join(report.problems[project.tasks["one.png"]])
    for said in ("width 'wide'", "region r2 is left out", "'Bird', only 'Cat', 'Dog': add"):
        assert said in problems, problems
    assert "width 'wide'" in report.failed[project.tasks["two.png"]]


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_ellipses_and_turned_boxes_ask_for_what_is_inside_them(
    label_studio: LabelStudio, tmp_path: Path, mask_prompt: bool
) -> None:
    tag = '<EllipseLabels name="round" toName="image"><Label value="Cat"/></EllipseLabels></View>'
    project = label_studio.project(CONFIG.replace("</View>", tag), {"one.png": png(1)})
    place = {**box(), "value": {"x": 50, "y": 50, "rotation": 45}}
    ellipse = {**place, "id": "e", "type": "ellipselabels", "from_name": "round"}
    ellipse["value"] = {**place["value"], "radiusX": 25, "radiusY": 10, "ellipselabels": ["Cat"]}
    turned = {**place, "value": {**place["value"], "width": 25, "height": 10, "rectanglelabels": ["Dog"]}}
    address = f"/api/tasks/{project.tasks['one.png']}/annotations/"
    label_studio.call("POST", address, json={"result": [ellipse, turned]})
    model = FloodModel(mask_prompt=mask_prompt)
    assert run(project, tmp_path, None, model).problems == {}
    assert [label for label, _, _ in regions(project, "one.png")] == ["Cat", "Dog"]
    first, second = model.decoded
    if mask_prompt:
        assert first.mask is not None and second.mask is not None
        assert abs(first.mask.sum() - np.pi * 8 * 2.4) < 8  # half axes in pixels
        assert first.mask[12, 16] and first.mask[15, 19] and not first.mask[15, 13]
        assert abs(second.mask.sum() - np.pi * 4 * 1.2) < 5
    else:
        np.testing.assert_allclose(first.points, [[16, 12]], atol=1e-4)
