from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from refinesam import images
from refinesam.errors import ConfigError, ImageError
from refinesam.images import INTENSITY_POLICIES, as_rgb, read_image, write_png

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (20, 30), np.uint8)
RGB8 = RNG.integers(0, 256, (20, 30, 3), np.uint8)
GRAY16 = RNG.integers(0, 65536, (20, 30), np.uint16)
RGB16 = RNG.integers(0, 65536, (20, 30, 3), np.uint16)


def scaled16(image: np.ndarray) -> np.ndarray:
    return np.floor(image / 65535 * 255 + 0.5).astype(np.uint8)


def three(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, axis=-1)


# ---------------------------------------------------------------- arrays


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


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "gif", "ppm", "jp2", "tif"])
def test_lossless_formats_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    source = Image.fromarray(RGB8 if suffix != "gif" else three(GRAY8 // 16 * 16))
    source.save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path), np.asarray(source))


def test_jpeg_reads_close(tmp_path: Path) -> None:
    smooth = three(np.tile(np.arange(0, 240, 8, np.uint8), (20, 1)))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(str(tmp_path / "a.jpg")).astype(int) - smooth).max() <= 6


def test_the_format_is_known_by_content(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.png", RGB8, photometric="rgb")
    Image.fromarray(RGB8).save(tmp_path / "b.tif", format="PNG")
    for name in ("a.png", "b.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB8)


PILLOW_MODES = {"png": "1 L LA P RGBA", "jpg": "1 L CMYK YCbCr", "tif": "1 L LA P PA RGBA CMYK YCbCr", "webp": "RGBA"}


@pytest.mark.parametrize(("suffix", "mode"), [(s, mode) for s, modes in PILLOW_MODES.items() for mode in modes.split()])
def test_pillow_modes_become_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(three(np.tile(np.arange(0, 240, 8, np.uint8), (20, 1)))).convert(mode).save(path)
    with Image.open(path) as written:
        expected = np.asarray(written.convert("RGBA" if mode in ("P", "PA", "LA") else "RGB"))[..., :3]
    np.testing.assert_array_equal(read_image(path), expected)


def test_a_palette_with_transparency_reads_without_a_warning(tmp_path: Path) -> None:
    palette = Image.fromarray(RGB8).quantize(16)
    palette.save(tmp_path / "a.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(palette.convert("RGB")))


def test_transparency_is_dropped_not_composited(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([RGB8, np.zeros_like(GRAY8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB8)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (GRAY16, three(scaled16(GRAY16))),
        (RGB16, scaled16(RGB16)),
        (np.dstack([RGB16, GRAY16]), scaled16(RGB16)),
        (np.dstack([GRAY16, 65535 - GRAY16]), three(scaled16(GRAY16))),
    ],
    ids=["gray", "RGB", "RGBA", "gray and alpha"],
)
def test_16_bit_png_keeps_its_depth(tmp_path: Path, pixels: np.ndarray, expected: np.ndarray) -> None:
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", intensity="as_is"), expected)
    dark = (pixels // 1024).astype(np.uint16)  # all within the low byte
    (tmp_path / "dark.png").write_bytes(imagecodecs.png_encode(dark))
    assert len(np.unique(read_image(tmp_path / "dark.png"))) > 32


def tiff_case(name: str, data: np.ndarray, expected: np.ndarray, **options: Any) -> Any:
    return pytest.param(data, options, expected, id=name)


PLANAR = {"photometric": "rgb", "planarconfig": "separate"}
IMAGEJ_CHANNELS = {"imagej": True, "metadata": {"axes": "CYX"}}
OME_CHANNELS = {"ome": True, "photometric": "minisblack", "metadata": {"axes": "CYX"}}
ZERO_ONE = (GRAY8 / 255).astype(np.float32)


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        tiff_case("gray", GRAY8, three(GRAY8)),
        tiff_case("RGB", RGB8, RGB8, photometric="rgb"),
        tiff_case("16-bit gray", GRAY16, three(scaled16(GRAY16))),
        tiff_case("16-bit RGB, big endian", RGB16, scaled16(RGB16), photometric="rgb", byteorder=">"),
        tiff_case("float", ZERO_ONE, three(GRAY8)),
        tiff_case("planar", np.moveaxis(RGB8, 2, 0), RGB8, **PLANAR),
        tiff_case("16-bit planar, tiled", np.moveaxis(RGB16, 2, 0), scaled16(RGB16), **PLANAR, tile=(16, 16)),
        tiff_case("ImageJ channels", np.moveaxis(RGB16, 2, 0), scaled16(RGB16), **IMAGEJ_CHANNELS),
        tiff_case("OME channels", np.moveaxis(RGB16, 2, 0), scaled16(RGB16), **OME_CHANNELS),
        tiff_case("OME channels, one row", np.moveaxis(RGB16[:1], 2, 0), scaled16(RGB16[:1]), **OME_CHANNELS),
        tiff_case("RGBA", np.dstack([RGB8, GRAY8]), RGB8, photometric="rgb", extrasamples=["unassalpha"]),
        tiff_case("gray and alpha", np.dstack([GRAY8, RGB8[..., 0]]), three(GRAY8), photometric="minisblack",
                  planarconfig="contig", extrasamples=["unassalpha"]),
        tiff_case("RGB, alpha, alpha", np.dstack([RGB8, GRAY8, GRAY8]), RGB8, photometric="rgb",
                  extrasamples=["assocalpha", "unassalpha"]),
        tiff_case("white is zero", 255 - GRAY8, three(GRAY8), photometric="miniswhite"),
        tiff_case("white is zero, float", 1 - ZERO_ONE, three(GRAY8), photometric="miniswhite"),
        tiff_case("bits, white is zero", GRAY8 < 99, three(np.where(GRAY8 < 99, 0, 255)), photometric="miniswhite"),
        tiff_case("deflate", GRAY16, three(scaled16(GRAY16)), compression="zlib", predictor=True),
        tiff_case("LZW", RGB8, RGB8, photometric="rgb", compression="lzw"),
        tiff_case("BigTIFF", RGB8, RGB8, photometric="rgb", bigtiff=True),
        tiff_case("one pixel high", GRAY8[:1], three(GRAY8[:1])),
        tiff_case("palette", GRAY8 // 128, np.where(GRAY8[..., None] > 127, [255, 0, 0], [0, 0, 255]),
                  photometric="palette", colormap=np.uint16([[0, 65535] + [0] * 254, [0] * 256, [65535] + [0] * 255])),
        tiff_case("turned", RGB8, np.rot90(RGB8, -1), photometric="rgb", extratags=[(274, 3, 1, 6, True)]),
    ],
)  # fmt: skip
def test_tiff_kinds(tmp_path: Path, data: np.ndarray, options: dict[str, Any], expected: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", intensity="as_is"), expected)


def test_tiff_page_of_a_stack(tmp_path: Path) -> None:
    stack = RNG.integers(0, 256, (6, 20, 30), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    for page in (0, 5):
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page=page), three(stack[page]))


def test_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 9), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif", page=1).tolist() == np.full((8, 9, 3), 200).tolist()


def test_a_camera_file_with_a_preview_is_one_image(tmp_path: Path) -> None:
    views = [Image.fromarray(np.full((8, 9, 3), value, np.uint8)) for value in (50, 200)]
    views[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=views[1:])
    with Image.open(tmp_path / "a.jpg") as written:
        assert written.format == "MPO"
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - 50).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "16-bit png"])
def test_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / "a"
    exif = Image.Exif()
    exif[0x0112] = orientation
    oriented = Image.fromarray(RGB8)
    oriented.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(oriented))
    if suffix == "16-bit png":
        Image.fromarray(RGB8).save(path, format="PNG", exif=exif)
        body = path.read_bytes()
        chunk = body[body.index(b"eXIf") - 4 :]
        chunk = chunk[: 12 + int.from_bytes(chunk[:4], "big")]
        deep = imagecodecs.png_encode(RGB8.astype(np.uint16) * 257)
        path.write_bytes(deep[:33] + chunk + deep[33:])  # after the signature and the header
    else:
        Image.fromarray(RGB8).save(path, format={"tif": "TIFF"}.get(suffix, suffix), exif=exif, lossless=True)
    np.testing.assert_array_equal(read_image(path, intensity="as_is"), expected)


