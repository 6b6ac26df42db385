"""Evaluation on the real database, against what plain numpy says of the planted masks."""

from __future__ import annotations

import fiftyone as fo
import numpy as np
import pytest
from bson import ObjectId
from fiftyone import ViewField as F

from fakes import FloodModel
from fiftyone_flat import documents
from fiftyone_planted import TRUTH_FIELD, bucket_of, iou, plant
from refinesam import ConfigError, Session
from refinesam.hosts import boundary_iou
from refinesam_fiftyone.coco import coco_ap
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.deletion import delete_run
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.labels import detection_from_mask, label_id, mask_from_detection
from refinesam_fiftyone.regions import read_samples
from refinesam_fiftyone.runs import register_run
from refinesam_fiftyone.samples import target_of
from refinesam_fiftyone.schema import Fields, Settings
from refinesam_fiftyone.scoring import SCORES
from refinesam_fiftyone.storing import store_values
from refinesam_fiftyone.views import save_views

RUN = Fields()


def labels_of(dataset, field):
    return {one.prompt_id: one for sample in dataset for one in sample[field].detections}


def test_every_score_of_both_masks_is_numpys(judged):
    for field, own_iou in ((RUN.baseline, "base_iou"), (RUN.amr, "amr_iou")):
        labels = labels_of(judged.dataset, field)
        assert labels.keys() == judged.expected.keys()
        for prompt_id, one in judged.expected.items():
            label = labels[prompt_id]
            assert label.truth_id == prompt_id
            assert (label.base_iou, label.amr_iou, label.rejected_iou) == (one.base_iou, one.amr_iou, one.rejected_iou)
            assert label.delta_iou == one.amr_iou - one.base_iou
            assert label.iou == getattr(one, own_iou)
            assert label.oracle_iou == max(one.base_iou, one.amr_iou, one.rejected_iou or 0)
            assert label.regret == label.oracle_iou - one.amr_iou
            assert (label.bucket, label.size, label.disagreement) == (one.bucket, one.size, one.disagreement)
            assert label.base_boundary_iou == boundary_iou(one.baseline, one.truth)
            assert label.amr_boundary_iou == boundary_iou(one.amr, one.truth)
            assert label.predicted_iou == (label.pred_iou_base if field == RUN.baseline else label.pred_iou_amr)


def test_the_planted_cases_are_among_them(judged):
    kinds = {one.kind for one in judged.expected.values()}
    assert {"one_pixel", "border", "off_image", "empty_amr", "empty_both"} <= kinds
    assert min(judged.buckets.values()) > 0
    assert {one.size for one in judged.expected.values()} == {"small", "medium", "large"}


def test_the_other_layers_have_the_bucket_too(judged):
    rejected = labels_of(judged.dataset, RUN.rejected)
    assert len(rejected) == 6
    for prompt_id, label in rejected.items():
        one = judged.expected[prompt_id]
        assert (label.truth_id, label.iou, label.bucket) == (prompt_id, one.rejected_iou, one.bucket)
    for sample in judged.dataset:
        for point in sample[RUN.points].keypoints:
            assert (point.truth_id, point.bucket) == (point.prompt_id, judged.expected[point.prompt_id].bucket)
        for truth in sample[TRUTH_FIELD].detections:
            one = judged.expected[truth.id]
            assert truth.refinesam_prompt_id == truth.id
            assert (truth.refinesam_bucket, truth.refinesam_size) == (one.bucket, one.size)
            assert (truth.refinesam_base_iou, truth.refinesam_amr_iou) == (one.base_iou, one.amr_iou)


def test_samples_have_the_sums(judged):
    for index, sample in enumerate(judged.dataset):
        ours = [one for one in judged.expected.values() if one.sample == index]
        deltas = [one.amr_iou - one.base_iou for one in ours]
        assert (sample.refinesam_objects, sample.refinesam_missed) == (len(ours), 0)
        assert sample.refinesam_mean_base_iou == pytest.approx(np.mean([one.base_iou for one in ours]), abs=1e-12)
        assert sample.refinesam_mean_amr_iou == pytest.approx(np.mean([one.amr_iou for one in ours]), abs=1e-12)
        assert sample.refinesam_mean_delta == pytest.approx(np.mean(deltas), abs=1e-12)
        assert (sample.refinesam_worst_delta, sample.refinesam_best_delta) == (min(deltas), max(deltas))
        counts = (sample.refinesam_helped, sample.refinesam_hurt, sample.refinesam_failed)
        assert counts == tuple(
            sum(one.bucket == bucket for one in ours) for bucket in ("amr_helped", "amr_hurt", "both_failed")
        )


