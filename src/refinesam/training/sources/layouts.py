"""The layouts that a source's folder may have, known by their files.

- `instances_{train,val}.json` with `images/`;
- COCO: `annotations/instances_{train,val}2017.json` with `train2017/` and `val2017/`;
- LVIS: `lvis_v1_{train,val}.json`, there or in `annotations/`, with COCO's two image folders, which may be links to
  folders of these names that lie beside each other. Both splits of LVIS have images of train2017;
- SA-1B: pairs `sa_*.jpg` and `sa_*.json`, at any depth;
- SA-1B: tar shards with such pairs, at any depth, or a list of remote ones, `shards.txt`.

An annotation file of a whole data set decides: pairs and shards are looked for only where there is none. SA-1B has no
validation split, so a share of it is held out, see `refinesam.training.sources.sa1b.held_out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from refinesam.errors import DatasetError
from refinesam.evaluation.dataset import read_coco_folder
from refinesam.training.sources.sa1b import Sa1bSource, find_pairs, held_out
from refinesam.training.sources.shards import SHARD_LIST
from refinesam.training.sources.source import CocoSource, Source

__all__ = ["load_sources"]

SPLITS = ("train", "val")
EXAMPLES_IN_A_MESSAGE = 3


class Layout(NamedTuple):
    """Where a split's annotations and images are, below the source's folder, with {} for the split."""

    annotations: str
    images: str


# LVIS names its images with their split's folder.
LVIS_IMAGES = "train2017 and val2017"
LAYOUTS = (
    Layout("instances_{}.json", "images"),
    Layout("annotations/instances_{}2017.json", "{}2017"),
    Layout("annotations/lvis_v1_{}.json", LVIS_IMAGES),
    Layout("lvis_v1_{}.json", LVIS_IMAGES),
)


def load_sources(root: Path, names: Sequence[str], split: str) -> list[Source]:
    """Find every source's layout and read its annotations; SA-1B's are only listed, and read image by image.

    Args:
        root: the data folder.
        names: of the sources, folders below it.
        split: "train" or "val".

    Raises:
        DatasetError: a source is missing or of no layout, or of several, its annotations are malformed, or it has no
            object.
    """
    sources = [_open(root / name, name, split) for name in names]
    for name, source in zip(names, sources, strict=True):
        if not len(source):
            raise DatasetError(f"Source {name!r} has no {split} image with an object; leave it out of data.sources.")
    return sources


def _open(folder: Path, name: str, split: str) -> Source:
    layouts = [known for known in LAYOUTS if any((folder / known.annotations.format(part)).exists() for part in SPLITS)]
    if len(layouts) > 1:
        names = " and ".join(layout.annotations.format("{train,val}") for layout in layouts)
        raise DatasetError(
            f"{folder} has the annotations of several data sets, {names}: give each a folder of its own, whose image "
            "folders may be links to those here."
        )
    if not layouts:
        return _open_sa1b(folder, name, split)
    layout = layouts[0]
    images = _lvis_images(folder, split) if layout.images == LVIS_IMAGES else folder / layout.images.format(split)
    return CocoSource(name, read_coco_folder(folder / layout.annotations.format(split), images))


def _lvis_images(folder: Path, split: str) -> Path:
    """Return the folder that holds COCO's image folders, with links resolved: LVIS's images must lie within it."""
    parent = (folder / "train2017").resolve().parent
    needed = ["train2017"] if split == "train" else ["train2017", "val2017"]
    if missing := [name for name in needed if not (parent / name).is_dir()]:
        raise DatasetError(
            f"{folder} has annotations of LVIS, but {parent} lacks COCO's {' and '.join(missing)}, where images of its "
            f"{split} split are. Put the folders there, or links to folders of these names that lie beside each other."
        )
    return parent


def _open_sa1b(folder: Path, name: str, split: str) -> Sa1bSource:
    pairs, left_out = find_pairs(folder)
    if not len(pairs):
        hint = f" Left out: {'; '.join(left_out[:EXAMPLES_IN_A_MESSAGE])}." if left_out else ""
        known = "; ".join(f"{layout.annotations} with {layout.images}".replace("{}", split) for layout in LAYOUTS)
        raise DatasetError(
            f"{folder} has none of: {known}; SA-1B's sa_*.jpg with sa_*.json beside each; *.tar with such pairs, "
            f"uncompressed; {SHARD_LIST} with the URLs of such shards.{hint} Put one of these there, or correct "
            "data.sources."
        )
    held = held_out(pairs.stems)
    chosen = pairs.chosen(held if split == "val" else ~held)
    if not len(chosen):
        raise DatasetError(
            f"{folder} has a single image of SA-1B, so that none is held out for validation: add images, or set "
            "data.val_images to 0."
        )
    return Sa1bSource(name, folder, chosen, left_out)
