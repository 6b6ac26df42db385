"""Number of clicks (NoC): how many clicks bring an object's mask to a given IoU, when each corrects the worst error.

The simulated user is that of f-BRS and RITM (Sofiiuk et al. 2020 and 2022): the next click goes to the pixel that lies
deepest in what is wrong, positive where the object is missed, negative where something else is covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from refinesam.errors import ConfigError, DatasetError
from refinesam.evaluation.click_report import Click, ClickEvaluation, ClickRecord, Stopped
from refinesam.evaluation.dataset import CocoFolder, CocoImage, CocoObject
from refinesam.evaluation.image_run import (
    ImageRun,
    OnImage,
    PromptableImage,
    PromptableSession,
    is_whole,
    limited,
    milliseconds_since,
)
from refinesam.masks import decode_segmentation, mask_iou
from refinesam.types import BoolArray, Capabilities, Prompt

__all__ = ["Click", "ClickEvaluation", "ClickRecord", "ClickableSession", "count_clicks", "next_click"]

THRESHOLDS: Final = (0.85, 0.9)


class ClickableSession(PromptableSession, Protocol):
    """What counting clicks needs of a session; `refinesam.Session` is one."""

    @property
    def capabilities(self) -> Capabilities:
        """What the model can be asked."""
        ...


def count_clicks(
    session: ClickableSession,
    folder: CocoFolder,
    *,
    max_clicks: int = 20,
    thresholds: Sequence[float] = THRESHOLDS,
    feed_back: bool = True,
    limit_images: int | None = None,
    on_image: OnImage | None = None,
) -> ClickEvaluation:
    """Click on every object of a folder until its mask is good, and count.

    Each image is encoded once. Crowd regions are left out. Every prompt holds all clicks so far; of several masks the
    one with the highest predicted IoU counts, and is what the next click corrects. A model that takes only so many
    points gets no more clicks, and the object counts as one that never gets there.

    Args:
        session: the model.
        folder: images and ground truth.
        max_clicks: most clicks an object, 20 in the literature.
        thresholds: IoUs to reach.
        feed_back: let each prompt carry the logits of the prediction before, where the model takes mask prompts.
        limit_images: take only the first so many images.
        on_image: called after every image with how many are done and how many there are.

    Raises:
        ConfigError: a number of clicks, thresholds or a limit that are none.
        DatasetError: the folder has no object.
    """
    _check_aim(max_clicks, thresholds)
    images = limited(folder.without_crowds().images, limit_images)
    run, capabilities = ImageRun(session, folder.damaged), session.capabilities
    feed_back = feed_back and capabilities.mask_prompt
    user = _User(capabilities, max_clicks, max(thresholds), feed_back)
    records: list[ClickRecord] = []
    for image, encoded in run.encoded(images, on_image):
        for coco_object in image.objects:
            with run.isolated(image, coco_object.annotation_id):
                records.append(user.click_on(encoded, image, coco_object))
    return ClickEvaluation(
        max_clicks,
        tuple(sorted(thresholds)),
        feed_back,
        folder.categories,
        tuple(records),
        tuple(run.failures),
        tuple(run.encode_ms),
    )


def _check_aim(max_clicks: object, thresholds: Sequence[float]) -> None:
    if not is_whole(max_clicks, at_least=1):
        raise ConfigError(f"max_clicks is {max_clicks!r}; give a whole number of at least 1.")
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ConfigError(f"thresholds are {thresholds!r}; give IoUs above 0 and at most 1, as (0.85, 0.9).")


def next_click(truth: NDArray[np.bool_], mask: NDArray[np.bool_], clicked: NDArray[np.bool_]) -> Click | None:
    """Return the click that corrects the worst error: the deepest pixel of what is missed or of what is too much.

    Depth is the Euclidean distance to the nearest pixel that is not of the same error; beyond the image's border
    nothing is. Of equal depths the negative click wins, then the first in row-major order, as in RITM's program.

    Args:
        truth: (H, W) ground truth.
        mask: (H, W) prediction.
        clicked: (H, W) pixels that were clicked before and are not clicked again.

    Returns:
        None when every wrong pixel was clicked, or none is wrong.
    """
    missed, extra = _squared_depth(truth & ~mask), _squared_depth(mask & ~truth)
    missed[clicked], extra[clicked] = 0, 0
    positive = bool(missed.max() > extra.max())
    depth = missed if positive else extra
    index = int(np.argmax(depth))
    if not depth.flat[index]:
        return None
    row, column = divmod(index, truth.shape[1])
    return Click(column + 0.5, row + 0.5, positive)


def _squared_depth(error: NDArray[np.bool_]) -> NDArray[np.int64]:
    depth = np.zeros(error.shape, np.int64)
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(error).view(np.uint8))
    if width:
        box = np.s_[y : y + height, x : x + width]
        distance = cv2.distanceTransform(np.pad(error[box], 1).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # Squares are whole; OpenCV's rounding varies with its number of threads, and would break ties.
        depth[box] = np.rint(np.square(distance[1:-1, 1:-1], dtype=np.float64))
    return depth


@dataclass(frozen=True)
class _User:
    """Who clicks."""

    capabilities: Capabilities
    max_clicks: int
    aim: float
    feed_back: bool

    def click_on(self, encoded: PromptableImage, image: CocoImage, coco_object: CocoObject) -> ClickRecord:
        """Click on one object until its mask is good."""
        truth = decode_segmentation(coco_object.segmentation, image.height, image.width)
        if not truth.any():
            raise DatasetError(
                f"The segmentation of annotation {coco_object.annotation_id} covers no pixel: remove it or redraw it."
            )
        mask: BoolArray = np.zeros_like(truth)
        clicked = np.zeros_like(truth)
        logits, milliseconds = None, 0.0
        clicks: list[Click] = []
        ious: list[float] = []
        stopped: Stopped = "clicks"
        while len(clicks) < self.max_clicks:
            click = next_click(truth, mask, clicked)
            if click is None or not self._room_for([*clicks, click]):
                stopped = "nothing left" if click is None else "points"
                break
            clicks.append(click)
            clicked[int(click.y), int(click.x)] = True
            start = perf_counter()
            prediction = encoded.predict(_prompt(clicks, logits))
            milliseconds += milliseconds_since(start)
            mask = prediction.mask
            logits = prediction.logits if self.feed_back else None
            ious.append(mask_iou(mask, truth))
            if ious[-1] >= self.aim:
                stopped = "reached"
                break
        return ClickRecord(
            image.image_id,
            coco_object.annotation_id,
            coco_object.category_id,
            int(np.count_nonzero(truth)),
            tuple(ious),
            tuple(clicks),
            stopped,
            milliseconds,
        )

    def _room_for(self, clicks: Sequence[Click]) -> bool:
        most = self.capabilities.max_points
        # Negative clicks are decoded apart by models without them, and take none of their places.
        taken = [click for click in clicks if click.positive or self.capabilities.negative_points]
        return most is None or len(taken) <= most


def _prompt(clicks: Sequence[Click], logits: NDArray[np.float32] | None) -> Prompt:
    return Prompt(
        points=[(click.x, click.y) for click in clicks],
        labels=[int(click.positive) for click in clicks],
        mask_logits=logits,
    )
