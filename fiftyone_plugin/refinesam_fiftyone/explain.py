"""Why one object came out as it did: both masks, where they differ, the prompt, AMR's points and its reason."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import cv2
import fiftyone as fo
import numpy as np
from fiftyone import ViewField as F
from numpy.typing import NDArray

from refinesam import ConfigError, DatasetError, Prompt, read_image

from .labels import mask_from_detection
from .picture import ComparisonPicture, Mask
from .prompting import ask, source_field
from .record import require
from .runs import run_of
from .schema import ROLES, Fields, Settings

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["Explanation", "data_uri", "explain", "prompt_of_label"]

_STRATEGIES: Final = {
    "centre": "two points in the middle of the mask",
    "boundary": "two points on its boundary",
    "feedback": "a second look at the whole image",
    "zoom": "a closer look at the object, in a crop of its own",
    "none": "nothing",
}


@dataclass(frozen=True, eq=False)
class Explanation:
    """One object of a run.

    Attributes:
        sample_id: of its sample.
        prompt_id: of its prompt.
        label: its class.
        picture: (H, W, 3) uint8: the object with each mask, and what they differ in.
        facts: what is known of it, in words, in reading order.
    """

    sample_id: str
    prompt_id: str
    label: str
    picture: NDArray[np.uint8]
    facts: dict[str, str]


def prompt_of_label(samples: SampleCollection, run_key: str, label_id: str, sample_id: str) -> str | None:
    """Return the prompt of a label of a run's layers or ground truth; None if the run has none for it."""
    target, run, settings = run_of(samples, run_key)
    sample = target.samples[sample_id]
    layers = [(run.masks(role), "detections", "prompt_id") for role in ROLES]
    layers += [
        (run.points, "keypoints", "prompt_id"),
        (settings.truth_field or "", "detections", f"{run.key}_prompt_id"),
    ]
    for field, kind, name in layers:
        for label in _labels(sample, field, kind):
            if label.id == label_id and _value(label, name) is not None:
                return str(label[name])
    return label_id if _by_prompt(sample, run.baseline, label_id) is not None else None


def explain(samples: SampleCollection, *, run_key: str, prompt_id: str, sample_id: str | None = None) -> Explanation:
    """Draw one object's masks and say what is known of it.

    Args:
        samples: a dataset or view that has the run.
        run_key: of the run.
        prompt_id: of the object.
        sample_id: of its sample, if known: searching takes a look at every label.

    Raises:
        ConfigError: no such run or object, or a run that lacks the field of one of its masks.
        ImageError: the image, or a mask's file, cannot be read.
    """
    target, run, settings = run_of(samples, run_key)
    require(target, run, (run.baseline, run.amr))
    if sample_id is None:
        ids = target.samples.filter_labels(run.baseline, F("prompt_id") == prompt_id).values("id")
        sample_id = ids[0] if ids else None
    if sample_id is None:
        raise ConfigError(f"The run {run_key!r} has no object {prompt_id!r}: choose one of its labels.")
    sample = target.samples[sample_id]
    masks = {role: _by_prompt(sample, run.masks(role), prompt_id) for role in ROLES}
    if masks["baseline"] is None or masks["amr"] is None:
        raise ConfigError(f"The run {run_key!r} has no object {prompt_id!r} in this sample: choose another label.")
    image = read_image(sample.filepath)
    drawn = ComparisonPicture(
        image,
        baseline=_mask(masks["baseline"], image),
        amr=_mask(masks["amr"], image),
        truth=_truth(sample, settings, masks["baseline"], image),
        prompt=_prompt(sample, settings, prompt_id, image),
        points=_points(sample, run, prompt_id, image),
    )
    label = str(masks["amr"].label)
    return Explanation(sample.id, prompt_id, label, drawn.draw(), _facts(masks["baseline"], masks["amr"], drawn))


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return an RGB picture as PNG in a URI that a page shows."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise DatasetError(f"A picture of shape {picture.shape} cannot be written as PNG: (H, W, 3) uint8 is needed.")
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


def _labels(sample: fo.Sample, field: str, kind: str = "detections") -> Sequence[fo.Label]:
    labels = sample[field] if field and sample.has_field(field) else None
    return [] if labels is None else list(labels[kind])


def _by_prompt(sample: fo.Sample, field: str, prompt_id: str) -> Any:
    return next((label for label in _labels(sample, field) if _value(label, "prompt_id") == prompt_id), None)


def _mask(detection: fo.Detection, image: NDArray[np.uint8]) -> Mask:
    hw = (image.shape[0], image.shape[1])
    mask = mask_from_detection(detection, hw)
    return np.zeros(hw, np.bool_) if mask is None else mask


def _truth(sample: fo.Sample, settings: Settings, baseline: fo.Detection, image: NDArray[np.uint8]) -> Mask | None:
    truth_id = baseline["truth_id"] if baseline.has_attribute("truth_id") else None
    if settings.truth_field is None or truth_id is None:
        return None
    truth = next((label for label in _labels(sample, settings.truth_field) if label.id == truth_id), None)
    return None if truth is None else _mask(truth, image)


def _prompt(sample: fo.Sample, settings: Settings, prompt_id: str, image: NDArray[np.uint8]) -> Prompt | None:
    field = source_field(settings)
    if field is None:
        return None
    kind = "keypoints" if settings.prompts == "keypoints" else "detections"
    asked = [label for label in _labels(sample, field, kind) if label.id == prompt_id]
    return next((asked_for.prompt for asked_for in ask(asked, settings, (image.shape[0], image.shape[1]))), None)


def _points(sample: fo.Sample, run: Fields, prompt_id: str, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    own = (label for label in _labels(sample, run.points, "keypoints") if _value(label, "prompt_id") == prompt_id)
    keypoint = next(own, None)
    relative = np.asarray([] if keypoint is None else keypoint.points, np.float64).reshape(-1, 2)
    return relative * (image.shape[1], image.shape[0])


def _facts(baseline: fo.Detection, amr: fo.Detection, drawn: ComparisonPicture) -> dict[str, str]:
    """Return what is known, in reading order; what is not is left out."""
    facts = {
        "Class": str(amr.label),
        "Outcome": _words(_value(amr, "bucket")),
        "True IoU, first mask": _number(_value(baseline, "iou")),
        "True IoU, after refinement": _number(_value(amr, "iou")),
        "True IoU, rejected mask": _number(_value(amr, "rejected_iou")),
        "Predicted IoU, first mask": _number(_value(baseline, "predicted_iou")),
        "Predicted IoU, after refinement": _number(_value(amr, "predicted_iou")),
        "Kept": {"first": "the first mask", "refined": "the refined mask"}.get(str(_value(amr, "kept")), ""),
        "Reason": str(_value(amr, "reason") or ""),
        "Refinement tried": _STRATEGIES.get(str(_value(amr, "strategy")), str(_value(amr, "strategy") or "")),
        "Parts of the first mask (kappa)": str(_value(baseline, "kappa")),
        "Compactness of the first mask": _number(_value(baseline, "compactness")),
        "Pixels that differ": f"{np.count_nonzero(drawn.baseline ^ drawn.amr)}",
    }
    return {name: value for name, value in facts.items() if value not in ("", "None")}


def _value(label: fo.Label, name: str) -> Any:
    return label[name] if label.has_attribute(name) else None


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"


def _words(bucket: str | None) -> str:
    return "" if bucket is None else bucket.replace("_", " ").replace("amr", "refinement")
