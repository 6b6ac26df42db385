"""Comparing on the real database: what is stored, what fails alone, what a re-run does."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import fiftyone as fo
import numpy as np
import pytest
import skimage.data

from fakes import FloodModel
from fiftyone_flat import BOXES, HW, fill, session, truth, write_image
from refinesam import AMRConfig, ConfigError, DatasetError, Prompt, Session, read_image
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.labels import mask_from_detection, prompt_from_box
from refinesam_fiftyone.record import declare
from refinesam_fiftyone.runs import list_runs, read_settings
from refinesam_fiftyone.sample_result import SampleResult
from refinesam_fiftyone.samples import target_of
from refinesam_fiftyone.schema import AMR_SETTINGS, Fields, Settings
from refinesam_fiftyone.storing import store

RUN = Fields()


def stored(dataset, run: Fields = RUN) -> list:
    """Everything that a run wrote, as plain values, masks as bytes."""
    found = []
    for sample in dataset:
        for field in run.written:
            value = sample[field]
            found.append((sample.filepath, field, value if isinstance(value, str) else repr(value.to_mongo())))
        found.append(sorted(sample.tags))
    return found


def test_both_masks_of_every_prompt_are_stored(dataset, tmp_path):
    fill(dataset, tmp_path, 3)
    model = session()
    done = compare(dataset, BOXES, session=model)
    assert (done.samples, done.done, done.encoded, done.prompts) == (3, 3, 3, 6)
    assert model.model.encoded == 3
    for sample in dataset:
        wanted = [str(label.id) for label in sample["truth"].detections]
        encoded = model.encode(read_image(sample.filepath))
        for role in ("baseline", "amr"):
            labels = sample[RUN.masks(role)].detections
            assert [label.prompt_id for label in labels] == wanted
            assert [label.label for label in labels] == ["cat", "dog"]
            for label, source in zip(labels, sample["truth"].detections, strict=True):
                x, y, width, height = source.bounding_box
                prediction = encoded.predict(Prompt(box=[x * 64, y * 48, (x + width) * 64, (y + height) * 48]))
                if role == "amr":
                    prediction = encoded.refine(prediction, AMRConfig.full())
                assert np.array_equal(mask_from_detection(label, HW), prediction.mask)
                assert label.predicted_iou == pytest.approx(prediction.score)
                for name in ("kappa", "compactness", "strategy", "kept", "reason", "holes", "area_px"):
                    assert label[name] is not None, name


def test_the_points_of_the_papers_amr_are_kept(dataset, tmp_path):
    fill(dataset, tmp_path, 1)
    model = session()
    compare(dataset, replace(BOXES, amr="paper"), session=model)
    encoded = model.encode(read_image(dataset.first().filepath))
    points = dataset.first()[RUN.points].keypoints
    assert len(points) == 2
    for point, label in zip(points, dataset.first()["truth"].detections, strict=True):
        prompt = prompt_from_box(label.bounding_box, HW)
        report = encoded.refine(encoded.predict(prompt), AMRConfig.paper()).refinement
        assert np.allclose(np.array(point.points) * (64, 48), report.points, atol=1e-4)
        assert point.prompt_id == str(label.id) and point.label == report.strategy


def test_closer_looks_are_a_choice(dataset, tmp_path):
    """The full refinement re-encodes parts of the image; the others need one encoding for each image."""
    image = np.full((240, 320, 3), 10, np.uint8)
    image[100:130, 150:190] = 200
    cv2.imwrite(str(tmp_path / "small.png"), image)
    box = fo.Detection(bounding_box=[150 / 320, 100 / 240, 40 / 320, 30 / 240])
    dataset.add_sample(fo.Sample(str(tmp_path / "small.png"), truth=fo.Detections(detections=[box])))
    calls = {}
    for amr in AMR_SETTINGS:
        # Closer looks are for models that take a mask as a prompt.
        model = Session(FloodModel(negative_points=True, mask_prompt=True, max_points=None))
        compare(dataset, replace(BOXES, amr=amr), session=model)
        calls[amr] = model.model.encoded
    assert calls["fast"] == calls["paper"] == 1 < calls["full"]


def test_the_rejected_candidate_is_kept(dataset, tmp_path):
    """The flood model predicts 0.9 whatever it is asked, so no candidate scores higher."""
    fill(dataset, tmp_path, 1)
    compare(dataset, Settings("random-2", truth_field="truth", amr="paper"), session=session())
    sample = dataset.first()
    assert {label.kept for label in sample[RUN.amr].detections} == {"first"}
    rejected = sample[RUN.rejected].detections
    assert [label.prompt_id for label in rejected] == [str(label.id) for label in sample["truth"].detections]
    assert all(mask_from_detection(label, HW).any() for label in rejected)


def test_settings_are_kept_with_the_dataset(dataset, tmp_path):
    fill(dataset, tmp_path, 1)
    compare(dataset, BOXES, session=session(), run_key="mine")
    dataset.reload()
    assert list_runs(dataset) == ["mine"] and read_settings(dataset, Fields("mine")) == BOXES
    with pytest.raises(ConfigError, match="it has mine"):
        read_settings(dataset, Fields("other"))


def test_attributes_are_declared_for_the_app(dataset, tmp_path):
    fill(dataset, tmp_path, 1)
    compare(dataset, BOXES, session=session())
    schema = dataset.get_field_schema(flat=True)
    for role in ("baseline", "amr", "rejected"):
        assert isinstance(schema[f"{RUN.masks(role)}.detections.kappa"], fo.IntField)
        assert isinstance(schema[f"{RUN.masks(role)}.detections.predicted_iou"], fo.FloatField)
    assert isinstance(schema[f"{RUN.failures}.classifications.reason"], fo.StringField)


def test_random_clicks_lie_in_the_truth_and_stay_the_same(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    models = [session(), session()]
    settings = Settings("random-2", truth_field="truth")
    for model in models:
        compare(dataset, settings, session=model, resume=False)
    first, second = ([p for p in model.model.decoded if len(p.points) == 2] for model in models)
    assert len(first) >= 4
    assert [p.points.tolist() for p in first] == [p.points.tolist() for p in second]
    grey = [read_image(sample.filepath)[..., 0] for sample in dataset]
    for prompt in first:
        x, y = prompt.points[0].astype(int)
        assert any(image[y, x] >= 100 for image in grey)


def test_keypoints_with_signs_are_prompts(dataset, tmp_path):
    fill(dataset, tmp_path, 1)
    sample = dataset.first()
    sample["clicks"] = fo.Keypoints(
        keypoints=[
            fo.Keypoint(label="a", points=[(15 / 64, 15 / 48), (16 / 64, 15 / 48)], signs=[1, 0]),
            fo.Keypoint(label="b", points=[(45 / 64, 30 / 48)], signs=[0]),
        ]
    )
    sample.save()
    model = session()
    done = compare(dataset, Settings("keypoints", prompt_field="clicks"), session=model)
    # The object itself, and what the model gives up for the click on it.
    assert [asked.labels.tolist() for asked in model.model.decoded[:2]] == [[1], [1, 0]]
    assert done.prompts == 1 and done.failures == {"bad_prompt": 1}
    sample.reload()
    assert [label.label for label in sample[RUN.amr].detections] == ["a"]
    assert "positive" in sample[RUN.failures].classifications[0].reason


def test_keypoints_as_yolo_exports_them(dataset, tmp_path):
    """Points that were not seen are no clicks in the corner; a later confidence is another prompt."""
    fill(dataset, tmp_path, 1)
    sample = dataset.first()
    unseen = fo.Keypoint(label="b", points=[(0.0, 0.0), (0.0, 0.0)], confidence=[0.0, 0.0])
    points = [(15 / 64, 15 / 48), (0.0, 0.0), (1.0, 1.0)]
    asked = fo.Keypoint(label="a", points=points, confidence=[0.9, 0.1, 0.0], signs=[1, 1, 1])
    sample["clicks"] = fo.Keypoints(keypoints=[asked, unseen])
    sample.save()
    settings, model = Settings("keypoints", prompt_field="clicks", truth_field="truth"), session()
    done = compare(dataset, settings, session=model)
    assert model.model.decoded[0].points.tolist() == [[15, 15]]
    assert (done.prompts, done.failures) == (1, {"bad_prompt": 1})
    sample.reload()
    assert "none of its 2 is seen" in sample[RUN.failures].classifications[0].reason
    assert evaluate(dataset).objects == 1
    sample["clicks"].keypoints[0].confidence = [0.9, 0.1, 0.5]
    sample.save()
    assert compare(dataset, settings, session=model).done == 1


def test_everything_needs_no_prompts(dataset, tmp_path):
    cv2.imwrite(str(tmp_path / "coins.png"), skimage.data.coins())
    dataset.add_sample(fo.Sample(str(tmp_path / "coins.png")))
    done = compare(dataset, Settings("everything", points_per_side=8))
    labels = dataset.first()[RUN.baseline].detections
    assert done.prompts == len(labels) >= 1
    assert len({label.prompt_id for label in labels}) == len(labels)


def spoil(dataset) -> dict[str, str]:
    """Damage some of six samples; returns the failure that each file's name should be tagged with."""
    paths = [Path(path) for path in dataset.values("filepath")]
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[3].unlink()
    samples = list(dataset)
    samples[4]["truth"] = fo.Detections()
    samples[4].save()
    samples[5]["truth"].detections[0].bounding_box = [1.5, 1.5, 0.1, 0.1]
    samples[5]["truth"].detections.append(fo.Detection(label="dot", bounding_box=[0.5, 0.5, 1e-4, 1e-4]))
    samples[5].save()
    return {
        paths[1].name: "unreadable_image",
        paths[3].name: "missing_file",
        paths[4].name: "no_prompts",
        paths[5].name: "bad_prompt",
    }


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_faults_cost_only_themselves(dataset, tmp_path, batch_size):
    fill(dataset, tmp_path, 6)
    expected = spoil(dataset)
    model = session()
    done = compare(dataset, BOXES, session=model, batch_size=batch_size)
    assert done.done == 6 and model.model.encoded == 3
    assert done.failures == dict.fromkeys(expected.values(), 1)
    tags = {Path(s.filepath).name: list(s.tags) for s in dataset}
    assert tags == {
        f"{i}.png": [f"refinesam:{expected[name]}" for name in [f"{i}.png"] if name in expected] for i in range(6)
    }
    for sample in dataset:
        name = Path(sample.filepath).name
        answered = {"0.png": 2, "2.png": 2, "5.png": 2}.get(name, 0)
        assert len(sample[RUN.amr].detections) == len(sample[RUN.baseline].detections) == answered
        for failure in sample[RUN.failures].classifications:
            assert failure.reason and str(tmp_path) not in failure.reason
    sub_pixel = dataset.match({"filepath": {"$regex": "5.png$"}}).first()[RUN.amr].detections[-1]
    assert sub_pixel.label == "dot"


