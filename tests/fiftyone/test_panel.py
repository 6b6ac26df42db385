"""The panel: what it shows of a view equals the database, and every bar, point, row and button opens what it counts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fiftyone import ViewField as F

from fiftyone_panel import Shown
from fiftyone_planted import Planted, evaluated_plant, plant
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.figures import OBJECT_COLUMNS, RANKING_COLUMNS, object_cells
from refinesam_fiftyone.ranking import rank_rows
from refinesam_fiftyone.record import declare
from refinesam_fiftyone.rows import read_rows
from refinesam_fiftyone.runs import register_run
from refinesam_fiftyone.samples import target_of
from refinesam_fiftyone.schema import BUCKETS, Fields, Settings


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    with evaluated_plant(tmp_path_factory.mktemp("planted")) as made:
        yield made


@pytest.fixture
def shown(planted: Planted) -> Shown:
    return Shown(planted.dataset)


def labels(view: Any, planted: Planted) -> list[str]:
    return sorted(view.values(f"{planted.run.baseline}.detections.prompt_id", unwind=True))


def check_against_database(shown: Shown, planted: Planted) -> None:
    """Table, histogram and scatter count what the database counts in the view."""
    path = f"{planted.run.baseline}.detections"
    number = shown.view.count(f"{path}.delta_iou")
    buckets = shown.view.count_values(f"{path}.bucket")
    (row,) = shown.content["table"]
    first, refined = shown.content["agreement"]
    assert int(row["n"]) == shown.objects == len(first["ids"]) == len(refined["ids"]) == number
    assert row["outcomes"] == " / ".join(str(buckets.get(bucket, 0)) for bucket in BUCKETS)
    assert shown.state["counts"] == buckets
    assert row["base_iou"] == f"{shown.view.mean(f'{path}.base_iou'):.3f}"
    assert row["amr_iou"] == f"{shown.view.mean(f'{path}.amr_iou'):.3f}"


def test_it_shows_the_whole_dataset(shown: Shown, planted: Planted) -> None:
    check_against_database(shown, planted)
    assert shown.state["counts"] == {name: count for name, count in planted.buckets.items() if count}


def test_it_follows_the_view_without_stale_rows(shown: Shown, planted: Planted) -> None:
    everything = shown.content
    path = shown.state["shown"]

    shown.view = planted.dataset.limit(1)
    shown.call("on_change_view")

    check_against_database(shown, planted)
    assert shown.state["shown"] != path
    assert shown.data[path] is None
    shown.view = planted.dataset.view()
    shown.call("on_change_view")
    assert shown.content == everything


def test_label_filters_count(shown: Shown, planted: Planted) -> None:
    shown.view = planted.dataset.filter_labels(planted.run.baseline, F("label") == "cat")
    shown.call("on_change_view")

    check_against_database(shown, planted)
    assert 0 < shown.objects < len(planted.expected)


def test_every_bar_opens_exactly_its_objects(shown: Shown, planted: Planted) -> None:
    (bars,) = shown.content["change"]
    seen: list[str] = []
    for bar, count in zip(bars["ids"], bars["y"], strict=True):
        shown.view = planted.dataset.view()
        shown.call("on_change_view")
        shown.call("open_bar", id=bar)

        assert shown.objects == count
        check_against_database(shown, planted)
        opened = labels(shown.view, planted)
        assert sorted(shown.view.values("ground_truth.detections.id", unwind=True)) == opened
        assert sorted(shown.view.values(f"{planted.run.amr}.detections.prompt_id", unwind=True)) == opened
        for name in (f"{planted.run.rejected}.detections", f"{planted.run.points}.keypoints"):
            assert set(shown.view.values(f"{name}.prompt_id", unwind=True)) <= set(opened)
        seen += opened
    assert sorted(seen) == sorted(planted.expected)


def test_a_point_opens_its_object_and_a_lasso_its_objects(shown: Shown, planted: Planted) -> None:
    points = shown.content["agreement"][0]["ids"]

    shown.call("open_points", id=points[3])
    assert labels(shown.view, planted) == [points[3]]
    assert len(shown.view) == 1

    shown.view = planted.dataset.view()
    shown.call("open_points", data=[{"id": one, "trace_idx": 0} for one in points[4:9]])
    assert labels(shown.view, planted) == sorted(points[4:9])


def test_a_click_beside_every_point_changes_nothing(shown: Shown, planted: Planted) -> None:
    for method, params in (("open_points", {"id": None}), ("open_points", {"data": []}), ("open_bar", {"id": None})):
        shown.call(method, **params)
        assert shown.view == planted.dataset.view()


@pytest.mark.parametrize("bucket", BUCKETS)
def test_an_outcome_opens_its_objects(shown: Shown, planted: Planted, bucket: str) -> None:
    shown.call("open_bucket", bucket=bucket)

    assert labels(shown.view, planted) == sorted(k for k, one in planted.expected.items() if one.bucket == bucket)
    assert shown.state["counts"] == {bucket: planted.buckets[bucket]}
    shown.call("show_all")
    assert shown.objects == len(planted.expected)


@pytest.mark.parametrize("grouping", ["label", "size", "kappa", "compactness"])
def test_a_group_of_the_table_opens_its_objects(shown: Shown, planted: Planted, grouping: str) -> None:
    shown.call("choose_grouping", value=grouping)
    table = shown.content["table"]
    assert sum(int(row["n"]) for row in table) == len(planted.expected)

    for index, row in enumerate(table):
        shown.view = planted.dataset.view()
        shown.call("on_change_view")
        shown.call("open_group", row=index)
        assert [one["group"] for one in shown.content["table"]] == [row["group"]]
        assert len(labels(shown.view, planted)) == int(row["n"])


def test_rows_of_all_objects_are_no_group(shown: Shown, planted: Planted) -> None:
    shown.call("open_group", row=0)
    assert shown.view == planted.dataset.view()


def test_what_was_evaluated_meanwhile_is_shown_with_the_next_change(tmp_path: Path) -> None:
    made = plant(f"planted-{uuid.uuid4().hex[:8]}", tmp_path, samples=2)
    shown = Shown(made.dataset)
    assert shown.state["kind"] == "ranked"

    evaluate(made.dataset, run_key=made.run.key)
    shown.call("on_change_view")

    assert shown.state["kind"] == "evaluated"
    check_against_database(shown, made)
    made.dataset.delete()


def test_one_click_explains_the_worst_object_of_the_view(shown: Shown, planted: Planted) -> None:
    shown.view = planted.dataset.limit(1)
    shown.call("on_change_view")
    shown.call("explain")

    picture = shown.data[shown.state["explained"]]["picture"]
    assert picture.startswith("data:image/png;base64,")
    worst = min(
        (one for one in planted.expected.values() if one.sample == 0), key=lambda one: one.amr_iou - one.base_iou
    )
    assert shown.state["facts"]["True IoU, first mask"] == f"{worst.base_iou:.3f}"
    assert shown.state["facts"]["True IoU, after refinement"] == f"{worst.amr_iou:.3f}"
    assert shown.state["explained"] in shown.layout
    shown.call("close_explanation")
    assert not [name for name in shown.layout if name.startswith("explained")]


def test_a_view_without_masks_says_so(shown: Shown, planted: Planted) -> None:
    shown.view = planted.dataset.match(F("filepath") == "none")
    shown.call("on_change_view")

    assert shown.state["kind"] == "empty"
    assert "no masks of this run" in shown.state["headline"]
    shown.call("explain")
    assert "There is no object" in shown.notes[0]


def test_a_dataset_without_runs_says_how_to_start(dataset: Any) -> None:
    shown = Shown(dataset)

    assert set(shown.layout) == {"start", "compare"}
    assert "Nothing was compared yet" in shown.layout["start"]["default"]


def test_without_ground_truth_the_ranking_is_shown_and_opens(tmp_path: Path) -> None:
    settings = Settings(prompts="boxes", prompt_field="ground_truth")
    made = plant(f"planted-{uuid.uuid4().hex[:8]}", tmp_path, samples=2, settings=settings)
    shown = Shown(made.dataset)

    rows = read_rows(made.dataset, made.run.key)
    assert shown.state["kind"] == "ranked"
    assert len(shown.content["objects"]) == len(rows)
    assert "objects" in shown.layout[shown.state["shown"]]["type"]["properties"]
    ranked = rank_rows(rows)
    assert shown.state["objects"] == ranked[["sample_id", "prompt_id"]].to_numpy().tolist()
    shown.call("click_objects", row=2, column=0)
    assert shown.opened == [ranked["sample_id"][2]]
    shown.call("click_objects", row=-1, column=list(RANKING_COLUMNS).index("pred_iou_amr"))
    numbers = [row["pred_iou_amr"] for row in shown.content["objects"]]
    assert numbers == sorted(numbers) and numbers[0] == f"{rows['pred_iou_amr'].min():.3f}"
    made.dataset.delete()


def test_the_table_of_objects_is_sorted_by_its_headings(shown: Shown, planted: Planted) -> None:
    def table() -> Any:
        return shown.layout[shown.state["shown"]]["type"]["properties"]["objects"]["view"]

    rows = read_rows(planted.dataset, planted.run.key)
    assert shown.state["sort"] == ["delta_iou", False], "the worst first"
    assert [one["label"] for one in table()["columns"]][4] == "Change ▲"
    for column, key in enumerate(OBJECT_COLUMNS):
        found = []
        for mark in "▲▼":
            shown.call("click_objects", row=-1, column=column)
            assert table()["columns"][column]["label"] == f"{OBJECT_COLUMNS[key]} {mark}"
            expected = rows.sort_values(key, ascending=mark == "▲", na_position="last", kind="stable").head(50)
            assert shown.state["objects"] == expected[["sample_id", "prompt_id"]].to_numpy().tolist()
            assert shown.content["objects"] == object_cells(expected)
            found.append(shown.state["objects"])
        assert found[0] != found[1]
    check_against_database(shown, planted)
    shown.view = planted.dataset.limit(1)
    shown.call("on_change_view")
    assert shown.state["sort"] == ["bucket", True], "another view is sorted as before"
    shown.call("click_objects", row=-1, column=99)
    assert shown.state["sort"] == ["bucket", True]


def test_a_row_opens_its_sample(shown: Shown, planted: Planted) -> None:
    worst = min(planted.expected.values(), key=lambda one: one.amr_iou - one.base_iou)
    cells = shown.content["objects"]
    assert cells[0]["delta_iou"] == f"{worst.amr_iou - worst.base_iou:+.3f}"
    before = shown.view
    for row in (0, 7):
        shown.call("click_objects", row=row, column=3)
        sample_id, prompt_id = shown.state["objects"][row]
        one = planted.expected[prompt_id]
        assert shown.opened[-1] == sample_id == planted.dataset.values("id")[one.sample]
        assert cells[row]["amr_iou"] == f"{one.amr_iou:.3f}" and cells[row]["filepath"] == f"image_{one.sample}.png"
    assert shown.view == before
    shown.call("click_objects", row=999, column=0)
    assert len(shown.opened) == 2


def test_runs_side_by_side_are_chosen(tmp_path: Path) -> None:
    name = f"planted-{uuid.uuid4().hex[:8]}"
    made = plant(name, tmp_path, samples=2, run_key="first")
    other = Fields("second")
    register_run(made.dataset, other, Settings(prompts="boxes", prompt_field="ground_truth"))
    declare(target_of(made.dataset), other, other.kinds)
    evaluate(made.dataset, run_key="first")
    shown = Shown(made.dataset)
    assert shown.state["runs"] == ["first", "second"]

    shown.call("choose_run", value="first")
    assert (shown.state["kind"], shown.objects) == ("evaluated", len(made.expected))
    shown.call("choose_run", value="second")
    assert shown.state["kind"] == "empty"
    made.dataset.delete()