@pytest.mark.parametrize("mode", ["CMYK", "P"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_that_pillow_decodes_is_turned_once(tmp_path: Path, compression: str | None, mode: str) -> None:
    source = Image.fromarray(RGB8).convert(mode)
    source.save(tmp_path / "a.tif", tiffinfo={274: 6}, compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.rot90(np.asarray(source.convert("RGB")), -1))


def test_damaged_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.fromarray(RGB8).save(tmp_path / "a.png", exif=b"Exif\0\0nothing of the kind")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), RGB8)


def png_bytes(image: np.ndarray = RGB8) -> bytes:
    return bytes(imagecodecs.png_encode(image))


def tiff_file(path: Path, data: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(path, data, **options)


def cut(path: Path, share: float) -> None:
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * share)])


def cut_tiff(path: Path) -> None:
    tiff_file(path, RGB8, photometric="rgb")
    cut(path, 0.7)


def cut_jpeg(path: Path) -> None:
    Image.fromarray(RGB8).save(path, format="JPEG")
    cut(path, 0.6)


def animation(path: Path) -> None:
    frames = [Image.fromarray(GRAY8), Image.fromarray(255 - GRAY8)]
    frames[0].save(path, format="WEBP", save_all=True, append_images=frames[1:], lossless=True)


def bomb(path: Path) -> None:
    """A PNG whose header alone claims 60,000 x 60,000 pixels."""
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = png_bytes()
    path.write_bytes(body[:12] + header + (imagecodecs.zlib_crc32(header)).to_bytes(4, "big") + body[33:])


