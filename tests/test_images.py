"""Arrays of every layout and type become RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from image_arrays import GRAY8, RGB8, RGB16, RNG, three
from refinesam import images
from refinesam.errors import ConfigError, ImageError
from refinesam.images import INTENSITY_POLICIES, as_rgb, read_image


def test_the_intensity_policies_are_pinned() -> None:
    assert INTENSITY_POLICIES == ("percentile", "minmax", "as_is")


@pytest.mark.parametrize("intensity", INTENSITY_POLICIES)
def test_rgb_uint8_passes_untouched_without_a_copy(intensity: Any) -> None:
    result = as_rgb(RGB8, intensity=intensity)
    assert np.shares_memory(result, RGB8)
    np.testing.assert_array_equal(result, RGB8)


def test_a_strided_rgb_image_becomes_contiguous() -> None:
    result = as_rgb(RGB8[::2, ::-1])
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, RGB8[::2, ::-1])


@pytest.mark.parametrize(
    ("image", "channels_first", "expected"),
    [
        (GRAY8, False, three(GRAY8)),
        (GRAY8, True, three(GRAY8)),
        (GRAY8[:, :, None], False, three(GRAY8)),
        (GRAY8[None], True, three(GRAY8)),
        (np.moveaxis(RGB8, 2, 0), True, RGB8),
        (np.dstack([RGB8, GRAY8]), False, RGB8),
        (np.moveaxis(np.dstack([RGB8, GRAY8]), 2, 0), True, RGB8),
        (RGB8[:1], False, RGB8[:1]),
        (RGB8[:, :1], False, RGB8[:, :1]),
        (GRAY8[:1, :1], False, three(GRAY8[:1, :1])),
        (GRAY8 > 127, False, three(np.where(GRAY8 > 127, 255, 0))),
        (RGB8.tolist(), False, None),
    ],
)
def test_every_layout_becomes_rgb(image: Any, channels_first: bool, expected: np.ndarray | None) -> None:
    result = as_rgb(image, channels_first=channels_first, intensity="minmax")
    assert (result.dtype, result.ndim, result.shape[2], result.flags.c_contiguous) == (np.uint8, 3, 3, True)
    if expected is not None:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", ["u2", ">u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("intensity", ["percentile", "minmax"])
def test_every_dtype_is_stretched_over_the_full_range(dtype: str, intensity: Any) -> None:
    image = np.arange(100).reshape(10, 10).astype(dtype)
    result = as_rgb(image, intensity=intensity)[..., 0].ravel()
    assert (result[0], result[-1]) == (0, 255)
    assert (np.diff(result.astype(int)) >= 0).all()


@pytest.mark.parametrize("intensity", INTENSITY_POLICIES)
@pytest.mark.parametrize("dtype", ["u2", "i2", "f2", "f4", "f8", "?"])
def test_a_constant_image_works(dtype: str, intensity: Any) -> None:
    result = as_rgb(np.ones((3, 4), dtype), intensity=intensity)
    assert result.shape == (3, 4, 3)
    assert len(np.unique(result)) == 1


def test_one_hot_pixel_does_not_darken_a_16_bit_image() -> None:
    image = np.tile(np.arange(1000, 1064, dtype=np.uint16), (64, 1))
    image[10, 10] = 65535
    stretched = as_rgb(image)[..., 0]
    assert stretched.min() == 0
    assert np.ptp(np.delete(stretched.ravel(), 10 * 64 + 10)) == 255
    assert np.median(as_rgb(image, intensity="minmax")) <= 1


def test_one_hot_pixel_does_not_darken_a_small_image() -> None:
    image = np.arange(256, dtype=np.float32).reshape(16, 16)
    image[3, 3] = 1e6
    assert as_rgb(image)[-1, -1, 0] == 255


def test_sparse_content_survives_the_percentile_policy() -> None:
    image = np.zeros((64, 64), np.uint16)
    image[5, 5] = 400
    assert as_rgb(image)[5, 5].tolist() == [255, 255, 255]
    assert np.count_nonzero(as_rgb(image)) == 3


def test_the_range_is_taken_over_all_channels_together() -> None:
    image = np.zeros((8, 8, 3), np.uint16)
    image[..., 0], image[..., 1] = 1000, 500
    assert as_rgb(image, intensity="minmax")[0, 0].tolist() == [255, 128, 0]


def test_alpha_takes_no_part_in_the_range() -> None:
    image = np.full((4, 4, 4), 65535, np.uint16)
    image[..., :3] = np.linspace(0, 100, 16).reshape(4, 4, 1)
    np.testing.assert_array_equal(as_rgb(image), as_rgb(image[..., :3]))


def test_nan_and_infinities_are_left_out_of_the_range_and_mapped_to_its_ends() -> None:
    image = np.array([[np.nan, np.inf, -np.inf, 0.0, 10.0, 5.0]])
    for intensity in ("percentile", "minmax"):
        assert as_rgb(image, intensity=intensity)[0, :, 0].tolist() == [0, 255, 0, 0, 255, 128]
    assert as_rgb(image / 10, intensity="as_is")[0, :, 0].tolist() == [0, 255, 0, 0, 255, 128]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[-128, 0, 127]], np.int8), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
    ],
)
def test_as_is_scales_by_the_range_of_the_type(image: np.ndarray, expected: list[int]) -> None:
    assert as_rgb(image, intensity="as_is")[0, :, 0].tolist() == expected


def test_large_images_are_sampled_the_same_way_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    image = RNG.normal(1000, 100, (300, 400)).astype(np.float32)
    full = as_rgb(image)
    monkeypatch.setattr(images, "PERCENTILE_PIXELS", 10_000)
    sampled = as_rgb(image)
    np.testing.assert_array_equal(sampled, as_rgb(image))
    assert not np.array_equal(sampled, full)
    assert np.abs(sampled.astype(int) - full).max() <= 20


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = as_rgb(RGB16)
    monkeypatch.setattr(images, "BLOCK_VALUES", 100)
    np.testing.assert_array_equal(as_rgb(RGB16), expected)


def test_a_pillow_image_keeps_its_palette_colours() -> None:
    palette = Image.fromarray(RGB8).quantize(16)
    np.testing.assert_array_equal(as_rgb(palette), np.asarray(palette.convert("RGB")))


ANY_IMAGE = hnp.arrays(
    dtype=st.sampled_from([np.dtype(t) for t in ("?", "u1", "u2", "i4", "u8", "i8", "f2", "f4", "f8")]),
    shape=st.one_of(
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3, 4])),
    ),
)


@given(ANY_IMAGE, st.sampled_from(["percentile", "minmax"]))
def test_any_image_becomes_rgb_or_holds_nothing_finite(image: np.ndarray, intensity: Any) -> None:
    if not np.isfinite(image[..., :3] if image.ndim == 3 else image).any():
        with pytest.raises(ImageError, match="only NaN or infinity"):
            as_rgb(image, intensity=intensity)
        return
    result = as_rgb(image, intensity=intensity)
    assert (result.dtype, result.shape) == (np.uint8, (*image.shape[:2], 3))


@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-1e6, 1e6, width=32)))
def test_minmax_keeps_the_order_of_pixels(image: np.ndarray) -> None:
    ranked = as_rgb(image, intensity="minmax")[..., 0].ravel()[np.argsort(image.ravel(), kind="stable")]
    assert (np.diff(ranked.astype(int)) >= 0).all()


BAD_ARRAYS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("no pixels", np.zeros((0, 5, 3), np.uint8), {}, "check the crop"),
    ("no columns", np.zeros((5, 0)), {}, "check the crop"),
    ("no channels", np.zeros((5, 5, 0)), {}, "check the crop"),
    ("one row only", np.zeros(5), {}, "one image or plane at a time"),
    ("a scalar", np.float32(3), {}, "one image or plane at a time"),
    ("a batch", np.zeros((2, 5, 5, 3)), {}, "one image or plane at a time"),
    ("two channels", np.zeros((5, 5, 2), np.uint8), {}, "choose channels"),
    ("five channels", np.zeros((5, 5, 5), np.uint16), {}, "choose channels"),
    ("channels first, unsaid", np.zeros((3, 5, 6), np.uint8), {}, "pass channels_first=True"),
    ("channels last, said first", np.zeros((5, 6, 3), np.uint8), {"channels_first": True}, "pass channels_first=False"),
    ("complex", np.zeros((5, 5), complex), {}, "for complex data np.abs"),
    ("objects", np.full((5, 5), None), {}, "give booleans, integers or floats"),
    ("strings", np.full((5, 5), "a"), {}, "give booleans, integers or floats"),
    ("a file's name", "photo.png", {}, "for a file read_image"),
    ("None", None, {}, "give booleans, integers or floats"),
    ("dates", np.zeros((5, 5), "datetime64[s]"), {}, "give booleans, integers or floats"),
    ("ragged rows", [[1, 2], [3]], {}, "give a numpy array"),
    ("NaN only", np.full((5, 5), np.nan), {}, "check how it was computed"),
    ("infinities only", np.array([[np.inf, -np.inf]]), {"intensity": "minmax"}, "check how it was computed"),
    ("NaN only, as is", np.full((5, 5, 3), np.nan), {"intensity": "as_is"}, "check how it was computed"),
    ("0..255 floats, as is", np.full((5, 5), 255.0), {"intensity": "as_is"}, "divide them by their full scale"),
    ("negative floats, as is", np.full((5, 5), -0.1), {"intensity": "as_is"}, "divide them by their full scale"),
]


@pytest.mark.parametrize(
    ("image", "options", "advice"), [row[1:] for row in BAD_ARRAYS], ids=[r[0] for r in BAD_ARRAYS]
)
def test_bad_arrays_are_refused_with_advice(image: Any, options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ImageError, match=advice):
        as_rgb(image, **options)


def test_an_unknown_policy_is_refused_with_the_choices(tmp_path: Path) -> None:
    for call in (lambda: as_rgb(RGB8, intensity="auto"), lambda: read_image(tmp_path, intensity="auto")):
        with pytest.raises(ConfigError, match="choose one of percentile, minmax, as_is"):
            call()
