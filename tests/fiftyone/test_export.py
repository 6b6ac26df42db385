"""Results out of the database: tables, COCO documents, tags, datasets side by side."""

from __future__ import annotations

import importlib.util
import json

import fiftyone as fo
import numpy as np
import pandas as pd
import pytest
from fiftyone import ViewField as F
from pycocotools.coco import COCO

from fiftyone_flat import BOXES, HW, fill, session
from fiftyone_planted import TRUTH_FIELD, plant
from refinesam import ConfigError, MissingExtraError, decode_rle
from refinesam_fiftyone.compare import compare
from refinesam_fiftyone.export import compare_datasets, export_coco, export_rows, tag_for_relabelling
from refinesam_fiftyone.labels import mask_from_detection
from refinesam_fiftyone.rows import read_rows
from refinesam_fiftyone.schema import Fields, Settings

RUN = Fields()


def test_tables_hold_the_rows(judged, tmp_path):
    rows = read_rows(judged.dataset)
    path = export_rows(judged.dataset, tmp_path / "new" / "rows.csv")
    read = pd.read_csv(path, dtype={"truth_id": str})
    assert list(read.columns) == list(rows.columns) and len(read) == 62
    np.testing.assert_array_equal(read["amr_iou"], rows["amr_iou"])
    assert read["prompt_id"].astype(str).tolist() == rows["prompt_id"].tolist()
    path = export_rows(judged.dataset, tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path).astype(rows.dtypes), rows)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["new", "rows.parquet"]


def test_a_view_exports_its_rows(judged, tmp_path):
    view = judged.dataset.filter_labels(RUN.amr, F("bucket") == "amr_hurt")
    assert len(pd.read_csv(export_rows(view, tmp_path / "hurt.csv"))) == judged.buckets["amr_hurt"]


def test_parquet_without_pyarrow_names_the_extra(judged, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "refinesam_fiftyone.export.find_spec", lambda name: None if name == "pyarrow" else find_spec(name)
    )
    with pytest.raises(MissingExtraError, match=r"pyarrow .*refinesam\[fiftyone\]"):
        export_rows(judged.dataset, tmp_path / "rows.parquet")
    assert not list(tmp_path.iterdir())


def test_other_kinds_of_files_are_refused_and_a_full_disk_leaves_the_old_file(judged, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="rows.xlsx .*csv or .parquet"):
        export_rows(judged.dataset, tmp_path / "rows.xlsx")
    path = tmp_path / "rows.csv"
    path.write_text("old")

    def full(self, *args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="No space"):
        export_rows(judged.dataset, path)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("masks", ["baseline", "amr"])
def test_coco_documents_hold_the_masks(judged, tmp_path, masks):
    found = export_coco(judged.dataset, tmp_path / "masks.json", masks=masks)
    empty = sum(not getattr(one, masks).any() for one in judged.expected.values())
    assert (found.images, found.annotations, found.empty, found.unreadable) == (6, 62 - empty, empty, 0)
    document = json.loads((tmp_path / "masks.json").read_text())
    names = {one["id"]: one["name"] for one in document["categories"]}
    images = {one["id"]: one for one in document["images"]}
    for one in document["annotations"]:
        expected = judged.expected[one["prompt_id"]]
        np.testing.assert_array_equal(decode_rle(one["segmentation"]), getattr(expected, masks))
        assert names[one["category_id"]] == expected.label
        assert images[one["image_id"]]["file_name"] == f"image_{expected.sample}.png"
        assert 0 <= one["score"] <= 1
    assert len(COCO(str(tmp_path / "masks.json")).getAnnIds()) == found.annotations


# Of pycocotools, with a numpy that is newer than it is.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("rel_dir", [None, "."])
def test_fiftyones_importer_reads_the_document_back_from_sub_folders(tmp_path, dataset, rel_dir):
    """Train and test have an image of the same name each, as many datasets do."""
    for part in ("train/a", "test/a", "test/b"):
        folder = tmp_path / "images" / part
        folder.mkdir(parents=True)
        fill(dataset, folder, 2)
    compare(dataset, BOXES, session=session())
    wanted = None if rel_dir is None else tmp_path
    found = export_coco(dataset, tmp_path / "masks.json", rel_dir=wanted)
    assert found.folder == (wanted or tmp_path / "images") and found.images == 6
    imported = fo.Dataset.from_dir(
        dataset_type=fo.types.COCODetectionDataset,
        data_path=str(found.folder),
        labels_path=str(found.path),
        label_types="segmentations",
        include_id=True,
    )
    originals = {one.filepath: one for one in dataset}
    assert sorted(imported.values("filepath")) == sorted(originals)
    name = imported.get_field_schema(embedded_doc_type=fo.Detections).keys()
    for sample in imported:
        theirs = sample[next(iter(name))].detections
        ours = originals[sample.filepath]["refinesam_amr"].detections
        assert [one.label for one in theirs] == [one.label for one in ours]
        for one, other in zip(theirs, ours, strict=True):
            assert np.array_equal(mask_from_detection(one, HW), mask_from_detection(other, HW))
    imported.delete()


