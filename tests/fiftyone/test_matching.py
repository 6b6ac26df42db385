"""A run's masks as an evaluation of FiftyOne: equal to its own on whole-pixel masks, and gone with the run."""

from __future__ import annotations

import uuid

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.executor import ExecutionError

from fiftyone_flat import BOXES, documents, fill, session
from fiftyone_planted import TRUTH_FIELD
from real_fiftyone import draw_videos
from refinesam import ConfigError
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.deletion import contents, delete_run
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.labels import detection_from_mask
from refinesam_fiftyone.matching import match_detections
from refinesam_fiftyone.runs import register_run
from refinesam_fiftyone.schema import Fields, Settings

RUN = Fields()
KEY = "refinesam_eval_amr"
COUNTS = [f"{KEY}_{name}" for name in ("tp", "fp", "fn")]
ATTRIBUTES = (KEY, f"{KEY}_id", f"{KEY}_iou")


def attributes(dataset, field):
    """Attributes of the evaluation by label; labels that were not judged have none."""
    labels = [one for sample in dataset for one in sample[field].detections]
    found = {one.id: tuple(one[name] if one.has_attribute(name) else None for name in ATTRIBUTES) for one in labels}
    return {own: values for own, values in found.items() if values[0] is not None}


def confuse(dataset):
    """Give every fifth mask the class of another."""
    for number, sample in enumerate(dataset):
        for label in sample[RUN.amr].detections[number % 5 :: 5]:
            label.label = "boat" if label.label != "boat" else "cat"
        sample.save()


def twin(planted):
    """The same masks where FiftyOne's own evaluation can read them: with boxes of whole pixels, none empty."""
    dataset = fo.Dataset()
    for index, sample in enumerate(planted.dataset):
        truths = [
            detection_from_mask(planted.expected[one.id].truth, id=one.id, label=one.label)
            for one in sample[TRUTH_FIELD].detections
        ]
        masks = [
            detection_from_mask(amr, id=one.id, label=one.label, confidence=one.predicted_iou)
            for one in sample[RUN.amr].detections
            if (amr := planted.expected[one.prompt_id].amr).any()
        ]
        fields = {TRUTH_FIELD: fo.Detections(detections=truths), RUN.amr: fo.Detections(detections=masks)}
        dataset.add_sample(fo.Sample(f"/nowhere/{index}.png", **fields))
    return dataset


@pytest.mark.parametrize("classwise", [False, True])
def test_it_equals_fiftyones_own_where_that_can_read_the_masks(own, classwise):
    confuse(own.dataset)
    other = twin(own)
    theirs = other.evaluate_detections(RUN.amr, TRUTH_FIELD, KEY, iou=0.6, classwise=classwise, use_masks=True)

    found = match_detections(own.dataset, iou=0.6, classwise=classwise)

    assert own.dataset.values(COUNTS) == other.values(COUNTS)
    assert (found.tp, found.fp, found.fn) == tuple(sum(counts) for counts in other.values(COUNTS))
    assert min(found.tp, found.fp, found.fn) > 0 and found.samples == 6 and not found.left_out
    assert found.empty == sum(not one.amr.any() for one in own.expected.values()) > 0
    for field in (TRUTH_FIELD, RUN.amr):
        assert attributes(own.dataset, field) == attributes(other, field)
    ours = own.dataset.load_evaluation_results(KEY)
    assert ours.metrics() == theirs.metrics()
    assert ours.report() == theirs.report()
    np.testing.assert_array_equal(ours.confusion_matrix(), theirs.confusion_matrix())
    assert ours.config.serialize() == theirs.config.serialize()
    assert own.dataset.load_evaluation_view(KEY).values("id") == own.dataset.values("id")
    other.delete()


