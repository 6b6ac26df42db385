"""From the slices of a stack in which an object was prompted to those in which it was not, one slice after another.

Every step prompts the model with the mask of the slice before. A direction ends, with its reason in words, where the
object fades or the masks stop agreeing: what is doubtful is left to the user. Works on callables and arrays; knows no
napari.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

import refinesam
from refinesam_napari.surroundings import Predict, Read, SeedContrast, box_of, context_crop, predict_in_crops

__all__ = [
    "Direction",
    "Predict",
    "PropagatedSlice",
    "PropagationSettings",
    "Read",
    "context_crop",
    "predict_in_crops",
    "prompt_from_mask",
    "propagate",
]

BoolArray = NDArray[np.bool_]
Direction = Literal["both", "up", "down"]

# An object whose section has less than this share of its seed's area has shrunk.
SHRUNK = 0.8
# Most by which it may then grow again in depth.
MAX_REGROWTH = 1.1


class TakesMasks(Protocol):
    """What propagation needs of a model's capabilities."""

    @property
    def mask_prompt(self) -> bool:
        """Whether a mask can be part of a prompt."""
        ...


@dataclass(frozen=True)
class PropagationSettings:
    """How to make prompts, and when to stop.

    The defaults come from `benchmarks/napari_ground_truth.py`: there a box kept masks from shrinking with the object,
    and of the rules the one on contrast found the object's ends.

    Attributes:
        direction: "up" to higher slice indices, "down" to lower ones, or "both".
        min_agreement: least share of the smaller of two masks, one slice after the other, that lies on the larger one,
            in [0, 1]. How much an object may grow or shrink is another matter.
        max_area_ratio: most by which the area may grow or shrink from one slice to the next, at least 1.
        min_score: least predicted IoU, in [0, 1].
        min_contrast: least share of the seed's contrast with its surroundings, in [0, 1]; 0 turns the rule off. It
            holds only where pixels can be read and the seed stands out.
        depth: whether slices follow each other in depth, not in time. In depth an object's sections shrink towards its
            ends: masks are cut to what stands out as the seed does, and may not grow again once they have shrunk,
            since that is the object behind it. It holds where the seed is of one brightness.
        max_slices: most slices filled from a seed in a direction, at least 1; None for no limit.
        points: positive clicks deep inside the mask before, 1 or 2; the second is the first to miss what moves.
        use_mask: prompt with the mask before itself; where the model takes none, or if False, with its box instead.

    Raises:
        refinesam.ConfigError: a value out of range.
    """

    direction: Direction = "both"
    min_agreement: float = 0.5
    max_area_ratio: float = 3.0
    min_score: float = 0.3
    min_contrast: float = 0.7
    depth: bool = True
    max_slices: int | None = None
    points: int = 1
    use_mask: bool = True

    def __post_init__(self) -> None:
        """Check every value."""
        checks = (
            ("direction", "'both', 'up' or 'down'", self.direction in ("both", "up", "down")),
            ("min_agreement", "a number from 0 to 1", 0 <= self.min_agreement <= 1),
            ("max_area_ratio", "a number of at least 1", self.max_area_ratio >= 1),
            ("min_score", "a number from 0 to 1", 0 <= self.min_score <= 1),
            ("min_contrast", "a number from 0 to 1", 0 <= self.min_contrast <= 1),
            ("max_slices", "None or a whole number of at least 1", self.max_slices is None or self.max_slices >= 1),
            ("points", "1 or 2", self.points in (1, 2)),
        )
        for name, needed, holds in checks:
            if not holds:
                raise refinesam.ConfigError(f"{name} is {getattr(self, name)!r}; give {needed}.")


@dataclass(frozen=True, eq=False)
class PropagatedSlice:
    """What came of one slice.

    Attributes:
        index: of the slice.
        mask: (H, W) bool, or None where it was refused.
        score: predicted IoU of the mask, or of the refused one.
        agreement: the share of the smaller of it and the mask of the slice before, on the seed's side, that both cover.
        source_seed: index of the seed from which this slice was reached.
        stopped: why this direction ends here, None while it goes on. A side that met another goes on after all where
            the other was refused.
    """

    index: int
    mask: BoolArray | None
    score: float
    agreement: float
    source_seed: int
    stopped: str | None = None


