"""Settings of any training run: sections of a TOML file, read and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from refinesam.errors import ConfigError, MissingExtraError
from refinesam.files import JsonObject

try:
    from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
except ImportError as error:
    raise MissingExtraError("pydantic", "train") from error

__all__ = [
    "Count",
    "Momentum",
    "Name",
    "Positive",
    "Probability",
    "Section",
    "changed_settings",
    "one_of",
    "read_settings",
    "read_toml",
    "refuse_changes",
    "validated",
]

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]


def one_of(names: Sequence[str], sentence: str) -> AfterValidator:
    """Check a name; the error is the sentence and the names that there are."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"{sentence} {', '.join(names)}")
        return name

    return AfterValidator(check)


class Section(BaseModel):
    """A table of a TOML file; unknown keys are refused."""

    # Strict: TOML has types, so a number in quotes is a mistake.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


def read_settings(path: str | Path, kind: type[SectionT]) -> SectionT:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is of the wrong kind or out of range.
    """
    return validated(path, read_toml(path), kind)


def read_toml(path: str | Path) -> JsonObject:
    """Read a TOML file without looking at its keys.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error}. Give the path of a TOML file.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}. Mend it at the place named.") from error


def validated(path: str | Path, values: JsonObject, kind: type[SectionT]) -> SectionT:
    """Check what was read from a file.

    Raises:
        ConfigError: a key is unknown, or a value is of the wrong kind or out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            _problem(".".join(map(str, e["loc"])), e["type"], e["msg"], e["input"]) for e in error.errors()
        )
        raise ConfigError(f"{path} does not fit: {problems}. Correct these keys.") from error


def changed_settings(written: Section, current: Section, ignored: frozenset[str]) -> list[str]:
    """Return the dotted names of the settings that differ, but for those ignored, by dotted name."""
    before, after = _by_name(written.model_dump()), _by_name(current.model_dump())
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name) and name not in ignored]


def refuse_changes(path: Path, changed: list[str]) -> None:
    """Raise ConfigError if what a checkpoint was written under differs from what is asked for now."""
    if changed:
        raise ConfigError(
            f"{path} was written with other values of {', '.join(changed)}. "
            "Restore them, or choose another output folder."
        )


def _by_name(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _by_name(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _problem(key: str, kind: str, message: str, value: object) -> str:
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"{key} is unknown"
    message = message.removeprefix("Value error, ")
    # A section that contradicts itself has no single value to show, and the whole file has no key.
    return f"{key or 'the file'}: {message}" if isinstance(value, dict) else f"{key} is {value!r}: {message}"
