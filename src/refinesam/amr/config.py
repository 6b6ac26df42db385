"""The settings of Adaptive Mask Refinement, and their presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import numpy as np

from refinesam.errors import ConfigError

__all__ = ["AMRConfig", "Preset", "Rule", "check_count", "check_number"]

Rule = Literal["closer_look", "paper_equation", "paper_prose", "centre", "boundary"]
Preset = Literal["full", "fast", "paper", "paper-prose"]

_CLOSER_LOOK_ALONE: Final = ("crop_factor", "least_agreement")
# What each rule has no use for.
_UNUSED: Final[Mapping[Rule, tuple[str, ...]]] = MappingProxyType(
    {
        "closer_look": ("compactness_threshold", "append", "iterations"),
        "paper_equation": _CLOSER_LOOK_ALONE,
        "paper_prose": _CLOSER_LOOK_ALONE,
        "centre": ("compactness_threshold", *_CLOSER_LOOK_ALONE),
        "boundary": ("compactness_threshold", "depth", *_CLOSER_LOOK_ALONE),
    }
)


@dataclass(frozen=True)
class AMRConfig:
    """Settings of `refinesam.amr.refine`; a setting that the rule has no use for keeps its default.

    Attributes:
        rule: "closer_look"; "paper_equation" or "paper_prose"; or the same points for every mask: "centre" or
            "boundary".
        compactness_threshold: Q below it counts as irregular, in [0, 1]; for the paper's rules.
        depth: centre points lie deeper than this share of the greatest depth, in [0, 1); not for "boundary".
        point_count: points generated per pass, at least 1.
        append: add the points to the user's prompt; False: prompt with the generated points alone; not for
            "closer_look", which adds them.
        iterations: greatest number of passes, at least 1; not for "closer_look", which takes one.
        min_gain: a refined mask is kept when its predicted IoU is higher by more than this, at least 0. None means 0,
            and for "closer_look", which goes by agreement, that it may even be lower: predicted IoUs in a crop and in
            the whole image are not quite alike.
        crop_factor: for "closer_look", the crop's side over the longer side of the object, at least 1, as far as the
            crop is at most half of the image. None encodes no crop and asks again on the whole image.
        least_agreement: for "closer_look", in [0, 1]: the refined mask is kept when its IoU with the first one is at
            least this. It is at least 0.8 for models that take no mask prompts, and without a crop.

    Raises:
        ConfigError: a value that is of the wrong kind or out of range, or that the rule would ignore.
    """

    rule: Rule = "closer_look"
    compactness_threshold: float = 0.6
    depth: float = 0.7
    point_count: int = 2
    append: bool = True
    iterations: int = 1
    min_gain: float | None = None
    crop_factor: float | None = 6.0
    least_agreement: float = 0.3

    def __post_init__(self) -> None:
        """Check every value."""
        if self.rule not in get_args(Rule):
            raise ConfigError(f"rule is {self.rule!r}; choose one of {', '.join(get_args(Rule))}.")
        check_number("compactness_threshold", self.compactness_threshold, "from 0 to 1", lambda value: 0 <= value <= 1)
        check_number("depth", self.depth, "from 0 to below 1", lambda value: 0 <= value < 1)
        check_number("least_agreement", self.least_agreement, "from 0 to 1", lambda value: 0 <= value <= 1)
        if self.crop_factor is not None:
            check_number("crop_factor", self.crop_factor, "of at least 1", lambda value: value >= 1)
        if self.min_gain is not None:
            check_number("min_gain", self.min_gain, "of at least 0", lambda value: value >= 0)
        check_count("point_count", self.point_count)
        check_count("iterations", self.iterations)
        if not isinstance(self.append, bool):
            raise ConfigError(f"append is {self.append!r}; give True or False.")
        self._check_used()

    def _check_used(self) -> None:
        for field in fields(self):
            if field.name in _UNUSED[self.rule] and getattr(self, field.name) != field.default:
                users = [rule for rule, unused in _UNUSED.items() if field.name not in unused]
                raise ConfigError(
                    f"{field.name} is {getattr(self, field.name)!r}, which the rule {self.rule!r} has no use for: "
                    f"leave it out, or choose {' or '.join(users)} as the rule."
                )

    @classmethod
    def named(cls, preset: str) -> AMRConfig:
        """Return a preset by its name.

        Args:
            preset: "full", "fast" or "paper", as the methods of these names; or "paper-prose", which differs from
                "paper" in what the paper's prose says instead of its equation, see `refinesam.amr.paper`.

        Raises:
            ConfigError: there is no preset of that name.
        """
        presets = {"full": cls.full, "fast": cls.fast, "paper": cls.paper}
        if preset == "paper-prose":
            return cls(rule="paper_prose")
        if preset not in presets:
            raise ConfigError(f"There is no refinement {preset!r}; choose one of {', '.join(get_args(Preset))}.")
        return presets[preset]()

    @classmethod
    def full(cls) -> AMRConfig:
        """Return the default: a closer look at the object, which costs an encode and a decode."""
        return cls()

    @classmethod
    def fast(cls) -> AMRConfig:
        """Return a second look at the whole image: one decode after a box, nothing is encoded, nothing after clicks."""
        return cls(crop_factor=None)

    @classmethod
    def paper(cls) -> AMRConfig:
        """Return the source paper's algorithm as its equation states it (section XI-A).

        "Boundary if (kappa > 1) or (Q < 0.6), else Centre"; two "additional" points (abstract), hence appended; one
        second pass; "keep the mask with the higher decoder IoU score".
        """
        return cls(rule="paper_equation")


def check_count(name: str, value: object) -> None:
    """Raise ConfigError unless a value is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least 1.")


def check_number(name: str, value: Any, needed: str, in_range: Callable[[float], bool]) -> None:
    """Raise ConfigError unless a value is a finite number in range."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not in_range(float(value)):
        raise ConfigError(f"{name} is {value!r}; give a number {needed}.")
