from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from napari.layers import Image, Labels

from refinesam import ConfigError, RefinementReport
from refinesam_napari.document import Document, PlanePrompts, Point, SegmentedObject
from refinesam_napari.geometry import FREE, NO_MASK, Crop, Plane, PlaneMask
from refinesam_napari.images import ImageSettings, ImageSnapshot
from refinesam_napari.inference import Model, PlanePrediction, PredictionRequest
from refinesam_napari.objects_layer import ObjectsLayer
from refinesam_napari.workspace import PREDICTIONS_KEPT, Workspace

HW = (20, 30)
FIRST, SECOND = Plane((1, 2), (0, FREE, FREE)), Plane((1, 2), (1, FREE, FREE))
CLICK = PlanePrompts((Point(3.0, 4.0),))
BOX = PlanePrompts(box=(1.0, 2.0, 9.0, 8.0))
CROP = Crop(0, 0, 30, 20)


def rectangle(y0: int, x0: int, y1: int, x1: int) -> PlaneMask:
    return PlaneMask(y0, x0, np.ones((y1 - y0, x1 - x0), bool))


UPPER, LOWER, BOTH = rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10), rectangle(0, 0, 15, 10)


def on(mask: PlaneMask) -> np.ndarray:
    return mask.on(HW)


def workspace_of(
    shape: tuple[int, ...] = (4, *HW), channel_axis: int | None = None, dtype: Any = np.uint16
) -> Workspace:
    made = Workspace(Image(np.zeros(shape, np.uint8)), ImageSettings(channel_axis=channel_axis))
    labels = Labels(np.zeros([1 if axis == channel_axis else size for axis, size in enumerate(shape)], dtype))
    made.objects = ObjectsLayer(labels, lambda writes: made.painted(writes, (1, 2)))
    return made


@pytest.fixture
def workspace() -> Workspace:
    return workspace_of()


def pixels(workspace: Workspace) -> np.ndarray:
    assert workspace.objects is not None
    return np.asarray(workspace.objects.layer.data)


def commit(workspace: Workspace, object_id: int, masks: dict[Plane, PlaneMask], overwrite: bool = False) -> Any:
    return workspace.commit(object_id, dict.fromkeys(masks, CLICK), masks, overwrite, 0.5)


def paint(workspace: Workspace, where: tuple[int, int, int], object_id: int, size: int = 1) -> None:
    assert workspace.objects is not None
    workspace.objects.layer.brush_size = size
    workspace.objects.layer.paint(where, object_id)


def undo_all_and_redo_all(workspace: Workspace) -> None:
    """Step through the whole history, and see the same states on the way back."""
    while workspace.redo() is not None:
        pass
    seen = [(workspace.document, pixels(workspace).copy())]
    while workspace.undo() is not None:
        seen.append((workspace.document, pixels(workspace).copy()))
    assert not pixels(workspace).any()
    for document, values in reversed(seen[:-1]):
        assert workspace.redo() is not None
        assert workspace.document is document and np.array_equal(pixels(workspace), values)
    assert workspace.redo() is None


# ---------------------------------------------------------------- prompts


def test_an_edit_is_a_step_only_if_it_changes_something(workspace: Workspace) -> None:
    assert workspace.edit_draft("add point", {FIRST: CLICK})
    assert not workspace.edit_draft("add point", {FIRST: CLICK})
    assert workspace.edit_draft("add box", {FIRST: CLICK, SECOND: BOX})
    assert workspace.history.undo_name == "add box"
    workspace.undo()
    assert workspace.document.draft == {FIRST: CLICK} and workspace.history.redo_name == "add box"
    workspace.undo()
    assert not workspace.document.draft and workspace.undo() is None


def test_what_the_model_saw_stays_with_the_prompts_of_an_edited_object(workspace: Workspace) -> None:
    seen = PlanePrompts(CLICK.points, crop=CROP, refine=True)
    workspace.commit(1, {FIRST: seen}, {FIRST: UPPER}, False, 0.5)
    assert workspace.edit_object(1) and workspace.crops == {FIRST: CROP}
    assert not workspace.edit_draft("move point", {FIRST: CLICK})  # the layers know nothing of crops
    workspace.edit_draft("add box", {FIRST: BOX, SECOND: BOX})
    assert workspace.document.draft == {FIRST: PlanePrompts(box=BOX.box, crop=CROP, refine=True), SECOND: BOX}


