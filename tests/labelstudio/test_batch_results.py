"""What `refinesam batch` made, as predictions of a real Label Studio's project: as far as it is, then the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from planted_job import coco_boxes, write_images
from refinesam import decode_rle
from refinesam.cli import app as refinesam_app
from refinesam.jobs.folder import result_rows
from refinesam_labelstudio.cli import app
from refinesam_labelstudio.results import mask_from_region

if TYPE_CHECKING:
    from real_label_studio import LabelStudio, Project

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BitmaskLabels name="mask" toName="image"><Label value="Cat"/><Label value="Dog"/></BitmaskLabels>
</View>"""


@pytest.fixture
def job(tmp_path: Path, weights: Path) -> Path:
    """The results of three images, two boxes each, in two shards; one box is outside of its image."""
    names = write_images(tmp_path / "images", 3)
    document = coco_boxes(names)
    document["annotations"][5]["bbox"] = [500, 2, 30, 30]
    document["annotations"][0]["score"] = 0.75
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    arguments = [str(tmp_path / "images"), "--prompts", str(tmp_path / "boxes.json"), "--output", str(tmp_path / "job")]
    arguments += ["--shard", "2", "--weights", str(weights), "--device", "cpu"]
    done = CliRunner().invoke(refinesam_app, ["batch", *arguments])
    assert done.exit_code == 0, done.output
    return tmp_path / "job"


def imported(project: Project, job: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[dict[str, Any], str]:
    monkeypatch.setenv("LABEL_STUDIO_URL", project.server.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", project.server.personal_token)
    report = job.parent / "report.json"
    arguments = [str(job), "--project", str(project.id), "--folder", str(job.parent), "--report", str(report), *more]
    done = CliRunner().invoke(app, ["import", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(report.read_text()), " ".join(done.output.split())


def test_results_arrive_as_far_as_they_are_and_then_the_rest(
    label_studio: LabelStudio, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = job.parent / "images"
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    assert len(names) == 3
    files = {Path(name).name: (images / name).read_bytes() for name in names}
    files["other.png"] = files["0000.png"]
    project = label_studio.project(CONFIG, files)
    last = job / "shards" / "00001.parquet"
    content = last.read_bytes()
    last.unlink()
    first, told = imported(project, job, monkeypatch)
    assert (first["tasks"], first["stored"], len(first["unprompted"])) == (4, 2, 2)
    assert "00001.parquet: it is not there yet" in told
    assert "wholly outside" in told
    assert first["model_version"].startswith("batch-")
    last.write_bytes(content[:-20])
    assert "00001.parquet: " in imported(project, job, monkeypatch)[1]  # damaged, and told
    last.write_bytes(content)
    second, _ = imported(project, job, monkeypatch)
    assert (second["stored"], second["kept"], second["failed"]) == (1, 2, {})
    assert second["model_version"] == first["model_version"]
    assert label_studio.call("GET", f"/api/projects/{project.id}")["model_version"] == first["model_version"]
    expected = [row for row in result_rows(job) if row["area"]]
    stored = {}
    for name in names:
        (prediction,) = project.predictions(Path(name).name)
        stored[name] = prediction["result"]
    assert sum(map(len, stored.values())) == len(expected) > 3
    for row in expected:
        region = stored[row["image"]].pop(0)
        mask = decode_rle({"size": [row["height"], row["width"]], "counts": row["rle"]})
        np.testing.assert_array_equal(mask_from_region(region), mask)
        assert region["value"]["bitmasklabels"] == [row["class_name"].title()]
        wanted = row["predicted_iou"] if row["score"] is None else row["score"]
        assert region["score"] == pytest.approx(min(max(wanted, 0), 1))
    assert project.predictions("other.png") == []
    # The results of other images, and a folder that holds none, are refused.
    for name in names:
        label_studio.client.request("DELETE", f"/api/tasks/{project.tasks[Path(name).name]}/")
    done = CliRunner().invoke(app, ["import", str(job), "--project", str(project.id)])
    assert "3 images, such as" in str(done.exception) and "There are other.png" in str(done.exception)
    done = CliRunner().invoke(app, ["import", str(job.parent), "--project", str(project.id)])
    assert "holds no results of refinesam batch" in str(done.exception)
