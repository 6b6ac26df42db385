"""An annotator at work: the real annotation page in headless Chromium, with smart tools that our backend answers."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Request, expect, sync_playwright
from skimage import data

import real_label_studio
import refinesam
from chromium import CHROMIUM, FLAGS
from real_label_studio import EMAIL, PASSWORD, PATIENCE_S, Backend, LabelStudio, Project
from refinesam import Prompt, Session
from refinesam_labelstudio.app import create_app
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.labeling_config import EXAMPLES
from refinesam_labelstudio.results import is_unchanged, mask_from_region
from refinesam_labelstudio.service import Service

# With REFINESAM_SCREENSHOTS=docs/labelstudio the pictures of the documentation are taken anew.
SCREENSHOTS = os.environ.get("REFINESAM_SCREENSHOTS")
COINS = data.coins()
ORIENTATION = 0x0112
# The rows of labels below the image, in the order of the labeling config.
POINTS, BOXES = 1, 2
IMAGE_SHOWN = """() => {
  const image = window.Htx?.annotationStore?.selected?.objects?.[0];
  return image && image.naturalWidth > 1 && image.stageWidth > 1 && document.querySelector('.konvajs-content canvas');
}"""
REGIONS = "() => window.Htx.annotationStore.selected.regions.map(({type}) => type)"
IMAGE_PLACE = """() => {
  const image = window.Htx.annotationStore.selected.objects[0];
  const stage = document.querySelector('.konvajs-content').getBoundingClientRect();
  return [stage.x + image.zoomingPositionX, stage.y + image.zoomingPositionY,
          image.stageWidth / image.naturalWidth * image.zoomScale];
}"""


def encoded(pixels: np.ndarray, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


class Annotator:
    """A hand on the annotation page; positions are pixels of the image."""

    def __init__(self, page: Page, project: Project, task_id: int) -> None:
        self.page = page
        self.asked: list[list[dict[str, Any]]] = []
        page.goto(f"{project.server.url}/projects/{project.id}/data?task={task_id}")
        page.wait_for_function(IMAGE_SHOWN)
        toggle = page.get_by_test_id("bottombar-auto-annotation-toggle")
        if not toggle.is_checked():
            page.locator(".lsf-dynamic-preannotations").click()

    def choose(self, tool: str, group: int, label: str = "Object") -> None:
        """Choose a smart tool and the label of its answers."""
        self._label = self.page.locator(".lsf-labels").nth(group).locator(".lsf-label", has_text=label)
        self._label.click()
        self.page.locator(".lsf-tool_smart").first.hover()
        self.page.locator(f'.lsf-toolbar__smart .lsf-tool[aria-label="{tool}"]').click()

    def click(self, x: float, y: float, modifier: str | None = None) -> list[dict[str, Any]]:
        """Click, wait for the answer, and return its regions."""
        return self._drawn([(x, y)], modifier)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> list[dict[str, Any]]:
        """Draw a rectangle, wait for the answer, and return its regions."""
        return self._drawn([start, end])

    def accept(self) -> None:
        self.page.get_by_test_id("bottombar-accept-suggestions-button").click()

    def submit(self) -> None:
        with self.page.expect_response(
            lambda response: "/annotations" in response.url and response.request.method == "POST"
        ):
            self.page.get_by_test_id("bottombar-submit-button").click()

    def picture(self, name: str) -> None:
        if SCREENSHOTS:
            self.page.mouse.move(2, 2)
            self.page.wait_for_timeout(500)
            with Image.open(io.BytesIO(self.page.screenshot())) as image:
                # Fewer colours make it small; the rare ones, of labels and buttons, must stay.
                few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
                few.save(Path(SCREENSHOTS) / f"{name}.png", optimize=True)

    def unanswered(self, x: float, y: float) -> dict[str, Any]:
        """Click, and return what Label Studio's server answered the page instead of regions."""
        response: dict[str, Any] = self._response([(x, y)]).response().json()
        assert "data" not in response
        return response

    def _drawn(self, positions: list[tuple[float, float]], modifier: str | None = None) -> list[dict[str, Any]]:
        request = self._response(positions, modifier)
        self.asked.append(request.post_data_json["context"]["result"])
        answer: list[dict[str, Any]] = request.response().json()["data"]["result"]
        return answer

    def _response(self, positions: list[tuple[float, float]], modifier: str | None = None) -> Request:
        """Draw, wait for the answer, and return the request that was answered."""
        if not self.page.locator(".lsf-label_selected").count():  # a click takes the choice back
            self._label.click()
        left, top, scale = self.page.evaluate(IMAGE_PLACE)
        places = [(left + x * scale, top + y * scale) for x, y in positions]
        mouse, keyboard = self.page.mouse, self.page.keyboard
        with self.page.expect_response(lambda response: "interactive-annotating" in response.url) as caught:
            if modifier:
                keyboard.down(modifier)
            mouse.move(*places[0])
            mouse.down()
            if len(places) > 1:
                mouse.move(*places[1], steps=8)
            mouse.up()
            if modifier:
                keyboard.up(modifier)
        return caught.value.request


