"""Evaluation: annotation files, read, refused or reported, never a crash."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation_fakes import HEIGHT, WIDTH, BoxFiller, annotation, coco, rectangle, write_folder
from refinesam.errors import DatasetError
from refinesam.evaluation.dataset import read_coco_folder
from refinesam.evaluation.protocols import evaluate


def test_a_folder_is_read_in_the_files_order(tmp_path: Path) -> None:
    crowd = annotation(5, rectangle(0, 0, 9, 9), image_id=3, iscrowd=1)
    content = coco(
        [annotation(7, rectangle(0, 0, 2, 3), 2, 2), annotation(4, rectangle(1, 1, 3, 3), 2), crowd], images=3
    )
    content["images"].reverse()
    folder = write_folder(tmp_path, content)
    assert [image.image_id for image in folder.images] == [3, 2], "image 1 has no object"
    assert [one.annotation_id for one in folder.images[1].objects] == [7, 4]
    assert folder.categories == {1: "cell", 2: "cat"}
    first = folder.images[1].objects[0]
    assert (first.bbox_xywh, first.area, first.is_crowd, first.category_id) == ((0, 0, 2, 3), 6, False, 2)
    image = folder.images[1]
    assert (image.height, image.width, image.path) == (HEIGHT, WIDTH, tmp_path / "images" / "2.png")
    assert [image.image_id for image in folder.without_crowds().images] == [2]


def test_what_coco_leaves_optional_may_be_missing(tmp_path: Path) -> None:
    one = annotation(1, rectangle(0, 0, 2, 3), category_id=17, iscrowd=True)
    del one["area"]
    content = coco([one])
    del content["categories"]
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    folder = read_coco_folder(str(tmp_path / "a.json"), str(tmp_path))
    assert (folder.images[0].objects[0].area, folder.images[0].objects[0].is_crowd, folder.categories) == (6, True, {})
    content["categories"] = [{"id": 17}]
    (tmp_path / "a.json").write_text(json.dumps(content), "utf-8")
    assert read_coco_folder(tmp_path / "a.json", tmp_path).categories == {17: "17"}


def test_a_file_name_may_lie_in_a_folder_inside(tmp_path: Path) -> None:
    content = coco([annotation(1, rectangle(0, 0, 2, 3))])
    content["images"][0]["file_name"] = "train/a/../1.png"
    (tmp_path / "a.json").write_text(json.dumps(content), "utf-8")
    assert read_coco_folder(tmp_path / "a.json", tmp_path).images[0].path == tmp_path / "train/a/../1.png"


REMOVED = object()

# Where in a good file, what to put there, what the message must name.
BAD_FIELDS: list[tuple[tuple[str | int, ...], Any, str]] = [
    ((), [], "'images' and 'annotations'"),
    ((), None, "'images' and 'annotations'"),
    (("images",), REMOVED, "'images' and 'annotations'"),
    (("images",), {"1": {}}, "'images' and 'annotations'"),
    (("annotations",), REMOVED, "'images' and 'annotations'"),
    (("annotations",), "none", "'images' and 'annotations'"),
    (("images", 0), "1.png", "images[0] must be an object"),
    (("images", 0, "id"), REMOVED, "images[0].id must be int, got nothing"),
    (("images", 0, "id"), "1", "images[0].id must be int"),
    (("images", 0, "id"), True, "images[0].id must be int"),
    (("images", 0, "id"), 1.0, "images[0].id must be int"),
    (("images", 1, "id"), 1, "images[1].id 1 is also that of images[0]"),
    (("images", 0, "file_name"), REMOVED, "images[0].file_name must be str"),
    (("images", 0, "file_name"), 7, "images[0].file_name must be str"),
    (("images", 0, "file_name"), "", "images[0].file_name"),
    (("images", 0, "file_name"), ".", "images[0].file_name"),
    (("images", 0, "file_name"), "../secret.png", "leads out of the image folder"),
    (("images", 0, "file_name"), "/etc/hostname", "leads out of the image folder"),
    (("images", 0, "file_name"), "a/../../b.png", "leads out of the image folder"),
    (("images", 0, "file_name"), "1.png\0", "images[0].file_name"),
    (("images", 0, "file_name"), "\ud800.png", "images[0].file_name"),
    (("images", 0, "height"), REMOVED, "images[0].height must be int"),
    (("images", 0, "height"), "10", "images[0].height must be int"),
    (("images", 0, "width"), 20.5, "images[0].width must be int"),
    (("images", 0, "width"), 0, "images[0] has height 10 and width 0"),
    (("images", 1, "height"), -10, "images[1] has height -10"),
    (("annotations", 1), [1, 2], "annotations[1] must be an object"),
    (("annotations", 0, "id"), REMOVED, "annotations[0].id must be int"),
    (("annotations", 0, "id"), False, "annotations[0].id must be int"),
    (("annotations", 0, "id"), -1, "annotations[0].id must be 0 or more"),
    (("annotations", 1, "id"), 1, "annotations[1].id 1 is also that of annotations[0]"),
    (("annotations", 1, "image_id"), 9, "annotations[1].image_id 9 is not the id"),
    (("annotations", 0, "image_id"), REMOVED, "annotations[0].image_id must be int"),
    (("annotations", 0, "image_id"), [1], "annotations[0].image_id must be int"),
    (("annotations", 0, "category_id"), REMOVED, "annotations[0].category_id must be int"),
    (("annotations", 0, "category_id"), "cell", "annotations[0].category_id must be int"),
    (("annotations", 1, "category_id"), 3, "annotations[1].category_id 3 is not the id"),
    (("annotations", 0, "segmentation"), REMOVED, "annotations[0].segmentation must be list or dict, got nothing"),
    (("annotations", 0, "segmentation"), "1 2 3 4", "annotations[0].segmentation must be list or dict"),
    (("annotations", 0, "segmentation"), None, "annotations[0].segmentation must be list or dict, got None"),
    (("annotations", 0, "bbox"), REMOVED, "annotations[0].bbox must be list"),
    (("annotations", 0, "bbox"), {"x": 1}, "annotations[0].bbox must be list"),
    (("annotations", 0, "bbox"), [1, 2, 3], "annotations[0].bbox must be four"),
    (("annotations", 0, "bbox"), [1, 2, 3, "4"], "annotations[0].bbox must be four"),
    (("annotations", 0, "bbox"), [1, 2, 3, math.nan], "annotations[0].bbox must be four finite"),
    (("annotations", 0, "bbox"), [1, 2, 3, math.inf], "annotations[0].bbox must be four finite"),
    (("annotations", 0, "bbox"), [1, 2, 3, 10**400], "annotations[0].bbox must be four finite"),
    (("annotations", 0, "bbox"), [1, 2, True, 4], "annotations[0].bbox must be four finite"),
    (("annotations", 0, "bbox"), [1, 2, -3, 4], "annotations[0].bbox must be four finite"),
    (("annotations", 0, "area"), "12", "annotations[0].area"),
    (("annotations", 0, "area"), None, "annotations[0].area"),
    (("annotations", 0, "area"), math.nan, "annotations[0].area"),
    (("annotations", 0, "area"), -4, "annotations[0].area"),
    (("annotations", 0, "iscrowd"), "no", "annotations[0].iscrowd must be 0 or 1"),
    (("annotations", 0, "iscrowd"), 2, "annotations[0].iscrowd must be 0 or 1"),
    (("annotations", 0, "iscrowd"), None, "annotations[0].iscrowd must be 0 or 1"),
    (("categories",), {"1": "cell"}, "categories must be a list"),
    (("categories",), None, "categories must be a list"),
    (("categories", 0), "cell", "categories[0] must be an object"),
    (("categories", 0, "id"), REMOVED, "categories[0].id must be int"),
    (("categories", 1, "id"), 1, "categories[1].id 1 is also that of categories[0]"),
    (("categories", 0, "name"), ["cell"], "categories[0].name must be str"),
]


def replaced(content: Any, place: tuple[str | int, ...], value: Any) -> Any:
    if not place:
        return value
    content = content.copy()
    if value is REMOVED and len(place) == 1:
        del content[place[0]]
    else:
        content[place[0]] = replaced(content[place[0]], place[1:], value)
    return content


def good_content() -> dict:
    return coco([annotation(1, rectangle(0, 0, 2, 3)), annotation(2, rectangle(1, 1, 3, 3), 2, 2)], images=2)


@pytest.mark.parametrize(
    ("place", "value", "named"), BAD_FIELDS, ids=[f"{i}-{'.'.join(map(str, b[0]))}" for i, b in enumerate(BAD_FIELDS)]
)
def test_a_bad_field_is_named(place: tuple[str | int, ...], value: Any, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(replaced(good_content(), place, value)), "utf-8")
    if len(place) < 2:
        with pytest.raises(DatasetError) as caught:
            read_coco_folder(path, tmp_path)
        told = [str(caught.value)]
    else:
        folder = read_coco_folder(path, tmp_path)
        told = [record.reason for record in folder.damaged]
        assert sum(len(image.objects) for image in folder.images) == 1, "the other object is left"
        (failure, *_) = evaluate(BoxFiller(), folder, "box").failures
        assert (failure.file_name, failure.objects) == ("a.json", int(place[0] == "annotations"))
        assert named in failure.reason and str(tmp_path) not in failure.reason
    assert any(named in reason for reason in told)
    assert all(str(path) in reason for reason in told), "the file is named too"
    assert all(len(reason) < 500 + len(str(path)) for reason in told)


def test_damaged_records_are_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = coco([annotation(i, rectangle(0, 0, 2, 3)) for i in range(30)])
    for one in content["annotations"][:25]:
        del one["bbox"]
    (tmp_path / "a.json").write_text(json.dumps(content), "utf-8")
    folder = read_coco_folder(tmp_path / "a.json", tmp_path)
    assert [record.index for record in folder.damaged] == list(range(25))
    (logged,) = caplog.messages
    assert "25 damaged records" in logged and "annotations[0].bbox" in logged and "and 5 more" in logged
    content["annotations"] = content["annotations"][:25]
    (tmp_path / "a.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(DatasetError, match=r"25 damaged records: .*annotations\[19\].*and 5 more; correct them"):
        read_coco_folder(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is not JSON"),
        (b"   \n", "is not JSON"),
        (b'{"images": [', "is not JSON"),
        (b"<xml/>", "is not JSON"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8"),
        ('{"images": [], "annotations": []}'.encode("utf-16"), "is not UTF-8"),
        (b'{"images": ["\xe9"]}', "is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_a_file_that_is_no_json_is_refused(content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DatasetError, match=named):
        read_coco_folder(tmp_path / "a.json", tmp_path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Cannot read .*nowhere\.json"):
        read_coco_folder(tmp_path / "nowhere.json", tmp_path)
    with pytest.raises(DatasetError, match="Cannot read"):
        read_coco_folder(tmp_path, tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(good_content()), "utf-8")
    with pytest.raises(DatasetError, match=r"no image folder .*pictures"):
        read_coco_folder(tmp_path / "a.json", tmp_path / "pictures")
    with pytest.raises(DatasetError, match="no image folder"):
        read_coco_folder(tmp_path / "a.json", tmp_path / "a.json")


def test_a_link_that_leads_out_or_round_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "a.json").write_text(json.dumps(coco([annotation(1, rectangle(0, 0, 2, 3))])), "utf-8")
    with pytest.raises(DatasetError, match="leads out"):
        read_coco_folder(tmp_path / "a.json", tmp_path / "images")
    (tmp_path / "images" / "1.png").unlink()
    (tmp_path / "images" / "1.png").symlink_to("1.png")
    # Python before 3.13 reports the loop here, later ones when the image is read.
    try:
        folder = read_coco_folder(tmp_path / "a.json", tmp_path / "images")
    except DatasetError:
        return
    assert evaluate(BoxFiller(), folder, "box").failures


def places(content: Any, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [prefix, *(place for key, value in items for place in places(value, (*prefix, key)))]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(REMOVED),
    lambda inner: (
        st.lists(inner.filter(lambda v: v is not REMOVED), max_size=4)
        | st.dictionaries(st.sampled_from(["id", "name", "size", "counts"]), inner.filter(lambda v: v is not REMOVED))
    ),
    max_leaves=5,
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(places(good_content())[1:]), value=JSON_VALUES)
def test_any_damage_is_read_reported_or_named_never_a_crash(
    place: tuple[str | int, ...], value: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(replaced(good_content(), place, value)), "utf-8")
    try:
        folder = read_coco_folder(tmp_path / "a.json", tmp_path)
    except DatasetError:
        return
    if folder.without_crowds().images:
        result = evaluate(BoxFiller(), folder, "box")
        assert not result.records, "there are no image files"
        assert len(result.failures) == len(folder.without_crowds().images) + len(folder.damaged)
