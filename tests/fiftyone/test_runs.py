"""What a run made is deleted, and nothing else: fields, attributes, views, tags and files that are the user's stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fiftyone as fo
import fiftyone.operators as foo
import numpy as np
import pytest
from fiftyone.operators.executor import ExecutionContext, Executor

from fiftyone_flat import BOXES, documents, fill, session
from refinesam import ConfigError
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.deletion import contents, delete_run
from refinesam_fiftyone.evaluation import evaluate
from refinesam_fiftyone.files import file_name
from refinesam_fiftyone.ranking import rank
from refinesam_fiftyone.rows import read_rows
from refinesam_fiftyone.runs import list_runs
from refinesam_fiftyone.schema import Fields
from refinesam_fiftyone.views import save_views

KEY = "boxes"
RUN = Fields(KEY)


def run_all(dataset, settings=BOXES) -> None:
    compare(dataset, settings, run_key=KEY, session=session())
    evaluate(dataset, run_key=KEY)
    save_views(dataset, run_key=KEY)
    rank(dataset, run_key=KEY)


def add_what_the_user_has(dataset) -> None:
    """Fields, attributes, views and tags whose names start as the run's do."""
    ids = dataset.values("id")
    dataset.set_values("boxes_reviewed", dict.fromkeys(ids, True), key_field="id")
    dataset.set_values("boxes_2023", [one.copy() for one in dataset.values("truth")])
    dataset.set_values("truth.detections.boxes_owner", [["Ada", "Bob"]] * len(ids))
    dataset.add_dynamic_sample_fields(fields=["truth", "boxes_2023"])
    dataset.save_view("boxes: worst", dataset.limit(1))
    dataset.tag_samples("boxes:mine")


def schema(dataset) -> set[str]:
    return set(dataset.get_field_schema(flat=True))


def form(name: str, dataset, params: dict):
    request = {"dataset_name": dataset.name, "params": params}
    ctx = ExecutionContext(request, executor=Executor(), operator_uri="@refinesam/amr/compare")
    found = foo.get_operator(f"@refinesam/amr/{name}").resolve_type(ctx, "inputs").to_json()
    return found["type"]["properties"]


def forget_marks(dataset, run: Fields) -> None:
    """Make the run one of the version that marked nothing and noted its settings alone."""
    for path in schema(dataset):
        field = dataset.get_field(path)
        if (getattr(field, "info", None) or {}).get("refinesam", {}).get("run") == run.key:
            field.info = None
            field.save()
    digests = dict.fromkeys(dataset.values("id"), "0123456789abcdef0123456789abcdef")
    dataset.set_values(run.digest, digests, key_field="id")
    settings = dataset.get_run_info(run.key).config.settings
    dataset.update_run_config(run.key, dataset.init_run(kind="refinesam", settings=settings))


@pytest.mark.parametrize("marked", [True, False])
def test_deleting_a_run_leaves_the_dataset_as_it_was(dataset, tmp_path, marked):
    fill(dataset, tmp_path, 3)
    dataset.add_sample(fo.Sample(str(tmp_path / "missing.png"), truth=fo.Detections()))
    add_what_the_user_has(dataset)
    before, names, views = documents(dataset), schema(dataset), dataset.list_saved_views()
    run_all(dataset)
    assert dataset.count_sample_tags()["boxes:no_prompts"] == 1
    if not marked:
        forget_marks(dataset, RUN)

    found = delete_run(dataset, RUN)

    assert {RUN.rank, "boxes_worst_delta", *RUN.written} <= set(found.fields)
    assert (list_runs(dataset), dataset.list_saved_views()) == ([], views)
    assert schema(dataset) == names
    assert documents(dataset) == before


