"""A person at work in the real App, in headless Chromium: the form, the panel, its bars and points, an explanation."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from fiftyone import ViewField as F

from fiftyone_planted import Planted, evaluated_plant, plant
from real_fiftyone import App, app, draw_shapes, draw_videos
from refinesam_fiftyone.figures import BUCKET_NAMES
from refinesam_fiftyone.rows import read_rows
from refinesam_fiftyone.runs import list_runs
from refinesam_fiftyone.schema import BUCKETS, Fields

COMPARE = "Compare masks with and without refinement"
PICTURE = "img[src^='data:image/png;base64']"


@pytest.fixture(scope="module")
def person() -> Iterator[App]:
    with app() as started:
        yield started


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    with evaluated_plant(tmp_path_factory.mktemp("planted")) as made:
        yield made


def database(view: Any, run: Fields) -> tuple[int, list[str]]:
    """Number and outcomes of the objects that the database has in a view."""
    path = f"{run.baseline}.detections"
    buckets = view.count_values(f"{path}.bucket")
    outcomes = [str(buckets.get(bucket, 0)) for bucket in BUCKETS]
    return view.count(f"{path}.delta_iou"), outcomes


def shows(person: App, view: Any, run: Fields) -> bool:
    """Whether table, bars and points all show what the database has in the view."""
    number, outcomes = database(view, run)
    table = person.table()
    if len(table) != 1 or person.page.locator(".js-plotly-plot").count() != 2:
        return False
    bars, points = person.traces(0), person.traces(1)
    return (
        table[0][1] == str(number)
        and table[0][-1] == " / ".join(outcomes)
        and [sum(trace["y"]) for trace in bars] == [number]
        and [len(trace["ids"]) for trace in points] == [number, number]
    )


def opened(person: App, run: Fields) -> list[str]:
    """Ids of the prompts whose objects the App's view shows; none in a view of frames from before the run."""
    path, view = f"{run.baseline}.detections.prompt_id", person.session.view
    ids: list[str] = view.values(path, unwind=True) if view.has_field(path) else []
    return ids