@pytest.fixture(scope="module")
def page(label_studio: LabelStudio) -> Iterator[Page]:
    """A page of the annotator's, logged in."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(1000 * PATIENCE_S)
        page.goto(f"{label_studio.url}/user/login/")
        page.fill("input[name=email]", EMAIL)
        page.fill("input[name=password]", PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_load_state()
        yield page
        browser.close()


@pytest.fixture(scope="module")
def reference() -> Session:
    """Another session with the same weights: what the page must end up with."""
    return refinesam.load("builtin")


def prompt_of(regions: list[dict[str, Any]], image_hw: tuple[int, int]) -> Prompt:
    """The pixels that the page's own percentages mean."""
    scale = np.array([image_hw[1], image_hw[0]]) / 100
    values = [region["value"] for region in regions]
    if "height" in values[0]:
        (value,) = values
        corner = np.array([value["x"], value["y"]])
        return Prompt(box=np.concatenate([corner * scale, (corner + [value["width"], value["height"]]) * scale]))
    points = [np.array([value["x"], value["y"]]) * scale for value in values]
    return Prompt(points=points, labels=[int(region["is_positive"]) for region in regions])


def submitted(project: Project, task_id: int) -> list[np.ndarray]:
    """The masks of the only annotation, oldest first; it holds nothing else."""
    (annotation,) = project.server.call("GET", f"/api/tasks/{task_id}")["annotations"]
    # Nobody painted on them.
    assert all(is_unchanged(region, mask_from_region(region)) for region in annotation["result"])
    assert {(region["type"], region["from_name"]) for region in annotation["result"]} == {("brushlabels", "mask")}
    return [mask_from_region(region) for region in annotation["result"]]


def test_click_negative_click_rectangle_accept_submit(
    page: Page, label_studio: LabelStudio, backend: Backend, reference: Session
) -> None:
    coin, box = (117, 200), (252, 168, 300, 220)
    project = label_studio.project(EXAMPLES["brush"], {"coins.png": encoded(COINS, "PNG")})
    project.attach(backend.url, extra_params={"everything": False})
    task_id = project.tasks["coins.png"]
    photo = reference.encode(np.stack([COINS] * 3, axis=2))
    annotator = Annotator(page, project, task_id)

    annotator.choose("key-point-tool", POINTS)
    (answer,) = annotator.click(*coin)
    # What the user takes away: the place in the mask that is farthest from the click.
    inside = cv2.erode(mask_from_region(answer).astype(np.uint8), np.ones((7, 7), np.uint8))
    rows, columns = np.nonzero(inside)
    farthest = int(np.argmax(np.hypot(columns - coin[0], rows - coin[1])))
    unwanted = (int(columns[farthest]), int(rows[farthest]))
    annotator.picture("click")
    annotator.click(*unwanted, modifier="Alt")
    clicks = prompt_of(annotator.asked[-1], photo.image_hw)
    assert clicks.points == pytest.approx(np.array([coin, unwanted]), abs=1)
    assert clicks.labels.tolist() == [1, 0]
    annotator.picture("negative_click")
    annotator.accept()
    annotator.choose("rectangle-tool", BOXES)
    annotator.drag(box[:2], box[2:])
    drawn = prompt_of(annotator.asked[-1], photo.image_hw)
    assert drawn.box == pytest.approx(np.array(box), abs=1)
    annotator.picture("rectangle")
    annotator.accept()
    annotator.submit()
    annotator.picture("submitted")

    clicked, boxed = submitted(project, task_id)
    assert np.array_equal(clicked, photo.predict(clicks).mask)
    assert clicked[200, 117] and not clicked[unwanted[::-1]]
    assert np.array_equal(boxed, photo.predict(drawn).mask)


