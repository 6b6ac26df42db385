"""Images that don't fit into memory, pyramids, other orders of axes, sixteen bits, and pixels that are exchanged."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from napari.layers import Image, Labels
from numpy.typing import NDArray
from qtpy.QtTest import QTest

from napari_gui import Gui
from refinesam_napari.document import PlanePrompts
from refinesam_napari.geometry import FREE, Crop, Plane, PlaneMask
from refinesam_napari.images import ImageSettings
from refinesam_napari.inference import Model, sessions
from refinesam_napari.objects_layer import ObjectsLayer
from refinesam_napari.workspace import Workspace

LARGE, CHUNK, RADIUS = 12_000, 512, 150
CENTRE = (7_000, 4_100)
Hw = tuple[int, int]


def disk(hw: Hw, centre: tuple[float, float], radius: float, seed: int, dtype: str = "uint8") -> NDArray[Any]:
    """(H, W), bright on dark; another seed gives pixels that no other test has encoded."""
    noise = np.random.default_rng(seed).integers(0, 12, hw)
    return (40 + 150 * inside(hw, centre, radius) + noise).astype(dtype)


def inside(hw: Hw, centre: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: hw[0], : hw[1]]
    return np.asarray((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2)


def overlap(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((mask & other).sum() / (mask | other).sum())


def is_the_disk(mask: PlaneMask, centre: tuple[float, float], radius: float) -> bool:
    """Whether a mask is a disk, known by its box so that no large plane is made."""
    there = inside(mask.pixels.shape, (centre[0] - mask.y0, centre[1] - mask.x0), radius)
    return overlap(mask.pixels, there) > 0.9 and mask.area > 0.9 * np.pi * radius**2


class Lazy:
    """A dask array of a disk, computed by chunk, that knows which thread read which chunk."""

    def __init__(self, factor: int = 1) -> None:
        self.reads: list[tuple[str, tuple[int, int]]] = []
        self._factor = factor
        side = LARGE // factor
        chunks = da.core.normalize_chunks(CHUNK, (side, side))
        self.array = da.map_blocks(self._chunk, chunks=chunks, dtype=np.uint8)

    def _chunk(self, block_info: Any = None) -> NDArray[np.uint8]:
        info = block_info[None]
        self.reads.append((threading.current_thread().name, tuple(info["chunk-location"])))
        (top, bottom), (left, right) = info["array-location"]
        centre = CENTRE[0] / self._factor - top, CENTRE[1] / self._factor - left
        return disk((bottom - top, right - left), centre, RADIUS / self._factor, seed=top * LARGE + left)

    def read_by_plugin(self) -> list[tuple[int, int]]:
        """Chunks that the plugin's thread read, which napari's drawing has no part in; forget them all."""
        # Whoever computes in the GUI's thread holds up the window: there it is napari alone.
        chunks = [chunk for thread, chunk in self.reads if thread != "MainThread"]
        self.reads.clear()
        return chunks


def chunks_of(crop: Crop) -> list[tuple[int, int]]:
    rows = range(crop.y0 // CHUNK, (crop.y1 - 1) // CHUNK + 1)
    return list(product(rows, range(crop.x0 // CHUNK, (crop.x1 - 1) // CHUNK + 1)))


@pytest.fixture
def computed_where_asked() -> Iterator[None]:
    """Dask computes in the thread that asks, whose name then says who reads."""
    with dask.config.set(scheduler="synchronous"):
        yield


def click(gui: Gui, row: float, column: float) -> None:
    """Click on a place in full-resolution pixels, as displayed; the prompts' layer has them at every zoom."""
    gui.controller.view.prompts.use_points(True)
    points = gui.controller.view.prompts.points
    assert points is not None
    gui.click(points, row, column)


