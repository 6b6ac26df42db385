"""A real Label Studio and the real backend: what arrives on the server is what refinesam says of the same pixels."""

from __future__ import annotations

import io
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_fill_holes, binary_opening
from skimage import data
from skimage.filters import threshold_local
from skimage.measure import label, regionprops

import real_label_studio
import refinesam
from real_label_studio import EVERYTHING, Backend, LabelStudio, Project
from refinesam import AMRConfig, EncodedImage, Prompt, Session
from refinesam_labelstudio.access import LabelStudioServer, ServerError
from refinesam_labelstudio.labeling_config import EXAMPLES
from refinesam_labelstudio.options import weights_version
from refinesam_labelstudio.results import mask_from_region

Region = dict[str, Any]
ORIENTATION = 0x0112


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def turned_jpeg(pixels: np.ndarray) -> bytes:
    """A file whose rows are the image's columns, as a camera that was held upright writes it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


COINS = data.coins()
PHOTO = np.stack([COINS] * 3, axis=2)
FILES = {
    "photo.png": png(PHOTO),
    "turned.jpg": turned_jpeg(PHOTO[:150, :250]),
    "gray.png": png(COINS[100:250, :200]),
    "sixteen.png": png(COINS[:160, 100:300].astype(np.uint16) * 200 + 1000),
    "corrupt.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.fixture(scope="module")
def reference() -> Session:
    """Another session with the same weights: what the backend must agree with."""
    return refinesam.load("builtin")


@cache
def pixels_of(name: str) -> np.ndarray:
    """The image as a person sees it, read without the backend's own reader."""
    if name == "turned.jpg":
        with Image.open(io.BytesIO(FILES[name])) as image:
            return np.rot90(np.asarray(image.convert("RGB")), -1)
    if name == "sixteen.png":
        return refinesam.as_rgb(COINS[:160, 100:300].astype(np.uint16) * 200 + 1000)
    with Image.open(io.BytesIO(FILES[name])) as image:
        return np.asarray(image.convert("RGB"))


def keypoint(xy: tuple[float, float], image_hw: tuple[int, ...], positive: bool = True, **more: Any) -> Region:
    """A smart keypoint in pixels, as the annotation page sends it."""
    x, y = 100 * xy[0] / image_hw[1], 100 * xy[1] / image_hw[0]
    value = {"x": x, "y": y, "width": 0.5, "labels": ["Object"], "keypointlabels": ["Object"]}
    return {
        "original_width": image_hw[1],
        "original_height": image_hw[0],
        "image_rotation": 0,
        "value": value,
        "is_positive": positive,
        "id": f"point{xy[0]}-{xy[1]}",
        "from_name": "point",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
        **more,
    }


def rectangle(xyxy: tuple[float, float, float, float], image_hw: tuple[int, ...]) -> Region:
    (x0, x1), (y0, y1) = (100 * np.array(xyxy).reshape(2, 2).T / np.array([[image_hw[1]], [image_hw[0]]])).tolist()
    value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0, "rectanglelabels": ["Object"]}
    return {
        **keypoint((xyxy[0], xyxy[1]), image_hw),
        "from_name": "box",
        "type": "rectanglelabels",
        "id": f"box{xyxy}",
        "value": value,
    }


def everything(session: Session, name: str) -> list[np.ndarray]:
    found = session.segment_everything(pixels_of(name), **EVERYTHING)
    return [item.mask for item in found]


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


def only_mask(regions: list[Region]) -> np.ndarray:
    (region,) = regions
    return mask_from_region(region)


@pytest.fixture(scope="module")
def brush(label_studio: LabelStudio, backend: Backend) -> Project:
    """All the images, and a brush to answer with."""
    project = label_studio.project(EXAMPLES["brush"], FILES)
    project.attach(backend.url)
    return project


def test_every_image_is_segmented_and_a_corrupt_one_costs_no_other(brush: Project, reference: Session) -> None:
    brush.retrieve()
    for name in FILES:
        if name == "corrupt.png":
            assert brush.predictions(name) == []  # not even an empty one, or it would never be asked for again
            continue
        expected = everything(reference, name)
        assert expected, name
        found = brush.masks(name)
        assert {mask.shape for mask in found} == {pixels_of(name).shape[:2]}, name
        assert same(found, expected), name
    (stored,) = brush.predictions("photo.png")
    assert stored["model_version"] == weights_version(reference)
    assert 0 < stored["score"] <= 1


