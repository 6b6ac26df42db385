"""Finding similar objects on the real database, by the built-in model, and by the operator as the App calls it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone import ViewField as F
from fiftyone.operators.executor import ExecutionContext, ExecutionError, Executor

import refinesam
from fiftyone_flat import documents
from real_fiftyone import draw_videos
from refinesam import ConfigError, PromptError, Session
from refinesam_fiftyone.deletion import contents, delete_run
from refinesam_fiftyone.label_runs import list_label_runs
from refinesam_fiftyone.labels import detection_from_mask, mask_from_detection
from refinesam_fiftyone.regions import iou, region_of
from refinesam_fiftyone.runs import list_runs
from refinesam_fiftyone.schema import Fields
from refinesam_fiftyone.similar import SimilarSettings, find_similar

URI = "@refinesam/amr/find_similar"
SIDE = 160
CENTRES = ((30, 30), (90, 36), (34, 100), (110, 110))
RUN = Fields("similar")


@pytest.fixture(scope="module")
def session() -> Session:
    return refinesam.load("builtin", device="cpu", threads=1)


def discs(shift: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Four reddish discs on dark ground, and their masks."""
    rows, columns = np.indices((SIDE, SIDE))
    masks = [(rows - y - shift) ** 2 + (columns - x) ** 2 <= 13**2 for x, y in CENTRES]
    noise = np.random.default_rng(shift).normal(0, 4, (SIDE, SIDE, 3))
    image = np.full((SIDE, SIDE, 3), (50, 45, 40)) + noise
    for mask in masks:
        image[mask] = np.array((150, 160, 200)) + noise[mask]
    return image.clip(0, 255).astype(np.uint8), masks


@pytest.fixture
def drawn(dataset: Any, tmp_path: Path) -> Any:
    """Three samples of four discs, the first of them labelled: one disc as a mask, one as a box alone."""
    for number in range(3):
        image, masks = discs(4 * number)
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), image)
        sample = fo.Sample(str(path))
        labels = [detection_from_mask(mask, label="cell") for mask in masks]
        sample["all"] = fo.Detections(detections=labels)
        if not number:
            as_box = fo.Detection(label="cell", bounding_box=labels[1].bounding_box)
            sample["mine"] = fo.Detections(detections=[labels[0].copy(), as_box])
        dataset.add_sample(sample)
    return dataset


def likely(sample: Any) -> list[Any]:
    return [one for one in sample[RUN.labels].detections if one.similarity >= 0.5]


def found(sample: Any, truths: list[Any]) -> list[int]:
    """How many likely objects lie on each of the truths."""
    regions = [region_of(mask_from_detection(one, (SIDE, SIDE))) for one in likely(sample)]
    masks = [region_of(mask_from_detection(one, (SIDE, SIDE))) for one in truths]
    return [sum(iou(region, mask) > 0.6 for region in regions) for mask in masks]


def test_the_likes_of_two_examples_in_their_sample_and_in_others(drawn: Any, session: Session) -> None:
    drawn.add_samples([fo.Sample(str(Path(drawn.first().filepath).with_name("gone.png")))])
    before = documents(drawn)
    # Stopped after the first sample, and gone on with.
    steps: list[int] = []
    stop = {"batch_size": 1, "on_progress": lambda at, _: steps.append(at), "should_stop": lambda: bool(steps)}
    done = find_similar(drawn, drawn.exists("mine"), SimilarSettings(["mine"], "both"), session=session, **stop)
    assert (done.samples, done.done, done.stopped) == (4, 1, True)
    done = find_similar(drawn, drawn.exists("mine"), SimilarSettings(["mine"], "both"), session=session)
    assert (done.skipped, done.done, done.failures) == (1, 3, {"missing_file": 1})
    drawn.reload()
    first, *others, missing = drawn
    assert found(first, first["all"].detections) == [0, 0, 1, 1], "the examples are not found again"
    for sample in others:
        assert found(sample, sample["all"].detections) == [1, 1, 1, 1]
        assert len(likely(sample)) == 4
    labels = [one for sample in (first, *others) for one in sample[RUN.labels].detections]
    assert {one.label for one in labels} == {"cell"}
    assert all(0.25 <= one.similarity <= 1 and one.confidence == one.predicted_iou for one in labels)
    assert missing.tags == ["similar:missing_file"] and missing[RUN.labels].detections == []

    # What is done is left alone; other examples need another name.
    again = find_similar(drawn, drawn.exists("mine"), SimilarSettings(["mine"], "both"), session=session)
    assert (again.done, again.skipped) == (0, 4)
    with pytest.raises(ConfigError, match="something else"):
        find_similar(drawn, drawn.exists("mine"), SimilarSettings(["all"], "both"), session=session)

    # Deleting leaves the documents as they were.
    assert list_label_runs(drawn) == ["similar"] and list_runs(drawn) == []
    listed = contents(drawn, RUN)
    assert sorted(listed.fields) == ["similar_digest", "similar_failures", "similar_labels"]
    delete_run(drawn, RUN)
    drawn.reload()
    assert documents(drawn) == before and not drawn.list_runs()