def test_the_app_can_filter_by_every_attribute(judged):
    schema = judged.dataset.get_field_schema(flat=True)
    assert {f"{field}.detections.{name}" for field in (RUN.baseline, RUN.amr) for name in SCORES} <= schema.keys()
    assert isinstance(schema[f"{TRUTH_FIELD}.detections.refinesam_delta_iou"], fo.FloatField)
    found = judged.dataset.filter_labels(RUN.amr, F("amr_iou") < 0.5)
    assert found.count(f"{RUN.amr}.detections") == sum(one.amr_iou < 0.5 for one in judged.expected.values())
    assert judged.dataset.count_values(f"{RUN.points}.keypoints.bucket") == judged.buckets


def test_evaluating_again_gives_the_same(own):
    before, calls = documents(own.dataset), []
    found = evaluate(own.dataset, on_progress=lambda done, total: calls.append((done, total)))
    assert documents(own.dataset) == before
    assert (found.samples, found.objects, found.missed, found.unpaired) == (6, 62, 0, 0)
    assert found.buckets == own.buckets and not found.failures
    assert calls == [(6, 6)]


def test_thresholds_decide_the_buckets(own):
    found = evaluate(own.dataset, failed_below=0.0, changed_by=0.35)
    ious = [(one.base_iou, one.amr_iou) for one in own.expected.values()]
    assert found.buckets["amr_hurt"] == sum(amr - base < -0.35 for base, amr in ious)
    assert found.buckets["amr_helped"] == sum(amr - base > 0.35 for base, amr in ious)
    assert "both_failed" not in found.buckets


def test_nothing_stays_of_a_pair_that_is_no_more(own):
    sample = own.dataset.first()
    gone = sample[TRUTH_FIELD].detections.pop(0)
    sample.save()
    found = evaluate(own.dataset)
    assert (found.objects, found.unpaired) == (61, 1)
    for field in (RUN.baseline, RUN.amr):
        label = labels_of(own.dataset, field)[gone.id]
        assert {name for name in SCORES if label[name] is not None} == {"disagreement"}
    assert own.dataset.first()[RUN.points].keypoints[0].bucket is None


def test_ground_truth_that_no_prompt_reached_is_missed(own):
    sample = own.dataset.first()
    mask = np.zeros((170, 240), bool)
    mask[150:160, 5:15] = True
    sample[TRUTH_FIELD].detections.append(detection_from_mask(mask, label="cat"))
    sample.save()
    found = evaluate(own.dataset)
    assert (found.objects, found.missed) == (62, 1)
    assert own.dataset.values("refinesam_missed") == [1, 0, 0, 0, 0, 0]
    assert own.dataset.first()[TRUTH_FIELD].detections[-1].refinesam_bucket is None


def test_views_limit_the_samples_and_not_their_labels(own):
    own.dataset.set_field("refinesam_objects", None).save()
    view = own.dataset.limit(2).filter_labels(RUN.amr, F("bucket") == "amr_hurt").select_fields(RUN.amr)
    assert evaluate(view).objects == 22
    assert own.dataset.values("refinesam_objects") == [12, 10, None, None, None, None]
    patches = own.dataset.skip(4).to_patches(TRUTH_FIELD)
    assert evaluate(patches).samples == 2
    assert own.dataset.values("refinesam_objects") == [12, 10, None, None, 10, 10]
    assert evaluate(own.dataset.limit(0)).samples == 0


