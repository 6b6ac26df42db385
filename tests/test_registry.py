"""The registry against a real HTTP server on this machine; no test leaves it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from refinesam import registry
from refinesam.download import file_digest
from refinesam.errors import WeightsError
from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS
from refinesam.registry import REGISTRY, WeightsEntry, cache_dir, entry_named, fetch, status, verify, weights_path

BODY = bytes(range(256)) * 4096  # 1 MiB: several chunks of a download.


class Handler(BaseHTTPRequestHandler):
    """Serves BODY, well or badly, by the first folder of the path."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "together":
            self.server.all_here.wait()
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", self.path.replace("/redirect/", "/good/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if kind in ("absent", "broken"):
            self.send_error(404 if kind == "absent" else 500)
            return
        body = {"truncated": BODY[: len(BODY) // 2], "page": b"<html>Sign in</html>", "flipped": BODY[:-1] + b"x"}
        sent = body.get(kind, BODY)
        self.send_response(200)
        if kind != "unmeasured":
            self.send_header("Content-Length", str(len(BODY) if kind == "truncated" else len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.all_here = threading.Barrier(3, timeout=60)

    def entry(self, kind: str) -> WeightsEntry:
        return entry_at(f"http://127.0.0.1:{self.server_port}/{kind}/tiny.pt")


def entry_at(url: str) -> WeightsEntry:
    digest = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    return WeightsEntry("tiny", "efficientsam_ti", url, digest, "Apache-2.0", len(BODY))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("REFINESAM_CACHE", str(folder))
    monkeypatch.delenv("REFINESAM_OFFLINE", raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


# The table.


def test_every_entry_is_complete() -> None:
    assert list(REGISTRY) == [
        "builtin",
        "efficientsam_ti",
        "efficientsam_s",
        "mobile_sam",
        "sam_vit_b",
        "sam_vit_l",
        "sam_vit_h",
        "vit_t_lm",
        "vit_b_lm",
        "vit_l_lm",
        "vit_t_em_organelles",
        "vit_b_em_organelles",
        "vit_l_em_organelles",
        "vit_b_histopathology",
        "vit_l_histopathology",
        "vit_h_histopathology",
        "vit_b_medical_imaging",
    ]
    for name, entry in REGISTRY.items():
        assert entry.name == name
        assert entry.variant in CONFIGS
        assert entry.note
        assert entry.packaged == (name == "builtin")
        if not entry.packaged:
            assert re.fullmatch(r"https://[\w./-]+(\.pt|\.pt\.zip|\.pth|/download)", str(entry.url))
            assert re.fullmatch(r"sha256:[0-9a-f]{64}|git-blob-sha1:[0-9a-f]{40}|xxh128:[0-9a-f]{32}", entry.digest)
            assert entry.path.parent == cache_dir()
            assert re.fullmatch(r"\w+(\.pt|\.pt\.zip|\.pth)", entry.path.name)
            assert (entry.size is None) != (entry.about is None)
            assert re.search(r"arXiv:\d{4}\.\d{5}|doi:10\.", entry.citation)
        if name in ("builtin", "efficientsam_ti", "efficientsam_s", "mobile_sam") or name.startswith("sam_"):
            assert entry.licence == "Apache-2.0"
        else:
            # Those in the BioImage.IO zoo have a licence, micro-sam states none for the others.
            assert entry.licence == ("CC-BY-4.0" if "bioimage.io" in str(entry.url) else "not stated")
    assert len({entry.path for entry in REGISTRY.values()}) == len(REGISTRY)
    assert len({entry.url for entry in REGISTRY.values()}) == len({entry.digest for entry in REGISTRY.values()}) == 17


@pytest.mark.parametrize(
    ("size", "about", "words"),
    [
        (22_756_986, None, "23 MB"),
        (None, 41_000_000, "about 41 MB"),
        (2_564_550_879, None, "2565 MB"),
        (None, 1_249_000_000, "about 1249 MB"),
        (None, None, ""),
    ],
)
def test_sizes_are_told_as_exactly_as_they_are_known(size: int | None, about: int | None, words: str) -> None:
    assert WeightsEntry("tiny", "hybrid_ti", None, "", "MIT", size, about=about).size_words == words


def test_a_line_says_what_weights_are_good_at_and_whether_they_are_here(server: Server) -> None:
    entry = replace(server.entry("good"), note="photographs", size=None, about=41_000_000)
    assert not entry.is_here
    assert entry.summary == "photographs; about 41 MB, not downloaded yet; licence: Apache-2.0"
    fetch(entry)
    assert entry.is_here
    assert entry.summary == "photographs; about 41 MB, downloaded; licence: Apache-2.0"
    assert replace(entry, about=None).summary == "photographs; downloaded; licence: Apache-2.0"
    assert REGISTRY["builtin"].summary.endswith("; 23 MB, comes with refinesam; licence: Apache-2.0")


@pytest.mark.parametrize("name", REGISTRY)
def test_every_variant_builds_with_the_keys_of_the_reference(name: str) -> None:
    with torch.device("meta"):
        state = build_model(CONFIGS[REGISTRY[name].variant]).state_dict()
    reference = Path(__file__).parent / "parity" / f"{REGISTRY[name].variant}.npz"
    if reference.exists():
        with np.load(reference) as stored:
            expected = dict(zip(stored["keys"].tolist(), stored["shapes"].tolist(), strict=True))
        assert {key: str(tuple(value.shape)) for key, value in state.items()} == expected
    size, about = REGISTRY[name].size, REGISTRY[name].about
    if REGISTRY[name].packaged:
        return
    # The file is float32, so the sizes have to be those of the parameters; a deflated archive is not much smaller.
    parameters = 4 * sum(value.numel() for key, value in state.items() if "running" not in key)
    assert (size or about) == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize(
    ("content", "algorithm", "digest"),
    [
        (b"", "git-blob-sha1", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),  # git's well-known empty blob
        (b"hello\n", "git-blob-sha1", "ce013625030ba8dba906f756967f9e9ca394464a"),
        (b"", "xxh128", "99aa06d3014798d86001c324468d497f"),  # of the algorithm's own test vectors
        (b"", "sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    ],
)
def test_digests_are_those_of_their_publishers(tmp_path: Path, content: bytes, algorithm: str, digest: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert file_digest(file, algorithm) == digest


def test_a_digest_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"'md5'.*sha256"):
        file_digest(tmp_path / "file", "md5")


def test_the_cache_folder_is_the_users_unless_chosen(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_dir() == cache
    monkeypatch.setenv("REFINESAM_CACHE", "~/weights")
    assert cache_dir() == Path.home() / "weights"
    monkeypatch.setenv("REFINESAM_CACHE", "weights")
    assert cache_dir() == Path.cwd() / "weights"
    monkeypatch.delenv("REFINESAM_CACHE")
    assert cache_dir().is_absolute()
    assert "refinesam" in cache_dir().parts


def test_unknown_names_list_the_known_ones() -> None:
    for call in (entry_named, status, verify, fetch):
        with pytest.raises(WeightsError, match=r"'sam_vit_x'.*builtin.*sam_vit_h"):
            call("sam_vit_x")


# Fetching.


@pytest.mark.parametrize("kind", ["good", "redirect", "unmeasured"])
def test_fetch_downloads_once(server: Server, cache: Path, kind: str) -> None:
    entry = server.entry(kind)
    assert status(entry) == "missing"
    path = fetch(entry)
    assert path == cache / "tiny.pt"
    assert path.read_bytes() == BODY
    assert files_in(cache) == ["tiny.pt"]
    assert status(entry) == "cached"
    asked = len(server.requests)
    assert fetch(entry) == weights_path(entry) == verify(entry) == path
    assert len(server.requests) == asked


def test_fetch_verifies_git_blob_ids(server: Server) -> None:
    blob = hashlib.sha1(b"blob %d\0" % len(BODY) + BODY).hexdigest()
    entry = replace(server.entry("good"), digest=f"git-blob-sha1:{blob}", size=None)
    assert fetch(entry).read_bytes() == BODY
    with pytest.raises(WeightsError, match=f"has git-blob-sha1 {blob} instead of 0000"):
        verify(replace(entry, digest=f"git-blob-sha1:{'0' * 40}"))


def test_files_of_one_name_have_names_of_their_own(server: Server, cache: Path) -> None:
    entry = replace(server.entry("good"), digest=f"xxh128:{xxhash.xxh128(BODY).hexdigest()}", file="microsam_tiny.pt")
    assert fetch(entry) == cache / "microsam_tiny.pt"
    assert status(server.entry("good")) == "missing" and status(entry) == "cached"
    entry.path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(WeightsError, match="has xxh128 [0-9a-f]{32} instead of"):
        verify(entry)


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
def test_others_may_read_what_was_fetched(server: Server) -> None:
    previous = os.umask(0o022)
    try:
        assert fetch(server.entry("good")).stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(previous)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("absent", "404"),
        ("broken", "500"),
        ("truncated", "could not be downloaded|bytes instead of 1,048,576"),
        ("page", "has 20 bytes instead of 1,048,576"),
        ("flipped", "has sha256 [0-9a-f]{64} instead of"),
    ],
)
def test_a_bad_download_leaves_nothing_and_says_what_to_do(server: Server, cache: Path, kind: str, reason: str) -> None:
    entry = server.entry(kind)
    with pytest.raises(WeightsError, match=reason) as caught:
        fetch(entry)
    assert entry.url in str(caught.value)
    assert str(cache / "tiny.pt") in str(caught.value)
    assert files_in(cache) == []
    assert status(entry) == "missing"


def test_a_connection_that_breaks_off_is_said_so(server: Server, cache: Path) -> None:
    port = server.server_port
    with pytest.raises(WeightsError, match=rf"\(the connection to 127.0.0.1:{port} broke off\)\. Download .* yourself"):
        fetch(server.entry("truncated"))
    assert files_in(cache) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/tiny.pt", "http:///tiny.pt", "nowhere/tiny.pt"])
def test_without_a_server_the_manual_step_is_named(cache: Path, url: str) -> None:
    with socket.socket() as unused:  # A port on which nobody listens: bound, but not listening.
        unused.bind(("127.0.0.1", 0))
        entry = entry_at(url.format(port=unused.getsockname()[1]))
        with pytest.raises(WeightsError, match="could not be downloaded.*yourself and put it at") as caught:
            weights_path(entry)
    assert str(cache / "tiny.pt") in str(caught.value)
    assert "Max retries" not in str(caught.value) and "HTTPConnection" not in str(caught.value)
    assert files_in(cache) == []


def test_offline_nothing_is_asked_for(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = server.entry("good")
    monkeypatch.setenv("REFINESAM_OFFLINE", "1")
    with pytest.raises(WeightsError, match="REFINESAM_OFFLINE.*yourself and put it at") as caught:
        fetch(entry)
    assert entry.url in str(caught.value)
    assert str(entry.path) in str(caught.value)
    assert server.requests == []
    # The manual step works.
    cache.mkdir()
    entry.path.write_bytes(BODY)
    assert fetch(entry) == entry.path
    entry.path.unlink()
    monkeypatch.setenv("REFINESAM_OFFLINE", "0")
    assert fetch(entry).read_bytes() == BODY


def test_without_download_only_the_cache_is_looked_at(server: Server) -> None:
    entry = server.entry("good")
    with pytest.raises(WeightsError, match="is missing.*refinesam weights fetch tiny"):
        weights_path(entry, download=False)
    assert server.requests == []


def test_an_interrupted_download_leaves_nothing(server: Server, cache: Path) -> None:
    seen: list[int] = []

    def interrupt(done: int, total: int | None) -> None:
        seen.extend(os.path.getsize(cache / name) for name in files_in(cache))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.entry("good"), interrupt)
    assert 0 < seen[0] < len(BODY)
    assert files_in(cache) == []


@pytest.mark.parametrize(("kind", "total"), [("good", len(BODY)), ("unmeasured", None)])
def test_progress_is_reported(server: Server, kind: str, total: int | None) -> None:
    calls: list[tuple[int, int | None]] = []
    fetch(server.entry(kind), lambda done, total: calls.append((done, total)))
    assert {call[1] for call in calls} == {total}
    if total is not None:
        done = [call[0] for call in calls]
        assert done == sorted(done)
        assert done[-1] == total
        assert len(set(done)) > 2


def test_damaged_weights_are_fetched_again(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = server.entry("good")
    cache.mkdir()
    entry.path.write_bytes(BODY[:-1])
    assert status(entry) == "damaged"
    with pytest.raises(WeightsError, match="is damaged: .*1,048,575 bytes instead of.*refinesam weights fetch tiny"):
        verify(entry)
    monkeypatch.setenv("REFINESAM_OFFLINE", "yes")
    with pytest.raises(WeightsError, match="is damaged and REFINESAM_OFFLINE"):
        fetch(entry)
    monkeypatch.delenv("REFINESAM_OFFLINE")
    with pytest.raises(WeightsError, match="404"):
        fetch(server.entry("absent"))
    assert entry.path.read_bytes() == BODY[:-1]  # A failed fetch takes nothing away.
    assert fetch(entry).read_bytes() == BODY
    assert status(entry) == "cached"


def test_leftovers_of_killed_processes_go_those_at_work_stay(server: Server, cache: Path) -> None:
    cache.mkdir()
    for name, age in ((".tiny.old.pt", 2 * 86400), (".tiny.new.pt", 60), (".other.old.pt", 2 * 86400)):
        (cache / name).touch()
        then = (cache / name).stat().st_mtime - age
        os.utime(cache / name, (then, then))
    fetch(server.entry("good"))
    assert files_in(cache) == [".other.old.pt", ".tiny.new.pt", "tiny.pt"]


def test_processes_may_fetch_at_once(server: Server, cache: Path) -> None:
    program = """
import sys
from refinesam.registry import WeightsEntry, fetch
print(fetch(WeightsEntry("tiny", "efficientsam_ti", sys.argv[1], sys.argv[2], "Apache-2.0")))
assert "torch" not in sys.modules
"""
    entry = server.entry("together")  # Answers only when all three have asked.
    command = [sys.executable, "-c", program, str(entry.url), entry.digest]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=90)[0] for process in processes]
    assert outputs == [f"{cache / 'tiny.pt'}\n"] * 3
    assert len(server.requests) == 3
    assert files_in(cache) == ["tiny.pt"]
    assert status(entry) == "cached"


def _file_in_place_of_the_folder(cache: Path) -> None:
    cache.write_text("a file")


def _folder_in_place_of_the_file(cache: Path) -> None:
    (cache / "tiny.pt" / "inside").mkdir(parents=True)


@pytest.mark.parametrize("obstacle", [_file_in_place_of_the_folder, _folder_in_place_of_the_file])
def test_a_cache_that_cannot_be_written_is_said_so(
    server: Server, cache: Path, obstacle: Callable[[Path], None]
) -> None:
    obstacle(cache)
    with pytest.raises(WeightsError, match=r"could not be written to .*tiny\.pt.*REFINESAM_CACHE"):
        fetch(server.entry("good"))
    assert files_in(cache) in ([], ["tiny.pt"])


# Files and the weights that come with refinesam.


def test_paths_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"anything")
    assert weights_path(file) == weights_path(str(file)) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert weights_path("~/mine.safetensors") == file


@pytest.mark.parametrize("given", ["", "sam", "no/such/file.pt", "nul\0byte", "x" * 5000, "~nobody/x.pt"])
def test_neither_name_nor_file(given: str) -> None:
    with pytest.raises(WeightsError, match=r"neither the name of known weights \(builtin, .*\) nor an existing file"):
        weights_path(given)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        weights_path(tmp_path)


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "assets"
    folder.mkdir()
    monkeypatch.setattr(registry, "ASSETS", folder)
    return folder


def test_packaged_weights_are_described_by_the_file_beside_them(assets: Path) -> None:
    file = assets / "builtin.safetensors"
    entry = registry._packaged_entry("builtin")
    assert status(entry) == "missing"
    with pytest.raises(WeightsError, match=r"builtin is missing.*Install refinesam anew.*efficientsam_ti"):
        weights_path(entry)

    file.write_bytes(BODY)
    assert status(entry) == "damaged"
    with pytest.raises(WeightsError, match=r"no digest to compare with \(builtin\.json"):
        fetch(entry)

    described = {"sha256": hashlib.sha256(BODY).hexdigest(), "size": len(BODY)}
    (assets / "builtin.json").write_text(json.dumps(described))
    entry = registry._packaged_entry("builtin")
    assert (entry.variant, entry.size) == ("hybrid_ti", len(BODY))
    assert status(entry) == "packaged"
    assert weights_path(entry) == weights_path(entry, download=False) == file

    file.write_bytes(BODY[:-1] + b"x")
    assert status(entry) == "damaged"
    with pytest.raises(WeightsError, match="builtin is damaged.*sha256"):
        verify(entry)

    (assets / "builtin.json").write_text(json.dumps(described | {"variant": "efficientsam_ti"}))
    assert registry._packaged_entry("builtin").variant == "efficientsam_ti"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"sha256": 1, "size": "1", "variant": null}'])
def test_a_broken_description_harms_no_import(assets: Path, text: str) -> None:
    (assets / "builtin.safetensors").write_bytes(BODY)
    (assets / "builtin.json").write_text(text)
    assert status(registry._packaged_entry("builtin")) == "damaged"


@pytest.mark.skipif(not REGISTRY["builtin"].path.exists(), reason="this tree has no built-in weights yet")
def test_the_builtin_weights_are_the_described_ones() -> None:
    assert status("builtin") == "packaged"
    assert verify("builtin").stat().st_size <= 25_000_000
