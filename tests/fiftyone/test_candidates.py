"""All masks that a prompt may mean, stored on the real database where a run is asked for them, and deleted with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.executor import ExecutionContext, Executor

from fiftyone_flat import BOXES, HW, documents, fill, session
from refinesam import ConfigError, read_image
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.deletion import contents, delete_run
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.labels import mask_from_detection, prompt_from_box
from refinesam_fiftyone.operators.comparing import settings_of
from refinesam_fiftyone.schema import Fields, Settings

RUN = Fields("extents")
COMPARE = "@refinesam/amr/compare"
ASKED = replace(BOXES, candidates=True)


@pytest.mark.parametrize("storage", ["database", "files"])
def test_the_candidates_of_every_prompt_are_stored_with_their_scores(dataset, tmp_path, storage):
    fill(dataset, tmp_path, 2)
    masks_dir = str(tmp_path / "masks") if storage == "files" else None
    model = session()
    compare(dataset, replace(ASKED, masks=storage, masks_dir=masks_dir), run_key=RUN.key, session=model)
    for sample in dataset:
        encoded = model.encode(read_image(sample.filepath))
        stored = sample[RUN.candidates].detections
        for source, amr in zip(sample["truth"].detections, sample[RUN.amr].detections, strict=True):
            prediction = encoded.predict(prompt_from_box(source.bounding_box, HW))
            expected = encoded.refine(prediction).candidates
            found = [label for label in stored if label.prompt_id == str(source.id)]
            assert [label.candidate for label in found] == list(range(1, len(expected) + 1)) and len(found) == 3
            assert [label.area_px for label in found] == sorted(label.area_px for label in found)
            for label, one in zip(found, expected, strict=True):
                assert np.array_equal(mask_from_detection(label, HW), one.mask)
                assert label.predicted_iou == label.confidence == pytest.approx(one.score)
                assert label.label == source.label
            (chosen,) = [label for label in found if label.chosen]
            assert np.array_equal(mask_from_detection(chosen, HW), mask_from_detection(amr, HW))
    assert isinstance(dataset.get_field(f"{RUN.candidates}.detections.candidate"), fo.IntField)


def test_a_run_that_was_not_asked_for_them_has_no_field_of_them(dataset, tmp_path):
    fill(dataset, tmp_path, 1)
    compare(dataset, BOXES, run_key=RUN.key, session=session())
    assert RUN.candidates not in dataset.get_field_schema()


def test_deleting_the_run_deletes_them_and_their_files_and_nothing_else(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    before, schema = documents(dataset), set(dataset.get_field_schema(flat=True))
    masks = tmp_path / "masks"
    compare(dataset, replace(ASKED, masks="files", masks_dir=str(masks)), run_key=RUN.key, session=session())
    evaluate(dataset, run_key=RUN.key)
    assert RUN.candidates in contents(dataset, RUN).fields
    assert any("-candidates-" in path.name for path in masks.rglob("*.png"))
    delete_run(dataset, RUN)
    assert (documents(dataset), set(dataset.get_field_schema(flat=True))) == (before, schema)
    assert not masks.exists() or not list(masks.rglob("*.png"))


def test_asking_for_them_later_answers_anew_and_asking_again_answers_nothing(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    compare(dataset, BOXES, run_key=RUN.key, session=session())
    assert compare(dataset, ASKED, run_key=RUN.key, session=session()).done == 2
    assert all(sample[RUN.candidates].detections for sample in dataset)
    assert compare(dataset, ASKED, run_key=RUN.key, session=session()).skipped == 2
    dataset.delete_sample_field(RUN.candidates)
    assert compare(dataset, ASKED, run_key=RUN.key, session=session()).done == 2
    assert compare(dataset, BOXES, run_key=RUN.key, session=session()).done == 2
    assert not any(sample[RUN.candidates].detections for sample in dataset)


def test_a_field_of_that_name_that_is_the_users_stays(dataset, tmp_path):
    fill(dataset, tmp_path, 1)
    mine = fo.Detections(detections=[fo.Detection(label="mine", bounding_box=[0, 0, 1, 1])])
    dataset.set_values(RUN.candidates, [mine])
    with pytest.raises(ConfigError, match=f"would write {RUN.candidates}"):
        compare(dataset, ASKED, run_key=RUN.key, session=session())
    compare(dataset, BOXES, run_key=RUN.key, session=session())
    delete_run(dataset, RUN)
    assert [label.label for label in dataset.first()[RUN.candidates].detections] == ["mine"]


def test_the_form_asks_for_them(dataset, tmp_path: Path) -> None:
    fill(dataset, tmp_path, 1)
    request = {"dataset_name": dataset.name, "params": {}}
    ctx = ExecutionContext(request, executor=Executor(), operator_uri=COMPARE)
    asked = foo.get_operator(COMPARE).resolve_type(ctx, "inputs").to_json()["type"]["properties"]["candidates"]
    assert asked["type"]["name"] == "Boolean" and not asked["default"]
    params = {"prompts": "boxes", "boxes_field": "truth", "candidates": True}
    assert settings_of(params) == Settings("boxes", prompt_field="truth", candidates=True)
    with pytest.raises(ConfigError, match="candidates is 'yes'; give True or False"):
        replace(BOXES, candidates="yes")
