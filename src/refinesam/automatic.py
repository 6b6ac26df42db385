"""Segment everything: grids of clicks, filtered and thinned at low resolution; only survivors are upsampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from refinesam.amr import AMRConfig, Window
from refinesam.encoded_image import EncodedImage, SegmentationModel
from refinesam.errors import ConfigError, ImageError
from refinesam.found import Found, crop_windows, join_across_seams, place, thin
from refinesam.models.frames import Frame
from refinesam.predictor import Predictor
from refinesam.types import FloatArray, OnProgress, Prediction, Prompt

__all__ = ["AutomaticMaskGenerator", "EncodingSession", "MaskGenerator"]

# Candidates that reach non-maximum suppression; AR@1000 never looks at more.
MAX_CANDIDATES = 1000
# Masks of the whole image that are kept together take this at most.
MOST_BYTES = 8 * 2**30
# Masks are compared at this side at most: finer would cost memory and change next to nothing.
COMPARED_SIDE = 64
# The numbers below were chosen on training images, by `benchmarks/everything.py tune`.
# Of our models' least predicted IoU, how much of the mean of the best so many in the image; and the least of all.
SHARE_OF_BEST, BEST, FLOOR = 0.65, 10, 0.2
# Clicks on a mask as sure as this, and no larger than this share of what the model sees, are left out.
COVERING_IOU, COVERING_AREA = 0.5, 0.3
# An image is crowded where this share of the clicks finds a mask as sure as this, and no larger than this share of what
# the model sees: of training images most micrographs, and no photograph.
CROWDED_CLICKS, CROWDED_IOU, CROWDED_AREA = 1 / 20, 0.6, 0.01
# SAM's least predicted IoU, for the released models: theirs are nearly all high.
RELEASED_IOU, RELEASED_STABILITY = 0.88, 0.75
# An image of more pixels a side than the model's input, times this, is looked at in crops too; and so large they are.
CROPPED_FROM, CROP_SIDE = 2.0, 2.5
# In so many crops or fewer, what the sides of crops cut off is seen whole in the whole image.
CROPS_OF_ONE_OBJECT = 4
# In an image longer than this, large masks are kept at every second pixel, twice as long at every fourth, ...
FULL_SIDE = 2048


class EncodingSession(Protocol):
    """What the generator needs of a session; `refinesam.Session` is one."""

    model: SegmentationModel

    def encode(self, image: NDArray[np.uint8]) -> EncodedImage:
        """Encode (H, W, 3) uint8 RGB."""
        ...


class MaskGenerator(ABC):
    """Finds masks in an image, and gives predictions of them together or one at a time."""

    session: EncodingSession

    @abstractmethod
    def find(self, image: NDArray[np.uint8] | EncodedImage, on_progress: OnProgress | None = None) -> list[Found]:
        """Find masks, in the order in which they are given."""

    @abstractmethod
    def answer(self, encoded: EncodedImage, found: Found) -> Prediction:
        """Make a prediction of a mask that was found."""

    def generate(
        self, image: NDArray[np.uint8] | EncodedImage, on_progress: OnProgress | None = None
    ) -> list[Prediction]:
        """Return a prediction of each mask that `find` finds, with one mask of the whole image, in its order.

        Args:
            image: (H, W, 3) uint8 RGB, or an image already encoded.
            on_progress: as for `find`.

        Raises:
            ImageError: so many masks of so large an image would take more than 8 GiB; `iterate` gives one at a time.
        """
        encoded = image if isinstance(image, EncodedImage) else self.session.encode(image)
        found, (height, width) = self.find(encoded, on_progress), encoded.image_hw
        if len(found) * height * width > MOST_BYTES:
            raise ImageError(
                f"{len(found)} masks of {width} x {height} pixels take {len(found) * height * width / 2**30:.0f} GiB "
                "together: iterate over them (Session.iterate_everything, SimilarMaskGenerator.iterate), or take "
                "refinesam batch."
            )
        return [self.answer(encoded, one) for one in found]

    def iterate(
        self, image: NDArray[np.uint8] | EncodedImage, on_progress: OnProgress | None = None
    ) -> Iterator[Prediction]:
        """Give the predictions of `generate` one at a time: keep what you need of each."""
        encoded = image if isinstance(image, EncodedImage) else self.session.encode(image)
        for one in self.find(encoded, on_progress):
            yield self.answer(encoded, one)


class AutomaticMaskGenerator(MaskGenerator):
    """Segments everything in an image with the session's model."""

    def __init__(
        self,
        session: EncodingSession,
        *,
        points_per_side: int | None = None,
        iou_threshold: float | None = None,
        stability_threshold: float | None = None,
        overlap_threshold: float = 0.6,
        min_area: int = 16,
        crops: bool | None = None,
        skip_covered: bool = True,
        refine: AMRConfig | bool = False,
        prompts_per_batch: int | None = None,
    ) -> None:
        """Choose the grid and the filters.

        Args:
            session: with a model that `refinesam.load` made.
            points_per_side: clicks along each side; None means one for every 24 pixels of the input, at most 32, and in
                crops crowded with small things once more between those. In each crop half as many.
            iou_threshold: least predicted IoU. None means SAM's 0.88 for the released models; for ours, which are
                surer of nuclei than of anything in a photograph, 0.65 of the mean of the image's best ten.
            stability_threshold: least IoU between the mask thresholded one logit up and one logit down. None means 0.75
                for the released models and 0 for ours, whose predicted IoU tells more alone.
            overlap_threshold: of two masks whose IoU is higher, the one with the lower predicted IoU goes.
            min_area: least area in pixels of the image.
            crops: also look at overlapping crops of the image, which finds small things. None means where the image is
                more than twice as long as the model's input, and at four crops where a quarter of the clicks shows
                that it is crowded with small things (the crops then get the others, unless `points_per_side` is given).
                A mask that a crop's side cuts off goes, or where there are more than four crops is joined with its
                other parts.
            skip_covered: leave out clicks on masks that are sure already. A quarter of the clicks is always decoded.
            refine: True or a configuration also runs Adaptive Mask Refinement on every mask found, which costs an
                encode each.
            prompts_per_batch: clicks decoded together; None means 64 on a GPU, 4 on a CPU: there more are slower.

        Raises:
            ConfigError: a setting is out of range, or the session's model can't decode grids.
        """
        model = session.model
        if not isinstance(model, Predictor):
            raise ConfigError("AutomaticMaskGenerator needs a session made by refinesam.load.")
        _check_counts(min_area, points_per_side=points_per_side, prompts_per_batch=prompts_per_batch)
        _check_thresholds(iou=iou_threshold, stability=stability_threshold, overlap=overlap_threshold)
        if crops is not None and not isinstance(crops, bool):
            raise ConfigError(f"crops is {crops!r}; give True, False, or None to decide by the image's size.")
        ours = model.config.family == "hybrid"
        self.session, self.model = session, model
        self.points_per_side = points_per_side or min(32, max(1, model.capabilities.input_size // 24))
        self.denser = points_per_side is None and skip_covered
        self.share_of_best = SHARE_OF_BEST if ours and iou_threshold is None else 0.0
        self.iou_threshold = (FLOOR if ours else RELEASED_IOU) if iou_threshold is None else iou_threshold
        self.stability_threshold = (
            (0.0 if ours else RELEASED_STABILITY) if stability_threshold is None else stability_threshold
        )
        self.overlap_threshold, self.min_area = overlap_threshold, min_area
        self.crops, self.skip_covered = crops, skip_covered
        self.covering_iou, self.crowded_iou = (COVERING_IOU, CROWDED_IOU) if ours else (RELEASED_IOU, RELEASED_IOU)
        self.config = AMRConfig() if refine is True else refine or None
        self.prompts_per_batch = prompts_per_batch or (4 if model.device.type == "cpu" else 64)

    def answer(self, encoded: EncodedImage, found: Found) -> Prediction:
        """Make a prediction of a mask that was found, refined where that was asked for."""
        prediction = self.prediction(encoded, found)
        return prediction if self.config is None else encoded.refine(prediction, self.config)

    def find(self, image: NDArray[np.uint8] | EncodedImage, on_progress: OnProgress | None = None) -> list[Found]:
        """Segment everything into masks that take no more memory than what they cover.

        Args:
            image: as for `generate`.
            on_progress: called with the clicks decided so far and their number; an exception it raises ends the work.

        Returns:
            The masks, unrefined, by falling predicted IoU.
        """
        encoded = image if isinstance(image, EncodedImage) else self.session.encode(image)
        views = self._views(encoded)
        may_crop = self.denser and self.crops is None and len(views) == 1 and encoded.pixels is not None
        progress = _Progress(sum(self._count(side) for _, side in views), on_progress)
        found: list[Found] = []
        best = torch.zeros(0)
        for number, (window, side) in enumerate(views):
            part = encoded if number == 0 else self._crop(encoded, window)
            candidates, crowded = self._candidates(part, side, progress, leaves_crowded=may_crop and number == 0)
            if crowded:
                views += self._crops(encoded.image_hw, max(encoded.image_hw))
                progress.total += sum(self._count(side) for _, side in views[1:])
            best = torch.cat([best, candidates[1].float().cpu()]).topk(min(BEST, len(best) + len(candidates[1])))[0]
            found += self._found(encoded.image_hw, part, window, candidates, self._least(best))
        if len(views) > 1 + CROPS_OF_ONE_OBJECT:
            found = join_across_seams(found)
        found = [
            one for one in found if not any(one.cut) and one.score >= self._least(best) and one.area >= self.min_area
        ]
        found = sorted(found, key=lambda one: -one.score)[:MAX_CANDIDATES]
        return found if len(views) == 1 else thin(found, self.overlap_threshold)

    def prediction(self, image: EncodedImage, found: Found) -> Prediction:
        """Make a prediction of a mask that was found in an image: with a mask of the whole image."""
        if found.logits is not None:
            low_res = found.logits[None]
            masks = self.model.upsample(low_res, image.image_hw)
        else:
            masks = found.full(image.image_hw)[None]
            # As the mask would be drawn into a prompt: the logits are those of a crop.
            low_res = Frame.of(self.model.config, image.image_hw).from_mask(masks[0])[None]
        masks.flags.writeable = False  # or the prediction would copy it
        prompt = Prompt(points=found.point[None])
        return Prediction(masks, np.array([found.score], np.float32), low_res, prompt, image_key=image.key)

    def _views(self, encoded: EncodedImage) -> list[tuple[Window, int]]:
        """The whole image, then its crops, each with the clicks along a side."""
        height, width = encoded.image_hw
        views: list[tuple[Window, int]] = [((0, 0, width, height), self.points_per_side)]
        size = self.model.capabilities.input_size
        crops = max(height, width) > CROPPED_FROM * size if self.crops is None else self.crops
        if crops and encoded.pixels is not None:
            views += self._crops(encoded.image_hw, int(CROP_SIDE * size))
        return views

    def _crops(self, image_hw: tuple[int, int], longest: int) -> list[tuple[Window, int]]:
        return [(window, max(1, self.points_per_side // 2)) for window in crop_windows(image_hw, longest)]

    def _crop(self, encoded: EncodedImage, window: Window) -> EncodedImage:
        assert encoded.pixels is not None
        x0, y0, x1, y1 = window
        features = self.model.encode(np.ascontiguousarray(encoded.pixels[y0:y1, x0:x1]))
        return EncodedImage((y1 - y0, x1 - x0), "", features, self.model)

    def _least(self, best: Tensor) -> float:
        """Least predicted IoU, beside the best ones so far."""
        return max(self.iou_threshold, self.share_of_best * float(best.mean())) if len(best) else self.iou_threshold

    @torch.inference_mode()
    def _candidates(
        self, part: EncodedImage, side: int, progress: _Progress, leaves_crowded: bool
    ) -> tuple[tuple[Tensor, Tensor, FloatArray], bool]:
        """Decode a grid of clicks, coarse then fine: logits (K, h, w), IoUs (K,) and clicks (K, 2), unsorted.

        Where that is crowded and to be left then, decode the coarse grid alone, and say so.
        """
        points = _grid(part.image_hw, side)
        phases = self._phases(side)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        left = False
        for number, phase in enumerate(phases):
            asked = phase
            if number == 1 and leaves_crowded:
                left = self._crowded(kept, len(phases[0]))
            if left or (number == 2 and not self._crowded(kept, side**2)):
                asked = phase[:0]
            elif number:
                asked = phase[~self._covered(part, points[phase], kept)]
            progress.advance(len(phase) - len(asked))
            for start in range(0, len(asked), self.prompts_per_batch):
                batch = asked[start : start + self.prompts_per_batch]
                logits, iou = self.model.decode_points(part.features, part.image_hw, points[batch])
                index = torch.from_numpy(batch).to(iou.device).unsqueeze(1).expand_as(iou)
                # What shows nothing has no area to be sure of.
                sure = (iou >= self.iou_threshold) & (logits > 0).any(-1).any(-1)
                logits, iou, index = logits[sure], iou[sure], index[sure]
                if self.stability_threshold:
                    stable = _stability(logits) >= self.stability_threshold
                    logits, iou, index = logits[stable], iou[stable], index[stable]
                kept.append((logits, iou, index))
                progress.advance(len(batch))
        logits, iou, index = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return (logits, iou, points[index.cpu().numpy()]), left

    def _phases(self, side: int) -> list[NDArray[np.intp]]:
        """Indices of the points of `_grid` that are decoded together: every second row and column, the others, ..."""
        row, column = np.indices((side, side))
        coarse = ((row % 2 == 0) & (column % 2 == 0)).ravel()
        phases = [np.flatnonzero(coarse), np.flatnonzero(~coarse)] if self.skip_covered else [np.arange(side**2)]
        return [*phases, side**2 + np.arange((side - 1) ** 2)] if self.denser else phases

    def _count(self, side: int) -> int:
        return sum(map(len, self._phases(side)))

    def _crowded(self, kept: list[tuple[Tensor, Tensor, Tensor]], clicks: int) -> bool:
        """Whether many of the clicks so far have found something sure and small."""
        small = [((iou >= self.crowded_iou) & _no_larger(logits, CROWDED_AREA), index) for logits, iou, index in kept]
        return len(torch.cat([index[chosen] for chosen, index in small]).unique()) >= CROWDED_CLICKS * clicks

    def _covered(
        self, part: EncodedImage, points: FloatArray, kept: list[tuple[Tensor, Tensor, Tensor]]
    ) -> NDArray[np.bool_]:
        """Which points (N, 2) lie on a mask that is sure and not large."""
        sure = [logits[(iou >= self.covering_iou) & _no_larger(logits, COVERING_AREA)] for logits, iou, _ in kept]
        masks = torch.cat(sure) > 0
        covered = masks.any(0, keepdim=True).float().cpu().numpy()
        return np.asarray(self.model.value_at(covered, part.image_hw, points)[0] > 0)

    @torch.inference_mode()
    def _found(
        self,
        image_hw: tuple[int, int],
        part: EncodedImage,
        window: Window,
        candidates: tuple[Tensor, Tensor, FloatArray],
        least: float,
    ) -> list[Found]:
        """Thin what was found in a view, and put it into its place in the image."""
        logits, iou, points = candidates
        order = iou.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
        order = order[iou[order] >= least]
        order = order[_suppress(logits[order] > 0, self.overlap_threshold)]
        low_res, scores, points = logits[order].cpu().numpy(), iou[order].tolist(), points[order.cpu().numpy()]
        x0, y0, x1, y1 = window
        whole = part.image_hw == image_hw
        step = 1
        while whole and max(image_hw) > FULL_SIDE * step:
            step *= 2
        size_hw = (-(-(y1 - y0) // step), -(-(x1 - x0) // step))
        found = []
        for i, score in enumerate(scores):
            (mask,) = self.model.upsample(low_res[i : i + 1], size_hw)
            placed = place(mask, window, step, image_hw, score, points[i] + np.array([x0, y0], np.float32))
            if placed is not None:
                found.append(replace(placed, logits=low_res[i]) if whole else placed)
        return found


class _Progress:
    """Counts clicks, decoded or left out."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self.on_progress = 0, total, on_progress

    def advance(self, clicks: int) -> None:
        self.done += clicks
        if clicks and self.on_progress is not None:
            self.on_progress(self.done, self.total)


def _grid(image_hw: tuple[int, int], side: int) -> FloatArray:
    """Centres of side x side equal cells, then the corners where four of them meet: (N, 2) x, y."""
    height, width = image_hw
    grids = []
    for ticks in ((np.arange(side) + 0.5) / side, np.arange(1, side) / side):
        y, x = np.meshgrid(ticks * height, ticks * width, indexing="ij")
        grids.append(np.stack([x.ravel(), y.ravel()], axis=1))
    return np.asarray(np.concatenate(grids), np.float32)


def _no_larger(logits: Tensor, share: float) -> Tensor:
    """Which masks (K, h, w) cover at most a share of what the model sees: (K,)."""
    return (logits > 0).float().mean(dim=(-2, -1)) <= share


def _check_counts(min_area: object, **counts: object) -> None:
    for name, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise ConfigError(f"{name} is {count!r}; a whole number of at least 1 is needed, or None.")
    if type(min_area) is not int or min_area < 0:
        raise ConfigError(f"min_area is {min_area!r}; a whole number of pixels is needed, 0 for none.")


def _check_thresholds(**thresholds: object) -> None:
    for name, value in thresholds.items():
        if value is None and name != "overlap":
            continue
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"{name}_threshold is {value!r}; it must lie in [0, 1].")


def _stability(logits: Tensor) -> Tensor:
    """IoU of masks (K, h, w) thresholded at +1 and at -1 logit (SAM's stability score): (K,)."""
    inner = (logits > 1).sum(dim=(-2, -1))
    outer = (logits > -1).sum(dim=(-2, -1))
    return inner / outer.clamp(min=1)


def _suppress(masks: Tensor, overlap_threshold: float) -> Tensor:
    """Non-maximum suppression of masks (K, h, w), best first: indices of those kept.

    By the masks' own IoU and not their boxes': a ring and what it encloses have the same box.
    """
    flat = masks.float()
    if flat.shape[-1] > COMPARED_SIDE:
        flat = F.adaptive_avg_pool2d(flat, COMPARED_SIDE)
    flat = flat.flatten(1)
    area = flat.sum(1)
    overlap = flat @ flat.T
    iou = (overlap / (area[:, None] + area[None] - overlap).clamp(min=1e-6)).cpu().numpy()
    alive = np.ones(len(iou), dtype=bool)
    for i in range(len(iou)):
        if alive[i]:
            alive[i + 1 :] &= iou[i, i + 1 :] <= overlap_threshold
    return torch.from_numpy(np.flatnonzero(alive)).to(masks.device)
