"""Files that are no image, or no whole one, are refused by name, with advice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from image_arrays import GRAY8, RGB8, RGB16, RNG
from refinesam.errors import ImageError
from refinesam.images import read_image


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
    ("bomb", bomb, {}, "allow more: max_pixels="),
    ("TIFF bomb", tiff_bomb, {}, "allow more: max_pixels="),
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
