"""The errors refinesam raises on purpose.

::

    RefineSAMError
    ├── ImageError(ValueError)           unreadable, empty, wrong shape or dtype, NaN/inf only
    ├── PromptError(ValueError)          shape, label, outside the image, too many points, empty
    ├── WeightsError(RuntimeError)       unknown name, download, digest, keys or shapes that don't fit
    ├── DatasetError(ValueError)         an annotation file that doesn't say what its format promises
    ├── ConfigError(ValueError)          a setting that is unknown, of the wrong kind or out of range
    ├── OutputError(OSError)             a file that cannot be written, or would cost another one
    └── MissingExtraError(ImportError)   a dependency that one of the pip extras brings

Every message says what was given, what is needed, and what to do.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DatasetError",
    "ImageError",
    "MissingExtraError",
    "OutputError",
    "PromptError",
    "RefineSAMError",
    "WeightsError",
]


class RefineSAMError(Exception):
    """Base of every error that refinesam raises on purpose."""


class ImageError(RefineSAMError, ValueError):
    """An image that cannot be read, or an array that is not an image."""


class PromptError(RefineSAMError, ValueError):
    """A prompt that does not fit the image or the model."""


class WeightsError(RefineSAMError, RuntimeError):
    """Weights that are unknown, unreachable, damaged or made for another model."""


class DatasetError(RefineSAMError, ValueError):
    """An annotation file that does not say what its format promises."""


class ConfigError(RefineSAMError, ValueError):
    """A setting that is unknown, of the wrong kind or out of range."""


class OutputError(RefineSAMError, OSError):
    """A file that cannot be written, or that would cost another one."""


class MissingExtraError(RefineSAMError, ImportError):
    """A dependency is missing that one of the pip extras brings."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the package that is missing and the extra that installs it."""
        super().__init__(f'{package} is needed here and is not installed: pip install "refinesam[{extra}]".')
        self.package = package
        self.extra = extra
