"""Sample images for napari's File > Open Sample menu: scikit-image's own, which need no download, and a computed stack.

Every function returns one image as napari's list of layer tuples: data, keyword arguments of the layer, layer type.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import refinesam

__all__ = ["LayerData", "cell", "coins", "immunohistochemistry", "nuclei_stack", "retina", "stains", "synthetic_nuclei"]

LayerData = tuple[NDArray[Any], dict[str, Any], str]

STACK_SHAPE = (24, 256, 256)
STACK_SCALE = (2.0, 0.5, 0.5)  # micrometres per voxel: slices are thick, as under a confocal microscope
NUCLEI = 40
TRIES = 2000
MICROMETRES = (5.0, 8.0)  # least and greatest half axis
# Distance of centres in mean diameters, below which nuclei would grow into each other; every fourth one touches.
APART, TOUCHING, EVERY = 1.15, 0.85, 4


def cell() -> list[LayerData]:
    """Return a single cell floating in saline, (660, 550) uint8."""
    return [(_skimage("data").cell(), {"name": "cell", "axis_labels": ("y", "x")}, "image")]


def coins() -> list[LayerData]:
    """Return Greek coins from Pompeii, (303, 384) uint8."""
    return [(_skimage("data").coins(), {"name": "coins", "axis_labels": ("y", "x")}, "image")]


def retina() -> list[LayerData]:
    """Return a human retina, (1411, 1411, 3) uint8 RGB."""
    return [(_skimage("data").retina(), {"name": "retina", "rgb": True, "axis_labels": ("y", "x")}, "image")]


def immunohistochemistry() -> list[LayerData]:
    """Return colonic glands stained with hematoxylin and DAB, (512, 512, 3) uint8 RGB."""
    image = _skimage("data").immunohistochemistry()
    return [(image, {"name": "immunohistochemistry", "rgb": True, "axis_labels": ("y", "x")}, "image")]


def stains() -> list[LayerData]:
    """Return the amounts of hematoxylin and DAB in `immunohistochemistry`, (2, 512, 512) float32, one per channel."""
    separated = _skimage("color").rgb2hed(_skimage("data").immunohistochemistry())
    channels = np.moveaxis(separated[..., [0, 2]], 2, 0).clip(0).astype(np.float32)
    layer = {
        "name": "stains (hematoxylin, DAB)",
        "axis_labels": ("c", "y", "x"),
        # A few pixels have no blue left at all and come out far denser than all others.
        "contrast_limits": (0.0, float(np.percentile(channels, 99.9))),
    }
    return [(channels, layer, "image")]


def nuclei_stack() -> list[LayerData]:
    """Return `synthetic_nuclei`'s image, (24, 256, 256) uint16."""
    layer = {
        "name": "synthetic nuclei (computed, not a microscope's)",
        "axis_labels": ("z", "y", "x"),
        "scale": STACK_SCALE,
        "units": ("micrometer",) * 3,
    }
    return [(synthetic_nuclei()[0], layer, "image")]


def synthetic_nuclei(seed: int = 0) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Compute a stack of ellipsoidal nuclei with texture, blur and noise, some of them touching.

    Args:
        seed: the same seed gives the same stack.

    Returns:
        The image and the ground truth, both (24, 256, 256): 0 is background, 1, 2, ... the nuclei.
    """
    gaussian = _skimage("filters").gaussian
    rng = np.random.default_rng(seed)
    labels = _ellipsoids(*_places(rng), rng)
    brightness = np.concatenate([[0.0], rng.uniform(0.6, 1.0, labels.max())])[labels]
    texture = gaussian(rng.standard_normal(STACK_SHAPE), (0.7, 2.5, 2.5))
    nuclei = brightness * (1 + 0.25 * texture / texture.std()).clip(0.3)
    # A microscope blurs along its axis most: 1.6 micrometres against 0.6.
    photons = 60 + 500 * gaussian(nuclei, (0.8, 1.2, 1.2)).clip(0)
    image = 100 + 4 * rng.poisson(photons) + rng.normal(0, 12, STACK_SHAPE)
    return image.clip(0, 65535).astype(np.uint16), labels


def _places(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centres (N, 3) and half axes (N, 3) in micrometres, (z, y, x)."""
    extent = np.multiply(STACK_SHAPE, STACK_SCALE)
    centres, axes = np.zeros((0, 3)), np.zeros((0, 3))
    for _ in range(TRIES):
        half = rng.uniform(*MICROMETRES, 3)
        centre = rng.uniform(0.5 * half, extent - 0.5 * half)
        radius = half.mean()
        if len(centres) % EVERY == EVERY - 1:  # beside the last one
            direction = rng.standard_normal(3)
            centre = centres[-1] + direction / np.linalg.norm(direction) * TOUCHING * (radius + axes[-1].mean())
        distances = np.linalg.norm(centres - centre, axis=1) / (axes.mean(1) + radius)
        inside = ((centre > 0) & (centre < extent)).all()
        allowed = TOUCHING - 1e-6 if len(centres) % EVERY == EVERY - 1 else APART
        if inside and (distances >= allowed).all():
            centres, axes = np.vstack([centres, centre]), np.vstack([axes, half])
        if len(centres) == NUCLEI:
            break
    return centres, axes


def _ellipsoids(
    centres: NDArray[np.float64], axes: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.uint16]:
    """Label each voxel with the nearest nucleus that reaches it; nuclei are turned in the plane."""
    z, y, x = (index * step for index, step in zip(np.indices(STACK_SHAPE), STACK_SCALE, strict=True))
    nearest = np.ones(STACK_SHAPE)  # in half axes: beyond 1 lies the background
    labels = np.zeros(STACK_SHAPE, np.uint16)
    angles = rng.uniform(0, np.pi, len(centres))
    for number, ((cz, cy, cx), (az, ay, ax), angle) in enumerate(zip(centres, axes, angles, strict=True), start=1):
        down = (y - cy) * np.cos(angle) + (x - cx) * np.sin(angle)
        across = (x - cx) * np.cos(angle) - (y - cy) * np.sin(angle)
        distance = ((z - cz) / az) ** 2 + (down / ay) ** 2 + (across / ax) ** 2
        closer = distance < nearest
        nearest[closer], labels[closer] = distance[closer], number
    return labels


def _skimage(name: str) -> ModuleType:
    """Import one of scikit-image's packages, which come with an extra."""
    from importlib import import_module

    try:
        return import_module(f"skimage.{name}")
    except ImportError as error:
        raise refinesam.MissingExtraError("scikit-image", "napari") from error
