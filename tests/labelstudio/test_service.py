"""Service: setup, predict, versions and webhook, over a model made of arithmetic and over the built-in one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import refinesam
from fakes import FloodModel
from refinesam import AMRConfig, ConfigError, ImageError, Session, WeightsError
from refinesam_labelstudio.labeling_config import EXAMPLES
from refinesam_labelstudio.options import ServiceOptions, weights_version
from refinesam_labelstudio.recent import RecentImages
from refinesam_labelstudio.results import mask_from_region
from refinesam_labelstudio.service import NotReadyError, Service

NOTHING = ServiceOptions(everything=None)
TWO_IMAGES = """<View>
  <Image name="left" value="$left"/><Image name="right" value="$right"/>
  <BrushLabels name="mask_left" toName="left"><Label value="Object"/></BrushLabels>
  <BrushLabels name="mask_right" toName="right"><Label value="Object"/></BrushLabels>
  <KeyPointLabels name="point_left" toName="left" smart="true"><Label value="Object"/></KeyPointLabels>
  <KeyPointLabels name="point_right" toName="right" smart="true"><Label value="Object"/></KeyPointLabels>
</View>"""


def patches(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Four patches of distinct red values."""
    values = np.random.default_rng(seed).permutation(256)[:4].astype(np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2, 0], image[: height // 2, width // 2 :, 0] = values[:2]
    image[height // 2 :, : width // 2, 0], image[height // 2 :, width // 2 :, 0] = values[2:]
    return image


IMAGES = {f"/data/upload/1/{seed}.png": patches(seed) for seed in range(6)}
IMAGES["/data/upload/1/tall.png"] = patches(9, 40, 20)


def read_image(value: object, task_id: int | None) -> np.ndarray:
    if not isinstance(value, str) or value not in IMAGES:
        raise ImageError(f"{value!r} is not there.")
    return IMAGES[value]


@pytest.fixture
def model() -> FloodModel:
    return FloodModel()


@pytest.fixture
def make(model: FloodModel) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(factory: Callable[[], Session] = lambda: Session(model), **settings: Any) -> Service:
        made.append(Service(factory, settings.pop("read_image", read_image), **{"options": NOTHING, **settings}))
        return made[-1]

    yield make
    for service in made:
        service.close()


def task(seed: int | str = 0, **more: Any) -> dict[str, Any]:
    return {"id": 10, "data": {"image": f"/data/upload/1/{seed}.png"}, **more}


def keypoint(x: float, y: float, label: str = "Object", hw: tuple[int, int] = (24, 32), **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.5, "keypointlabels": [label]}
    size = {"original_height": hw[0], "original_width": hw[1], "image_rotation": 0}
    names = {"from_name": "point", "to_name": "image", "type": "keypointlabels", "id": "k1"}
    return {**size, **names, "value": value, **more}


def rectangle(x: float, y: float, width: float, height: float, **more: Any) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["Object"]}
    size = {"original_height": 24, "original_width": 32, "image_rotation": 0}
    names = {"from_name": "box", "to_name": "image", "type": "rectanglelabels", "id": "r1"}
    return {**size, **names, "value": value, **more}


def request(*tasks: Any, context: Any = None, kind: str = "brush", project: str = "5.1700000000") -> dict[str, Any]:
    params = {"login": None, "password": None, "context": context}
    return {"tasks": list(tasks), "project": project, "label_config": EXAMPLES[kind], "params": params}


def masks(result: dict[str, Any]) -> list[np.ndarray]:
    return [mask_from_region(region) for region in result["result"] if region["type"] != "textarea"]


@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_click_before_any_setup(make: Callable[..., Service], kind: str) -> None:
    click = {"result": [keypoint(20, 20, is_positive=True)]}
    answer = make().predict(request(task(), context=click, kind=kind))
    (result,) = answer["results"]
    expected = np.zeros((24, 32), bool)
    expected[:12, :16] = True
    (mask,) = masks(result)
    assert np.array_equal(mask, expected)
    assert result["result"][0]["type"] == {"box": "rectanglelabels"}.get(kind, f"{kind}labels")
    assert result["score"] == pytest.approx(0.9)
    assert result["model_version"] == answer["model_version"] == "flood-ffffffff"


def test_the_images_own_size_counts(make: Callable[..., Service]) -> None:
    click = {"result": [keypoint(75, 20, hw=(20, 40))]}  # what a reader that ignores EXIF would have sent
    (result,) = make().predict(request(task("tall"), context=click))["results"]
    expected = np.zeros((40, 20), bool)
    expected[:20, 10:] = True
    assert np.array_equal(masks(result)[0], expected)


def test_several_rectangles_are_several_objects(make: Callable[..., Service]) -> None:
    boxes = {"result": [rectangle(0, 0, 50, 50), rectangle(50, 50, 25, 50, id="r2")]}
    (result,) = make().predict(request(task(), context=boxes))["results"]
    assert [int(mask.sum()) for mask in masks(result)] == [12 * 16, 12 * 8]


def test_batch_in_order_and_each_task_alone(make: Callable[..., Service], caplog: pytest.LogCaptureFixture) -> None:
    marked = [{"result": [rectangle(0, 0, 25 * (1 + seed), 100)]} for seed in range(3)]
    tasks = [
        task(2, predictions=[marked[2]]),
        task("missing", id=11),
        task(0, annotations=[marked[0]]),
        "no task",
        {"id": 12},
        {"id": 13, "data": {"picture": "/data/upload/1/0.png"}},
        task(1, drafts=[marked[1]]),
        None,
    ]
    with caplog.at_level(logging.WARNING):
        results = make().predict(request(*tasks))["results"]
    answered = [result for result in results if result]
    assert [bool(result) for result in results] == [True, False, True, False, False, False, True, False]
    assert [int(sum(mask.sum() for mask in masks(result))) for result in answered] == [576, 192, 384]
    assert [result["score"] for result in answered] == pytest.approx([0.9, 0.9, 0.9])
    assert all(result["model_version"] == "flood-ffffffff" for result in answered)
    # Label Studio stores no prediction for these, and so asks for them again.
    assert [result for result in results if not result] == [[]] * 5
    for said in ("Task 11: '/data/upload/1/missing.png' is not there", "Task 12: The task has no image", "Task 13: "):
        assert said in caplog.text


def test_one_bad_object_costs_only_itself(make: Callable[..., Service], caplog: pytest.LogCaptureFixture) -> None:
    other = rectangle(0, 0, 25, 100, id="r2")
    other["value"]["rectanglelabels"] = ["Unheard-of"]
    with caplog.at_level(logging.WARNING):
        (result,) = make().predict(request(task(context=None), context={"result": [rectangle(0, 0, 50, 50), other]}))[
            "results"
        ]
    assert [int(mask.sum()) for mask in masks(result)] == [192]
    assert "Unheard-of" in caplog.text


def test_an_annotator_is_told_why_an_answer_is_missing(make: Callable[..., Service], model: FloodModel) -> None:
    service = make()
    bad, good = rectangle(0, 0, 25, 100), rectangle(0, 0, 50, 50)
    bad["value"]["rectanglelabels"] = ["Unheard-of"]

    def messages(*context: dict[str, Any], **body: Any) -> list[Any]:
        (result,) = service.predict({**request(task(), context={"result": list(context)}), **body})["results"]
        found = [region for region in result["result"] if region["type"] == "textarea"]
        assert {(region["from_name"], region["to_name"]) for region in found} <= {("refinesam", "image")}
        return [region["value"]["text"] for region in found]

    assert messages(good) == []
    ((text,),) = messages(bad, good)
    assert "'Unheard-of'" in text
    assert messages(good) == [[]]  # takes it away
    assert messages(good) == []
    without = "\n".join(line for line in EXAMPLES["brush"].splitlines() if "TextArea" not in line)
    assert messages(bad, label_config=without) == []
    service = make(lambda: (_ for _ in ()).throw(WeightsError("damaged")))
    ((text,),) = messages(good)
    assert "damaged" in text


@pytest.mark.parametrize(
    ("variable", "data"),
    [
        ("meta.url", {"meta": {"url": "/data/upload/1/0.png"}}),
        ("meta.url", {"meta.url": "/data/upload/1/0.png"}),
        ("urls[1].small", {"urls": [{}, {"small": "/data/upload/1/0.png"}]}),
    ],
)
def test_an_image_that_stands_deeper_in_the_task(make: Callable[..., Service], variable: str, data: Any) -> None:
    config = EXAMPLES["brush"].replace("$image", f"${variable}")
    body = request({"id": 10, "data": data}, context={"result": [keypoint(20, 20)]})
    (result,) = make().predict({**body, "label_config": config})["results"]
    assert [int(mask.sum()) for mask in masks(result)] == [192]
    for other in ({}, {"meta": None}, {"urls": [{}]}, {"meta": ["url"]}):
        body["tasks"][0]["data"] = other
        (result,) = make().predict({**body, "label_config": config})["results"]
        assert f"needs {variable}" in result["problems"][0]


def test_what_should_not_happen_costs_only_its_task(
    make: Callable[..., Service], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(value: object, task_id: int | None) -> np.ndarray:
        if task_id == 11:
            raise KeyError("a mistake of ours")
        return read_image(value, task_id)

    box = [{"result": [rectangle(0, 0, 50, 50)]}]
    service = make(read_image=broken)
    results = service.predict(request(task(id=11), task(0, predictions=box)))["results"]
    assert results[0] == []
    assert len(results[1]["result"]) == 1
    assert "KeyError" in caplog.text


def test_projects_do_not_leak(make: Callable[..., Service]) -> None:
    service = make()
    setups = {"5.1": ("brush", {"amr": True}), "6.1": ("polygon", None), "7.2": ("box", '{"amr": "paper"}')}

    def setup(project: str) -> str:
        kind, extra = setups[project]
        body = {"project": project, "schema": EXAMPLES[kind], "hostname": "http://localhost", "extra_params": extra}
        return service.setup(body)["model_version"]

    def ask(project: str) -> tuple[str, str]:
        body = request(task(), context={"result": [keypoint(20, 20)]}, project=project)
        del body["label_config"]
        (result,) = service.predict(body)["results"]
        return result["result"][0]["type"], result["model_version"]

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(setup, list(setups) * 4))
        answers = list(pool.map(ask, list(setups) * 8))
    paper = "flood-ffffffff+amr(rule=paper_equation)"
    assert versions[:3] == ["flood-ffffffff+amr", "flood-ffffffff", paper]
    expected = [("brushlabels", versions[0]), ("polygonlabels", versions[1]), ("rectanglelabels", paper)]
    assert answers == expected * 8
    assert set(service.versions()["versions"]) == {*versions, "flood-ffffffff+amr"}
    assert ask("5.2") == expected[0]  # the same project, whenever it was made


def test_preferred_output(make: Callable[..., Service]) -> None:
    both = EXAMPLES["brush"].replace("<BrushLabels", '<PolygonLabels name="poly" toName="image"><Label value="Object"/>'
                                     "</PolygonLabels><BrushLabels", 1)  # fmt: skip
    service = make()
    for output, wanted in ((None, "brushlabels"), ("polygon", "polygonlabels"), ("bitmask", "brushlabels")):
        extra = {} if output is None else {"output": output}
        service.setup({"project": "5", "schema": both, "extra_params": extra})
        body = {**request(task(), context={"result": [keypoint(20, 20)]}), "label_config": both}
        assert service.predict(body)["results"][0]["result"][0]["type"] == wanted


def test_polygons_are_as_fine_as_the_project_says(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.indices((200, 200))
    image = np.zeros((200, 200, 3), np.uint8)
    image[(rows - 60) ** 2 + (columns - 60) ** 2 < 50**2] = 200
    image[150:160, 150:160] = 200
    monkeypatch.setitem(IMAGES, "/data/upload/1/disc.png", image)
    service = make()

    def vertices(**extra: Any) -> list[int]:
        service.setup({"project": "5", "schema": EXAMPLES["polygon"], "extra_params": extra})
        click = {"result": [keypoint(30, 30, hw=(200, 200))]}
        (result,) = service.predict(request(task("disc"), context=click, kind="polygon"))["results"]
        return [len(region["value"]["points"]) for region in result["result"]]

    usual, exact, coarse = vertices(), vertices(tolerance=0), vertices(tolerance=4)
    assert [len(found) for found in (usual, exact, coarse)] == [2, 2, 2]
    assert exact[0] > usual[0] > coarse[0]
    assert len(vertices(smallest_part=200)) == 1


def test_two_images_of_a_task(make: Callable[..., Service]) -> None:
    service = make()
    data = {"left": "/data/upload/1/0.png", "right": "/data/upload/1/tall.png"}
    click = keypoint(20, 20, hw=(40, 20), from_name="point_right", to_name="right")
    body = {**request({"id": 1, "data": data}, context={"result": [click]}), "label_config": TWO_IMAGES}
    (region,) = service.predict(body)["results"][0]["result"]
    assert (region["from_name"], region["to_name"]) == ("mask_right", "right")
    assert mask_from_region(region).shape == (40, 20)
    left = keypoint(20, 20, from_name="point_left", to_name="left", id="k2")
    body = {**request({"id": 1, "data": data, "predictions": [{"result": [click, left]}]}), "label_config": TWO_IMAGES}
    regions = service.predict(body)["results"][0]["result"]
    assert [mask_from_region(region).shape for region in regions] == [(24, 32), (40, 20)]


def test_ten_clicks_and_eight_threads_encode_each_image_once(make: Callable[..., Service], model: FloodModel) -> None:
    service = make()
    clicks = [(seed, x, y) for seed in (0, 1) for x in (10, 30, 60, 80, 90) for y in (20, 80)]

    def ask(click: tuple[int, int, int]) -> np.ndarray:
        seed, x, y = click
        body = request(task(seed), context={"result": [keypoint(x, y)]})
        return masks(service.predict(body)["results"][0])[0]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, clicks))
    for (seed, x, y), mask in zip(clicks, answers, strict=True):
        red = patches(seed)[..., 0]
        assert np.array_equal(mask, red == red[y * 24 // 100, x * 32 // 100])
    assert model.encoded == 2


@pytest.mark.parametrize("context", [None, {}, {"result": []}])
def test_task_that_is_opened_is_encoded_ahead(make: Callable[..., Service], model: FloodModel, context: Any) -> None:
    service = make()
    (result,) = service.predict(request(task(), context=context))["results"]
    assert result == [] if context is None else result["result"] == []
    service._prefetcher.shutdown()  # what was begun is finished
    assert model.encoded == 1
    for x in range(5, 95, 9):
        service.predict(request(task(), context={"result": [keypoint(x, 50)]}))
    assert model.encoded == 1


def test_image_is_encoded_ahead_once_however_often_it_is_asked_for(make: Callable[..., Service]) -> None:
    go, reads = threading.Event(), []

    def slow(value: object, task_id: int | None) -> np.ndarray:
        reads.append(value)
        assert go.wait(30)
        return read_image(value, task_id)

    service = make(read_image=slow)
    for seed in (0, 0, 1, 0, 1):
        service.prefetch(f"/data/upload/1/{seed}.png", seed)
    go.set()
    service._prefetcher.shutdown()
    assert reads == ["/data/upload/1/0.png", "/data/upload/1/1.png"]


def test_refinement_is_asked_for_by_the_project(make: Callable[..., Service], model: FloodModel) -> None:
    service = make()
    decoded = []
    for amr in (False, "paper"):
        service.setup({"project": "5", "schema": EXAMPLES["brush"], "extra_params": {"amr": amr}})
        before = len(model.decoded)
        service.predict(request(task(), context={"result": [keypoint(20, 20)]}))
        decoded.append(len(model.decoded) - before)
    assert decoded == [1, 2]


@pytest.mark.parametrize(
    ("name", "config"), [("fast", AMRConfig.fast()), ("full", AMRConfig.full()), ("paper", AMRConfig.paper())]
)
def test_refinement_goes_by_its_names(name: str, config: AMRConfig) -> None:
    assert ServiceOptions().updated({"amr": name}).amr == config


def test_recent_images_are_decoded_once_and_bounded() -> None:
    reads = []

    def counted(value: object, task_id: int | None) -> np.ndarray:
        reads.append(value)
        return read_image(value, task_id)

    size = patches(0).nbytes
    recent = RecentImages(counted, capacity=2 * size)
    names = [f"/data/upload/1/{seed}.png" for seed in range(3)]
    for name in (names[0], names[1], names[0], names[2], names[0]):
        assert np.array_equal(recent(name, 1), IMAGES[name])
    assert reads == names
    recent(names[1], 1)  # was dropped
    recent(names[1], 2)  # another task's may be resolved to another file
    assert reads == [*names, names[1], names[1]]
    stale = RecentImages(counted, fresh_s=0)
    reads.clear()
    for _ in range(2):
        stale(names[0], 1)
    assert len(reads) == 2
    with pytest.raises(ImageError):
        recent("data:" + "A" * 5000, 1)
    with pytest.raises(ImageError):
        recent(None, 1)


def test_encoding_ahead_survives_a_broken_image(
    make: Callable[..., Service], model: FloodModel, caplog: pytest.LogCaptureFixture
) -> None:
    service = make()
    for seed in ("missing", 0, 0, 0):
        service.prefetch(f"/data/upload/1/{seed}.png", 10)
    service._prefetcher.shutdown()
    assert model.encoded == 1
    assert "can't be encoded ahead" in caplog.text
    assert service._prefetching == set()


def test_late_batch_is_cut_off(make: Callable[..., Service], caplog: pytest.LogCaptureFixture) -> None:
    box = [{"result": [rectangle(0, 0, 50, 50)]}]
    results = make(batch_s=-1).predict(request(task(predictions=box), task(predictions=box)))["results"]
    assert results == [[], []]
    assert "retrieve it again" in caplog.text


def test_nothing_found_is_an_answer_without_a_score(make: Callable[..., Service]) -> None:
    session = refinesam.load("builtin", device="cpu")
    never = ServiceOptions(everything={"points_per_side": 1, "iou_threshold": 1.0})
    (result,) = make(lambda: session, options=never).predict(request(task()))["results"]
    assert result == {"result": [], "score": None, "model_version": weights_version(session)}


def test_while_weights_load(make: Callable[..., Service], model: FloodModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refinesam_labelstudio.service.SETUP_WAIT_S", 0.01)
    go = threading.Event()

    def factory() -> Session:
        go.wait(30)
        return Session(model)

    service = make(factory, predict_wait_s=0.01)
    setup = {"project": "5.1", "schema": EXAMPLES["brush"], "extra_params": {"amr": True}}
    click = request(task(), context={"result": [keypoint(20, 20)]})
    assert service.health() == {"status": "UP", "model": "loading"}
    assert service.setup(setup) == {"model_version": "loading+amr"}
    assert service.versions() == {"versions": []}
    with pytest.raises(NotReadyError, match="still loading"):
        service.predict(request(task()))
    (told,) = service.predict(click)["results"]
    assert "still loading" in told["result"][0]["value"]["text"][0]
    go.set()
    service._session(30)
    assert service.health() == {"status": "UP", "model": "ready"}
    assert service.setup(setup) == {"model_version": "flood-ffffffff+amr"}
    (answer,) = service.predict(click)["results"]
    assert len(masks(answer)) == 1
    assert answer["result"][1]["value"]["text"] == []  # and what was told is taken away


def test_prediction_waits_for_weights(make: Callable[..., Service], model: FloodModel) -> None:
    def factory() -> Session:
        time.sleep(0.2)
        return Session(model)

    service = make(factory)
    assert len(service.predict(request(task(), context={"result": [keypoint(20, 20)]}))["results"]) == 1


@pytest.mark.parametrize("error", [WeightsError("'no_such' is unknown."), TimeoutError("slow"), SystemExit(1)])
def test_weights_that_do_not_load(make: Callable[..., Service], error: BaseException) -> None:
    def factory() -> Session:
        raise error

    service = make(factory)
    with pytest.raises(NotReadyError, match=type(error).__name__):
        service.predict(request(task()))
    (told,) = service.predict(request(task(), context={"result": [keypoint(20, 20)]}))["results"]
    assert type(error).__name__ in told["result"][0]["value"]["text"][0]
    with pytest.raises(NotReadyError, match="could not be loaded"):
        service.setup({"project": "5.1", "schema": EXAMPLES["brush"]})
    assert service.health() == {"status": "UP", "model": "failed"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"project": None}, "project"),
        ({"project": ""}, "project"),
        ({"project": True}, "project"),
        ({"schema": None}, "schema"),
        ({"schema": "<View></View>"}, "<Image"),
        ({"schema": "<View>"}, "not XML"),
        ({"schema": '<View><Text name="t" value="$text"/></View>'}, "<Image"),
        ({"extra_params": "{"}, "no JSON"),
        ({"extra_params": [1]}, "object is needed"),
        ({"extra_params": {"arm": True}}, "'arm'; known are amr"),
        ({"extra_params": {"amr": "on"}}, "true, false"),
        ({"extra_params": {"amr": {"rules": 1}}}, "rules; known are"),
        ({"extra_params": {"amr": {"rule": "best"}}}, "choose one of"),
        ({"extra_params": {"amr": {"iterations": 2}}}, "no use for"),
        ({"extra_params": {"amr": "best"}}, "choose one of full, fast, paper"),
        ({"extra_params": {"amr": {"depth": 10**400}}}, "too large"),
        ({"extra_params": {"amr": {"iterations": 10**9}}}, "from 1 to 64"),
        ({"extra_params": {"output": "circle"}}, "one of brush"),
        ({"extra_params": {"output": ["brush"]}}, "one of brush"),
        ({"extra_params": {"everything": 3}}, "true, false"),
        ({"extra_params": {"everything": {"grid": 3}}}, "'grid'; known are"),
        ({"extra_params": {"everything": {"points_per_side": 1000}}}, "from 1 to 64"),
        ({"extra_params": {"everything": {"iou_threshold": float("nan")}}}, "from 0 to 1"),
        ({"extra_params": {"everything": {"crops": 1}}}, '"crops" must be true or false'),
        ({"extra_params": {"max_masks": 0}}, "from 1 to"),
        ({"extra_params": {"label": ""}}, "name of a label"),
        ({"extra_params": {"tolerance": -1}}, "number of pixels"),
        ({"extra_params": {"smallest_part": 0}}, "from 1 to"),
        ({"extra_params": {"label": "Unheard-of"}}, "Unheard-of"),
    ],
)
def test_setup_says_what_is_wrong(make: Callable[..., Service], change: dict[str, Any], message: str) -> None:
    service = make()
    with pytest.raises(ConfigError, match=message):
        service.setup({"project": "5.1", "schema": EXAMPLES["brush"], **change})
    body = request(task(), context={"result": [keypoint(20, 20)]})
    del body["label_config"]
    with pytest.raises(ConfigError, match="label_config"):
        service.predict(body)  # nothing of it was kept


