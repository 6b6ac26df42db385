from __future__ import annotations

import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Image
from zarr.storage import MemoryStore

import refinesam
from refinesam import ConfigError, ImageError, as_rgb
from refinesam_napari.geometry import FREE, Crop, Plane
from refinesam_napari.images import (
    INTENSITIES,
    CropReader,
    ImageSettings,
    ImageSnapshot,
)
from refinesam_napari.views import guess_channel_axis, plane_in_view, stack_axes

RNG = np.random.default_rng(0)
YX = Plane((0, 1), (FREE, FREE))
CROP = Crop(5, 3, 35, 23)


def snapshot(data: Any, settings: ImageSettings | None = None, **layer: Any) -> ImageSnapshot:
    return ImageSnapshot.of(Image(data, **layer), settings or ImageSettings())


def gray(rgb: np.ndarray) -> np.ndarray:
    np.testing.assert_array_equal(rgb[..., 0], rgb[..., 1])
    np.testing.assert_array_equal(rgb[..., 0], rgb[..., 2])
    return rgb[..., 0].astype(int)


def noise(dtype: str, shape: tuple[int, ...] = (30, 40)) -> np.ndarray:
    if dtype == "bool":
        return RNG.random(shape) < 0.3
    if np.dtype(dtype).kind == "f":
        values = RNG.random(shape).astype(dtype)
        values.flat[::17] = np.nan
        return values
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min // 2, limits.max // 2, shape, np.dtype(dtype).newbyteorder("=")).astype(dtype)


def mean(data: np.ndarray, step: int) -> np.ndarray:
    height, width = data.shape[0] // step, data.shape[1] // step
    blocks = data[: height * step, : width * step].astype(float).reshape(height, step, width, step)
    return np.nanmean(blocks, axis=(1, 3))


# ---------------------------------------------------------------- settings


def test_the_policies_are_the_cores_and_what_the_layer_shows() -> None:
    assert (*refinesam.INTENSITY_POLICIES, "contrast_limits") == INTENSITIES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intensity": "gamma"}, r"Unknown intensity policy 'gamma': choose one of percentile, .*contrast_limits"),
        ({"channel_axis": -1}, r"channel_axis=-1: count data axes from 0"),
        ({"channel_axis": 0, "channels": (0, 1, 2, 3)}, r"\(0, 1, 2, 3\): choose at most three"),
        ({"channel_axis": 0, "channels": (-1,)}, r"\(-1,\): choose at most three indices from 0"),
        ({"channels": (1,)}, r"\(1,\) without a channel_axis: name the axis"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageSettings(**settings)


@pytest.mark.parametrize(
    ("data", "layer", "settings", "message"),
    [
        (np.zeros((9, 9, 3), np.uint8), {"rgb": True}, {"channel_axis": 0}, "the layer is RGB"),
        (np.zeros((2, 9, 9)), {}, {"channel_axis": 3}, r"channel_axis=3, but the image has axes 0 to 2"),
        (np.zeros((2, 9, 9)), {}, {"channel_axis": 0, "channels": (0, 2)}, r"axis 0 holds channels 0 to 1"),
    ],
)
def test_settings_that_do_not_fit_the_layer_are_refused(
    data: np.ndarray, layer: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        snapshot(data, ImageSettings(**settings), **layer)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("intensity", ["percentile", "minmax", "as_is"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", ">u2", "uint32", "int16", ">i2", "float32", ">f8"])
def test_a_crop_reads_as_the_core_would_read_it(dtype: str, intensity: Any) -> None:
    data = noise(dtype)
    rgb = snapshot(data, ImageSettings(intensity)).read(YX, CROP)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, as_rgb(data[3:23, 5:35], intensity=intensity))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3), 2)))
def test_permuted_axes_read_as_transposed_data(axes: tuple[int, int]) -> None:
    data = noise("uint16", (30, 32, 34))
    (fixed,) = {0, 1, 2} - set(axes)
    plane = Plane(axes, tuple(FREE if axis in axes else 7 for axis in range(3)))
    image = snapshot(data)
    expected = np.transpose(data, (fixed, *axes))[7]
    assert image.plane_hw(plane) == expected.shape
    np.testing.assert_array_equal(image.read(plane, Crop(2, 4, 22, 29)), as_rgb(expected[4:29, 2:22]))


