"""Small annotation files with images, and a session that answers a box with its inside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from refinesam.amr import AMRConfig
from refinesam.evaluation.dataset import CocoFolder, read_coco_folder
from refinesam.images import write_png
from refinesam.masks import encode_rle
from refinesam.types import Prediction, Prompt, RefinementReport

WIDTH, HEIGHT = 20, 10


def rectangle(x0: int, y0: int, x1: int, y1: int, hw: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def annotation(number: int, mask: np.ndarray, image_id: int = 1, category_id: int = 1, **changes: Any) -> dict:
    rows, columns = np.nonzero(mask)
    box = [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": dict(encode_rle(mask)),
        "bbox": box,
        "area": int(mask.sum()),
        "iscrowd": 0,
    } | changes


def coco(annotations: list[dict], images: int = 1, hw: tuple[int, int] = (HEIGHT, WIDTH)) -> dict:
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "height": hw[0], "width": hw[1]}
            for number in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "cat"}],
    }


def write_folder(path: Path, content: dict, hw: tuple[int, int] = (HEIGHT, WIDTH)) -> CocoFolder:
    (path / "images").mkdir(parents=True)
    for number, record in enumerate(content["images"]):
        # Different pixels, so that no cache takes one image for another.
        write_png(path / "images" / record["file_name"], np.full((*hw, 3), number, np.uint8))
    (path / "a.json").write_text(json.dumps(content), "utf-8")
    return read_coco_folder(path / "a.json", path / "images")


def prediction(masks: list[np.ndarray], scores: list[float], prompt: Prompt) -> Prediction:
    return Prediction(np.stack(masks), np.array(scores, np.float32), np.zeros((len(masks), 4, 4), np.float32), prompt)


class BoxFiller:
    """Answers a box with its inside and with its left half, clicks with one pixel each; the scores are given.

    Its refinement answers the box's inside, whatever was chosen before, and claims a score.
    """

    def __init__(self, scores: tuple[float, float] = (0.9, 0.5), refined_score: float = 0.8) -> None:
        self.scores, self.refined_score = scores, refined_score
        self.encoded = 0
        self.prompts: list[Prompt] = []
        self.configs: list[AMRConfig | None] = []

    def encode(self, image: np.ndarray) -> BoxFillerImage:
        self.encoded += 1
        return BoxFillerImage(self, image.shape[:2])


@dataclasses.dataclass
class BoxFillerImage:
    session: BoxFiller
    hw: tuple[int, int]

    def predict(self, prompt: Prompt, multimask_output: bool = True) -> Prediction:
        prompt.check_inside(self.hw)
        self.session.prompts.append(prompt)
        if prompt.box is None:
            whole = np.zeros(self.hw, bool)
            x, y = prompt.points.astype(int).T
            whole[y, x] = True
            return prediction([whole, ~whole], list(self.session.scores), prompt)
        x0, y0, x1, y1 = prompt.box.astype(int).tolist()
        left = rectangle(x0, y0, (x0 + x1) // 2, y1, self.hw)
        return prediction([rectangle(x0, y0, x1, y1, self.hw), left], list(self.session.scores), prompt)

    def refine(self, first: Prediction, config: AMRConfig | None = None) -> Prediction:
        self.session.configs.append(config)
        score = self.session.refined_score
        better = score > first.score
        report = RefinementReport(
            kappa=1,
            compactness=0.5,
            strategy="boundary",
            rule="paper_prose",
            points=np.zeros((0, 2), np.float32),
            score_before=first.score,
            score_after=score,
            kept="refined" if better else "first",
            reason="",
            rejected=None if better else first.masks[0],
        )
        refined = prediction([first.masks[0]], [score], first.prompt) if better else first
        return refined.with_refinement(report)


SQUARE = rectangle(2, 2, 6, 6)  # fills its box: the inside has IoU 1, the left half 1/2
CORNER = SQUARE & ~rectangle(4, 4, 6, 6)  # 12 of 16 pixels: the inside has IoU 3/4, the left half 8/12


def three_objects(tmp_path: Path) -> CocoFolder:
    crowd = annotation(4, rectangle(0, 0, 20, 10), iscrowd=1)
    both = [annotation(1, SQUARE), annotation(2, CORNER, category_id=2), crowd]
    return write_folder(tmp_path, coco([*both, annotation(3, CORNER, image_id=2)], images=3))
