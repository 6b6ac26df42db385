from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refinesam import PromptError
from refinesam_labelstudio.labeling_config import EXAMPLES, LabelingConfig
from refinesam_labelstudio.prompts import PromptedObject, prompt_from_context, prompts_from_annotations

CONFIG = LabelingConfig.parse(EXAMPLES["brush"])
SIZE = {"original_width": 640, "original_height": 480, "image_rotation": 0, "to_name": "image"}


def keypoint(x: Any, y: Any, positive: bool | None = None, label: str = "Object", name: str = "k", **more: Any) -> Any:
    """A click as the browser sends it."""
    value = {"x": x, "y": y, "width": 0.3, "labels": [label], "keypointlabels": [label]}
    sign = {} if positive is None else {"is_positive": positive}
    return {**SIZE, "id": name, "from_name": "point", "type": "keypointlabels", "value": value, **sign, **more}


def rectangle(
    x: Any, y: Any, width: Any, height: Any, rotation: Any = 0, label: str = "Object", name: str = "r"
) -> Any:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": [label]}
    return {**SIZE, "id": name, "from_name": "box", "type": "rectanglelabels", "value": value}


def asked(*regions: Any, task: Any = None, **more: Any) -> list[PromptedObject]:
    return prompt_from_context({"result": list(regions)}, task or {}, CONFIG, **more)


def test_a_click() -> None:
    (found,) = asked(keypoint(50, 25, True, name="abc"))
    assert (found.label, found.region_id, found.to_name) == ("Object", "abc", "image")
    assert found.prompt.points.tolist() == [[320, 120]]
    assert found.prompt.labels.tolist() == [1]
    assert found.prompt.box is None


def test_clicks_of_a_label_are_one_object() -> None:
    cat, other = asked(
        keypoint(10, 10, True, name="a"),
        keypoint(50, 50, True, "Other", name="b"),
        keypoint(20, 10, False, name="c"),
        keypoint(30, 10, name="d"),
    )
    assert cat.prompt.points.tolist() == [[64, 48], [192, 48], [128, 48]]
    assert cat.prompt.labels.tolist() == [1, 1, 0]
    assert (cat.label, cat.region_id) == ("Object", "a")
    assert (other.label, other.prompt.points.tolist()) == ("Other", [[320, 240]])


def test_a_negative_click_first() -> None:
    (found,) = asked(keypoint(10, 10, False), keypoint(20, 20, True))
    assert found.prompt.labels.tolist() == [1, 0]
    (alone,) = asked(keypoint(10, 10, False), keypoint(20, 20, False))
    assert alone.prompt.labels.tolist() == [0, 0]  # Whether that names an object is the model's to say.


def drafts(*regions: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "drafts": [{"id": 2, "result": list(regions), **more}]}


def test_after_a_reload_the_draft_remembers_negative_clicks() -> None:
    task = drafts(keypoint(10, 10, False, name="a"), keypoint(20, 10, True, name="b"))
    (found,) = asked(keypoint(10, 10, name="a"), keypoint(20, 10, name="b"), keypoint(30, 10, name="c"), task=task)
    assert dict(zip(found.prompt.points[:, 0].tolist(), found.prompt.labels.tolist(), strict=True)) == {
        64: 0,
        128: 1,
        192: 1,
    }
    (found,) = asked(keypoint(10, 10, True, name="a"), task=task)  # What the context says comes first.
    assert found.prompt.labels.tolist() == [1]


def test_of_several_drafts_the_newest_counts() -> None:
    old, new = keypoint(10, 10, True, name="a"), keypoint(10, 10, False, name="a")
    for versions in ([("2024-01-02", new), ("2024-01-01", old)], [("2024-01-01", old), ("2024-01-02", new)]):
        task = {"drafts": [{"updated_at": date, "result": [region]} for date, region in versions]}
        assert asked(keypoint(10, 10, name="a"), task=task)[0].prompt.labels.tolist() == [0]


def test_each_rectangle_is_an_object() -> None:
    first, second = asked(rectangle(10, 10, 20, 50, name="a"), rectangle(50, 0, 50, 100, name="b"))
    assert first.prompt.box is not None and second.prompt.box is not None
    assert first.prompt.box.tolist() == [64, 48, 192, 288]
    assert second.prompt.box.tolist() == [320, 0, 640, 480]
    assert (first.region_id, second.region_id) == ("a", "b")


def test_clicks_belong_to_the_smallest_rectangle_around_them() -> None:
    large, small, loose = asked(
        rectangle(0, 0, 50, 50, name="large"),
        rectangle(10, 10, 20, 20, name="small"),
        keypoint(15, 15, False),
        keypoint(45, 45, True),
        keypoint(15, 15, True, "Other"),
    )
    assert small.prompt.points.tolist() == [[96, 72]]
    assert small.prompt.labels.tolist() == [0]
    assert large.prompt.points.tolist() == [[288, 216]]
    assert (loose.label, loose.prompt.box) == ("Other", None)