@pytest.mark.parametrize(
    ("body", "message"),
    [({}, "tasks"), ({"tasks": {}}, "tasks"), ({"tasks": []}, "label_config"), ({"tasks": [1], "project": "8"}, "8"),
     ({"tasks": [], "label_config": "<View/>"}, "<Image")],
)  # fmt: skip
def test_predict_says_what_is_wrong(make: Callable[..., Service], body: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().predict(body)


def test_extra_params_are_read() -> None:
    options = ServiceOptions().updated(
        '{"amr": {"rule": "centre", "iterations": 2}, "everything": {"min_area": 50, "crops": true}, "max_masks": 3}'
    )
    assert options.amr == AMRConfig(rule="centre", iterations=2)
    assert options.everything == {"min_area": 50, "crops": True}
    assert options.max_masks == 3
    assert options.version("w") == "w+amr(rule=centre,iterations=2)"
    assert ServiceOptions().updated("") == ServiceOptions().updated(None) == ServiceOptions()
    assert options.updated({"amr": False, "everything": False}).version("w") == "w"
    assert options.updated({"everything": True}).everything == {}


def test_version_of_a_file_covers_all_of_it(tmp_path: Any, model: FloodModel) -> None:
    model.name = str(tmp_path / "mine.safetensors")
    versions = set()
    for content in (b"one", b"two"):
        (tmp_path / "mine.safetensors").write_bytes(content)
        versions.add(weights_version(Session(model)))
    assert len(versions) == 2
    assert all(version.startswith("mine-") and len(version) == 13 for version in versions)


def test_webhook_passes_events_on_in_order(make: Callable[..., Service], caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def on_event(action: str, body: Any) -> None:
        heard.append(body["annotation"]["id"])
        if body["annotation"]["id"] == 1:
            raise OSError("disk full")

    service = make(on_event=on_event)
    for number in range(5):
        body = {"action": "ANNOTATION_CREATED", "annotation": {"id": number}, "project": {"id": 5}}
        assert service.webhook(body) == {"status": "accepted"}
    service.close()
    assert heard == list(range(5))
    assert "disk full" in caplog.text
    assert make().webhook({"action": "START_TRAINING"}) == {"status": "ignored"}
    with pytest.raises(ConfigError, match="action"):
        make().webhook({})


def test_real_weights_segment_everything_and_refine(
    make: Callable[..., Service], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="refinesam_labelstudio")
    session = refinesam.load("builtin", device="cpu")
    image = np.full((96, 128, 3), 200, np.uint8)
    y, x = np.mgrid[:96, :128]
    image[(y - 40) ** 2 + (x - 50) ** 2 < 24**2] = (30, 60, 160)
    service = make(lambda: session, read_image=lambda value, task_id: image, options=ServiceOptions())
    extra = {"amr": True, "everything": {"points_per_side": 4}, "max_masks": 5, "label": "Other"}
    version = service.setup({"project": "5.1", "schema": EXAMPLES["brush"], "extra_params": extra})["model_version"]
    assert version == f"builtin-{session.model.fingerprint[:8]}+amr"
    (result,) = service.predict(request(task()))["results"]
    assert 1 <= len(result["result"]) <= 5
    assert "1 tasks had no box and no click and were segmented whole" in caplog.text
    assert "nothing was found in 0." in caplog.text
    assert {tuple(region["value"]["brushlabels"]) for region in result["result"]} == {("Other",)}
    disc = (y - 40) ** 2 + (x - 50) ** 2 < 24**2
    (clicked,) = service.predict(request(task(), context={"result": [keypoint(50 / 1.28, 40 / 0.96, hw=(96, 128))]}))[
        "results"
    ]
    (mask,) = masks(clicked)
    assert (mask & disc).sum() / (mask | disc).sum() > 0.9
    assert session.cache.misses == 1


@pytest.mark.parametrize("kind", list(EXAMPLES))
def test_what_else_a_click_may_mean_comes_as_further_regions(make: Callable[..., Service], kind: str) -> None:
    click = {"result": [keypoint(20, 20, is_positive=True)]}
    plain = make().predict(request(task(), context=click, kind=kind))["results"][0]
    assert not any("meta" in region for region in plain["result"])
    options = ServiceOptions(everything=None).updated({"alternatives": 2, "tolerance": 0})
    answer = make(options=options).predict(request(task(), context=click, kind=kind))["results"][0]
    parts = [region for region in answer["result"] if "parentID" not in region and region["type"] != "textarea"]
    # The model's own choice, every other pixel of it, and the whole image.
    words = ["2 of 3 by size, predicted IoU 0.90", "1 of 3 by size, predicted IoU 0.50"]
    words.append("3 of 3 by size, predicted IoU 0.30")
    assert [region["meta"]["text"] for region in parts] == [[f"Candidate {text}"] for text in words]
    assert [region["score"] for region in parts] == pytest.approx([0.9, 0.5, 0.3])
    assert answer["score"] == pytest.approx(plain["score"])
    own, _, largest = (mask_from_region(region) for region in parts)
    assert own[:12, :16].all() and own.sum() == 12 * 16 and largest.all()


def test_no_more_alternatives_than_were_asked_for(make: Callable[..., Service]) -> None:
    click = {"result": [keypoint(20, 20, is_positive=True)]}
    service = make(options=ServiceOptions(everything=None, alternatives=1))
    found = masks(service.predict(request(task(), context=click))["results"][0])
    assert [int(mask.sum()) for mask in found] == [192, 96]


@pytest.mark.parametrize("value", [0, 1.5, "0.5", None])
def test_similarity_is_a_share_or_a_switch(value: object) -> None:
    with pytest.raises(ConfigError, match='"similar" must be true, false or a number above 0, to 1'):
        ServiceOptions().updated({"similar": value})
    assert [ServiceOptions().updated({"similar": good}).similar for good in (True, False, 0.7)] == [0.5, None, 0.7]


@pytest.mark.parametrize("value", [-1, 9, True, "2", 1.5])
def test_a_number_of_alternatives_is_whole(value: object) -> None:
    with pytest.raises(ConfigError, match='"alternatives" must be a whole number from 0 to 8'):
        ServiceOptions().updated({"alternatives": value})
