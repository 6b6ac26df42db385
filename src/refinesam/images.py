"""Reading images, and turning any image array into the one form the models take: (H, W, 3) uint8 RGB.

Two policies hold everywhere. **Alpha is dropped, not composited**: the colour samples are what the camera recorded,
while compositing would need a background nobody named; composite first where transparency matters. **Only data that is
not 8-bit is rescaled**, by a named intensity policy:

- ``"percentile"``: the 0.1th to 99.9th percentile become 0 to 255, so one hot pixel cannot darken the image.
- ``"minmax"``: the least and the greatest finite value become 0 and 255.
- ``"as_is"``: an integer type's own range becomes 0 to 255; floats must lie in [0, 1].

A range is taken over all channels together, which keeps colours. NaN becomes 0; infinities become the range's ends.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import imagecodecs
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

from refinesam.channels import Channel, chosen_channels
from refinesam.errors import ConfigError, ImageError
from refinesam.files import replacing
from refinesam.tiff import ORIENTATION_TAG, TIFF_MAGICS, TOO_LARGE, chosen_page, read_tiff, upright

__all__ = ["INTENSITY_POLICIES", "IntensityPolicy", "as_rgb", "read_image", "write_png"]

IntensityPolicy = Literal["percentile", "minmax", "as_is"]
INTENSITY_POLICIES: tuple[IntensityPolicy, ...] = get_args(IntensityPolicy)

PERCENTILES = (0.1, 99.9)
PERCENTILE_PIXELS = 4_000_000  # larger images are sampled on a regular grid: fast, and the same every time
BLOCK_VALUES = 4_000_000  # converted to float64 at a time, which bounds the memory that rescaling takes
_limit_lock = threading.Lock()
# Named, because some of Pillow's other readers start programs (EPS) or accept nearly any bytes.
PILLOW_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TIFF")


def as_rgb(
    image: ArrayLike | Image.Image,
    *,
    channels_first: bool = False,
    intensity: IntensityPolicy = "percentile",
    channel: Channel | None = None,
) -> NDArray[np.uint8]:
    """Return any image as contiguous (H, W, 3) uint8 RGB.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA of bool, integers or floats, or a Pillow image, whose
            EXIF orientation is not applied. Contiguous (H, W, 3) uint8 comes back without a copy.
        channels_first: a three-dimensional array is (C, H, W).
        intensity: how values that are not 8-bit become 8-bit, see the module's docstring. Booleans become 0 and 255.
        channel: of an image with any number of channels the one, from 0, that is shown as gray, or the three that are
            shown as red, green and blue; None takes gray, RGB and RGBA images as they are.

    Raises:
        ImageError: wrong shape or dtype, no pixels, no such channel, no finite value, or floats outside [0, 1] under
            "as_is".
        ConfigError: an unknown intensity policy, or a channel that is neither one number nor three.

    >>> as_rgb(np.array([[0, 1000], [3000, 4000]], np.uint16), intensity="minmax")[..., 0].tolist()
    [[0, 64], [191, 255]]
    """
    _check_intensity(intensity)
    array = _channels_last(_numeric(image), channels_first, channel)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype != np.uint8:
        array = _stretched(array, *_intensity_range(array, intensity))
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array)


def read_image(
    path: str | os.PathLike[str],
    *,
    intensity: IntensityPolicy = "percentile",
    page: int | None = None,
    channel: Channel | None = None,
    max_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB, the right way up.

    The format is known by content, not by extension. EXIF and TIFF orientation are applied. 16-bit and float data keep
    their full depth until `intensity` is applied. A TIFF whose axes say three channels on three pages is one image;
    with `channel`, one with any number of channels on as many pages. Overviews, thumbnails and masks are no pages. A
    page of more than 100 million pixels is decoded tile by tile, into a temporary file.

    Args:
        path: a PNG, JPEG, TIFF, WebP, BMP, GIF, PPM, JPEG 2000 or AVIF file.
        intensity: how values that are not 8-bit become 8-bit, see the module's docstring.
        page: which page of a TIFF or frame of an animation, from 0; needed when there is more than one.
        channel: see `as_rgb`.
        max_pixels: most pixels of the image, against files that claim more than memory holds; None means Pillow's
            limit, 179 million.

    Raises:
        ImageError: missing, empty, unreadable, damaged or oversized file, or a page or channel that was not named or is
            not there.
        ConfigError: an unknown intensity policy, a channel that is neither one number nor three, or a limit below 1.
    """
    _check_intensity(intensity)
    _check_whole(page, max_pixels)
    if not isinstance(path, str | os.PathLike):
        raise ImageError(
            f"read_image takes a path, got {type(path).__name__}: of bytes in memory give as_rgb(PIL.Image.open(...))."
        )
    path = Path(path)
    head = _first_bytes(path)
    try:
        pixels, channel = _decoded(path, head, page, channel, max_pixels)
        return as_rgb(pixels, intensity=intensity, channel=channel)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    except ConfigError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path}: {error} {TOO_LARGE}") from error
    except Exception as error:  # decoders raise what they stumble on: OSError, SyntaxError, struct.error, zlib.error...
        raise ImageError(
            f"{path} cannot be decoded ({type(error).__name__}: {error}). The file is damaged, incomplete or of a kind "
            "this library lacks: check that it opens in an image viewer, then copy or export it again as PNG or TIFF."
        ) from error


