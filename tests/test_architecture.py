"""The architecture's rules, each as a test that names the file at fault."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import refinesam
from refinesam import hosts

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "refinesam"
MODULES = sorted(SOURCE.rglob("*.py"))
RELATIVE = [path.relative_to(SOURCE).as_posix() for path in MODULES]
ADAPTERS = ("napari_plugin", "labelstudio_backend", "fiftyone_plugin")
ADAPTER_MODULES = [path for folder in ADAPTERS for path in sorted((ROOT / folder).rglob("*.py"))]
# Path from the root of every module, the adapters' too.
EVERYWHERE = [path.relative_to(ROOT).as_posix() for path in MODULES + ADAPTER_MODULES]

TORCH_BORDER = re.compile(r"(models|training)/.+\.py|(loading|predictor|automatic|similar|weights)\.py")
ADAPTERS_AND_HOSTS = ("refinesam_", "napari", "qtpy", "magicgui", "fastapi", "label_studio_sdk", "fiftyone")
# safetensors.torch imports torch itself, so it counts as torch.
TORCH = ("torch", "safetensors.torch")

# The aims are about 300 and 50 lines; this is where "about" ends.
LONGEST_MODULE = 400
LONGEST_FUNCTION = 60


def imported_names(source: str) -> Iterator[str]:
    """Every module that the source imports, inside functions too, dotted and absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_any(source: str, packages: tuple[str, ...]) -> list[str]:
    """Imports of one of the packages or of something inside it; a name that ends in _ stands for a prefix."""
    return [
        name
        for name in imported_names(source)
        if any(
            name == package or name.startswith(package if package.endswith("_") else f"{package}.")
            for package in packages
        )
    ]


def test_import_contracts_hold() -> None:
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout), done.stdout


@pytest.mark.parametrize("relative", RELATIVE)
def test_torch_stays_behind_its_border(relative: str) -> None:
    if not TORCH_BORDER.fullmatch(relative):
        assert imports_any((SOURCE / relative).read_text(encoding="utf-8"), TORCH) == []


@pytest.mark.parametrize("relative", RELATIVE)
def test_core_imports_no_adapter_and_no_host(relative: str) -> None:
    assert imports_any((SOURCE / relative).read_text(encoding="utf-8"), ADAPTERS_AND_HOSTS) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", ["torch"]),
        ("def f():\n    import torch.nn.functional as F", ["torch.nn.functional"]),
        ("from torch import nn", ["torch.nn"]),
        ("from safetensors.torch import load_file", ["safetensors.torch.load_file"]),
        ("from safetensors import torch", ["safetensors.torch"]),
        ("from safetensors import safe_open", []),
        ("import torchless", []),
    ],
)
def test_the_import_scan_sees_every_form(source: str, found: list[str]) -> None:
    assert imports_any(source, TORCH) == found


@pytest.mark.parametrize("relative", EVERYWHERE)
def test_modules_and_functions_stay_short(relative: str) -> None:
    source = (ROOT / relative).read_text(encoding="utf-8")
    lines = source.count("\n")
    assert lines <= LONGEST_MODULE, f"{relative} has {lines} lines: split it by what its parts are about."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{relative}: {node.name} has {length} lines."


@pytest.mark.parametrize("relative", EVERYWHERE)
def test_names_say_what_a_thing_is(relative: str) -> None:
    path = ROOT / relative
    parts = {part.strip("_") for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not parts & {"utils", "util", "helpers", "helper", "misc", "common"}, relative
    classes = [
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in classes if re.match(r"_?Base[A-Z]", name) or name.endswith("Manager")] == []


@pytest.mark.parametrize("relative", [path for path in EVERYWHERE if path.startswith(ADAPTERS)])
def test_adapters_use_public_names_only(relative: str) -> None:
    tree = ast.parse((ROOT / relative).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "refinesam":
            assert node.module in ("refinesam", "refinesam.hosts"), f"{relative} reaches into {node.module}"
            face = refinesam if node.module == "refinesam" else hosts
            assert {alias.name for alias in node.names} <= set(face.__all__)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "refinesam":
            assert node.attr in refinesam.__all__, f"{relative} uses refinesam.{node.attr}"


def test_importing_every_module_changes_no_global_setting() -> None:
    program = """
import importlib, json, logging, pkgutil, signal
import torch
import refinesam

def settings():
    return [
        torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"), torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), torch.initial_seed(),
        len(logging.root.handlers), logging.root.level, str(signal.getsignal(signal.SIGINT)),
    ]

before = settings()
names = [module.name for module in pkgutil.walk_packages(refinesam.__path__, "refinesam.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([len(names), before, settings()]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported, before, after = json.loads(done.stdout.splitlines()[-1])
    assert imported == len([name for name in RELATIVE if name != "__init__.py"])
    assert after == before
