"""Label Studio's brush masks: run-length encoded RGBA pixels, to the byte as label-studio-sdk writes them.

The format is that of thi.ng's rle-pack, a stream of bits, highest first: the number of words in 32 bits, word size - 1
in 5, and in 4 bits each four sizes - 1 that a length can have. Then come chunks: one bit (1: a run of one word, 0: as
many different ones), 2 bits that choose a size, the chunk's length - 1 in that size, and the word or words.

Label Studio's words are the bytes of RGBA pixels, row by row. The mask is where alpha is above 0; masks written here
have 255 in all four channels there, and 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from refinesam import DatasetError

__all__ = ["decode_brush_rle", "encode_brush_rle"]

WORD_BITS = 8
SIZES = (3, 4, 8, 16)
LONGEST_RUN = 1 << SIZES[-1]
HEADER_BITS = 32 + 5 + 4 * len(SIZES)
# The number of words, four a pixel, has 32 bits.
MAX_PIXELS = 2**30 - 1


def encode_brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """Encode an (H, W) bool mask as the bytes that stand in a brush region's `rle`.

    The bytes are those of label-studio-sdk's `mask2rle(mask * 255)`, which closes with a byte of zeros even where the
    bits end at a byte.

    Raises:
        DatasetError: not (H, W) bool with pixels, or 2**30 pixels or more.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_ or not 0 < mask.size <= MAX_PIXELS:
        raise DatasetError(
            f"A brush mask is (H, W) bool of 1 to {MAX_PIXELS} pixels, got {mask.dtype} {mask.shape}: give one mask, "
            "thresholded."
        )
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths, words = 4 * np.diff(starts, append=flat.size), np.where(flat[starts], 255, 0)
    # A run above 256 takes the largest size for all of its chunks, whatever remains for the last.
    is_long = lengths > 1 << SIZES[-2]
    counts = np.where(is_long, -(-lengths // LONGEST_RUN), 1)
    last = lengths - (counts - 1) * LONGEST_RUN
    chunk_lengths = np.full(counts.sum(), LONGEST_RUN)
    chunk_lengths[np.cumsum(counts) - 1] = last
    size_index = np.repeat(np.where(is_long, 3, np.searchsorted([8, 16], lengths)), counts)
    size = np.array(SIZES)[size_index]
    chunks = ((4 | size_index) << size | (chunk_lengths - 1)) << WORD_BITS | np.repeat(words, counts)
    body = _bits(chunks, 3 + size + WORD_BITS)
    sizes_code = sum((size - 1) << 4 * place for place, size in enumerate(reversed(SIZES)))
    header = _bits(np.array([4 * mask.size, WORD_BITS - 1, sizes_code]), np.array([32, 5, 4 * len(SIZES)]))
    bits = np.concatenate([header, body])
    packed: list[int] = np.packbits(bits).tolist()
    return packed if bits.size % 8 else [*packed, 0]


def _bits(values: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the bits of values, each written in its own width of up to 32, one after the other."""
    left_aligned = (values << (32 - widths)).astype(">u4")
    bits = np.unpackbits(left_aligned.view(np.uint8).reshape(-1, 4), axis=1)
    return bits[np.arange(32) < widths[:, None]]


def decode_brush_rle(rle: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Decode a brush region's `rle`, from here, from the SDK or drawn in the browser, to an (height, width) bool mask.

    Raises:
        DatasetError: not bytes, damaged or cut off, or of another image size.
    """
    data = _bytes(rle)
    words_total, word_bits, sizes = _header(data)
    if words_total != 4 * height * width or not 0 < height * width <= MAX_PIXELS:
        raise DatasetError(
            f"The brush RLE holds {words_total} values, but an image of {height} x {width} (height x width) has "
            f"{4 * height * width}, four a pixel: check original_width and original_height, and export again."
        )
    if word_bits != WORD_BITS:
        raise DatasetError(f"The brush RLE has words of {word_bits} bits, Label Studio's have 8: export again.")
    words = np.zeros(words_total, np.uint8)
    position, done, end = HEADER_BITS, 0, 8 * len(data)
    while done < words_total and position + 3 <= end:
        head = _read(data, position, 3)
        size = sizes[head & 3]
        length = _read(data, position + 3, size) + 1
        position += 3 + size
        count = 1 if head & 4 else length
        if position + count * WORD_BITS > end or done + length > words_total:
            break
        words[done : done + length] = np.frombuffer(_words(data, position, count), np.uint8)
        position += count * WORD_BITS
        done += length
    if done != words_total:
        raise DatasetError(
            f"The brush RLE is damaged or cut off: {done} of its {words_total} values can be read. Export it again."
        )
    return np.greater(words.reshape(height, width, 4)[:, :, 3], 0)


def _bytes(rle: Sequence[int]) -> bytes:
    try:
        data = bytes(rle) if isinstance(rle, list | tuple | bytes) else b""
    except (TypeError, ValueError):
        data = b""
    if 8 * len(data) < HEADER_BITS:
        raise DatasetError(
            f"A brush RLE is a list of at least {-(-HEADER_BITS // 8)} bytes, 0 to 255, got {repr(rle)[:60]}: "
            "give the region's value.rle."
        )
    return data


def _header(data: bytes) -> tuple[int, int, list[int]]:
    sizes = [_read(data, 37 + 4 * index, 4) + 1 for index in range(4)]
    return _read(data, 0, 32), _read(data, 32, 5) + 1, sizes


def _read(data: bytes, position: int, count: int) -> int:
    """Return up to 32 bits; those beyond the end read as zeros."""
    window = int.from_bytes(data[position >> 3 : (position >> 3) + 5].ljust(5, b"\0"), "big")
    return window >> (40 - (position & 7) - count) & ((1 << count) - 1)


def _words(data: bytes, position: int, count: int) -> bytes:
    """Return bytes that need not start at a byte's border."""
    if count <= 4:
        return _read(data, position, count * WORD_BITS).to_bytes(count, "big")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, -(-((position & 7) + count * WORD_BITS) // 8), position >> 3))
    return np.packbits(bits[position & 7 :][: count * WORD_BITS]).tobytes()
