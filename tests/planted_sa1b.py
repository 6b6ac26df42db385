"""SA-1B's files made from drawn shapes, and tar shards of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from refinesam.images import write_png
from refinesam.masks import box_from_mask, encode_rle

Shapes = tuple[np.ndarray, list[np.ndarray]]
Members = dict[str, bytes]


def png(tmp_path: Path, pixels: np.ndarray) -> bytes:
    write_png(tmp_path / "one.png", pixels)
    return (tmp_path / "one.png").read_bytes()


def sa1b_json(number: int, pixels: np.ndarray, masks: list[np.ndarray]) -> dict[str, Any]:
    """One image's annotations as SA-1B has them."""
    annotations = []
    for index, mask in enumerate(masks):
        x0, y0, x1, y1 = box_from_mask(mask).tolist()
        annotations.append(
            {
                "id": 1000 * number + index,
                "segmentation": dict(encode_rle(mask)),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()),
                "predicted_iou": 0.93,
                "stability_score": 0.97,
                "point_coords": [[x0, y0]],
                "crop_box": [0, 0, pixels.shape[1], pixels.shape[0]],
            }
        )
    height, width = pixels.shape[:2]
    image = {"image_id": number, "width": width, "height": height, "file_name": f"sa_{number}.jpg"}
    return {"image": image, "annotations": annotations}


def sa1b_members(tmp_path: Path, images: list[Shapes], first: int = 1) -> Members:
    """Files of SA-1B by name; their images are PNG inside, which loses nothing."""
    members: Members = {}
    for number, (pixels, masks) in enumerate(images, start=first):
        members[f"sa_{number}.jpg"] = png(tmp_path, pixels)
        members[f"sa_{number}.json"] = json.dumps(sa1b_json(number, pixels, masks)).encode()
    return members


def write_shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path
