"""A test that crashes its process fails or runs again, and never keeps the suite from its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CONFTEST = """
import pytest
from groups import Scheduling

def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.path.stem))
        item.add_marker(pytest.mark.flaky(reruns=1))
"""
# Groups that are done before the crash, one of a single test among them, and tests of the group that come after it.
MODULES = {
    f"test_{number:02}.py": "def test_a(): pass\n" + "def test_b(): pass\n" * (number % 2) for number in range(12)
}
CRASHING = """
import os
from pathlib import Path

import pytest

@pytest.mark.parametrize("number", range(20))
def test_it(number):
    crashes = Path("crashes")
    left = int(crashes.read_text())
    if number == 15 and left:
        crashes.write_text(str(left - 1))
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("crashes", "result"), [(1, "38 passed, 1 rerun"), (2, "1 failed, 37 passed, 1 rerun")])
def test_what_a_crashed_process_had_not_done_is_done(crashes: int, result: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "test_z.py").write_text(CRASHING)
    (tmp_path / "crashes").write_text(str(crashes))
    plugins = ["-p", "xdist", "-p", "rerunfailures", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", *plugins],
        cwd=tmp_path,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result in run.stdout.splitlines()[-1], run.stdout + run.stderr