def test_mended_samples_lose_their_tags(dataset, tmp_path):
    fill(dataset, tmp_path, 6)
    expected = spoil(dataset)
    compare(dataset, BOXES, session=session())
    for index, sample in enumerate(dataset):
        if Path(sample.filepath).name not in expected:
            continue
        write_image(Path(sample.filepath), index)
        sample["truth"] = truth()
        sample.save()
    done = compare(dataset, BOXES, session=session())
    assert done.failures == {} and done.done == len(expected)
    assert dataset.count_sample_tags() == {}
    assert dataset.count(f"{RUN.amr}.detections") == 12


def test_a_re_run_changes_nothing_and_encodes_nothing(dataset, tmp_path):
    fill(dataset, tmp_path, 4)
    compare(dataset, BOXES, session=session())
    before, model = stored(dataset), session()
    again = compare(dataset, BOXES, session=model)
    assert (again.done, again.skipped, model.model.encoded) == (0, 4, 0)
    assert stored(dataset) == before
    forced = compare(dataset, BOXES, session=model, resume=False)
    assert forced.done == 4
    assert stored(dataset) == before


@pytest.mark.parametrize("change", ["settings", "image", "prompt"])
def test_what_changed_is_done_again(dataset, tmp_path, change):
    fill(dataset, tmp_path, 3)
    settings = Settings("random-2", truth_field="truth")
    compare(dataset, settings, session=session())
    sample = dataset.first()
    if change == "settings":
        settings = Settings("random-2", truth_field="truth", seed=1)
    elif change == "image":
        write_image(Path(sample.filepath), 40)
    else:
        sample["truth"].detections[0].mask = np.eye(12, 24, dtype=bool)
        sample.save()
    assert compare(dataset, settings, session=session()).done == (3 if change == "settings" else 1)


