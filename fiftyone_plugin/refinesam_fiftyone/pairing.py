"""Which ground truth object each prompt asked for.

"boxes" of the ground truth field itself, and "random-2" clicks in it: the prompt's id is the ground truth label's.
"boxes" of another field: boxes are matched greedily, the highest box IoU first, each used once, from `BOX_IOU` on.
Classes are not looked at: a detector that takes a cat for a dog still asked for that object.
"keypoints": the smallest ground truth mask that covers more than half of the positive and none of the negative clicks.
"everything": masks and ground truth are matched greedily, the highest mask IoU first, each used once; a prompt's IoU is
that of the better one of its two masks, so that neither the baseline nor AMR has the choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from refinesam import Prompt, PromptError

from .labels import prompt_from_keypoint
from .regions import Region, StoredLabel, StoredSample, iou
from .schema import Fields, Settings

__all__ = ["BOX_IOU", "best_overlap", "box_iou", "pair", "prompt_path"]

BOX_IOU: Final = 0.5
# Relative boxes of exactly that IoU miss it by about this much.
ROUNDING: Final = 1e-9


def prompt_path(settings: Settings) -> str | None:
    """Return the path, list of labels, that pairing needs beside the ground truth and the masks; None for none."""
    if settings.prompts == "keypoints":
        return f"{settings.prompt_field}.keypoints"
    return None


def pair(sample: StoredSample, run: Fields, settings: Settings) -> dict[str, StoredLabel]:
    """Return prompt id -> the ground truth label it asked for; prompts without one are left out.

    Ground truth without a mask, or with one without a pixel, is never paired.
    """
    truths = [
        label for label in sample.labels[settings.truth_field or ""] if label.region is not None and label.region.area
    ]
    prompt_ids = [label.prompt_id for label in sample.labels[run.baseline] if label.prompt_id is not None]
    if settings.prompts == "everything":
        return _by_masks(sample, run, truths)
    if settings.prompts == "keypoints":
        return _by_clicks(sample, settings, truths, prompt_ids)
    if settings.prompts == "boxes" and settings.prompt_field != settings.truth_field:
        boxes = {label.id: label for label in sample.labels[settings.prompt_field or ""]}
        candidates = (
            (box_iou(boxes[prompt_id].bounding_box, truth.bounding_box), prompt_id, truth)
            for prompt_id in prompt_ids
            if prompt_id in boxes
            for truth in truths
        )
        return _greedy(candidate for candidate in candidates if candidate[0] >= BOX_IOU - ROUNDING)
    by_id = {label.id: label for label in truths}
    return {prompt_id: by_id[prompt_id] for prompt_id in prompt_ids if prompt_id in by_id}


def best_overlap(truth: Region, labels: Sequence[StoredLabel]) -> float:
    """Return the highest IoU of a mask with any of the labels', 0 for none."""
    return max((iou(label.region, truth) for label in labels if label.region is not None), default=0.0)


def _greedy(candidates: Iterable[tuple[float, str, StoredLabel]]) -> dict[str, StoredLabel]:
    """Take the highest score first, each prompt and each ground truth label once; ties fall to the earlier one."""
    paired: dict[str, StoredLabel] = {}
    taken: set[str] = set()
    for _, prompt_id, truth in sorted(candidates, key=lambda candidate: -candidate[0]):
        if prompt_id not in paired and truth.id not in taken:
            paired[prompt_id] = truth
            taken.add(truth.id)
    return paired


def _by_masks(sample: StoredSample, run: Fields, truths: Sequence[StoredLabel]) -> dict[str, StoredLabel]:
    scores: dict[tuple[str, str], float] = {}
    by_id = {label.id: label for label in truths}
    for name in (run.baseline, run.amr):
        for label in sample.labels[name]:
            if label.region is None or label.prompt_id is None:
                continue
            for truth in truths:
                assert truth.region is not None
                overlap = iou(label.region, truth.region)
                if overlap > 0:
                    key = label.prompt_id, truth.id
                    scores[key] = max(scores.get(key, 0.0), overlap)
    return _greedy((score, prompt_id, by_id[truth_id]) for (prompt_id, truth_id), score in scores.items())


def _by_clicks(
    sample: StoredSample, settings: Settings, truths: Sequence[StoredLabel], prompt_ids: Sequence[str]
) -> dict[str, StoredLabel]:
    prompts = sample.others[prompt_path(settings) or ""] or ()
    keypoints: Mapping[str, Any] = {str(keypoint.id): keypoint for keypoint in prompts}
    paired = {}
    for prompt_id in prompt_ids:
        if prompt_id not in keypoints:
            continue
        try:
            prompt = prompt_from_keypoint(keypoints[prompt_id], sample.image_hw)
        except PromptError:
            continue
        fitting = [truth for truth in truths if truth.region is not None and _fits(truth.region, prompt)]
        if fitting:
            paired[prompt_id] = min(fitting, key=lambda truth: truth.region.area if truth.region is not None else 0)
    return paired


def _fits(region: Region, prompt: Prompt) -> bool:
    covered = sum(region.covers(x, y) for x, y in prompt.positive_points.tolist())
    wrong = any(region.covers(x, y) for x, y in prompt.negative_points.tolist())
    return not wrong and covered * 2 > len(prompt.positive_points)


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the IoU of what two relative [x, y, width, height] have in the image.

    Both are of one image, so the units cancel.
    """
    first, second = _inside(a), _inside(b)
    common = [min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1)]
    if min(common) <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return common[0] * common[1] / (sum(areas) - common[0] * common[1])


def _inside(box: Sequence[float]) -> list[float]:
    return [min(max(value, 0.0), 1.0) for value in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