def test_a_batch_that_takes_too_long_is_finished_by_the_next(
    label_studio: LabelStudio, backend: Backend, tmp_path: Path
) -> None:
    files = {f"part{k}.png": png(PHOTO[60 * k : 60 * k + 120]) for k in range(3)}
    project = label_studio.project(EXAMPLES["brush"], files)
    port = real_label_studio.free_port()
    serving = partial(real_label_studio.backend, label_studio, tmp_path, backend.session, port)
    with serving(service={"batch_s": -1}) as late:
        project.attach(late.url)
        project.retrieve()
        assert [project.predictions(name) for name in files] == [[], [], []]
    with serving() as slow:
        project.retrieve()
        assert all(len(project.predictions(name)) == 1 for name in files), slow.url


def test_an_image_that_was_missing_is_answered_once_it_is_there(label_studio: LabelStudio, backend: Backend) -> None:
    """By the next retrieve, whether the task failed or had nothing to ask."""
    project = label_studio.project(EXAMPLES["brush"], {"photo.png": FILES["photo.png"]})
    project.attach(backend.url)
    there = label_studio.call("GET", f"/api/tasks/{project.tasks['photo.png']}")["data"]["image"]
    body = [{"data": {"image": "/data/upload/1/none.png"}}]
    (task,) = label_studio.call("POST", f"/api/projects/{project.id}/import?return_task_ids=true", json=body)[
        "task_ids"
    ]
    project.tasks["late"] = task
    project.retrieve()
    assert (len(project.predictions("photo.png")), project.predictions("late")) == (1, [])
    label_studio.call("PATCH", f"/api/tasks/{task}/", json={"data": {"image": there}})
    project.retrieve()
    assert (len(project.predictions("photo.png")), len(project.predictions("late"))) == (1, 1)
    assert project.masks("late")


@pytest.mark.parametrize("kind", ["polygon", "bitmask", "box"])
def test_other_kinds_of_regions(label_studio: LabelStudio, backend: Backend, reference: Session, kind: str) -> None:
    name = "gray.png"
    project = label_studio.project(EXAMPLES[kind], {name: FILES[name]})
    project.attach(backend.url)
    project.retrieve()
    expected = everything(reference, name)
    (stored,) = project.predictions(name)
    found = project.masks(name)
    if kind == "bitmask":
        assert same(found, expected)
    elif kind == "box":
        assert {region["type"] for region in stored["result"]} == {"rectanglelabels"}
        assert same(found, [box_of(mask) for mask in expected])
    else:
        by_first: dict[str, np.ndarray] = {}
        for region in stored["result"]:
            first = region.get("parentID", region["id"])
            by_first[first] = by_first.get(first, False) | mask_from_region(region)
        assert len(by_first) == len(expected)
        assert min(map(iou, by_first.values(), expected)) > 0.9


def test_keypoints_and_rectangles_of_an_annotator(brush: Project, reference: Session) -> None:
    for name, at, other in [("photo.png", (44, 45), (330, 45)), ("turned.jpg", (45, 43), (105, 40))]:
        photo = reference.encode(pixels_of(name))
        hw = photo.image_hw
        first = only_mask(brush.ask(name, [keypoint(at, hw)]))
        assert np.array_equal(first, photo.predict(Prompt(points=[at], labels=[1])).mask)
        assert first[at[1], at[0]]
        negative = only_mask(brush.ask(name, [keypoint(at, hw), keypoint(other, hw, positive=False)]))
        assert np.array_equal(negative, photo.predict(Prompt(points=[at, other], labels=[1, 0])).mask)
        boxes = [(at[0] - 25, at[1] - 25, at[0] + 25, at[1] + 25), (other[0] - 25, 15, other[0] + 25, 70)]
        found = brush.ask(name, [rectangle(box, hw) for box in boxes])
        assert same([mask_from_region(region) for region in found], [predicted(photo, box) for box in boxes])


