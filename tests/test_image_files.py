"""Images read from files of every kind, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from image_arrays import GRAY8, GRAY16, RGB8, RGB16, RNG, scaled16, three
from refinesam.errors import ImageError
from refinesam.images import read_image, write_png


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