def test_a_damaged_mask_costs_only_its_prompt(tmp_path):
    planted = plant("damaged", tmp_path, samples=2)
    dataset = planted.dataset
    broken, missing, *_ = [prompt_id for prompt_id, one in planted.expected.items() if one.sample == 1]
    masks = tmp_path / "damaged" / "masks"
    kept = (masks / f"{broken}_baseline.png").read_bytes()
    (masks / f"{broken}_baseline.png").write_bytes(b"no image")
    (masks / f"{missing}_amr.png").rename(masks / "away.png")
    # Comparing could not answer a prompt of this sample either; that stays on record.
    sample = dataset.last()
    earlier = fo.Classification(label="bad_prompt", prompt_id="p", reason="planted")
    sample[RUN.failures] = fo.Classifications(classifications=[earlier])
    sample.tags = ["refinesam:bad_prompt"]
    sample.save()

    found = evaluate(dataset)
    assert (found.objects, found.failures) == (20, {"unreadable_mask": 2})
    sample = dataset.last()
    listed = {one.prompt_id: one for one in sample[RUN.failures].classifications}
    assert listed.keys() == {"p", broken, missing}
    assert f"{broken}_baseline.png" in listed[broken].reason and "restore" in listed[broken].reason
    assert sample.tags == ["refinesam:bad_prompt", "refinesam:unreadable_mask"]
    assert dataset.first().tags == []
    assert labels_of(dataset, RUN.amr)[broken].bucket is None
    assert len(evaluate(dataset).failures) == 1
    assert len(dataset.last()[RUN.failures].classifications) == 3

    (masks / f"{broken}_baseline.png").write_bytes(kept)
    (masks / "away.png").rename(masks / f"{missing}_amr.png")
    assert (evaluate(dataset).objects, evaluate(dataset).failures) == (22, {})
    sample = dataset.last()
    assert [one.prompt_id for one in sample[RUN.failures].classifications] == ["p"]
    assert sample.tags == ["refinesam:bad_prompt"]
    dataset.delete()


def test_a_mask_damaged_in_the_database_costs_only_its_sample(own):
    path = f"{RUN.amr}.detections.0.mask"
    first = ObjectId(own.dataset.first().id)
    own.dataset._sample_collection.update_one({"_id": first}, {"$set": {path: b"no mask"}})
    found = evaluate(own.dataset)
    assert (found.objects, found.failures) == (50, {"unreadable_mask": 1})
    view = own.dataset.match_tags("refinesam:unreadable_mask")
    assert view.values("id") == [str(first)]
    assert "compare again" in view.values(f"{RUN.failures}.classifications.reason")[0][0]


@pytest.mark.parametrize("layer", [TRUTH_FIELD, RUN.baseline, RUN.amr, RUN.rejected])
@pytest.mark.parametrize("prompts", ["boxes", "everything"])
def test_a_mask_without_a_pixel_costs_only_itself(own, layer, prompts):
    register_run(own.dataset, RUN, Settings(prompts, TRUTH_FIELD if prompts == "boxes" else None, TRUTH_FIELD))
    before = evaluate(own.dataset)
    sample = own.dataset.first()
    ious = {one.prompt_id: (one.base_iou, one.amr_iou) for one in sample[RUN.amr].detections}
    chosen = {"helped", "no_change"}
    for label in sample[layer].detections:
        if own.expected[label.id if layer == TRUTH_FIELD else label.prompt_id].kind in chosen:
            label.mask = np.zeros((7, 5), bool)
    sample.save()

    found = evaluate(own.dataset)

    sample = own.dataset.first()
    for label in sample[RUN.amr].detections:
        one = own.expected[label.prompt_id]
        if one.kind not in chosen:
            assert (label.base_iou, label.amr_iou) == ious[label.prompt_id]
        elif layer == TRUTH_FIELD:
            assert label.bucket is None
        elif layer != RUN.rejected:
            assert {RUN.baseline: label.base_iou, RUN.amr: label.amr_iou}[layer] == 0
    gone = 2 if layer == TRUTH_FIELD else 0
    assert (found.objects, found.unpaired) == (before.objects - gone, before.unpaired + gone)
    assert found.failures == ({"no_truth": 1} if gone else {})
    if gone:
        assert "2 of 12 have no pixel" in sample[RUN.failures].classifications[0].reason
    assert coco_ap(own.dataset, class_agnostic=True).loc["amr", "ap"] > 0


def test_sizes_of_images_are_found_and_a_missing_one_costs_only_itself(tmp_path):
    planted = plant("bare", tmp_path, samples=3, metadata=False)
    (tmp_path / "bare" / "image_1.png").unlink()
    (tmp_path / "bare" / "image_2.png").write_bytes(b"no image")
    found = evaluate(planted.dataset)
    assert (found.objects, found.failures) == (12, {"missing_file": 1, "unreadable_image": 1})
    assert planted.dataset.values("tags") == [[], ["refinesam:missing_file"], ["refinesam:unreadable_image"]]
    bare = planted.dataset.first()
    bare[TRUTH_FIELD].detections[0].mask = None
    bare.save()
    found = evaluate(planted.dataset)
    assert (found.objects, found.failures["no_truth"]) == (11, 1)
    planted.dataset.delete()


