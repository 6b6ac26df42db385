"""Sample images: what they are, that they need no download, and that napari takes them as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from napari.layers import Image
from scipy import ndimage

import refinesam
from refinesam_napari import samples

BUNDLED = [samples.cell, samples.coins, samples.retina, samples.immunohistochemistry, samples.stains]
ALL = [*BUNDLED, samples.nuclei_stack]


@pytest.mark.parametrize(
    ("sample", "shape", "dtype", "axes", "rgb"),
    [
        (samples.cell, (660, 550), np.uint8, ("y", "x"), False),
        (samples.coins, (303, 384), np.uint8, ("y", "x"), False),
        (samples.retina, (1411, 1411, 3), np.uint8, ("y", "x"), True),
        (samples.immunohistochemistry, (512, 512, 3), np.uint8, ("y", "x"), True),
        (samples.stains, (2, 512, 512), np.float32, ("c", "y", "x"), False),
        (samples.nuclei_stack, (24, 256, 256), np.uint16, ("z", "y", "x"), False),
    ],
)
def test_napari_makes_the_layer(
    sample: Callable[[], list[samples.LayerData]], shape: tuple[int, ...], dtype: type, axes: tuple[str, ...], rgb: bool
) -> None:
    ((data, keywords, kind),) = sample()
    layer = Image(data, **keywords)
    assert kind == "image"
    assert layer.data.shape == shape
    assert layer.data.dtype == dtype
    assert layer.axis_labels == axes
    assert layer.rgb is rgb
    assert layer.name == keywords["name"]


def test_names_are_told_apart() -> None:
    assert len({sample()[0][1]["name"] for sample in ALL}) == len(ALL)


@pytest.mark.parametrize("sample", BUNDLED)
def test_bundled_samples_come_from_the_installed_package(
    sample: Callable[[], list[samples.LayerData]], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    import pooch
    import skimage.data._fetchers as fetchers

    asked = []
    # An empty cache, as on a new machine, and no way out.
    monkeypatch.setattr(fetchers._image_fetcher, "path", tmp_path)
    monkeypatch.setattr(pooch.Pooch, "fetch", lambda *args, **kwargs: asked.append(args))
    assert sample()[0][0].size
    assert not asked


def test_a_missing_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(refinesam.MissingExtraError, match=r"refinesam\[napari\]"):
        samples.coins()


def test_stains_are_where_the_tissue_is_coloured() -> None:
    rgb = samples.immunohistochemistry()[0][0].astype(int)
    channels = samples.stains()[0][0]
    blue, brown = rgb[..., 2] - rgb[..., 0] > 20, rgb[..., 0] - rgb[..., 2] > 60
    assert channels.min() >= 0
    assert channels[0][blue].mean() > 2 * channels[0][brown].mean()
    assert channels[1][brown].mean() > 2 * channels[1][blue].mean()


def test_the_stack_is_the_same_every_time_and_another_with_another_seed() -> None:
    first, second, other = samples.synthetic_nuclei(), samples.synthetic_nuclei(), samples.synthetic_nuclei(1)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_nuclei_are_bright_whole_and_partly_touching() -> None:
    image, labels = samples.synthetic_nuclei()
    count = int(labels.max())
    assert count == samples.NUCLEI
    assert set(np.unique(labels)) == set(range(count + 1))
    assert np.median(image[labels > 0]) > 3 * np.median(image[labels == 0])
    pieces = [ndimage.label(labels == number)[1] for number in range(1, count + 1)]
    assert pieces == [1] * count
    clusters = ndimage.label(labels > 0)[1]
    assert 4 <= count - clusters <= count // 2
    slices = [(labels == number).any((1, 2)).sum() for number in range(1, count + 1)]
    assert np.median(slices) >= 5


def test_the_stack_has_micrometres_and_says_that_it_is_computed() -> None:
    _, keywords, _ = samples.nuclei_stack()[0]
    assert keywords["scale"] == (2, 0.5, 0.5)
    assert keywords["units"] == ("micrometer",) * 3
    assert "synthetic" in keywords["name"]
