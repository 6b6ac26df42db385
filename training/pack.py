"""Pack the training images of some sources into one small file, to be carried to a machine without them.

    python training/pack.py --data DATA --start runs/builtin/phase1/weights.safetensors --output .gpu/data.tar.xz

Images are shrunk to a longest side of --side and written as WebP; masks follow. The pack has the layout of its sources:
unpacked, it is a --data of its own. What cannot be read is named and left out. Beside the sources lie the weights to
start from, rounded to fp16.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from refinesam.errors import DatasetError, ImageError
from refinesam.files import replacing
from refinesam.masks import encode_rle
from refinesam.training.finetune.config import read_config
from refinesam.training.finetune.resident import shrunk_image
from refinesam.training.sources.layouts import load_sources
from refinesam.training.sources.source import Source
from refinesam.weights import load_model, rounded, save_weights

RECIPE = Path(__file__).parent / "gpu.toml"
START = "start.safetensors"


def write_source(source: Source, folder: Path, side: int, quality: int) -> None:
    """Write one source's images and annotations."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(source)):
        try:
            pixels, masks = shrunk_image(source, index, side)
        except (ImageError, DatasetError) as error:
            print(f"left out: {source.name(index)}: {error}")
            continue
        if not masks:
            continue
        name = f"{index:05d}.webp"
        written = cv2.imencode(".webp", pixels[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
        (folder / "images" / name).write_bytes(written.tobytes())
        images.append({"id": index + 1, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1]})
        for mask in masks:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": list(cv2.boundingRect(mask)),
                    "area": int(mask.sum()),
                    "segmentation": dict(encode_rle(mask.astype(np.bool_))),
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / "instances_train.json").write_text(json.dumps(content, separators=(",", ":")), "utf-8")


def pack(
    data: Path, sources: tuple[str, ...], side: int, quality: int, output: Path, start: Path | None = None
) -> None:
    """Write the pack, atomically."""
    with tempfile.TemporaryDirectory() as scratch:
        if start is not None:
            model = load_model(start)
            model.load_state_dict({name: rounded(value) for name, value in model.state_dict().items()})
            save_weights(model, Path(scratch) / START, torch.float16)
        for name, source in zip(sources, load_sources(data, sources, "train"), strict=True):
            write_source(source, Path(scratch) / name, side, quality)
        with replacing(output) as temporary, tarfile.open(temporary, "w:xz") as archive:
            archive.add(scratch, arcname=".")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", help="default: those of training/gpu.toml")
    parser.add_argument("--start", type=Path, help="weights to start from; default: those that ship")
    parser.add_argument("--side", type=int, default=416)
    parser.add_argument("--quality", type=int, default=40, help="of WebP, 1 to 100")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    sources = tuple(arguments.sources or read_config(RECIPE).data.sources)
    pack(arguments.data, sources, arguments.side, arguments.quality, arguments.output, arguments.start)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
