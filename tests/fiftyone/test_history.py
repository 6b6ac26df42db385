"""The way back: what the panel and the operators open, the former view follows, filters and all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiftyone.operators as foo
import pytest
from fiftyone import ViewField as F
from fiftyone.operators.executor import ExecutionContext, Executor

from fiftyone_panel import Shown
from fiftyone_planted import Planted, evaluated_plant
from refinesam_fiftyone import history
from refinesam_fiftyone.deletion import delete_run


@pytest.fixture
def planted(tmp_path: Any) -> Iterator[Planted]:
    with evaluated_plant(tmp_path) as made:
        yield made


def go_to(shown: Shown, view: Any) -> Any:
    """What the user does, not the plugin."""
    shown.view = view
    shown.call("on_change_view")
    return view


def test_back_leads_through_what_was_opened(planted: Planted) -> None:
    shown, dataset = Shown(planted.dataset), planted.dataset
    shown.call("show_all")
    assert shown.state["can_go_back"] is False
    mine = go_to(shown, dataset.filter_labels("ground_truth", F("label") == "cat").sort_by("filepath", reverse=True))
    shown.call("open_bucket", bucket="both_failed")
    failed = shown.view
    shown.call("open_points", id=shown.content["agreement"][0]["ids"][0])
    assert len(shown.view) == 1 and shown.state["can_go_back"] is True
    shown.call("show_all")
    assert shown.view == dataset.view()

    for before in (1, len(failed), len(mine)):
        shown.call("go_back")
        assert len(shown.view) == before
    assert shown.view.values("id") == mine.values("id")
    assert shown.view.count("ground_truth.detections") == mine.count("ground_truth.detections")
    assert shown.state["can_go_back"] is False
    shown.call("go_back")
    assert "There is no way back" in shown.notes[-1]
    assert len(shown.view) == len(mine)


@pytest.mark.parametrize("name", ["rank", "rank_labels"])
def test_operators_that_open_a_view_open_the_way_back_with_it(planted: Planted, name: str) -> None:
    mine = planted.dataset.skip(1).limit(2)
    result = foo.execute_operator(
        f"@refinesam/amr/{name}", view=mine, params={"run_key": planted.run.key, "view_target": "CURRENT_VIEW"}
    )
    if name == "rank":
        # What a generator yields, Python does not get.
        asked = [one["operator_uri"] for one in result.executor.to_json()["requests"]]
        assert asked.index("set_view") < asked.index("open_panel")
    shown = Shown(planted.dataset)
    assert shown.state["can_go_back"] is True
    shown.call("go_back")
    assert shown.view.values("id") == mine.values("id")


def test_a_view_that_the_user_left_himself_is_skipped(planted: Planted) -> None:
    shown = Shown(planted.dataset)
    mine = go_to(shown, planted.dataset.limit(2))
    shown.call("open_bucket", bucket="both_failed")
    go_to(shown, mine)
    assert shown.state["can_go_back"] is False


def test_views_of_what_is_gone_are_passed_over(planted: Planted) -> None:
    planted.dataset.clone_sample_field("ground_truth", "mine")
    shown = Shown(planted.dataset)
    first = go_to(shown, planted.dataset.limit(3))
    shown.call("open_bucket", bucket="both_failed")
    go_to(shown, planted.dataset.filter_labels("mine", F("label") == "cat"))
    shown.call("show_all")
    planted.dataset.delete_sample_field("mine")
    shown.call("go_back")
    assert shown.view.values("id") == first.values("id")


def test_only_so_much_is_remembered(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    def context(view: Any) -> ExecutionContext:
        stages = view._serialize(include_uuids=False)
        request = {"dataset_name": planted.dataset.name, "view": stages, "params": {}}
        return ExecutionContext(request, executor=Executor(), operator_uri="@refinesam/amr/comparison")

    def remembered() -> list[int]:
        here, lengths = context(planted.dataset.view()), []
        while history.can_go_back(here):
            lengths.append(len(history.former_view(here)))
        return lengths

    monkeypatch.setattr(history, "MOST", 2)
    views = [planted.dataset.limit(number) for number in (1, 2, 3)]
    for view in views:
        history.remember(context(view), planted.dataset.view())
    assert remembered() == [3, 2]
    monkeypatch.setattr(history, "MOST_CHARACTERS", 3 * len(history.stages_of(views[0])) // 2)
    for view in views:
        history.remember(context(view), planted.dataset.view())
    assert remembered() == [3]


@pytest.mark.parametrize("uses", [True, False])
def test_deleting_a_run_leaves_a_view_alone_that_does_not_need_it(planted: Planted, uses: bool) -> None:
    view = planted.dataset.sort_by(f"{planted.run.key}_worst_delta") if uses else planted.dataset.sort_by("filepath")
    result = foo.execute_operator(
        "@refinesam/amr/delete_run", view=view, params={"run_key": planted.run.key, "sure": True}
    )
    asked = [one["operator_uri"] for one in result.executor.to_json()["requests"]]
    assert ("clear_view" in asked) is uses


def test_a_view_of_a_deleted_run_is_no_way_back(planted: Planted) -> None:
    shown = Shown(planted.dataset)
    go_to(shown, planted.dataset.filter_labels(planted.run.amr, F("amr_iou") < 0.5))
    shown.call("show_all")
    delete_run(planted.dataset, planted.run)
    shown.call("go_back")
    assert "cannot be opened any more" in shown.notes[-1] and planted.run.amr in shown.notes[-1]
    assert len(shown.view) == len(planted.dataset)


def test_filters_of_the_sidebar_are_part_of_the_former_view(planted: Planted) -> None:
    filters = {"ground_truth.detections.label": {"values": ["cat"], "exclude": False, "isMatching": False}}
    request = {"dataset_name": planted.dataset.name, "view": [], "filters": filters, "params": {}}
    ctx = ExecutionContext(request, executor=Executor(), operator_uri="@refinesam/amr/comparison")
    history.remember(ctx, planted.dataset.limit(1))
    later = ExecutionContext({**request, "filters": None}, executor=Executor(), operator_uri=ctx.operator_uri)
    former = history.former_view(later)
    cats = sum(one.label == "cat" for one in planted.expected.values())
    assert former.count_values("ground_truth.detections.label") == {"cat": cats}
