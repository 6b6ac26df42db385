"""Reading TIFF, which may hold stacks, channels, overviews, thumbnails and masks beside the image that is meant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from refinesam.channels import Channel, chosen_channels
from refinesam.errors import ImageError

__all__ = ["ORIENTATION_TAG", "TIFF_MAGICS", "TOO_LARGE", "chosen_page", "read_tiff", "upright"]

ORIENTATION_TAG = 0x0112
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TOO_LARGE = "Crop or tile it, or allow more: max_pixels=, on the command line --max-megapixels."
# Bits of NewSubfileType (TIFF 6.0, section 8) that mark a smaller version of another page, and a mask.
REDUCED_OR_MASK = 1 | 4
TRANSPARENCY_MASK = 4  # as photometric interpretation
LARGE_PIXELS = 100_000_000
# What slide scanners put beside the scan, by the names that tifffile finds.
BESIDE_THE_SCAN = {"Thumbnail", "Label", "Macro", "Map"}


def read_tiff(
    path: Path, page: int | None, channel: Channel | None, max_pixels: int | None
) -> tuple[NDArray[Any] | int, Channel | None]:
    """Read one image of a TIFF file at its full depth, upright.

    Overviews, thumbnails and masks are not counted as pages.

    Args:
        path: of the file.
        page: from 0; None where there is one, or where the axes say that the pages are channels.
        channel: chosen here where the channels are pages.
        max_pixels: most pixels of the image, None for any number.

    Returns:
        The pixels, or the frame by which Pillow reads them: it knows the colours of palette, CMYK and YCbCr. And the
        channel, if it is still to be chosen.

    Raises:
        ImageError: a page that was not named or not there, a stack in one page, or a file that is cut off.
    """
    with tifffile.TiffFile(path) as tif:
        everything = [item.aspage() for item in tif.pages]
        pages, left = _asked_pages(tif, _images(tif, everything), page, channel)
        for item in pages:
            _check_page(item, path.stat().st_size, max_pixels)
        if pages[0].photometric not in (0, 1, 2):  # white is zero, black is zero, RGB
            return next((i for i, item in enumerate(everything) if item.offset == pages[0].offset), 0), left
        planes = [_plane(item, keep_all=channel is not None) for item in pages]
        tag = pages[0].tags.get(ORIENTATION_TAG)
        image = planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)
        return upright(image, 1 if tag is None else int(tag.value)), left


def chosen_page(page: int | None, count: int, axes: str = "") -> int:
    """Return the page asked for; ImageError if it is not there, or has to be named."""
    if page is None and count == 1:
        return 0
    if page is None or not 0 <= page < count:
        raise ImageError(f"page={page} was given, but the pages are 0 to {count - 1}{axes}: choose one with page=.")
    return page


def upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF or TIFF orientation (1 to 8; anything else counts as 1)."""
    image = image.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else image
    image = image[:, ::-1] if orientation in (2, 3, 6, 7) else image
    return image[::-1] if orientation in (3, 4, 7, 8) else image


def _images(tif: tifffile.TiffFile, everything: list[tifffile.TiffPage]) -> list[tifffile.TiffPage]:
    """Return the pages that are images in their own right."""
    beside = {
        item.offset
        for series in tif.series
        for level, part in enumerate(series.levels)
        if level or series.name in BESIDE_THE_SCAN
        for item in part.pages
        if item is not None
    }
    images = [item for item in everything if _is_image(item) and item.offset not in beside]
    # A camera's raw file begins with a thumbnail and keeps the photograph below it.
    below = [] if images else [sub.aspage() for item in everything for sub in item.pages or ()]
    images = images or [item for item in below if _is_image(item)]
    if not images:
        raise ImageError("it holds overviews, thumbnails or masks alone: export the image itself.")
    return images


def _is_image(page: tifffile.TiffPage) -> bool:
    return not page.subfiletype & REDUCED_OR_MASK and page.photometric != TRANSPARENCY_MASK


def _asked_pages(
    tif: tifffile.TiffFile, pages: list[tifffile.TiffPage], page: int | None, channel: Channel | None
) -> tuple[list[tifffile.TiffPage], Channel | None]:
    count, series = len(pages), tif.series[0]
    sizes = dict(zip(series.axes, series.shape, strict=True))
    if page is None and "S" not in sizes and 1 < count == sizes.get("C") and (channel is not None or count == 3):
        return ([pages[index] for index in chosen_channels(channel, count)] if channel is not None else pages), None
    chosen = pages[chosen_page(page, count, f" (axes {series.axes}, shape {series.shape})")]
    whole = len(tif.pages) == 1 and series.keyframe.offset == chosen.offset
    stack = whole and math.prod(series.shape) != math.prod(chosen.shape)
    if stack or set(chosen.axes) - set("YXS"):
        raise ImageError(
            f"the page holds a stack (axes {series.axes}, shape {series.shape}): "
            "read it with tifffile.imread and pass one plane to as_rgb."
        )
    return [chosen], channel


def _check_page(page: tifffile.TiffPage, file_size: int, max_pixels: int | None) -> None:
    pixels = page.imagewidth * page.imagelength
    if max_pixels is not None and pixels > max_pixels:
        raise ImageError(f"the page claims {pixels} pixels, the limit is {max_pixels}. {TOO_LARGE}")
    ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if ends and max(ends) > file_size:
        raise ImageError(
            f"the pixels reach to byte {max(ends)} but the file ends at {file_size}, it is cut off: copy it again."
        )


def _plane(page: tifffile.TiffPage, keep_all: bool) -> NDArray[Any]:
    """Return (H, W) or (H, W, channels), without alpha unless all channels are to be chosen from."""
    # What is large is decoded tile by tile, or strip by strip, into a file that is mapped into memory; as_rgb goes
    # through it by blocks, so that only the 8-bit result takes memory.
    large = page.imagewidth * page.imagelength > LARGE_PIXELS
    image = np.asarray(page.asarray(out="memmap" if large else None))
    if page.photometric == 0:  # white is zero; in place, for what was decoded is nobody else's
        image = np.subtract(1, image, out=image) if image.dtype.kind == "f" else np.invert(image, out=image)
    if "S" in page.axes:
        image = np.moveaxis(image, page.axes.index("S"), -1)
        if not keep_all and page.extrasamples and set(page.extrasamples) <= {1, 2}:  # associated, unassociated alpha
            image = image[:, :, : -len(page.extrasamples)]
        if not keep_all and image.shape[2] == 4 and page.photometric != 2:
            raise ImageError("its 4 channels are not RGBA: choose one or three with channel=, or pass three to as_rgb.")
    return image
