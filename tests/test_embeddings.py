"""Embeddings in memory and on disk: bounds, order of eviction, threads, and files that are not what they should be."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fakes import FakeFeatures
from refinesam.embeddings import EmbeddingCache, EmbeddingStore


def one_byte() -> FakeFeatures:
    return FakeFeatures(np.zeros(1, np.uint8))


def test_cache_never_exceeds_its_bytes_and_drops_the_least_recently_used() -> None:
    cache = EmbeddingCache(100)
    sizes = {"a": 40, "b": 40, "c": 40, "huge": 101}

    def get(key: str) -> None:
        cache.get(key, lambda: FakeFeatures(np.zeros(sizes[key], np.uint8)))
        assert cache.nbytes <= 100

    for key in ("a", "b", "a", "c", "huge"):
        get(key)
    assert cache.misses == 4
    get("a")
    get("c")
    assert cache.misses == 4
    get("b")
    assert cache.misses == 5


def test_threads_that_want_one_image_share_one_encode() -> None:
    release = threading.Event()
    calls = []

    def compute() -> FakeFeatures:
        calls.append(1)
        release.wait(5)
        return one_byte()

    cache = EmbeddingCache(10)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cache.get, "key", compute) for _ in range(8)]
        release.set()
        found = {id(f.result()) for f in futures}
    assert len(calls) == 1
    assert len(found) == 1


def test_a_failed_encode_is_not_remembered() -> None:
    cache = EmbeddingCache(10)

    def fail() -> FakeFeatures:
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.get("key", fail)
    assert cache.get("key", one_byte).nbytes == 1


def test_who_waits_does_not_inherit_a_failure() -> None:
    cache = EmbeddingCache(10)
    begun, fail = threading.Event(), threading.Event()
    running, most, calls = 0, 0, 0

    def cancelled() -> FakeFeatures:
        begun.set()
        assert fail.wait(30)
        raise KeyboardInterrupt

    def computed() -> FakeFeatures:
        nonlocal running, most, calls
        running, calls = running + 1, calls + 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return one_byte()

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cache.get, "key", cancelled)
        assert begun.wait(30)
        waiting = [pool.submit(cache.get, "key", computed) for _ in range(7)]
        # Time to begin waiting; a thread that comes later finds the same.
        time.sleep(0.1)
        assert not any(future.done() for future in waiting)
        fail.set()
        with pytest.raises(KeyboardInterrupt):
            first.result()
        assert len({id(future.result()) for future in waiting}) == 1
    assert (calls, most) == (1, 1)
    assert cache.misses == 2


def test_every_waiting_thread_may_fail_in_turn() -> None:
    cache = EmbeddingCache(10)
    barrier = threading.Barrier(6)

    def fail(number: int) -> FakeFeatures:
        raise ValueError(number)

    def ask(number: int) -> None:
        barrier.wait(30)
        cache.get("key", lambda: fail(number))

    with ThreadPoolExecutor(6) as pool:
        errors = [future.exception(30) for future in [pool.submit(ask, i) for i in range(6)]]
    assert [str(error) for error in errors] == list("012345"), "each gets its own error"
    assert cache.get("key", one_byte).nbytes == 1


def key(number: int) -> str:
    return f"{number:032x}-{0:032x}"


def arrays(number: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {"a": rng.random((2, 3, 4), np.float32), "b": rng.integers(0, 255, 1000, np.uint8)}


def assert_same(found: object, expected: dict[str, np.ndarray]) -> None:
    assert isinstance(found, dict) and found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_store_gives_back_what_was_written(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "new" / "folder", 10**6)
    assert store.read(key(1)) is None
    store.write(key(1), arrays(1))
    store.write(key(2), arrays(2))
    assert_same(EmbeddingStore(store.folder, 10**6).read(key(1)), arrays(1))
    assert_same(store.read(key(2)), arrays(2))
    assert len(list(store.folder.iterdir())) == 2, "no temporary file stays"


def flipped(content: bytes) -> bytes:
    return content[:-7] + bytes([content[-7] ^ 1]) + content[-6:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[:-100],
        lambda content: content + b"more",
        lambda content: b"\x89PNG" + content,
        lambda content: b"\xff" * 8 + content[8:],
        flipped,
    ],
    ids=["empty", "header cut", "data cut", "appended", "another format", "header of 2^64 bytes", "one bit"],
)
def test_a_damaged_file_is_missing_and_gets_replaced(tmp_path: Path, damage: object) -> None:
    store = EmbeddingStore(tmp_path, 10**6)
    store.write(key(1), arrays())
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert store.read(key(1)) is None
    store.write(key(1), arrays())
    assert_same(store.read(key(1)), arrays())


def test_a_foreign_file_is_missing(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, 10**6)
    store.write(key(1), arrays())
    (tmp_path / f"{key(1)}.safetensors").rename(tmp_path / f"{key(2)}.safetensors")
    save_file(arrays(), tmp_path / f"{key(3)}.safetensors")
    (tmp_path / f"{key(4)}.safetensors").mkdir()
    assert [store.read(key(i)) for i in (1, 2, 3, 4)] == [None] * 4


def test_store_deletes_its_longest_unused_files_and_no_others(tmp_path: Path) -> None:
    others = [tmp_path / "model.safetensors", tmp_path / "notes.txt", tmp_path / f"{key(0)}.safetensors.bak"]
    for path in others:
        path.write_bytes(bytes(10**5))
    left_over = tmp_path / f".{key(9)}.k1ll3d_x.safetensors"
    left_over.write_bytes(bytes(3000))
    os.utime(left_over, ns=(0, 0))
    paths = {i: tmp_path / f"{key(i)}.safetensors" for i in range(4)}
    store = EmbeddingStore(tmp_path, 10**4)
    for i in range(3):
        store.write(key(i), arrays(i))
        os.utime(paths[i], ns=(i + 1, i + 1))
    assert left_over.exists()
    store.capacity = 3 * paths[0].stat().st_size
    assert store.read(key(0)) is not None
    store.write(key(3), arrays(3))
    assert [i for i, path in paths.items() if path.exists()] == [0, 2, 3], "1 was used longest ago"
    assert not left_over.exists()
    assert all(path.exists() for path in others)


def test_an_embedding_larger_than_the_store_costs_no_other_its_place(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, 2000)
    store.write(key(1), arrays())
    store.write(key(2), {"a": np.zeros(2001, np.uint8)})
    assert store.read(key(1)) is not None
    assert store.read(key(2)) is None


def test_a_full_disk_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # A limit on the size of files fails writes as a full disk does.
    resource = pytest.importorskip("resource")
    store = EmbeddingStore(tmp_path, 10**6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        store.write(key(1), arrays())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert list(tmp_path.iterdir()) == []
    assert store.read(key(1)) is None


def test_threads_may_share_a_store(tmp_path: Path) -> None:
    def use(number: int) -> bool:
        store = EmbeddingStore(tmp_path, 5000)
        store.write(key(number % 5), arrays(number % 5))
        found = store.read(key((number + 1) % 5))
        return found is None or bool((found["b"] == arrays((number + 1) % 5)["b"]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(60)))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000
