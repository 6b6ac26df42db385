"""The programs beside the package, which tests import by their path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def script(path: str) -> ModuleType:
    """A program, by its path from the repository's root without suffix, as "training/pack"."""
    name = path.replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / f"{path}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