def test_a_photo_that_was_turned_is_answered_as_it_is_shown(
    page: Page, label_studio: LabelStudio, backend: Backend, reference: Session
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    stored = encoded(np.ascontiguousarray(np.rot90(COINS[:, :200])), "JPEG", exif=exif, quality=95)
    with Image.open(io.BytesIO(stored)) as image:
        photo = reference.encode(np.ascontiguousarray(np.rot90(np.asarray(image.convert("RGB")), -1)))
    project = label_studio.project(EXAMPLES["brush"], {"turned.jpg": stored})
    project.attach(backend.url, extra_params={"everything": False})
    annotator = Annotator(page, project, project.tasks["turned.jpg"])
    annotator.choose("rectangle-tool", BOXES)
    annotator.drag((84, 108), (122, 145))
    drawn = prompt_of(annotator.asked[-1], photo.image_hw)
    assert drawn.box == pytest.approx(np.array([84, 108, 122, 145]), abs=1)
    annotator.accept()
    annotator.submit()
    (mask,) = submitted(project, project.tasks["turned.jpg"])
    assert np.array_equal(mask, photo.predict(drawn).mask)
    assert mask[126, 103], "the middle of the coin"


def test_an_annotator_sees_why_nothing_came(page: Page, label_studio: LabelStudio, backend: Backend) -> None:
    config = EXAMPLES["brush"].replace('value="Object"', 'value="Mine"', 1)  # so that no brush has the label of a click
    project = label_studio.project(config, {"coins.png": encoded(COINS, "PNG")})
    project.attach(backend.url, extra_params={"everything": False})
    annotator = Annotator(page, project, project.tasks["coins.png"])
    said = page.get_by_text("No tag that takes masks of image 'image' has the label 'Object'")
    annotator.choose("key-point-tool", POINTS)
    annotator.click(117, 200)
    said.wait_for()
    annotator.choose("key-point-tool", POINTS, "Other")
    annotator.click(300, 200)
    said.wait_for(state="detached")
    annotator.accept()
    annotator.submit()
    (annotation,) = label_studio.call("GET", f"/api/tasks/{project.tasks['coins.png']}")["annotations"]
    assert [region["value"]["brushlabels"] for region in annotation["result"] if region["type"] == "brushlabels"] == [
        ["Other"]
    ]


def test_an_annotator_sees_that_an_image_cannot_be_read(
    page: Page, label_studio: LabelStudio, backend: Backend, tmp_path: Path
) -> None:
    """The browser may fetch it, the backend may not: nobody told it where Label Studio is."""
    images = ImageAccess(None, FileCache(tmp_path))
    service = Service(lambda: backend.session, lambda value, task_id: image_for_task(value, images, task_id))
    project = label_studio.project(EXAMPLES["brush"], {"coins.png": encoded(COINS, "PNG")})
    with real_label_studio.serving(partial(create_app, service)) as url:
        project.attach(url, extra_params={"everything": False})
        annotator = Annotator(page, project, project.tasks["coins.png"])
        annotator.choose("key-point-tool", POINTS)
        (message,) = annotator.click(117, 200)
    (said,) = message["value"]["text"]
    assert message["type"] == "textarea" and "LABEL_STUDIO_URL" in said
    expect(page.get_by_text(said)).to_be_in_viewport()


def test_what_an_annotator_sees_of_a_backend_that_is_down(
    page: Page, label_studio: LabelStudio, backend: Backend, tmp_path: Path
) -> None:
    """Label Studio drops the error, so what stands in the empty line for messages has to say it."""
    project = label_studio.project(EXAMPLES["brush"], {"coins.png": encoded(COINS, "PNG")})
    port = real_label_studio.free_port()
    with real_label_studio.backend(label_studio, tmp_path, backend.session, port) as serving:
        project.attach(serving.url, extra_params={"everything": False})
    annotator = Annotator(page, project, project.tasks["coins.png"])
    hint = page.get_by_placeholder("No answer and no reason: the model's server is not running")
    suggestions = page.get_by_test_id("bottombar-accept-suggestions-button")

    annotator.choose("key-point-tool", POINTS)
    (error,) = annotator.unanswered(117, 200)["errors"]
    assert f"127.0.0.1', port={port}" in error
    expect(hint).to_be_in_viewport()
    expect(page.get_by_text("Max retries exceeded")).to_have_count(0)  # what the server said is shown nowhere
    assert page.evaluate(REGIONS) == ["keypointregion"], "the click stays"
    expect(suggestions).to_have_count(0)
    annotator.picture("down")

    page.goto(f"{label_studio.url}/projects/{project.id}/settings/ml")
    expect(page.get_by_text("Disconnected")).to_be_visible(timeout=1000 * PATIENCE_S)

    with real_label_studio.backend(label_studio, tmp_path, backend.session, port):
        annotator = Annotator(page, project, project.tasks["coins.png"])
        annotator.choose("key-point-tool", POINTS)
        annotator.click(300, 200)  # not where the first click may still be, from a draft
        expect(suggestions).to_be_visible()
