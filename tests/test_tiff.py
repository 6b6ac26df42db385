"""TIFF files with more in them than one image: what counts as a page, and which channels are looked at."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from fakes import FloodModel
from refinesam.batch import Item, segment_batch
from refinesam.channels import Channel
from refinesam.cli import main
from refinesam.errors import ConfigError, ImageError
from refinesam.images import as_rgb, read_image
from refinesam.session import Session
from refinesam.types import Prompt

REDUCED, MASK = 1, 4


def gray(value: int, side: int = 32) -> np.ndarray:
    return np.full((side, side), value, np.uint8)


def write(path: Path, *pages: tuple[np.ndarray, int]) -> Path:
    with tifffile.TiffWriter(path) as tif:
        for array, subfiletype in pages:
            tif.write(array, photometric="minisblack", subfiletype=subfiletype, metadata=None)
    return path


def test_overviews_thumbnails_and_masks_are_no_pages(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", (gray(7), 0), (gray(8, 16), REDUCED), (gray(9, 8), REDUCED), (gray(1) > 0, MASK))
    assert read_image(path).tolist() == as_rgb(gray(7)).tolist()
    with pytest.raises(ImageError, match="pages are 0 to 0"):
        read_image(path, page=1)


def test_pages_are_counted_without_what_lies_between(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", (gray(1, 8), REDUCED), (gray(7), 0), (gray(2, 16), REDUCED), (gray(8), 0))
    assert [int(read_image(path, page=page)[0, 0, 0]) for page in (0, 1)] == [7, 8]
    with pytest.raises(ImageError, match=r"pages are 0 to 1.*choose one with page="):
        read_image(path)


def test_colours_that_pillow_reads_are_counted_alike(tmp_path: Path) -> None:
    palette = np.zeros((3, 256), np.uint16)
    palette[0] = 257 * np.arange(256)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        tif.write(gray(1, 8), photometric="minisblack", subfiletype=REDUCED, metadata=None)
        for value in (7, 8):
            tif.write(gray(value), photometric="palette", colormap=palette, metadata=None)
    assert read_image(tmp_path / "a.tif", page=1)[0, 0].tolist() == [8, 0, 0]


def test_a_scanned_slide_is_its_scan(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    described = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.svs") as tif:
        tif.write(scan, tile=(128, 128), description="Aperio Image Library v1\r\n512x512", **described)
        tif.write(scan[::4, ::4], rowsperstrip=16, description="Aperio Image Library v1\r\nthumbnail", **described)
        tif.write(scan[::2, ::2], tile=(128, 128), description="Aperio Image Library v1\r\n256x256", **described)
        tif.write(scan[:64, :96], description="Aperio Image Library v1\r\nmacro", subfiletype=9, **described)
    np.testing.assert_array_equal(read_image(tmp_path / "a.svs"), scan)


def test_a_pyramid_below_its_page_is_one_image(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        tif.write(gray(7, 64), subifds=1, tile=(16, 16))
        tif.write(gray(7, 32), subfiletype=REDUCED, tile=(16, 16))
    assert read_image(tmp_path / "a.ome.tif").shape == (64, 64, 3)


def test_a_photograph_below_its_thumbnail_is_found(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.dng") as tif:
        tif.write(gray(1, 8), subifds=1, subfiletype=REDUCED, photometric="minisblack", metadata=None)
        tif.write(gray(7, 64), photometric="minisblack", metadata=None)
    assert read_image(tmp_path / "a.dng").tolist() == as_rgb(gray(7, 64)).tolist()


def test_thumbnails_alone_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", (gray(1), REDUCED), (gray(1) > 0, MASK))
    with pytest.raises(ImageError, match="thumbnails or masks alone"):
        read_image(path)


FIVE = np.stack([gray(10 * c) for c in range(5)])


@pytest.fixture(params=["pages", "samples", "planes"])
def five_channels(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.tif"
    if request.param == "pages":
        tifffile.imwrite(path, FIVE, photometric="minisblack", metadata={"axes": "CYX"})
    elif request.param == "samples":
        tifffile.imwrite(path, np.moveaxis(FIVE, 0, 2), photometric="minisblack", planarconfig="contig", metadata=None)
    else:
        tifffile.imwrite(path, FIVE, photometric="minisblack", planarconfig="separate", metadata=None)
    return path


@pytest.mark.parametrize(
    ("channel", "pixel"), [(3, [30, 30, 30]), ([3], [30, 30, 30]), ((4, 0, 1), [40, 0, 10]), ([2, 2, 2], [20, 20, 20])]
)
def test_channels_are_chosen(five_channels: Path, channel: Channel, pixel: list[int]) -> None:
    assert read_image(five_channels, channel=channel)[0, 0].tolist() == pixel
    assert as_rgb(FIVE, channels_first=True, channel=channel)[0, 0].tolist() == pixel


def test_without_a_channel_the_choice_is_asked_for(five_channels: Path) -> None:
    with pytest.raises(ImageError, match="choose"):
        read_image(five_channels)


@pytest.mark.parametrize(
    ("channel", "error", "words"),
    [
        (5, ImageError, "channels are 0 to 4"),
        (-1, ImageError, "channels are 0 to 4"),
        ((0, 1), ConfigError, "one number, or three"),
        ("red", ConfigError, "one number, or three"),
        (1.0, ConfigError, "one number, or three"),
        (True, ConfigError, "one number, or three"),
    ],
)
def test_channels_that_are_none(five_channels: Path, channel: Channel, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_image(five_channels, channel=channel)
    with pytest.raises(error, match=words):
        as_rgb(FIVE, channels_first=True, channel=channel)


def test_a_gray_image_has_one_channel() -> None:
    assert as_rgb(gray(7), channel=0).tolist() == as_rgb(gray(7)).tolist()
    with pytest.raises(ImageError, match="channels are 0 to 0"):
        as_rgb(gray(7), channel=1)


def test_items_name_page_intensity_and_channel(tmp_path: Path) -> None:
    deep = np.zeros((2, 24, 32, 3), np.uint16)
    deep[1, :, :16, 1], deep[1, :, 16:, 1] = 100, 60_000
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", metadata=None)
    prompts = [Prompt(points=[[3, 4]])]
    items = [
        Item(tmp_path / "a.tif", prompts, "found", page=1, intensity="minmax", channel=1),
        Item(tmp_path / "a.tif", prompts, "no page"),
        Item(deep[1], prompts, "array", intensity="as_is", channel=1),
        Item(deep[1], prompts, "no pages", page=1),
        Item(deep[1], prompts, "no policy", intensity="bright"),  # type: ignore[arg-type]
        Item(deep[1], prompts, "no channel", channel=3),
    ]
    found = {record.key: record for record in segment_batch(Session(FloodModel()), items)}
    for key in ("found", "array"):
        assert found[key].answers[0].prediction is not None
        assert found[key].answers[0].prediction.mask.sum() == 24 * 16
    for key, words in (("no page", "page="), ("no pages", "page=1"), ("no policy", "bright"), ("no channel", "0 to 2")):
        assert words in str(found[key].error)


@pytest.mark.parametrize("kind", ["gray", "white is zero", "float", "RGB with alpha", "8-bit"])
def test_what_is_large_is_read_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    deep = np.random.default_rng(0).integers(0, 4000, (640, 480), dtype=np.uint16)
    array, options = {
        "gray": (deep, {"photometric": "minisblack", "tile": (64, 64)}),
        "white is zero": (deep, {"photometric": "miniswhite", "rowsperstrip": 16}),
        "float": (np.where(deep < 5, np.nan, deep).astype(np.float32), {"photometric": "minisblack", "tile": (64, 64)}),
        "RGB with alpha": (
            np.stack([deep] * 4, axis=2),
            {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (64, 64)},
        ),
        "8-bit": ((deep >> 4).astype(np.uint8), {"photometric": "minisblack", "tile": (64, 64)}),
    }[kind]
    tifffile.imwrite(tmp_path / "a.tif", array, compression="zlib", metadata=None, **options)
    monkeypatch.setattr("refinesam.images.BLOCK_VALUES", 5000)
    found, peaks = [], []
    for large in (10**9, 0):
        monkeypatch.setattr("refinesam.tiff.LARGE_PIXELS", large)
        tracemalloc.start()
        found.append(read_image(tmp_path / "a.tif"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    np.testing.assert_array_equal(*found)
    assert peaks[1] < peaks[0] - 0.9 * array.nbytes


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["refinesam", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_takes_channels(
    monkeypatch: pytest.MonkeyPatch, five_channels: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["segment", five_channels, "--point", "3,3", "--weights", weights]
    assert run(monkeypatch, *asked, "--channel", "4") == 0
    assert run(monkeypatch, *asked, "--channel", "4,0,1") == 0
    assert run(monkeypatch, *asked, "--channel", "red") == 1
    assert "--channel 'red' must be one whole number or three" in " ".join(capsys.readouterr().err.split())


def test_the_limit_of_pixels_is_an_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(gray(7, 64)).save(tmp_path / "a.png")
    Image.fromarray(gray(7, 64)).convert("P").save(tmp_path / "palette.tif")
    write(tmp_path / "a.tif", (gray(7, 64), 0))
    for name in ("a.png", "a.tif", "palette.tif"):
        with pytest.raises(ImageError, match="--max-megapixels"):
            read_image(tmp_path / name)
        with pytest.raises(ImageError, match="--max-megapixels"):
            read_image(tmp_path / name, max_pixels=4095)
        assert read_image(tmp_path / name, max_pixels=4096).shape == (64, 64, 3)
        asked = ["segment", tmp_path / name, "--point", "3,3", "--weights", weights]
        assert run(monkeypatch, *asked) == 1
        assert "--max-megapixels" in capsys.readouterr().err
        assert run(monkeypatch, *asked, "--max-megapixels", "0.005") == 0
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(ConfigError, match="max_pixels"):
        read_image(tmp_path / "a.png", max_pixels=0)
