from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from refinesam_napari.autosave import Autosave, autosave_folder, discard_autosave, pending_autosaves
from refinesam_napari.document import Document, PlanePrompts, Point, SegmentedObject
from refinesam_napari.geometry import FREE, Plane, PlaneMask
from refinesam_napari.storage import SavedSession, read_session, write_session

PLANE = Plane((0, 1), (FREE, FREE))
NEVER = 3600.0


def state(number: int) -> SavedSession:
    """Return a session that differs from the others in all its parts, large enough that writing takes a while."""
    pixels = np.random.default_rng(number).random((400, 400)) > 0.5
    prompts = {PLANE: PlanePrompts((Point(number, 0.5),))}
    objects = {number: SegmentedObject(number, prompts, (PLANE,), "prompts", 1 / number)}
    return SavedSession(
        Document(prompts, number, objects),
        {(number, PLANE): PlaneMask(number, 3, pixels)},
        {"name": "cells", "shape": [4000, 4000]},
        {"number": number},
    )


def number_in(path: Path) -> int:
    return int(read_session(path).settings["number"])


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("It never came true.")


def timers_left() -> int:
    """Return how many timers are still waiting, after those that were cancelled had time to notice."""
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(60)
    return sum(timer.is_alive() for timer in timers)


@pytest.fixture
def autosave(tmp_path: Path) -> Iterator[Autosave]:
    autosave = Autosave(tmp_path / "made" / "when needed", "cells", NEVER)
    yield autosave
    autosave.remove()


def test_the_newest_request_is_written(autosave: Autosave) -> None:
    for number in (1, 2, 3):
        autosave.request(state(number))
    assert not autosave.path.exists()
    assert autosave.flush()
    assert number_in(autosave.path) == 3
    written = autosave.path.stat().st_mtime_ns
    assert autosave.flush()
    assert autosave.path.stat().st_mtime_ns == written


def test_it_is_written_in_the_background(tmp_path: Path) -> None:
    autosave = Autosave(tmp_path, "cells", wait_s=0.01)
    for number in (1, 2):
        autosave.request(state(number))
        eventually(lambda number=number: autosave.path.exists() and number_in(autosave.path) == number)
    autosave.remove()


def test_requests_without_a_pause_do_not_put_it_off(tmp_path: Path) -> None:
    autosave = Autosave(tmp_path, "cells", wait_s=0.2)
    saved = state(1)

    def written_while_requesting() -> bool:
        autosave.request(saved)
        return autosave.path.exists()

    eventually(written_while_requesting)
    autosave.remove()


def test_the_timer_keeps_no_process_alive(autosave: Autosave) -> None:
    autosave.request(state(1))
    assert all(thread.daemon for thread in threading.enumerate() if isinstance(thread, threading.Timer))


def test_close_writes_and_ends(tmp_path: Path) -> None:
    autosave = Autosave(tmp_path, "cells", NEVER)
    autosave.request(state(1))
    autosave.close()
    autosave.request(state(2))
    autosave.flush()
    assert number_in(autosave.path) == 1
    assert timers_left() == 0


def test_remove_leaves_nothing_whatever_is_under_way(tmp_path: Path) -> None:
    for number in range(1, 30):
        autosave = Autosave(tmp_path, "cells", wait_s=0.0)
        autosave.request(state(number))
        autosave.remove()
        autosave.request(state(number))
    assert timers_left() == 0
    assert list(tmp_path.iterdir()) == []


def test_two_sessions_of_one_image_do_not_meet(tmp_path: Path) -> None:
    first, second = (Autosave(tmp_path, "cells", NEVER) for _ in range(2))
    first.request(state(1))
    second.request(state(2))
    first.close()
    second.close()
    assert [number_in(first.path), number_in(second.path)] == [1, 2]


def test_any_key_makes_a_file_name(tmp_path: Path) -> None:
    autosave = Autosave(tmp_path, "../a b/ü*:" + "x" * 1000, NEVER)
    autosave.request(state(1))
    autosave.close()
    assert [path for path, _, _ in pending_autosaves(tmp_path)] == [autosave.path]
    assert autosave.path.parent == tmp_path


def test_a_folder_that_cannot_be_written_is_reported_and_tried_again(tmp_path: Path) -> None:
    messages: list[str] = []
    (tmp_path / "folder").write_text("a file")
    autosave = Autosave(tmp_path / "folder", "cells", 0.01, messages.append)
    autosave.request(state(1))
    eventually(lambda: bool(messages))
    assert not autosave.flush()
    assert len(messages) == 2
    assert str(autosave.path) in messages[0]
    assert "save it to another place soon" in messages[0]
    (tmp_path / "folder").unlink()
    assert autosave.flush()
    assert number_in(autosave.path) == 1
    autosave.remove()
    assert len(messages) == 2


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow beyond 10 kB."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_and_leaves_the_older_file(tmp_path: Path) -> None:
    messages: list[str] = []
    autosave = Autosave(tmp_path, "cells", NEVER, messages.append)
    autosave.request(state(1))
    assert autosave.flush()
    autosave.request(state(2))
    with full_disk():
        assert not autosave.flush()
    assert len(messages) == 1
    assert "File too large" in messages[0]
    assert number_in(autosave.path) == 1
    assert list(tmp_path.iterdir()) == [autosave.path]
    autosave.close()
    assert number_in(autosave.path) == 2