@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (2, 0)])
@pytest.mark.parametrize("colors", [3, 4])
def test_rgb_stays_and_alpha_goes(axes: tuple[int, int], colors: int) -> None:
    data = noise("uint8", (12, 14, 16, colors))
    (fixed,) = {0, 1, 2} - set(axes)
    image = snapshot(data, rgb=True)
    assert (image.ndim, image.shape) == (3, (12, 14, 16))
    plane = Plane(axes, tuple(FREE if axis in axes else 5 for axis in range(3)))
    expected = np.transpose(data, (fixed, *axes, 3))[5, 2:10, 1:9, :3]
    np.testing.assert_array_equal(image.read(plane, Crop(1, 2, 9, 10)), expected)


def test_one_hot_pixel_does_not_darken_the_image() -> None:
    data = RNG.integers(1000, 2000, (100, 100)).astype(np.uint16)
    data[50, 50] = 65535
    whole = Crop(0, 0, 100, 100)
    assert np.median(snapshot(data, ImageSettings("percentile")).read(YX, whole)) > 100
    assert np.median(snapshot(data, ImageSettings("minmax")).read(YX, whole)) < 10


@pytest.mark.parametrize("intensity", INTENSITIES)
@pytest.mark.parametrize("data", [np.full((30, 40), 7, np.uint16), np.ones((30, 40)), np.zeros((30, 40), bool)])
@pytest.mark.parametrize("step", [1, 4])
def test_a_constant_plane_reads_as_one_color(data: np.ndarray, intensity: Any, step: int) -> None:
    rgb = snapshot(data, ImageSettings(intensity)).read(YX, Crop(0, 0, 40, 30, step))
    assert len(np.unique(rgb)) == 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_contrast_limits_stretch_any_data(dtype: str) -> None:
    data = np.array([[0, 50, 75, 100, 200]], dtype)
    rgb = snapshot(data, ImageSettings("contrast_limits"), contrast_limits=(50, 100)).read(YX, Crop(0, 0, 5, 1))
    assert gray(rgb).tolist() == [[0, 0, 128, 255, 255]]


def test_contrast_limits_are_those_of_when_the_snapshot_was_taken() -> None:
    layer = Image(np.array([[0, 100]], np.uint16), contrast_limits=(0, 200))
    image = ImageSnapshot.of(layer, ImageSettings("contrast_limits"))
    layer.contrast_limits = (0, 100)
    layer.data = np.zeros((1, 2), np.uint16)
    assert gray(image.read(YX, Crop(0, 0, 2, 1))).tolist() == [[0, 128]]


def test_booleans_have_contrast_limits_too() -> None:
    data = np.array([[False, True]])
    assert gray(snapshot(data, ImageSettings("contrast_limits")).read(YX, Crop(0, 0, 2, 1))).tolist() == [[0, 255]]


def test_what_was_read_does_not_change_with_the_data() -> None:
    data = np.zeros((8, 8, 3), np.uint8)
    rgb = snapshot(data, rgb=True).read(YX, Crop(0, 0, 8, 8))
    data[:] = 9
    assert rgb.max() == 0


@pytest.mark.parametrize("step", [1, 2])
def test_only_nan_is_the_cores_error(step: int) -> None:
    data = np.full((30, 40), np.nan)
    data[0, 0] = 1
    with pytest.raises(ImageError, match="only NaN or infinity"):
        snapshot(data).read(YX, Crop(5, 3, 35, 23, step))


@pytest.mark.parametrize(
    "crop", [Crop(4, 4, 4, 8), Crop(4, 8, 8, 4), Crop(-1, 0, 4, 4), Crop(0, 0, 41, 30), Crop(0, 0, 4, 4, 0)]
)
def test_a_crop_without_pixels_or_outside_is_refused(crop: Crop) -> None:
    with pytest.raises(ImageError, match=r"empty or not inside the plane \(width 40, height 30\)"):
        snapshot(np.zeros((30, 40))).read(YX, crop)


def test_a_plane_that_does_not_fit_is_refused() -> None:
    image = snapshot(np.zeros((2, 30, 40)), ImageSettings(channel_axis=0))
    with pytest.raises(ConfigError, match="The plane has 2 axes, the image 3"):
        image.read(YX, CROP)
    with pytest.raises(ConfigError, match=r"along axes \(0, 2\), of which 0 holds channels"):
        image.read(Plane((0, 2), (FREE, 3, FREE)), Crop(0, 0, 2, 2))


# ---------------------------------------------------------------- channels


