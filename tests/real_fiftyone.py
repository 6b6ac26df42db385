"""The real FiftyOne App and a browser on it: App server, MongoDB and headless Chromium, nothing pretended."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import fiftyone as fo
import numpy as np
from playwright.sync_api import Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from chromium import CHROMIUM, FLAGS
from refinesam_fiftyone.labels import detection_from_mask

PATIENCE_S = 60
PANEL = "comparison"


def draw_shapes(name: str, folder: Path, samples: int, objects: int = 2) -> Any:
    """Make a dataset of blurred ellipses with their masks in "ground_truth" and the same boxes alone in "boxes"."""
    dataset, made = fo.Dataset(name), []
    for i in range(samples):
        image = np.full((60, 90, 3), (60, 70, 80), np.uint8)
        truths, boxes = [], []
        for j in range(objects):
            mask = np.zeros((60, 90), np.uint8)
            cv2.ellipse(mask, (24 + 42 * j, 24 + 3 * (i % 4)), (14, 9 + 3 * j), 20.0 * i, 0, 360, 1, -1)
            image[mask > 0] = (200, 170 - 40 * j, 60 + 60 * j)
            truths.append(detection_from_mask(mask > 0, label=("coin", "disc")[j]))
            boxes.append(fo.Detection(label=truths[-1].label, bounding_box=truths[-1].bounding_box))
        path = folder / f"{name}_{i}.png"
        cv2.imwrite(str(path), cv2.GaussianBlur(image, (0, 0), 1.2))
        sample = fo.Sample(filepath=str(path), metadata=fo.ImageMetadata(width=90, height=60, num_channels=3))
        sample["ground_truth"], sample["boxes"] = fo.Detections(detections=truths), fo.Detections(detections=boxes)
        made.append(sample)
    dataset.add_samples(made)
    return dataset


def draw_videos(name: str, folder: Path, videos: int, frames: int) -> Any:
    """Make a dataset of videos whose frames are the images of `draw_shapes`, files of their own, with their labels."""
    images, dataset = draw_shapes(f"{name}-images", folder, videos * frames), fo.Dataset(name)
    drawn = iter(images)
    for number in range(videos):
        metadata = fo.VideoMetadata(frame_width=90, frame_height=60, frame_rate=5, total_frame_count=frames)
        video = fo.Sample(filepath=str(folder / f"{name}_{number}.avi"), metadata=metadata)
        writer = cv2.VideoWriter(video.filepath, cv2.VideoWriter_fourcc(*"MJPG"), 5, (90, 60))
        for index in range(1, frames + 1):
            image = next(drawn)
            writer.write(cv2.imread(image.filepath))
            labels = {field: image[field].copy() for field in ("ground_truth", "boxes")}
            video.frames[index] = fo.Frame(filepath=image.filepath, **labels)
        writer.release()
        dataset.add_sample(video)
    images.delete()
    return dataset


class App:
    """A person in front of the App."""

    def __init__(self, page: Page, url: str, session: Any) -> None:
        self.page = page
        self.url = url
        self.session = session

    def open_dataset(self, name: str) -> None:
        """Go to a dataset and wait for its samples: all of them, whatever view of it was shown before."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                # The session keeps its view of the same dataset, and would give it to the page again.
                self.session.dataset = fo.load_dataset(name)
                self.session.clear_view()
                break
            except RuntimeError:
                # It isn't connected, and on connecting would take the page away from any dataset but its own.
                assert time.monotonic() < end, "the session never connected to the App's server"
                time.sleep(0.2)
        self.page.goto(f"{self.url}/datasets/{name}")
        self.page.wait_for_selector("[data-cy=looker]")

    def open_panel(self) -> None:
        """Open the comparison panel beside the samples, if it is not open from before, as the App remembers it."""
        tab = self.page.locator(f'[data-cy="panel-tab-{PANEL}"]')
        self.page.locator('[data-cy="new-panel-btn"]').first.wait_for()
        if not tab.count():
            self.page.locator('[data-cy="new-panel-btn"]').first.click()
            self.page.click(f'[data-cy="new-panel-option-{PANEL}"]')
            tab.wait_for()

    def open_operator(self, label: str) -> None:
        """Open an operator's form through the operator browser."""
        search = self.page.get_by_placeholder("Search operations by name...")
        for _ in range(6):
            # A page that is still loading swallows the key, or opens the browser before it knows the operators.
            self.page.keyboard.press("`")
            try:
                search.fill(label, timeout=10_000)
                self.page.get_by_text(label, exact=True).last.click(timeout=10_000)
                return
            except PlaywrightTimeout:
                self.page.keyboard.press("Escape")
        raise AssertionError(f"the App never offered the operator {label!r}")

    def plot(self, index: int) -> Locator:
        """The panel's plots in order."""
        return self.page.locator(".js-plotly-plot").nth(index)

    def traces(self, index: int) -> list[dict[str, Any]]:
        """What a plot shows, as Plotly has it."""
        traces: list[dict[str, Any]] = self.plot(index).evaluate(
            "plot => (plot.data || []).map(({name, x, y, ids}) => ({name, x: [...x], y: [...y], ids: [...ids]}))"
        )
        return traces

    def table(self, index: int = 0) -> list[list[str]]:
        """The texts of one of the panel's tables, without its headings: the summary, or the objects."""
        rows: list[list[str]] = self.page.locator("table tbody").evaluate_all(
            "(bodies, index) => bodies.slice(index, index + 1).flatMap("
            "body => [...body.rows].map(row => [...row.cells].map(cell => cell.innerText)))",
            index,
        )
        return rows

    def wait_until(self, condition: Any, what: str) -> None:
        """Wait for something that only Python can tell."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"the App never showed {what}"
            self.page.wait_for_timeout(200)


@contextmanager
def app(viewport: tuple[int, int] = (1600, 1000)) -> Iterator[App]:
    """Start the App on a free port and a browser."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with warnings.catch_warnings():
        # FiftyOne, with a psutil that is newer than it is.
        warnings.simplefilter("ignore", DeprecationWarning)
        session = fo.launch_app(remote=True, port=port, address="127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for_server(url)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": viewport[0], "height": viewport[1]})
            page.set_default_timeout(1000 * PATIENCE_S)
            # A popover that would lie above every button.
            page.add_init_script("localStorage.setItem('fiftyone-enterprise-tooltip-seen', 'true')")
            yield App(page, url, session)
            browser.close()
    finally:
        session.close()


def _wait_for_server(url: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/fiftyone", timeout=5) as answer:
                answer.read()
            return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < end, "the App's server did not start"
            time.sleep(0.3)
