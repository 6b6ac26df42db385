"""What the tests of jobs share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planted_job import coco_boxes, write_images


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder with images/ and boxes.json."""
    names = write_images(tmp_path / "images", 7)
    (tmp_path / "boxes.json").write_text(json.dumps(coco_boxes(names)))
    return tmp_path
