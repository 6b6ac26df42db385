"""Saved views: the labels of their bucket on every layer, and still so when the run was made again."""

from __future__ import annotations

import fiftyone as fo
import pytest

from fiftyone_planted import TRUTH_FIELD, plant
from refinesam import ConfigError
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.record import declare
from refinesam_fiftyone.runs import register_run
from refinesam_fiftyone.samples import target_of
from refinesam_fiftyone.schema import BUCKETS, Fields, Settings
from refinesam_fiftyone.views import bucket_view, save_views

RUN = Fields()
NAMES = [f"refinesam: {end}" for end in ("AMR helped", "AMR hurt", "no change", "both failed", "failures")]


def prompts_of(view):
    """The prompts that each layer shows."""
    layers = [view.values(f"{name}.detections.prompt_id", unwind=True) for name in (RUN.baseline, RUN.amr)]
    layers.append(view.values(f"{RUN.points}.keypoints.prompt_id", unwind=True))
    layers.append(view.values(f"{TRUTH_FIELD}.detections.id", unwind=True))
    return [sorted(one for one in layer if one) for layer in layers]


def expected_of(planted, bucket):
    return sorted(name for name, one in planted.expected.items() if one.bucket == bucket)


def test_every_layer_shows_the_bucket_alone(own):
    assert save_views(own.dataset) == NAMES
    assert own.dataset.list_saved_views() == NAMES
    for bucket in BUCKETS:
        view = own.dataset.load_saved_view(RUN.view_name(bucket))
        assert prompts_of(view) == [expected_of(own, bucket)] * 4
        rejected = [name for name, one in own.expected.items() if one.bucket == bucket and one.rejected_iou is not None]
        assert sorted(view.values(f"{RUN.rejected}.detections.prompt_id", unwind=True)) == sorted(rejected)


def test_the_worst_sample_comes_first(own):
    own.dataset.set_values("refinesam_worst_delta", [-0.1, -0.6, -0.3, -0.2, -0.5, -0.4])
    own.dataset.set_values("refinesam_best_delta", [0.1, 0.6, 0.3, 0.2, 0.5, 0.4])
    save_views(own.dataset)
    ids = own.dataset.values("id")
    for name in NAMES[:4]:
        assert own.dataset.load_saved_view(name).values("id") == [ids[i] for i in (1, 4, 5, 2, 3, 0)]


def test_samples_without_an_object_in_the_bucket_are_left_out(own):
    sample = own.dataset.first()
    for name in (RUN.baseline, RUN.amr):
        sample[name].detections = [one for one in sample[name].detections if one.bucket != "no_change"]
    sample.save()
    evaluate(own.dataset)
    for bucket, count in (("no_change", 5), ("amr_hurt", 6)):
        assert len(bucket_view(own.dataset, bucket)) == count
    assert len(bucket_view(own.dataset.limit(2), "no_change")) == 1


def test_a_saved_view_shows_what_is_in_the_bucket_after_a_re_run(own):
    save_views(own.dataset)
    before = own.dataset.load_saved_view("refinesam: AMR hurt").values(f"{RUN.amr}.detections.id", unwind=True)
    # The re-run gives each prompt the other's mask, under new ids, and new samples come.
    for sample in own.dataset:
        baseline, amr = sample[RUN.baseline].detections, sample[RUN.amr].detections
        swapped = []
        for labels in (amr, baseline):
            found = []
            for one in labels:
                kept = {name: one[name] for name in ("label", "prompt_id", "predicted_iou", "empty", "mask_path")}
                found.append(fo.Detection(bounding_box=one.bounding_box, mask=one.mask, **kept))
            swapped.append(fo.Detections(detections=found))
        sample[RUN.baseline], sample[RUN.amr] = swapped
        sample.save()
    evaluate(own.dataset)
    view = own.dataset.load_saved_view("refinesam: AMR hurt")
    hurt = sorted(name for name, one in own.expected.items() if one.bucket == "amr_helped")
    assert prompts_of(view) == [hurt] * 4
    assert not set(view.values(f"{RUN.amr}.detections.id", unwind=True)) & set(before)
    assert save_views(own.dataset) == own.dataset.list_saved_views() == NAMES


def test_failures_have_a_view(own):
    save_views(own.dataset)
    assert len(own.dataset.load_saved_view("refinesam: failures")) == 0
    sample = own.dataset.last()
    sample[RUN.failures] = fo.Classifications(classifications=[fo.Classification(label="bad_prompt")])
    sample.save()
    assert own.dataset.load_saved_view("refinesam: failures").values("id") == [sample.id]
    own.dataset.clear_sample_field(RUN.failures)
    assert len(own.dataset.load_saved_view("refinesam: failures")) == 0


def test_two_runs_have_views_of_their_own(own):
    save_views(own.dataset)
    register_run(own.dataset, Fields("second"), Settings("boxes", TRUTH_FIELD, TRUTH_FIELD))
    declare(target_of(own.dataset), Fields("second"), Fields("second").kinds)
    for name in ("baseline", "amr", "rejected", "points", "failures", "digest"):
        own.dataset.set_values(f"second_{name}", own.dataset.values(f"refinesam_{name}"))
    evaluate(own.dataset, run_key="second", changed_by=0.35)
    save_views(own.dataset, run_key="second")
    hurt = sum(one.bucket == "amr_hurt" and one.base_iou - one.amr_iou > 0.35 for one in own.expected.values())
    for name, count in (("refinesam", own.buckets["amr_hurt"]), ("second", hurt)):
        view = own.dataset.load_saved_view(f"{name}: AMR hurt")
        assert view.count(f"{name}_amr.detections") == view.count(f"{TRUTH_FIELD}.detections") == count
    assert 0 < hurt < own.buckets["amr_hurt"]


def test_what_has_no_buckets_is_refused(own, tmp_path):
    with pytest.raises(ConfigError, match="no bucket 'worse'; choose one of amr_helped"):
        bucket_view(own.dataset, "worse")
    with pytest.raises(ConfigError, match="no run 'other'"):
        save_views(own.dataset, run_key="other")
    register_run(own.dataset, RUN, Settings("boxes", TRUTH_FIELD))
    with pytest.raises(ConfigError, match="without ground truth"):
        save_views(own.dataset)
    bare = plant("bare-views", tmp_path, samples=1)
    with pytest.raises(ConfigError, match="evaluate it first"):
        bucket_view(bare.dataset, "amr_hurt")
    bare.dataset.delete()