def test_dropping_prompts_is_a_step_that_keeps_objects(workspace: Workspace) -> None:
    assert not workspace.discard_draft()
    commit(workspace, 1, {FIRST: UPPER})
    workspace.edit_object(1)
    assert workspace.discard_draft()
    assert workspace.document.editing is None and not workspace.document.draft and 1 in workspace.document.objects
    workspace.undo()
    assert workspace.document.editing == 1 and workspace.document.draft == {FIRST: CLICK}


def test_an_object_that_is_not_there_is_neither_edited_nor_deleted(workspace: Workspace) -> None:
    assert not workspace.edit_object(3) and not workspace.delete(3)
    workspace.extend(3, {FIRST: UPPER}, overwrite=True)
    assert workspace.history.undo_name is None and not pixels(workspace).any()


# ---------------------------------------------------------------- objects


def test_commit_clears_the_draft_and_undo_brings_it_back(workspace: Workspace) -> None:
    workspace.edit_draft("add point", {FIRST: CLICK})
    commit(workspace, 1, {FIRST: UPPER})
    assert np.array_equal(pixels(workspace)[0] == 1, on(UPPER)) and not pixels(workspace)[1:].any()
    item = workspace.document.objects[1]
    assert not workspace.document.draft and item.planes == (FIRST,) and item.score == 0.5
    workspace.undo()
    assert workspace.document.draft == {FIRST: CLICK} and not workspace.document.objects
    undo_all_and_redo_all(workspace)


def test_others_are_never_covered_unless_asked(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    commit(workspace, 2, {FIRST: LOWER})
    assert np.array_equal(pixels(workspace)[0] == 1, on(UPPER))
    assert np.array_equal(pixels(workspace)[0] == 2, on(LOWER) & ~on(UPPER))
    commit(workspace, 3, {FIRST: LOWER}, overwrite=True)
    assert np.array_equal(pixels(workspace)[0] == 1, on(UPPER) & ~on(LOWER))
    assert np.array_equal(pixels(workspace)[0] == 3, on(LOWER)) and not (pixels(workspace) == 2).any()
    undo_all_and_redo_all(workspace)


def test_an_object_committed_again_gives_up_the_planes_that_lost_their_prompts(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER, SECOND: UPPER})
    paint(workspace, (2, 5, 5), 1)
    change = commit(workspace, 1, {SECOND: LOWER})
    assert change.name == "change object 1"
    # The painted plane never had prompts to lose.
    assert workspace.document.objects[1].planes == (SECOND, Plane((1, 2), (2, FREE, FREE)))
    assert not pixels(workspace)[0].any() and pixels(workspace)[2].sum() == 1
    assert np.array_equal(pixels(workspace)[1] == 1, on(LOWER))
    undo_all_and_redo_all(workspace)


def test_delete_takes_the_pixels_of_all_planes_and_undo_gives_back_what_is_free(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER, SECOND: UPPER})
    commit(workspace, 2, {FIRST: rectangle(12, 0, 14, 5)})
    workspace.edit_object(1)
    assert workspace.delete(1)
    assert (pixels(workspace) == 1).sum() == 0 and (pixels(workspace) == 2).sum() == 10
    assert workspace.document.editing is None and workspace.document.draft
    # Pixels that changed without the plugin's knowledge are nobody's to take back.
    pixels(workspace)[0, 0, :5] = 9
    workspace.undo()
    assert (pixels(workspace)[0] == 1).sum() == 95 and (pixels(workspace)[1] == 1).sum() == 100
    assert (pixels(workspace) == 9).sum() == 5 and workspace.document.editing == 1


