from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refinesam import DatasetError
from refinesam_labelstudio.brush import decode_brush_rle, encode_brush_rle

# Masks and what label-studio-sdk 2.1.2 made of them: mask2rle((mask * 255).astype(np.uint8)).
SDK = dict(np.load(Path(__file__).parent / "data" / "brush_sdk.npz"))
NAMES = sorted(name.removesuffix(".mask") for name in SDK if name.endswith(".mask"))
MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20))
SQUARE = np.pad(np.ones((3, 3), np.bool_), 2)


def packed(words: list[int], chunks: list[tuple[int, int, list[int]]], word_bits: int = 8) -> list[int]:
    """Write the format bit by bit, with sizes 3, 4, 8 and 16: chunks are (is_run, index of the size, words)."""
    text = f"{len(words):032b}{word_bits - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for is_run, index, values in chunks:
        length, size = (values[0], (3, 4, 8, 16)[index]) if is_run else (len(values), (3, 4, 8, 16)[index])
        text += f"{is_run}{index:02b}{length - 1:0{size}b}"
        text += f"{values[1]:08b}" if is_run else "".join(f"{value:08b}" for value in values)
    text += "0" * (-len(text) % 8)
    return [int(text[start : start + 8], 2) for start in range(0, len(text), 8)]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_sdk(name: str) -> None:
    mask, expected = SDK[f"{name}.mask"], SDK[f"{name}.rle"].tolist()
    assert encode_brush_rle(mask) == expected
    np.testing.assert_array_equal(decode_brush_rle(expected, *mask.shape), mask)


def test_a_large_mask_is_that_of_the_sdk() -> None:
    y, x = np.ogrid[:4096, :4096]
    disc = (x - 2047.5) ** 2 + (y - 2047.5) ** 2 < (0.4 * 4096) ** 2
    rle = encode_brush_rle(disc)
    assert len(rle) == 22812
    assert hashlib.sha256(bytes(rle)).hexdigest() == "b7b3cec394292a41ce42c4f635e2553539a7f855eab7692ac260b97f7123f22e"
    np.testing.assert_array_equal(decode_brush_rle(rle, 4096, 4096), disc)


@given(MASKS)
def test_every_mask_survives(mask: np.ndarray) -> None:
    rle = encode_brush_rle(mask)
    assert all(type(byte) is int for byte in rle)
    decoded = decode_brush_rle(rle, *mask.shape)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize("make", [np.asfortranarray, lambda m: m[:, ::-1], lambda m: m.T])
def test_masks_need_not_be_contiguous(make: Any) -> None:
    mask = SDK["noise.mask"]
    assert encode_brush_rle(make(mask)) == encode_brush_rle(np.ascontiguousarray(make(mask)))


def test_what_the_browser_writes_is_read() -> None:
    """The browser's encoder writes words one by one where they don't repeat, and its strokes have coloured pixels."""
    pixels = [0, 0, 0, 0, 255, 136, 0, 255, 255, 136, 0, 3, 0, 0, 0, 0]
    chunks = [(1, 0, [4, 0]), (0, 0, [255, 136, 0]), (1, 0, [2, 255]), (0, 0, [136, 0, 3]), (1, 3, [4, 0])]
    np.testing.assert_array_equal(decode_brush_rle(packed(pixels, chunks), 2, 2), [[False, True], [True, False]])


@pytest.mark.parametrize("index", [1, 2, 3])
@pytest.mark.parametrize("cut", [2, 5, 6, 7, 8, 15])
def test_literal_chunks_are_read_at_any_bit(index: int, cut: int) -> None:
    words = [0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 7, 8, 9, 10, 0]
    chunks = [(1, 0, [1, 0]), (0, index, words[1:cut]), (0, 2, words[cut:])]
    assert decode_brush_rle(packed(words, chunks), 1, 4).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize(
    ("rle", "hw", "message"),
    [
        (None, (7, 7), "list of at least 7 bytes.*got None"),
        ([], (7, 7), r"got \[\]"),
        ([0] * 6, (7, 7), "at least 7 bytes"),
        ([1.5] * 20, (7, 7), "0 to 255"),
        ([256] * 20, (7, 7), "0 to 255"),
        ([-1] * 20, (7, 7), "0 to 255"),
        ("AAAAAAAAAA", (7, 7), "got 'AAAAAAAAAA'"),
        (encode_brush_rle(SQUARE), (7, 8), r"holds 196 values, but an image of 7 x 8 \(height x width\) has 224"),
        (encode_brush_rle(SQUARE), (0, 0), "holds 196 values"),
        (encode_brush_rle(SQUARE)[:-3], (7, 7), r"cut off: \d+ of its 196 values can be read"),
        (encode_brush_rle(SQUARE)[:7], (7, 7), "cut off: 0 of its 196"),
        (packed([0] * 196, [(1, 3, [197, 0])]), (7, 7), "damaged or cut off: 0 of its 196"),
        (packed([0] * 196, [], word_bits=16), (7, 7), "words of 16 bits"),
    ],
)
def test_damaged_runs_are_an_error(rle: Any, hw: tuple[int, int], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        decode_brush_rle(rle, *hw)


@given(MASKS, st.data())
def test_any_damage_gives_a_mask_or_the_error(mask: np.ndarray, data: st.DataObject) -> None:
    rle = encode_brush_rle(mask)
    rle[data.draw(st.integers(0, len(rle) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DatasetError):
        assert decode_brush_rle(rle, *mask.shape).shape == mask.shape


@pytest.mark.parametrize("mask", [np.zeros((0, 3), np.bool_), np.zeros((2, 2), np.uint8), np.zeros(4, np.bool_)])
def test_what_is_no_mask_is_an_error(mask: Any) -> None:
    with pytest.raises(DatasetError, match="give one mask, thresholded"):
        encode_brush_rle(mask)


def test_a_mask_beyond_32_bits_of_words_is_an_error() -> None:
    mask = np.broadcast_to(np.zeros((1, 1), np.bool_), (2**15, 2**15))
    with pytest.raises(DatasetError, match="1 to 1073741823 pixels"):
        encode_brush_rle(mask)