def test_ious_are_those_of_the_runs_own_evaluation(own):
    match_detections(own.dataset)
    for sample in own.dataset:
        for label in sample[RUN.amr].detections:
            one = own.expected[label.prompt_id]
            hit = one.amr_iou >= 0.5
            judged = ("tp" if hit else "fp") if one.amr.any() else None
            iou = one.amr_iou if hit else None
            assert (label[KEY], label[f"{KEY}_iou"]) == (judged, iou)
    assert isinstance(own.dataset.get_field(f"{RUN.amr}.detections.{KEY}_iou"), fo.FloatField)


def test_both_masks_stand_side_by_side_and_a_view_is_kept(own):
    match_detections(own.dataset.limit(2))
    found = match_detections(own.dataset.limit(2), masks="baseline", eval_key="first")
    assert sorted(own.dataset.list_evaluations()) == ["first", KEY]
    ids = own.dataset.limit(2).values("id")
    assert own.dataset.load_evaluation_view("first").values("id") == ids
    assert own.dataset.values("first_tp")[2:] == [None] * 4
    expected = [one for one in own.expected.values() if one.sample < 2]
    assert found.tp == sum(one.base_iou >= 0.5 for one in expected)


def test_bad_masks_cost_themselves_and_their_pair_alone(own, tmp_path):
    first, second = own.dataset.limit(2)
    empty, damaged = first[TRUTH_FIELD].detections[0], second[RUN.amr].detections[1]
    before = match_detections(own.dataset, eval_key="before")
    empty.mask = np.zeros((7, 5), bool)
    first.save()
    # Copies of the planted dataset share their files.
    damaged.mask_path = str(tmp_path / "damaged.png")
    (tmp_path / "damaged.png").write_bytes(b"no image")
    second.save()
    gone = own.dataset.last()
    gone.metadata, gone.filepath = None, str(tmp_path / "gone.png")
    gone.save()

    found = match_detections(own.dataset)

    pair = next(one for one in first[RUN.amr].detections if one.prompt_id == empty.id)
    assert found.left_out.keys() == {empty.id, pair.id, damaged.id, gone.id}
    assert "without a pixel" in found.left_out[empty.id] and "damaged.png" in found.left_out[damaged.id]
    assert "gone.png" in found.left_out[gone.id]
    assert (before.samples, found.samples) == (6, 5)
    for field, lost in ((TRUTH_FIELD, {empty.id}), (RUN.amr, {pair.id, damaged.id})):
        old = own.dataset.values([f"{field}.detections.id", f"{field}.detections.before"], unwind=True)
        new = dict(
            zip(*own.dataset.values([f"{field}.detections.id", f"{field}.detections.{KEY}"], unwind=True), strict=True)
        )
        for own_id, was in zip(*old, strict=True):
            if own_id in lost or own_id in {one.id for one in gone[field].detections}:
                assert new[own_id] is None
            elif own_id == damaged.prompt_id:
                # Nothing that can be read finds it any more.
                assert new[own_id] == "fn"
            else:
                assert new[own_id] == was


def test_masks_without_a_class_take_that_of_the_label_they_fit(own):
    register_run(own.dataset, RUN, Settings("everything", None, TRUTH_FIELD))
    for sample in own.dataset:
        for label in sample[RUN.amr].detections:
            label.label = None
        sample.save()
    found = match_detections(own.dataset)
    assert found.tp == sum(one.amr_iou >= 0.5 for one in own.expected.values())
    assert set(own.dataset.load_evaluation_results(KEY).classes) == {"cat", "dog", "boat"}
    assert set(own.dataset.values(f"{RUN.amr}.detections.label", unwind=True)) == {None}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"eval_key": "mine"}, "has an evaluation 'mine' already. Choose"),
        ({"eval_key": "done"}, "This run made it."),
        ({"eval_key": "bucket"}, "the run's own"),
        ({"eval_key": "label"}, "which the dataset has already"),
        ({"eval_key": "taken"}, "taken_tp"),
        ({"eval_key": "not a name"}, "letters, digits"),
        ({"iou": 0}, "above 0"),
        ({"iou": "high"}, "above 0"),
        ({"masks": "rejected"}, "baseline or amr"),
    ],
)
def test_what_is_taken_or_wrong_is_refused_and_nothing_changes(own, options, says):
    own.dataset.evaluate_detections(RUN.amr, RUN.amr, eval_key="mine")
    match_detections(own.dataset, eval_key="done")
    own.dataset.add_sample_field("taken_tp", fo.IntField)
    before, schema = documents(own.dataset), set(own.dataset.get_field_schema(flat=True))
    with pytest.raises(ConfigError, match=says):
        match_detections(own.dataset, **options)
    assert documents(own.dataset) == before
    assert set(own.dataset.get_field_schema(flat=True)) == schema
    assert sorted(own.dataset.list_evaluations()) == ["done", "mine"]


