"""What a project may ask of the backend in its "extra params", and the model version that says so."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from refinesam import AMRConfig, ConfigError, Session
from refinesam.hosts import LIKELY_SIMILARITY
from refinesam_labelstudio.json_types import JsonObject, JsonView

__all__ = ["OutputKind", "ServiceOptions", "weights_version"]

OutputKind = Literal["brush", "polygon", "bitmask", "rectangle"]
EVERYTHING_SWITCHES = ("crops", "skip_covered")
EVERYTHING_SETTINGS = (
    *("points_per_side", "iou_threshold", "stability_threshold", "overlap_threshold", "min_area"),
    *EVERYTHING_SWITCHES,
)
MOST_AMR = 64
MOST_ALTERNATIVES = 8
EXAMPLE = '{"amr": true, "output": "polygon"}'


@dataclass(frozen=True)
class ServiceOptions:
    """How tasks are answered.

    Attributes:
        amr: settings of Adaptive Mask Refinement; None leaves it off.
        output: the kind of region to prefer where the labeling configuration has several; None means its own order.
        everything: settings of segment-everything, for tasks without a prompt; None leaves such tasks empty, and their
            image is encoded for the clicks to come.
        max_masks: most regions that segment-everything gives a task, the surest first.
        label: of what segment-everything finds; None means the first label of the output's tag.
        tolerance: how far polygons may lie from the mask's outline, in pixels; None goes by image and mask.
        smallest_part: of a polygon, in pixels; smaller ones and smaller holes are left out. None goes by the mask.
        alternatives: most other masks that are returned of each prompted object: what else the prompt may mean.
        model: which of the served models answers, by its name; None means the first.
        similar: least similarity, in (0, 1], of what is returned beside a task's prompted objects because it is like
            those of the same label; None leaves it out. Nobody who waits at the screen gets it.
    """

    amr: AMRConfig | None = None
    output: OutputKind | None = None
    everything: Mapping[str, float] | None = field(default_factory=lambda: MappingProxyType({}))
    max_masks: int = 100
    label: str | None = None
    tolerance: float | None = None
    smallest_part: int | None = None
    alternatives: int = 0
    similar: float | None = None
    model: str | None = None

    def updated(self, extra_params: object) -> ServiceOptions:
        """Return these options with what a project asks for in its extra params.

        Args:
            extra_params: an object, the same as JSON text, or nothing. "amr": true, false, a name of
                `AMRConfig.named` or the fields of `AMRConfig`; "output": "brush", "polygon", "bitmask" or "rectangle";
                "everything": true, false or the settings of `AutomaticMaskGenerator`; "max_masks"; "label";
                "tolerance"; "smallest_part"; "alternatives"; "similar": true, false or the least similarity; "model".

        Raises:
            ConfigError: an unknown name, or a value of the wrong kind or out of range.
        """
        changes: JsonObject = {}
        for name, value in _as_mapping(extra_params).items():
            if name not in _READERS:
                raise ConfigError(
                    f"extra_params has {name!r}; known are {', '.join(_READERS)}. Write it like {EXAMPLE}."
                )
            changes[name] = _READERS[name](value)
        return replace(self, **changes)

    def version(self, weights: str) -> str:
        """Return the model version: the weights, and how Adaptive Mask Refinement is set where it is on."""
        if self.amr is None:
            return weights
        default = AMRConfig()
        named = [(item.name, getattr(self.amr, item.name)) for item in fields(AMRConfig)]
        other = [f"{name}={value}" for name, value in named if value != getattr(default, name)]
        return f"{weights}+amr" + (f"({','.join(other)})" if other else "")


def weights_version(session: Session) -> str:
    """Return a session's weights as "name-digest", 8 digits of it.

    A file's digest is that of its bytes, so that a finetuned decoder is another version; a registered name's is the
    model's fingerprint.
    """
    path = Path(session.model.name)
    if path.is_file():
        with path.open("rb") as file:
            return f"{path.stem}-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"
    return f"{session.model.name}-{session.model.fingerprint[:8]}"


def _as_mapping(extra_params: object) -> JsonView:
    """Label Studio sends text as it was typed, or what it says, or nothing."""
    value = extra_params
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"extra_params is no JSON ({error}): write it like {EXAMPLE}.") from error
    if value is None or value == "":
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"extra_params is a {type(value).__name__}; an object is needed, like {EXAMPLE}.")
    return value


def _amr(value: object) -> AMRConfig | None:
    if isinstance(value, bool):
        return AMRConfig() if value else None
    if isinstance(value, str):
        try:
            return AMRConfig.named(value)
        except ConfigError as error:
            raise ConfigError(
                f'"amr" may be true, false, a name or an object with fields of AMRConfig. {error}'
            ) from None
    if not isinstance(value, Mapping):
        raise ConfigError('"amr" must be true, false, a name such as "fast" or an object with fields of AMRConfig.')
    known = [item.name for item in fields(AMRConfig)]
    if unknown := [str(name) for name in value if name not in known]:
        raise ConfigError(f'"amr" has {", ".join(unknown)}; known are {", ".join(known)}.')
    for name in ("point_count", "iterations"):
        # Out of bounds it would keep a click waiting for hours.
        _whole(name, value.get(name, 1), MOST_AMR)
    try:
        return AMRConfig(**value)
    except OverflowError as error:
        raise ConfigError(f'"amr" has a number that is too large ({error}).') from error


def _output(value: object) -> OutputKind:
    if not isinstance(value, str) or value not in get_args(OutputKind):
        raise ConfigError(f'"output" must be one of {", ".join(get_args(OutputKind))}.')
    return cast(OutputKind, value)


def _everything(value: object) -> Mapping[str, float] | None:
    if isinstance(value, bool):
        return MappingProxyType({}) if value else None
    if not isinstance(value, Mapping):
        raise ConfigError(f'"everything" must be true, false or an object with {", ".join(EVERYTHING_SETTINGS)}.')
    settings: dict[str, float] = {}
    for name, number in value.items():
        if name not in EVERYTHING_SETTINGS:
            raise ConfigError(f'"everything" has {name!r}; known are {", ".join(EVERYTHING_SETTINGS)}.')
        if name in EVERYTHING_SWITCHES:
            settings[name] = _switch(name, number)
        elif name.endswith("_threshold"):
            settings[name] = _share(name, number)
        else:
            settings[name] = _whole(name, number, 64 if name == "points_per_side" else 2**31)
    return MappingProxyType(settings)


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f'"{name}" must be true or false.')
    return value


def _whole(name: str, value: object, most: int, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f'"{name}" must be a whole number from {least} to {most}.')
    return value


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f'"{name}" must be a number from 0 to 1.')
    return value


def _similar(value: object) -> float | None:
    if isinstance(value, bool):
        return LIKELY_SIMILARITY if value else None
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError('"similar" must be true, false or a number above 0, to 1: the least similarity.')
    return value


def _tolerance(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1000:
        raise ConfigError('"tolerance" must be a number of pixels from 0 to 1000.')
    return value


def _name(name: str, value: object, of: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f'"{name}" must be the name of a {of}.')
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "amr": _amr,
        "output": _output,
        "everything": _everything,
        "max_masks": lambda value: _whole("max_masks", value, 10_000),
        "label": lambda value: _name("label", value, "label"),
        "model": lambda value: _name("model", value, "model that the backend serves"),
        "tolerance": _tolerance,
        "smallest_part": lambda value: _whole("smallest_part", value, 2**31),
        "alternatives": lambda value: _whole("alternatives", value, MOST_ALTERNATIVES, least=0),
        "similar": _similar,
    }
)