def tiff_bomb(path: Path) -> None:
    """A TIFF whose one small tile stands for 60,000 x 60,000 pixels."""
    tiff_file(path, GRAY8, photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for tag in ("ImageWidth", "ImageLength"):
            tif.pages[0].tags[tag].overwrite(60_000)


def damaged_png(path: Path) -> None:
    body = bytearray(png_bytes())
    body[60:90] = bytes(30)
    path.write_bytes(body)


BAD_FILES: list[tuple[str, Callable[[Path], object], dict[str, Any], str]] = [
    ("missing", lambda path: None, {}, "is not there: give the path"),
    ("a folder", lambda path: path.mkdir(), {}, "is a folder: give the path of one image file"),
    ("zero bytes", lambda path: path.touch(), {}, "0 bytes.*again"),
    ("text", lambda path: path.write_text("hello"), {}, "begins with b'hello': convert it to PNG"),
    ("PostScript", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"), {}, "convert it to PNG"),
    ("random bytes", lambda path: path.write_bytes(RNG.bytes(500)), {}, "convert it to PNG"),
    ("cut PNG", lambda path: path.write_bytes(png_bytes()[:800]), {}, "copy or export it again"),
    ("cut 16-bit PNG", lambda path: path.write_bytes(png_bytes(RGB16)[:800]), {}, "copy or export it again"),
    ("PNG signature only", lambda path: path.write_bytes(png_bytes()[:8]), {}, "again|convert it"),
    ("damaged PNG", damaged_png, {}, "copy or export it again"),
    ("cut JPEG", cut_jpeg, {}, "copy or export it again"),
    ("cut TIFF", cut_tiff, {}, "cut off: copy it again"),
    ("TIFF signature only", lambda path: path.write_bytes(b"II*\0"), {}, "copy or export it again"),
    ("bomb", bomb, {}, "raise PIL.Image.MAX_IMAGE_PIXELS"),
    ("TIFF bomb", tiff_bomb, {}, "raise PIL.Image.MAX_IMAGE_PIXELS"),
    ("animation", animation, {}, "pages are 0 to 1: choose one with page="),
    ("animation, no such page", animation, {"page": 2}, "pages are 0 to 1: choose one with page="),
    ("PNG, no such page", lambda path: path.write_bytes(png_bytes()), {"page": 1}, "choose one with page="),
    ("PNG, negative page", lambda path: path.write_bytes(png_bytes()), {"page": -1}, "choose one with page="),
    ("stack", lambda p: tiff_file(p, np.zeros((5, 8, 9), np.uint8), photometric="minisblack"), {}, "0 to 4 .*page="),
    (
        "stack behind one page",
        lambda p: tiff_file(p, np.zeros((5, 8, 9), np.uint8), photometric="minisblack", truncate=True),
        {},
        "read it with tifffile.imread",
    ),
    (
        "volume in one page",
        lambda p: tiff_file(p, np.zeros((5, 16, 16), np.uint8), photometric="minisblack", volumetric=True),
        {},
        "read it with tifffile.imread",
    ),
    (
        "two channels on two pages",
        lambda p: tiff_file(p, np.zeros((2, 8, 9), np.uint8), imagej=True, metadata={"axes": "CYX"}),
        {},
        "axes CYX.*page=",
    ),
    (
        "four bands",
        lambda p: tiff_file(p, np.zeros((8, 9, 4), np.uint8), photometric="minisblack", planarconfig="contig"),
        {},
        "pass three to as_rgb",
    ),
    ("NaN only", lambda p: tiff_file(p, np.full((8, 9), np.nan, np.float32)), {}, "check how it was computed or read"),
    ("floats, as is", lambda p: tiff_file(p, np.full((8, 9), 99.0)), {"intensity": "as_is"}, "divide them"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "options", "advice"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES]
)
def test_bad_files_are_refused_by_name_with_advice(
    tmp_path: Path, make: Callable[[Path], object], options: dict[str, Any], advice: str
) -> None:
    path = tmp_path / "photo.png"
    make(path)
    with pytest.raises(ImageError, match=advice) as caught:
        read_image(path, **options)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_a_cut_tiff_never_reads_as_an_image(tmp_path: Path, compression: str | None, share: float) -> None:
    tiff_file(tmp_path / "a.tif", RGB16, photometric="rgb", compression=compression, rowsperstrip=4)
    cut(tmp_path / "a.tif", share)
    with pytest.raises(ImageError, match="again"):
        read_image(tmp_path / "a.tif")


# ---------------------------------------------------------------- writing


def test_write_png_round_trips_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    write_png(path, RGB8[:, ::-1])
    np.testing.assert_array_equal(read_image(path), RGB8[:, ::-1])
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("name", "rgb", "advice"),
    [
        ("a.png", GRAY8, "convert it with as_rgb"),
        ("a.png", RGB16, "convert it with as_rgb"),
        ("a.png", RGB8[:0], "convert it with as_rgb"),
        ("folder", RGB8, "a folder that can be written"),
        ("file/a.png", RGB8, "a folder that can be written"),
    ],
)
def test_write_png_refuses_with_advice_and_leaves_nothing(
    tmp_path: Path, name: str, rgb: np.ndarray, advice: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match=advice):
        write_png(tmp_path / name, rgb)
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["file", "folder"]
