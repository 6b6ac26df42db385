"""export under a real Label Studio: what was annotated comes out as it is, whatever holds it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from refinesam_labelstudio.labeling_config import EXAMPLES, LabelingConfig
from refinesam_labelstudio.results import regions_from_mask

if TYPE_CHECKING:
    from real_label_studio import LabelStudio, Project

HW = (48, 64)


def disc(x: int, y: int, radius: int) -> np.ndarray:
    rows, columns = np.indices(HW)
    return np.asarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


RING = disc(30, 24, 15) & ~disc(30, 24, 6)
SMALL = disc(10, 10, 5)


def export(project: Project, *arguments: Any) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LABEL_STUDIO_URL": project.server.url,
        "LABEL_STUDIO_API_KEY": project.server.personal_token,
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "refinesam.cli", "labelstudio", "export", f"--project={project.id}"]
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # pycocotools' own
@pytest.mark.parametrize("kind", ["brush", "bitmask", "polygon"])
def test_masks_come_out_as_they_are(label_studio: LabelStudio, tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(buffer, "PNG")
    names = ["one.png", "two.png", "empty.png", "skipped.png", "untouched.png"]
    project = label_studio.project(EXAMPLES[kind], dict.fromkeys(names, buffer.getvalue()))
    tag = LabelingConfig.parse(EXAMPLES[kind]).output_for("Object")
    ring = regions_from_mask(RING, tag, "Object", HW, tolerance=0)
    small = regions_from_mask(SMALL, tag, "Other", HW, tolerance=0)

    def annotate(name: str, result: list[Any], **more: Any) -> None:
        label_studio.call("POST", f"/api/tasks/{project.tasks[name]}/annotations/", json={"result": result, **more})

    annotate("one.png", small)
    annotate("one.png", [*ring, *small])  # the newest counts
    annotate("two.png", [*ring, *regions_from_mask(SMALL, tag, "Object", HW, tolerance=0), {"id": "x", "type": kind}])
    annotate("empty.png", [])
    annotate("skipped.png", small, was_cancelled=True)
    output = tmp_path / "export"
    done = export(project, "--output", output, "--png", f"--folder={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "3 images with 4 objects" in done.stdout
    assert "2 tasks have no accepted annotation, 0 failed" in done.stdout
    coco = COCO(output / "instances.json")
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == {1: "Object", 2: "Other"}
    images = {image["task_id"]: image for image in coco.loadImgs(coco.getImgIds())}
    assert list(images) == [project.tasks[name] for name in names[:3]]
    assert all((image["height"], image["width"]) == HW for image in images.values())
    assert all(images[project.tasks[name]]["file_name"].endswith(name) for name in names[:3])

    def masks(name: str) -> list[tuple[int, np.ndarray]]:
        found = coco.loadAnns(coco.getAnnIds(imgIds=images[project.tasks[name]]["id"]))
        return [(item["category_id"], coco.annToMask(item).astype(bool)) for item in found]

    for name, expected in (("one.png", [(1, RING), (2, SMALL)]), ("two.png", [(1, RING), (1, SMALL)])):
        for (category, mask), (label, drawn) in zip(masks(name), expected, strict=True):
            assert category == label
            assert np.array_equal(mask, drawn)
    assert masks("empty.png") == []
    first, second = (project.tasks[name] for name in names[:2])
    found = {path.name: np.asarray(Image.open(path)) for path in (output / "masks").iterdir()}
    assert sorted(found) == sorted([f"{first}-1-Object.png", f"{first}-2-Other.png", f"{second}-1-Object.png"])
    assert np.array_equal(found[f"{second}-1-Object.png"] == 255, RING | SMALL)
    before = json.loads((output / "instances.json").read_text())
    again = export(project, "--output", output)
    assert again.returncode == 1
    assert "has an export already" in " ".join(again.stderr.split())
    assert json.loads((output / "instances.json").read_text()) == before