def test_deleting_the_run_deletes_its_evaluations_alone(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    dataset.clone_sample_field("truth", "guess")
    dataset.evaluate_detections("guess", "truth", eval_key="boxes_eval_mine")
    before, schema = documents(dataset), set(dataset.get_field_schema(flat=True))
    groups = [(one.name, one.paths) for one in dataset.app_config.sidebar_groups]
    compare(dataset, BOXES, run_key="boxes", session=session())
    evaluate(dataset, run_key="boxes")
    match_detections(dataset, run_key="boxes")
    match_detections(dataset, run_key="boxes", masks="baseline", eval_key="first")
    dataset.rename_evaluation("first", "renamed")

    found = contents(dataset, Fields("boxes"))
    assert found.evaluations == ["boxes_eval_amr"]
    assert any("`renamed_tp`: made as `first_tp`" in line for line in found.stays)
    delete_run(dataset, Fields("boxes"))

    assert sorted(dataset.list_evaluations()) == ["boxes_eval_mine", "renamed"]
    # Its masks went with the run; what else the user renamed is the user's.
    dataset.delete_evaluation("renamed")
    assert documents(dataset) == before
    assert set(dataset.get_field_schema(flat=True)) == schema
    assert [(one.name, one.paths) for one in dataset.app_config.sidebar_groups] == groups


def test_a_renamed_ground_truth_does_not_keep_the_run_from_being_deleted(own):
    match_detections(own.dataset)
    own.dataset.rename_sample_field(TRUTH_FIELD, "truth")
    delete_run(own.dataset, RUN)
    assert own.dataset.list_evaluations() == []
    left = set(own.dataset.get_field_schema(flat=True))
    assert not [path for path in left if KEY in path]


def test_other_answers_take_the_evaluation_of_the_old_ones_along(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    compare(dataset, BOXES, run_key="boxes", session=session())
    match_detections(dataset, run_key="boxes")
    other = Settings("boxes", prompt_field="truth", truth_field="truth", amr="paper")
    compare(dataset, other, run_key="boxes", session=session())
    assert dataset.list_evaluations() == []
    assert match_detections(dataset, run_key="boxes").samples == 2


def test_the_form_refuses_and_the_operator_evaluates(own):
    def run(**params):
        return foo.execute_operator(
            "@refinesam/amr/match_detections", dataset=own.dataset, params={"run_key": RUN.key, **params}
        )

    run(masks="baseline", iou=0.7)
    own.dataset.reload()
    assert own.dataset.list_evaluations() == ["refinesam_eval_baseline"]
    assert own.dataset.get_evaluation_info("refinesam_eval_baseline").config.iou == 0.7
    with pytest.raises(ExecutionError, match="has an evaluation 'refinesam_eval_baseline' already"):
        run(masks="baseline")
    run()
    own.dataset.reload()
    assert own.dataset.load_evaluation_results(KEY).metrics()["support"] == 62


def test_frames_are_refused(tmp_path):
    dataset = draw_videos(f"videos-{uuid.uuid4().hex[:8]}", tmp_path, videos=1, frames=2)
    frames = dataset.to_frames()
    settings = Settings("boxes", prompt_field="ground_truth", truth_field="ground_truth")
    compare(frames, settings, session=session())
    with pytest.raises(ConfigError, match="not of groups or frames"):
        match_detections(frames)
    assert dataset.list_evaluations() == []
    dataset.delete()