def test_a_sample_that_changed_since_it_was_read_is_left_alone(own):
    ids = own.dataset.values("id")
    (batch,) = read_samples(target_of(own.dataset), ids, [TRUTH_FIELD])
    changed = own.dataset.first()
    changed[TRUTH_FIELD].detections.pop(0)
    changed.save()
    path = f"{TRUTH_FIELD}.detections.9.refinesam_bucket"
    refused = store_values(target_of(own.dataset), {one.id: (one.modified, {path: "new"}) for one in batch})
    assert list(refused) == [ids[0]] and "evaluate again" in refused[ids[0]]
    own.dataset.reload()
    buckets = own.dataset.values(f"{TRUTH_FIELD}.detections.refinesam_bucket")
    assert len(buckets[0]) == 11 and "new" not in buckets[0]
    assert all(one[9] == "new" for one in buckets[1:])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_batches_change_nothing_of_what_is_read(judged, batch_size):
    ids = judged.dataset.values("id")
    read = [
        one for batch in read_samples(target_of(judged.dataset), ids, [RUN.amr], batch_size=batch_size) for one in batch
    ]
    assert [one.id for one in read] == ids
    for sample in read:
        for label in sample.labels[RUN.amr]:
            expected = judged.expected[label.prompt_id].amr
            np.testing.assert_array_equal(label.region.frame(sample.image_hw), expected)


def test_masks_without_prompts_answer_for_the_object_they_fit_best(own):
    register_run(own.dataset, RUN, Settings("everything", None, TRUTH_FIELD))
    # Their ids say nothing of the ground truth.
    for field in (f"{RUN.baseline}.detections", f"{RUN.amr}.detections", f"{RUN.rejected}.detections"):
        ids = own.dataset.values(f"{field}.prompt_id")
        own.dataset.set_values(f"{field}.prompt_id", [[f"m{one}" for one in of_sample] for of_sample in ids])
    found = evaluate(own.dataset)
    # Neither mask of the "empty_both" objects has a pixel: six objects that nothing reached.
    assert (found.objects, found.missed, found.unpaired) == (62, 6, 6)
    assert found.buckets == own.buckets
    for sample in own.dataset:
        for truth in sample[TRUTH_FIELD].detections:
            one = own.expected[truth.id]
            assert (truth.refinesam_base_iou, truth.refinesam_amr_iou) == (one.base_iou, one.amr_iou)
            missed = one.kind == "empty_both"
            assert truth.refinesam_prompt_id == (None if missed else f"m{truth.id}")
            assert truth.refinesam_bucket == bucket_of(one.base_iou, one.amr_iou)


def test_boxes_and_clicks_of_other_fields_find_their_objects(own):
    boxes, clicks = [], []
    for sample in own.dataset:
        hw = sample.metadata.height, sample.metadata.width
        truths = [(one.id, own.expected[one.id].truth) for one in sample[TRUTH_FIELD].detections]
        found = [
            fo.Detection(id=label_id(one.id), bounding_box=one.bounding_box) for one in sample[TRUTH_FIELD].detections
        ]
        boxes.append(fo.Detections(detections=found))
        points = [(label_id(i), np.argwhere(mask)[0]) for i, mask in truths]
        keypoints = [
            fo.Keypoint(id=i, points=[((x + 0.5) / hw[1], (y + 0.5) / hw[0])], signs=[1]) for i, (y, x) in points
        ]
        clicks.append(fo.Keypoints(keypoints=keypoints))
    own.dataset.set_values("boxes", boxes)
    own.dataset.set_values("clicks", clicks)
    for field in (RUN.baseline, RUN.amr, RUN.rejected):
        ids = own.dataset.values(f"{field}.detections.prompt_id")
        own.dataset.set_values(f"{field}.detections.prompt_id", [[label_id(i) for i in one] for one in ids])
    for settings in (Settings("boxes", "boxes", TRUTH_FIELD), Settings("keypoints", "clicks", TRUTH_FIELD)):
        register_run(own.dataset, RUN, settings)
        found = evaluate(own.dataset)
        assert (found.objects, found.missed, found.buckets) == (62, 0, own.buckets)
        for truth in own.dataset.first()[TRUTH_FIELD].detections:
            assert truth.refinesam_prompt_id == label_id(truth.id)


