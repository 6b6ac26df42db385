"""A run on parts of a dataset: one set of settings for all, no silent zeros, nothing left of what was replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import pytest

from fakes import FloodModel
from fiftyone_flat import BOXES, documents, fill, session, truth
from fiftyone_panel import Shown
from refinesam import ConfigError, Session
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.rows import read_rows
from refinesam_fiftyone.runs import progress, read_settings
from refinesam_fiftyone.schema import Fields, Settings

RUN = Fields()


class OtherModel(FloodModel):
    fingerprint = "e" * 32


@pytest.mark.parametrize("change", ["amr", "prompts", "truth", "no truth", "model"])
def test_other_settings_for_a_part_are_refused(dataset, tmp_path, change):
    fill(dataset, tmp_path, 3)
    dataset.clone_sample_field("truth", "other")
    compare(dataset, BOXES, session=session())
    evaluate(dataset)
    before = documents(dataset)
    settings, says = {
        "amr": (replace(BOXES, amr="paper"), "amr: 'full', now 'paper'"),
        "prompts": (Settings("random-2", truth_field="truth"), "prompts: 'boxes'"),
        "truth": (replace(BOXES, truth_field="other"), "truth_field: 'truth', now 'other'"),
        "no truth": (replace(BOXES, truth_field=None), "truth_field: 'truth', now None"),
        "model": (BOXES, "another model"),
    }[change]
    model = Session(OtherModel(negative_points=True, max_points=None)) if change == "model" else session()
    with pytest.raises(ConfigError, match="2 other samples") as caught:
        compare(dataset.limit(1), settings, session=model)
    assert says in str(caught.value) and "another name" in str(caught.value)
    assert (read_settings(dataset, RUN), documents(dataset)) == (BOXES, before)


def test_the_same_settings_for_another_part_and_ground_truth_at_last(dataset, tmp_path):
    fill(dataset, tmp_path, 3)
    bare = replace(BOXES, truth_field=None)
    compare(dataset.limit(1), bare, session=session())
    compare(dataset.skip(1), bare, session=session())
    assert compare(dataset.limit(1), BOXES, session=session()).skipped == 1
    assert (read_settings(dataset, RUN), evaluate(dataset).objects) == (BOXES, 6)


def test_other_settings_for_all_replace_everything(dataset, tmp_path):
    """Stopped half-way, nothing of the answers to the old settings is left to be taken for new ones."""
    fill(dataset, tmp_path, 4)
    files = replace(BOXES, masks="files", masks_dir=str(tmp_path / "masks"))
    compare(dataset, files, session=session())
    evaluate(dataset)
    old = [Path(one) for one in dataset.values(f"{RUN.amr}.detections.mask_path", unwind=True)]
    paper = replace(files, amr="paper")
    done = compare(dataset, paper, session=session(), batch_size=1, should_stop=lambda: progress(dataset, RUN)[0] >= 1)
    assert done.stopped and progress(dataset, RUN) == (1, 4)
    assert dataset.count(f"{RUN.amr}.detections") == 2 and len(read_rows(dataset)) == 2
    assert not dataset.has_field("refinesam_mean_delta")
    assert sum(one.exists() for one in old) <= 2
    assert evaluate(dataset).not_compared == 3
    compare(dataset, paper, session=session())
    assert evaluate(dataset).objects == 8


def test_truth_switched_leaves_nothing_on_the_old_labels(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    plain = documents(dataset)
    compare(dataset, BOXES, session=session())
    evaluate(dataset)
    dataset.set_values("other", [truth() for _ in range(2)])
    model = session()
    done = compare(dataset, replace(BOXES, truth_field="other"), session=model)
    assert (done.skipped, model.model.encoded) == (2, 0), "the answers do not hang on it"
    assert [one["truth"] for one in documents(dataset)] == [one["truth"] for one in plain]
    assert read_rows(dataset)["base_iou"].isna().all()
    found = evaluate(dataset)
    assert (found.objects, found.unpaired, found.failures) == (4, 0, {})
    assert read_rows(dataset)["truth_id"].tolist() == dataset.values("other.detections.id", unwind=True)
    assert not [name for name in dataset.get_field_schema(flat=True) if name.startswith("truth.detections.refinesam")]


def test_ground_truth_that_was_imported_again_is_no_silent_zero(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    compare(dataset, BOXES, session=session())
    evaluate(dataset)
    dataset.set_values("truth", [truth() for _ in range(2)])

    shown = [one.to_json()["body"] for one in evaluating(dataset) if one is not None]
    said = next(one["params"] for one in shown if one["operator_uri"] == "notify")
    assert said["variant"] == "warning"
    assert "4 failed (outdated)" in said["message"] and "compare again" in said["message"]
    assert dataset.count_sample_tags() == {"refinesam:outdated": 2}
    assert "'truth'" in dataset.first()[RUN.failures].classifications[0].reason

    compare(dataset, BOXES, session=session())
    found = evaluate(dataset)
    assert (found.objects, found.failures, dataset.count_sample_tags()) == (4, {}, {})


def evaluating(dataset):
    from fiftyone.operators.executor import ExecutionContext, Executor

    request = {"dataset_name": dataset.name, "params": {"run_key": "refinesam"}}
    ctx = ExecutionContext(request, executor=Executor(), operator_uri="@refinesam/amr/evaluate")
    return list(foo.get_operator("@refinesam/amr/evaluate").execute(ctx))


def test_a_partial_run_is_shown_as_such(dataset, tmp_path):
    fill(dataset, tmp_path, 3)
    compare(dataset.limit(2), BOXES, session=session())
    found = evaluate(dataset)
    assert (found.samples, found.not_compared, found.objects, found.missed) == (3, 1, 4, 0)
    assert dataset.values("refinesam_objects") == [2, 2, None]
    assert "(2 of 3 samples of the dataset are compared)" in Shown(dataset).state["headline"]
    for name in ("evaluate", "delete_run", "export"):
        assert form(name, dataset, {"run_key": "refinesam"})["partly"]["view"]["label"].startswith("2 of 3 samples")
    params = {"boxes_field": "truth", "truth_field": "truth", "run_key": "refinesam", "amr": "fast"}
    there = form("compare", dataset, params)["there"]["view"]["label"]
    assert "2 of 3" in there and "replaced" in there and "amr: 'full', now 'fast'" in there
    compare(dataset, BOXES, session=session())
    assert "of the dataset are compared" not in Shown(dataset).state["headline"]
    assert "partly" not in form("evaluate", dataset, {"run_key": "refinesam"})


def form(name, dataset, params):
    from fiftyone.operators.executor import ExecutionContext, Executor

    ctx = ExecutionContext(
        {"dataset_name": dataset.name, "params": params}, executor=Executor(), operator_uri=f"@refinesam/amr/{name}"
    )
    return foo.get_operator(f"@refinesam/amr/{name}").resolve_type(ctx, "inputs").to_json()["type"]["properties"]


def test_the_form_refuses_other_settings_for_a_part(dataset, tmp_path):
    fill(dataset, tmp_path, 3)
    compare(dataset, BOXES, session=session())
    params = {"boxes_field": "truth", "truth_field": "truth", "run_key": "refinesam", "amr": "fast"}
    with pytest.raises(foo.executor.ExecutionError, match="2 other samples"):
        foo.execute_operator("@refinesam/amr/compare", view=dataset.limit(1), params=params)
    assert read_settings(dataset, RUN) == BOXES
    assert fo.dataset_exists(dataset.name)