@pytest.mark.parametrize("plane", [Plane((2, 1), (1, FREE, FREE)), Plane((2, 0), (FREE, 7, FREE))])
def test_a_turned_view_has_its_own_rows_and_columns(plane: Plane) -> None:
    workspace = workspace_of()
    mask = rectangle(1, 0, 3, 2)
    commit(workspace, 1, {plane: mask})
    expected = np.zeros((4, *HW), bool)
    for row, column in ((1, 0), (1, 1), (2, 0), (2, 1)):
        index = list(plane.position)
        index[plane.axes[0]], index[plane.axes[1]] = row, column
        expected[tuple(index)] = True
    assert np.array_equal(pixels(workspace) == 1, expected)
    assert np.array_equal(workspace.masks()[1, plane].pixels, mask.pixels)
    workspace.delete(1)
    undo_all_and_redo_all(workspace)


@pytest.mark.parametrize("channel_axis", [0, 1])
def test_an_object_belongs_to_all_channels(channel_axis: int) -> None:
    shape = (3, 4, *HW) if channel_axis == 0 else (4, 3, *HW)
    workspace = workspace_of(shape, channel_axis)
    position = [2, 2, FREE, FREE]
    position[channel_axis] = FREE
    plane = Plane((2, 3), tuple(position))
    commit(workspace, 1, {plane: UPPER})
    assert pixels(workspace).shape[channel_axis] == 1 and (pixels(workspace) == 1).sum() == 100
    assert np.array_equal(np.moveaxis(pixels(workspace), channel_axis, 0)[0, 2] == 1, on(UPPER))
    undo_all_and_redo_all(workspace)


def test_ids_are_the_next_after_all_that_objects_and_the_layer_have(workspace: Workspace) -> None:
    assert workspace.next_id() == 1
    commit(workspace, 1, {FIRST: UPPER})
    commit(workspace, 2, {SECOND: UPPER})
    workspace.delete(1)
    assert workspace.next_id() == 3  # no id of before comes back while another is above it
    paint(workspace, (3, 1, 1), 7)
    assert workspace.next_id() == 8
    workspace.undo()
    assert workspace.next_id() == 3
    held = Workspace(workspace.image, workspace.settings)
    held.objects = ObjectsLayer(Labels(np.full((4, *HW), 40)), lambda writes: None)
    assert held.next_id() == 41


def test_an_id_too_large_changes_nothing() -> None:
    workspace = workspace_of(dtype=np.uint8)
    commit(workspace, 255, {FIRST: UPPER})
    before, document = pixels(workspace).copy(), workspace.document
    too_large = SegmentedObject(256, planes=(SECOND,))
    for attempt in (
        lambda: commit(workspace, 256, {}),  # its masks are late: they must not fail later
        lambda: workspace.commit_many(
            [(SegmentedObject(3), {SECOND: UPPER}), (too_large, {SECOND: UPPER})], overwrite=True
        ),
        lambda: workspace.replace_all(Document().with_object(too_large), {(256, SECOND): UPPER}, "load"),
    ):
        with pytest.raises(ConfigError, match="Object 256 does not fit"):
            attempt()
        assert np.array_equal(pixels(workspace), before) and workspace.document is document


def test_labels_that_cannot_be_written_to_change_nothing(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    before, document = pixels(workspace).copy(), workspace.document
    pixels(workspace).flags.writeable = False
    for attempt in (
        lambda: commit(workspace, 1, {FIRST: LOWER}),
        lambda: workspace.commit_many([(SegmentedObject(2), {SECOND: UPPER})], overwrite=False),
        lambda: workspace.extend(1, {SECOND: UPPER}, overwrite=False),
        lambda: workspace.replace_all(Document(), {}, "load"),
        lambda: workspace.delete(1),
        workspace.undo,
    ):
        with pytest.raises(ConfigError, match="can't be written to, so nothing was changed .*read-only"):
            attempt()
        assert np.array_equal(pixels(workspace), before) and workspace.document is document
        assert workspace.history.undo_name == "add object 1" and workspace.history.redo_name is None


# ---------------------------------------------------------------- many at once


def test_many_objects_are_one_step_and_do_not_overlap(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    new = [SegmentedObject(2, origin="everything"), SegmentedObject(3), SegmentedObject(4)]
    count = workspace.commit_many([(new[0], {FIRST: BOTH}), (new[1], {FIRST: LOWER}), (new[2], {SECOND: BOTH})], False)
    # Nothing free was left for the third object of id 3.
    assert count == 2 and sorted(workspace.document.objects) == [1, 2, 4]
    assert np.array_equal(pixels(workspace)[0] == 2, on(BOTH) & ~on(UPPER))
    assert workspace.history.undo_name == "add 2 objects"
    workspace.undo()
    assert list(workspace.document.objects) == [1] and (pixels(workspace) > 0).sum() == 100
    undo_all_and_redo_all(workspace)


def test_many_objects_that_fit_nowhere_are_no_step(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: BOTH})
    assert workspace.commit_many([(SegmentedObject(2), {FIRST: UPPER})], overwrite=False) == 0
    assert workspace.history.undo_name == "add object 1"


def test_many_objects_that_cover_each_other_when_asked_are_undone_as_one(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: BOTH})
    items = [(SegmentedObject(2), {FIRST: UPPER}), (SegmentedObject(3), {FIRST: LOWER})]
    assert workspace.commit_many(items, overwrite=True) == 2
    assert np.array_equal(pixels(workspace)[0] == 3, on(LOWER)) and not (pixels(workspace) == 1).any()
    undo_all_and_redo_all(workspace)