def test_what_cannot_be_evaluated_is_refused(own):
    with pytest.raises(ConfigError, match="no run 'other'"):
        evaluate(own.dataset, run_key="other")
    for bad in ({"failed_below": 1.5}, {"failed_below": True}, {"changed_by": -0.1}, {"changed_by": "0.1"}):
        with pytest.raises(ConfigError, match="a number from 0 to 1"):
            evaluate(own.dataset, **bad)
    with pytest.raises(ConfigError, match="dataset or view"):
        evaluate([own.dataset.first()])
    register_run(own.dataset, RUN, Settings("boxes", prompt_field=TRUTH_FIELD))
    with pytest.raises(ConfigError, match="without ground truth"):
        evaluate(own.dataset)
    with pytest.raises(ConfigError, match="without ground truth"):
        coco_ap(own.dataset)
    register_run(own.dataset, RUN, Settings("boxes", prompt_field="gone", truth_field="gone"))
    with pytest.raises(ConfigError, match="no longer has"):
        evaluate(own.dataset)


def test_deleting_the_run_leaves_nothing_of_the_evaluation(own):
    own.dataset.save_view("mine", own.dataset.limit(1))
    save_views(own.dataset)
    delete_run(own.dataset, RUN)
    assert own.dataset.list_saved_views() == ["mine"]
    assert not [name for name in own.dataset.get_field_schema(flat=True) if "refinesam" in name]


def test_what_comparing_wrote_is_evaluated_and_again_after_a_re_run(own):
    """The planted ground truth, with the masks of a model that fills flat areas: noise, so they are small."""
    session = Session(FloodModel(negative_points=True, max_points=None))
    settings = Settings("random-2", truth_field=TRUTH_FIELD)
    run = Fields("flood")
    assert compare(own.dataset, settings, run_key=run.key, session=session).prompts == 62
    found = evaluate(own.dataset, run_key=run.key)
    assert (found.objects, found.missed, found.failures) == (62, 0, {})
    first = documents(own.dataset)
    for sample in own.dataset:
        hw = sample.metadata.height, sample.metadata.width
        for label in sample[run.amr].detections:
            expected = iou(mask_from_detection(label, hw), own.expected[label.prompt_id].truth)
            assert label.amr_iou == label.iou == expected
    compare(own.dataset, settings, run_key=run.key, session=session, resume=False)
    assert set(own.dataset.values(f"{run.amr}.detections.bucket", unwind=True)) == {None}
    evaluate(own.dataset, run_key=run.key)
    assert documents(own.dataset) == first


def test_average_precision_is_that_of_the_planted_masks(judged):
    table = coco_ap(judged.dataset)
    assert list(table.index) == ["baseline", "amr"]
    # One large object, found with an IoU of 0.98: right at all ten thresholds. The medium one's 0.8 is at seven.
    assert table.loc["baseline", ["ap_large", "ap_medium"]].tolist() == pytest.approx([1.0, 0.7])
    for name, masks in (("baseline", "baseline"), ("amr", "amr")):
        recall = np.mean(
            [
                np.mean([iou(getattr(one, masks), one.truth) >= threshold for one in of_class])
                for label in ("cat", "dog", "boat")
                for of_class in [[one for one in judged.expected.values() if one.label == label]]
                for threshold in np.linspace(0.5, 0.95, 10).round(2)
            ]
        )
        assert table.loc[name, "ar100"] == pytest.approx(recall, abs=1e-9)
    assert coco_ap(judged.dataset, class_agnostic=True).loc["amr", "ap50"] != table.loc["amr", "ap50"]


def test_crowds_count_neither_way_and_unknown_classes_are_left_out(own):
    before = coco_ap(own.dataset, class_agnostic=True)
    crowds = own.dataset.values(f"{TRUTH_FIELD}.detections.label")
    failed = [
        [own.expected[one].kind == "both_failed" for one in ids]
        for ids in own.dataset.values(f"{TRUTH_FIELD}.detections.id")
    ]
    own.dataset.set_values(f"{TRUTH_FIELD}.detections.iscrowd", [[int(one) for one in ids] for ids in failed])
    own.dataset.add_dynamic_sample_fields(fields=[TRUTH_FIELD])
    after = coco_ap(own.dataset, class_agnostic=True)
    assert after.loc["amr", "ar100"] > before.loc["amr", "ar100"]
    own.dataset.set_values(f"{RUN.amr}.detections.label", [["object"] * len(one) for one in crowds])
    assert coco_ap(own.dataset).loc["amr", "ap"] == pytest.approx(after.loc["amr", "ap"])
    assert coco_ap(own.dataset, class_agnostic=False).loc["amr", "ap"] == 0