@pytest.mark.parametrize("axis", [0, 3])
@pytest.mark.parametrize("channels", [(), (2,), (2, 0), (1, 2), (4, 0, 1), (0, 2, 4), (3, 3, 1)])
@pytest.mark.parametrize("step", [1, 2])
def test_channels_become_colors_each_scaled_on_its_own(axis: int, channels: tuple[int, ...], step: int) -> None:
    czyx = noise("uint16", (5, 3, 30, 40)) // np.array([1, 3, 10, 30, 100], np.uint16)[:, None, None, None]
    data = np.moveaxis(czyx, 0, axis)
    plane = Plane((1, 2), (1, FREE, FREE, FREE)) if axis else Plane((2, 3), (FREE, 1, FREE, FREE))
    rgb = snapshot(data, ImageSettings("minmax", axis, channels)).read(plane, Crop(5, 3, 35, 23, step))
    used = channels or (0,)
    planes = [czyx[index, 1, 3:23, 5:35] for index in used]
    if step > 1:
        planes = [np.floor(mean(plane, step) + 0.5).astype(np.uint16) for plane in planes]
    expected = [as_rgb(plane, intensity="minmax")[..., 0] for plane in planes]
    if len(used) == 1:
        expected *= 3
    expected += [np.zeros_like(expected[0])] * (3 - len(expected))
    np.testing.assert_allclose(rgb.astype(int), np.stack(expected, -1), atol=0 if step == 1 else 1)