@pytest.mark.usefixtures("computed_where_asked")
def test_a_huge_lazy_image_is_read_around_the_click_only(
    open_gui: Callable[..., Gui], record_property: Callable[[str, object], None]
) -> None:
    lazy = Lazy()
    gui = open_gui(lazy.array, name="image", contrast_limits=(0, 255))
    gui.settle()
    # napari reads all chunks to draw them; the plugin waits for a click.
    assert len({chunk for _, chunk in lazy.reads}) == (LARGE // CHUNK + 1) ** 2
    assert lazy.read_by_plugin() == []
    process = psutil.Process()
    before = process.memory_info().rss
    click(gui, *CENTRE)
    first = gui.answer()
    assert is_the_disk(first.mask, CENTRE, RADIUS)
    read_in_gui = [read for read in lazy.reads if read[0] == "MainThread"]
    read = lazy.read_by_plugin()
    assert read_in_gui == [] and sorted(read) == chunks_of(first.crop)
    record_property("chunks", len(read))
    click(gui, CENTRE[0] + 40, CENTRE[1] + 60)
    second = gui.answer()
    assert len(second.request.prompts.points) == 2 and second.crop == first.crop
    assert lazy.reads == []
    assert process.memory_info().rss - before < LARGE * LARGE
    gui.key("N")
    labels = gui.controller.workspace.objects.layer
    assert labels.data.shape == (LARGE, LARGE)
    rows, columns = second.mask.rows, second.mask.columns
    assert np.array_equal(labels.data[rows, columns] == 1, second.mask.pixels)
    assert np.count_nonzero(labels.data) == second.mask.area
    gui.settle()
    # napari draws a copy of the labels; nothing else of the image's size stays.
    assert process.memory_info().rss - before < 3 * labels.data.nbytes
    assert lazy.reads == []


@pytest.mark.usefixtures("computed_where_asked")
def test_a_pyramid_is_prompted_in_full_resolution_wherever_it_lies(open_gui: Callable[..., Gui]) -> None:
    levels = [Lazy(factor) for factor in (1, 2, 4, 8)]
    scale, translate = (0.5, 0.25), (100.0, -50.0)
    gui = open_gui(
        [level.array for level in levels],
        name="image",
        multiscale=True,
        contrast_limits=(0, 255),
        scale=scale,
        translate=translate,
    )
    gui.settle()
    assert all(level.read_by_plugin() == [] for level in levels)
    click(gui, *CENTRE)
    found = gui.answer()
    assert found.crop.step == 1 and is_the_disk(found.mask, CENTRE, RADIUS)
    read = [level.read_by_plugin() for level in levels]
    assert sorted(read[0]) == chunks_of(found.crop) and read[1:] == [[], [], []]
    preview = gui.controller.view.preview.layer
    world = np.add(np.multiply((found.mask.y0, found.mask.x0), scale), translate)
    assert np.allclose(preview.data_to_world((0, 0)), world)
    gui.key("N")
    labels = gui.controller.workspace.objects.layer
    assert np.allclose(labels.scale, scale) and np.allclose(labels.translate, translate)
    # In the world the disk is an ellipse, and the labels have it where the image does.
    assert labels.get_value(np.add(np.multiply(CENTRE, scale), translate), world=True) == 1
    outside = np.add(CENTRE, (0, 1.2 * RADIUS))
    assert labels.get_value(np.add(np.multiply(outside, scale), translate), world=True) == 0


@pytest.mark.usefixtures("computed_where_asked")
def test_a_large_box_in_a_pyramid_is_read_from_a_coarser_level(open_gui: Callable[..., Gui]) -> None:
    levels = [Lazy(factor) for factor in (1, 2, 4, 8)]
    gui = open_gui([level.array for level in levels], name="image", multiscale=True, contrast_limits=(0, 255))
    gui.settle()
    assert all(level.read_by_plugin() == [] for level in levels)
    gui.controller.view.prompts.use_boxes()
    boxes = gui.controller.view.prompts.boxes
    gui.drag(boxes, (CENTRE[0] - 1500, CENTRE[1] - 1500), (CENTRE[0] + 1500, CENTRE[1] + 1500))
    crop = gui.answer().crop
    assert crop.step == 8
    read = [level.read_by_plugin() for level in levels]
    coarse = Crop(crop.x0 // 8, crop.y0 // 8, -(-crop.x1 // 8), -(-crop.y1 // 8))
    assert read[:3] == [[], [], []] and sorted(read[3]) == chunks_of(coarse)


def test_one_hot_pixel_of_sixteen_bits_changes_nothing(open_gui: Callable[..., Gui]) -> None:
    centre, radius = (150, 240), 60
    plain = disk((300, 400), centre, radius, seed=1, dtype="uint16")
    hot = plain.copy()
    hot[20, 30] = 65_535
    gui = open_gui(plain, name="image")
    click(gui, *centre)
    expected = gui.mask()
    gui.viewer.layers["image"].data = hot
    QTest.qWait(10)
    mask = gui.mask()
    assert overlap(expected, inside(plain.shape, centre, radius)) > 0.9
    assert overlap(mask, expected) > 0.98
    # With the whole range on the scale the disk would be as dark as its surroundings.
    gui.controller.predictions.show_what_the_model_sees()
    seen = gui.viewer.layers["refinesam: what the model sees"].data[..., 0]
    assert seen[centre] > 200 and seen[20, 30] == 255 and np.median(seen) < 60


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), (1, 2, 0)])
def test_permuted_axes_give_the_mask_of_the_transposed_image(
    open_gui: Callable[..., Gui], order: Sequence[int]
) -> None:
    # Height, width of what is seen; the disk lies off both diagonals.
    centre, radius, seen = (90, 210), 50, disk((220, 300), (90, 210), 50, seed=2)
    ndim = len(order)
    # Five planes, since napari takes a last axis of three for colours.
    shown = seen if ndim == 2 else np.stack([seen if index == 1 else np.zeros_like(seen) for index in range(5)])
    volume = shown.transpose(np.argsort(order))
    gui = open_gui(volume, name="image")
    gui.viewer.dims.order = order
    if ndim == 3:
        gui.viewer.dims.set_point(order[0], 1)
    gui.viewer.reset_view()
    gui.settle()
    where = np.zeros(ndim)
    where[list(order[-2:])] = centre
    gui.controller.view.prompts.use_points(True)
    gui.click(gui.viewer.layers["image"], *(where if ndim > 2 else centre))
    mask = gui.mask()
    assert gui.controller.view.plane.axes == tuple(order[-2:])
    gui.key("N")
    labels = gui.labels().transpose(order)
    assert np.array_equal(labels if ndim == 2 else labels[1], mask)
    assert ndim == 2 or not labels[[0, 2, 3, 4]].any()

    fresh = open_gui(seen, name="image")
    fresh.settle()
    fresh.controller.view.prompts.use_points(True)
    fresh.click(fresh.viewer.layers["image"], *centre)
    assert overlap(mask, inside(seen.shape, centre, radius)) > 0.9
    # Not to the bit, for a click lands on a pixel of the screen.
    assert overlap(mask, fresh.mask()) > 0.97


