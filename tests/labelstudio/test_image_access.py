"""From what a task says to pixels: everything that is taken, and everything that is refused."""

from __future__ import annotations

import base64
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from fake_label_studio import LEGACY, FakeLabelStudio, running
from refinesam import ConfigError, ImageError
from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.image_access import FRESH_SECONDS, FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.responses import ServerError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray = PIXELS, **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **settings)
    return buffer.getvalue()


PNG = encoded()


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with running() as server:
        server.files["/data/upload/1/a.png"] = PNG
        yield server


@pytest.fixture
def access(studio: FakeLabelStudio, tmp_path: Path) -> Iterator[ImageAccess]:
    server = LabelStudioServer(studio.url, LEGACY, first_wait_s=0.001)
    yield ImageAccess(server, FileCache(tmp_path / "cache"))
    server.close()


@pytest.fixture
def alone(tmp_path: Path) -> ImageAccess:
    return ImageAccess(None, FileCache(tmp_path / "cache"))


def test_upload_is_fetched_once(studio: FakeLabelStudio, access: ImageAccess) -> None:
    for value in ("/data/upload/1/a.png", f"{studio.url}/data/upload/1/a.png", " /data/upload/1/a.png\n"):
        assert np.array_equal(image_for_task(value, access), PIXELS)
    assert studio.count("GET /data/upload/1/a.png") == 1


def test_eight_threads_fetch_once(studio: FakeLabelStudio, access: ImageAccess) -> None:
    barrier = threading.Barrier(8)

    def read(_: int) -> np.ndarray:
        barrier.wait()
        return image_for_task("/data/upload/1/a.png", access)

    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(pixels, PIXELS) for pixels in pool.map(read, range(8)))
    assert studio.count("GET /data/upload/1/a.png") == 1


def test_exif_turns_the_image(studio: FakeLabelStudio, access: ImageAccess) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    studio.files["/data/upload/1/turned.png"] = encoded(exif=exif)
    assert np.array_equal(image_for_task("/data/upload/1/turned.png", access), np.rot90(PIXELS, -1))


def test_what_may_change_under_its_name_is_fetched_again_in_time(studio: FakeLabelStudio, access: ImageAccess) -> None:
    value = "/data/local-files/?d=photos/a.png"
    studio.files[value] = PNG
    image_for_task(value, access)
    image_for_task(value, access)
    assert studio.count("GET /data/local-files/") == 1
    (path,) = access.cache.folder.iterdir()
    long_ago = path.stat().st_mtime - FRESH_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    studio.files[value] = encoded(PIXELS[::-1].copy())
    assert np.array_equal(image_for_task(value, access), PIXELS[::-1])


def test_cloud_address_goes_through_the_server(studio: FakeLabelStudio, access: ImageAccess) -> None:
    uri = "s3://bucket/folder/ä b.png"
    packed = base64.urlsafe_b64encode(uri.encode()).decode()
    studio.files[f"/tasks/7/resolve/?fileuri={quote(packed)}"] = PNG
    assert np.array_equal(image_for_task(uri, access, 7), PIXELS)
    with pytest.raises(ServerError, match="404"):
        image_for_task(uri, access, 8)
    with pytest.raises(ImageError, match="give its id"):
        image_for_task(uri, access)


def test_prefix_of_the_server(tmp_path: Path, studio: FakeLabelStudio) -> None:
    studio.files["/label/data/upload/1/a.png"] = PNG
    server = LabelStudioServer(f"{studio.url}/label", LEGACY)
    access = ImageAccess(server, FileCache(tmp_path / "cache"))
    assert np.array_equal(image_for_task("/label/data/upload/1/a.png", access), PIXELS)
    assert np.array_equal(image_for_task("/data/upload/1/a.png", access), PIXELS)
    server.close()