def test_a_session_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    messages: list[str] = []
    autosave = Autosave(tmp_path, "cells", NEVER, messages.append)
    autosave.request(SavedSession(Document(), {}, {"name": "no shape"}))
    assert not autosave.flush()
    assert "shape: Field required" in messages[0]


def test_whoever_is_told_of_an_error_may_flush(tmp_path: Path) -> None:
    answers: list[bool] = []
    (tmp_path / "folder").write_text("a file")

    def on_error(message: str) -> None:
        if not answers:
            (tmp_path / "folder").unlink()
            answers.append(autosave.flush())

    autosave = Autosave(tmp_path / "folder", "cells", NEVER, on_error)
    autosave.request(state(1))
    autosave.flush()
    assert answers == [True]
    autosave.remove()


def test_pending_are_those_that_nobody_writes_to(tmp_path: Path) -> None:
    assert pending_autosaves(tmp_path / "none") == []
    older, newer, still_open = (Autosave(tmp_path, key, NEVER) for key in ("older", "newer", "open"))
    for number, autosave in enumerate((older, newer, still_open), start=1):
        autosave.request(state(number))
        autosave.flush()
    os.utime(older.path, (1000, 1000))
    older.close()
    newer.close()
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / ".hidden.json").write_bytes(newer.path.read_bytes())
    (tmp_path / "other.txt").write_text("no autosave")
    (first, image, saved_at), second = pending_autosaves(tmp_path)
    assert (first, image) == (newer.path, {"name": "cells", "shape": [4000, 4000]})
    assert abs(datetime.now(UTC) - saved_at) < timedelta(days=1)
    assert (second[0], second[2]) == (older.path, datetime(1970, 1, 1, 0, 16, 40, tzinfo=UTC))
    still_open.remove()


def test_discarding_takes_what_a_killed_process_left(tmp_path: Path) -> None:
    autosave = Autosave(tmp_path, "cells", NEVER)
    autosave.request(state(1))
    autosave.close()
    (tmp_path / f".{autosave.path.stem}.abcd1234.json").write_text("{")
    (tmp_path / ".of another.abcd1234.json").write_text("{")
    discard_autosave(autosave.path)
    assert [path.name for path in tmp_path.iterdir()] == [".of another.abcd1234.json"]


def test_the_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINESAM_AUTOSAVE_DIR", str(tmp_path))
    assert autosave_folder() == tmp_path
    monkeypatch.delenv("REFINESAM_AUTOSAVE_DIR")
    assert autosave_folder().parts[-2:] == ("refinesam", "napari_autosave")


# ---------------------------------------------------------------- other processes


def save_for_ever(folder: str) -> None:
    """Autosave one state after the other, and tell which are certainly on disk."""
    autosave = Autosave(folder, "cells", wait_s=0.0)
    for number in itertools.count(1):
        autosave.request(state(number))
        if autosave.flush():
            os.write(1, f"{number}\n".encode())


@contextmanager
def saving(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that has autosaved at least once, and goes on."""
    with subprocess.Popen([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"1\n"
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="a killed process's files are locked for a while")
def test_a_process_killed_at_any_moment_leaves_its_newest_state(tmp_path: Path) -> None:
    moments = random.Random(0)
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        with saving(folder) as process:
            assert pending_autosaves(folder) == []  # Its own process still uses it.
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
            assert process.stdout is not None
            acknowledged = [1, *(int(line) for line in process.stdout.read().split(b"\n")[:-1])]
        ((path, image, _),) = pending_autosaves(folder)
        assert image["name"] == "cells"
        number = number_in(path)
        # The one after the last acknowledged may have been finished, too.
        assert number in (acknowledged[-1], acknowledged[-1] + 1)
        write_session(tmp_path / "expected.json", state(number))
        assert path.read_bytes() == (tmp_path / "expected.json").read_bytes()
        discard_autosave(path)
        assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there are no zombies")
def test_a_dead_process_that_is_still_listed_has_left_its_autosave(tmp_path: Path) -> None:
    with saving(tmp_path) as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert len(pending_autosaves(tmp_path)) == 1


def test_a_process_that_inherited_the_number_does_not_hide_an_autosave(tmp_path: Path) -> None:
    autosave = Autosave(tmp_path, "cells", NEVER)
    autosave.request(state(1))
    autosave.close()
    with saving(tmp_path / "another") as process:
        path = autosave.path.rename(tmp_path / f"cells.{process.pid}.0123.json")
        assert pending_autosaves(tmp_path) == []
        os.utime(path, (1000, 1000))
        assert [pending for pending, _, _ in pending_autosaves(tmp_path)] == [path]


if __name__ == "__main__":
    save_for_ever(sys.argv[1])
