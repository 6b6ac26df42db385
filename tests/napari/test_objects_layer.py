from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels

from refinesam import ConfigError
from refinesam_napari.document import Write
from refinesam_napari.geometry import FREE, Crop, Plane, PlaneMask
from refinesam_napari.objects_layer import ObjectsLayer
from refinesam_napari.targets import new_labels, place_labels, unfit

SHAPE = (3, 20, 30)
# One section along each pair of axes, in both orders.
PLANES = [
    Plane((1, 2), (1, FREE, FREE)),
    Plane((2, 1), (1, FREE, FREE)),
    Plane((0, 2), (FREE, 7, FREE)),
    Plane((2, 0), (FREE, 7, FREE)),
    Plane((0, 1), (FREE, FREE, 9)),
]
PLANE = PLANES[0]
EMPTY = PlaneMask(0, 0, np.zeros((0, 0), bool))


def watched(data: np.ndarray | None = None) -> tuple[ObjectsLayer, list[tuple[Write, ...]]]:
    strokes: list[tuple[Write, ...]] = []
    layer = Labels(np.zeros(SHAPE, np.uint16) if data is None else data)
    return ObjectsLayer(layer, strokes.append), strokes


def hw(plane: Plane) -> tuple[int, int]:
    return SHAPE[plane.axes[0]], SHAPE[plane.axes[1]]


def mask_in(plane: Plane, rows: slice, columns: slice) -> PlaneMask:
    whole = np.zeros(hw(plane), bool)
    whole[rows, columns] = True
    return PlaneMask.of(whole, Crop(0, 0, hw(plane)[1], hw(plane)[0]))


def section(data: np.ndarray, plane: Plane) -> np.ndarray:
    """The plane's own view of the labels, written down by hand."""
    fixed = next(axis for axis, index in enumerate(plane.position) if index != FREE)
    values = data.take(plane.position[fixed], axis=fixed)
    return values.T if plane.axes[0] > plane.axes[1] else values


def give(objects: ObjectsLayer, object_id: int, mask: PlaneMask, overwrite: bool = False, plane: Plane = PLANE) -> Any:
    write = objects.plan(object_id, plane, mask, objects.mask_of(object_id, plane), overwrite)
    objects.apply([write] if write else [])
    return write


# ---------------------------------------------------------------- writing and reading


@pytest.mark.parametrize("plane", PLANES)
def test_a_mask_lands_in_its_plane_and_is_read_back(plane: Plane) -> None:
    objects, _ = watched()
    mask = mask_in(plane, slice(1, 3), slice(0, 3))
    give(objects, 4, mask, plane=plane)
    data = objects.layer.data
    assert np.array_equal(section(data, plane) == 4, mask.on(hw(plane))) and (data > 0).sum() == mask.area
    assert np.array_equal(objects.mask_of(4, plane).on(hw(plane)), mask.on(hw(plane)))


@pytest.mark.parametrize("plane", PLANES)
def test_a_new_mask_takes_the_place_of_the_old_one_and_undo_brings_it_back(plane: Plane) -> None:
    objects, _ = watched()
    old, new = mask_in(plane, slice(0, 2), slice(0, 2)), mask_in(plane, slice(1, 3), slice(1, 3))
    give(objects, 4, old, plane=plane)
    write = give(objects, 4, new, plane=plane)
    assert np.array_equal(section(objects.layer.data, plane) == 4, new.on(hw(plane)))
    objects.undo([write])
    assert np.array_equal(section(objects.layer.data, plane) == 4, old.on(hw(plane)))
    objects.redo([write])
    assert np.array_equal(section(objects.layer.data, plane) == 4, new.on(hw(plane)))


def test_others_are_covered_only_when_asked() -> None:
    objects, _ = watched()
    give(objects, 1, mask_in(PLANE, slice(0, 10), slice(0, 10)))
    over = mask_in(PLANE, slice(5, 15), slice(5, 15))
    give(objects, 2, over)
    assert (objects.layer.data == 1).sum() == 100 and (objects.layer.data == 2).sum() == 75
    give(objects, 2, over, overwrite=True)
    assert (objects.layer.data == 1).sum() == 75 and (objects.layer.data == 2).sum() == 100


def test_what_changes_nothing_is_no_write() -> None:
    objects, _ = watched()
    mask = mask_in(PLANE, slice(0, 10), slice(0, 10))
    give(objects, 1, mask)
    assert objects.plan(1, PLANE, mask, mask, False) is None
    assert objects.plan(2, PLANE, mask, EMPTY, False) is None
    assert objects.plan(2, PLANE, EMPTY, EMPTY, True) is None


