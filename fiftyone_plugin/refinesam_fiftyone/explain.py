"""Why one object came out as it did: both masks, where they differ, the prompt, AMR's points and its reason."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import fiftyone as fo
import numpy as np
from fiftyone import ViewField as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refinesam import ConfigError, DatasetError, Prompt, read_image

from .labels import mask_from_detection
from .prompting import ask, source_field
from .schema import ROLES, Fields, Settings, read_settings

__all__ = ["COLOURS", "Explanation", "data_uri", "explain", "prompt_of_label"]

Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]

# RGB; distinct for colour-blind readers (Okabe and Ito).
COLOURS: Final[dict[str, Colour]] = {
    "baseline": (86, 180, 233),
    "amr": (230, 159, 0),
    "truth": (0, 200, 130),
    "prompt": (255, 255, 255),
    "points": (240, 80, 200),
}
# Width of one of the pictures, and the frame around the object as a part of its size.
TILE: Final = 300
MARGIN: Final = 0.35
CAPTION: Final = 36
GAP: Final = 6

_STRATEGIES: Final = {
    "centre": "two points in the middle of the mask",
    "boundary": "two points on its boundary",
    "feedback": "a second look at the whole image",
    "zoom": "closer looks at the object",
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


def prompt_of_label(dataset: Any, run_key: str, label_id: str, sample_id: str) -> str | None:
    """Return the prompt of a label of a run's layers or ground truth; None if the run has none for it."""
    run = Fields(run_key)
    settings = read_settings(dataset, run)
    sample = dataset[sample_id]
    for role in ROLES:
        for label in _labels(sample, run.masks(role)):
            if label.id == label_id:
                return str(label["prompt_id"])
    for label in _labels(sample, run.points, "keypoints"):
        if label.id == label_id:
            return str(label["prompt_id"])
    if settings.truth_field is not None:
        for label in _labels(sample, settings.truth_field):
            name = f"{run.key}_prompt_id"
            if label.id == label_id and label.has_attribute(name):
                return None if label[name] is None else str(label[name])
    return next((one["prompt_id"] for one in _labels(sample, run.baseline) if one["prompt_id"] == label_id), None)


def explain(dataset: Any, *, run_key: str, prompt_id: str, sample_id: str | None = None) -> Explanation:
    """Draw one object's masks and say what is known of it.

    Args:
        dataset: that has the run.
        run_key: of the run.
        prompt_id: of the object.
        sample_id: of its sample, if known: searching takes a look at every label.

    Raises:
        ConfigError: no such run or object.
        ImageError: the image, or a mask's file, cannot be read.
    """
    run = Fields(run_key)
    settings = read_settings(dataset, run)
    if sample_id is None:
        found = dataset.filter_labels(run.baseline, F("prompt_id") == prompt_id).values("id")
        sample_id = found[0] if found else None
    if sample_id is None:
        raise ConfigError(f"The run {run_key!r} has no object {prompt_id!r}: choose one of its labels.")
    sample = dataset[sample_id]
    masks = {role: _by_prompt(sample, run.masks(role), prompt_id) for role in ROLES}
    if masks["baseline"] is None or masks["amr"] is None:
        raise ConfigError(f"The run {run_key!r} has no object {prompt_id!r} in this sample: choose another label.")
    image = read_image(sample.filepath)
    scene = _Scene(
        image,
        baseline=_mask(masks["baseline"], image),
        amr=_mask(masks["amr"], image),
        truth=_truth(sample, settings, masks["baseline"], image),
        prompt=_prompt(sample, settings, prompt_id, image),
        points=_points(sample, run, prompt_id, image),
    )
    label = str(masks["amr"].label)
    return Explanation(sample.id, prompt_id, label, scene.draw(), _facts(masks["baseline"], masks["amr"], scene))