def test_exchanged_pixels_are_encoded_anew_and_found_again(open_gui: Callable[..., Gui]) -> None:
    first, other = disk((300, 400), (150, 150), 60, seed=3), disk((300, 400), (150, 250), 60, seed=4)
    both = (150, 200)  # Row and column in both disks.
    cache = sessions.get(Model()).cache
    gui = open_gui(first, name="image")
    gui.settle()
    layer, misses = gui.viewer.layers["image"], cache.misses
    click(gui, *both)
    mask = gui.mask()
    assert overlap(mask, first > 120) > 0.9 and cache.misses == misses
    layer.data = other
    changed = gui.mask()
    assert cache.misses == misses + 1
    layer.data = first
    again = gui.mask()
    gui.settle()
    assert np.array_equal(again, mask) and cache.misses == misses + 1
    layer.data = other
    fresh = open_gui(other, name="image")
    click(fresh, *both)
    assert np.array_equal(fresh.mask(), changed) and overlap(changed, other > 120) > 0.9
    assert cache.misses == misses + 1


# ---------------------------------------------------------------- labels of very large images


def huge(side: int) -> list[da.Array]:
    """A pyramid of dark pixels with a bright square of 300 in the middle."""
    middle = side // 2

    def chunk(block_info: Any = None) -> NDArray[np.uint8]:
        (top, bottom), (left, right) = block_info[None]["array-location"]
        rows, columns = np.ogrid[top:bottom, left:right]
        return np.where((abs(rows - middle) < 150) & (abs(columns - middle) < 150), 200, 20).astype(np.uint8)

    full = da.map_blocks(chunk, chunks=da.core.normalize_chunks(2048, (side, side)), dtype=np.uint8)
    return [full[:: 2**level, :: 2**level] for level in range(7)]


