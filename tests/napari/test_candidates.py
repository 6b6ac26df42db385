"""What a click may mean, a part, the object or a group: chosen by a key in the real window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from napari_gui import Gui
from refinesam_napari.document import PlanePrompts, Point
from refinesam_napari.predictions import Predictions
from refinesam_napari.storage import read_session

FACE = (110, 220)  # row and column on the astronaut's face


@pytest.fixture
def gui(open_gui: Callable[..., Gui]) -> Gui:
    gui = open_gui(data.astronaut())
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *FACE)
    assert len(gui.answer().offered().masks) >= 2, "the test needs an ambiguous click"
    return gui


def shown(gui: Gui) -> np.ndarray:
    return gui.answer().shown(gui.controller.predictions.options.show_first)[0].on((512, 512))


def test_a_key_cycles_through_the_candidates_with_their_scores_in_sight(gui: Gui) -> None:
    offered = gui.answer().offered()
    count, own = len(offered.masks), offered.own
    assert own is not None and np.array_equal(shown(gui), offered.masks[own].on((512, 512)))
    assert [mask.area for mask in offered.masks] == sorted(mask.area for mask in offered.masks)
    preview = gui.controller.view.preview.layer
    seen = []
    for step in range(1, count + 1):
        gui.key("Period")
        index = (own + step) % count
        assert np.array_equal(shown(gui), offered.masks[index].on((512, 512)))
        assert np.count_nonzero(preview.data) == offered.masks[index].area, "it is drawn"
        words = f"Candidate {index + 1} of {count} by size, predicted IoU "
        assert gui.widget.status.text() == f"{words}{offered.scores[index]:.2f}."
        told = gui.widget.prompt_panel.told.value
        assert words in told and all(f"{score:.2f}" in told for score in offered.scores)
        assert f"▸{offered.scores[index]:.2f}" in told
        seen.append(index)
    assert sorted(seen) == list(range(count)) and seen[-1] == own
    gui.key("Comma")
    assert np.array_equal(shown(gui), offered.masks[own - 1].on((512, 512)))


def test_the_choice_is_committed_undone_and_redone(gui: Gui) -> None:
    own = shown(gui)
    gui.key("Period")
    chosen, score = shown(gui), gui.answer().score
    assert not np.array_equal(chosen, own)
    gui.key("Z", "control")
    assert np.array_equal(shown(gui), own)
    gui.key("Z", "control shift")
    assert np.array_equal(shown(gui), chosen)
    gui.key("N")
    assert np.array_equal(gui.labels() == 1, chosen)
    assert gui.controller.workspace.document.objects[1].score == pytest.approx(score)
    gui.key("Z", "control")
    assert not gui.labels().any() and np.array_equal(shown(gui), chosen)
    gui.key("N")
    gui.key("J")
    assert np.array_equal(shown(gui), chosen), "an object in hand again is the one that was chosen"


def test_no_choice_is_made_before_the_refined_mask_is_there(gui: Gui, monkeypatch: pytest.MonkeyPatch) -> None:
    own = shown(gui)
    with monkeypatch.context() as pending:
        pending.setattr(Predictions, "is_complete", property(lambda self: False))
        gui.key("Period")
        assert "still being refined" in gui.widget.status.text()
    assert np.array_equal(shown(gui), own)
    assert all(prompts.candidate is None for prompts in gui.controller.workspace.document.draft.values())


def test_a_new_click_starts_anew(gui: Gui) -> None:
    gui.key("Period")
    gui.click(gui.viewer.layers["image"], FACE[0] + 20, FACE[1])
    found = gui.answer()
    assert found.request.prompts.candidate is None and len(found.request.prompts.points) == 2
    assert np.array_equal(shown(gui), found.refined.on((512, 512)))


def test_what_is_chosen_without_refinement_is_chosen_of_the_first_masks(gui: Gui) -> None:
    gui.key("G")
    first = gui.answer().first_candidates
    gui.key("Period")
    index = (first.own + 1) % len(first.masks)
    assert np.array_equal(shown(gui), first.masks[index].on((512, 512)))
    assert gui.controller.view.preview.layer.colormap.name == "refinesam first"


def test_replaying_and_loading_keep_the_choice(gui: Gui, tmp_path: Path) -> None:
    gui.key("Comma")
    gui.key("N")
    labels = gui.labels().copy()
    path = tmp_path / "session.json"
    gui.widget.files.save(path)
    (prompts,) = read_session(path).document.objects[1].prompts.values()
    assert prompts.candidate is not None
    gui.widget.objects_panel.list.setCurrentRow(0)
    gui.widget.objects_panel.delete.native.click()
    assert not gui.labels().any()
    gui.widget.files.load(path)
    assert np.array_equal(gui.labels(), labels)
    gui.widget.files.replay()
    gui.settle()
    assert np.array_equal(gui.labels(), labels)


def test_a_key_without_anything_to_choose_from_says_so(open_gui: Callable[..., Gui]) -> None:
    gui = open_gui(data.coins())
    gui.key("Period")
    assert gui.widget.status.text().startswith("Nothing to choose from")
    assert not gui.widget.prompt_panel.other.enabled


def test_a_choice_belongs_to_its_prompts() -> None:
    before = PlanePrompts((Point(1, 2),), refine=True, candidate=2)
    assert PlanePrompts((Point(1, 2),)).after(before) == before
    assert PlanePrompts((Point(1, 3),)).after(before) == PlanePrompts((Point(1, 3),), refine=True)