def test_extend_adds_planes_and_takes_those_whose_mask_is_empty(workspace: Workspace) -> None:
    third = Plane((1, 2), (2, FREE, FREE))
    commit(workspace, 1, {FIRST: UPPER})
    workspace.extend(1, {SECOND: LOWER, third: LOWER}, overwrite=False)
    assert workspace.document.objects[1].planes == (FIRST, SECOND, third)
    assert workspace.document.objects[1].origin == "propagated"
    nothing = PlaneMask(0, 0, np.zeros((0, 0), bool))
    workspace.extend(1, {FIRST: nothing, SECOND: UPPER, third: nothing}, overwrite=False)
    # A plane with prompts stays the object's, even empty.
    assert workspace.document.objects[1].planes == (FIRST, SECOND)
    assert np.array_equal(pixels(workspace)[1] == 1, on(UPPER)) and (pixels(workspace) > 0).sum() == 100
    undo_all_and_redo_all(workspace)


def test_replace_all_puts_other_objects_in_place_in_one_step(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    commit(workspace, 2, {SECOND: UPPER})
    workspace.edit_draft("add point", {FIRST: CLICK})
    before = pixels(workspace).copy()
    loaded = Document({SECOND: BOX}).with_object(SegmentedObject(2, planes=(FIRST,)))
    workspace.replace_all(loaded, {(2, FIRST): BOTH}, "load work.json")
    assert workspace.document is loaded and np.array_equal(pixels(workspace)[0] == 2, on(BOTH))
    assert (pixels(workspace) > 0).sum() == on(BOTH).sum() and workspace.history.undo_name == "load work.json"
    workspace.undo()
    assert np.array_equal(pixels(workspace), before) and workspace.document.draft == {FIRST: CLICK}
    undo_all_and_redo_all(workspace)


# ---------------------------------------------------------------- masks that come late


def late(workspace: Workspace, object_id: int = 1, prompts: PlanePrompts = CLICK, plane: Plane = FIRST) -> Any:
    return workspace.commit(object_id, {plane: prompts}, {}, False, None)


Steps = list[Callable[[Workspace], Any]]


@pytest.mark.parametrize(
    "meanwhile",
    [
        [],
        [Workspace.undo],
        [Workspace.undo, Workspace.redo],
        [lambda w: w.delete(1)],
        [lambda w: w.delete(1), Workspace.undo],
        [lambda w: w.delete(1), Workspace.undo, Workspace.undo],
        [lambda w: w.edit_object(1), lambda w: w.commit(1, {FIRST: BOX}, {FIRST: LOWER}, False, None)],
        [lambda w: w.edit_object(1), lambda w: w.commit(1, {FIRST: CLICK}, {FIRST: UPPER}, False, None)],
        [lambda w: w.edit_object(1), lambda w: w.commit(1, {SECOND: CLICK}, {SECOND: LOWER}, False, None)],
        [lambda w: w.replace_all(Document(), {}, "load")],
        [lambda w: commit(w, 2, {FIRST: rectangle(15, 0, 20, 10)}), lambda w: w.delete(1)],
        [lambda w: commit(w, 2, {FIRST: rectangle(15, 0, 20, 10)}), lambda w: w.delete(1), *[Workspace.undo] * 3],
    ],
)
def test_a_late_mask_leaves_every_step_as_if_it_had_been_there_at_once(meanwhile: Steps) -> None:
    there_at_once, came_late = workspace_of(), workspace_of()
    commit(there_at_once, 1, {FIRST: UPPER})
    change = late(came_late)
    for step in meanwhile:
        step(there_at_once)
        step(came_late)
    came_late.complete(change, 1, FIRST, UPPER, overwrite=False)
    assert np.array_equal(pixels(came_late), pixels(there_at_once))
    for step in (Workspace.undo, Workspace.redo):
        while step(there_at_once) is not None:
            assert step(came_late) is not None
            assert np.array_equal(pixels(came_late), pixels(there_at_once))
            assert came_late.history.undo_name == there_at_once.history.undo_name
        assert step(came_late) is None


def test_late_masks_of_the_same_object_end_with_the_newest(workspace: Workspace) -> None:
    first = late(workspace)
    workspace.edit_object(1)
    second = late(workspace, prompts=BOX)
    workspace.complete(first, 1, FIRST, UPPER, overwrite=False)
    assert not pixels(workspace).any()
    workspace.complete(second, 1, FIRST, LOWER, overwrite=False)
    assert np.array_equal(pixels(workspace)[0] == 1, on(LOWER))
    workspace.undo()
    assert np.array_equal(pixels(workspace)[0] == 1, on(UPPER))
    undo_all_and_redo_all(workspace)


def test_a_late_mask_takes_only_what_is_free_by_now(workspace: Workspace) -> None:
    change = late(workspace)
    commit(workspace, 2, {FIRST: LOWER})
    paint(workspace, (0, 0, 0), 7)
    workspace.complete(change, 1, FIRST, UPPER, overwrite=False)
    assert np.array_equal(pixels(workspace)[0] == 2, on(LOWER)) and pixels(workspace)[0, 0, 0] == 7
    assert (pixels(workspace) == 1).sum() == 49


def test_a_late_mask_of_a_step_that_is_gone_is_dropped(workspace: Workspace) -> None:
    change = late(workspace)
    workspace.undo()
    workspace.edit_draft("add point", {SECOND: CLICK})
    workspace.complete(change, 1, FIRST, UPPER, overwrite=False)
    assert not pixels(workspace).any()
    undo_all_and_redo_all(workspace)


# ---------------------------------------------------------------- ghosts


def test_an_object_without_a_pixel_is_not_added(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: BOTH})
    workspace.edit_draft("add point", {FIRST: CLICK})
    for mask in (UPPER, NO_MASK):
        assert commit(workspace, 2, {FIRST: mask}) is None
        assert list(workspace.document.objects) == [1] and workspace.document.draft == {FIRST: CLICK}
        assert workspace.history.undo_name == "add point" and (pixels(workspace) > 0).sum() == 150
    # One with a pixel in one of its planes is.
    assert commit(workspace, 2, {FIRST: UPPER, SECOND: UPPER}) is not None
    undo_all_and_redo_all(workspace)