@pytest.mark.parametrize(
    ("rotation", "box"),
    [
        (0, [320, 240, 384, 264]),
        (90, [296, 240, 320, 304]),
        (180, [256, 216, 320, 240]),
        (270, [320, 176, 344, 240]),
        (45, [320 - 24 / 2**0.5, 240, 320 + 64 / 2**0.5, 240 + 88 / 2**0.5]),
    ],
)
def test_a_turned_rectangle_asks_with_the_box_around_it(rotation: int, box: list[float]) -> None:
    """64 x 24 pixels, turned clockwise around its first corner."""
    (found,) = asked(rectangle(50, 50, 10, 5, rotation))
    np.testing.assert_allclose(found.prompt.box, box, atol=1e-4)


def test_what_a_turned_rectangle_or_ellipse_holds_is_known_beside_its_box() -> None:
    upright, turned = asked(rectangle(50, 50, 10, 5, 90), rectangle(50, 50, 10, 5, 45))
    assert upright.outline is None
    assert turned.outline is not None
    # Inside the rectangle: 64 x 24 pixels, its middle, its ends.
    middle = (320 + (64 - 24) / 2 / 2**0.5, 240 + (64 + 24) / 2 / 2**0.5)
    np.testing.assert_allclose(turned.outline.mean(axis=0), middle, atol=1e-6)
    distances = np.hypot(*(turned.outline - middle).T)
    np.testing.assert_allclose([distances.max(), distances.min()], [32, 12], atol=1e-6)
    end = turned.outline[distances.argmax()] - middle
    assert abs(end[0]) == pytest.approx(abs(end[1]))


@pytest.mark.parametrize(("rotation", "box"), [(0, [256, 216, 384, 264]), (90, [296, 176, 344, 304])])
def test_an_ellipse_asks_with_the_box_around_it(rotation: float, box: list[float]) -> None:
    value = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 5, "rotation": rotation, "ellipselabels": ["Object"]}
    region = {**SIZE, "id": "e", "type": "ellipselabels", "value": value}
    (found,) = asked(region)
    assert found.label == "Object"
    np.testing.assert_allclose(found.prompt.box, box, atol=1e-4)
    (found,) = asked({**region, "value": {**value, "rotation": 45}})
    reach = ((64**2 + 24**2) / 2) ** 0.5
    around = [320 - reach, 240 - reach, 320 + reach, 240 + reach]
    np.testing.assert_allclose(found.prompt.box, around, atol=1e-3)
    assert found.outline is not None
    np.testing.assert_allclose([*found.outline.min(axis=0), *found.outline.max(axis=0)], around, atol=0.2)
    with pytest.raises(PromptError, match="has radiusX None"):
        asked({**region, "value": {"x": 1, "y": 1}})


def test_borders_lie_inside() -> None:
    (found,) = asked(keypoint(100, 100), keypoint(0, 0), keypoint(100.4, -0.2))
    found.prompt.check_inside((480, 640))
    assert found.prompt.points.tolist() == [[639.5, 479.5], [0, 0], [639.5, 0]]
    (found,) = asked(rectangle(-5, 90, 30, 20))
    assert found.prompt.box is not None and found.prompt.box.tolist() == [0, 432, 160, 480]


def test_the_images_own_size_counts_where_it_is_known() -> None:
    (found,) = asked(keypoint(50, 50), image_hw=(100, 200))
    assert found.prompt.points.tolist() == [[100, 50]]
    bare = {key: value for key, value in keypoint(50, 50).items() if not key.startswith("original")}
    assert asked(bare, image_hw=(100, 200))[0].prompt.points.tolist() == [[100, 50]]


