"""LabelStudioServer against a server on a loopback port: tokens, restarts, files, and what is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fake_label_studio import LEGACY, PERSONAL, FakeLabelStudio, jwt, running
from refinesam import ConfigError, ImageError
from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.hosts import check_peer, host_of, origin_of
from refinesam_labelstudio.responses import ServerError

REFRESH = "POST /api/token/refresh/"
IMPORT = "POST /api/projects/1/import/predictions"


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with running() as server:
        yield server


@pytest.fixture
def server(studio: FakeLabelStudio) -> Iterator[LabelStudioServer]:
    server = LabelStudioServer(studio.url, PERSONAL, first_wait_s=0.001, attempts=4, timeout_s=5)
    yield server
    server.close()


def legacy(studio: FakeLabelStudio, **settings: object) -> LabelStudioServer:
    return LabelStudioServer(studio.url, LEGACY, first_wait_s=0.001, timeout_s=5, **settings)  # type: ignore[arg-type]


def test_personal_token_is_traded_once_and_never_sent(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    assert server.token_kind == "personal"
    assert server.get_task(3) == studio.tasks[2]
    assert server.project(1)["label_config"] == "<View/>"
    assert studio.count(REFRESH) == 1
    assert all(PERSONAL not in (header or "") for _, header in studio.requests)


def test_access_token_is_renewed_before_it_expires(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    studio.life = 0.0  # over at once, and it says so itself
    server._renew()
    studio.life = 300.0
    before = len(studio.requests)
    server.get_task(1)
    assert [line for line, _ in studio.requests[before:]] == [REFRESH, "GET /api/tasks/1"]
    server.get_task(1)
    assert studio.count(REFRESH) == 2


def test_rejected_access_token_is_renewed_on_401(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    server.get_task(1)
    studio.issued.clear()  # as after a restart with another secret
    before = len(studio.requests)
    assert server.get_task(2) == studio.tasks[1]
    assert [line for line, _ in studio.requests[before:]] == ["GET /api/tasks/2", REFRESH, "GET /api/tasks/2"]


def test_many_threads_renew_once(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    server.get_task(1)
    studio.issued.clear()
    barrier = threading.Barrier(8)

    def ask(_: int) -> object:
        barrier.wait()
        return server.get_task(1)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [studio.tasks[0]] * 8
    assert studio.count(REFRESH) == 2


def test_legacy_token(studio: FakeLabelStudio) -> None:
    server = legacy(studio)
    assert server.token_kind == "legacy"
    assert server.get_task(1) == studio.tasks[0]
    assert studio.requests == [("GET /api/tasks/1", f"Token {LEGACY}")]
    server.close()


def test_refused_tokens(studio: FakeLabelStudio) -> None:
    for token in ("f" * 40, jwt(token_type="refresh", jti="revoked")):
        server = LabelStudioServer(studio.url, token, first_wait_s=0.001)
        with pytest.raises(ServerError, match="Account & Settings") as caught:
            server.get_task(1)
        assert caught.value.status == 401
        assert token not in str(caught.value)
        assert token not in repr(server)
        server.close()


@pytest.mark.parametrize(
    ("url", "token", "message"),
    [
        ("label.example.org", LEGACY, "http or https"),
        ("ftp://label.example.org", LEGACY, "http or https"),
        ("http://user@label.example.org", LEGACY, "no user name"),
        ("http://[::1", LEGACY, "no address"),
        ("http://localhost", "", "0 characters"),
        ("http://localhost", "f" * 39, "39 characters"),
        ("http://localhost", "a.b", "neither"),
        ("http://localhost", jwt(token_type="access"), "access token"),
    ],
)
def test_address_or_token_that_can_be_none(url: str, token: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelStudioServer(url, token)


@pytest.mark.parametrize("failing", [[503, 503, 503], [502], [429, 504], [None], [None, 503, None]])
def test_reading_outlives_a_restart(
    studio: FakeLabelStudio, server: LabelStudioServer, failing: list[int | None]
) -> None:
    server.get_task(1)
    studio.failing = failing
    assert server.get_task(2) == studio.tasks[1]
    assert not studio.failing


def test_attempts_end(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    server.get_task(1)
    studio.failing = [503] * 9
    with pytest.raises(ServerError, match="503") as caught:
        server.get_task(2)
    assert caught.value.retry
    assert studio.count("GET /api/tasks/2") == 4


def test_what_is_wrong_is_not_repeated(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    with pytest.raises(ServerError, match="404") as caught:
        server.get_task(99)
    assert (caught.value.status, caught.value.retry) == (404, False)
    assert studio.count("GET /api/tasks/99") == 1


def test_nothing_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = LabelStudioServer(f"http://127.0.0.1:{port}", LEGACY, attempts=2, first_wait_s=0.001)
    with pytest.raises(ServerError, match="check that Label Studio runs") as caught:
        server.import_predictions(1, [{"task": 1}])
    assert caught.value.retry
    assert not caught.value.may_have_run
    server.close()


def test_import_is_repeated_only_if_it_was_not_taken(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    rows = [{"task": 1, "result": [], "score": 0.5, "model_version": "v"}]
    server.get_task(1)
    studio.failing = [503, 429]
    assert server.import_predictions(1, rows) == 1
    assert studio.stored == rows
    for failing in (502, 504, 500, None):
        studio.failing = [failing]
        before = studio.count(IMPORT)
        with pytest.raises(ServerError) as caught:
            server.import_predictions(1, rows)
        assert caught.value.may_have_run
        assert studio.count(IMPORT) == before + 1
    assert studio.stored == rows


def test_lost_renewal_leaves_no_doubt_about_the_import(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    studio.failing = [None, 502]  # both hit the renewal
    assert server.import_predictions(1, [{"task": 1}]) == 1
    assert len(studio.stored) == 1


def test_pages_of_tasks_end(studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    pages = [server.tasks(1, page, page_size=2) for page in (1, 2, 3, 4)]
    assert [[task["id"] for task in page] for page in pages] == [[1, 2], [3, 4], [5], []]


def test_download_by_path_prefix_and_address(tmp_path: Path, studio: FakeLabelStudio) -> None:
    studio.files["/label/data/upload/1/a.png"] = b"content"
    server = LabelStudioServer(f"{studio.url}/label/", LEGACY)
    for address in ("/data/upload/1/a.png", "/label/data/upload/1/a.png", f"{studio.url}/label/data/upload/1/a.png"):
        server.download(address, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == b"content"
    server.close()


def test_download_renews_and_outlives_a_restart(
    tmp_path: Path, studio: FakeLabelStudio, server: LabelStudioServer
) -> None:
    studio.files["/data/upload/1/a.png"] = b"x" * 100_000
    server.get_task(1)
    studio.issued.clear()
    studio.failing = [503, None]
    server.download("/data/upload/1/a.png", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"x" * 100_000


def test_download_is_limited(tmp_path: Path, studio: FakeLabelStudio, server: LabelStudioServer) -> None:
    studio.files["/data/upload/1/a.png"] = b"x" * 1001
    server.download("/data/upload/1/a.png", tmp_path / "a", max_bytes=1001)
    with pytest.raises(ImageError, match="larger than 1000 bytes"):
        server.download("/data/upload/1/a.png", tmp_path / "a", max_bytes=1000)


def test_token_stays_with_the_server(tmp_path: Path, studio: FakeLabelStudio) -> None:
    with running() as elsewhere:
        elsewhere.files["/open/a.png"] = b"there"
        studio.redirects["/tasks/1/resolve/"] = f"{elsewhere.url}/open/a.png?signature=s3cret"
        server = legacy(studio, allowed_hosts=[f"127.0.0.1:{elsewhere.server_port}"])
        server.download("/tasks/1/resolve/?fileuri=abc", tmp_path / "a")
        server.download(f"{elsewhere.url}/open/a.png", tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"there"
        assert [header for _, header in elsewhere.requests] == [None, None]
        del elsewhere.files["/open/a.png"]
        with pytest.raises(ServerError) as caught:
            server.download("/tasks/1/resolve/?fileuri=abc", tmp_path / "a")
        assert "s3cret" not in str(caught.value)
        server.close()


def test_token_does_not_come_back_with_a_redirect(tmp_path: Path, studio: FakeLabelStudio) -> None:
    studio.files["/data/secret.png"] = b"secret"
    with running() as elsewhere:
        elsewhere.redirects["/open/a.png"] = f"{studio.url}/data/secret.png"
        allowed = [f"127.0.0.1:{elsewhere.server_port}", f"127.0.0.1:{studio.server_port}"]
        server = legacy(studio, allowed_hosts=allowed)
        with pytest.raises(ServerError, match="401"):
            server.download(f"{elsewhere.url}/open/a.png", tmp_path / "a")
        server.close()


def test_hosts_that_are_not_allowed_are_not_asked(tmp_path: Path, studio: FakeLabelStudio) -> None:
    with running() as elsewhere:
        elsewhere.files["/open/a.png"] = b"there"
        studio.redirects["/data/upload/1/a.png"] = f"{elsewhere.url}/open/a.png"
        server = legacy(studio, allowed_hosts=["127.0.0.1", "images.example.org"])
        with pytest.raises(ImageError, match="private address"):
            server.download("/data/upload/1/a.png", tmp_path / "a")
        for address in (
            f"{elsewhere.url}/open/a.png",
            f"http://localhost:{studio.server_port}/data/upload/1/a.png",
            f"https://127.0.0.1:{studio.server_port}/data/upload/1/a.png",
            "http://images.example.org.evil.example/a.png",
            "http://images.example.org:8080/a.png",
        ):
            with pytest.raises(ImageError, match="isn't allowed"):
                server.download(address, tmp_path / "a")
        for address in ("ftp://images.example.org/a.png", "file:///etc/passwd", "http://images.example.org@evil/a"):
            with pytest.raises(ImageError, match="can't be used"):
                server.download(address, tmp_path / "a")
        assert elsewhere.requests == []
        server.close()


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://example.org/a", "http://[::1", "http:///a"])
def test_redirects_to_nowhere(tmp_path: Path, studio: FakeLabelStudio, location: str) -> None:
    studio.redirects["/data/upload/1/a.png"] = location
    server = legacy(studio)
    with pytest.raises((ImageError, ServerError)):
        server.download("/data/upload/1/a.png", tmp_path / "a")
    server.close()


def test_redirects_end(tmp_path: Path, studio: FakeLabelStudio) -> None:
    studio.redirects["/data/a.png"] = "/data/a.png"
    studio.redirects["/data/b.png"] = "/user/login/?next=/data/b.png"
    server = legacy(studio)
    with pytest.raises(ServerError, match="too many"):
        server.download("/data/a.png", tmp_path / "a")
    with pytest.raises(ServerError, match="asks to log in"):
        server.download("/data/b.png", tmp_path / "a")
    server.close()


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "::1", "fe80::1%eth0", "fd00::1", "0.0.0.0",
                "::ffff:127.0.0.1", "100.64.0.1", "224.0.0.1"]
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    with pytest.raises(ImageError, match="private"):
        check_peer("host", address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses(address: str) -> None:
    check_peer("host", address)


def test_origins() -> None:
    assert origin_of("HTTP://Example.org:80/a?b") == "http://example.org"
    assert origin_of("http://[::1]:8080/a") == "http://[::1]:8080"
    assert host_of("https://example.org:8443/a") == "example.org:8443"
