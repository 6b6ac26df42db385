"""The prompts of one sample: boxes, keypoints with signs, or random clicks in the ground truth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import fiftyone as fo
import numpy as np

from refinesam import ImageError, Prompt, PromptError

from .labels import NOT_SEEN, SIGNS, mask_from_detection, prompt_from_box, prompt_from_keypoint
from .schema import Failure, Settings

__all__ = ["Asked", "ask", "file_digest", "file_stamp", "random_clicks", "source_digest", "source_field"]

CLICKS: Final = 2


@dataclass(frozen=True, eq=False)
class Asked:
    """One prompt that a sample's labels ask for, or the reason why there is none.

    Attributes:
        prompt_id: the id of the label that it was made from.
        label: that label's class, "object" if it has none.
        prompt: in image pixels; None with a failure.
        failure: one of `schema.FAILURES`, None with a prompt.
        reason: of the failure, in words.
    """

    prompt_id: str
    label: str
    prompt: Prompt | None = None
    failure: Failure | None = None
    reason: str = field(default="")


def source_field(settings: Settings) -> str | None:
    """Return the field whose labels become prompts, None for "everything"."""
    if settings.prompts == "everything":
        return None
    return settings.truth_field if settings.prompts == "random-2" else settings.prompt_field


def ask(labels: Sequence[fo.Label], settings: Settings, image_hw: tuple[int, int]) -> list[Asked]:
    """Return one prompt, or failure, for each label, in order."""
    return [_ask(label, settings, image_hw) for label in labels]


def _ask(label: fo.Label, settings: Settings, image_hw: tuple[int, int]) -> Asked:
    prompt_id, name = str(label.id), label.label or "object"
    try:
        if settings.prompts == "boxes":
            prompt = prompt_from_box(label.bounding_box, image_hw)
        elif settings.prompts == "keypoints":
            prompt = prompt_from_keypoint(label, image_hw)
        else:
            mask = mask_from_detection(label, image_hw)
            if mask is None or not mask.any():
                missing = "has no mask" if mask is None else "has no pixel in the image"
                reason = f"The ground truth {missing}, so no click can be drawn in it: annotate its mask."
                return Asked(prompt_id, name, failure="no_truth", reason=reason)
            prompt = random_clicks(mask, prompt_id, settings.seed)
    except PromptError as error:
        return Asked(prompt_id, name, failure="bad_prompt", reason=str(error))
    except ImageError as error:
        return Asked(prompt_id, name, failure="no_truth", reason=str(error))
    return Asked(prompt_id, name, prompt)


def random_clicks(mask: np.ndarray[Any, np.dtype[np.bool_]], prompt_id: str, seed: int) -> Prompt:
    """Draw two distinct pixels of a mask as positive clicks, at their centres (the source paper's protocol for AMR).

    The draw hangs on the mask, the label's id and the seed alone, so a re-run clicks the same pixels.

    Args:
        mask: (H, W), not empty; one of a single pixel gets one click.
        prompt_id: the label's id.
        seed: 0 or more.
    """
    inside = np.flatnonzero(mask)
    number = int.from_bytes(hashlib.blake2b(prompt_id.encode(), digest_size=8).digest(), "big")
    rng = np.random.default_rng((seed, number))
    drawn = rng.choice(inside, size=min(CLICKS, len(inside)), replace=False)
    rows, columns = np.unravel_index(drawn, mask.shape)
    return Prompt(points=np.stack([columns, rows], axis=1) + 0.5)


def source_digest(labels: Sequence[fo.Label], *, masks: bool) -> str:
    """Return a digest that changes when labels do: class, box or points, and masks, wherever their files lie."""
    digest = hashlib.blake2b(digest_size=16)
    for label in labels:
        for part in _parts(label, masks):
            digest.update(part)
            digest.update(b"\0")
    return digest.hexdigest()


def _parts(label: fo.Label, masks: bool) -> Iterator[bytes]:
    yield repr((str(label.id), label.label)).encode()
    if isinstance(label, fo.Keypoint):
        yield repr((label.points, [label[n] for n in (*SIGNS, *NOT_SEEN) if label.has_attribute(n)])).encode()
        return
    yield repr(label.bounding_box).encode()
    if not masks:
        return
    if label.mask is not None:
        yield np.packbits(np.asarray(label.mask) > 0).tobytes()
    elif label.mask_path:
        yield file_digest(Path(label.mask_path)).encode()


def file_digest(path: Path) -> str:
    """Return a digest of what a file holds; empty for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""


def file_stamp(path: Path) -> str:
    """Return a text that changes when a file is written or moved, quicker to get than its digest; empty for none."""
    try:
        found = path.stat()
    except OSError:
        return ""
    text = f"{path} {found.st_size} {found.st_mtime_ns}"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()