def test_the_first_commit_into_a_very_large_pyramid_is_no_burden(open_gui: Callable[..., Gui], tmp_path: Path) -> None:
    side = 40_000
    gui = open_gui(huge(side), name="image", multiscale=True, contrast_limits=(0, 255))
    gui.settle()
    process = psutil.Process()
    click(gui, side / 2, side / 2)
    found = gui.answer()
    before, ticks = process.memory_info().rss, []
    gui.key("N")
    ticks.append(process.memory_info().rss)
    gui.settle()
    # Of 3.2 GB of labels only what was written, and what is in view, is there.
    assert max(*ticks, process.memory_info().rss) - before < 300e6
    objects = gui.controller.workspace.objects
    assert objects.layer.multiscale and objects.array.shape == (side, side)
    rows, columns = found.mask.rows, found.mask.columns
    written = objects.array[rows, columns] == 1
    assert np.array_equal(written, found.mask.pixels) and found.mask.area > 60_000
    # It is drawn at every zoom ...
    middle = (side // 2, side // 2)
    assert objects.layer.get_value(middle, world=True)[1] == 1
    shown = gui.colour_at(gui.controller.view.prompts.points, *middle)
    assert shown.std() > 20, "the labels' colour, not gray"
    for level in list(objects.layer.data)[1:]:
        step = side // level.shape[0]
        assert level[middle[0] // step, middle[1] // step] == 1 and (level == 1).sum() < 2 * found.mask.area / step**2
    # ... and can be undone, done again, exported, deleted.
    gui.key("Z", "control")
    assert not objects.array[rows, columns].any() and not any(level.any() for level in list(objects.layer.data)[2:])
    gui.key("Z", "control shift")
    gui.widget.files.export_coco(tmp_path / "coco.json")
    assert np.array_equal(objects.array[rows, columns] == 1, found.mask.pixels)
    layer = objects.layer
    gui.viewer.layers.remove(layer)
    gui.viewer.layers.append(layer)
    gui.controller.delete(1)
    assert not objects.array[rows, columns].any() and not gui.controller.workspace.document.objects


def test_a_large_object_is_written_in_blocks_that_take_little_memory() -> None:
    side = 9_000
    workspace = Workspace(Image(np.zeros((side, side), np.uint8)), ImageSettings())
    workspace.objects = ObjectsLayer(Labels(np.zeros((side, side), np.uint16)), lambda writes: None, empty=True)
    rows, columns = np.ogrid[:side, :side]
    whole = (rows - side / 2) ** 2 + (columns - side / 2) ** 2 < (side / 2 - 1) ** 2
    mask, plane = PlaneMask.of(whole, Crop(0, 0, side, side)), Plane((0, 1), (FREE, FREE))
    tracemalloc.start()
    change = workspace.commit(1, {plane: PlanePrompts()}, {plane: mask}, overwrite=False, score=None)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(workspace.objects.array == 1, whole)
    assert change is not None and all(part.mask.size <= 2048**2 for part in change.writes)
    # A byte a pixel is kept for undo, and one to know the mask; to write a block takes its share, not the object's.
    assert kept < 2.5 * side**2 and peak < 6 * side**2
    workspace.undo()
    assert not workspace.objects.array.any()