def test_two_runs_of_which_one_has_the_others_name_in_its_own(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    run_all(dataset)
    alone, names = documents(dataset), schema(dataset)
    for key in ("boxes_2", "boxes_amr"):
        compare(dataset, BOXES, run_key=key, session=session())
        evaluate(dataset, run_key=key)
        delete_run(dataset, Fields(key))
    assert list_runs(dataset) == [KEY]
    assert (documents(dataset), schema(dataset)) == (alone, names)


def test_an_old_run_keeps_what_may_be_the_users(dataset, tmp_path):
    """The old version wrote over fields of its names; what else is in them may be somebody's work."""
    fill(dataset, tmp_path, 3)
    run_all(dataset)
    forget_marks(dataset, RUN)
    own = dataset.first()
    own[RUN.rejected] = fo.Detections(detections=[fo.Detection(label="mine", bounding_box=[0, 0, 1, 1])])
    own.save()
    dataset.delete_sample_field("boxes_objects")
    dataset._doc.reload()
    field = dataset.get_field("boxes_failed")
    field_doc = next(one for one in dataset._doc.sample_fields if one.name == "boxes_failed")
    field_doc.created_at = field.created_at.replace(year=2020)
    dataset._doc.save()
    dataset._reload(hard=True)

    found = delete_run(dataset, RUN)

    left = {name for name in dataset.get_field_schema() if name.startswith("boxes_")}
    assert left == {RUN.rejected, "boxes_failed"}
    assert {text.split("`")[1] for text in found.stays} >= left
    assert dataset.first()[RUN.rejected].detections[0].label == "mine"
    assert list_runs(dataset) == []


def test_a_view_that_somebody_saved_under_the_runs_name_stays(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    dataset.save_view("boxes: AMR hurt", dataset.limit(1), description="my own")
    run_all(dataset)
    assert len(dataset.load_saved_view("boxes: AMR hurt")) == 1
    dataset.update_saved_view_info("boxes: failures", {"name": "what failed"})
    found = delete_run(dataset, RUN)
    assert dataset.list_saved_views() == ["boxes: AMR hurt", "what failed"]
    assert any("boxes: AMR hurt" in one for one in found.stays)


def test_the_form_lists_what_is_deleted_before_it_is(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    add_what_the_user_has(dataset)
    run_all(dataset, replace(BOXES, masks="files", masks_dir=str(tmp_path / "masks")))
    dataset.set_values(f"{RUN.amr}.detections.checked", [[True, True]] * 2)
    dataset.add_dynamic_sample_fields(fields=[RUN.amr])
    drawn = dataset.first()
    drawn[RUN.rejected].detections.append(fo.Detection(label="mine", bounding_box=[0, 0, 1, 1]))
    drawn.save()
    text = form("delete_run", dataset, {"run_key": KEY})["contents"]["default"]
    listed = set(text.replace(",", " ").replace("`", " ").split())
    expected = contents(dataset, RUN)
    assert {*expected.fields, *expected.attributes} <= listed
    assert f"Mask files: {len(expected.files)} in" in text and len(expected.files) >= 8
    assert expected.added == [f"`{RUN.amr}.detections.checked`", f"1 labels in `{RUN.rejected}`"]
    assert all(one in text for one in expected.added)
    assert not {"boxes_reviewed", "boxes_2023", "truth.detections.boxes_owner"} & listed


@pytest.mark.parametrize("change", ["one sample", "all settings"])
def test_what_was_drawn_into_the_runs_fields_outlives_new_answers(dataset, tmp_path, change):
    fill(dataset, tmp_path, 2)
    run_all(dataset)
    sample = dataset.first()
    for name in (RUN.baseline, RUN.amr):
        mask = np.ones((4, 4), bool)
        sample[name].detections.append(fo.Detection(label="mine", bounding_box=[0, 0, 0.1, 0.1], mask=mask))
    if change == "one sample":
        sample[RUN.amr].detections[1].tags = ["check"]
        sample["truth"].detections[0].bounding_box = [0.1, 0.1, 0.3, 0.2]
    sample.save()
    settings = BOXES if change == "one sample" else replace(BOXES, amr="fast")
    done = compare(dataset, settings, run_key=KEY, session=session())
    assert done.done == (1 if change == "one sample" else 2)
    found = evaluate(dataset, run_key=KEY)
    assert (found.objects, found.unpaired, len(read_rows(dataset, KEY))) == (4, 0, 4)
    for name in (RUN.baseline, RUN.amr):
        labels = dataset.first()[name].detections
        assert [one.label for one in labels] == ["cat", "dog", "mine"] and labels[-1].mask.shape == (4, 4)
    tags = [one.tags for one in dataset.first()[RUN.amr].detections]
    assert tags == ([[], ["check"], []] if change == "one sample" else [[], [], []])


def test_a_run_whose_record_was_renamed_says_so_and_is_deleted(dataset, tmp_path):
    fill(dataset, tmp_path, 1)
    names = schema(dataset)
    run_all(dataset)
    dataset.rename_run(KEY, "final")
    for act in (
        lambda: read_rows(dataset, "final"),
        lambda: evaluate(dataset, run_key="final"),
        lambda: compare(dataset, BOXES, run_key="final", session=session()),
    ):
        with pytest.raises(ConfigError, match="rename it back"):
            act()
    delete_run(dataset, Fields("final"))
    assert (schema(dataset), list_runs(dataset), dataset.list_saved_views()) == (names, [], [])


def masks_of(dataset, name: str) -> list[Path]:
    return [Path(one) for one in dataset.values(f"{name}.detections.mask_path", unwind=True)]


def test_files_go_with_the_run_unless_other_labels_use_them(dataset, tmp_path):
    """A copy of the run's field, made by the user, and a clone of the dataset keep their masks."""
    fill(dataset, tmp_path, 2)
    folder = tmp_path / "masks"
    run_all(dataset, replace(BOXES, masks="files", masks_dir=str(folder)))
    dataset.select(dataset.first().id).clone_sample_field(RUN.baseline, "kept")
    clone = dataset.clone()
    clone.delete_sample_fields([RUN.baseline, RUN.rejected, "kept"])
    kept, cloned, gone = masks_of(dataset, "kept"), masks_of(clone, RUN.amr), masks_of(dataset, RUN.baseline)[2:]
    own = kept[0].parent / "notes.txt"
    own.write_text("mine")
    assert len(kept) == 2 and len(cloned) == 4

    found = delete_run(dataset, RUN)

    assert all(file.is_file() for file in (*kept, *cloned, own))
    assert {*gone} <= {*found.files} and not any(file.exists() for file in found.files)
    assert any("other labels use" in one for one in found.stays)
    delete_run(clone, RUN)
    assert all(file.is_file() for file in cloned), "the clone's run never wrote them"
    clone.delete()


def test_without_copies_no_file_and_no_folder_stays(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    (tmp_path / "masks").mkdir()
    run_all(dataset, replace(BOXES, masks="files", masks_dir=str(tmp_path / "masks")))
    # As of the 10,001st object of an image without prompts.
    for file in masks_of(dataset, RUN.amr):
        file.rename(file.with_name(file_name(f"{file.parent.name}-10000", "amr", np.ones((2, 2), bool))))
    # Whoever deletes the field first still gets rid of its files.
    dataset.delete_sample_field(RUN.amr)
    delete_run(dataset, RUN)
    assert list((tmp_path / "masks").iterdir()) == []


def test_masks_of_old_files_stay(dataset, tmp_path):
    """The old version noted no files, and shared them with every dataset of the same folder."""
    fill(dataset, tmp_path, 1)
    run_all(dataset, replace(BOXES, masks="files", masks_dir=str(tmp_path / "masks")))
    files = masks_of(dataset, RUN.amr)
    forget_marks(dataset, RUN)
    found = delete_run(dataset, RUN)
    assert all(file.is_file() for file in files)
    assert any("an earlier version" in one for one in found.stays)


def test_an_old_run_goes_on_and_is_marked(dataset, tmp_path):
    fill(dataset, tmp_path, 2)
    run_all(dataset)
    forget_marks(dataset, RUN)
    compare(dataset, BOXES, run_key=KEY, session=session())
    evaluate(dataset, run_key=KEY)
    assert np.isfinite(dataset.values("boxes_mean_delta")).all()
    assert (dataset.get_field("truth.detections.boxes_bucket").info or {})["refinesam"]["run"] == KEY
    delete_run(dataset, RUN)
    assert not [name for name in schema(dataset) if "boxes" in name and name != RUN.rank]