def test_undo_leaves_what_was_painted_over() -> None:
    objects, _ = watched()
    write = give(objects, 1, mask_in(PLANE, slice(0, 10), slice(0, 10)))
    objects.layer.data_setitem((np.array([1]), np.array([2]), np.array([2])), 9)
    objects.undo([write])
    assert objects.layer.data[1, 2, 2] == 9 and (objects.layer.data > 0).sum() == 1
    objects.redo([write])
    assert objects.layer.data[1, 2, 2] == 9 and (objects.layer.data == 1).sum() == 99


def test_several_writes_are_undone_the_last_first() -> None:
    objects, _ = watched()
    writes = [
        give(objects, 1, mask_in(PLANE, slice(0, 10), slice(0, 10))),
        give(objects, 2, mask_in(PLANE, slice(0, 10), slice(0, 10)), overwrite=True),
        give(objects, 3, mask_in(PLANE, slice(5, 10), slice(0, 10)), overwrite=True),
    ]
    after = objects.layer.data.copy()
    objects.undo(writes)
    assert not objects.layer.data.any()
    objects.redo(writes)
    assert np.array_equal(objects.layer.data, after)


@pytest.mark.parametrize(("dtype", "object_id"), [(np.uint8, 256), (np.int8, 128), (np.uint16, 65536)])
def test_an_id_that_does_not_fit_is_refused(dtype: Any, object_id: int) -> None:
    objects, _ = watched(np.zeros(SHAPE, dtype))
    mask = mask_in(PLANE, slice(0, 2), slice(0, 2))
    give(objects, object_id - 1, mask)
    with pytest.raises(ConfigError, match=rf"Object {object_id} does not fit into .*{np.dtype(dtype)}.*Convert"):
        objects.plan(object_id, PLANE, mask, EMPTY, True)
    assert objects.layer.data.max() == object_id - 1


# ---------------------------------------------------------------- what is known of the layer


def test_what_a_layer_held_before_is_found() -> None:
    data = np.zeros(SHAPE, np.uint16)
    data[1, 4:6, 4:6] = 12
    objects, _ = watched(data)
    assert objects.highest_before == 12
    assert np.array_equal(objects.mask_of(12, PLANE).on(hw(PLANE)), data[1] == 12)
    assert objects.mask_of(13, PLANE).area == 0 and objects.mask_of(12, PLANE.moved(0, 2)).area == 0


def test_masks_follow_every_write() -> None:
    objects, _ = watched()
    write = give(objects, 1, mask_in(PLANE, slice(0, 10), slice(0, 10)))
    assert objects.mask_of(1, PLANE).area == 100
    give(objects, 2, mask_in(PLANE, slice(0, 5), slice(0, 10)), overwrite=True)
    assert objects.mask_of(1, PLANE).area == 50
    objects.undo([write])
    assert objects.mask_of(1, PLANE).area == 0 and objects.mask_of(2, PLANE).area == 50


def test_masks_follow_the_brush() -> None:
    objects, _ = watched()
    give(objects, 1, mask_in(PLANE, slice(0, 10), slice(0, 10)))
    assert objects.mask_of(1, PLANE).area == 100
    objects.layer.brush_size = 1
    objects.layer.paint((1, 0, 0), 0)
    objects.layer.paint((1, 15, 20), 1)  # outside the box of what was written
    found = objects.mask_of(1, PLANE).on(hw(PLANE))
    assert found.sum() == 100 and found[15, 20] and not found[0, 0]


def test_masks_follow_what_is_done_behind_the_plugins_back() -> None:
    objects, _ = watched()
    give(objects, 1, mask_in(PLANE, slice(0, 10), slice(0, 10)))
    assert objects.mask_of(1, PLANE).area == 100
    objects.layer.undo()
    assert objects.mask_of(1, PLANE).area == 0
    other = np.zeros(SHAPE, np.uint16)
    other[1, 15:, 20:] = 3
    objects.layer.data = other
    assert objects.mask_of(3, PLANE).area == 50 and objects.highest_before == 3


# ---------------------------------------------------------------- painting