def propagate(
    seeds: Mapping[int, BoolArray],
    predict: Predict,
    indices: range,
    settings: PropagationSettings,
    capabilities: TakesMasks,
    until: Collection[int] = (),
    read: Read | None = None,
) -> Generator[PropagatedSlice, None, None]:
    """Fill the slices around the seeds, from each seed outwards, one slice per step of the generator.

    Between two seeds a slice is filled from the nearer one (from the lower one when both are as near); where one side
    is refused, the other goes on up to the refused slice, which then comes a second time. To do again what follows a
    slice, give its mask as the only seed, with a direction, and the other prompted slices in `until`.

    Args:
        seeds: (H, W) bool by slice index, at least one, none empty.
        predict: answers a prompt in a slice. Of its masks the one with the highest product of predicted IoU and IoU
            with the mask before is taken.
        indices: of the stack's slices, without steps.
        settings: how to make prompts, and when to stop.
        capabilities: of the model behind `predict`.
        until: further slices that are not touched and at which a direction ends, as at seeds.
        read: reads pixels, without which the rule on contrast does not hold.

    Returns:
        A generator; close it to cancel. Slices that were filled stay valid. Errors of `predict` pass through it.

    Raises:
        refinesam.PromptError: no seed, an empty or misshapen one, or one outside the stack.
        refinesam.ConfigError: indices with steps.
    """
    _check_seeds(seeds, indices)
    walker = _Walker(dict(seeds), predict, settings, capabilities.mask_prompt, read)
    return _filled(walker, indices, frozenset(until))


def prompt_from_mask(mask: BoolArray, settings: PropagationSettings, mask_prompt: bool) -> refinesam.Prompt:
    """Make the prompt for a slice from the mask of its neighbour.

    Args:
        mask: (H, W) bool, not empty.
        settings: what the prompt is made of.
        mask_prompt: whether the model takes a mask.
    """
    x0, y0, x1, y1 = box_of(mask)
    points = _deep_points(mask[y0:y1, x0:x1], settings.points) + (x0, y0)
    if mask_prompt and settings.use_mask:
        return refinesam.Prompt(points=points, mask=mask)
    return refinesam.Prompt(points=points, box=(x0, y0, x1, y1))