@pytest.mark.parametrize("prompts", ["boxes", "random-2"])
def test_unchanged_files_elsewhere_are_not_encoded_again(dataset, tmp_path, prompts):
    fill(dataset, tmp_path, 3)
    for index, sample in enumerate(dataset):
        for number, label in enumerate(sample["truth"].detections):
            label.export_mask(str(tmp_path / f"mask_{index}_{number}.png"), update=True)
        sample.save()
    settings = Settings(prompts, prompt_field="truth" if prompts == "boxes" else None, truth_field="truth")
    compare(dataset, settings, session=session())
    (tmp_path / "moved").mkdir()
    for sample in dataset:
        for label in sample["truth"].detections:
            label.mask_path = shutil.copy(label.mask_path, str(tmp_path / "moved"))
        sample.filepath = shutil.copy(sample.filepath, str(tmp_path / "moved"))
        sample.save()
    write_image(Path(dataset.first().filepath), 40)
    model = session()
    again = compare(dataset, settings, session=model)
    assert (again.done, again.skipped, model.model.encoded) == (1, 2, 1)
    assert compare(dataset, settings, session=model).skipped == 3


def test_label_filters_of_a_view_do_not_limit_the_prompts(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    view = dataset.limit(1).filter_labels("truth", fo.ViewField("label") == "cat")
    assert compare(view, BOXES, session=session()).prompts == 2
    assert dataset.last()[RUN.digest] is None


def test_masks_as_files_hold_the_same_masks(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    compare(dataset, BOXES, session=session(), run_key="inline")
    files = Settings("boxes", prompt_field="truth", masks="files", masks_dir=str(tmp_path / "masks"))
    compare(dataset, files, session=session(), run_key="files")
    for sample in dataset:
        for role in ("baseline", "amr", "rejected"):
            a, b = (sample[f"{run}_{role}"].detections for run in ("inline", "files"))
            assert all(label.mask is None and Path(label.mask_path).is_file() for label in b)
            for one, other in zip(a, b, strict=True):
                assert np.array_equal(mask_from_detection(one, HW), mask_from_detection(other, HW))


def test_a_folder_that_cannot_be_written_costs_prompts_not_the_run(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    (tmp_path / "masks").write_text("a file where a folder is needed")
    files = Settings("boxes", prompt_field="truth", masks="files", masks_dir=str(tmp_path / "masks"))
    done = compare(dataset, files, session=session())
    assert done.failures == {"not_stored": 4}
    assert dataset.count(f"{RUN.amr}.detections") == 0


def test_a_document_that_is_too_large_costs_only_its_sample(dataset, tmp_path):
    """MongoDB takes 16 MiB a document, and noise does not compress."""
    fill(dataset, tmp_path, 3)
    declare(target_of(dataset), RUN, RUN.kinds)
    ids = dataset.values("id")
    noise = np.random.default_rng(0).integers(0, 255, (4200, 4200), np.uint8)
    masks = [np.ones((2, 2), bool), noise, np.ones((2, 2), bool)]
    results = [
        SampleResult(sample_id, "digest", amr=[fo.Detection(bounding_box=[0, 0, 1, 1], mask=mask)])
        for sample_id, mask in zip(ids, masks, strict=True)
    ]
    stored_results = list(store(target_of(dataset), RUN, results))
    assert [result.sample_id for result in stored_results] == ids
    assert [len(result.failures) for result in stored_results] == [0, 1, 0]
    assert dataset.match_tags("refinesam:not_stored").values("id") == [ids[1]]
    assert "as files" in dataset[ids[1]][RUN.failures].classifications[0].reason
    assert dataset.values(RUN.digest) == ["digest"] * 3
    assert dataset.count(f"{RUN.amr}.detections") == 2


def test_stopping_and_going_on(dataset, tmp_path):
    fill(dataset, tmp_path, 6)
    seen: list[tuple[int, int]] = []
    done = compare(
        dataset,
        BOXES,
        session=session(),
        batch_size=2,
        on_progress=lambda *progress: seen.append(progress),
        should_stop=lambda: len(seen) == 2,
    )
    assert done.stopped and done.done == 4 and seen == [(2, 6), (4, 6)]
    rest = compare(dataset, BOXES, session=session(), batch_size=2)
    assert not rest.stopped and (rest.done, rest.skipped) == (2, 4)


WORKER = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
import fiftyone as fo
from fakes import FloodModel
from fiftyone_flat import BOXES, HW, fill, session, truth, write_image
from refinesam import Session
from refinesam_fiftyone.sample_result import SampleResult
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.schema import Settings

class Slow(FloodModel):
    def encode(self, image, on_progress=None):
        time.sleep({seconds})
        return super().encode(image, on_progress)

dataset = fo.load_dataset({name!r})
view = dataset[{start}:{stop}]
compare(view, Settings("boxes", prompt_field="truth", truth_field="truth"),
        session=Session(Slow(True, False, None)), batch_size=2, run_key={run!r},
        on_progress=lambda done, total: print(done, flush=True))
"""


@pytest.fixture
def worker(tmp_path):
    """Starts `compare` in a process of its own, on part of a dataset."""
    tests = Path(__file__).resolve().parents[1]
    running = []

    def start(name: str, start: int, stop: int, run: str = "refinesam", seconds: float = 0.0) -> subprocess.Popen:
        paths = [str(tests), str(tests.parent / "fiftyone_plugin")]
        program = WORKER.format(paths=paths, name=name, start=start, stop=stop, run=run, seconds=seconds)
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_killed_run_goes_on_and_equals_an_uninterrupted_one(dataset, tmp_path, worker):
    fill(dataset, tmp_path, 10)
    compare(dataset, BOXES, session=session(), run_key="whole")
    process = worker(dataset.name, 0, 10, seconds=0.1)
    assert process.stdout.readline().strip() == "2", process.stderr.read()
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    dataset.reload()
    finished = len(dataset.exists(RUN.digest))
    assert 2 <= finished < 10
    rest = compare(dataset, BOXES, session=session())
    assert rest.skipped == finished
    killed, whole = stored(dataset), stored(dataset, Fields("whole"))
    assert strip_ids(killed, "refinesam") == strip_ids(whole, "whole")


def strip_ids(values: list, key: str) -> list:
    """Names and label ids have the run's key in them; everything else must be equal."""
    import re

    return [
        re.sub(r"ObjectId\('\w+'\)", "ID", repr(value)).replace(f"{key}_", "RUN_").replace(f"{key}:", "RUN:")
        for value in values
    ]


def test_two_workers_on_two_shards(dataset, tmp_path, worker):
    fill(dataset, tmp_path, 8)
    compare(dataset, BOXES, session=session(), run_key="alone")
    workers = [worker(dataset.name, 0, 4, seconds=0.05), worker(dataset.name, 4, 8, seconds=0.05)]
    for process in workers:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    dataset.reload()
    assert strip_ids(stored(dataset), "refinesam") == strip_ids(stored(dataset, Fields("alone")), "alone")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings("boxes", prompt_field="nowhere"), "does not have"),
        (Settings("boxes", prompt_field="filepath"), "Detections fields: truth"),
        (Settings("keypoints", prompt_field="truth"), "Keypoints"),
        (Settings("random-2", truth_field="tags"), "Detections"),
    ],
)
def test_fields_of_another_kind_are_refused_before_anything_is_written(dataset, tmp_path, settings, says):
    fill(dataset, tmp_path, 1)
    before = set(dataset.get_field_schema())
    with pytest.raises(ConfigError, match=says):
        compare(dataset, settings, session=session())
    assert set(dataset.get_field_schema()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompts": "words"},
        {"prompts": "boxes"},
        {"prompts": "random-2"},
        {"prompts": "everything", "amr": "magic"},
        {"prompts": "everything", "masks": "files"},
        {"prompts": "everything", "masks": "cloud"},
        {"prompts": "everything", "seed": -1},
        {"prompts": "everything", "seed": True},
    ],
)
def test_bad_settings_are_refused(arguments):
    with pytest.raises(ConfigError):
        Settings(**arguments)


@pytest.mark.parametrize("key", ["", "Big", "1st", "with space", "a.b", "a-b", 3])
def test_bad_run_keys_are_refused(key):
    with pytest.raises(ConfigError, match="key"):
        Fields(key)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_bad_batch_sizes_are_refused(dataset, tmp_path, batch_size):
    fill(dataset, tmp_path, 1)
    with pytest.raises(ConfigError, match="batch_size"):
        compare(dataset, BOXES, session=session(), batch_size=batch_size)


def test_videos_are_refused(dataset):
    dataset.add_sample(fo.Sample("a.mp4"))
    with pytest.raises(DatasetError, match="video"):
        compare(dataset, Settings("everything"), session=session())


def test_another_tools_run_is_not_overwritten(dataset, tmp_path):
    fill(dataset, tmp_path, 1)
    dataset.register_run("refinesam", dataset.init_run(kind="other"))
    with pytest.raises(ConfigError, match="another"):
        compare(dataset, BOXES, session=session())
