"""What is given away: wheel and sdist are really built, with the build backend that is installed."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "src/refinesam",
    "napari_plugin/refinesam_napari",
    "labelstudio_backend/refinesam_labelstudio",
    "fiftyone_plugin/refinesam_fiftyone",
)
RELATIVE_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def build(source: Path, target: Path, kind: str) -> Path:
    """Build without an environment of its own, so without a network."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sdist = build(ROOT, tmp_path_factory.mktemp("sdist"), "sdist")
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked as an installer does it."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def contents(wheel: Path) -> dict[str, str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_sdist_builds_the_same_wheel(wheel: Path, unpacked_sdist: Path, tmp_path: Path) -> None:
    assert contents(build(unpacked_sdist, tmp_path, "wheel")) == contents(wheel)


def test_every_file_of_every_package_travels(wheel: Path) -> None:
    travelling = set(contents(wheel))
    for package in PACKAGES:
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert len(files) > 15
        assert {path.relative_to((ROOT / package).parent).as_posix() for path in files} <= travelling


def test_the_training_recipes_travel(wheel: Path) -> None:
    recipes = {path.name for path in (ROOT / "training").glob("*.toml")}
    assert {"builtin.toml", "sami_efficientsam_ti.toml", "finetune_efficientsam_ti.toml"} <= recipes
    prefix = ".data/data/share/refinesam/training/"
    assert recipes <= {name.partition(prefix)[2] for name in contents(wheel) if prefix in name}


def test_the_sdist_holds_what_the_readme_points_at(unpacked_sdist: Path) -> None:
    targets = RELATIVE_LINK.findall((unpacked_sdist / "README.md").read_text("utf-8"))
    assert len(targets) > 5
    assert [target for target in targets if not (unpacked_sdist / target).is_file()] == []
    for needed in ("Makefile", "constraints.txt", "constraints-labelstudio.txt", "tests/conftest.py", "LICENSE"):
        assert (unpacked_sdist / needed).is_file(), needed


def test_nothing_on_a_package_index_points_into_the_void(installed: Path) -> None:
    (metadata,) = installed.glob("*.dist-info/METADATA")
    message = BytesParser().parsebytes(metadata.read_bytes())
    description = str(message.get_payload())
    assert message["Description-Content-Type"] == "text/markdown"
    assert "## Five lines of Python" in description and "docs/demo.png" in description
    assert RELATIVE_LINK.findall(description) == []


RESOLVE = """
import sys
from importlib import import_module
from pathlib import Path
folder, module, name = sys.argv[1:]
sys.path.insert(0, folder)
found = import_module(module)
assert Path(found.__file__).is_relative_to(folder), found.__file__
# npe2's entry points name a file beside the module instead of an attribute in it.
assert Path(found.__file__).with_name(name).is_file() if name.endswith(".yaml") else hasattr(found, name), name
"""


def test_every_entry_point_leads_somewhere(installed: Path) -> None:
    (listed,) = installed.glob("*.dist-info/entry_points.txt")
    parser = ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(listed, "utf-8")
    points = [value for section in parser.sections() for value in parser[section].values()]
    assert len(points) >= 3
    for point in points:
        module, _, name = point.partition(":")
        command = [sys.executable, "-P", "-c", RESOLVE, str(installed), module.strip(), name.strip()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{point}: {done.stderr}"