def test_an_image_outside_the_folder_is_refused(judged, tmp_path):
    with pytest.raises(ConfigError, match="give a folder above"):
        export_coco(judged.dataset, tmp_path / "masks.json", rel_dir=tmp_path)


def test_other_masks_are_refused(judged, tmp_path):
    with pytest.raises(ConfigError, match="choose baseline or amr"):
        export_coco(judged.dataset, tmp_path / "masks.json", masks="rejected")


def test_unreadable_masks_are_counted_and_cost_only_themselves(tmp_path):
    planted = plant("damaged-export", tmp_path, samples=2)
    prompt_id = next(name for name, one in planted.expected.items() if one.sample == 1)
    (tmp_path / "damaged-export" / "masks" / f"{prompt_id}_amr.png").unlink()
    found = export_coco(planted.dataset, tmp_path / "masks.json")
    assert (found.unreadable, found.annotations) == (1, 21 - found.empty)
    planted.dataset.delete()


def test_the_worst_objects_are_tagged_on_labels_and_samples(own):
    rows = read_rows(own.dataset).sort_values("amr_iou", kind="stable").head(7)
    found = tag_for_relabelling(own.dataset, worst=7)
    assert (found.objects, found.samples) == (7, rows["sample_id"].nunique())
    tagged = own.dataset.match_tags("relabel")
    assert set(tagged.values("id")) == set(rows["sample_id"])
    for field, column in ((RUN.amr, "amr_id"), (TRUTH_FIELD, "truth_id")):
        view = own.dataset.select_labels(tags="relabel", fields=field)
        assert set(view.values(f"{field}.detections.id", unwind=True)) == set(rows[column])
    assert own.dataset.count_label_tags() == {"relabel": 14}


def test_a_bucket_is_tagged_and_the_worst_of_it(own):
    assert tag_for_relabelling(own.dataset, bucket="amr_hurt", tag="look").objects == own.buckets["amr_hurt"]
    tagged = own.dataset.select_labels(tags="look", fields=RUN.amr)
    assert tagged.count_values(f"{RUN.amr}.detections.bucket") == {"amr_hurt": own.buckets["amr_hurt"]}
    found = tag_for_relabelling(own.dataset.limit(1), bucket="amr_hurt", worst=1, tag="one")
    assert (found.objects, found.samples) == (1, 1)
    (iou,) = own.dataset.select_labels(tags="one", fields=RUN.amr).values(f"{RUN.amr}.detections.iou", unwind=True)
    assert iou == min(one.amr_iou for one in own.expected.values() if one.bucket == "amr_hurt" and not one.sample)


def test_without_evaluation_the_ranking_says_what_is_worst(tmp_path):
    settings = Settings("boxes", prompt_field=TRUTH_FIELD)
    planted = plant("bare-export", tmp_path, samples=2, settings=settings)
    assert tag_for_relabelling(planted.dataset, worst=2).objects == 2
    assert planted.dataset.count_label_tags() == {"relabel": 2}
    assert planted.dataset.match_tags("relabel").bounds("refinesam_rank")[0] == 1
    assert tag_for_relabelling(planted.dataset, bucket="amr_hurt").objects == 0
    planted.dataset.delete()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "how many"),
        ({"worst": 0}, "at least 1"),
        ({"worst": True}, "at least 1"),
        ({"bucket": "bad"}, "choose one of"),
        ({"worst": 1, "tag": " "}, "tag is empty"),
        ({"worst": 1, "run_key": "other"}, "no run"),
    ],
)
def test_tags_that_make_no_sense_are_refused(judged, arguments, says):
    with pytest.raises(ConfigError, match=says):
        tag_for_relabelling(judged.dataset, **arguments)


def test_datasets_stand_side_by_side(judged, own, tmp_path):
    own.dataset.delete_samples(own.dataset.skip(2).values("id"))
    table = compare_datasets(["judged", "own"])
    assert list(table.index) == ["judged", "own"]
    assert table["n"].tolist() == [62, 22]
    mean = np.mean([one.amr_iou for one in judged.expected.values() if one.sample < 2])
    assert table.loc["own", "amr_iou"] == pytest.approx(mean)
    assert (table.loc["judged", "weights"], table.loc["judged", "prompts"]) == ("builtin", "boxes")
    assert len(compare_datasets([])) == 0
    with pytest.raises(ConfigError, match="no dataset nowhere"):
        compare_datasets(["judged", "nowhere"])
    with pytest.raises(ConfigError, match="no run 'other'"):
        compare_datasets(["judged"], "other")