def test_a_click_that_lost_its_sign_in_a_reload_has_it_in_the_draft(brush: Project, reference: Session) -> None:
    photo = reference.encode(pixels_of("gray.png"))
    kept, lost = keypoint((60, 40), photo.image_hw), keypoint((150, 40), photo.image_hw, positive=False)
    brush.server.call(
        "POST", f"/api/tasks/{brush.tasks['gray.png']}/drafts", json={"result": [kept, lost], "lead_time": 1}
    )
    asked = [kept, {key: value for key, value in lost.items() if key != "is_positive"}]
    mask = only_mask(brush.ask("gray.png", asked))
    assert np.array_equal(mask, photo.predict(Prompt(points=[(60, 40), (150, 40)], labels=[1, 0])).mask)


def test_refinement_is_asked_for_in_the_extra_params(
    label_studio: LabelStudio, backend: Backend, reference: Session
) -> None:
    project = label_studio.project(EXAMPLES["brush"], {"photo.png": FILES["photo.png"]})
    project.attach(backend.url, extra_params={"amr": True, "everything": False})
    photo = reference.encode(pixels_of("photo.png"))
    plain = photo.predict(Prompt(points=[(100, 110)], labels=[1]))
    mask = only_mask(project.ask("photo.png", [keypoint((100, 110), photo.image_hw)]))
    assert np.array_equal(mask, photo.refine(plain, AMRConfig()).mask)
    listed = label_studio.call("GET", "/api/ml", params={"project": project.id})
    assert [item["model_version"] for item in listed] == [f"{weights_version(reference)}+amr"]


@pytest.mark.parametrize("amr", [False, "fast"])
def test_what_else_a_click_may_mean_is_asked_for_in_the_extra_params(
    label_studio: LabelStudio, backend: Backend, reference: Session, amr: object
) -> None:
    photo = data.astronaut()
    project = label_studio.project(EXAMPLES["brush"], {"person.png": png(photo)})
    project.attach(backend.url, extra_params={"alternatives": 3, "amr": amr})
    encoded = reference.encode(photo)
    expected = encoded.predict(Prompt(points=[[220, 110]]))
    if amr:
        expected = encoded.refine(expected, AMRConfig.named("fast"))
    candidates = expected.candidates
    assert len(candidates) >= 2
    regions = project.ask("person.png", [keypoint((220, 110), photo.shape)])
    found = [mask_from_region(region) for region in regions]
    assert np.array_equal(found[0], expected.mask)
    others = [one.mask for one in candidates if not np.array_equal(one.mask, expected.mask)]
    assert same(found[1:], others)
    assert all(f"of {len(candidates)} by size, predicted IoU" in region["meta"]["text"][0] for region in regions)


def test_boxes_of_an_annotation_become_the_coins_in_them(
    label_studio: LabelStudio, backend: Backend, reference: Session
) -> None:
    name = "photo.png"
    project = label_studio.project(EXAMPLES["brush"], {name: FILES[name]})
    project.attach(backend.url)
    photo = reference.encode(pixels_of(name))
    coins = true_coins()
    boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in map(np.nonzero, coins)]
    annotation = {"result": [rectangle(box, photo.image_hw) for box in boxes]}
    label_studio.call("POST", f"/api/tasks/{project.tasks[name]}/annotations/", json=annotation)
    project.retrieve()
    found = project.masks(name)
    assert same(found, [predicted(photo, box) for box in boxes])
    assert min(map(iou, found, coins)) > 0.85


def test_boxes_of_an_annotation_are_examples_of_their_likes(
    label_studio: LabelStudio, backend: Backend, reference: Session
) -> None:
    name = "photo.png"
    project = label_studio.project(EXAMPLES["brush"], {name: FILES[name]})
    project.attach(backend.url, extra_params={"similar": True})
    photo = reference.encode(pixels_of(name))
    coins = true_coins()
    boxes = [(x.min(), y.min(), x.max() + 1, y.max() + 1) for y, x in map(np.nonzero, coins[:2])]
    annotation = {"result": [rectangle(box, photo.image_hw) for box in boxes]}
    label_studio.call("POST", f"/api/tasks/{project.tasks[name]}/annotations/", json=annotation)
    project.retrieve()
    found = project.masks(name)
    assert same(found[:2], [predicted(photo, box) for box in boxes])
    right = [max(iou(mask, coin) for mask in found[2:]) > 0.7 for coin in coins[2:]]
    assert np.mean(right) > 0.8 and len(found) < 1.5 * len(coins)


