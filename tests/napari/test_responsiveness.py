"""Clicks faster than answers, a cancel that ends the work, and a window that lives while the model works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from qtpy.QtCore import Qt, QTimer
from qtpy.QtTest import QTest

import refinesam
from napari_gui import Gui
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.predictor import Predictor
from refinesam.session import Session
from refinesam_napari.engine import MIN_INTERVAL
from refinesam_napari.inference import Model, sessions

CENTRE, RADIUS = (200, 260), 70
CLICKS = [(CENTRE[0] + 4 * (i - 5), CENTRE[1] + 5 * (i % 3)) for i in range(10)]


def disk(seed: int) -> NDArray[np.uint8]:
    """(400, 500), bright on dark; another seed gives pixels that no other test has encoded."""
    rows, columns = np.ogrid[:400, :500]
    inside = (rows - CENTRE[0]) ** 2 + (columns - CENTRE[1]) ** 2 < RADIUS**2
    noise = np.random.default_rng(seed).integers(0, 12, inside.shape)
    return (40 + 150 * inside + noise).astype(np.uint8)


class Slow:
    """The built-in model with a gate before each answer, and many steps of progress before each encoding."""

    def __init__(self) -> None:
        self._model = sessions.get(Model()).model
        self.may_decode, self.may_encode = threading.Event(), threading.Event()
        self.encoding = False
        self.begun = self.encoded = self.decoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, image: NDArray[np.uint8], on_progress: Callable[[int, int], None] | None = None) -> Any:
        self.encoding, self.begun = True, self.begun + 1
        try:
            done = 0
            while not self.may_encode.wait(0.01):
                done = min(done + 1, 999)
                if on_progress is not None:
                    on_progress(done, 1000)
            self.encoded += 1
            return self._model.encode(image, on_progress)
        finally:
            self.encoding = False

    def decode(self, *arguments: Any) -> Any:
        self.may_decode.wait()
        self.decoded += 1
        return self._model.decode(*arguments)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    model = Slow()
    monkeypatch.setitem(sessions._sessions, Model(), Session(model))
    return model


def click_all(gui: Gui) -> None:
    image = gui.viewer.layers["image"]
    gui.controller.view.prompts.use_points(True)
    for row, column in CLICKS:
        gui.click(image, row, column)
        QTest.qWait(40)


def assert_answers_all(gui: Gui) -> None:
    """The answer on the screen is the one to all ten clicks, and a mask that holds them."""
    mask = gui.mask()
    points = gui.answer().request.prompts.points
    assert np.allclose([(point.y, point.x) for point in points], np.array(CLICKS) + 0.5, atol=1.5)
    assert all(mask[int(point.y), int(point.x)] for point in points)
    encoded = sessions.get(Model()).encode(refinesam.as_rgb(gui.viewer.layers["image"].data))
    first = encoded.predict(refinesam.Prompt(points=[(point.x, point.y) for point in points]))
    expected = encoded.refine(first)
    assert np.array_equal(mask, expected.mask)
    rows, columns = np.nonzero(mask)
    assert ((rows - CENTRE[0]) ** 2 + (columns - CENTRE[1]) ** 2 < RADIUS**2).mean() > 0.98
    layer = gui.controller.view.preview.layer
    shown = gui.answer().mask
    assert layer.visible and np.array_equal(layer.data > 0, shown.pixels)
    assert np.allclose(layer.translate, (shown.y0, shown.x0))


def test_clicks_during_an_answer_are_answered_together(open_gui: Callable[..., Gui], slow: Slow) -> None:
    slow.may_encode.set()
    gui = open_gui(disk(1))
    gui.settle()
    before = gui.controller.predictions.engine.started
    click_all(gui)
    assert gui.controller.predictions.engine.started == before + 1 and slow.decoded == 0
    slow.may_decode.set()
    assert_answers_all(gui)
    gui.settle()
    # The first click's and the one for all ten; the eight between them never began.
    assert gui.controller.predictions.engine.started == before + 2


def test_burst_of_clicks_starts_no_more_answers_than_there_is_time_for(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(disk(2))
    gui.settle()
    before, begun = gui.controller.predictions.engine.started, time.monotonic()
    click_all(gui)
    clicked = time.monotonic() - begun
    assert_answers_all(gui)
    gui.settle()
    # One at once, one after the last click, and between them as many as the least interval leaves room for.
    assert 1 <= gui.controller.predictions.engine.started - before <= 2 + clicked / MIN_INTERVAL


def test_cancel_ends_a_running_encoding(open_gui: Callable[..., Gui], slow: Slow) -> None:
    slow.may_decode.set()
    gui = open_gui(disk(3))
    widget, engine = gui.widget, gui.controller.predictions.engine
    gui.until(lambda: slow.encoding and widget.progress.isVisible() and widget.progress.value() > 0)
    assert widget.progress.maximum() == 1000 and widget.cancel.visible
    QTest.mouseClick(widget.cancel.native, Qt.MouseButton.LeftButton)
    gui.until(lambda: not slow.encoding and not gui.controller.busy)
    assert "Cancelled" in widget.status.text()
    started = engine.started
    QTest.qWait(500)
    # It is not begun again behind the user's back, and nothing half done is kept.
    assert not slow.encoding and engine.started == started and slow.encoded == 0
    assert len(sessions.get(Model()).cache) == 0
    assert not widget.progress.isVisible() and not widget.cancel.visible
    slow.may_encode.set()
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *CENTRE)
    # The image, and the crop of its refinement.
    assert gui.mask()[CENTRE] and slow.encoded == 2


def test_click_during_an_encoding_waits_for_it_and_not_for_another(open_gui: Callable[..., Gui], slow: Slow) -> None:
    slow.may_decode.set()
    gui = open_gui(disk(4))
    gui.until(lambda: slow.encoding)
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *CENTRE)
    QTest.qWait(300)
    assert slow.encoding and gui.controller.predictions.current is None
    slow.may_encode.set()
    assert gui.mask()[CENTRE]
    gui.settle()
    assert slow.begun == slow.encoded == 2  # the image, and the crop of its refinement


def test_the_window_lives_while_a_large_model_encodes(
    open_gui: Callable[..., Gui], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_named("efficientsam_ti")
    predictor = Predictor(build_model(config), config.name, torch.device("cpu"), torch.float32)
    monkeypatch.setitem(sessions._sessions, Model(config.name), Session(predictor))
    gui = open_gui(disk(5))
    gui.settle()
    ticks: list[str] = []
    timer = QTimer(interval=5)
    timer.timeout.connect(lambda: ticks.append("tick"))
    gui.controller.tasks.progressed.connect(lambda progress: ticks.append(f"block {progress.done}"))
    timer.start()
    gui.controller.predictions.use_options(model=Model(config.name))
    gui.until(lambda: "block 12" in ticks)
    timer.stop()
    # Between the encoder's blocks the window was drawn and asked again and again.
    during = ticks[ticks.index("block 1") : ticks.index("block 12")]
    assert during.count("tick") >= 5
    assert [entry for entry in ticks if entry != "tick"] == [f"block {done}" for done in range(1, 13)]