def test_classes_are_searched_for_apart_and_a_bad_example_costs_itself(drawn: Any, session: Session) -> None:
    first = drawn.first()
    outside = fo.Detection(label="cell", bounding_box=[2, 2, 0.1, 0.1])
    first["mine"].detections += [outside]
    first["mine"].detections[1].label = "other"
    first.save()
    settings = SimilarSettings(["mine"], "same", least=0.5, masks_dir=str(Path(first.filepath).parent / "masks"))
    done = find_similar(drawn, drawn.exists("mine"), settings, session=session, run_key="same")
    assert (done.samples, done.failures) == (1, {"bad_prompt": 1})
    first.reload()
    assert "outside the image" in first["same_failures"].classifications[0].reason
    labels = first["same_labels"].detections
    assert {one.label for one in labels} <= {"cell", "other"} and len(labels) == 2
    assert all(Path(one.mask_path).is_file() for one in labels)
    assert drawn.last()["same_labels"] is None
    delete_run(drawn, Fields("same"))
    assert not any(Path(one.mask_path).exists() for one in labels)


def test_what_cannot_be_searched_for_is_refused_and_leaves_no_run(drawn: Any, session: Session) -> None:
    examples = drawn.exists("mine")
    drawn.add_sample_field("similar_labels", fo.StringField)
    with pytest.raises(ConfigError, match="would write similar_labels"):
        find_similar(drawn, examples, SimilarSettings(["mine"]), session=session)
    with pytest.raises(ConfigError, match="'filepath' is none"):
        find_similar(drawn, examples, SimilarSettings(["filepath"]), session=session, run_key="a")
    with pytest.raises(PromptError, match="no label to take"):
        find_similar(drawn, drawn.skip(1), SimilarSettings(["mine"]), session=session, run_key="a")
    with pytest.raises(ConfigError, match="not patches"):
        find_similar(drawn, drawn.to_patches("mine"), SimilarSettings(["mine"]), session=session, run_key="a")
    Path(drawn.first().filepath).unlink()
    with pytest.raises(PromptError, match="There is no file"):
        find_similar(drawn, examples, SimilarSettings(["mine"]), session=session, run_key="a")
    assert list_label_runs(drawn) == []
    for wrong in ({"where": "here"}, {"least": 2.0}, {"fields": "mine"}, {"fields": []}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            SimilarSettings(**{"fields": ["mine"], **wrong})


def test_frames_of_videos_are_searched(session: Session, tmp_path: Path) -> None:
    dataset = draw_videos("similar-videos", tmp_path, videos=1, frames=2)
    frames = dataset.to_frames()
    done = find_similar(frames, frames.limit(1), SimilarSettings(["ground_truth"]), session=session)
    assert (done.samples, done.done) == (1, 1)
    dataset.reload()
    shown, searched = (dataset.first().frames[number][RUN.labels] for number in (1, 2))
    assert shown is None and len(searched.detections) >= 2
    delete_run(dataset, RUN)
    assert not [name for name in dataset.get_frame_field_schema() if name.startswith("similar")]
    dataset.delete()


def form(samples: Any, params: dict[str, Any], **request: Any) -> dict[str, Any]:
    request = {"dataset_name": samples.name, "params": params, **request}
    ctx = ExecutionContext(request, executor=Executor(), operator_uri=URI)
    properties: dict[str, Any] = foo.get_operator(URI).resolve_type(ctx, "inputs").to_json()["type"]["properties"]
    return properties


@pytest.fixture
def labelled(drawn: Any) -> Iterator[Any]:
    """With what the App says is selected: one label."""
    first = drawn.first()
    yield drawn, [{"label_id": first["all"].detections[0].id, "sample_id": first.id, "field": "all"}]


def test_the_operator_takes_the_selected_labels(labelled: Any) -> None:
    dataset, selected = labelled
    view = dataset.limit(2).filter_labels("all", F("label") == "none", only_matches=False)
    shown = form(dataset, {}, selected_labels=selected)
    assert "selected labels: 1." in shown["examples"]["view"]["label"] and "examples_field" not in shown
    assert not any(one["invalid"] for one in shown.values())

    foo.execute_operator(URI, view=view, params={"where": "others"}, selected_labels=selected)

    dataset.reload()
    assert [one is None for one in dataset.values(RUN.digest)] == [True, False, True], "the other sample of the view"
    second = dataset.skip(1).first()
    assert found(second, second["all"].detections) == [1, 1, 1, 1]
    opened = dataset.load_saved_view("similar: likely")
    assert opened.count(f"{RUN.labels}.detections") == len(likely(second))
    again = form(dataset, {"run_key": "similar"}, selected_labels=selected)["there"]
    assert "goes on where it stopped" in again["view"]["label"]
    foo.execute_operator("@refinesam/amr/delete_run", dataset=dataset, params={"run_key": "similar", "sure": True})
    dataset.reload()
    assert not dataset.has_saved_view("similar: likely") and RUN.labels not in dataset.get_field_schema()


def test_the_operator_takes_a_field_on_the_selected_samples(drawn: Any) -> None:
    assert form(drawn, {})["no_examples"]["invalid"]
    selected = [drawn.first().id]
    params = {"examples_field": "mine", "class": "cell"}
    shown = form(drawn, params, selected=selected)
    assert [choice["value"] for choice in shown["class"]["view"]["choices"]] == ["-", "cell"]

    foo.execute_operator(URI, dataset=drawn, params=params, selected=selected)

    drawn.reload()
    assert [one is None for one in drawn.values(RUN.digest)] == [False, True, True]
    assert found(drawn.first(), drawn.first()["all"].detections) == [0, 0, 1, 1]
    with pytest.raises(ExecutionError, match="cannot be written to"):
        params |= {"run_key": "b", "masks": "files", "masks_dir": f"{__file__}/masks"}
        foo.execute_operator(URI, dataset=drawn, params=params, selected=selected)
