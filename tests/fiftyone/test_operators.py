"""The operators, run by FiftyOne: forms and what they refuse, which samples are meant, the background, stopping."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pandas as pd
import pytest
from fiftyone import ViewField as F
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionContext, ExecutionError, Executor

from real_fiftyone import draw_shapes
from refinesam.hosts import known_weights
from refinesam_fiftyone.runs import list_runs, read_settings
from refinesam_fiftyone.schema import Fields

URI = "@refinesam/amr"
BOXES = {"boxes_field": "ground_truth", "truth_field": "ground_truth"}
RUN = Fields()


@pytest.fixture
def shapes(tmp_path: Path) -> Iterator[Any]:
    dataset = draw_shapes(f"shapes-{uuid.uuid4().hex[:8]}", tmp_path, samples=2)
    yield dataset
    dataset.delete()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Shapes that were compared and evaluated by the operator; not to be changed."""
    dataset = draw_shapes(f"compared-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("shapes"), samples=3)
    execute("compare", dataset=dataset, params={**BOXES})
    dataset.reload()
    yield dataset
    dataset.delete()


def execute(name: str, **request: Any) -> Any:
    return foo.execute_operator(f"{URI}/{name}", **request)


def context(dataset: Any, params: dict[str, Any], **request: Any) -> Any:
    request = {"dataset_name": dataset.name, "params": params, **request}
    return ExecutionContext(request, executor=Executor(), operator_uri=f"{URI}/compare")


def form(name: str, dataset: Any, params: dict[str, Any] | None = None, **request: Any) -> dict[str, Any]:
    """The form's properties by name, as the App gets them."""
    ctx = context(dataset, params or {}, **request)
    found = foo.get_operator(f"{URI}/{name}").resolve_type(ctx, "inputs").to_json()
    properties: dict[str, Any] = found["type"]["properties"]
    return properties


def choices(prop: dict[str, Any]) -> list[str]:
    return [choice["value"] for choice in prop["view"]["choices"]]


def done(dataset: Any) -> int:
    dataset.reload()
    if dataset.get_field(RUN.digest) is None:
        return 0
    return sum(value is not None for value in dataset.values(RUN.digest))


def test_the_form_offers_what_the_dataset_has(compared: Any) -> None:
    fields = form("compare", compared)

    assert choices(fields["boxes_field"]) == ["ground_truth", "boxes"]
    assert choices(fields["truth_field"]) == ["ground_truth", "-"]
    assert "view_target" in fields
    assert "resume" not in fields
    again = form("compare", compared, {"run_key": "refinesam", "truth_field": "ground_truth"})
    assert "resume" in again and "evaluate_after" in again
    assert choices(form("evaluate", compared)["run_key"]) == ["refinesam"]


def test_the_form_says_what_weights_are_for(shapes: Any) -> None:
    for name in ("compare", "find_similar"):
        offered = {choice["value"]: choice for choice in form(name, shapes)["weights"]["view"]["choices"]}
        assert list(offered) == list(known_weights())
        assert all(choice["label"] == name for name, choice in offered.items())
        assert offered["builtin"]["description"].endswith("23 MB, comes with refinesam; licence: Apache-2.0")
        assert "cells and nuclei in light microscopy; about 375 MB" in offered["vit_b_lm"]["description"]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"run_key": "My Run"}, "lower-case letters"),
        ({"prompts": "keypoints"}, "no field of Keypoints"),
        ({"prompts": "random-2", "truth_field": "-"}, "Random clicks are drawn in the ground truth"),
        ({"weights": "nowhere/weights.safetensors"}, "There is no file"),
        ({"masks": "files", "masks_dir": f"{__file__}/masks"}, "cannot be written to"),
        ({"masks": "files"}, "give masks_dir"),
    ],
)
def test_the_form_says_what_is_wrong_before_anything_runs(shapes: Any, params: dict[str, Any], says: str) -> None:
    params = {**BOXES, **params}
    flagged = [one for one in form("compare", shapes, params).values() if one["invalid"]]

    assert any(says in one["error_message"] for one in flagged)
    with pytest.raises(ExecutionError, match="Validation error"):
        execute("compare", dataset=shapes, params=params)
    assert list_runs(shapes) == []


def test_an_empty_view_is_refused(shapes: Any) -> None:
    with pytest.raises(ExecutionError, match="There are no samples here"):
        execute("compare", view=shapes.match(F("filepath") == "none"), params={**BOXES})


def test_operators_on_a_run_ask_for_one_first(shapes: Any) -> None:
    for name in ("evaluate", "rank", "explain", "export", "cancel", "delete_run"):
        assert form(name, shapes)["no_run"]["invalid"], name


def test_without_a_dataset_the_form_says_so() -> None:
    for name in ("compare", "evaluate", "rank", "explain", "export", "cancel", "delete_run"):
        ctx = ExecutionContext({"params": {}}, executor=Executor())
        found = foo.get_operator(f"{URI}/{name}").resolve_type(ctx, "inputs").to_json()
        assert found["type"]["properties"]["no_dataset"]["invalid"], name