def test_an_object_does_not_lose_its_last_pixel_to_its_own_prompts(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    commit(workspace, 2, {SECOND: UPPER})
    workspace.edit_object(1)
    assert commit(workspace, 1, {SECOND: UPPER}) is None and commit(workspace, 1, {FIRST: NO_MASK}) is None
    assert workspace.document.editing == 1 and (pixels(workspace)[0] == 1).sum() == 100


def test_an_object_that_is_covered_or_erased_as_a_whole_goes(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    commit(workspace, 2, {FIRST: BOTH}, overwrite=True)
    assert list(workspace.document.objects) == [2]
    paint(workspace, (0, 7, 5), 0, size=41)
    assert not workspace.document.objects and not pixels(workspace).any()
    paint(workspace, (0, 7, 5), 3)
    paint(workspace, (0, 7, 5), 4)
    assert list(workspace.document.objects) == [4]
    undo_all_and_redo_all(workspace)
    for _ in range(3):
        workspace.undo()
    assert list(workspace.document.objects) == [2]
    workspace.undo()
    assert list(workspace.document.objects) == [1]


@pytest.mark.parametrize("meanwhile", [[], [Workspace.undo], [lambda w: commit(w, 2, {SECOND: UPPER})]])
def test_a_late_mask_that_leaves_nothing_leaves_no_object_in_any_step(workspace: Workspace, meanwhile: Steps) -> None:
    workspace.edit_draft("add point", {FIRST: CLICK})
    change = late(workspace)
    for step in meanwhile:
        step(workspace)
    workspace.complete(change, 1, FIRST, NO_MASK, overwrite=False)
    assert workspace.drop_ghost(change, 1)
    for step in workspace.history.steps:
        assert 1 not in step.before.objects and 1 not in step.after.objects
    assert 1 not in workspace.document.objects
    while workspace.history.undo_name not in ("add point", None):
        workspace.undo()
    assert workspace.document.draft == {FIRST: CLICK}
    undo_all_and_redo_all(workspace)


def test_a_late_object_that_got_pixels_or_was_made_anew_stays(workspace: Workspace) -> None:
    change = late(workspace)
    workspace.complete(change, 1, FIRST, UPPER, overwrite=False)
    assert not workspace.drop_ghost(change, 1) and 1 in workspace.document.objects
    second = late(workspace, 2)
    workspace.edit_object(2)
    commit(workspace, 2, {SECOND: LOWER})
    workspace.complete(second, 2, FIRST, NO_MASK, overwrite=False)
    assert workspace.drop_ghost(second, 2) and sorted(workspace.document.objects) == [1, 2]
    undo_all_and_redo_all(workspace)


def test_an_old_object_keeps_its_pixels_when_a_late_mask_is_empty(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    workspace.edit_object(1)
    change = late(workspace, prompts=BOX)
    workspace.complete(change, 1, FIRST, NO_MASK, overwrite=False)
    assert not workspace.drop_ghost(change, 1) and (pixels(workspace)[0] == 1).sum() == 100


def test_recomputing_takes_nothing_from_others_and_leaves_no_ghost(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    commit(workspace, 2, {FIRST: LOWER})
    commit(workspace, 3, {SECOND: UPPER})
    before = pixels(workspace).copy()
    lost = workspace.recompute({(1, FIRST): BOTH, (2, FIRST): BOTH, (3, SECOND): NO_MASK}, "replay prompts")
    assert lost == {3} and np.array_equal(pixels(workspace), before)
    workspace.recompute({(1, FIRST): rectangle(0, 0, 5, 10), (2, FIRST): BOTH}, "replay prompts")
    assert (pixels(workspace) == 1).sum() == 50 and (pixels(workspace) == 2).sum() == 100
    undo_all_and_redo_all(workspace)


def test_what_was_in_the_labels_before_stays_when_a_session_is_loaded(workspace: Workspace) -> None:
    pixels(workspace)[1, 15:, :5] = 8
    assert workspace.objects is not None
    workspace.objects.know({8: (slice(1, 2), slice(15, 20), slice(0, 5))})
    workspace.found({8: [SECOND]}, anew=True)
    commit(workspace, 9, {FIRST: UPPER})
    workspace.replace_all(Document().with_object(SegmentedObject(1, {}, (SECOND,))), {(1, SECOND): UPPER}, "load")
    assert sorted(workspace.document.objects) == [1, 8] and (pixels(workspace) == 8).sum() == 25
    assert not (pixels(workspace) == 9).any() and (pixels(workspace)[1] == 1).sum() == 100


def test_of_loaded_objects_without_pixels_those_with_prompts_stay(workspace: Workspace) -> None:
    loaded = (
        Document()
        .with_object(SegmentedObject(1, {FIRST: CLICK}, (FIRST,)))
        .with_object(SegmentedObject(2, planes=(FIRST,), origin="painted"))
        .with_object(SegmentedObject(3, planes=(SECOND,)))
    )
    assert workspace.replace_all(loaded, {(3, SECOND): UPPER}, "load") == [1, 2]
    assert sorted(workspace.document.objects) == [1, 3]


# ---------------------------------------------------------------- painting


def test_strokes_are_steps_between_the_others(workspace: Workspace) -> None:
    commit(workspace, 1, {FIRST: UPPER})
    paint(workspace, (0, 5, 5), 7, size=5)
    paint(workspace, (3, 5, 5), 1, size=3)
    paint(workspace, (0, 0, 0), 0)
    objects = workspace.document.objects
    assert sorted(objects) == [1, 7] and objects[7].origin == "painted" and objects[7].score is None
    assert objects[1].planes == (FIRST, Plane((1, 2), (3, FREE, FREE))) and objects[1].origin == "prompts"
    workspace.delete(1)
    assert set(np.unique(pixels(workspace))) == {0, 7}
    undo_all_and_redo_all(workspace)


def test_painting_through_several_planes_is_known_in_each(workspace: Workspace) -> None:
    assert workspace.objects is not None
    workspace.objects.layer.n_edit_dimensions = 3
    paint(workspace, (1, 10, 10), 3, size=3)
    assert [plane.position[0] for plane in workspace.document.objects[3].planes] == [0, 1, 2]
    assert {key for key, mask in workspace.masks().items() if mask.area} == {
        (3, Plane((1, 2), (index, FREE, FREE))) for index in range(3)
    }
    workspace.delete(3)
    assert not pixels(workspace).any()


# ---------------------------------------------------------------- answers


def answer(
    workspace: Workspace, prompts: PlanePrompts, refine: bool = False, report: bool | None = None
) -> PlanePrediction:  # fmt: skip
    request = PredictionRequest(ImageSnapshot.of(workspace.image, workspace.settings), FIRST, prompts, refine, Model())
    seen = RefinementReport(1, 1.0, "none", "", np.zeros((0, 2), np.float32), 0.5, 0.5, "first", "")
    return PlanePrediction(request, CROP, UPPER, 0.5, report=seen if (refine if report is None else report) else None)


def test_an_answer_belongs_to_its_points_box_plane_and_refinement(workspace: Workspace) -> None:
    workspace.edit_draft("add point", {FIRST: CLICK})
    assert workspace.prediction_for(FIRST, False) is None
    found = answer(workspace, CLICK)
    workspace.keep(found)
    assert workspace.prediction_for(FIRST, False) is found and workspace.crops == {FIRST: CROP}
    assert workspace.prediction_for(FIRST, True) is None and workspace.prediction_for(SECOND, False) is None
    workspace.edit_draft("add box", {FIRST: BOX})
    assert workspace.prediction_for(FIRST, False) is None
    workspace.undo()
    assert workspace.prediction_for(FIRST, False) is found


def test_an_answer_overtaken_before_it_was_refined_is_none(workspace: Workspace) -> None:
    workspace.edit_draft("add point", {FIRST: CLICK})
    workspace.keep(answer(workspace, CLICK, refine=True, report=False))
    assert workspace.prediction_for(FIRST, True) is None and workspace.crops == {FIRST: CROP}


def test_answers_are_forgotten_with_the_pixels_and_only_so_many_are_kept(workspace: Workspace) -> None:
    clicks = [PlanePrompts((Point(float(x), 1.0),)) for x in range(PREDICTIONS_KEPT + 1)]
    for prompts in clicks:
        workspace.keep(answer(workspace, prompts))
    kept = []
    for prompts in clicks:
        workspace.edit_draft("move point", {FIRST: prompts})
        kept.append(workspace.prediction_for(FIRST, False) is not None)
    assert kept == [False] + [True] * PREDICTIONS_KEPT
    generation = workspace.generation
    workspace.forget_predictions()
    assert workspace.prediction_for(FIRST, False) is None and not workspace.crops and workspace.generation > generation


# ---------------------------------------------------------------- without a labels layer


def test_prompts_can_be_undone_before_there_are_labels() -> None:
    workspace = Workspace(Image(np.zeros(HW)), ImageSettings())
    workspace.edit_draft("add point", {Plane((0, 1), (FREE, FREE)): CLICK})
    assert workspace.undo() is not None and workspace.redo() is not None
    assert workspace.masks() == {} and workspace.next_id() == 1
