"""One example, all its likes: clicks where an image looks like the examples, and masks ranked by how alike they are.

Nothing is trained on the examples. They tell an object's size, by which the image is cut into crops that show objects
as large as the model sees them well, and its looks: the encoder's maps and the colours in their masks. What is decoded
is scored by both, so that a threshold can be moved afterwards without decoding anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from refinesam.amr import Window
from refinesam.arrays import mask_array
from refinesam.automatic import AutomaticMaskGenerator, EncodingSession, MaskGenerator
from refinesam.encoded_image import EncodedImage
from refinesam.errors import PromptError
from refinesam.found import Found, crop_windows, place
from refinesam.models.frames import Frame
from refinesam.models.image_encoder import ImageFeatures
from refinesam.types import (
    LIKELY_SIMILARITY,
    MOST_EXAMPLES,
    BoolArray,
    FloatArray,
    OnProgress,
    Prediction,
    Prompt,
)

__all__ = ["SimilarMaskGenerator"]

# Of the model's input, how long an object shall be in a crop (the root of its area); never more crops a side than this.
OBJECT_SHARE, MOST_CROPS = 0.1, 12
# Clicks lie this many object lengths apart.
SPACING = 0.5
# Of the pixels inside the examples, how many look less like them than a click may.
LEAST_LIKE = 0.1
# Of two masks that overlap by more, in IoU or as a share of the smaller one, the one less alike goes.
OVERLAP, CONTAINED = 0.5, 0.7
# Least similarity that is returned at all.
LEAST = 0.05
# Of predicted IoU, likeness in the encoder's coarsest and finest map, in colour and in size; and a constant. Set by
# hand near a logistic regression on training images, which gives (10.0, 0.8, 0.5, 0.3, 1.4, -5.4) for masks whose IoU
# with an object is 0.5 or more (`benchmarks/similar.py --fit`). Likeness in looks counts for more than was fitted:
# most of those images show objects of one kind.
WEIGHTS = (8.0, 1.0, 1.0, 0.4, 1.1, -4.8)
# How much being more like a negative example than like a positive one takes away.
NEGATIVE = 3.0


@dataclass(frozen=True, eq=False)
class _View:
    """A part of an image as the model sees it: its colours and the encoder's maps at the size of the masks."""

    part: EncodedImage
    window: Window
    colours: Tensor  # (3, h w)
    maps: tuple[Tensor, ...]  # (C, h w) each
    pixels_per_cell: float


@dataclass(frozen=True, eq=False)
class _Looks:
    """Of K masks: area in pixels (K,), mean colours (K, 3), and means of each map (K, C)."""

    area: Tensor
    colours: Tensor
    maps: tuple[Tensor, ...]

    @classmethod
    def join(cls, parts: Sequence[_Looks]) -> _Looks:
        return cls(
            torch.cat([one.area for one in parts]),
            torch.cat([one.colours for one in parts]),
            tuple(torch.cat(maps) for maps in zip(*(one.maps for one in parts), strict=True)),
        )