def test_comparing_from_python_evaluates_and_saves_views(compared: Any) -> None:
    assert read_settings(compared, RUN).truth_field == "ground_truth"
    assert done(compared) == 3
    assert compared.count(f"{RUN.baseline}.detections.iou") == 6
    assert compared.has_saved_view("refinesam: AMR helped")


def test_label_filters_of_the_view_strip_no_prompts(shapes: Any) -> None:
    chosen = shapes.limit(1).filter_labels("ground_truth", F("label") == "coin")

    execute("compare", view=chosen, params={**BOXES, "evaluate_after": False})

    shapes.reload()
    assert [len(one or []) for one in shapes.values(f"{RUN.amr}.detections.label")] == [2, 0]
    assert shapes.count("ground_truth.detections") == 4


def test_the_selected_samples_alone_and_samples_behind_patches(shapes: Any) -> None:
    first, last = shapes.values("id")
    params = {**BOXES, "view_target": "SELECTED_SAMPLES", "evaluate_after": False}

    execute("compare", dataset=shapes, params=params, selected=[last])
    shapes.reload()
    assert [len(one or []) for one in shapes.values(f"{RUN.amr}.detections.label")] == [0, 2]

    patches = shapes.select(first).to_patches("ground_truth")
    execute("compare", view=patches, params={**BOXES, "evaluate_after": False})
    assert done(shapes) == 2


def test_a_failure_is_told_in_the_app_and_raised(shapes: Any) -> None:
    params = {**BOXES, "weights": "no-such-weights"}
    messages = []
    with pytest.raises(Exception, match="no-such-weights"):
        for message in foo.get_operator(f"{URI}/compare").execute(context(shapes, params)):
            messages.append(message.to_json())

    assert messages[-1]["body"]["operator_uri"] == "notify"
    assert messages[-1]["body"]["params"]["variant"] == "error"
    assert "no-such-weights" in messages[-1]["body"]["params"]["message"]


