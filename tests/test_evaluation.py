"""Evaluation: annotation files, prompts by protocol, mIoU by hand, failures that cost only themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation_fakes import HEIGHT, WIDTH, BoxFiller, BoxFillerImage, annotation, coco, rectangle, write_folder
from refinesam.amr import AMRConfig
from refinesam.errors import ConfigError, DatasetError, ImageError, PromptError
from refinesam.evaluation import metrics
from refinesam.evaluation.dataset import CocoFolder, read_coco_folder
from refinesam.evaluation.metrics import bootstrap_interval, paired_change, size_of
from refinesam.evaluation.protocols import PROTOCOLS, evaluate, prompt_for
from refinesam.evaluation.report import Evaluation, ObjectRecord, mean_over_sources
from refinesam.images import write_png
from refinesam.session import Session
from refinesam.types import Capabilities, Prediction, Prompt

# ---------------------------------------------------------------- reading annotation files


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
    with pytest.raises(DatasetError) as caught:
        read_coco_folder(path, tmp_path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value), "the file is named too"
    assert len(str(caught.value)) < 500 + len(str(path))


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
        assert len(result.failures) == len(folder.without_crowds().images)


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("area", "size"),
    [(1, "small"), (1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (10**7, "large")],
)
def test_sizes_are_cocos(area: int, size: str) -> None:
    assert size_of(area) == size


VALUES = [[0.1, 0.4, 0.3], [0.9], [], [0.5, 0.2], [0.0, 0.7, 0.6, 0.8]]


def naive_interval(values_by_image: list[list[float]], resamples: int, seed: int) -> tuple[float, float]:
    """Efron's percentile bootstrap of a mean, images drawn with replacement, written out."""
    rng = np.random.default_rng(seed)
    images = [values for values in values_by_image if values]
    means = []
    for _ in range(resamples):
        drawn = [images[i] for i in rng.integers(len(images), size=len(images))]
        pooled = [value for values in drawn for value in values]
        means.append(sum(pooled) / len(pooled))
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


