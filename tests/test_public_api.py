"""The public face: which names there are, that each resolves, and that asking for none of them loads nothing heavy."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pytest

import refinesam
from refinesam import hosts

PUBLIC_NAMES = [
    "AMRConfig",
    "Answer",
    "AutomaticMaskGenerator",
    "Capabilities",
    "ConfigError",
    "DatasetError",
    "EncodedImage",
    "INTENSITY_POLICIES",
    "ImageError",
    "Item",
    "MissingExtraError",
    "OutputError",
    "Prediction",
    "Prompt",
    "PromptError",
    "Record",
    "RefineSAMError",
    "RefinementReport",
    "Session",
    "SimilarMaskGenerator",
    "WeightsError",
    "__version__",
    "as_rgb",
    "box_from_mask",
    "coco_annotation",
    "decode_rle",
    "encode_rle",
    "load",
    "mask_iou",
    "polygons_from_mask",
    "read_image",
    "segment_batch",
    "settle_threads",
]
# For authors of adapters alone.
HOST_NAMES = [
    "LIKELY_SIMILARITY",
    "MOST_EXAMPLES",
    "BatchResults",
    "CocoScores",
    "JobImages",
    "ObjectPrompt",
    "WeightsEntry",
    "bootstrap_interval",
    "boundary_iou",
    "check_outputs",
    "coco_scores",
    "fetch",
    "known_weights",
    "match_images",
    "prompts_by_image",
    "replacing",
    "size_of",
    "variant_of",
    "write_json",
    "write_outputs",
]
# Top-level modules that cost seconds, or need a display, and so may not come with the import or with --help.
HEAVY = {"torch", "cv2", "scipy", "skimage", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6", "napari", "tkinter"}

REPORT_MODULES = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
# The installed command's own entry point, so that the test sees what a user's shell starts.
SHOW_HELP = """
import contextlib, importlib.metadata, io, sys
(command,) = importlib.metadata.entry_points(group="console_scripts", name="refinesam")
sys.argv = ["refinesam", *{arguments!r}]
shown = io.StringIO()
with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
    command.load()()
assert "Usage" in shown.getvalue(), shown.getvalue()
"""


def loaded_by(program: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after the program."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{REPORT_MODULES}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_all_is_pinned() -> None:
    assert refinesam.__all__ == PUBLIC_NAMES
    assert hosts.__all__ == HOST_NAMES
    assert not set(PUBLIC_NAMES) & set(HOST_NAMES)


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_name_resolves_to_the_object_of_its_module(name: str) -> None:
    value = getattr(refinesam, name)
    if name == "INTENSITY_POLICIES":
        assert value == ("percentile", "minmax", "as_is")
    elif name != "__version__":
        assert getattr(sys.modules[value.__module__], name) is value
        assert name in sys.modules[value.__module__].__all__
        assert value.__name__ == name
        assert value.__doc__


@pytest.mark.parametrize("name", HOST_NAMES)
def test_a_name_for_hosts_resolves_and_is_documented(name: str) -> None:
    value = getattr(hosts, name)
    if name.isupper():
        assert value == {"LIKELY_SIMILARITY": 0.5, "MOST_EXAMPLES": 5}[name]
    else:
        assert value.__name__ == name
        assert value.__doc__
    assert name == "CocoScores" or f"`{name}`" in (hosts.__doc__ or "")


def test_version_is_the_distributions() -> None:
    assert refinesam.__version__ == importlib.metadata.version("refinesam")


def test_dir_lists_every_public_name() -> None:
    assert set(PUBLIC_NAMES) <= set(dir(refinesam))
    assert set(HOST_NAMES) <= set(dir(hosts))


def test_unknown_name_says_which_names_there_are() -> None:
    with pytest.raises(
        AttributeError, match="'refinesam' has no attribute 'Predictor'; its public names are"
    ) as caught:
        _ = refinesam.Predictor  # type: ignore[attr-defined]
    named = str(caught.value).partition("names are ")[2].rstrip(".").split(", ")
    assert named == sorted(set(PUBLIC_NAMES) - {"__version__"})
    with pytest.raises(ImportError, match="Predictor"):
        exec("from refinesam import Predictor")
    with pytest.raises(AttributeError, match=r"'refinesam.hosts' has no attribute 'load'.*\breplacing\b"):
        _ = hosts.load


def test_every_error_is_a_refinesam_error() -> None:
    errors = [getattr(refinesam, name) for name in PUBLIC_NAMES if name.endswith("Error")]
    assert len(errors) == 8
    assert all(issubclass(error, refinesam.RefineSAMError) for error in errors)


def test_import_loads_nothing_heavy() -> None:
    loaded = loaded_by("import refinesam, refinesam.hosts; refinesam.PromptError; dir(refinesam)")
    assert "refinesam" in loaded
    assert not loaded & (HEAVY | {"numpy"})


def test_a_prompt_needs_numpy_alone() -> None:
    assert not loaded_by("from refinesam import Prompt; Prompt(points=[[1, 2]])") & HEAVY


def test_torch_comes_with_what_reads_weights_alone() -> None:
    others = sorted(set(PUBLIC_NAMES) - {"load", "AutomaticMaskGenerator", "SimilarMaskGenerator"})
    for_hosts = sorted(set(HOST_NAMES) - {"variant_of"})
    program = f"from refinesam import {', '.join(others)}; from refinesam.hosts import {', '.join(for_hosts)}"
    assert "torch" not in loaded_by(program)
    assert "torch" in loaded_by("from refinesam import load")


@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["weights", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded_by(SHOW_HELP.format(arguments=arguments)) & HEAVY
