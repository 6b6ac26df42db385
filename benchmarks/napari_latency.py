"""How long napari users wait: from a click to its mask on the canvas, for the window while the model works, and for
images too large to read.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/napari_latency.py --json benchmarks/results/napari.json

**click**: a real mouse press and release on the canvas, over an image that is encoded already. The clock runs from the
release to the end of the first frame in which a spot inside the mask, away from the click and from all marked points,
has another colour: after each frame the spot is read back from the framebuffer, which waits for the renderer. For
comparison, napari alone: the same click on a Points layer without the plugin, and the spot is the new point. The two
take turns, so that both see the same moods of the machine.

**gap**: a timer in the GUI's thread wants to tick every 5 ms; the largest gap between two ticks is the longest that the
window did not answer. "worker" means that the plugin's thread encodes or decodes while nothing is drawn; "shown"
includes what napari and the plugin draw. For comparison, napari alone showing the same: other pixels, another point.

**large**: a lazy image of 12,000 x 12,000 pixels in chunks of 512. Reads are counted by thread, so that napari's own,
which it needs for drawing, are told from the plugin's; memory is the largest growth of the process.

Run again with OMP_NUM_THREADS=1 where other programs keep the processor busy: PyTorch's threads wait for each other.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import cv2
import dask
import dask.array as da
import numpy as np
import psutil
import torch
from napari.layers import Image, Layer
from numpy.typing import NDArray
from qtpy.QtCore import QEventLoop, QPoint, QPointF, Qt, QTimer
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication
from skimage import data, transform
from vispy import gloo

import napari
from refinesam.files import write_json
from refinesam_napari.controller import Controller
from refinesam_napari.document import PlanePrompts, Point
from refinesam_napari.engine import Engine, Job, Work
from refinesam_napari.geometry import Plane
from refinesam_napari.images import CropReader, ImageSettings, ImageSnapshot
from refinesam_napari.inference import Model, PredictionRequest, encode, predict, sessions

PATIENCE_MS = 60_000
QUIET_MS = 400  # Between clicks: more than the engine's least interval, and time to draw what is left to draw.
COIN = (169, 128)  # Row and column in the middle of a coin of `photo`.
PLANE = Plane((0, 1), (-1, -1))
LARGE, CHUNK, RADIUS = 12_000, 512, 120
DISK, FAR_DISK = (6_100, 5_900), (1_500, 10_400)
Read = Counter[str]


def photo(seed: int = 0) -> NDArray[np.uint8]:
    """Coins at 1024 x 1024; another seed gives other pixels, so that they are encoded anew."""
    coins = transform.resize(data.coins(), (1024, 1024), preserve_range=True)
    noise = np.random.default_rng(seed).normal(0, 2, coins.shape)
    return np.asarray(np.clip(coins + noise, 0, 255), np.uint8)


@dataclass
class Window:
    """A napari window, with or without the plugin."""

    viewer: napari.Viewer
    controller: Controller | None
    spot: QPoint | None = None  # Of the canvas: read after each frame.
    colour: bytes = b""
    changed_at: float = 0.0
    loop: QEventLoop = field(default_factory=QEventLoop)

    @classmethod
    def of(cls, image: Any, plugin: bool, **settings: Any) -> Window:
        viewer = napari.Viewer()
        viewer.window.resize(1400, 900)
        viewer.add_image(image, name="image", **settings)
        controller = None
        if plugin:
            controller = viewer.window.add_plugin_dock_widget("refinesam", "refinesam")[1].controller
        QTest.qWait(500)
        viewer.reset_view()
        QTest.qWait(500)
        window = cls(viewer, controller)
        window.settle()
        window.canvas._scene_canvas.events.draw.connect(window._drawn, position="last")
        return window

    @property
    def canvas(self) -> Any:
        return self.viewer.window._qt_viewer.canvas

    @property
    def image(self) -> Image:
        return self.viewer.layers["image"]

    def close(self) -> None:
        self.viewer.close()
        QApplication.processEvents()

    def place(self, layer: Layer, row: float, column: float) -> QPoint:
        node = self.canvas.layer_to_visual[layer].node
        x, y = node.get_transform("visual", "canvas").map([column, row, 0, 1])[:2]
        return QPoint(round(x), round(y))

    def settle(self) -> None:
        if self.controller is not None:
            until(lambda: not self.controller.busy)
        QTest.qWait(QUIET_MS)

    def _drawn(self, event: object) -> None:
        if self.spot is None:
            return
        height = self.canvas._scene_canvas.physical_size[1]
        colour = gloo.read_pixels((self.spot.x() - 1, height - self.spot.y() - 2, 3, 3)).tobytes()
        if self.colour and colour != self.colour and not self.changed_at:
            self.changed_at = time.perf_counter()
            self.loop.quit()
        self.colour = colour

    def click(self, where: QPoint) -> float:
        """Press and release; return when the release was sent."""
        self._mouse(QMouseEvent.Type.MouseButtonPress, where)
        released = time.perf_counter()
        self._mouse(QMouseEvent.Type.MouseButtonRelease, where)
        return released

    def milliseconds_to_change(self, where: QPoint, spot: QPoint) -> float:
        """Click, and wait until the colour of a spot has changed."""
        self.spot, self.colour, self.changed_at = spot, b"", 0.0
        self.canvas.native.update()
        until(lambda: self.colour)
        released = self.click(where)
        if not self.changed_at:
            QTimer.singleShot(PATIENCE_MS, self.loop.quit)
            self.loop.exec()
        self.spot = None
        assert self.changed_at, "Nothing changed on the canvas."
        return 1000 * (self.changed_at - released)

    def _mouse(self, kind: QMouseEvent.Type, where: QPoint) -> None:
        native, left = self.canvas.native, Qt.MouseButton.LeftButton
        held = Qt.MouseButton.NoButton if kind == QMouseEvent.Type.MouseButtonRelease else left
        there = QPointF(native.mapToGlobal(where))
        event = QMouseEvent(kind, QPointF(where), there, left, held, Qt.KeyboardModifier.NoModifier)
        QApplication.sendEvent(native, event)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline, "Waited in vain."
        QTest.qWait(2)


# -- click to changed pixels -------------------------------------------------------------------------------------------


def measure_clicks(repeats: int) -> dict[str, list[float]]:
    alone, plugin = Window.of(photo(), plugin=False), Window.of(photo(), plugin=True)
    points = alone.viewer.add_points(ndim=2, size=10)
    points.mode = "add"
    times: dict[str, list[float]] = {"napari alone": [], "plugin": []}
    middle = plugin.place(plugin.image, *COIN)
    spot = _spot_in_mask(plugin, middle)
    for repeat in range(repeats + 1):
        where = QPoint(middle.x() + repeat % 5 - 2, middle.y() + repeat // 5 % 5 - 2)
        alone.viewer.window._qt_window.raise_()
        alone.settle()
        single = alone.milliseconds_to_change(where, where)
        points.data = np.zeros((0, 2))
        plugin.viewer.window._qt_window.raise_()
        plugin.controller.discard()
        plugin.controller.view.prompts.use_points(True)
        plugin.controller.workspace.forget_predictions()  # The image stays encoded, every click is decoded.
        plugin.settle()
        ours = plugin.milliseconds_to_change(where, spot)
        if repeat:  # The first round warms up.
            times["napari alone"].append(single)
            times["plugin"].append(ours)
    for window in (alone, plugin):
        # While one closes, the other must not draw: vispy would take the wrong one's graphics context.
        window.viewer.window._qt_window.hide()
    alone.close()
    plugin.close()
    return times


def _spot_in_mask(window: Window, where: QPoint) -> QPoint:
    """Click once, and return the place deep in the mask that is farthest from all that marks a point."""
    controller = window.controller
    controller.view.prompts.use_points(True)
    window.click(where)
    until(lambda: controller.predictions.current is not None)
    found = controller.predictions.current
    mask = found.mask.on(window.image.data.shape).astype(np.uint8)
    free = np.ones_like(mask)
    for x, y in [(COIN[1], COIN[0]), *found.report_points]:
        free[int(y), int(x)] = 0
    far = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    far[cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) < 8] = 0
    row, column = np.unravel_index(np.argmax(far), far.shape)
    return window.place(window.image, row, column)


# -- gaps of the GUI's thread ------------------------------------------------------------------------------------------


@contextmanager
def ticks(into: dict[str, list[float]], name: str) -> Iterator[None]:
    """Record the largest gap, in ms, between the ticks of a timer of 5 ms."""
    times = [time.perf_counter()]
    timer = QTimer(interval=5, timerType=Qt.TimerType.PreciseTimer)
    timer.timeout.connect(lambda: times.append(time.perf_counter()))
    timer.start()
    yield
    timer.stop()
    times.append(time.perf_counter())
    into.setdefault(name, []).append(1000 * float(np.diff(times).max()))


def measure_gaps(repeats: int) -> dict[str, list[float]]:
    gaps: dict[str, list[float]] = {}
    images = [photo(seed) for seed in range(1, repeats + 1)]
    alone = Window.of(photo(), plugin=False)
    points = alone.viewer.add_points(ndim=2, size=10)
    points.mode = "add"
    alone.settle()
    for index, image in enumerate(images):
        with ticks(gaps, "nothing"):
            QTest.qWait(500)
        with ticks(gaps, "napari alone, image shown"):
            alone.image.data = image
            QTest.qWait(QUIET_MS)
        with ticks(gaps, "napari alone, click shown"):
            alone.click(alone.place(alone.image, COIN[0] + index, COIN[1]))
            QTest.qWait(QUIET_MS)
    alone.close()
    window = Window.of(photo(), plugin=True)
    _measure_worker(gaps, images)
    for index, image in enumerate(images):
        sessions.get(Model()).cache.clear()
        with ticks(gaps, "encode, shown"):
            window.image.data = image
            window.settle()
        window.controller.view.prompts.use_points(True)
        window.settle()
        with ticks(gaps, "decode, shown"):
            window.click(window.place(window.image, COIN[0] + index, COIN[1]))
            until(lambda: window.controller.predictions.current is not None)
            QTest.qWait(QUIET_MS)
        window.controller.discard()
        window.settle()
    window.close()
    return gaps


def _measure_worker(gaps: dict[str, list[float]], images: list[NDArray[np.uint8]]) -> None:
    """Encode, then decode, on an engine of its own whose results nobody draws."""
    ended: list[object] = []
    engine = Engine(ended.append)
    session, reader = sessions.get(Model()), CropReader()

    def do(name: str, run: Callable[[Work], object]) -> None:
        ended.clear()
        with ticks(gaps, name):
            engine.submit(Job(run))
            until(lambda: ended)
        if ended[0].error is not None:
            raise ended[0].error

    for image in images:
        snapshot = ImageSnapshot.of(Image(image), ImageSettings())
        prompts = PlanePrompts((Point(COIN[1] + 0.5, COIN[0] + 0.5),))
        request = PredictionRequest(snapshot, PLANE, prompts, refine=True, model=Model())
        session.cache.clear()
        do("encode, worker", lambda work: encode(session, reader, request.image, PLANE, request.crop, work))  # noqa: B023
        do("decode, worker", lambda work: predict(request, session, reader, work))  # noqa: B023
    engine.close()


# -- an image too large to read ----------------------------------------------------------------------------------------


def lazy_disks(reads: Read) -> da.Array:
    """(12000, 12000) uint8 of two disks, computed by chunk; counts who computes."""

    def chunk(block_info: Any = None) -> NDArray[np.uint8]:
        reads[threading.current_thread().name] += 1
        (top, bottom), (left, right) = block_info[None]["array-location"]
        rows, columns = np.ogrid[top:bottom, left:right]
        pixels = (40 + (rows * 7 + columns * 13) % 16).astype(np.uint8)
        for row, column in (DISK, FAR_DISK):
            pixels[(rows - row) ** 2 + (columns - column) ** 2 < RADIUS**2] += 150
        return pixels

    return da.map_blocks(chunk, chunks=da.core.normalize_chunks(CHUNK, (LARGE, LARGE)), dtype=np.uint8)


@contextmanager
def memory() -> Iterator[dict[str, float]]:
    """Record the largest growth of the process, in MiB."""
    process, result, done = psutil.Process(), {"peak": 0.0}, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            result["peak"] = max(result["peak"], (process.memory_info().rss - before) / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield result
    done.set()
    watcher.join()


def measure_large() -> dict[str, dict[str, float]]:
    reads: Read = Counter()
    results: dict[str, dict[str, float]] = {}
    # In the thread that asks, whose name then says who reads.
    with dask.config.set(scheduler="synchronous"):
        window = Window.of(lazy_disks(reads), plugin=True, contrast_limits=(0, 255))
        controller = window.controller
        controller.view.prompts.use_points(True)
        window.settle()
        results["opened"] = {"plugin chunks": reads["refinesam"], "napari chunks": reads["MainThread"], "peak MiB": 0}

        def measured(name: str, do: Callable[[], object], done: Callable[[], object]) -> None:
            reads.clear()
            begun = time.perf_counter()
            with memory() as grown:
                do()
                until(done)
                wall = time.perf_counter() - begun
                window.settle()
            results[name] = {
                "plugin chunks": reads["refinesam"],
                "napari chunks": reads["MainThread"],
                "peak MiB": grown["peak"],
                "ms": 1000 * wall,
            }

        def clicked(row: int, column: int) -> Callable[[], object]:
            return lambda: window.click(window.place(window.image, row, column))

        def answered() -> bool:
            return controller.predictions.current is not None

        camera = window.viewer.scene.camera
        # Zoomed in, as somebody would be who sees an object of 240 pixels.
        for name, (row, column) in (("", DISK), (" far away", FAR_DISK)):
            camera.center, camera.zoom = (row, column), 1.0
            window.settle()
            measured(f"first click{name}", clicked(row, column), answered)
            if not name:
                measured("second click", clicked(row + 30, column + 30), answered)
            assert 0.8 < controller.predictions.current.mask.area / (np.pi * RADIUS**2) < 1.25
            measured(f"commit{name}", controller.commit, lambda: True)
            controller.view.prompts.use_points(True)
        window.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    sessions.get(Model())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REFINESAM_AUTOSAVE_DIR"] = folder  # Nothing gets among the user's.
        large = measure_large()
        clicks, gaps = measure_clicks(arguments.repeats), measure_gaps(arguments.repeats)
    medians = {name: statistics.median(times) for name, times in clicks.items()}
    ratio = medians["plugin"] / medians["napari alone"]
    load = os.getloadavg()[0]
    print(f"{torch.get_num_threads()} threads of PyTorch, {os.cpu_count()} cores, load {load:.1f}")
    print(f"\n{'click to changed pixels, ms':32}{'median':>8}{'least':>8}{'most':>8}")
    for name, times in clicks.items():
        print(f"{name:32}{medians[name]:8.0f}{min(times):8.0f}{max(times):8.0f}")
    print(f"{'times napari alone':32}{ratio:8.1f}")
    print(f"\n{'largest gap in the GUI, ms':32}{'median':>8}{'least':>8}{'most':>8}")
    for name, values in gaps.items():
        print(f"{name:32}{statistics.median(values):8.0f}{min(values):8.0f}{max(values):8.0f}")
    print(f"\n{'12,000 x 12,000, lazy':24}{'plugin chunks':>14}{'napari chunks':>14}{'peak MiB':>10}{'ms':>8}")
    for name, row in large.items():
        print(
            f"{name:24}{row['plugin chunks']:14}{row['napari chunks']:14}{row['peak MiB']:10.0f}{row.get('ms', 0):8.0f}"
        )
    if arguments.json:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "load": load, "napari": napari.__version__}
        machine |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        report = {"machine": machine, "click_ms": clicks, "median_ms": medians, "ratio": ratio, "gap_ms": gaps}
        write_json(arguments.json, report | {"large": large}, indent=1)


if __name__ == "__main__":
    main()
