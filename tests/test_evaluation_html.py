"""Galleries and reports of odd outcomes, with a session that fills boxes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation_fakes import HEIGHT, WIDTH, BoxFiller, annotation, coco, rectangle, write_folder
from refinesam.amr import AMRConfig
from refinesam.evaluation.click_report import ClickEvaluation
from refinesam.evaluation.dataset import CocoFolder
from refinesam.evaluation.gallery import FIRST_COLOR, REFINED_COLOR, ObjectPicture, galleries
from refinesam.evaluation.html_report import write_html
from refinesam.evaluation.protocols import evaluate
from refinesam.evaluation.report import Evaluation
from refinesam.evaluation.running import EvaluationOutcome
from refinesam.images import write_png

# Of a box's inside: all, three quarters, half; of its left half: half, two thirds, all.
FULL = rectangle(2, 2, 6, 6)
CORNER = rectangle(8, 2, 12, 6) & ~rectangle(10, 4, 12, 6)
LEFT = rectangle(14, 2, 16, 6) | rectangle(17, 2, 18, 3)


def measured(tmp_path: Path, refined_score: float = 0.8) -> tuple[Evaluation, CocoFolder]:
    content = coco([annotation(i, mask) for i, mask in enumerate((FULL, CORNER, LEFT), start=1)])
    folder = write_folder(tmp_path, content)
    write_png(tmp_path / "images" / "1.png", np.full((HEIGHT, WIDTH, 3), 255, np.uint8))
    session = BoxFiller((0.3, 0.5), refined_score)
    return evaluate(session, folder, "box", refine=AMRConfig(), keep_masks=True), folder


def pixels(picture: ObjectPicture) -> np.ndarray:
    data = base64.b64decode(picture.jpeg.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def numbers(pictures: tuple[ObjectPicture, ...]) -> list[int]:
    return [int(one.caption.split("annotation ")[1].split(":")[0]) for one in pictures]


def test_galleries_are_ordered_by_what_their_title_says(tmp_path: Path) -> None:
    evaluation, folder = measured(tmp_path)
    changes = {r.annotation_id: r.refined.iou - r.iou for r in evaluation.records if r.refined}
    assert changes[1] > changes[2] > 0 > changes[3]
    found = {gallery.title: gallery.pictures for gallery in galleries(evaluation, folder)}
    assert list(found) == ["Worst", "Most improved by AMR", "Most harmed by AMR"]
    refined = {r.annotation_id: r.refined.iou for r in evaluation.records if r.refined}
    assert numbers(found["Worst"]) == sorted(refined, key=lambda number: refined[number])
    assert numbers(found["Most improved by AMR"]) == [1, 2]
    assert numbers(found["Most harmed by AMR"]) == [3]
    assert found["Most improved by AMR"][0].caption == (
        "1.png, cell, annotation 1: IoU 0.50 → 1.00 (boundary, kept refined)"
    )
    assert [len(gallery.pictures) for gallery in galleries(evaluation, folder, most=1)] == [1, 1, 1]


def test_a_picture_shows_both_masks_on_the_object(tmp_path: Path) -> None:
    evaluation, folder = measured(tmp_path)
    improved = galleries(evaluation, folder)[1]
    picture = pixels(improved.pictures[0]).astype(int)
    left, right = picture[:, : picture.shape[1] // 2], picture[:, picture.shape[1] // 2 :]
    scale = left.shape[1] / WIDTH
    for panel, color, covered in ((left, FIRST_COLOR, 2), (right, REFINED_COLOR, 4)):
        tinted = 0.55 * 255 + 0.45 * np.array(color)
        for column in range(WIDTH):
            at = panel[round(4.5 * scale), round((column + 0.5) * scale)]
            inside = 2 <= column < 2 + covered
            assert np.abs(at - (tinted if inside else 255)).max() < 30, (column, at)


def test_what_cannot_be_drawn_is_left_out(tmp_path: Path) -> None:
    evaluation, folder = measured(tmp_path)
    (tmp_path / "images" / "1.png").unlink()
    assert galleries(evaluation, folder) == []
    plain = evaluate(BoxFiller(), write_folder(tmp_path / "b", coco([annotation(1, FULL)])), "box")
    assert galleries(plain, folder) == [], "masks were not kept"


@pytest.mark.parametrize("refine", [None, AMRConfig()])
def test_a_report_of_nothing_is_a_page(tmp_path: Path, refine: AMRConfig | None) -> None:
    nothing = Evaluation("box", 0, refine, {}, (), (), ())
    clicks = ClickEvaluation(3, (0.9,), False, {}, (), (), ())
    write_html(tmp_path / "r.html", {"<model>": EvaluationOutcome(CocoFolder((), {}), nothing, clicks)})
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "&lt;model&gt;" in page and "<model>" not in page
    assert ">nan" not in page and "None" not in page
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]


def test_failures_are_listed_and_escaped(tmp_path: Path) -> None:
    content = coco([annotation(1, FULL), annotation(2, FULL, segmentation=[["<b>"]])])
    folder = write_folder(tmp_path, content)
    result = evaluate(BoxFiller(), folder, "box", keep_masks=True)
    write_html(tmp_path / "r.html", {"model": EvaluationOutcome(folder, result)})
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "1 objects could not be evaluated" in page
    assert "&lt;b&gt;" in page and "<b>" not in page