def _decoded(
    path: Path, head: bytes, page: int | None, channel: Channel | None, max_pixels: int | None
) -> tuple[NDArray[Any], Channel | None]:
    """Return a file's samples, and what of `channel` is still to be chosen."""
    pixels: NDArray[Any] | int | None = page
    if head.startswith(TIFF_MAGICS):
        pixels, channel = read_tiff(path, page, channel, max_pixels or _pillow_limit())
    if not isinstance(pixels, np.ndarray):
        with _allowing(max_pixels):
            pixels = _read_pillow(path, pixels, head)
    return pixels, channel


def write_png(path: str | os.PathLike[str], rgb: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 RGB as PNG; the file appears whole or not at all.

    Raises:
        ImageError: an array of another shape or dtype, or a place that cannot be written.
    """
    path = Path(path)
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
        raise ImageError(
            f"write_png needs (H, W, 3) uint8 RGB, got shape {rgb.shape} of {rgb.dtype}: convert it with as_rgb first."
        )
    try:
        with replacing(path) as temporary:
            Image.fromarray(np.ascontiguousarray(rgb)).save(temporary, format="PNG")
    except OSError as error:
        raise ImageError(
            f"{path} cannot be written ({error.strerror or error}): give a file name in a folder that can be written "
            "to and has space left."
        ) from error


def _check_intensity(intensity: str) -> None:
    if intensity not in INTENSITY_POLICIES:
        raise ConfigError(f"Unknown intensity policy {intensity!r}: choose one of {', '.join(INTENSITY_POLICIES)}.")


def _check_whole(page: object, max_pixels: object) -> None:
    for name, value, least in (("max_pixels", max_pixels, 1), ("page", page, None)):
        if value is not None and (type(value) is not int or (least is not None and value < least)):
            raise ConfigError(f"{name} is {value!r}; give a whole number{' of at least 1' if least else ''}, or None.")


def _numeric(image: ArrayLike | Image.Image) -> NDArray[Any]:
    if isinstance(image, Image.Image):
        return _pillow_pixels(image)
    try:
        array = np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that takes part in training
        raise ImageError(
            f"The image is not an array ({error}): give a numpy array of shape (H, W, 3), of a tensor "
            "tensor.detach().cpu().numpy()."
        ) from error
    if array.dtype.kind not in "buif":
        raise ImageError(
            f"An image of {array.dtype} has no brightness: give booleans, integers or floats (for complex data np.abs, "
            "for a file read_image)."
        )
    return array


def _channels_last(array: NDArray[Any], channels_first: bool, channel: Channel | None) -> NDArray[Any]:
    """Return (H, W, 1) or (H, W, 3); alpha is dropped here, before it can take part in an intensity range."""
    if array.ndim not in (2, 3):
        raise ImageError(
            f"An image is (H, W) or (H, W, channels), got {array.shape}: give one image or plane at a time."
        )
    if array.size == 0:
        raise ImageError(f"The image has no pixels, its shape is {array.shape}: check the crop or slice it came from.")
    if array.ndim == 2:
        array, channels_first = array[:, :, None], False
    image = np.moveaxis(array, 0, 2) if channels_first else array
    channels = image.shape[2]
    if channel is not None:
        return image[:, :, chosen_channels(channel, channels)]
    if channels not in (1, 3, 4):
        raise ImageError(
            f"The image has {channels} channels (shape {array.shape}, channels_first={channels_first}), but 1, 3 (RGB) "
            "or 4 (RGBA) are needed: choose channels, as in channel=0 or channel=(0, 1, 2), or pass "
            f"channels_first={not channels_first} if they are on the other axis."
        )
    return image[:, :, :3]


def _intensity_range(image: NDArray[Any], intensity: IntensityPolicy) -> tuple[float, float]:
    """Return the values that become 0 and 255."""
    if intensity == "as_is" and image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        return float(limits.min), float(limits.max)
    ranges = [(values.min(), values.max()) for block in _blocks(image) if (values := _finite(block)).size]
    if not ranges:
        raise ImageError("The image holds only NaN or infinity: check how it was computed or read.")
    low, high = float(min(least for least, _ in ranges)), float(max(most for _, most in ranges))
    if intensity == "as_is":
        if low < 0 or high > 1:
            raise ImageError(
                f'Floats from {low:g} to {high:g} are no intensities under "as_is", which needs [0, 1]: divide them by '
                'their full scale, or choose intensity="percentile" or "minmax".'
            )
        return 0.0, 1.0
    step = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / PERCENTILE_PIXELS))
    sample = _finite(image[::step, ::step])
    if intensity == "percentile" and sample.size:
        # No interpolation: between the last two of a few hundred values lies the hot pixel's own brightness.
        inner_low = float(np.percentile(sample, PERCENTILES[0], method="higher"))
        inner_high = float(np.percentile(sample, PERCENTILES[1], method="lower"))
        # Where they coincide nearly all pixels are equal, as in sparse fluorescence: the few others are the content.
        if inner_low < inner_high:
            return inner_low, inner_high
    return low, high


def _finite(image: NDArray[Any]) -> NDArray[Any]:
    return image[np.isfinite(image)] if image.dtype.kind == "f" else image.ravel()


def _stretched(image: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map [low, high] to [0, 255], rounding to the nearest; what lies outside is clipped, NaN becomes 0."""
    half_range = high / 2 - low / 2 or 1.0  # halves: high - low overflows for the largest floats
    result = np.empty(image.shape, np.uint8)
    start = 0
    for part in _blocks(image):
        block = np.clip(part.astype(np.float64), low, high)
        block = (block / 2 - low / 2) / half_range
        result[start : start + len(part)] = np.nan_to_num(block) * 255 + 0.5
        start += len(part)
    return result


def _blocks(image: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield the image by some of its rows at a time."""
    rows = max(1, BLOCK_VALUES // image[0].size)
    for start in range(0, len(image), rows):
        yield image[start : start + rows]


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        what = "a folder" if path.is_dir() else "not a file" if path.exists() else "not there"
        raise ImageError(f"{path} is {what}: give the path of one image file; relative paths start at {Path.cwd()}.")
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise ImageError(f"{path} cannot be opened ({error.strerror}): check its permissions.") from error
    if not head:
        raise ImageError(f"{path} is empty (0 bytes): copy or download it again.")
    return head


def _pillow_limit() -> int | None:
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS  # Pillow's own rule


@contextlib.contextmanager
def _allowing(max_pixels: int | None) -> Iterator[None]:
    """Let Pillow read images of so many pixels; its limit is a constant of its module."""
    if max_pixels is None:
        yield
        return
    with _limit_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]  # Pillow refuses more than twice as many
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _read_pillow(path: Path, page: int | None, head: bytes) -> NDArray[Any]:
    Image.init()
    # An open file, not its name: by name Pillow maps uncompressed TIFF into memory and garbles one that is turned.
    with path.open("rb") as file:
        try:
            image = Image.open(file, formats=[name for name in PILLOW_FORMATS if name in Image.OPEN])
        except UnidentifiedImageError as error:
            raise ImageError(
                f"the content is no image that can be read, it begins with {head[:16]!r}: convert it to PNG, JPEG, "
                "TIFF, WebP, BMP, GIF, PPM, JPEG 2000 or AVIF."
            ) from error
        # A camera's MPO is a JPEG with previews or a second view after the photograph: not pages to choose from.
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        image.seek(chosen_page(page, count))
        image.load()
        orientation = 1
        with contextlib.suppress(Exception):  # damaged metadata must not cost an image that decodes
            orientation = int(image.getexif().get(ORIENTATION_TAG, 1))
        if image.format == "PNG" and head[24] == 16 and not image.mode.startswith("I"):
            # Pillow keeps 16 bits for gray only; for colour it would drop the low byte.
            pixels = np.asarray(imagecodecs.png_decode(path.read_bytes()))
            pixels = pixels[:, :, : 1 if pixels.shape[2] == 2 else 3]
        else:
            pixels = _pillow_pixels(image)
    return upright(pixels, orientation)


def _pillow_pixels(image: Image.Image) -> NDArray[Any]:
    if image.mode in ("1", "L", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode in ("LA", "La"):
        return np.asarray(image.convert("LA"))[:, :, :1]
    return np.asarray(image.convert("RGBA" if image.mode in ("P", "PA", "RGBa") else "RGB"))