@pytest.mark.parametrize("draws_at_once", [4_000_000, 100, 1])
def test_bootstrap_equals_the_naive_loop(draws_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", draws_at_once)
    interval = bootstrap_interval(VALUES, resamples=400, seed=3)
    assert interval == pytest.approx(naive_interval(VALUES, 400, 3), abs=1e-12)
    assert bootstrap_interval(VALUES, resamples=400, seed=4) != interval


def test_bootstrap_draws_images_not_objects() -> None:
    # Two images, all objects of one alike: a resample's mean is 0, 1/2 or 1, however many objects there are.
    assert bootstrap_interval([[0.0] * 500, [1.0] * 500]) == (0.0, 1.0)
    assert bootstrap_interval([[0.25] * 3, [0.25]]) == (0.25, 0.25)


def test_bootstrap_of_fewer_than_two_images_is_unknown() -> None:
    assert bootstrap_interval([]) is None
    assert bootstrap_interval([[0.1, 0.9], []]) is None


@pytest.mark.parametrize("settings", [{"confidence": 0}, {"confidence": 1}, {"confidence": math.nan}, {"resamples": 0}])
def test_bootstrap_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        bootstrap_interval(VALUES, **settings)


def test_a_wider_confidence_gives_a_wider_interval() -> None:
    narrow, wide = bootstrap_interval(VALUES, confidence=0.5), bootstrap_interval(VALUES, confidence=0.99)
    assert narrow and wide and wide[0] < narrow[0] < narrow[1] < wide[1]


def test_paired_change_counts_helped_hurt_and_unchanged() -> None:
    change = paired_change({1: [0.5, 0.0, -0.005], 2: [-0.25, 0.01], 3: [0.02, 0.0, 0.125]})
    assert change is not None
    assert change.mean == pytest.approx(0.4 / 8)
    assert (change.helped, change.hurt, change.unchanged) == (3 / 8, 1 / 8, 4 / 8)
    assert change.interval == bootstrap_interval([[0.5, 0.0, -0.005], [-0.25, 0.01], [0.02, 0.0, 0.125]])
    assert paired_change({}) is None
    assert paired_change({1: []}) is None


# ---------------------------------------------------------------- prompts


def test_protocols_are_pinned() -> None:
    assert PROTOCOLS == ("box", "noisy-box", "points-1", "points-3", "points-5", "random-2")


def test_the_box_is_tight_on_pixel_edges() -> None:
    prompt = prompt_for("box", rectangle(3, 2, 8, 5), annotation_id=1)
    assert prompt.box is not None and prompt.box.tolist() == [3, 2, 8, 5] and not len(prompt.points)
    assert prompt_for("box", rectangle(19, 9, 20, 10), 1).box.tolist() == [19, 9, 20, 10]  # type: ignore[union-attr]


@pytest.mark.parametrize(("protocol", "count"), [("points-1", 1), ("points-3", 3), ("points-5", 5), ("random-2", 2)])
def test_clicks_are_distinct_pixel_centres_in_the_mask(protocol: Any, count: int) -> None:
    mask = rectangle(2, 1, 9, 8) & ~rectangle(4, 3, 7, 6)
    for number in range(50):
        prompt = prompt_for(protocol, mask, number)
        prompt.check_inside(mask.shape)
        x, y = prompt.points.T
        assert prompt.points.shape == (count, 2) and (prompt.labels == 1).all() and prompt.box is None
        assert (prompt.points % 1 == 0.5).all()
        assert mask[y.astype(int), x.astype(int)].all()
        assert len(np.unique(prompt.points, axis=0)) == count


def test_clicks_are_nested_and_fixed_by_annotation_and_seed() -> None:
    mask = rectangle(0, 0, 20, 10)
    five = prompt_for("points-5", mask, 7, seed=1).points.tolist()
    for protocol, count in (("points-1", 1), ("random-2", 2), ("points-3", 3)):
        assert prompt_for(protocol, mask, 7, seed=1).points.tolist() == five[:count]  # type: ignore[arg-type]
    assert prompt_for("points-5", mask, 8, seed=1).points.tolist() != five
    assert prompt_for("points-5", mask, 7, seed=2).points.tolist() != five
    assert prompt_for("points-5", mask.astype(np.uint8), 10**30).points.shape == (5, 2)


def test_clicks_are_the_same_on_every_machine() -> None:
    # Results are compared between releases: when this changes, every published click result has to be measured again.
    assert prompt_for("points-3", rectangle(0, 0, 20, 10), 7).points.tolist() == [
        [16.5, 7.5],
        [12.5, 5.5],
        [7.5, 0.5],
    ]


def test_a_small_object_is_clicked_on_each_pixel() -> None:
    mask = rectangle(5, 5, 7, 6)
    assert sorted(prompt_for("points-5", mask, 1).points.tolist()) == [[5.5, 5.5], [6.5, 5.5]]
    assert len(prompt_for("points-1", mask, 1).points) == 1


def test_first_clicks_fall_on_all_pixels_alike() -> None:
    mask = rectangle(1, 1, 3, 3) | rectangle(10, 7, 14, 8)
    counts = np.zeros(mask.shape, int)
    for number in range(1600):
        x, y = prompt_for("points-1", mask, number).points[0].astype(int)
        counts[y, x] += 1
    # 200 each; the bounds are five standard deviations (13.2) away.
    assert counts[mask].min() > 134 and counts[mask].max() < 266


def test_bad_prompt_requests_are_named() -> None:
    with pytest.raises(DatasetError, match="annotation 12 covers no pixel"):
        prompt_for("points-1", np.zeros((4, 4), bool), 12)
    with pytest.raises(ConfigError, match="'points-2': choose one of box, noisy-box, points-1"):
        prompt_for("points-2", rectangle(0, 0, 2, 2), 1)  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        prompt_for("box", np.zeros((4, 4, 3), bool), 1)
    for seed in (-1, 1.5, True, None):
        with pytest.raises(ConfigError, match="seed"):
            prompt_for("box", rectangle(0, 0, 2, 2), 1, seed=seed)  # type: ignore[arg-type]


# ---------------------------------------------------------------- evaluation

SQUARE = rectangle(2, 2, 6, 6)  # fills its box: the inside has IoU 1, the left half 1/2
CORNER = SQUARE & ~rectangle(4, 4, 6, 6)  # 12 of 16 pixels: the inside has IoU 3/4, the left half 8/12


def three_objects(tmp_path: Path) -> CocoFolder:
    crowd = annotation(4, rectangle(0, 0, 20, 10), iscrowd=1)
    both = [annotation(1, SQUARE), annotation(2, CORNER, category_id=2), crowd]
    return write_folder(tmp_path, coco([*both, annotation(3, CORNER, image_id=2)], images=3))


def test_miou_is_that_of_the_mask_chosen_by_predicted_iou(tmp_path: Path) -> None:
    folder = three_objects(tmp_path)
    inside = evaluate(BoxFiller((0.9, 0.5)), folder, "box").summary()
    assert inside["miou"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3, abs=1e-12)
    left = evaluate(BoxFiller((0.5, 0.9)), folder, "box")
    assert [record.ious for record in left.records] == [
        pytest.approx((1, 1 / 2)),
        pytest.approx((3 / 4, 8 / 12)),
        pytest.approx((3 / 4, 8 / 12)),
    ]
    assert [record.chosen for record in left.records] == [1, 1, 1]
    assert left.records[0].predicted_ious == pytest.approx((0.5, 0.9))
    summary = left.summary()
    assert summary["miou"] == pytest.approx((1 / 2 + 8 / 12 + 8 / 12) / 3, abs=1e-12)
    assert summary["miou_oracle"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3, abs=1e-12)
    assert (summary["images"], summary["objects"], summary["objects_failed"]) == (2, 3, 0), "the crowd is left out"
    assert (summary["miou_refined"], summary["change"], summary["kept_refined"], summary["refine"]) == (None,) * 4
    assert summary["miou_interval"] == pytest.approx((7 / 12, 8 / 12), abs=1e-12), "images of 2 and 1 objects"


def test_per_category_means(tmp_path: Path) -> None:
    by_name = {
        one["name"]: (one["id"], one["objects"], one["miou"])
        for one in evaluate(BoxFiller(), three_objects(tmp_path), "box").summary()["per_category"]
    }
    assert by_name == {"cell": (1, 2, pytest.approx(7 / 8)), "cat": (2, 1, pytest.approx(3 / 4))}


def test_per_size_means_at_the_edges(tmp_path: Path) -> None:
    hw = (200, 200)
    full = [rectangle(0, 0, 33, 31, hw), rectangle(0, 0, 32, 32, hw), rectangle(0, 0, 96, 96, hw)]
    almost = rectangle(100, 100, 196, 196, hw)
    almost[199 - 4, 199 - 4] = False
    content = coco([annotation(i, mask) for i, mask in enumerate([*full, almost])], hw=hw)
    # What the file says about the area doesn't count, the mask does.
    content["annotations"][0]["area"] = 10**6
    result = evaluate(BoxFiller(), write_folder(tmp_path, content, hw), "box")
    assert [(record.area, record.size) for record in result.records] == [
        (1023, "small"),
        (1024, "medium"),
        (9216, "large"),
        (9215, "medium"),
    ]
    per_size = result.summary()["per_size"]
    assert {size: one["objects"] for size, one in per_size.items()} == {"small": 1, "medium": 2, "large": 1}
    assert per_size["medium"]["miou"] == pytest.approx((1 + 9215 / 9216) / 2, abs=1e-12)
    assert per_size["large"]["miou"] == 1


def test_refinement_is_measured_on_the_same_objects(tmp_path: Path) -> None:
    session, config = BoxFiller((0.3, 0.5), refined_score=0.8), AMRConfig(rule="centre")
    result = evaluate(session, three_objects(tmp_path), "box", refine=config)
    assert session.configs == [config] * 3
    refined = result.records[0].refined
    assert refined is not None
    assert (refined.iou, refined.rejected_iou, refined.kept) == (1, None, "refined")
    assert (refined.strategy, refined.kappa, refined.compactness) == ("boundary", 1, 0.5)
    assert refined.predicted_iou == pytest.approx(0.8)
    summary = result.summary()
    gains = [1 / 2, 3 / 4 - 8 / 12, 3 / 4 - 8 / 12]
    assert summary["miou"] == pytest.approx((1 / 2 + 8 / 12 + 8 / 12) / 3, abs=1e-12)
    assert summary["miou_refined"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3, abs=1e-12)
    change = summary["change"]
    assert change["mean"] == pytest.approx(sum(gains) / 3, abs=1e-12)
    assert (change["helped"], change["hurt"], change["unchanged"]) == (1, 0, 0)
    # Resampling two images of two and one objects: one extreme is the first image twice, the other the second.
    assert change["interval"] == pytest.approx([gains[2], (gains[0] + gains[1]) / 2], abs=1e-12)
    assert (summary["kept_refined"], summary["refine"]["rule"]) == (1, "centre")
    assert summary["per_category"][1]["miou_refined"] == pytest.approx(3 / 4)


def test_a_rejected_candidate_counts_only_for_the_oracle(tmp_path: Path) -> None:
    session = BoxFiller((0.3, 0.9), refined_score=0.1)
    result = evaluate(session, three_objects(tmp_path), "box", refine=AMRConfig())
    summary = result.summary()
    assert summary["miou_refined"] == summary["miou"] == pytest.approx((1 / 2 + 8 / 12 + 8 / 12) / 3)
    assert summary["miou_refined_oracle"] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    assert summary["change"]["unchanged"] == 1
    assert summary["kept_refined"] == 0
    assert [record.refined.rejected_iou for record in result.records if record.refined] == [1, 3 / 4, 3 / 4]


def test_clicks_reach_the_model_as_the_protocol_says(tmp_path: Path) -> None:
    folder, session = three_objects(tmp_path), BoxFiller((0.9, 0.5))
    result = evaluate(session, folder, "points-3", seed=5)
    wanted = [prompt_for("points-3", mask, i, 5) for i, mask in ((1, SQUARE), (2, CORNER), (3, CORNER))]
    assert [p.points.tolist() for p in session.prompts] == [p.points.tolist() for p in wanted]
    assert [record.iou for record in result.records] == pytest.approx([3 / 16, 3 / 12, 3 / 12])
    assert evaluate(BoxFiller(), folder, "points-3", seed=5) == result
    other = BoxFiller()
    evaluate(other, folder, "points-3", seed=6)
    assert [p.points.tolist() for p in other.prompts] != [p.points.tolist() for p in wanted]


def test_each_image_is_encoded_once_and_reported(tmp_path: Path) -> None:
    session, seen = BoxFiller(), []
    folder = three_objects(tmp_path)
    result = evaluate(session, folder, "box", on_image=lambda done, total: seen.append((done, total)))
    assert session.encoded == len(result.encode_milliseconds) == 2
    assert seen == [(1, 2), (2, 2)]
    limited = evaluate(BoxFiller(), folder, "box", limit_images=1)
    assert [record.annotation_id for record in limited.records] == [1, 2]
    assert limited.summary()["miou_interval"] is None


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "2"])
def test_a_limit_that_is_none_is_refused(limit: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="limit_images"):
        evaluate(BoxFiller(), three_objects(tmp_path), "box", limit_images=limit)


