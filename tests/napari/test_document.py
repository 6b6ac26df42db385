from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refinesam_napari.document import Document, History, PlanePrompts, Point, SegmentedObject, Write
from refinesam_napari.geometry import FREE, Plane

PLANE = Plane((1, 2), (0, FREE, FREE))
NEXT = PLANE.moved(0, 1)
CLICK = PlanePrompts((Point(3.0, 4.0),))


# ---------------------------------------------------------------- document


@pytest.mark.parametrize(
    ("prompts", "there", "names_an_object"),
    [
        (PlanePrompts(), False, False),
        (PlanePrompts((Point(1, 2, positive=False),)), True, False),
        (PlanePrompts((Point(1, 2, positive=False), Point(3, 4))), True, True),
        (PlanePrompts(box=(0, 0, 0, 0)), True, True),
    ],
)
def test_negative_clicks_alone_are_prompts_but_name_no_object(
    prompts: PlanePrompts, there: bool, names_an_object: bool
) -> None:
    assert bool(prompts) is there and prompts.names_an_object is names_an_object


def test_objects_are_added_replaced_and_taken_away() -> None:
    document = Document().with_object(SegmentedObject(1)).with_object(SegmentedObject(5))
    document = document.with_object(SegmentedObject(1, score=0.5))
    assert sorted(document.objects) == [1, 5] and document.objects[1].score == 0.5
    assert sorted(document.without_object(1).objects) == [5]
    assert sorted(document.without_object(3).objects) == [1, 5]


def test_the_draft_of_a_deleted_object_becomes_a_new_object() -> None:
    document = Document({PLANE: CLICK}, editing=1).with_object(SegmentedObject(1)).with_object(SegmentedObject(2))
    assert document.without_object(2).editing == 1
    without = document.without_object(1)
    assert without.editing is None and without.draft == {PLANE: CLICK}


def test_cleared_keeps_the_objects() -> None:
    document = Document({PLANE: CLICK}, editing=1).with_object(SegmentedObject(1)).cleared()
    assert (dict(document.draft), document.editing, list(document.objects)) == ({}, None, [1])


# ---------------------------------------------------------------- history


def test_nothing_to_undo_or_redo_at_the_ends() -> None:
    history = History()
    assert history.undo() is None and history.redo() is None
    assert history.undo_name is None and history.redo_name is None


def test_a_history_may_begin_with_a_document() -> None:
    begin = Document({PLANE: CLICK})
    history = History(begin)
    history.do("drop prompts", begin.cleared())
    history.undo()
    assert history.document is begin and history.undo() is None


@given(st.lists(st.sampled_from(["do", "undo", "redo"]), max_size=60))
def test_history_is_a_list_with_a_place_in_it(actions: list[str]) -> None:
    history, names, place = History(), [], 0
    documents = [history.document]
    for number, action in enumerate(actions):
        if action == "do":
            document = Document(editing=number)
            del documents[place + 1 :], names[place:]
            documents.append(document)
            names.append(f"step {number}")
            assert history.do(names[-1], document).name == names[-1]
            place += 1
        elif action == "undo":
            change = history.undo()
            assert (change is None) == (place == 0)
            place = max(place - 1, 0)
        else:
            change = history.redo()
            assert (change is None) == (place == len(names))
            place = min(place + 1, len(names))
        assert history.document is documents[place]
        assert history.undo_name == (names[place - 1] if place else None)
        assert history.redo_name == (names[place] if place < len(names) else None)
        assert [step.name for step in history.steps] == names and history.position == place
        assert [step.undone for step in history.steps] == [index >= place for index in range(len(names))]


# ---------------------------------------------------------------- writes


def write(old: list[int], new: list[int] | int, mask: list[int]) -> Write:
    return Write(
        (slice(0, len(old)),), np.array(mask, bool), np.array(old), new if isinstance(new, int) else np.array(new)
    )


def test_undo_restores_only_what_still_stands() -> None:
    written = write(old=[0, 0, 2, 9], new=5, mask=[1, 1, 1, 0])
    where, values = written.backward(np.array([5, 7, 5, 5]))  # somebody painted 7 over the second
    assert where.tolist() == [True, False, True, False] and values.tolist() == [0, 0, 2, 9]


def test_redo_writes_only_where_the_old_values_stand() -> None:
    written = write(old=[0, 0, 2, 9], new=[5, 5, 0, 9], mask=[1, 1, 1, 0])
    where, values = written.forward(np.array([0, 7, 2, 9]))
    assert where.tolist() == [True, False, True, False] and values.tolist() == [5, 5, 0, 9]