def test_parallel_clients_get_the_serial_answers_and_each_image_is_encoded_once(
    label_studio: LabelStudio, backend: Backend, reference: Session
) -> None:
    names = ["left.png", "right.png"]
    images = {"left.png": np.ascontiguousarray(PHOTO[:, :190]), "right.png": np.ascontiguousarray(PHOTO[:, 190:])}
    project = label_studio.project(EXAMPLES["brush"], {name: png(images[name]) for name in names})
    project.attach(backend.url)
    clicks = [(names[k % 2], (30 + 25 * (k // 2 % 4), 45 + 60 * (k // 8))) for k in range(32)]
    encoded = {name: reference.encode(images[name]) for name in names}
    serial = [encoded[name].predict(Prompt(points=[xy], labels=[1])).mask for name, xy in clicks]
    before = backend.encoder.runs
    together = threading.Barrier(8)

    def client(number: int) -> list[np.ndarray]:
        together.wait(timeout=60)
        mine = clicks[number::8]
        return [only_mask(project.ask(name, [keypoint(xy, encoded[name].image_hw)])) for name, xy in mine]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(client, range(8)))
    found = [answers[k % 8][k // 8] for k in range(32)]
    assert same(found, serial)
    assert backend.encoder.runs - before == 2


def test_opening_a_task_encodes_its_image_and_clicks_encode_nothing_more(
    label_studio: LabelStudio, backend: Backend, reference: Session
) -> None:
    image = np.ascontiguousarray(PHOTO[100:, 30:])
    project = label_studio.project(EXAMPLES["brush"], {"opened.png": png(image)})
    project.attach(backend.url, extra_params={"everything": False})
    before = backend.encoder.runs
    project.retrieve()
    photo = reference.encode(image)
    for x in range(40, 240, 20):
        found = only_mask(project.ask("opened.png", [keypoint((x, 90), photo.image_hw)]))
        assert np.array_equal(found, photo.predict(Prompt(points=[(x, 90)], labels=[1])).mask)
    assert backend.encoder.runs - before == 1


def test_an_access_token_that_expired_is_renewed_in_the_middle_of_a_run(
    label_studio: LabelStudio, backend: Backend, reference: Session
) -> None:
    files = {f"part{k}.png": png(PHOTO[60 * k : 60 * k + 120]) for k in range(3)}
    project = label_studio.project(EXAMPLES["brush"], files)
    project.attach(backend.url)
    for name, image in zip(files, (PHOTO[60 * k : 60 * k + 120] for k in range(3)), strict=True):
        backend.access.get_task(project.tasks[name])
        # As after its 300 seconds: the server refuses it.
        header, claims, _ = backend.access._access.split(".")
        backend.access._access = f"{header}.{claims}.{'A' * 43}"
        photo = reference.encode(np.ascontiguousarray(image))
        found = only_mask(project.ask(name, [keypoint((45, 50), photo.image_hw)]))
        assert np.array_equal(found, photo.predict(Prompt(points=[(45, 50)], labels=[1])).mask)
    refused = label_studio.client.get(
        "/api/projects", headers={"Authorization": f"Bearer {header}.{claims}.{'A' * 43}"}
    )
    assert refused.status_code == 401


def test_a_server_that_restarts_in_the_middle_of_a_run_costs_nothing(label_studio: LabelStudio, tmp_path: Path) -> None:
    files = {f"part{k}.png": png(PHOTO[20 * k : 20 * k + 100]) for k in range(6)}
    project = label_studio.project(EXAMPLES["brush"], files)
    access = LabelStudioServer(label_studio.url, label_studio.personal_token, attempts=60, timeout_s=20)
    with closing(access), ThreadPoolExecutor(1) as pool:
        restarted = None
        for k, (name, content) in enumerate(files.items()):
            if k == 2:
                label_studio.end()
                restarted = pool.submit(label_studio.start)
            address = access.get_task(project.tasks[name])["data"]["image"]
            access.download(address, tmp_path / name)
            assert (tmp_path / name).read_bytes() == content
        assert restarted is not None
        restarted.result()


def test_label_studio_loses_a_key_that_begins_with_a_dollar(tmp_path: Path) -> None:
    """What made a token be refused after a restart, once in fifty runs of these tests: no memory of ours."""
    program = """
import os, sys
from label_studio.core.utils.secret_key import generate_secret_key_if_missing as key
os.environ.pop("SECRET_KEY", None)
print(key(sys.argv[1]))
"""
    python = real_label_studio.PROGRAM.parent / "python"
    for begin, kept in (("a", True), ("$", False)):
        (tmp_path / ".env").write_text(f"SECRET_KEY={begin}bcdefgh\n")
        command = [str(python), "-c", program, str(tmp_path)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert (found[-1] == f"{begin}bcdefgh") is kept


def test_a_backend_whose_token_was_refused_comes_back_by_itself(
    label_studio: LabelStudio, backend: Backend, tmp_path: Path
) -> None:
    project = label_studio.project(EXAMPLES["brush"], {"photo.png": FILES["photo.png"]})
    address = f"/api/tasks/{project.tasks['photo.png']}"
    access = LabelStudioServer(label_studio.url, label_studio.personal_token, timeout_s=60)
    with closing(access):
        assert access.get_task(project.tasks["photo.png"])["id"]
        label_studio.end()
        label_studio.start(SECRET_KEY="another, as if it had lost the first")
        try:
            with pytest.raises(ServerError, match="isn't signed with the server's present key.*SECRET_KEY"):
                access.get_task(project.tasks["photo.png"])
        finally:
            label_studio.end()
            label_studio.start()
        assert access.get_task(project.tasks["photo.png"]) == label_studio.call("GET", address)
    project.attach(backend.url)
    assert project.ask("photo.png", [keypoint((44, 45), COINS.shape)])


def test_a_backend_with_a_password(label_studio: LabelStudio, backend: Backend, tmp_path: Path) -> None:
    files = {"photo.png": FILES["photo.png"]}
    known = {"auth_method": "BASIC_AUTH", "basic_auth_user": "studio", "basic_auth_pass": "sesame"}
    with real_label_studio.backend(label_studio, tmp_path, backend.session, basic_auth=("studio", "sesame")) as guarded:
        project = label_studio.project(EXAMPLES["brush"], files)
        project.attach(guarded.url, **known)
        assert project.ask("photo.png", [keypoint((44, 45), COINS.shape)])
        other = label_studio.project(EXAMPLES["brush"], files)
        body = {"url": guarded.url, "project": other.id, "title": "refinesam", **known, "basic_auth_pass": "wrong"}
        assert label_studio.client.post("/api/ml", json=body).is_client_error
        unknown = label_studio.client.post("/api/ml", json={**body, "auth_method": "NONE"})
        assert unknown.is_client_error


def test_a_backend_that_was_restarted_needs_no_setup(
    label_studio: LabelStudio, backend: Backend, tmp_path: Path
) -> None:
    project = label_studio.project(EXAMPLES["brush"], {"photo.png": FILES["photo.png"]})
    answers = []
    port = real_label_studio.free_port()
    for run in range(2):
        with real_label_studio.backend(label_studio, tmp_path, backend.session, port=port) as mortal:
            if run == 0:
                project.attach(mortal.url)
            answers.append(only_mask(project.ask("photo.png", [keypoint((44, 45), COINS.shape)])))
    assert answers[0].any()
    assert np.array_equal(*answers)


def predicted(photo: EncodedImage, box: tuple[float, ...]) -> np.ndarray:
    return photo.predict(Prompt(box=box)).mask


def true_coins() -> list[np.ndarray]:
    """The coins of the photo that a threshold tells from their background, with nothing of refinesam."""
    bright = binary_fill_holes(threshold_local(COINS, 101, offset=-15) < COINS)
    labels = label(binary_opening(bright, iterations=3))
    whole = [region for region in regionprops(labels) if region.area > 1000 and region.solidity > 0.92]
    assert len(whole) > 20
    return [labels == region.label for region in whole]


def box_of(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    filled = np.zeros_like(mask)
    filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return filled


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))