def data_uri(picture: NDArray[np.uint8]) -> str:
    """Return an RGB picture as PNG in a URI that a page shows."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not done:
        raise DatasetError(f"A picture of shape {picture.shape} cannot be written as PNG: (H, W, 3) uint8 is needed.")
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode()


def _labels(sample: Any, field: str, kind: str = "detections") -> Sequence[Any]:
    found = sample[field] if sample.has_field(field) else None
    return [] if found is None else list(found[kind])


def _by_prompt(sample: Any, field: str, prompt_id: str) -> Any:
    return next((one for one in _labels(sample, field) if one["prompt_id"] == prompt_id), None)


def _mask(detection: fo.Detection, image: NDArray[np.uint8]) -> Mask:
    hw = (image.shape[0], image.shape[1])
    mask = mask_from_detection(detection, hw)
    return np.zeros(hw, np.bool_) if mask is None else mask


def _truth(sample: Any, settings: Settings, baseline: Any, image: NDArray[np.uint8]) -> Mask | None:
    truth_id = baseline["truth_id"] if baseline.has_attribute("truth_id") else None
    if settings.truth_field is None or truth_id is None:
        return None
    truth = next((one for one in _labels(sample, settings.truth_field) if one.id == truth_id), None)
    return None if truth is None else _mask(truth, image)


def _prompt(sample: Any, settings: Settings, prompt_id: str, image: NDArray[np.uint8]) -> Prompt | None:
    field = source_field(settings)
    if field is None:
        return None
    kind = "keypoints" if settings.prompts == "keypoints" else "detections"
    asked = [one for one in _labels(sample, field, kind) if one.id == prompt_id]
    return next((one.prompt for one in ask(asked, settings, (image.shape[0], image.shape[1]))), None)


def _points(sample: Any, run: Fields, prompt_id: str, image: NDArray[np.uint8]) -> NDArray[np.float64]:
    found = next((one for one in _labels(sample, run.points, "keypoints") if one["prompt_id"] == prompt_id), None)
    relative = np.asarray([] if found is None else found.points, np.float64).reshape(-1, 2)
    return relative * (image.shape[1], image.shape[0])


def _facts(baseline: Any, amr: Any, scene: _Scene) -> dict[str, str]:
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
        "Pixels that differ": f"{np.count_nonzero(scene.baseline ^ scene.amr)}",
    }
    return {name: value for name, value in facts.items() if value not in ("", "None")}


def _value(label: Any, name: str) -> Any:
    return label[name] if label.has_attribute(name) else None


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}"


def _words(bucket: str | None) -> str:
    return "" if bucket is None else bucket.replace("_", " ").replace("amr", "refinement")


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is drawn; masks are (H, W) bool in the image's frame, points pixel (x, y)."""

    image: NDArray[np.uint8]
    baseline: Mask
    amr: Mask
    truth: Mask | None
    prompt: Prompt | None
    points: NDArray[np.float64]

    def draw(self) -> NDArray[np.uint8]:
        """Return the object side by side: first mask, after refinement, what differs, ground truth."""
        window = self._window()
        tiles = [
            self._tile("First mask", window, {"baseline": self.baseline}, prompt=True),
            self._tile("After refinement", window, {"amr": self.amr}, prompt=True, points=True),
            self._tile(
                "Only one of both",
                window,
                {"baseline": self.baseline & ~self.amr, "amr": self.amr & ~self.baseline},
                opacity=0.75,
            ),
        ]
        if self.truth is not None:
            tiles.append(self._tile("Ground truth", window, {"truth": self.truth}))
        height = max(tile.shape[0] for tile in tiles)
        canvas = np.full((height, len(tiles) * (TILE + GAP) - GAP, 3), 38, np.uint8)
        for index, tile in enumerate(tiles):
            canvas[: tile.shape[0], index * (TILE + GAP) : index * (TILE + GAP) + TILE] = tile
        return canvas

    def _window(self) -> tuple[int, int, int, int]:
        """Return top, bottom, left, right of what is shown: everything that is drawn, and a margin."""
        rows, columns = self.image.shape[:2]
        shown = self.baseline | self.amr if self.truth is None else self.baseline | self.amr | self.truth
        ys, xs = (list(where) for where in np.nonzero(shown))
        if self.prompt is not None and self.prompt.box is not None:
            left, top, right, bottom = self.prompt.box
            xs, ys = [*xs, left, right - 1], [*ys, top, bottom - 1]
        clicks = self._clicks()[0]
        xs, ys = [*xs, *clicks[:, 0], *self.points[:, 0]], [*ys, *clicks[:, 1], *self.points[:, 1]]
        if not xs:
            return 0, rows, 0, columns
        margin = max(4.0, MARGIN * max(max(ys) - min(ys), max(xs) - min(xs)))
        top, bottom = int(max(0, min(ys) - margin)), int(min(rows, max(ys) + margin + 2))
        left, right = int(max(0, min(xs) - margin)), int(min(columns, max(xs) + margin + 2))
        return top, bottom, left, right

    def _clicks(self) -> tuple[NDArray[np.float64], NDArray[Any]]:
        if self.prompt is None:
            return np.empty((0, 2)), np.empty(0)
        return np.asarray(self.prompt.points, np.float64).reshape(-1, 2), np.asarray(self.prompt.labels).reshape(-1)

    def _tile(
        self,
        caption: str,
        window: tuple[int, int, int, int],
        masks: dict[str, Mask],
        *,
        opacity: float = 0.35,
        prompt: bool = False,
        points: bool = False,
    ) -> NDArray[np.uint8]:
        top, bottom, left, right = window
        scale = TILE / max(bottom - top, right - left)
        size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
        crop = cv2.resize(self.image[top:bottom, left:right], size, interpolation=cv2.INTER_AREA if scale < 1 else 0)
        for name, mask in masks.items():
            part = mask[top:bottom, left:right].astype(np.uint8)
            large = cv2.resize(part, size, interpolation=cv2.INTER_NEAREST)
            inside = large.astype(np.bool_)
            crop[inside] = (crop[inside] * (1 - opacity) + np.array(COLOURS[name]) * opacity).astype(np.uint8)
            outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(crop, outlines, -1, COLOURS[name], 2)
        tile = Image.new("RGB", (TILE, TILE + CAPTION), (38, 38, 38))
        tile.paste(Image.fromarray(crop), ((TILE - size[0]) // 2, CAPTION))
        canvas = ImageDraw.Draw(tile)
        canvas.text((2, 4), caption, fill=(235, 235, 235), font=ImageFont.load_default(24))
        origin = np.array([left, top]), scale, np.array([(TILE - size[0]) // 2, CAPTION])
        if prompt:
            self._draw_prompt(canvas, *origin)
        if points:
            for x, y in (self.points - origin[0]) * scale + origin[2]:
                _cross(canvas, x, y, COLOURS["points"])
        return np.asarray(tile)

    def _draw_prompt(self, canvas: Any, corner: Any, scale: float, offset: Any) -> None:
        if self.prompt is None:
            return
        if self.prompt.box is not None:
            x0, y0, x1, y1 = ((np.asarray(self.prompt.box).reshape(2, 2) - corner) * scale + offset).reshape(-1)
            canvas.rectangle((x0, y0, x1 - 1, y1 - 1), outline=COLOURS["prompt"], width=2)
        places, signs = self._clicks()
        for (x, y), sign in zip((places - corner) * scale + offset, signs, strict=True):
            colour = COLOURS["truth"] if sign > 0 else (230, 60, 60)
            canvas.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline=COLOURS["prompt"], width=2)


def _cross(canvas: Any, x: float, y: float, colour: Colour) -> None:
    for shade, width in (((0, 0, 0), 5), (colour, 2)):
        canvas.line((x - 6, y, x + 6, y), fill=shade, width=width)
        canvas.line((x, y - 6, x, y + 6), fill=shade, width=width)
