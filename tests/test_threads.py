"""How many threads compute, and how they wait: asked of OpenMP itself, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from refinesam import threads
from refinesam.errors import ConfigError
from refinesam.images import write_png
from refinesam.threads import available_cores, settle_threads


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that what the test sets is taken away after it
        monkeypatch.delenv(name)


def openmp_of(command: list[str], **environment: str) -> str:
    """What OpenMP says of its settings when it starts in a process."""
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def segment(tmp_path: Path, weights: Path) -> list[str]:
    import numpy as np

    write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    return ["-m", "refinesam.cli", "segment", str(tmp_path / "a.png"), "--point", "3,3", "--weights", str(weights)]


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is that of the Linux builds")
def test_a_command_starts_openmp_passively_with_the_threads_asked_for(segment: list[str]) -> None:
    told = openmp_of([*segment, "--threads", "3"])
    assert "GOMP_SPINCOUNT = '0'" in told, "PASSIVE is also what it calls the default, with which it spins for a while"
    assert "OMP_NUM_THREADS = '3'" in told


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is that of the Linux builds")
def test_what_the_user_sets_stays(segment: list[str]) -> None:
    told = openmp_of(segment, OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="5")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in told and "GOMP_SPINCOUNT = '0'" not in told
    assert "OMP_NUM_THREADS = '5'" in told


def test_neither_import_nor_load_touch_the_environment() -> None:
    program = """
import os
before = {name: value for name, value in os.environ.items() if name.startswith(("OMP", "GOMP", "KMP", "MKL"))}
import refinesam, torch
count = torch.get_num_threads()
refinesam.load("builtin")
assert torch.get_num_threads() == count
refinesam.load("builtin", threads=count + 1)
assert torch.get_num_threads() == count + 1
after = {name: value for name, value in os.environ.items() if name.startswith(("OMP", "GOMP", "KMP", "MKL"))}
assert after == before, after
"""
    openmp_of(["-c", program])


def test_the_cores_are_shared_among_what_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    assert settle_threads(concurrency=2) == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert settle_threads(concurrency=100) == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert settle_threads() == 1, "which counts as set by the user now"
    assert settle_threads(7) == 7


def test_a_container_counts_its_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    for content, cores in (("250000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 64), ("", 64)):
        (tmp_path / "cpu.max").write_text(content)
        assert available_cores() == cores


@pytest.mark.parametrize("count", [0, -2, 1.5, True, "2"])
def test_a_number_of_threads_that_is_none(count: object) -> None:
    import refinesam

    with pytest.raises(ConfigError, match="threads"):
        settle_threads(count)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="threads"):
        refinesam.load("builtin", threads=count)  # type: ignore[arg-type]