def test_labels_from_a_tag_of_their_own() -> None:
    point = {**keypoint(50, 50, True), "type": "keypoint", "value": {"x": 50, "y": 50, "width": 1}}
    label = {**point, "type": "labels", "from_name": "l", "value": {"x": 50, "y": 50, "width": 1, "labels": ["Cat"]}}
    for regions in ([point, label], [label, point]):
        (found,) = asked(*regions)
        assert (found.label, len(found.prompt.points)) == ("Cat", 1)
    assert asked(point)[0].label is None


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], "no keypoint and no rectangle"),
        ([{**SIZE, "id": "b", "type": "brushlabels", "value": {"rle": [0]}}], "click or draw with a smart tool"),
        ([{**keypoint(1, 1), "to_name": "other"}], "no keypoint and no rectangle on an image of the labeling config"),
        ([keypoint("1", 2)], "Region 'k' has x '1': a number is needed"),
        ([keypoint(1, None)], "has y None"),
        ([keypoint(float("nan"), 1)], "has x nan"),
        ([keypoint(10**400, 1)], "has x 1000"),
        ([keypoint(True, 1)], "has x True"),
        ([{**keypoint(1, 1), "value": None}], "has x None"),
        ([{**keypoint(1, 1), "original_width": 0}], "original_width 0: both must be whole numbers of pixels"),
        ([{**keypoint(1, 1), "original_height": None}], "original_height None"),
        ([{**keypoint(1, 1), "original_height": 1.5}], "original_height 1.5"),
        ([{**keypoint(1, 1), "original_width": 10**9}], "1 to 1000000"),
        ([rectangle(1, 1, 0, 5)], "has no area"),
        ([rectangle(120, 1, 5, 5)], "has no area"),
        ([rectangle(1, 1, 5, 5, "a")], "has rotation 'a'"),
    ],
)
def test_a_context_that_asks_for_nothing_is_an_error(regions: list[Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        asked(*regions)


def test_a_batch_takes_every_rectangle_and_keypoint() -> None:
    task = {
        "annotations": [
            {
                "result": [
                    rectangle(0, 0, 20, 20, name="box"),
                    keypoint(80, 80, name="p"),
                    keypoint(50, 50, name="q"),
                    keypoint(52, 50, False, name="n"),
                    keypoint(10, 10, False, name="inside"),
                    keypoint(10, 90, label="Other", name="o"),
                    {"type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["good"]}},
                ]
            }
        ]
    }
    found = {item.region_id: item for item in prompts_from_annotations(task, CONFIG)}
    assert list(found) == ["box", "p", "q", "o"]
    assert found["box"].prompt.labels.tolist() == [0]
    assert found["p"].prompt.points.tolist() == [[512, 384]]
    assert found["q"].prompt.points.tolist() == [[320, 240], [pytest.approx(332.8), 240]]
    assert found["q"].prompt.labels.tolist() == [1, 0]
    assert (found["o"].label, len(found["o"].prompt.points)) == ("Other", 1)


def test_a_batch_takes_one_version_the_newest_of_the_best_kind() -> None:
    def version(name: str, date: str | None = None, **more: Any) -> dict[str, Any]:
        return {"result": [rectangle(1, 1, 5, 5, name=name)], "created_at": date, **more}

    task: dict[str, Any] = {"predictions": [version("p1", "2024-01-01"), version("p2")]}
    assert [item.region_id for item in prompts_from_annotations(task, CONFIG)] == ["p1"]
    task = {"predictions": [version("p1"), version("p2")]}
    assert [item.region_id for item in prompts_from_annotations(task, CONFIG)] == ["p2"]
    task["drafts"] = [version("d2", "2024-01-02"), version("d1", "2024-01-01")]
    assert [item.region_id for item in prompts_from_annotations(task, CONFIG)] == ["d2"]
    task["annotations"] = [
        {"result": [], "created_at": "2024-01-09"},
        version("a1", "2024-01-01", updated_at="2024-01-05"),
        version("a2", "2024-01-02"),
        version("skipped", "2024-01-08", was_cancelled=True),
    ]
    assert [item.region_id for item in prompts_from_annotations(task, CONFIG)] == ["a1"]


def test_a_batch_leaves_out_what_is_malformed(caplog: pytest.LogCaptureFixture) -> None:
    regions = [
        rectangle(1, 1, "x", 5, name="bad"),
        rectangle(1, 1, 0, 5, name="flat"),
        rectangle(1, 1, 5, 5, name="good"),
        keypoint(9, 9, False, label="Other", name="negative"),
        None,
    ]
    with caplog.at_level(logging.WARNING, logger="refinesam_labelstudio"):
        found = prompts_from_annotations({"annotations": [{"result": regions}]}, CONFIG)
    assert [item.region_id for item in found] == ["good"]
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 3
    assert "Region 'bad' has width 'x'" in logged[0]
    assert "region flat is left out: Box" in logged[1]
    assert "negative keypoints only" in logged[2]


def test_a_batch_without_marks_has_no_prompts() -> None:
    for task in ({}, {"annotations": []}, {"annotations": None, "drafts": 3}, {"predictions": [{"result": "x"}, 7]}):
        assert prompts_from_annotations(task, CONFIG) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
REGIONS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "id": JSON | st.sampled_from(["a", "b"]),
            "type": st.sampled_from(["keypointlabels", "rectanglelabels", "keypoint", "rectangle", "labels"]) | JSON,
            "to_name": st.just("image") | JSON,
            "original_width": st.integers(1, 9) | JSON,
            "original_height": st.integers(1, 9) | JSON,
            "is_positive": st.booleans() | JSON,
            "value": st.dictionaries(
                st.sampled_from(
                    ["x", "y", "width", "height", "rotation", "labels", "keypointlabels", "rectanglelabels"]
                ),
                st.floats(0, 100) | st.just(["Object"]) | JSON,
            )
            | JSON,
        },
    )
    | JSON,
    max_size=4,
)


@settings(max_examples=200)
@given(
    REGIONS | JSON,
    st.dictionaries(
        st.sampled_from(["annotations", "drafts"]),
        JSON | st.lists(st.fixed_dictionaries({"result": REGIONS | JSON}, optional={"created_at": JSON}), max_size=2),
    ),
)
def test_any_json_gives_prompts_inside_or_the_error(regions: Any, task: dict[str, Any]) -> None:
    for item in prompts_from_annotations(task, CONFIG, (7, 9)):
        item.prompt.check_inside((7, 9))
    try:
        found = prompt_from_context({"result": regions}, task, CONFIG, (7, 9))
    except PromptError:
        return
    for item in found:
        item.prompt.check_inside((7, 9))