def test_another_process_stops_a_comparison_and_a_later_one_goes_on(shapes: Any) -> None:
    work = foo.get_operator(f"{URI}/compare").execute(context(shapes, {**BOXES, "run_key": "refinesam"}))
    next(work)  # It has begun to listen, and reads no sample before it is asked for the next message.
    code = (
        "import fiftyone as fo, fiftyone.operators as foo;"
        "from refinesam_fiftyone.operators.progress import cancel;"
        "from fiftyone.operators.executor import ExecutionContext;"
        f"cancel(ExecutionContext({{'dataset_name': {shapes.name!r}}}), 'refinesam')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)

    said = [message.to_json()["body"]["params"].get("label", "") for message in work]

    assert done(shapes) == 0
    assert any(label.startswith("Stopped: 0 masks in 0 of 2 samples") for label in said)
    execute("compare", view=shapes.limit(1), params={**BOXES, "evaluate_after": False})
    assert done(shapes) == 1


def test_the_cancel_operator_stops_the_run_that_is_chosen(compared: Any) -> None:
    store = context(compared, {}).store("refinesam")
    before = store.get("cancel:refinesam")

    result = execute("cancel", dataset=compared, params={"run_key": "refinesam"})

    assert result.result == {"run_key": "refinesam"}
    assert store.get("cancel:refinesam") not in (None, before)


def test_a_worker_compares_in_the_background(shapes: Any) -> None:
    queued = execute("compare", view=shapes.limit(1), params={**BOXES}, request_delegation=True)
    assert queued.delegated
    assert done(shapes) == 0
    code = "from fiftyone.operators.delegated import DelegatedOperationService as S; S().execute_queued_operations()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240, capture_output=True, env={**os.environ})

    (operation,) = [one for one in DelegatedOperationService().list_operations() if one.id == queued.result["id"]]
    assert operation.run_state == "completed"
    assert operation.status.label.startswith("2 masks in 1 of 1 samples")
    assert done(shapes) == 1
    assert shapes.has_saved_view("refinesam: both failed")


# As `fiftyone delegated launch` does, but until nothing is left: who lost the race for an operation asks again.
WORKER = """
import time
from fiftyone.operators.delegated import DelegatedOperationService

service = DelegatedOperationService()
while service.list_operations(run_state="queued"):
    service.execute_queued_operations(limit=1)
    time.sleep(0.1)
"""


@pytest.mark.parametrize("evaluate_after", [False, True])
def test_two_workers_each_finish_their_part(shapes: Any, evaluate_after: bool) -> None:
    """Two operations queued on two halves, two processes that take what is there: no work and no saved view is lost."""
    params = {**BOXES, "evaluate_after": evaluate_after}
    views = (shapes.limit(1), shapes.skip(1))
    queued = {execute("compare", view=view, params=params, request_delegation=True).result["id"] for view in views}
    workers = [subprocess.Popen([sys.executable, "-c", WORKER], env={**os.environ}) for _ in views]
    assert [worker.wait(timeout=240) for worker in workers] == [0, 0]

    found = {one.id: one.run_state for one in DelegatedOperationService().list_operations() if one.id in queued}
    assert found == dict.fromkeys(queued, "completed")
    assert done(shapes) == 2
    execute("evaluate", dataset=shapes, params={"run_key": "refinesam"})
    shapes.reload()
    assert None not in shapes.values("refinesam_objects")
    assert shapes.has_saved_view("refinesam: both failed")


def test_many_samples_are_suggested_for_the_background(shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = foo.get_operator(f"{URI}/compare")

    assert not operator.resolve_execution_options(context(shapes, {})).default_choice_to_delegated
    path = shapes.first().filepath
    shapes.add_samples([fo.Sample(filepath=path) for _ in range(200)])
    options = operator.resolve_execution_options(context(shapes, {}))
    assert options.default_choice_to_delegated
    assert options.allow_immediate_execution


def test_explain_returns_the_picture_and_the_facts(compared: Any) -> None:
    result = execute("explain", dataset=compared, params={"run_key": "refinesam"}).result

    picture = cv2.imdecode(np.frombuffer(base64.b64decode(result["picture"].split(",")[1]), np.uint8), 1)
    assert picture.shape[1] > 4 * 290
    assert {"Class", "Reason", "True IoU, first mask", "Predicted IoU, after refinement"} <= set(result["facts"])
    worst = min(
        (one for labels in compared.values(f"{RUN.amr}.detections") for one in labels),
        key=lambda one: (one["delta_iou"], one["iou"]),
    )
    assert result["prompt_id"] == worst["prompt_id"]


def test_explain_takes_the_selected_label_of_any_layer(compared: Any) -> None:
    sample = compared.last()
    for field in ("ground_truth", RUN.baseline, RUN.amr):
        for label in sample[field].detections:
            selected = [{"label_id": label.id, "sample_id": sample.id, "field": field}]
            found = execute(
                "explain", dataset=compared, params={"run_key": "refinesam"}, selected_labels=selected
            ).result
            prompt_id = label.id if field == "ground_truth" else label["prompt_id"]
            assert (found["prompt_id"], found["id"]) == (prompt_id, sample.id)


def test_a_label_of_no_run_is_refused(compared: Any) -> None:
    sample = compared.first()
    selected = [{"label_id": sample["boxes"].detections[0].id, "sample_id": sample.id, "field": "boxes"}]

    with pytest.raises(ExecutionError, match="belongs to no object of the run"):
        execute("explain", dataset=compared, params={"run_key": "refinesam"}, selected_labels=selected)


def test_export_writes_what_was_chosen(compared: Any, tmp_path: Path) -> None:
    for what, name in (("csv", "rows.csv"), ("coco_amr", "amr.json"), ("coco_baseline", "first.json")):
        path = tmp_path / "new" / name
        execute("export", dataset=compared, params={"run_key": "refinesam", "what": what, "path": str(path)})
        assert path.is_file()

    assert len(pd.read_csv(tmp_path / "new" / "rows.csv")) == 6
    assert len(json.loads((tmp_path / "new" / "amr.json").read_text())["annotations"]) == 6
    wrong = {"run_key": "refinesam", "what": "csv", "path": str(tmp_path / "rows.txt")}
    with pytest.raises(ExecutionError, match="Validation error"):
        execute("export", dataset=compared, params=wrong)


def test_export_tags_the_worst(compared: Any) -> None:
    params = {"run_key": "refinesam", "what": "tags", "which": "worst", "number": 2, "tag": "look"}

    result = execute("export", dataset=compared, params=params).result

    assert result["done"].startswith("Tagged 2 objects")
    compared.reload()
    assert compared.count_label_tags(RUN.amr) == {"look": 2}


def test_ranking_opens_the_samples_in_its_order(shapes: Any) -> None:
    params = {"boxes_field": "boxes", "truth_field": "-"}
    execute("compare", dataset=shapes, params=params)

    result = execute("rank", dataset=shapes, params={"run_key": "refinesam"})

    assert result.result == {"objects": 4}
    shapes.reload()
    assert sorted(shapes.values("refinesam_rank")) == [1, 2]
    assert form("evaluate", shapes, {"run_key": "refinesam"})["no_truth"]["invalid"]
    asked = [one["operator_uri"] for one in result.executor.to_json()["requests"]]
    # The panel has the way back.
    assert asked == ["reload_dataset", "set_view", "open_panel"]


def test_deleting_a_run_must_be_confirmed(shapes: Any) -> None:
    execute("compare", view=shapes.limit(1), params={"boxes_field": "boxes", "truth_field": "-"})
    with pytest.raises(ExecutionError, match="Tick the box"):
        execute("delete_run", dataset=shapes, params={"run_key": "refinesam"})
    assert list_runs(shapes) == ["refinesam"]

    execute("delete_run", dataset=shapes, params={"run_key": "refinesam", "sure": True})

    shapes.reload()
    assert list_runs(shapes) == []
    assert not [name for name in shapes.get_field_schema() if name.startswith("refinesam")]