class SimilarMaskGenerator(MaskGenerator):
    """Finds every object that is like the examples, in their image or in others."""

    def __init__(
        self,
        session: EncodingSession,
        image: NDArray[np.uint8] | EncodedImage,
        examples: Sequence[ArrayLike],
        negatives: Sequence[ArrayLike] = (),
        *,
        prompts_per_batch: int | None = None,
    ) -> None:
        """Look at the examples.

        Args:
            session: with a model that `refinesam.load` made.
            image: the examples': (H, W, 3) uint8 RGB, or encoded already.
            examples: one to five objects of a kind, each a mask (H, W) or a box (4,) XYXY in pixels.
            negatives: up to five objects that are not of that kind, in the same forms.
            prompts_per_batch: clicks decoded together, as `AutomaticMaskGenerator` has it.

        Raises:
            ConfigError: the session's model can't decode grids.
            PromptError: no example or too many, an empty mask, or one of another image's shape.
        """
        everything = AutomaticMaskGenerator(session, prompts_per_batch=prompts_per_batch)
        self.session, self.model = session, everything.model
        self.prompts_per_batch, self._prediction = everything.prompts_per_batch, everything.prediction
        encoded = image if isinstance(image, EncodedImage) else session.encode(image)
        masks = _masks(encoded, examples, "examples", at_least=1)
        others = _masks(encoded, negatives, "negatives", at_least=0)
        # The length of an object: the side of a square of its area.
        self.length = float(np.median([np.sqrt(np.count_nonzero(mask)) for mask in masks]))
        self._learn(encoded, masks, others)

    def answer(self, encoded: EncodedImage, found: Found) -> Prediction:
        """Make a prediction of a mask that was found, with its similarity."""
        return replace(self._prediction(encoded, found), similarity=found.similarity)

    def find(self, image: NDArray[np.uint8] | EncodedImage, on_progress: OnProgress | None = None) -> list[Found]:
        """Find what is like the examples, by falling similarity, in masks that take no more memory than they cover.

        Those above a threshold are what a search with that threshold would return: to move it, leave out the others.

        Args:
            image: as for `generate`; the examples' or another.
            on_progress: called with the parts of the image that are done and their number; an exception it raises ends
                the work.
        """
        encoded = image if isinstance(image, EncodedImage) else self.session.encode(image)
        windows = self._windows(encoded)
        found: list[Found] = []
        for number, window in enumerate(windows):
            if on_progress is not None:
                on_progress(number, len(windows))
            found += self._found(encoded.image_hw, self._view(encoded, window))
        if on_progress is not None:
            on_progress(len(windows), len(windows))
        return _thinned(found)

    def _windows(self, encoded: EncodedImage) -> list[Window]:
        height, width = encoded.image_hw
        longest = max(self.length / OBJECT_SHARE, max(height, width) / MOST_CROPS)
        if longest >= max(height, width) or encoded.pixels is None:
            return [(0, 0, width, height)]
        return crop_windows(encoded.image_hw, int(longest))

    def _window_around(self, encoded: EncodedImage, mask: BoolArray) -> Window:
        """Return what the search would show of an object: a window of a crop's size with the object in its middle."""
        height, width = encoded.image_hw
        windows = self._windows(encoded)
        x0, y0, x1, y1 = windows[0]
        left, top, w, h = cv2.boundingRect(mask.view(np.uint8))
        crop_w, crop_h = min(width, max(x1 - x0, w)), min(height, max(y1 - y0, h))
        x0 = int(np.clip(left + (w - crop_w) // 2, 0, width - crop_w))
        y0 = int(np.clip(top + (h - crop_h) // 2, 0, height - crop_h))
        return x0, y0, x0 + crop_w, y0 + crop_h

    @torch.inference_mode()
    def _learn(self, encoded: EncodedImage, masks: list[BoolArray], others: list[BoolArray]) -> None:
        """Keep the looks of the examples, and how like them the pixels in them are."""
        views = [self._view(encoded, self._window_around(encoded, mask)) for mask in (*masks, *others)]
        self.middle = tuple(
            torch.stack([maps.mean(1) for maps in of]).mean(0) for of in zip(*(v.maps for v in views), strict=True)
        )
        self.spread = torch.stack([view.colours.std(1) for view in views]).mean().clamp(min=0.05)
        cells = [self._cells(view, mask) for view, mask in zip(views, (*masks, *others), strict=True)]
        looks = [self._looks(view, mask) for view, mask in zip(views, cells, strict=True)]
        self.positive = _Looks.join(looks[: len(masks)])
        self.negative = _Looks.join(looks[len(masks) :]) if others else None
        inside = [self._likeness_map(v)[c[0].flatten() > 0.5] for v, c in zip(views[: len(masks)], cells, strict=False)]
        self.least_like = float(torch.cat(inside).quantile(LEAST_LIKE))

    def _cells(self, view: _View, mask: BoolArray) -> Tensor:
        """Return a mask (H, W) at the size of the model's masks: (1, h, w) of 0 and 1, with a cell at least."""
        x0, y0, x1, y1 = view.window
        logits = Frame.of(self.model.config, view.part.image_hw).from_mask(mask[y0:y1, x0:x1])
        covered = (logits > 0) | (logits == logits.max())
        return torch.from_numpy(covered)[None].to(self.model.device, torch.float32)

    def _view(self, encoded: EncodedImage, window: Window) -> _View:
        x0, y0, x1, y1 = window
        part = encoded
        pixels = encoded.pixels
        if (y1 - y0, x1 - x0) != encoded.image_hw:
            assert pixels is not None
            pixels = np.ascontiguousarray(pixels[y0:y1, x0:x1])
            part = EncodedImage((y1 - y0, x1 - x0), "", self.model.encode(pixels), self.model)
        features = cast(ImageFeatures, part.features)
        frame, side = Frame.of(self.model.config, part.image_hw), self.model.config.input_size // 4
        maps = []
        for one in (features.embedding, *features.high_res):
            larger = F.interpolate(one.float(), size=(side, side), mode="bilinear", align_corners=False)
            maps.append(F.normalize(larger[0].flatten(1), dim=0))
        if pixels is None:
            colours = torch.zeros(3, side * side, device=self.model.device)
        else:
            colours = F.adaptive_avg_pool2d(frame.resize(pixels).to(self.model.device), side).flatten(1)
        content = frame.content_hw[0] * frame.content_hw[1] / 16
        return _View(part, window, colours, tuple(maps), part.image_hw[0] * part.image_hw[1] / content)

    def _looks(self, view: _View, masks: Tensor) -> _Looks:
        """Measure masks (K, h, w) of 0 and 1."""
        cells = masks.flatten(1)
        count = cells.sum(1, keepdim=True).clamp(min=1)
        means = tuple(cells @ one.T / count - middle for one, middle in zip(view.maps, self.middle, strict=True))
        return _Looks(cells.sum(1) * view.pixels_per_cell, cells @ view.colours.T / count, means)

    def _likeness_map(self, view: _View) -> Tensor:
        """Likeness of each cell (h w,) to the example that it is most like."""
        likeness = [
            (F.normalize(example, dim=1) @ F.normalize(one - middle[:, None], dim=0)).amax(0)
            for example, one, middle in zip(self.positive.maps, view.maps, self.middle, strict=True)
        ]
        return torch.stack(likeness).mean(0)

    def _likeness(self, looks: _Looks, examples: _Looks) -> Tensor:
        """Likeness in the coarsest and the finest map, in colour and in size, to the likest example each: (K, 4)."""
        maps = [
            F.normalize(looks.maps[i], dim=1) @ F.normalize(examples.maps[i], dim=1).T for i in (0, len(looks.maps) - 1)
        ]
        colour = -torch.cdist(looks.colours, examples.colours) / self.spread
        size = -(looks.area[:, None].clamp(min=1) / examples.area[None].clamp(min=1)).log().abs()
        return torch.stack([one.amax(1) for one in (*maps, colour, size)], 1)

    def _similarity(self, view: _View, logits: Tensor, iou: Tensor) -> Tensor:
        """How alike masks (K, h, w) and the examples are, and how good they look to the model, in [0, 1]: (K,)."""
        looks = self._looks(view, (logits > 0).float())
        likeness = self._likeness(looks, self.positive)
        weights = torch.tensor(WEIGHTS, device=iou.device)
        odds = weights[0] * iou + likeness @ weights[1:-1] + weights[-1]
        if self.negative is not None:
            gap = (likeness - self._likeness(looks, self.negative)) @ weights[1:-1]
            odds = odds + NEGATIVE * gap.clamp(max=0)
        return torch.sigmoid(odds)

    def _phases(self, view: _View) -> list[FloatArray]:
        """Clicks (N, 2) where the part looks like the examples: every second row and column, then the others."""
        height, width = view.part.image_hw
        rows, columns = (max(2, round(side / (SPACING * self.length))) for side in (height, width))
        row, column = np.indices((rows, columns))
        points = np.stack([(column + 0.5) / columns * width, (row + 0.5) / rows * height], -1).astype(np.float32)
        side = self.model.config.input_size // 4
        # The likest spot near a click speaks for it: small objects lie between clicks.
        likeness = F.max_pool2d(self._likeness_map(view).view(1, 1, side, side), 3, stride=1, padding=1)
        like = self.model.value_at(likeness[0].cpu().numpy(), view.part.image_hw, points.reshape(-1, 2))[0]
        like = like.reshape(rows, columns) >= self.least_like
        coarse = (row % 2 == 0) & (column % 2 == 0)
        return [points[like & coarse], points[like & ~coarse]]

    @torch.inference_mode()
    def candidates(self, view: _View) -> tuple[Tensor, Tensor, Tensor, FloatArray]:
        """Decode clicks: logits (K, h, w), predicted IoUs (K,), similarities (K,) and clicks (K, 2)."""
        side = self.model.config.input_size // 4
        covered = np.zeros((1, side, side), np.float32)
        kept: list[tuple[Tensor, Tensor, Tensor, FloatArray]] = []
        for phase in self._phases(view):
            free = self.model.value_at(covered, view.part.image_hw, phase)[0] == 0 if len(phase) else []
            points = phase[free] if len(phase) else phase
            for start in range(0, len(points), self.prompts_per_batch):
                batch = points[start : start + self.prompts_per_batch]
                logits, iou = self.model.decode_points(view.part.features, view.part.image_hw, batch)
                clicks = np.repeat(batch, logits.shape[1], axis=0)
                logits, iou = logits.flatten(0, 1), iou.flatten().clamp(0, 1)
                similarity = self._similarity(view, logits, iou)
                good = (similarity >= LEAST) & (logits > 0).any(-1).any(-1)
                kept.append((logits[good], iou[good], similarity[good], clicks[good.cpu().numpy()]))
            sure = [logits[similarity >= LIKELY_SIMILARITY] for logits, _, similarity, _ in kept]
            if sure:
                covered = (torch.cat(sure) > 0).any(0, keepdim=True).float().cpu().numpy()
        if not kept:
            nothing = torch.zeros(0, device=self.model.device)
            return nothing.view(0, side, side), nothing, nothing, np.zeros((0, 2), np.float32)
        logits, iou, similarity = (torch.cat(parts) for parts in list(zip(*kept, strict=True))[:3])
        return logits, iou, similarity, np.concatenate([one[3] for one in kept])

    def _found(self, image_hw: tuple[int, int], view: _View) -> list[Found]:
        logits, iou, similarity, points = self.candidates(view)
        x0, y0, x1, y1 = view.window
        whole = view.part.image_hw == image_hw
        found = []
        low_res = logits.cpu().numpy()
        for i in np.argsort(-similarity.cpu().numpy(), kind="stable").tolist():
            (mask,) = self.model.upsample(low_res[i : i + 1], (y1 - y0, x1 - x0))
            click = points[i] + np.array([x0, y0], np.float32)
            one = place(mask, view.window, 1, image_hw, float(iou[i]), click)
            if one is not None and not any(one.cut):
                kept_logits = low_res[i] if whole else None
                found.append(replace(one, similarity=float(similarity[i]), logits=kept_logits))
        return found


def _thinned(found: Sequence[Found]) -> list[Found]:
    """Leave out what overlaps a mask that is more alike; by similarity alone, so that a threshold can move afterwards.

    Masks of a group of objects, or of a part of one, lie in another or hold it, while their IoU is low.
    """
    kept: list[Found] = []
    boxes, areas = np.zeros((len(found), 4)), np.zeros(len(found))
    for one in sorted(found, key=lambda item: -(item.similarity or 0.0)):
        box, area, count = one.box, one.area, len(kept)
        apart = (boxes[:count, :2] >= box[2:]).any(1) | (boxes[:count, 2:] <= box[:2]).any(1)
        for i in np.flatnonzero(~apart):
            shared = np.count_nonzero(one.pixels & kept[i].within(box, 1))
            if shared > min(CONTAINED * min(area, areas[i]), OVERLAP * (area + areas[i] - shared)):
                break
        else:
            boxes[count], areas[count] = box, area
            kept.append(one)
    return kept


def _masks(encoded: EncodedImage, given: Sequence[ArrayLike], what: str, at_least: int) -> list[BoolArray]:
    """Turn masks and boxes into masks (H, W) with pixels in them."""
    if not at_least <= len(given) <= MOST_EXAMPLES:
        raise PromptError(f"Got {len(given)} {what}: give {at_least} to {MOST_EXAMPLES}, each a mask (H, W) or a box.")
    masks = []
    for number, one in enumerate(given, start=1):
        array = np.asarray(one)
        if array.shape == (4,):
            mask = encoded.predict(Prompt(box=array)).mask
        else:
            mask = mask_array(array)
            Prompt(mask=mask).check_inside(encoded.image_hw)
        if not mask.any():
            raise PromptError(f"Number {number} of the {what} shows nothing: give a mask with pixels, or another box.")
        masks.append(np.ascontiguousarray(mask))
    return masks
