"""Fields that were renamed or deleted since: every action goes on with what is left, or says what is missing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fiftyone_flat import BOXES, fill, session
from fiftyone_panel import Shown
from refinesam import ConfigError
from refinesam_fiftyone.coco import coco_ap
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.deletion import delete_run
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.explain import explain
from refinesam_fiftyone.export import export_coco, export_rows, tag_for_relabelling
from refinesam_fiftyone.ranking import rank
from refinesam_fiftyone.rows import read_rows
from refinesam_fiftyone.runs import list_runs
from refinesam_fiftyone.schema import Fields, Settings
from refinesam_fiftyone.views import bucket_view, failures_view, save_views

RUN = Fields("boxes")
OWN = (RUN.baseline, RUN.amr, RUN.rejected, RUN.points, RUN.failures, RUN.digest, "boxes_worst_delta", "boxes_failed")


@pytest.fixture
def made(dataset, tmp_path):
    """A dataset with a run that was evaluated, ranked and has its views."""
    fill(dataset, tmp_path, 2)
    compare(dataset, BOXES, run_key=RUN.key, session=session())
    evaluate(dataset, run_key=RUN.key)
    save_views(dataset, run_key=RUN.key)
    return dataset


def every_action(dataset, folder: Path) -> dict[str, str]:
    """Do everything that can be done with a run; returns what was refused, and why. Anything else is an error."""
    prompt_id = next(
        (dataset.first()[name].detections[0].id for name in ("truth", "gold") if dataset.has_field(name)), ""
    )
    actions = {
        "rows": lambda: read_rows(dataset, RUN.key),
        "explain": lambda: explain(dataset, run_key=RUN.key, prompt_id=prompt_id),
        "evaluate": lambda: evaluate(dataset, run_key=RUN.key),
        "bucket": lambda: len(bucket_view(dataset, "no_change", run_key=RUN.key)),
        "failures": lambda: len(failures_view(dataset, run_key=RUN.key)),
        "views": lambda: save_views(dataset, run_key=RUN.key),
        "rank": lambda: rank(dataset, run_key=RUN.key),
        "csv": lambda: export_rows(dataset, folder / "rows.csv", run_key=RUN.key),
        "coco": lambda: export_coco(dataset, folder / "coco.json", run_key=RUN.key),
        "ap": lambda: coco_ap(dataset, RUN.key),
        "tags": lambda: tag_for_relabelling(dataset, run_key=RUN.key, worst=1),
    }
    refused = {}
    for name, act in actions.items():
        try:
            act()
        except ConfigError as error:
            refused[name] = str(error)
    return refused


@pytest.mark.parametrize("rename", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_one_of_the_runs_fields(made, tmp_path, name, rename):
    if rename:
        made.rename_sample_field(name, "final")
    else:
        made.delete_sample_field(name)
    shown = Shown(made)
    refused = every_action(made, tmp_path)

    if name in (RUN.baseline, RUN.amr):
        assert {"rows", "evaluate", "bucket", "views", "rank", "csv", "explain", "tags"} <= refused.keys()
        assert all(name in one and "compare again" in one for one in refused.values())
        assert name in shown.state["headline"]
        assert not rename or "(now final)" in refused["rows"]
    else:
        assert refused == {}
        assert shown.state["kind"] in ("evaluated", "ranked")
        shown.call("open_bucket", bucket="no_change")
        shown.call("explain")
    # A re-run restores what is gone.
    assert compare(made, BOXES, run_key=RUN.key, session=session()).failures == {}
    assert every_action(made, tmp_path) == {}
    assert made.count(f"{RUN.amr}.detections") == 4 and len(read_rows(made, RUN.key)) == 4
    kept = set(delete_run(made, RUN).stays)
    assert list_runs(made) == []
    assert {one for one in made.get_field_schema() if one.startswith("boxes")} == set()
    assert made.has_field("final") == rename and any("final" in one for one in kept) == rename


@pytest.mark.parametrize("rename", [True, False])
def test_the_ground_truth(made, tmp_path, rename):
    rows = read_rows(made, RUN.key)
    if rename:
        made.rename_sample_field("truth", "gold")
    else:
        made.delete_sample_field("truth")
    shown = Shown(made)
    assert shown.state["kind"] == "evaluated"
    shown.call("explain")
    shown.call("open_bucket", bucket="no_change")
    shown.call("open_points", id=rows["prompt_id"][0])
    assert len(shown.view) == 1

    refused = every_action(made, tmp_path)
    assert refused.keys() - {"explain"} == {"evaluate", "ap"}
    assert "'truth'" in refused["evaluate"] and ("'gold'" in refused["evaluate"]) == rename
    pd.testing.assert_frame_equal(read_rows(made, RUN.key)[["base_iou", "bucket"]], rows[["base_iou", "bucket"]])

    delete_run(made, RUN)
    assert not [name for name in made.get_field_schema(flat=True) if "boxes" in name]


def test_ground_truth_of_another_name_is_named_and_compared_with(made, tmp_path):
    made.rename_sample_field("truth", "gold")
    settings = Settings("boxes", prompt_field="gold", truth_field="gold")
    compare(made, settings, run_key=RUN.key, session=session())
    assert evaluate(made, run_key=RUN.key).objects == 4
    assert every_action(made, tmp_path) == {}


def test_a_copy_of_the_ground_truth_keeps_what_was_copied(made):
    made.clone_sample_field("truth", "gold")
    before = made.values("gold.detections.boxes_bucket")
    delete_run(made, RUN)
    assert made.values("gold.detections.boxes_bucket") == before != [[None] * 2] * 2


@pytest.mark.parametrize("prompts", ["boxes", "keypoints"])
def test_a_field_of_prompts_that_is_gone_is_named(dataset, tmp_path, prompts):
    import fiftyone as fo

    fill(dataset, tmp_path, 1)
    sample = dataset.first()
    sample["asked"] = (
        fo.Keypoints(keypoints=[fo.Keypoint(label="a", points=[(15 / 64, 15 / 48)])])
        if prompts == "keypoints"
        else sample["truth"].copy()
    )
    sample.save()
    compare(dataset, Settings(prompts, "asked", "truth"), run_key=RUN.key, session=session())
    dataset.delete_sample_field("asked")
    with pytest.raises(ConfigError, match="'asked'"):
        evaluate(dataset, run_key=RUN.key)