def test_channels_go_with_transposed_axes() -> None:
    data = noise("uint16", (20, 3, 30))
    rgb = snapshot(data, ImageSettings("minmax", 1, (2,))).read(Plane((2, 0), (FREE, FREE, FREE)), Crop(0, 0, 20, 30))
    np.testing.assert_array_equal(rgb, as_rgb(data[:, 2].T, intensity="minmax"))


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int16", "uint32", ">f4", "float64", "bool"])
@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_step_averages(dtype: str, step: int) -> None:
    data = noise(dtype, (60, 90))
    rgb = snapshot(data, ImageSettings("minmax")).read(YX, Crop(0, 0, 90, 60, step))
    assert rgb.shape == (60 // step, 90 // step, 3)
    means = mean(data, step)
    if dtype == "uint8":
        expected = means
    elif dtype == "bool":
        expected = 255 * means
    else:
        expected = 255 * (means - means.min()) / (means.max() - means.min())
    np.testing.assert_allclose(gray(rgb), expected, atol=1.01)


def test_the_last_step_may_reach_over_the_crop() -> None:
    data = np.zeros((8, 8), np.uint8)
    data[:, 4:6], data[:, 6] = 100, 200
    rgb = snapshot(data).read(YX, Crop(0, 0, 7, 8, 4))  # column 7 is not in the crop: 200 goes on
    assert gray(rgb).tolist() == [[0, 150]] * 2


def test_as_is_keeps_the_types_range_under_a_step() -> None:
    data = np.full((8, 8), 2**15, np.uint32) * np.uint32(2**16)
    assert gray(snapshot(data, ImageSettings("as_is")).read(YX, Crop(0, 0, 8, 8, 4))).tolist() == [[128] * 2] * 2
    ones = np.ones((30, 45))  # whose averages OpenCV rounds to a little more than 1
    assert gray(snapshot(ones, ImageSettings("as_is")).read(YX, Crop(0, 0, 45, 30, 3))).min() == 255


def test_nan_and_infinity_spoil_no_average() -> None:
    data = np.tile(np.array([[1.0, 2.0, 3.0, 4.0]]), (4, 1)).repeat(4, 0).repeat(4, 1)
    data[::2, ::2] = np.nan
    data[:4, :4] = np.nan
    data[5, 15] = np.inf
    rgb = gray(snapshot(data, ImageSettings("minmax")).read(YX, Crop(0, 0, 16, 16, 4)))
    assert rgb.tolist() == [[0, 85, 170, 255], *[[0, 85, 170, 255]] * 3]


# ---------------------------------------------------------------- lazy data


class CountedBlocks:
    """A dask array of y + 3 x, modulo 2**16, that counts how often each of its chunks is computed."""

    def __init__(self, shape: tuple[int, int], chunk: int, factor: int = 1) -> None:
        self.computed: Counter[tuple[int, ...]] = Counter()
        self._lock = threading.Lock()
        self._factor = factor
        chunks = da.core.normalize_chunks(chunk, shape)
        self.array = da.map_blocks(self._make, chunks=chunks, dtype=np.uint16, meta=np.empty((0, 0), np.uint16))

    def _make(self, block_info: Any = None) -> np.ndarray:
        location = block_info[None]["array-location"]
        with self._lock:
            self.computed[tuple(block_info[None]["chunk-location"])] += 1
        return self.values(*location)

    def values(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        y, x = np.arange(*rows)[:, None] * self._factor, np.arange(*columns) * self._factor
        return ((y + 3 * x) % 2**16).astype(np.uint16)


def test_a_crop_of_a_huge_dask_image_computes_only_its_chunks() -> None:
    counted = CountedBlocks((12_000, 12_000), 500)
    image = snapshot(counted.array, contrast_limits=(0, 65535))
    counted.computed.clear()
    rgb = image.read(YX, Crop(3100, 6700, 3100 + 1024, 6700 + 1024))
    assert counted.computed == {(row, column): 1 for row in (13, 14, 15) for column in (6, 7, 8)}
    np.testing.assert_array_equal(rgb, as_rgb(counted.values((6700, 7724), (3100, 4124))))


def test_all_channels_of_a_chunk_are_computed_at_once() -> None:
    calls: list[int] = []

    def make(block_info: Any = None) -> np.ndarray:
        calls.append(1)
        return np.ones(block_info[None]["chunk-shape"], np.uint16)

    data = da.map_blocks(make, chunks=((3,), (8, 8), (8, 8)), dtype=np.uint16, meta=np.empty((0, 0, 0), np.uint16))
    image = snapshot(data, ImageSettings(channel_axis=0, channels=(2, 0, 1)), contrast_limits=(0, 1))
    calls.clear()
    image.read(Plane((1, 2), (FREE, FREE, FREE)), Crop(1, 1, 7, 7))
    assert len(calls) == 1


def test_a_strided_channel_slice_passes_over_what_lies_between() -> None:
    read: set[int] = set()

    def make(block_info: Any = None) -> np.ndarray:
        read.add(block_info[None]["chunk-location"][0])
        return np.ones(block_info[None]["chunk-shape"], np.uint16)

    data = da.map_blocks(make, chunks=((1,) * 9, (8,), (8,)), dtype=np.uint16, meta=np.empty((0, 0, 0), np.uint16))
    image = snapshot(data, ImageSettings(channel_axis=0, channels=(7, 1)), contrast_limits=(0, 1))
    read.clear()
    image.read(Plane((1, 2), (FREE, FREE, FREE)), Crop(0, 0, 8, 8))
    assert read == {1, 7}


class CountingStore(MemoryStore):
    """A store that notes which chunks were asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.asked.add(key)
        return await super().get(key, *args, **kwargs)


def test_a_zarr_array_is_read_by_chunks() -> None:
    store = CountingStore()
    array = zarr.create_array(store, shape=(3, 64, 64), chunks=(1, 16, 16), dtype="uint16")
    array[:] = noise("uint16", (3, 64, 64))
    image = snapshot(array, contrast_limits=(0, 65535))
    store.asked.clear()
    rgb = image.read(Plane((2, 1), (1, FREE, FREE)), Crop(16, 20, 32, 50))
    assert {key for key in store.asked if key.startswith("c/")} == {f"c/1/1/{column}" for column in (1, 2, 3)}
    np.testing.assert_array_equal(rgb, as_rgb(np.asarray(array[1, 16:32, 20:50]).T))


# ---------------------------------------------------------------- multiscale


@pytest.mark.parametrize(("step", "level"), [(1, 0), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3), (64, 3)])
def test_the_coarsest_level_with_the_wanted_resolution_is_read(step: int, level: int) -> None:
    counted = [CountedBlocks((1001 >> i, 1403 >> i), 32, 1 << i) for i in range(4)]
    image = snapshot([item.array for item in counted], multiscale=True, contrast_limits=(0, 65535))
    for item in counted:
        item.computed.clear()
    crop = Crop(256, 128, 768, 640, step)
    rgb = image.read(YX, crop)
    assert rgb.shape == (*crop.hw, 3)
    assert [bool(item.computed) for item in counted] == [i == level for i in range(4)]
    # Pixels 128 to 640 and 256 to 768 of the plane, in chunks of 32 of the level.
    rows, columns = (range((low >> level) // 32, -(-(high >> level) // 32)) for low, high in ((128, 640), (256, 768)))
    assert set(counted[level].computed) == set(itertools.product(rows, columns))


def test_a_level_of_the_steps_own_resolution_is_read_as_it_is() -> None:
    full = noise("uint16", (101, 103))
    half = np.floor(mean(full, 2) + 0.5).astype(np.uint16)
    image = snapshot([full, half], multiscale=True)
    np.testing.assert_array_equal(image.read(YX, Crop(20, 10, 100, 90, 2)), as_rgb(half[5:45, 10:50]))
    # The pyramid leaves out the last row and column: its own last ones go on.
    whole = np.pad(half, ((0, 1), (0, 1)), mode="edge")
    np.testing.assert_array_equal(image.read(YX, Crop(0, 0, 103, 101, 2)), as_rgb(whole))


@given(
    size=st.integers(200, 300),
    level_size=st.integers(60, 190),
    step=st.integers(1, 6),
    x0=st.integers(0, 60),
    y0=st.integers(0, 60),
)
def test_any_level_puts_things_where_they_are(size: int, level_size: int, step: int, x0: int, y0: int) -> None:
    """On a ramp, every pixel says where its centre lies in the plane."""
    factor = size / level_size
    full = np.arange(size)[:, None] + 1000.0 + 0 * np.arange(size) + 0.5
    coarse = (np.arange(level_size)[:, None] + 0.5) * factor + 1000.0 + 0 * np.arange(level_size)
    for data, expected in (([full, coarse], "y"), ([full.T, coarse.T], "x")):
        image = snapshot(data, ImageSettings("contrast_limits"), multiscale=True, contrast_limits=(1000, 1000 + size))
        crop = Crop(x0, y0, x0 + 96, y0 + 96, step)
        rgb = gray(image.read(YX, crop))
        line = rgb[:, 3] if expected == "y" else rgb[3]
        start = y0 if expected == "y" else x0
        centres = start + (np.arange(len(line)) + 0.5) * step
        inner = slice(1, -1)  # at the crop's edges there is no neighbour to interpolate with
        # A fifth of a pixel for OpenCV's coordinates, and a rounded colour; a pyramid of whole factors may be off by
        # the pixel that it left out.
        tolerance = (
            0.5 * size / 255 + 0.2 * step + (factor if abs(size / max(1, round(factor)) - level_size) < 1 else 0)
        )
        assert np.abs(line * size / 255 - centres)[inner].max(initial=0) <= tolerance


def test_a_level_is_also_coarser_across_planes() -> None:
    levels = [np.zeros((9, 64, 64), np.uint8), np.zeros((3, 32, 32), np.uint8)]
    levels[1][1] = 200
    image = snapshot(levels, multiscale=True)
    for z, expected in ((2, 0), (3, 200), (5, 200), (6, 0), (8, 0)):
        assert image.read(Plane((1, 2), (z, FREE, FREE)), Crop(0, 0, 64, 64, 2)).max() == expected


def test_rgb_may_be_multiscale() -> None:
    full = noise("uint8", (64, 64, 3))
    image = snapshot([full, full[::2, ::2]], rgb=True, multiscale=True)
    assert image.shape == (64, 64)
    np.testing.assert_array_equal(image.read(YX, Crop(8, 16, 40, 48, 2)), full[16:48:2, 8:40:2])


# ---------------------------------------------------------------- the plane in view


@pytest.mark.parametrize(
    "placed",
    [
        {},
        {"scale": (2.5, 0.5, 0.5), "translate": (10, -3, 4)},
        {
            "scale": (0.3, 1, 2),
            "translate": (-1.2, 0, 0),
            "rotate": np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]),
        },
    ],
)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")  # napari's, of the rotated layer
def test_the_plane_in_view_is_the_one_that_napari_shows(placed: dict[str, Any], order: tuple[int, ...]) -> None:
    data = noise("uint8", (7, 8, 9))
    viewer = ViewerModel()
    viewer.add_image(np.zeros((3, 40, 40, 40), np.uint8), visible=False)
    viewer.add_image(data, name="data", **placed)
    layer = viewer.layers["data"]
    viewer.dims.order = (0, *(axis + 1 for axis in order))
    low, high = layer.extent.world[:, order[0]]
    compared = 0
    for world in np.linspace(low + 0.01, high - 0.01, 13):
        viewer.dims.set_point(order[0] + 1, world)
        plane = plane_in_view(layer, viewer.dims.displayed, viewer.dims.point, None)
        image = ImageSnapshot.of(layer, ImageSettings())
        height, width = image.plane_hw(plane)
        expected = np.asarray(layer._slice.image.raw)
        if expected.shape != (1, 1):  # a rotated layer is not shown everywhere in its extent
            compared += 1
            np.testing.assert_array_equal(image.read(plane, Crop(0, 0, width, height))[..., 0], expected)
    assert compared >= 4


def test_outside_the_data_the_nearest_plane_counts() -> None:
    layer = Image(np.zeros((5, 8, 9)), scale=(2, 1, 1), translate=(10, 0, 0))
    assert plane_in_view(layer, (1, 2), (100, 0, 0), None).position[0] == 4
    assert plane_in_view(layer, (1, 2), (-100, 0, 0), None).position[0] == 0
    assert plane_in_view(layer, (1, 2), (14, 0, 0), None).position[0] == 2


def test_channels_have_no_position() -> None:
    layer = Image(np.zeros((3, 5, 8, 9)))
    assert plane_in_view(layer, (3, 4), (7, 1, 2, 0, 0), 0) == Plane((2, 3), (FREE, 2, FREE, FREE))
    assert plane_in_view(layer, (4, 3), (7, 1, 2, 0, 0), None) == Plane((3, 2), (1, 2, FREE, FREE))


def test_the_rgb_axis_is_no_axis() -> None:
    layer = Image(np.zeros((5, 8, 9, 3), np.uint8), rgb=True)
    assert plane_in_view(layer, (1, 2), (3, 0, 0), None) == Plane((1, 2), (3, FREE, FREE))


@pytest.mark.parametrize(
    ("displayed", "channel_axis", "message"),
    [
        ((1, 2, 3), None, "shows 3 dimensions, prompts are set in planes: switch it to 2D"),
        ((1, 3), 0, r"along axes \(0, 2\), of which 0 holds channels: show two others"),
        ((0, 3), None, r"shows axes \(0, 3\) of 4; layer 'cells' has only the last 3"),
    ],
)
def test_a_view_without_a_plane_is_refused(displayed: tuple[int, ...], channel_axis: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plane_in_view(Image(np.zeros((3, 8, 9)), name="cells"), displayed, (0, 0, 0, 0), channel_axis)


# ---------------------------------------------------------------- axes by label


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, None),
        ("CZYX", 0),
        ("zyxc", 3),
        (("z", "Channels ", "y", "x"), 1),
        (("ch", "c", "y", "x"), 0),
        ("tzyx", None),
    ],
)
def test_the_channel_axis_is_known_by_its_label(labels: Any, expected: int | None) -> None:
    assert guess_channel_axis(Image(np.zeros((2, 3, 4, 5)), axis_labels=labels)) == expected


def test_an_rgb_layer_has_no_channel_axis() -> None:
    assert guess_channel_axis(Image(np.zeros((2, 8, 9, 3), np.uint8), rgb=True, axis_labels=("c", "y", "x"))) is None


@pytest.mark.parametrize(
    ("shape", "labels", "displayed", "channel_axis", "expected"),
    [
        ((2, 3, 4, 5, 6), "tzcyx", (3, 4), 2, 1),
        ((2, 3, 4, 5, 6), "ztcyx", (3, 4), 2, 0),
        ((2, 3, 4, 5, 6), ("Depth", "q", "c", "y", "x"), (3, 4), 2, 0),
        ((2, 3, 4, 5, 6), None, (3, 4), 2, 1),
        ((2, 3, 4, 5, 6), None, (3, 4), None, 2),
        ((2, 1, 5, 6), "tzyx", (2, 3), None, 0),
        ((3, 2, 5, 6), "tzyx", (1, 3), None, 2),
        ((3, 5, 6), ("Frame", "y", "x"), (1, 2), None, 0),
        ((3, 5, 6), None, (1, 2), 0, None),
        ((5, 6), None, (0, 1), None, None),
    ],
)
def test_the_stack_runs_along_depth_and_along_time_where_there_is_no_other(
    shape: tuple[int, ...], labels: Any, displayed: tuple[int, int], channel_axis: int | None, expected: int | None
) -> None:
    layer = Image(np.zeros(shape), axis_labels=labels)
    plane = plane_in_view(layer, displayed, (0,) * len(shape), channel_axis)
    assert next(iter(stack_axes(layer, plane, channel_axis)), None) == expected


# ---------------------------------------------------------------- the reader


@pytest.fixture
def lazy() -> CountedBlocks:
    return CountedBlocks((200, 200), 100)


def test_a_lazy_crop_is_read_once(lazy: CountedBlocks) -> None:
    layer, reader = Image(lazy.array, contrast_limits=(0, 800)), CropReader()
    lazy.computed.clear()
    first = reader.read(ImageSnapshot.of(layer, ImageSettings()), YX, CROP)
    layer.contrast_limits = (0, 400)  # another snapshot of the same data; these limits don't matter
    again = reader.read(ImageSnapshot.of(layer, ImageSettings()), YX, CROP)
    assert lazy.computed.total() == 1
    assert again is first and not first.flags.writeable
    np.testing.assert_array_equal(first, as_rgb(lazy.values((3, 23), (5, 35))))


def test_what_differs_is_read_anew(lazy: CountedBlocks) -> None:
    reader, shown = CropReader(), ImageSettings("contrast_limits")
    variants = [
        (snapshot(lazy.array, contrast_limits=(0, 800)), CROP),
        (snapshot(lazy.array, contrast_limits=(0, 800)), Crop(5, 3, 35, 23, 2)),
        (snapshot(lazy.array, shown, contrast_limits=(0, 800)), CROP),
        (snapshot(lazy.array, shown, contrast_limits=(0, 400)), CROP),
        (snapshot(lazy.array + 1, contrast_limits=(0, 800)), CROP),
    ]
    lazy.computed.clear()
    for image, crop in variants:
        np.testing.assert_array_equal(reader.read(image, YX, crop), image.read(YX, crop))
    assert lazy.computed.total() == 2 * len(variants)


def test_the_reader_keeps_the_last_few(lazy: CountedBlocks) -> None:
    image, reader = snapshot(lazy.array, contrast_limits=(0, 800)), CropReader(entries=2)
    crops = [Crop(x, 0, x + 10, 10) for x in range(3)]
    lazy.computed.clear()
    for index in (0, 1, 0, 2, 0, 1):  # 2 drives out 1, the one not read for longest
        reader.read(image, YX, crops[index])
    assert lazy.computed.total() == 4


def test_an_array_in_the_place_of_one_that_is_gone_is_read() -> None:
    reader = CropReader()
    for value in range(50):
        data = da.full((8, 8), value, dtype=np.uint8)
        assert reader.read(snapshot(data), YX, Crop(0, 0, 8, 8)).max() == value


def test_forgotten_crops_are_read_anew(lazy: CountedBlocks) -> None:
    image, reader = snapshot(lazy.array, contrast_limits=(0, 800)), CropReader()
    reader.read(image, YX, CROP)
    lazy.computed.clear()
    reader.forget()
    reader.read(image, YX, CROP)
    assert lazy.computed.total() == 1


def test_what_is_read_while_the_reader_forgets_is_not_kept() -> None:
    reader, calls = CropReader(), []

    def make(block_info: Any = None) -> np.ndarray:
        calls.append(1)
        reader.forget()
        return np.arange(64, dtype=np.uint16).reshape(8, 8)

    data = da.map_blocks(make, chunks=((8,), (8,)), dtype=np.uint16, meta=np.empty((0, 0), np.uint16))
    image = snapshot(data, contrast_limits=(0, 100))
    calls.clear()
    reader.read(image, YX, Crop(0, 0, 8, 8))
    reader.read(image, YX, Crop(0, 0, 8, 8))
    assert len(calls) == 2


def test_a_change_in_place_of_a_numpy_array_is_seen() -> None:
    data = np.zeros((8, 8), np.uint8)
    image, reader = snapshot(data), CropReader()
    assert reader.read(image, YX, Crop(0, 0, 8, 8)).max() == 0
    data[:] = 9
    assert reader.read(image, YX, Crop(0, 0, 8, 8)).min() == 9


def test_many_threads_read_the_same(lazy: CountedBlocks) -> None:
    image, reader = snapshot(lazy.array, contrast_limits=(0, 800)), CropReader(entries=3)
    crops = [Crop(x, 2 * x, x + 10, 2 * x + 10) for x in range(8)] * 8
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda crop: reader.read(image, YX, crop), crops))
    for crop, rgb in zip(crops, results, strict=True):
        np.testing.assert_array_equal(rgb, image.read(YX, crop))
