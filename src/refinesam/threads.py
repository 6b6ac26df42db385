"""How many threads compute and how they wait: what a command or a server settles before torch starts.

OpenMP's threads wait for each other in a loop, by default, and on a machine with other work they loop while those they
wait for have no core. Waiting passively costs little on a quiet machine and saves most of the time on a busy one
(`benchmarks/busy.py`). The policy is read once, when OpenMP starts; so it is no business of an import.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from refinesam.errors import ConfigError

__all__ = ["available_cores", "check_threads", "settle_threads", "wait_passively"]

WAIT_POLICY, NUM_THREADS = "OMP_WAIT_POLICY", "OMP_NUM_THREADS"
# What a container may use, of cgroups' second version: microseconds in each period, and the period.
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def settle_threads(threads: int | None = None, *, concurrency: int = 1) -> int:
    """Settle how this process's threads compute and wait; for a command's or server's start, before torch is imported.

    Sets OMP_WAIT_POLICY, where the user has not, and OMP_NUM_THREADS for this process and those it starts.

    Args:
        threads: that one computation uses; None takes OMP_NUM_THREADS where the user has set it, and else the cores
            that this process may use, shared among what runs at once.
        concurrency: computations that run at once, such as a server's answers.

    Returns:
        The number of threads, for `refinesam.load(threads=)`.

    Raises:
        ConfigError: a number that is no whole number of at least 1.
    """
    wait_passively()
    if threads is None:
        given = os.environ.get(NUM_THREADS, "")
        threads = int(given) if given.isdecimal() and int(given) else max(1, available_cores() // concurrency)
    os.environ[NUM_THREADS] = str(check_threads(threads))
    return threads


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has set OMP_WAIT_POLICY."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")


def available_cores() -> int:
    """Return how many cores this process may use: of the machine's those it is bound to and its container's share."""
    with suppress(AttributeError):  # macOS and Windows bind no processes
        cores = len(os.sched_getaffinity(0))
        with suppress(OSError, ValueError):
            quota, period = QUOTA.read_text().split()
            cores = min(cores, max(1, int(quota) // int(period)))  # int("max") is a ValueError: no limit
        return cores
    return os.cpu_count() or 1


def check_threads(threads: object) -> int:
    """Return a number of threads; ConfigError unless it is a whole number of at least 1."""
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ConfigError(f"threads is {threads!r}; give a whole number of at least 1, or None.")
    return threads