def test_settings_are_checked_before_any_work(tmp_path: Path) -> None:
    folder, session = three_objects(tmp_path), BoxFiller()
    with pytest.raises(ConfigError, match="protocol 'boxes'"):
        evaluate(session, folder, "boxes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed"):
        evaluate(session, folder, "box", seed=-3)
    with pytest.raises(DatasetError, match="nothing to evaluate"):
        evaluate(session, CocoFolder((), {}), "box")
    assert session.encoded == 0


# ---------------------------------------------------------------- failures


def test_a_bad_image_costs_only_itself(tmp_path: Path) -> None:
    content = coco([annotation(i, SQUARE, image_id=1 + i // 2) for i in range(12)], images=6)
    content["images"][3] |= {"width": HEIGHT, "height": WIDTH}
    folder = write_folder(tmp_path, content)
    images = tmp_path / "images"
    (images / "1.png").unlink()
    (images / "2.png").write_bytes(b"")
    (images / "3.png").write_bytes((images / "6.png").read_bytes()[:-30])
    (images / "5.png").write_bytes(b"not an image")
    session, seen = BoxFiller(), []
    result = evaluate(session, folder, "box", on_image=lambda done, total: seen.append(done))
    assert [(failure.image_id, failure.annotation_id, failure.objects) for failure in result.failures] == [
        (number, None, 2) for number in (1, 2, 3, 4, 5)
    ]
    assert [record.annotation_id for record in result.records] == [10, 11]
    assert all(failure.reason and str(tmp_path) not in failure.reason for failure in result.failures)
    assert all(failure.file_name == f"{failure.image_id}.png" for failure in result.failures)
    assert "20 x 10 pixels" in result.failures[3].reason and "10 x 20" in result.failures[3].reason
    summary = result.summary()
    assert (summary["images"], summary["objects"], summary["objects_failed"], summary["miou"]) == (1, 2, 10, 1)
    assert (seen, session.encoded) == ([1, 2, 3, 4, 5, 6], 1)


BAD_SEGMENTATIONS: list[tuple[Any, str]] = [
    ([], "non-empty list of polygons"),
    ([[1, 2, 3, 4]], "three x, y pairs"),
    ([[1, 2, 3, 4, 5]], "three x, y pairs"),
    ([[1, 2, 3, "four", 5, 6]], "three x, y pairs"),
    ([1, 2, 3, 4, 5, 6], "three x, y pairs"),
    ([[1, 1, 1, 1, 1, 1]], "covers no pixel"),
    ([[1, 1, 5, 1, math.nan, 5]], "NaN"),
    ([[1e6, 1e6, 2e6, 1e6, 2e6, 2e6]], "far outside"),
    ({}, "'size'"),
    ({"size": [HEIGHT, WIDTH]}, "'counts'"),
    ({"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]}, "RLE's size"),
    ({"size": [HEIGHT, WIDTH], "counts": [0, 5]}, "add up to 5"),
    ({"size": [HEIGHT, WIDTH], "counts": "\x00\x01"}, "damaged"),
    ({"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}, "covers no pixel"),
    ({"size": [-1, WIDTH], "counts": [1]}, "two positive integers"),
    ({"size": [10**9, 10**9], "counts": [1]}, "exceeds"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bad_segmentation_costs_only_itself(protocol: Any, tmp_path: Path) -> None:
    bad = [
        annotation(i, SQUARE, segmentation=segmentation) for i, (segmentation, _) in enumerate(BAD_SEGMENTATIONS, 100)
    ]
    folder = write_folder(tmp_path, coco([annotation(1, SQUARE), *bad, annotation(2, CORNER)]))
    result = evaluate(BoxFiller(), folder, protocol)
    assert [record.annotation_id for record in result.records] == [1, 2]
    assert [(f.annotation_id, f.objects, f.image_id) for f in result.failures] == [(b["id"], 1, 1) for b in bad]
    for failure, (segmentation, reason) in zip(result.failures, BAD_SEGMENTATIONS, strict=True):
        assert reason in failure.reason, segmentation


def test_a_prompt_that_the_model_refuses_costs_only_itself(tmp_path: Path) -> None:
    class Picky(BoxFiller):
        def encode(self, image: np.ndarray) -> BoxFillerImage:
            return PickyImage(self, image.shape[:2])

    class PickyImage(BoxFillerImage):
        def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
            if len(self.session.prompts) == 1:
                self.session.prompts.append(prompt)
                raise PromptError("Too many points.")
            return super().predict(prompt)

    result = evaluate(Picky(), three_objects(tmp_path), "box")
    assert [record.annotation_id for record in result.records] == [1, 3]
    assert [(f.annotation_id, f.reason) for f in result.failures] == [(2, "Too many points.")]


def test_a_fault_of_the_program_is_not_taken_for_bad_data(tmp_path: Path) -> None:
    class Broken(BoxFiller):
        def encode(self, image: np.ndarray) -> BoxFillerImage:
            raise KeyError("model")

    with pytest.raises(KeyError, match="model"):
        evaluate(Broken(), three_objects(tmp_path), "box")


def test_when_everything_fails_the_summary_says_so(tmp_path: Path) -> None:
    folder = three_objects(tmp_path)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    result = evaluate(BoxFiller(), folder, "box", refine=AMRConfig())
    summary = result.summary()
    assert (summary["miou"], summary["miou_refined"], summary["change"], summary["images"]) == (None, None, None, 0)
    assert summary["median_milliseconds"] == {"encode": None, "decode": None, "refine": None}
    result.to_json(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["records"] == []


# ---------------------------------------------------------------- results as a file


def test_json_holds_summary_and_records(tmp_path: Path) -> None:
    result = evaluate(BoxFiller((0.3, 0.5)), three_objects(tmp_path), "box", refine=AMRConfig(), seed=4)
    path = tmp_path / "new" / "out.json"
    result.to_json(path)
    content = json.loads(path.read_text("utf-8"))
    assert content["summary"] == json.loads(json.dumps(result.summary()))
    assert (content["summary"]["protocol"], content["summary"]["seed"]) == ("box", 4)
    assert content["summary"]["median_milliseconds"]["refine"] >= 0
    assert [record["annotation_id"] for record in content["records"]] == [1, 2, 3]
    first = content["records"][0]
    assert (first["iou"], first["oracle_iou"], first["size"], first["refined"]["iou"]) == (0.5, 1, "small", 1)
    assert [path.name for path in path.parent.iterdir()] == ["out.json"], "no temporary file is left"


def test_a_model_that_predicts_nan_still_gives_json(tmp_path: Path) -> None:
    result = evaluate(BoxFiller((math.nan, math.inf)), three_objects(tmp_path), "box")
    result.to_json(tmp_path / "out.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert content["records"][0]["predicted_ious"] == [None, None]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(BoxFiller(), three_objects(tmp_path / "data"), "box")
    (tmp_path / "out.json").write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        result.to_json(tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.json"]


# ---------------------------------------------------------------- several sources


def results(ious: list[float], protocol: Any = "box") -> Evaluation:
    records = tuple(ObjectRecord(1, i, 1, 50, (iou, 1.0), (0.9, 0.1), 0, None, 1.0) for i, iou in enumerate(ious))
    return Evaluation(protocol, 0, None, {}, records, (), (1.0,))


def test_sources_count_the_same_whatever_their_objects() -> None:
    mean = mean_over_sources({"many": results([0.5] * 9), "few": results([1.0])})
    assert mean == {"protocol": "box", "sources": 2, "miou": 0.75, "miou_oracle": 1.0, "miou_refined": None}


def test_a_mean_over_sources_hides_nothing() -> None:
    with pytest.raises(DatasetError, match="'none'"):
        mean_over_sources({"some": results([0.5]), "none": results([])})
    with pytest.raises(ConfigError, match="box.*points-1"):
        mean_over_sources({"a": results([0.5]), "b": results([0.5], "points-1")})
    with pytest.raises(ConfigError, match="none"):
        mean_over_sources({})


# ---------------------------------------------------------------- the real session


class PixelValueModel:
    """Answers a click with all pixels of its value: exact where an object has a value of its own."""

    name = "pixel value"
    capabilities = Capabilities(negative_points=False, mask_prompt=False, max_points=6, input_size=64)

    def encode(self, image: np.ndarray, on_progress: object = None) -> np.ndarray:
        return image[..., 0].astype(np.int64)

    def decode(
        self, features: np.ndarray, image_hw: tuple[int, int], prompt: Prompt, multimask_output: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        x, y = prompt.points.astype(int).T
        covered = np.isin(features, features[y, x])
        # The more clicks the surer, as real models are.
        return np.where(covered, 4.0, -4.0)[None].astype(np.float32), np.array([0.1 * len(x)], np.float32)

    def upsample(self, low_res_logits: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
        return low_res_logits > 0

    def value_at(self, low_res_logits: np.ndarray, image_hw: tuple[int, int], points: np.ndarray) -> np.ndarray:
        x, y = points.astype(int).T
        return low_res_logits[:, y, x]


def test_the_real_session_and_refinement(tmp_path: Path) -> None:
    truth, twin = rectangle(2, 2, 8, 8), rectangle(12, 3, 15, 6)
    folder = write_folder(tmp_path, coco([annotation(1, truth), annotation(2, twin)]))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[truth | twin] = 200
    write_png(tmp_path / "images" / "1.png", pixels)
    result = evaluate(Session(PixelValueModel()), folder, "random-2", refine=AMRConfig(rule="boundary"))
    assert [record.iou for record in result.records] == pytest.approx([36 / 45, 9 / 45]), "both have the same value"
    for record in result.records:
        # Boundary points lie outside, so the refined mask is the whole image, and four clicks claim more than two.
        assert record.refined is not None
        assert (record.refined.kappa, record.refined.strategy, record.refined.kept) == (2, "boundary", "refined")
        assert record.refined.iou == pytest.approx(record.area / 200)
    assert result.summary()["change"]["hurt"] == 1