def test_the_form_compares_and_the_panel_shows_the_result(
    person: App, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset = draw_shapes(f"shapes-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("shapes"), samples=2)
    person.open_dataset(dataset.name)
    person.open_operator(COMPARE)
    name = person.page.locator("input[value=refinesam]")
    execute = person.page.get_by_role("button", name="Compare", exact=True)
    name.fill("Not A Name")
    person.page.get_by_text("This cannot run yet").wait_for()
    assert list_runs(dataset) == []
    name.fill("mine")
    person.page.get_by_text("This cannot run yet").wait_for(state="detached")
    execute.click()
    person.page.get_by_text("4 masks in 2 of 2 samples").wait_for()
    person.page.get_by_role("button", name="Done").click()

    dataset.reload()
    run = Fields("mine")
    person.wait_until(lambda: shows(person, dataset, run), "what was compared")
    assert dataset.count(f"{run.amr}.detections.mask") == 4
    assert dataset.has_saved_view("mine: AMR hurt")
    dataset.delete()


def test_the_form_offers_weights_with_what_they_are_for(person: App, tmp_path_factory: pytest.TempPathFactory) -> None:
    dataset = draw_shapes(f"shapes-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("shapes"), samples=1)
    person.open_dataset(dataset.name)
    person.open_operator(COMPARE)
    weights = person.page.locator("input[value=builtin]")
    weights.click()
    person.page.get_by_text("photographs, small download; about 41 MB").click()
    person.page.locator("input[value=efficientsam_ti]").wait_for()
    person.page.get_by_role("button", name="Cancel", exact=True).click()
    dataset.delete()


def test_likes_of_the_selected_label_come_with_a_slider(person: App, tmp_path_factory: pytest.TempPathFactory) -> None:
    dataset = draw_shapes(f"shapes-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("shapes"), samples=2)
    first = dataset.first()
    person.open_dataset(dataset.name)
    label = {"label_id": first["ground_truth"].detections[0].id, "sample_id": first.id, "field": "ground_truth"}
    person.session.selected_labels = [label]
    person.open_operator("Find similar objects")
    person.page.get_by_text("The examples are the selected labels: 1.").wait_for()
    person.page.get_by_text("In the other samples of the view").click()
    person.page.get_by_role("button", name="Find", exact=True).click()
    person.page.get_by_text("objects in 1 of 1 samples").wait_for()
    person.page.get_by_role("button", name="Done").click()

    dataset.reload()
    low, high = dataset.bounds("similar_labels.detections.similarity")
    assert dataset.count("similar_labels.detections") >= 2 and 0.25 <= low <= high <= 1
    person.page.locator("[data-cy=sidebar-field-arrow-enabled-similar_labels]").click()
    person.page.locator("[data-cy=numeric-slider-container-similar_labels-detections-similarity]").wait_for()
    dataset.delete()


def test_frames_of_videos_are_compared_and_opened(person: App, tmp_path_factory: pytest.TempPathFactory) -> None:
    name = f"videos-{uuid.uuid4().hex[:8]}"
    dataset = draw_videos(name, tmp_path_factory.mktemp("videos"), videos=2, frames=2)
    person.open_dataset(dataset.name)
    person.session.view = dataset.to_frames()
    person.wait_until(lambda: person.page.locator("[data-cy=looker]").count() == 4, "the frames")
    person.open_operator(COMPARE)
    person.page.get_by_role("button", name="Compare", exact=True).click()
    person.page.get_by_text("8 masks in 4 of 4 samples").wait_for()
    person.page.get_by_role("button", name="Done").click()

    dataset.reload()
    run = Fields("refinesam")
    assert dataset.count(f"frames.{run.amr}.detections.mask") == 8
    assert dataset.has_saved_view("refinesam: AMR hurt")
    frames = dataset.to_frames()
    person.wait_until(lambda: shows(person, frames, run), "what was compared")

    rows = read_rows(frames)
    bucket = rows["bucket"].mode()[0]
    wanted = set(rows["prompt_id"][rows["bucket"] == bucket])
    person.page.get_by_role("button", name=f"{BUCKET_NAMES[bucket]}: {len(wanted)}").click()
    person.wait_until(lambda: set(opened(person, run)) == wanted, "the objects of one outcome")
    assert set(person.session.view.values("sample_id")) <= set(dataset.values("id")), "frames, of these videos"
    person.page.get_by_role("button", name="Explain", exact=True).click()
    person.page.locator(PICTURE).wait_for()
    dataset.delete()


def test_the_panel_follows_the_view_and_opens_what_it_counts(person: App, planted: Planted) -> None:
    dataset, run, page = planted.dataset, planted.run, person.page
    person.open_dataset(dataset.name)
    person.open_panel()
    person.wait_until(lambda: shows(person, dataset, run), "the whole dataset")

    person.session.view = dataset.limit(1)
    person.wait_until(lambda: shows(person, dataset.limit(1), run), "the narrower view")
    page.get_by_role("button", name="Whole dataset").click()
    person.wait_until(lambda: shows(person, dataset, run), "the wider view")

    bar = person.traces(0)[0]
    person.plot(0).locator(".point path").first.click(force=True)
    person.wait_until(lambda: [trace["y"] for trace in person.traces(0)] == [bar["y"][:1]], "the bar that was clicked")
    wanted = {
        prompt_id
        for prompt_id, one in planted.expected.items()
        if abs(one.amr_iou - one.base_iou - bar["x"][0]) <= 0.025
    }
    opened = person.session.view
    assert set(opened.values(f"{run.baseline}.detections.prompt_id", unwind=True)) == wanted
    assert set(opened.values("ground_truth.detections.id", unwind=True)) == wanted
    assert shows(person, opened, run)

    page.get_by_role("button", name="Both failed").wait_for()
    assert page.get_by_role("button", name="Both failed: 0").is_disabled()
    page.get_by_role("button", name="Whole dataset").click()
    person.wait_until(lambda: shows(person, dataset, run), "the whole dataset again")
    page.get_by_role("button", name="Both failed").click()
    failed = planted.buckets["both_failed"]
    person.wait_until(lambda: [row[1] for row in person.table()] == [str(failed)], "the failures")
    assert person.session.view.count(f"{run.amr}.detections") == failed


def test_the_former_view_comes_back_with_its_filters(person: App, planted: Planted) -> None:
    dataset, run, page = planted.dataset, planted.run, person.page
    person.open_dataset(dataset.name)
    person.open_panel()
    page.get_by_role("button", name="Whole dataset").click()
    person.wait_until(lambda: shows(person, dataset, run), "the whole dataset")
    mine = dataset.limit(3).filter_labels("ground_truth", F("label") == "cat")
    person.session.view = mine
    person.wait_until(lambda: shows(person, mine, run), "the user's view")
    path = "ground_truth.detections.label"
    page.get_by_role("button", name="Both failed").click()
    failed = sum(one.bucket == "both_failed" and one.sample < 3 for one in planted.expected.values())
    person.wait_until(lambda: [row[1] for row in person.table()] == [str(failed)], "the failures")

    page.get_by_role("button", name="Former view").click()
    person.wait_until(lambda: shows(person, mine, run), "the former view")
    assert person.session.view.count_values(path) == mine.count_values(path)

    person.open_operator("Find doubtful ground truth")
    page.get_by_role("button", name="Rank", exact=True).click()
    doubt = f"{run.key}_label_doubt"
    person.wait_until(lambda: f"field_or_expr='{doubt}'" in str(person.session.view), "the doubtful samples")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Former view").click()
    cats = mine.count_values(path)
    person.wait_until(
        lambda: (view := person.session.view) is not None and view.count_values(path) == cats, "the former view again"
    )


def test_the_table_of_objects_sorts_and_opens_samples(person: App, planted: Planted) -> None:
    page = person.page
    person.open_dataset(planted.dataset.name)
    person.open_panel()
    page.get_by_role("button", name="Whole dataset").click()
    person.wait_until(lambda: shows(person, planted.dataset, planted.run), "the whole dataset")
    ious = sorted(one.amr_iou for one in planted.expected.values())
    for mark, order in (("▲", ious), ("▼", ious[::-1])):
        page.locator("th", has_text="Refined IoU").last.click()
        page.locator("th", has_text=f"Refined IoU {mark}").wait_for()
        shown = [f"{value:.3f}" for value in order]
        person.wait_until(lambda shown=shown: [row[3] for row in person.table(1)] == shown, "the objects in order")
    assert page.locator(".js-plotly-plot").count() == 2
    cell = page.locator("table").nth(1).locator("tbody tr").first.locator("td").first
    name = cell.inner_text()
    cell.click()
    page.locator("[data-cy=modal]").get_by_text(name).first.wait_for()
    page.keyboard.press("Escape")


def test_a_point_opens_its_object(person: App, planted: Planted) -> None:
    person.open_dataset(planted.dataset.name)
    person.open_panel()
    person.page.get_by_role("button", name="Whole dataset").click()
    person.wait_until(lambda: shows(person, planted.dataset, planted.run), "the whole dataset")
    points = person.plot(1)
    points.scroll_into_view_if_needed()
    # Points lie above each other; the one whose place is free of others is clicked.
    shown = person.traces(1)[0]
    lowest = min(range(len(shown["x"])), key=lambda i: shown["x"][i])

    points.locator(".scatterlayer .trace").first.locator("path.point").nth(lowest).click(force=True)

    person.wait_until(lambda: [row[1] for row in person.table()] == ["1"], "the point's object")
    (opened,) = person.session.view.values(f"{planted.run.baseline}.detections.prompt_id", unwind=True)
    assert planted.expected[opened].base_iou == pytest.approx(shown["y"][lowest], abs=1e-4)


def test_explain_shows_the_worst_object_in_the_panel(person: App, planted: Planted) -> None:
    page = person.page
    person.open_dataset(planted.dataset.name)
    person.open_panel()
    page.get_by_role("button", name="Whole dataset").click()
    person.wait_until(lambda: shows(person, planted.dataset, planted.run), "the whole dataset")

    page.get_by_role("button", name="Explain", exact=True).click()

    page.locator(PICTURE).wait_for()
    assert page.locator(PICTURE).evaluate("image => image.naturalWidth") > 1000
    worst = min(planted.expected.values(), key=lambda one: one.amr_iou - one.base_iou)
    facts = page.locator("li", has_text="True IoU, after refinement").inner_text()
    assert facts.endswith(f"{worst.amr_iou:.3f}")


def test_fiftyones_own_panel_opens_with_what_it_counts_and_opens_the_missed(
    person: App, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page, name = person.page, f"planted-{uuid.uuid4().hex[:8]}"
    made = plant(name, tmp_path_factory.mktemp("planted"), samples=3)
    for sample in made.dataset:
        # A mask that fits an object of another class.
        label = sample[made.run.amr].detections[0]
        label.label = "boat" if label.label != "boat" else "cat"
        sample.save()
    confused = sum(one.kind == "helped" for one in made.expected.values())
    fitting = [prompt_id for prompt_id, one in made.expected.items() if one.amr_iou >= 0.5]
    person.open_dataset(name)
    person.open_operator("Evaluate masks for the Model Evaluation panel")
    page.get_by_role("button", name="Evaluate", exact=True).click()
    page.get_by_text("true positives").wait_for()
    page.get_by_role("button", name="Done").click()

    page.locator('[data-cy="panel-tab-model_evaluation_panel_builtin"]').wait_for()
    page.get_by_text("refinesam_eval_amr", exact=True).last.click()
    hits = page.get_by_role("row").filter(has_text="True Positives")
    hits.wait_for()
    assert hits.inner_text().split()[-1] == str(len(fitting) - confused)
    missed = page.get_by_role("row").filter(has_text="False Negatives")
    assert missed.inner_text().split()[-1] == str(len(made.expected) - len(fitting))
    missed.get_by_role("button").click()
    path = "ground_truth.detections.refinesam_eval_amr"
    person.wait_until(
        lambda: person.session.view is not None and set(person.session.view.values(path, unwind=True)) == {"fn"},
        "the objects that were missed",
    )
    found = person.session.view.values("ground_truth.detections.id", unwind=True)
    assert len(found) == len(made.expected) - len(fitting) + confused
    page.get_by_text("Confusion Matrices").click()
    matrix = page.locator(".js-plotly-plot:visible").first
    matrix.wait_for()
    cells = matrix.evaluate("plot => plot.data.find(trace => trace.type === 'heatmap').z.flat()")
    # A mask and its object share a cell, so what is in it is all objects, and the masks that lie on none.
    empty = sum(not one.amr.any() for one in made.expected.values())
    assert sum(cells) == len(made.expected) + len(made.expected) - empty - len(fitting)
    made.dataset.delete()


def test_the_form_explains_too(person: App, planted: Planted) -> None:
    page = person.page
    person.open_dataset(planted.dataset.name)
    person.open_operator("Explain a mask")
    page.get_by_text("The worst object of").wait_for()
    page.get_by_role("button", name="Explain", exact=True).last.click()
    page.get_by_role("button", name="Close", exact=True).last.wait_for()
    page.locator(PICTURE).first.wait_for()
    worst = min(planted.expected.values(), key=lambda one: one.amr_iou - one.base_iou)
    # Until then the panel may show what was explained before.
    page.locator("li", has_text=f"True IoU, first mask: {worst.base_iou:.3f}").first.wait_for()
