"""Find similar, in the real window: objects chosen in the list, a threshold that is moved live, and acceptance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from skimage import data

from napari_gui import Gui
from refinesam import mask_iou

COINS = [(50, 48), (50, 105)]  # row and column


def with_coins(open_gui: Callable[..., Gui]) -> Gui:
    gui = open_gui(data.coins())
    gui.controller.view.prompts.use_points(True)
    for coin in COINS:
        gui.click(gui.viewer.layers["image"], *coin)
        gui.settle()
        gui.key("N")
        gui.settle()
    return gui


def test_objects_of_the_list_find_their_likes_and_a_threshold_filters_them(open_gui: Callable[..., Gui]) -> None:
    gui = with_coins(open_gui)
    panel, review = gui.widget.everything_panel, gui.widget.review
    before = gui.labels().copy()
    gui.widget.objects_panel.list.selectAll()
    assert gui.widget.objects_panel.selected == [1, 2]
    panel.similar.native.click()
    gui.until(lambda: review.candidates)
    gui.settle()
    assert panel.score.value == 0.5 and len(review.shown) >= 12  # of 24 coins, two of which are the examples
    for one in review.candidates.values():
        overlap = before[one.mask.rows, one.mask.columns][one.mask.pixels]
        assert one.similarity is not None and np.count_nonzero(overlap) < 0.7 * one.mask.area, "no example again"
    shown = review.shown
    least = review.candidates[shown[len(shown) // 2]].rank
    panel.score.value = least
    assert review.shown == [n for n in shown if review.candidates[n].rank >= panel.score.value] != shown
    assert not gui.controller.tasks.busy, "nothing is computed"
    count = len(review.shown)
    panel.accept_all.native.click()
    gui.settle()
    objects = gui.controller.workspace.document.objects
    assert len(objects) == 2 + count
    assert {one.origin for number, one in objects.items() if number > 2} == {"similar"}
    assert np.array_equal(gui.labels()[before > 0], before[before > 0])


def test_confidence_and_similarity_have_a_threshold_each(open_gui: Callable[..., Gui]) -> None:
    gui = with_coins(open_gui)
    panel = gui.widget.everything_panel
    gui.widget.objects_panel.list.selectAll()
    for button, before, after in ((panel.similar, 0.5, 0.6), (panel.start, 0.0, 0.1), (panel.similar, 0.6, 0.6)):
        button.native.click()
        gui.settle()
        assert panel.score.value == before
        panel.score.value = after


def test_objects_that_the_model_is_not_shown_are_no_examples(open_gui: Callable[..., Gui]) -> None:
    gui = with_coins(open_gui)
    gui.controller.predictions.use_options(crop_mode="view")
    camera = gui.viewer.scene.camera
    camera.zoom, camera.center = 12, (0, 250, 330)
    gui.settle()
    gui.widget.objects_panel.list.selectAll()
    gui.widget.everything_panel.similar.native.click()
    gui.settle()
    assert "None of the selected objects lies in what the model is shown" in gui.widget.status.text()
    assert not gui.widget.review.candidates


def test_no_selected_object_is_told(open_gui: Callable[..., Gui]) -> None:
    gui = with_coins(open_gui)
    gui.widget.objects_panel.list.clearSelection()
    gui.widget.everything_panel.similar.native.click()
    gui.settle()
    assert "Select one to 5 of a kind in the list" in gui.widget.status.text()
    assert not gui.widget.review.candidates


def test_what_is_not_meant_is_excluded_and_no_longer_found(open_gui: Callable[..., Gui]) -> None:
    gui = with_coins(open_gui)
    panel, review = gui.widget.everything_panel, gui.widget.review
    assert not panel.exclude.enabled
    gui.widget.objects_panel.list.selectAll()
    panel.similar.native.click()
    gui.until(lambda: review.candidates)
    gui.settle()
    before = dict(review.candidates)
    panel.list.value = []
    panel.exclude.native.click()
    assert "0 candidates are selected" in gui.widget.status.text() and review.candidates == before
    other = review.shown[-1]
    panel.list.value = [other]
    panel.exclude.native.click()
    gui.until(lambda: review.candidates != before)
    gui.settle()
    found = list(review.candidates.values())
    excluded = before[other].mask.on(data.coins().shape)
    assert found and all(mask_iou(one.mask.on(excluded.shape), excluded) < 0.5 for one in found)
    assert {one.similarity for one in found} != {one.similarity for one in before.values()}, "all are judged anew"
    # A second one is beside the first, and of segment-everything nothing can be excluded.
    panel.list.value = [review.shown[-1]]
    again = dict(review.candidates)
    panel.exclude.native.click()
    gui.until(lambda: review.candidates != again)
    gui.settle()
    assert all(mask_iou(one.mask.on(excluded.shape), excluded) < 0.5 for one in review.candidates.values())
    panel.start.native.click()
    gui.until(lambda: all(one.similarity is None for one in review.candidates.values()))
    gui.settle()
    assert review.candidates and not panel.exclude.enabled