def test_data_uris(alone: ImageAccess) -> None:
    packed = base64.b64encode(PNG).decode()
    for value in (
        f"data:image/png;base64,{packed}",
        f"DATA:;base64,{quote(packed)}",
        f"data:image/png,{quote(PNG)}",
    ):
        assert np.array_equal(image_for_task(value, alone), PIXELS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64", "empty"),
        ("data:image/png;base64,a", "can't be unpacked"),
        ("data:image/png;base64,YWJj", "no image"),
        ("data:image/png;base64," + "A" * 10_000, "larger than 1000 bytes"),
        ("data:image/png;base64," + "A" * 2_000, "larger than 1000 bytes"),
    ],
)
def test_data_uris_that_are_no_images(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        image_for_task(value, ImageAccess(None, FileCache(tmp_path), max_bytes=1000))


REFUSED = [
    "/etc/passwd",
    "etc/passwd",
    "../data/upload/1/a.png",
    "C:\\data\\a.png",
    "/data/../etc/passwd",
    "/data/%2e%2e/api/projects/1",
    "/data/..\\api",
    "/api/projects/1",
    "/user/logout",
    "//127.0.0.1/data/a.png",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "file:/etc/passwd",
    "javascript:alert(1)",
    "http://169.254.169.254/latest/meta-data",
    "https://images.example.org/a.png",
    "http://[::1",
    "http://",
    "\0",
    "",
]


@pytest.mark.parametrize("value", REFUSED)
def test_refused(value: str, studio: FakeLabelStudio, access: ImageAccess, alone: ImageAccess) -> None:
    for where in (access, alone):
        with pytest.raises(ImageError):
            image_for_task(value, where, 1)
    for path in ("/api/projects/1", "/data/../api/projects/1", "/user/logout/"):
        with pytest.raises(ImageError, match="refused"):
            image_for_task(studio.url + path, access, 1)
    assert studio.requests == []


@pytest.mark.parametrize("value", [None, 3, ["/data/upload/1/a.png"], {"a": 1}, True])
def test_not_even_text(value: object, access: ImageAccess) -> None:
    with pytest.raises(ImageError, match="names no image"):
        image_for_task(value, access)


def test_hosts_that_are_allowed(tmp_path: Path, studio: FakeLabelStudio) -> None:
    with running() as elsewhere:
        elsewhere.files["/open/a.png"] = PNG
        host = f"127.0.0.1:{elsewhere.server_port}"
        server = LabelStudioServer(studio.url, LEGACY, allowed_hosts=[host])
        access = ImageAccess(server, FileCache(tmp_path))
        assert np.array_equal(image_for_task(f"http://{host}/open/a.png", access), PIXELS)
        server.close()


def test_no_server(alone: ImageAccess) -> None:
    with pytest.raises(ImageError, match="LABEL_STUDIO_URL"):
        image_for_task("/data/upload/1/a.png", alone)


def test_not_an_image_is_called_by_the_tasks_words(studio: FakeLabelStudio, access: ImageAccess) -> None:
    studio.files["/data/upload/1/a.png"] = b"<html>"
    with pytest.raises(ImageError, match=r"^/data/upload/1/a\.png: the content is no image"):
        image_for_task("/data/upload/1/a.png", access)


def test_local_roots(tmp_path: Path, studio: FakeLabelStudio, access: ImageAccess) -> None:
    first, second, outside = tmp_path / "first", tmp_path / "second", tmp_path / "outside"
    for folder in (first, second / "photos", outside):
        folder.mkdir(parents=True)
        (folder / "a b.png").write_bytes(PNG)
    (second / "link.png").symlink_to(outside / "a b.png")
    (second / "inside.png").symlink_to(second / "photos" / "a b.png")
    os.mkfifo(second / "pipe.png")
    local = ImageAccess(access.server, access.cache, (first, second), max_bytes=10_000)
    for relative in ("a b.png", "photos/a b.png", "photos/../photos/a b.png", "inside.png"):
        assert np.array_equal(image_for_task(f"/data/local-files/?d={quote(relative)}", local), PIXELS)
    assert studio.requests == []
    absolute = str(outside / "a b.png")
    for relative in ("../outside/a b.png", "link.png", absolute, "", "photos", "pipe.png", "a\0b", "x/" * 5000):
        with pytest.raises(ImageError):
            image_for_task(f"/data/local-files/?d={quote(relative)}", local)
    assert studio.requests == []
    studio.files["/data/local-files/?d=elsewhere.png"] = PNG
    assert np.array_equal(image_for_task("/data/local-files/?d=elsewhere.png", local), PIXELS)
    assert studio.count("GET /data/local-files/") == 1
    small = ImageAccess(None, access.cache, (first,), max_bytes=10)
    with pytest.raises(ImageError, match="larger than 10 bytes"):
        image_for_task("/data/local-files/?d=a%20b.png", small)
    with pytest.raises(ConfigError, match="no folder"):
        ImageAccess(None, access.cache, (tmp_path / "missing",))


def test_limit_of_a_download(tmp_path: Path, access: ImageAccess) -> None:
    with pytest.raises(ImageError, match="larger than 20 bytes"):
        image_for_task("/data/upload/1/a.png", ImageAccess(access.server, access.cache, max_bytes=20))
    assert list(access.cache.folder.iterdir()) == []


def test_cache_is_bounded_and_drops_what_was_used_longest_ago(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, capacity=300)
    (tmp_path / "notes.txt").write_bytes(b"x" * 1000)
    fetched = []

    def get(name: str, size: int = 100) -> bool:
        def fetch(path: Path) -> None:
            fetched.append(name)
            path.write_bytes(b"x" * size)

        before = len(fetched)
        path = cache.get(name, fetch)
        assert path.stat().st_size == size
        return len(fetched) > before

    for age, name in ((30, "a"), (20, "b"), (10, "c")):
        assert get(name)
        path = cache.get(name, lambda _: None)
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert not get("a")  # used just now
    assert get("d")
    assert get("b")  # was dropped
    assert not get("a")
    assert get("large", 1000)
    assert not get("large", 1000)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.image")) == 1000
    assert (tmp_path / "notes.txt").exists()


def test_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    cache = FileCache(tmp_path)

    def fetch(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("broken off")

    with pytest.raises(OSError, match="broken off"):
        cache.get("a", fetch)
    assert list(tmp_path.iterdir()) == []


def test_image_dropped_before_it_is_read_is_fetched_again(tmp_path: Path, studio: FakeLabelStudio) -> None:
    class Forgetful(FileCache):
        dropped = 0

        def get(self, *arguments: object, **settings: object) -> Path:
            path = super().get(*arguments, **settings)  # type: ignore[arg-type]
            if self.dropped < 2:
                self.dropped += 1
                path.unlink()
            return path

    server = LabelStudioServer(studio.url, LEGACY)
    access = ImageAccess(server, Forgetful(tmp_path))
    assert np.array_equal(image_for_task("/data/upload/1/a.png", access), PIXELS)
    assert studio.count("GET /data/upload/1/a.png") == 3
    server.close()
