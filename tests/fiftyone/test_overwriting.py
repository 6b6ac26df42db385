"""Names that are the user's are refused with the way out, in the form too, before anything is written."""

from __future__ import annotations

import fiftyone as fo
import fiftyone.operators as foo
import pytest
from fiftyone.operators.executor import ExecutionContext, ExecutionError, Executor

from fiftyone_flat import BOXES, documents, fill, session
from refinesam import ConfigError
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.deletion import delete_run
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.ranking import rank
from refinesam_fiftyone.runs import list_runs
from refinesam_fiftyone.schema import Fields

KEY = "model"
PARAMS = {"boxes_field": "truth", "truth_field": "truth", "run_key": KEY}


def own_detections(dataset) -> str:
    dataset.set_values("model_baseline", [one.copy() for one in dataset.values("truth")])
    return "model_baseline"


def of_another_kind(dataset) -> str:
    dataset.set_values("model_digest", [3] * len(dataset))
    return "model_digest"


def a_sum(dataset) -> str:
    dataset.add_sample_field("model_worst_delta", fo.FloatField)
    return "model_worst_delta"


def declared_attribute(dataset) -> str:
    undeclared_attribute(dataset)
    dataset.add_dynamic_sample_fields(fields=["truth"])
    return "truth.detections.model_bucket"


def undeclared_attribute(dataset) -> str:
    dataset.set_values("truth.detections.model_bucket", [["good", "bad"]] * len(dataset), dynamic=False)
    return "truth.detections.model_bucket"


@pytest.mark.parametrize(
    "make", [own_detections, of_another_kind, a_sum, declared_attribute, undeclared_attribute], ids=lambda f: f.__name__
)
def test_a_name_that_is_taken_is_refused(dataset, tmp_path, make):
    fill(dataset, tmp_path, 2)
    name = make(dataset)
    before, schema = documents(dataset), set(dataset.get_field_schema(flat=True))

    with pytest.raises(ConfigError, match=f"{name}.*Choose another name") as caught:
        compare(dataset, BOXES, run_key=KEY, session=session())
    assert "rename_sample_field" in str(caught.value)
    request = {"dataset_name": dataset.name, "params": PARAMS}
    ctx = ExecutionContext(request, executor=Executor(), operator_uri="@refinesam/amr/compare")
    shown = foo.get_operator("@refinesam/amr/compare").resolve_type(ctx, "inputs").to_json()["type"]["properties"]
    assert shown["problem"]["invalid"] and name in shown["problem"]["error_message"]
    with pytest.raises(ExecutionError, match="Validation error"):
        foo.execute_operator("@refinesam/amr/compare", dataset=dataset, params=PARAMS)

    assert list_runs(dataset) == []
    assert (documents(dataset), set(dataset.get_field_schema(flat=True))) == (before, schema)
    compare(dataset, BOXES, run_key="other", session=session())


def test_what_came_after_the_run_is_the_users_too(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    compare(dataset, BOXES, run_key=KEY, session=session())
    dataset.set_values("model_objects", [7, 8])
    dataset.set_values("model_rank", ["first", "second"])
    with pytest.raises(ConfigError, match="model_objects"):
        evaluate(dataset, run_key=KEY)
    with pytest.raises(ConfigError, match="model_rank"):
        rank(dataset, run_key=KEY)
    for name, field in (("evaluate", "model_objects"), ("rank", "model_rank")):
        with pytest.raises(ExecutionError, match=field):
            foo.execute_operator(f"@refinesam/amr/{name}", dataset=dataset, params={"run_key": KEY})
    with pytest.raises(ConfigError, match="model_objects"):
        compare(dataset, BOXES, run_key=KEY, session=session())
    delete_run(dataset, Fields(KEY))
    assert dataset.values(["model_objects", "model_rank"]) == ([7, 8], ["first", "second"])


def test_a_field_that_was_made_anew_under_the_runs_name_is_the_users(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    compare(dataset, BOXES, run_key=KEY, session=session())
    dataset.delete_sample_field("model_amr")
    dataset.set_values("model_amr", [one.copy() for one in dataset.values("truth")])
    before = dataset.values("model_amr.detections.id")
    for act in (
        lambda: compare(dataset, BOXES, run_key=KEY, session=session()),
        lambda: compare(dataset, BOXES, run_key=KEY, session=session(), resume=False),
        lambda: evaluate(dataset, run_key=KEY),
        lambda: rank(dataset, run_key=KEY),
    ):
        with pytest.raises(ConfigError, match="model_amr"):
            act()
    found = delete_run(dataset, Fields(KEY))
    assert dataset.values("model_amr.detections.id") == before
    assert any("model_amr" in one for one in found.stays)