def _check_seeds(seeds: Mapping[int, BoolArray], indices: range) -> None:
    if indices.step != 1:
        raise refinesam.ConfigError(f"indices are {indices}; give all slices of the stack, in steps of 1.")
    if not seeds:
        raise refinesam.PromptError("There is no seed: segment the object in at least one slice first.")
    shapes = {np.shape(mask) for mask in seeds.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise refinesam.PromptError(
            f"The seeds' masks have the shapes {sorted(shapes)}: give (H, W), the same for all."
        )
    for index, mask in seeds.items():
        if index not in indices:
            raise refinesam.PromptError(
                f"The seed in slice {index} is outside the stack, slices {indices.start} to {indices.stop - 1}: "
                "leave it out."
            )
        if not mask.any():
            raise refinesam.PromptError(
                f"The seed in slice {index} is empty: segment the object there, or leave it out."
            )


def _filled(walker: _Walker, indices: range, until: frozenset[int]) -> Generator[PropagatedSlice, None, None]:
    """Fill the gaps that seeds, borders and the stack's ends leave between them, from low to high."""
    inner = sorted(index for index in until | walker.seeds.keys() if index in indices)
    edges = [indices.start - 1, *inner, indices.stop]
    for low, high in zip(edges, edges[1:], strict=False):
        up = low in walker.seeds and walker.settings.direction != "down"
        down = high in walker.seeds and walker.settings.direction != "up"
        if up and down:
            yield from _filled_from_both(walker, low, high)
        elif up:
            reason = f"reached slice {high}" if high in inner else "reached the last slice"
            yield from walker.walk(low, range(low + 1, high), reason)
        elif down:
            reason = f"reached slice {low}" if low in inner else "reached the first slice"
            yield from walker.walk(high, range(high - 1, low, -1), reason)


def _filled_from_both(walker: _Walker, low: int, high: int) -> Generator[PropagatedSlice, None, None]:
    middle = (low + high) // 2
    from_low, from_high = f"met what comes from slice {low}", f"met what comes from slice {high}"
    up = yield from walker.walk(low, range(low + 1, middle + 1), from_high)
    down = yield from walker.walk(high, range(high - 1, middle, -1), from_low)
    # The object is at both ends, so a side that gave up is helped out by the one that did not.
    if up.refused is not None and down.complete:
        yield from walker.walk(high, range(middle, up.refused - 1, -1), from_low, down.mask)
    elif down.refused is not None and up.complete:
        yield from walker.walk(low, range(middle + 1, down.refused + 1), from_high, up.mask)


@dataclass(frozen=True, eq=False)
class _End:
    """Where a walk ended: its last mask, the slice that it refused, and whether it filled all that it was to."""

    mask: BoolArray
    refused: int | None = None
    complete: bool = False


@dataclass(frozen=True, eq=False)
class _Walker:
    """Goes from slice to slice in one direction."""

    seeds: Mapping[int, BoolArray]
    predict: Predict
    settings: PropagationSettings
    mask_prompt: bool
    read: Read | None

    def walk(
        self, source: int, indices: range, last: str, mask: BoolArray | None = None
    ) -> Generator[PropagatedSlice, None, _End]:
        """Fill slices one after another.

        Args:
            source: index of the seed.
            indices: in the order in which to fill them.
            last: why the last one is the last.
            mask: of the slice before the first, the seed's if None.
        """
        seed, most = self.seeds[source], self.settings.max_slices
        seed_contrast = SeedContrast.of(self.read, source, seed) if self.read and self.settings.min_contrast else None
        mask = seed if mask is None else mask
        least = int(min(np.count_nonzero(seed), np.count_nonzero(mask)))
        for index in indices:
            if most is not None and abs(index - source) > most:
                return _End(mask)
            prediction = self.predict(index, prompt_from_mask(mask, self.settings, self.mask_prompt))
            ious = [refinesam.mask_iou(one, mask) for one in prediction.masks]
            chosen = int(np.argmax(np.multiply(ious, prediction.iou_predictions)))
            whole, score = prediction.masks[chosen], float(prediction.iou_predictions[chosen])
            sections = self.settings.depth and seed_contrast is not None and seed_contrast.even
            found = seed_contrast.section(index, whole) if seed_contrast and sections else whole
            agreement = _overlap(found, mask)
            # A model without a clear object in view returns the mask that it was given, or another object's: so what
            # both share counts for itself. Not all of the mask before: an object that moves or shrinks leaves it.
            contrast = (
                min(seed_contrast.left(index, whole, found), seed_contrast.left(index, whole, found & mask))
                if seed_contrast
                else 1.0
            )
            refusal = self._refusal(mask, found, score, agreement, contrast)
            area, shrunk = int(np.count_nonzero(found)), least < SHRUNK * np.count_nonzero(seed)
            if refusal is None and sections and shrunk and area > MAX_REGROWTH * least:
                refusal = f"it had shrunk to {least} pixels and grows again to {area}: this is another object"
            least = min(least, area)
            if refusal is not None:
                yield PropagatedSlice(index, None, score, agreement, source, refusal)
                return _End(mask, refused=index)
            stopped = last if index == indices[-1] else None
            if stopped is None and most == abs(index - source):
                stopped = f"filled {most} slices, as many as were asked for"
            mask = found
            yield PropagatedSlice(index, mask, score, agreement, source, stopped)
        return _End(mask, complete=True)

    def _refusal(
        self, before: BoolArray, found: BoolArray, score: float, agreement: float, contrast: float
    ) -> str | None:
        """Say why a mask is not to be trusted, None if it is."""
        area, area_before, limits = np.count_nonzero(found), np.count_nonzero(before), self.settings
        if not area:
            return "the mask is empty"
        if contrast < limits.min_contrast:
            return f"it fades: it stands out {contrast:.0%} as much as at first, less than {limits.min_contrast:.0%}"
        if max(area / area_before, area_before / area) > limits.max_area_ratio:
            verb = "shrinks" if area < area_before else "grows"
            return f"it {verb} from {area_before} to {area} pixels, by more than {limits.max_area_ratio:g} times"
        if agreement < limits.min_agreement:
            return f"it jumps: {agreement:.0%} of it lies where it was before, less than {limits.min_agreement:.0%}"
        if score < limits.min_score:
            return f"the model is not sure: {score:.0%}, less than {limits.min_score:.0%}"
        return None


def _overlap(one: BoolArray, other: BoolArray) -> float:
    """Return the share of the smaller mask that lies on the larger one; 0 if one is empty."""
    smaller = min(np.count_nonzero(one), np.count_nonzero(other))
    return float(np.count_nonzero(one & other) / smaller) if smaller else 0.0


def _deep_points(mask: BoolArray, count: int) -> NDArray[np.float64]:
    """Return at most (count, 2) pixel centres deep inside a mask, the second off the first's inner circle."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    rows, columns = np.indices(depth.shape)
    points: list[tuple[float, float]] = []
    while len(points) < count and depth.any():
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        points.append((float(column) + 0.5, float(row) + 0.5))
        depth = np.where((rows - row) ** 2 + (columns - column) ** 2 <= depth[row, column] ** 2, 0, depth)
    return np.array(points, np.float64).reshape(-1, 2)
