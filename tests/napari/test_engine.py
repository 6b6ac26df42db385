from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from refinesam_napari.engine import Engine, Job, JobResult, Progress, Work

PATIENCE = 30.0  # seconds, of waiting for something that will come


class Bench:
    """An engine, what came out of it, and jobs that wait until they are let go."""

    def __init__(self, min_interval: float = 0.0) -> None:
        self.outcomes: list[JobResult] = []
        self.progress: list[Progress] = []
        self._came = threading.Condition()
        self.engine = Engine(self._arrived, self.progress.append, min_interval)

    def _arrived(self, outcome: JobResult) -> None:
        with self._came:
            self.outcomes.append(outcome)
            self._came.notify_all()

    def wait(self, count: int) -> list[Any]:
        """Wait for so many outcomes, and return their values."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.outcomes) >= count, PATIENCE)
            return [outcome.value for outcome in self.outcomes]

    def submit(self, value: Any, **settings: Any) -> None:
        self.engine.submit(Job(lambda work: value, **settings))

    def hold(self, value: Any = "held", check: bool = False, **settings: Any) -> Held:
        """Start a job that runs until it is let go."""
        held = Held(value, check)
        self.engine.submit(Job(held.run, **settings))
        assert held.begun.wait(PATIENCE)
        return held


class Held:
    def __init__(self, value: Any, check: bool) -> None:
        self.value, self.check = value, check
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.work: Work | None = None

    def run(self, work: Work) -> Any:
        self.work = work
        self.begun.set()
        assert self.let_go.wait(PATIENCE)
        if self.check:
            work.check()
        return self.value


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.engine.close()


def test_a_job_runs_on_another_thread_and_its_value_comes_back(bench: Bench) -> None:
    bench.engine.submit(Job(lambda work: threading.current_thread().name))
    assert bench.wait(1) == ["refinesam"]
    assert bench.outcomes[0].error is None and not bench.outcomes[0].cancelled
    assert threading.current_thread().name != "refinesam"


def test_of_many_that_come_while_one_runs_only_the_newest_is_done(bench: Bench) -> None:
    held = bench.hold("first")
    for number in range(10):
        bench.submit(number)
    held.let_go.set()
    assert bench.wait(2) == ["first", 9]
    assert bench.engine.started == 2 and not bench.engine.busy


def test_a_burst_starts_few_jobs_and_always_the_last() -> None:
    bench, begin = Bench(min_interval=0.12), time.monotonic()
    for number in range(10):
        bench.submit(number)
        time.sleep(0.04)
    while bench.engine.busy:
        time.sleep(0.01)
    # However slow the machine is: the first at once, then one in each interval.
    most = 1 + (time.monotonic() - begin) / 0.12
    values = bench.wait(bench.engine.started)
    assert values[0] == 0 and values[-1] == 9 and values == sorted(values)
    assert len(values) <= most
    bench.engine.close()


def test_jobs_start_no_closer_than_the_interval() -> None:
    bench, starts = Bench(min_interval=0.1), []
    for _ in range(3):
        bench.engine.submit(Job(lambda work: starts.append(time.monotonic())))
        bench.wait(len(bench.outcomes) + 1)
    assert all(later - earlier > 0.09 for earlier, later in zip(starts, starts[1:], strict=False))
    bench.engine.close()


def test_a_job_that_is_not_urgent_takes_no_urgent_ones_place(bench: Bench) -> None:
    held = bench.hold("first")
    bench.submit("clicks")
    bench.submit("ahead", urgent=False)
    held.let_go.set()
    assert bench.wait(2) == ["first", "clicks"]


def test_an_urgent_job_takes_the_place_of_one_that_is_not(bench: Bench) -> None:
    held = bench.hold("first")
    bench.submit("ahead", urgent=False)
    bench.submit("clicks")
    held.let_go.set()
    assert bench.wait(2) == ["first", "clicks"]


def test_a_job_of_another_subject_is_told_to_stop(bench: Bench) -> None:
    held = bench.hold(check=True, subject="plane 1")
    bench.submit("other", subject="plane 2")
    held.let_go.set()
    assert bench.wait(2) == [None, "other"]
    assert bench.outcomes[0].cancelled and not bench.outcomes[1].cancelled


@pytest.mark.parametrize(("subject", "urgent"), [("plane 1", True), ("plane 2", False)])
def test_a_job_is_let_finish_for_the_same_subject_or_for_one_not_urgent(
    bench: Bench, subject: str, urgent: bool
) -> None:
    held = bench.hold(check=True, subject="plane 1")
    bench.submit("next", subject=subject, urgent=urgent)
    # What is left of it may still not be worth doing.
    assert bench.engine.overtaken() is urgent
    held.let_go.set()
    assert bench.wait(2) == ["held", "next"]


def test_nothing_is_overtaken_before_a_newer_one_comes(bench: Bench) -> None:
    held = bench.hold()
    assert not bench.engine.overtaken()
    held.let_go.set()
    bench.wait(1)


def test_cancel_gives_up_the_running_and_the_waiting_job(bench: Bench) -> None:
    held = bench.hold(check=True)
    bench.submit("waiting", subject=None)
    bench.engine.cancel()
    held.let_go.set()
    bench.wait(1)
    assert bench.outcomes[0].cancelled
    bench.submit("afterwards")
    assert bench.wait(2) == [None, "afterwards"]


def test_cancel_with_nothing_to_do_is_nothing(bench: Bench) -> None:
    bench.engine.cancel()
    bench.submit("next")
    assert bench.wait(1) == ["next"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("x"), MemoryError()])
def test_an_error_is_an_outcome_and_the_thread_lives_on(bench: Bench, error: Exception) -> None:
    def fail(work: Work) -> None:
        raise error

    bench.engine.submit(Job(fail))
    bench.wait(1)
    assert bench.outcomes[0].error is error and not bench.outcomes[0].cancelled
    bench.submit("next")
    assert bench.wait(2) == [None, "next"]


def test_progress_is_told_and_a_stopped_job_ends_at_its_next_step(bench: Bench) -> None:
    def steps(work: Work) -> None:
        on_progress = work.step("Encoding")
        on_progress(1, 4)
        bench.engine.cancel()
        on_progress(2, 4)
        pytest.fail("went on")

    bench.engine.submit(Job(steps))
    bench.wait(1)
    assert bench.outcomes[0].cancelled and bench.progress == [Progress("Encoding", 1, 4)]


def test_busy_while_one_runs_or_waits(bench: Bench) -> None:
    assert not bench.engine.busy
    held = bench.hold()
    assert bench.engine.busy
    held.let_go.set()
    bench.wait(1)
    assert not bench.engine.busy


def test_close_stops_the_running_job_joins_the_thread_and_takes_no_more() -> None:
    bench = Bench()
    held = bench.hold(check=True)
    assert held.work is not None
    closing = threading.Thread(target=bench.engine.close)
    closing.start()
    assert held.work.stop.wait(PATIENCE)  # told to stop, not left to itself
    assert closing.is_alive()
    held.let_go.set()
    closing.join(PATIENCE)
    assert not closing.is_alive() and not bench.engine._thread.is_alive()
    bench.submit("too late")
    assert bench.outcomes == [] and not bench.engine.busy


def test_many_threads_may_submit_at_once(bench: Bench) -> None:
    def submit(value: int) -> Callable[[], None]:
        return lambda: [bench.submit((value, number)) for number in range(50)] and None

    threads = [threading.Thread(target=submit(value)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.submit("last")
    while "last" not in bench.wait(1):
        bench.wait(len(bench.outcomes) + 1)
    assert bench.outcomes[-1].value == "last" and bench.engine.started == len(bench.outcomes)