def replay(strokes: list[tuple[Write, ...]], data: np.ndarray, objects: ObjectsLayer) -> np.ndarray:
    """Undo all strokes and do them again; return the layer in between."""
    for writes in reversed(strokes):
        objects.undo(writes)
    before = objects.layer.data.copy()
    for writes in strokes:
        objects.redo(writes)
    assert np.array_equal(objects.layer.data, data)
    return before


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_strokes_of_every_tool_are_told_and_can_be_undone(order: tuple[int, int, int]) -> None:
    start = np.zeros(SHAPE, np.uint16)
    start[:, 5:15, 5:25] = 3
    viewer = ViewerModel()
    layer = viewer.add_labels(start.copy())
    viewer.dims.order = order
    viewer.dims.set_point(range(3), (1, 9, 9))
    strokes: list[tuple[Write, ...]] = []
    objects = ObjectsLayer(layer, strokes.append)
    layer.brush_size = 3
    with layer.block_history():  # as while the mouse is down
        for column in range(8, 14):
            layer.paint((1, 9, column), 7)
    layer.fill((1, 9, 20), 5)
    layer.data_setitem((np.array([0, 2]), np.array([1, 18]), np.array([2, 28])), np.array([8, 9]))
    layer.n_edit_dimensions = 3
    layer.paint((1, 10, 10), 6)
    assert len(strokes) == 4 and all(writes for writes in strokes)
    assert set(np.unique(layer.data)) >= {5, 6, 7, 8, 9}
    assert np.array_equal(replay(strokes, layer.data.copy(), objects), start)


def test_the_plugins_own_writes_are_no_strokes() -> None:
    objects, strokes = watched()
    write = give(objects, 1, mask_in(PLANE, slice(0, 10), slice(0, 10)))
    objects.undo([write])
    objects.redo([write])
    assert strokes == []


def test_a_released_layer_is_not_watched_any_more() -> None:
    objects, strokes = watched()
    objects.release()
    objects.layer.paint((1, 3, 3), 1)
    assert strokes == []


# ---------------------------------------------------------------- making and placing the layer


@pytest.mark.parametrize(
    ("labels", "image", "channel_axis", "fit"),
    [
        ((3, 20, 30), (3, 20, 30), None, True),
        ((20, 30), (3, 20, 30), None, False),
        ((1, 20, 30), (3, 20, 30), 0, True),
        ((3, 20, 30), (3, 20, 30), 0, False),
        ((4, 1, 20, 30), (4, 2, 20, 30), 1, True),
    ],
)
def test_labels_fit_an_image_with_size_1_on_its_channel_axis(
    labels: tuple[int, ...], image: tuple[int, ...], channel_axis: int | None, fit: bool
) -> None:
    layer = Image(np.zeros(image), rgb=False)
    assert (unfit(Labels(np.zeros(labels, int)), layer, image, channel_axis) is None) is fit


@pytest.mark.parametrize("channel_axis", [None, 0, 1])
@pytest.mark.parametrize(
    "place",
    [
        {"scale": (2, 3, 0.5), "translate": (5, 6, 7)},
        {"scale": (2, 1, 1), "rotate": (0, 0, 30), "translate": (1, 2, 3)},
        {"affine": np.array([[1, 0, 0, 4], [0, 0, 2, 5], [0, -2, 0, 6], [0, 0, 0, 1.0]]), "translate": (3, 0, 1)},
    ],
)
def test_labels_lie_on_their_image(channel_axis: int | None, place: dict[str, Any]) -> None:
    viewer = ViewerModel()
    image = viewer.add_image(np.zeros((4, 3, 10)), **place)
    labels = new_labels(viewer, image, (4, 3, 10), channel_axis)
    assert unfit(labels, image, (4, 3, 10), channel_axis) is None and viewer.layers.selection.active is image
    low, high = np.full(3, -0.5), np.array(image.data.shape) - 0.5
    ends = np.array(labels.data.shape) - 0.5
    for corner in np.ndindex(2, 2, 2):  # stretched over all channels, so all eight corners meet
        world = image.data_to_world(np.where(corner, high, low))
        assert np.allclose(labels.data_to_world(np.where(corner, ends, low)), world)


def test_labels_follow_an_image_that_moves() -> None:
    image = Image(np.zeros((4, 20, 30)), scale=(2, 1, 1))
    labels = Labels(np.zeros((1, 20, 30), int))
    place_labels(labels, image, (4, 20, 30), 0)
    before = np.array(labels.translate)
    image.translate = (0, 5, 0)
    place_labels(labels, image, (4, 20, 30), 0)
    assert np.allclose(labels.translate - before, (0, 5, 0)) and np.allclose(labels.scale, (8, 1, 1))
