"""Doubtful ground truth on the real database: planted masks, and labels damaged against them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest

from fiftyone_flat import documents
from fiftyone_planted import evaluated_copy
from refinesam import ConfigError
from refinesam_fiftyone.deletion import delete_run
from refinesam_fiftyone.label_ranking import rank_labels
from refinesam_fiftyone.labels import detection_from_mask
from refinesam_fiftyone.record import declare
from refinesam_fiftyone.runs import register_run
from refinesam_fiftyone.samples import target_of
from refinesam_fiftyone.schema import Fields, Settings

RUN = Fields()
SIDE = 120
URI = "@refinesam/amr/rank_labels"


def square(row: int, column: int, size: int = 20) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[row : row + size, column : column + size] = True
    return mask


# Of each object: what its label covers, and the plain and the refined mask; None: it has none.
OBJECTS = {
    "right": (square(0, 0), square(0, 0), square(0, 0)),
    "also right": (square(0, 30), square(0, 30, 19), square(0, 30)),
    "shifted": (square(10, 70), square(0, 60), square(0, 60)),
    "merged": (square(40, 0, 20) | square(40, 25, 20), square(40, 0, 20), square(40, 0, 20)),
    "unsure": (square(40, 70), square(40, 60, 35), square(30, 50, 10)),
    "away": (square(90, 90), None, None),
    "missing": (None, square(70, 0), square(70, 0)),
}


def make(dataset: Any, folder: Path, settings: Settings) -> dict[str, str]:
    """A sample of these objects, and one of two right ones; returns label id -> object."""
    register_run(dataset, RUN, settings)
    declare(target_of(dataset), RUN, RUN.kinds)
    names = {}
    for number, objects in enumerate((OBJECTS, {name: OBJECTS[name] for name in ("right", "also right")})):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), np.zeros((SIDE, SIDE, 3), np.uint8))
        labels, plain, refined = [], [], []
        for name, (label, first, second) in objects.items():
            own = fo.Detection().id
            if label is not None:
                labels.append(detection_from_mask(label, label="cell", id=own))
                names[own] = name
            if first is not None:
                score = 0.3 if name == "unsure" else 0.9
                prompt = own if settings.prompts == "boxes" else fo.Detection().id
                plain.append(detection_from_mask(first, prompt_id=prompt, predicted_iou=score))
                refined.append(detection_from_mask(second, prompt_id=prompt, predicted_iou=score))
                names[refined[-1].id] = name
        made = {"truth": labels, RUN.baseline: plain, RUN.amr: refined}
        fields = {name: fo.Detections(detections=labels) for name, labels in made.items()}
        dataset.add_sample(fo.Sample(str(path), metadata=fo.ImageMetadata(width=SIDE, height=SIDE), **fields))
    dataset.add_dynamic_sample_fields(fields=["truth"])
    return names


@pytest.fixture
def everything(dataset: Any, tmp_path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    yield dataset, make(dataset, tmp_path, Settings("everything", truth_field="truth"))


def test_what_both_masks_agree_against_comes_first(everything: tuple[Any, dict[str, str]]) -> None:
    dataset, names = everything
    rows = rank_labels(dataset)
    doubts = {(names[row.id], row.kind): row.doubt for row in rows.itertuples() if row.sample_id == dataset.first().id}
    # By hand: of five other labels three are found, which is more than the mask says that lies on a quarter of it.
    fit = 100 / 700
    assert doubts["shifted", "label"] == pytest.approx((1 - fit) * 0.6)
    assert doubts["merged", "label"] == pytest.approx(0.5 * 0.9)
    assert doubts["away", "label"] == pytest.approx(0.6), "three of five other labels are found"
    assert doubts["missing", "unlabelled"] == pytest.approx(0.9)
    assert doubts["right", "label"] == doubts["right", "unlabelled"] == doubts["also right", "label"] == 0
    assert rows["doubt"].is_monotonic_decreasing
    # The object whose label was shifted off it has none of its own, either.
    first_three = [(names[row.id], row.kind) for row in rows[:3].itertuples()]
    assert first_three == [("missing", "unlabelled"), ("shifted", "unlabelled"), ("away", "label")]

    dataset.reload()
    first, second = dataset
    assert first["refinesam_label_doubt"] == pytest.approx(0.9) and second["refinesam_label_doubt"] == 0
    stored = {names[one.id]: one["refinesam_doubt"] for one in first["truth"].detections}
    assert stored == {name: doubt for (name, kind), doubt in doubts.items() if kind == "label"}
    assert {names[one.id]: one["unlabelled"] for one in first[RUN.amr].detections} == {
        name: doubt for (name, kind), doubt in doubts.items() if kind == "unlabelled"
    }
    assert dataset.load_saved_view("refinesam: doubtful labels").values("id") == [first.id]


def test_a_label_that_was_asked_for_itself_is_judged_by_its_own_mask(dataset: Any, tmp_path: Path) -> None:
    names = make(dataset, tmp_path, Settings("boxes", prompt_field="truth", truth_field="truth"))
    rows = rank_labels(dataset)
    assert set(rows["kind"]) == {"label"}
    doubts = {names[row.id]: row.doubt for row in rows.itertuples() if row.sample_id == dataset.first().id}
    assert doubts["shifted"] == pytest.approx(1 - 100 / 700)
    assert doubts["unsure"] == pytest.approx(1 - 400 / 1225), "the better of both masks counts"
    assert doubts["away"] == 0, "without an answer nothing is said"


def test_deleting_the_run_takes_the_doubts_and_leaves_the_labels(everything: tuple[Any, dict[str, str]]) -> None:
    dataset, _ = everything
    truth = [one["truth"] for one in documents(dataset)]
    foo.execute_operator(URI, dataset=dataset, params={"run_key": "refinesam"})
    dataset.reload()
    assert dataset.count("truth.detections.refinesam_doubt") == 8
    delete_run(dataset, RUN)
    dataset.reload()
    assert [one["truth"] for one in documents(dataset)] == truth
    assert not [name for name in dataset.get_field_schema() if name.startswith("refinesam")]
    assert not dataset.list_saved_views()


def test_names_of_the_user_and_runs_without_ground_truth_are_refused(tmp_path: Path, dataset: Any) -> None:
    planted = evaluated_copy("label-ranking")
    planted.dataset.add_sample_field("refinesam_label_doubt", fo.StringField)
    with pytest.raises(ConfigError, match="would write refinesam_label_doubt"):
        rank_labels(planted.dataset)
    planted.dataset.delete()
    make(dataset, tmp_path, Settings("everything"))
    with pytest.raises(ConfigError, match="no ground truth"):
        rank_labels(dataset)
