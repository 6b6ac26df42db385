"""Regions and parts that training/regions.py finds beside annotated objects."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from refinesam.masks import coco_document, decode_segmentation, mask_iou
from scripts import script


@pytest.fixture(scope="module")
def regions() -> ModuleType:
    return script("training/regions")


def scene() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A figure in a red coat and black trousers, with a green box beside it, on gray."""
    noise = np.random.default_rng(0).normal(0, 2, (200, 260, 3))
    image = np.full((200, 260, 3), 128.0) + noise
    masks = {name: np.zeros((200, 260), bool) for name in ("coat", "trousers", "box")}
    masks["coat"][40:100, 60:110] = True
    masks["trousers"][100:170, 60:110] = True
    masks["box"][80:150, 170:230] = True
    for name, colour in (("coat", (200, 40, 40)), ("trousers", (25, 25, 30)), ("box", (40, 160, 60))):
        image[masks[name]] = colour + noise[masks[name]]
    # As through a lens: no photograph goes from one colour to another within a pixel.
    return cv2.GaussianBlur(image, (0, 0), 1.0).clip(0, 255).astype(np.uint8), masks


def test_parts_and_surroundings_of_an_object_are_found_and_it_is_not_found_again(regions: ModuleType) -> None:
    image, masks = scene()
    figure = masks["coat"] | masks["trousers"]
    found = regions.new_regions(image, [figure])
    for name, mask in masks.items():
        assert max(mask_iou(mask, one) for one in found) > 0.85, name
    assert max(mask_iou(figure, one) for one in found) < 0.6


def test_a_plain_image_has_no_regions(regions: ModuleType) -> None:
    noise = np.random.default_rng(1).normal(0, 2, (200, 260, 3))
    assert regions.new_regions((np.full((200, 260, 3), 128.0) + noise).astype(np.uint8), []) == []


def test_a_source_gets_a_folder_of_regions(
    regions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, masks = scene()
    source = tmp_path / "data" / "figures"
    (source / "images").mkdir(parents=True)
    cv2.imwrite(str(source / "images" / "a.png"), image[:, :, ::-1])
    document = coco_document({"a.png": (image.shape[:2], [(masks["coat"] | masks["trousers"], None)])})
    document["images"].append({"id": 2, "file_name": "damaged.png", "height": 200, "width": 260})
    document["annotations"].append(document["annotations"][0] | {"id": 2, "image_id": 2})
    (source / "images" / "damaged.png").write_bytes(b"no picture")
    (source / "instances_train.json").write_text(json.dumps(document))
    given = ["--data", str(tmp_path / "data"), "--sources", "figures", "--output", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["regions.py", *given])
    for _ in range(2):  # once more changes nothing
        regions.main()
    written = json.loads((tmp_path / "runs" / "figures_regions" / "instances_train.json").read_text())
    decoded = [decode_segmentation(one["segmentation"], 200, 260) for one in written["annotations"]]
    assert max(mask_iou(masks["box"], one) for one in decoded) > 0.85
    assert (tmp_path / "runs" / "figures_regions" / "images" / "a.png").is_file()
    assert (tmp_path / "runs" / "figures" / "instances_train.json").is_file()
    assert "left out: " in capsys.readouterr().out and [one["file_name"] for one in written["images"]] == ["a.png"]


def test_what_is_in_the_output_stays(regions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data itself as the output: with a folder and with a link of the user's there."""
    image, masks = scene()
    source = tmp_path / "elsewhere" / "figures"
    (source / "images").mkdir(parents=True)
    cv2.imwrite(str(source / "images" / "a.png"), image[:, :, ::-1])
    document = coco_document({"a.png": (image.shape[:2], [(masks["coat"] | masks["trousers"], None)])})
    (source / "instances_train.json").write_text(json.dumps(document))
    linked = tmp_path / "data" / "figures"
    linked.parent.mkdir()
    linked.symlink_to(source)
    for data in (source.parent, linked.parent):
        given = ["--data", str(data), "--sources", "figures", "--output", str(data)]
        monkeypatch.setattr(sys, "argv", ["regions.py", *given])
        regions.main()
        assert (data / "figures" / "instances_train.json").is_file()
        assert (data / "figures_regions" / "images" / "a.png").is_file()
    assert linked.readlink() == source and not source.is_symlink()
