"""The settings of Adaptive Mask Refinement, and their presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

import numpy as np

from refinesam.errors import ConfigError

__all__ = ["AMRConfig", "Preset", "Rule", "check_count", "check_number"]

Rule = Literal["consensus", "paper_equation", "paper_prose", "centre", "boundary"]
Preset = Literal["full", "fast", "paper", "paper-prose"]

# Each zoom re-encodes a part of the image.
MOST_ZOOMS: Final = 8
# So that another pass costs at most a twentieth of encoding and decoding, on average over objects.
FAST_EXIT: Final = 0.75

_CONSENSUS_ALONE: Final = ("zooms", "early_exit")
# What each rule has no use for.
_UNUSED: Final[Mapping[Rule, tuple[str, ...]]] = MappingProxyType(
    {
        "consensus": ("compactness_threshold", "append", "iterations"),
        "paper_equation": _CONSENSUS_ALONE,
        "paper_prose": _CONSENSUS_ALONE,
        "centre": ("compactness_threshold", *_CONSENSUS_ALONE),
        "boundary": ("compactness_threshold", "depth", *_CONSENSUS_ALONE),
    }
)


@dataclass(frozen=True)
class AMRConfig:
    """Settings of `refinesam.amr.refine`; a setting that the rule has no use for keeps its default.

    Attributes:
        rule: "consensus"; "paper_equation" or "paper_prose"; or the same points for every mask: "centre" or "boundary".
        compactness_threshold: Q below it counts as irregular, in [0, 1]; for the paper's rules.
        depth: centre points lie deeper than this share of the greatest depth, in [0, 1); not for "boundary".
        point_count: points generated per pass, at least 1.
        append: add the points to the user's prompt; False: prompt with the generated points alone; not for "consensus".
        iterations: greatest number of passes, at least 1; not for "consensus".
        min_gain: a refined mask is kept when its score is higher by more than this, at least 0. None means 0.01 for
            "consensus", whose score is the expected IoU, and 0 for the others, whose score is the predicted IoU.
        zooms: for "consensus", one crop of the image after the other: the side of each over the longer side of the
            object, at least 1, as far as it is at most half of the image. Only for models that take masks as prompts.
        early_exit: for "consensus", in [0, 1]: the first mask is kept without another pass where the first masks agree
            by more than this, in expected IoU. 1 always makes another pass.

    Raises:
        ConfigError: a value that is of the wrong kind or out of range, or that the rule would ignore.
    """

    rule: Rule = "consensus"
    compactness_threshold: float = 0.6
    depth: float = 0.7
    point_count: int = 2
    append: bool = True
    iterations: int = 1
    min_gain: float | None = None
    zooms: Sequence[float] = (6.0,)
    early_exit: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        if self.rule not in get_args(Rule):
            raise ConfigError(f"rule is {self.rule!r}; choose one of {', '.join(get_args(Rule))}.")
        check_number("compactness_threshold", self.compactness_threshold, "from 0 to 1", lambda value: 0 <= value <= 1)
        check_number("depth", self.depth, "from 0 to below 1", lambda value: 0 <= value < 1)
        check_number("early_exit", self.early_exit, "from 0 to 1", lambda value: 0 <= value <= 1)
        if self.min_gain is not None:
            check_number("min_gain", self.min_gain, "of at least 0", lambda value: value >= 0)
        check_count("point_count", self.point_count)
        check_count("iterations", self.iterations)
        if not isinstance(self.append, bool):
            raise ConfigError(f"append is {self.append!r}; give True or False.")
        if not isinstance(self.zooms, tuple | list) or len(self.zooms) > MOST_ZOOMS:
            raise ConfigError(f"zooms is {self.zooms!r}; give at most {MOST_ZOOMS} numbers, such as (6, 3), or ().")
        for factor in self.zooms:
            check_number("zooms", factor, "of at least 1 each", lambda value: value >= 1)
        # JSON knows lists alone.
        object.__setattr__(self, "zooms", tuple(self.zooms))
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
        """Return the default: a pass in a crop, which costs an encode; for clicks a pass on the whole image before."""
        return cls()

    @classmethod
    def fast(cls) -> AMRConfig:
        """Return a consensus without crops: at most one more decode, nothing is encoded.

        The second pass has points in the first mask's middle, and is made where the first masks disagree.
        """
        return cls(zooms=(), early_exit=FAST_EXIT)

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
