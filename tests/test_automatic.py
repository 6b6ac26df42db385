"""Segment everything: clicks left out, crops, seams, very large images; and masks kept as boxes and pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import refinesam.automatic
from refinesam import AMRConfig, AutomaticMaskGenerator, ConfigError, ImageError, Session
from refinesam.found import Found, crop_windows, join_across_seams, place, thin
from refinesam.models.build import build_model
from refinesam.models.config import ModelConfig
from refinesam.models.image_encoder import ImageFeatures
from refinesam.predictor import Predictor

CONFIG = ModelConfig("hybrid_ti", "hybrid", width=32, depth=1, heads=2, input_size=64, pos_grid=4)
POINT = np.zeros(2, np.float32)


class Blobs(torch.nn.Module):
    """Stands for a trained model: a click on a bright blob finds just that blob, any other click nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.clicks = 0

    def decode(self, features: ImageFeatures, points: Tensor, labels: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        import cv2

        image = features.embedding[0, 0].numpy() > 0
        _, numbers = cv2.connectedComponents(image.astype(np.uint8))
        logits = np.full((1, points.shape[1], 3, 16, 16), -6, np.float32)
        iou = np.full((1, points.shape[1], 3), 0.3, np.float32)
        for i, (x, y) in enumerate(points[0, :, 0].numpy().astype(int).tolist()):
            self.clicks += 1
            if number := numbers[min(y, 63), min(x, 63)]:
                logits[0, i, 0] = 12 * (
                    cv2.resize((numbers == number).astype(np.float32), (16, 16), interpolation=3) - 0.5
                )
                iou[0, i, 0] = 0.6 + 0.3 * min(1, 10 * (numbers == number).mean())
        return torch.from_numpy(logits), torch.from_numpy(iou)


@pytest.fixture
def session() -> Session:
    torch.manual_seed(0)
    model = build_model(CONFIG)
    predictor = Predictor(model, "blobs", torch.device("cpu"), torch.float32)
    blobs = Blobs()
    model.encode = lambda pixels: ImageFeatures(pixels[:, :1])  # type: ignore[method-assign]
    model.decode = blobs.decode  # type: ignore[assignment]
    made = Session(predictor)
    made.blobs = blobs  # type: ignore[attr-defined]
    return made


def squares(side: int, *boxes: tuple[int, int, int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    image, masks = np.zeros((side, side, 3), np.uint8), []
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 255
        masks.append(image[..., 0] * 0 > 0)
        masks[-1][y0:y1, x0:x1] = True
    return image, masks


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_clicks_on_what_is_found_already_are_left_out(session: Session) -> None:
    image, (wanted,) = squares(64, (4, 4, 36, 36))
    calls: list[tuple[int, int]] = []
    (found,) = session.segment_everything(image, lambda *at: calls.append(at), points_per_side=8)
    assert iou(found.mask, wanted) > 0.9
    few = session.blobs.clicks  # type: ignore[attr-defined]
    assert calls[-1] == (64, 64)
    (again,) = session.segment_everything(image, points_per_side=8, skip_covered=False)
    assert session.blobs.clicks - few == 64 > few >= 16  # type: ignore[attr-defined]
    assert (again.mask == found.mask).all()


@pytest.mark.parametrize(
    ("box", "crops", "clicks", "total"),
    [
        ((16, 16, 20, 20), None, 1 + 4 * 1, 5 + 4 * 1),
        ((16, 16, 20, 20), False, 4 + 1, 5),
        ((4, 4, 36, 36), None, 4, 5),
    ],
)
def test_crowded_images_get_crops_or_clicks_between_the_others(
    session: Session, box: tuple[int, int, int, int], crops: bool | None, clicks: int, total: int
) -> None:
    image, _ = squares(64, box)
    calls: list[tuple[int, int]] = []
    found = session.segment_everything(image, lambda *at: calls.append(at), min_area=1, crops=crops)
    assert len(found) == 1
    # The model's input is so small that four clicks suit it, and one does a crop.
    assert session.blobs.clicks == clicks  # type: ignore[attr-defined]
    assert calls[-1] == (total, total)


def test_least_predicted_iou_goes_by_the_best_in_the_image(session: Session) -> None:
    image, _ = squares(64, (4, 4, 36, 36))
    generator = AutomaticMaskGenerator(session)
    assert generator._least(torch.full((10,), 0.4)) == pytest.approx(0.26)
    assert generator._least(torch.full((10,), 0.9)) == pytest.approx(0.585)
    assert generator._least(torch.full((10,), 0.1)) == pytest.approx(0.2)
    assert AutomaticMaskGenerator(session, iou_threshold=0.5)._least(torch.full((10,), 0.9)) == 0.5


def test_crops_show_small_things_better(session: Session) -> None:
    image, wanted = squares(120, (13, 13, 23, 23), (95, 93, 106, 105), (20, 90, 30, 99), (86, 17, 95, 27))
    settings = {"points_per_side": 16, "overlap_threshold": 0.2}
    whole = session.segment_everything(image, crops=False, **settings)
    crops = session.segment_everything(image, crops=True, **settings)
    assert len(crops) == 4
    mean = lambda found: np.mean([max(iou(one.mask, mask) for one in found) for mask in wanted])  # noqa: E731
    assert mean(crops) > mean(whole)
    for one in crops:
        # Click and mask are in the image's frame, at the same square.
        nearest = min(wanted, key=lambda mask: np.hypot(*(np.argwhere(mask).mean(0)[::-1] - one.prompt.points[0])))
        assert iou(one.mask, nearest) > 0.3
        assert one.low_res_logits.shape == (1, 16, 16)


def test_what_a_crop_cuts_off_goes_where_the_whole_image_shows_it(session: Session) -> None:
    image, (wanted,) = squares(120, (30, 30, 100, 100))
    (found,) = session.segment_everything(image, crops=True, points_per_side=8)
    assert iou(found.mask, wanted) > 0.85


def test_masks_of_a_large_image_come_one_at_a_time(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = squares(120, (13, 13, 23, 23), (95, 93, 106, 105))
    together = session.segment_everything(image, points_per_side=16)
    monkeypatch.setattr(refinesam.automatic, "MOST_BYTES", 120 * 120)
    with pytest.raises(ImageError, match=r"masks of 120 x 120 pixels .* iterate"):
        session.segment_everything(image, points_per_side=16)
    one_by_one = session.iterate_everything(image, points_per_side=16)
    for prediction in together:
        other = next(one_by_one)
        assert np.array_equal(other.masks, prediction.masks) and other.score == prediction.score
    assert next(one_by_one, None) is None and len(together) > 1


@pytest.mark.parametrize("value", [1, "yes", 0.0])
def test_crops_are_on_off_or_by_size(session: Session, value: object) -> None:
    with pytest.raises(ConfigError, match="crops"):
        AutomaticMaskGenerator(session, crops=value)  # type: ignore[arg-type]


def test_every_mask_is_refined_where_that_is_asked(session: Session) -> None:
    image, _ = squares(64, (4, 4, 36, 36))
    config = AMRConfig(rule="centre")
    (found,) = AutomaticMaskGenerator(session, points_per_side=8, refine=config).generate(image)
    assert found.refinement is not None and found.refinement.rule == "centre"
    assert AutomaticMaskGenerator(session, points_per_side=8).generate(image)[0].refinement is None


def test_a_very_large_image_is_taken_in_tiles_and_its_seams_are_joined(session: Session) -> None:
    side = 10_000
    windows = crop_windows((side, side), 2500)
    # Cut off by two crops' sides; in one crop; and in the view of the whole alone.
    boxes = [(2304, 904, 4504, 1904), (8000, 8000, 9200, 9000), (6000, 200, 9000, 3200)]
    image = np.zeros((side, side, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = 255
    generator = AutomaticMaskGenerator(session)
    views = [((0, 0, side, side), 2), *((window, 12) for window in windows)]
    generator._views = lambda encoded: views  # type: ignore[method-assign]
    found = generator.find(image)
    assert len(found) == 3, [(one.box, one.score, one.window) for one in found]
    for box in boxes:
        best = min(found, key=lambda one: sum(abs(a - b) for a, b in zip(one.box, box, strict=True)))
        assert np.abs(np.subtract(best.box, box)).max() <= side / 16
        assert best.within(box, 8).mean() > 0.85
    # Three masks of the whole image would take 300 MB.
    assert sum(one.pixels.nbytes for one in found) < 20e6


def test_windows_cover_the_image_and_overlap() -> None:
    for image_hw in [(100, 300), (1001, 777), (10_000, 4000), (2, 3)]:
        covered = np.zeros(image_hw, np.uint8)
        for x0, y0, x1, y1 in crop_windows(image_hw, 400):
            covered[y0:y1, x0:x1] += 1
            assert x1 - x0 <= 1.2 * 400 + 1 and y1 - y0 <= 1.2 * 400 + 1
        assert 1 <= covered.min() < covered.max()


def found_at(box: tuple[int, int, int, int], score: float, step: int = 1) -> Found:
    x0, y0, x1, y1 = (side // step for side in box)
    return Found(x0, y0, np.ones((y1 - y0, x1 - x0), np.bool_), step, score, POINT, (0, 0, 64, 64))


def test_placing_keeps_pixels_and_says_what_is_cut() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[5:9, 0:7] = True
    placed = place(mask, (10, 40, 40, 60), 1, (100, 100), 0.5, POINT)
    assert placed is not None and placed.box == (10, 45, 17, 49) and placed.area == 28
    assert placed.cut == (True, False, False, False)
    assert place(mask, (0, 40, 30, 60), 1, (100, 100), 0.5, POINT).cut == (False,) * 4  # type: ignore[union-attr]
    assert place(mask & False, (0, 40, 30, 60), 1, (100, 100), 0.5, POINT) is None
    full = placed.full((100, 100))
    assert full.sum() == 28 and full[45:49, 10:17].all()


def test_steps_see_the_same_pixels() -> None:
    mask = np.random.default_rng(0).random((64, 64)) > 0.5
    fine = place(mask, (0, 0, 64, 64), 1, (64, 64), 0.5, POINT)
    coarse = place(mask[::4, ::4], (0, 0, 64, 64), 4, (64, 64), 0.5, POINT)
    assert fine is not None and coarse is not None
    assert (fine.within((8, 4, 60, 50), 4) == coarse.within((8, 4, 60, 50), 4)).all()
    assert (fine.within((0, 0, 64, 64), 4) == mask[::4, ::4]).all()


def test_thinning_keeps_the_best_of_those_alike() -> None:
    first, alike, apart = found_at((0, 0, 32, 32), 0.9), found_at((0, 0, 32, 28), 0.8), found_at((0, 0, 32, 12), 0.7)
    coarse = found_at((32, 32, 64, 64), 0.5, step=4)
    fine = found_at((32, 32, 64, 60), 0.6)
    assert thin([coarse, apart, alike, fine, first], 0.6) == [first, apart, fine]
    assert thin([], 0.6) == []


def test_parts_are_joined_and_what_goes_on_nowhere_is_left_out() -> None:
    image_hw, left, right = (50, 100), (0, 0, 60, 50), (40, 0, 100, 50)
    mask = np.zeros(image_hw, np.bool_)
    mask[10:30, 20:90] = True
    parts = [
        place(mask[:, :60], left, 1, image_hw, 0.8, POINT),
        place(mask[:, 40:], right, 1, image_hw, 0.5, POINT),
    ]
    (joined,) = join_across_seams([part for part in parts if part])
    assert (joined.full(image_hw) == mask).all()
    assert joined.score == pytest.approx((0.8 * 40 + 0.5 * 50) / 90)
    assert join_across_seams([part for part in parts[:1] if part]) == []
    other = np.zeros(image_hw, np.bool_)
    other[35:45, 20:90] = True  # agrees with nothing in the left crop
    lone = place(other[:, 40:], right, 1, image_hw, 0.5, POINT)
    assert lone is not None and parts[0] is not None
    assert join_across_seams([parts[0], lone]) == []
