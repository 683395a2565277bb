"""Published weights from a real server on this machine, with all that goes wrong."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import parity
from parity.errors import DownloadError
from parity.files import download
from parity.files.download import cache_folder
from resnet_spec import PublishedWeights

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """What the server shall do, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    ranges: bool = True
    cut_after: int | None = None
    always_cut: bool = False
    length: bool | str = True
    busy: list[int] = field(default_factory=list)
    moved_to: str = ""
    drips: str = ""
    requests: list[str | None] = field(default_factory=list)
    secrets: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    wanted = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            wanted.requests.append(asked)
            wanted.secrets.append(self.headers.get("Authorization"))
            if wanted.busy or wanted.status != 200:
                self.send_response(wanted.busy.pop() if wanted.busy else wanted.status)
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if wanted.moved_to:
                self.send_response(302)
                self.send_header("Location", wanted.moved_to)
                self.end_headers()
                return
            if wanted.drips == "head":
                self._drip(b"HTTP/1.1 200 OK\r\nX: ")
                return
            body, start = wanted.content, 0
            if asked and wanted.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore
                if start >= len(body):
                    self.send_error(416)
                    return
            body = body[start:]
            self.send_response(206 if start else 200)
            if wanted.length:
                length = str(len(body)) if wanted.length is True else wanted.length
                self.send_header("Content-Length", length)
            self.end_headers()
            if wanted.drips == "body":
                self._drip(b"")
                return
            if wanted.cut_after is not None:
                body = body[: wanted.cut_after]
                if not wanted.always_cut:
                    wanted.cut_after = None
            self.wfile.write(body)

        def _drip(self, first: bytes) -> None:
            self.wfile.write(first)
            with suppress(OSError):
                while wanted.drips:
                    self.wfile.write(b"x")
                    time.sleep(0.05)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        wanted.url = f"http://127.0.0.1:{http.server_port}/models"
        yield wanted
        wanted.drips = ""
        http.shutdown()


WEIGHTS = PublishedWeights(
    model="resnet18", name="IMAGENET1K_V1", sha256=SHA256[:8], resize=256, top1=69.758
)


def _get(server: Server, folder: Path, **settings) -> Path:
    return parity.download(WEIGHTS, folder=folder, url=server.url, **settings)


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once_and_told_about(server: Server, tmp_path: Path):
    told: list[tuple[int, int | None]] = []
    path = _get(server, tmp_path / "new", progress=lambda *n: told.append(n))
    assert path.read_bytes() == CONTENT
    assert path.name == f"resnet18-{SHA256[:8]}.pth"
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 2
    assert _get(server, tmp_path / "new") == path
    assert len(server.requests) == 1
    assert _left(tmp_path / "new") == [path.name]


def test_a_connection_cut_in_the_middle_is_resumed(server: Server, tmp_path: Path):
    server.cut_after = 300_000
    assert _get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-"]
    assert len(_left(tmp_path)) == 1


def test_a_server_without_ranges_is_asked_for_all_again(server: Server, tmp_path: Path):
    server.cut_after, server.ranges = 300_000, False
    assert _get(server, tmp_path).read_bytes() == CONTENT


def test_a_later_call_continues_where_an_earlier_one_gave_up(
    server: Server, tmp_path: Path
):
    server.cut_after, server.always_cut = 200_000, True
    with pytest.raises(DownloadError, match=r"connection ended early.*Call again"):
        _get(server, tmp_path)
    assert _left(tmp_path) == [f"{WEIGHTS.filename}.part"]
    server.cut_after = None
    assert _get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=600000-"


def test_a_beginning_of_another_file_is_thrown_away(server: Server, tmp_path: Path):
    part = tmp_path / f"{WEIGHTS.filename}.part"
    part.write_bytes(b"x" * 1000)
    assert _get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests == ["bytes=1000-", None]


def test_a_beginning_longer_than_the_file_is_thrown_away(
    server: Server, tmp_path: Path
):
    part = tmp_path / f"{WEIGHTS.filename}.part"
    part.write_bytes(CONTENT + b"x")
    assert _get(server, tmp_path).read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(server: Server, tmp_path: Path):
    server.content = b"something else"
    with pytest.raises(DownloadError, match="another file with sha256") as error:
        _get(server, tmp_path)
    assert f"expected {SHA256[:8]}" in str(error.value)
    assert _left(tmp_path) == []
    assert len(server.requests) == 1


def test_a_page_instead_of_the_file_is_called_one(server: Server, tmp_path: Path):
    server.content = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match="sent a web page"):
        _get(server, tmp_path)
    assert _left(tmp_path) == []


@pytest.mark.parametrize("length", [True, False])
def test_a_short_body_without_a_length_is_found_by_its_hash(
    server: Server, tmp_path: Path, length: bool
):
    server.length, server.content = length, CONTENT[:-1]
    with pytest.raises(DownloadError, match="with sha256"):
        _get(server, tmp_path)
    assert _left(tmp_path) == []


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_refusal_is_passed_on_with_its_number(
    server: Server, tmp_path: Path, status: int
):
    server.status = status
    with pytest.raises(DownloadError, match=f"the server answered {status}"):
        _get(server, tmp_path)


def test_a_stale_file_in_the_cache_is_fetched_again(server: Server, tmp_path: Path):
    path = _get(server, tmp_path)
    path.write_bytes(CONTENT[:-1] + b"\0")
    assert _get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_without_a_server_the_message_says_what_to_do(tmp_path: Path):
    with pytest.raises(DownloadError, match=r"refused.*put it at .*resnet18-"):
        parity.download(WEIGHTS, folder=tmp_path, url="http://127.0.0.1:9/models")


def test_a_cache_that_cannot_be_made_is_said(server: Server, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be stored"):
        _get(server, tmp_path / "file" / "cache")


def test_two_at_once_fetch_it_once(server: Server, tmp_path: Path):
    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(_get(server, tmp_path).read_bytes())
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert len(server.requests) == 1
    assert _left(tmp_path) == [WEIGHTS.filename]


def test_the_cache_is_torch_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import torch.hub

    for variables in ({}, {"XDG_CACHE_HOME": "x"}, {"TORCH_HOME": "t"}):
        for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(tmp_path / value))
        assert cache_folder() == Path(torch.hub.get_dir()) / "checkpoints"


def test_a_mirror_may_be_named_in_the_environment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RESNET_TWINS_URL", server.url)
    path = parity.download(WEIGHTS, folder=tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, status: int):
    server.busy = [status, status]
    assert _get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 3
    server.busy = [status] * 3
    (tmp_path / WEIGHTS.filename).unlink()
    with pytest.raises(DownloadError, match=rf"answered {status} .*\(3 tries\)\. Call"):
        _get(server, tmp_path)


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_server_that_only_drips_is_given_up(
    server: Server, tmp_path: Path, where: str
):
    server.drips = where
    with pytest.raises(DownloadError, match=r"not complete after 1 s\. Call again"):
        _get(server, tmp_path, deadline=0.6)
    time.sleep(0.2)  # what is not waited for writes no more
    part = tmp_path / f"{WEIGHTS.filename}.part"
    size = part.stat().st_size
    time.sleep(0.2)
    assert part.stat().st_size == size < 100


def test_a_server_that_drips_counts_as_silent(server: Server, tmp_path: Path):
    server.drips = "body"
    with pytest.raises(DownloadError, match=r"under 1000 bytes a second .*3 tries"):
        _get(server, tmp_path, timeout=0.2)


@pytest.mark.parametrize("length", [True, False, "9" * 30])
def test_a_server_that_sends_too_much_fills_no_disk(
    server: Server, tmp_path: Path, length: bool | str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "MAX_BYTES", 500_000)
    server.length = length
    with pytest.raises(DownloadError, match="no published file has over 500000"):
        _get(server, tmp_path)
    assert _left(tmp_path) == []


@pytest.mark.parametrize("length", ["abc", "-1", "1e3", "1, 2", "٣"])
def test_a_length_that_is_none_is_not_believed(
    server: Server, tmp_path: Path, length: str
):
    server.length = length.encode("utf-8").decode("latin-1")
    assert _get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "url",
    ["nowhere", "foo://x", "http://[::1", "http://a b", "http://x:port", "://", "\n"],
)
def test_an_address_that_is_none_is_one_line(tmp_path: Path, url: str):
    with pytest.raises(DownloadError) as error:
        parity.download(WEIGHTS, folder=tmp_path, url=url)
    assert str(error.value).isprintable()
    assert re.search(r"\. (Check|Call|Get)", str(error.value))


def test_a_redirection_in_a_circle_is_one_line(server: Server, tmp_path: Path):
    server.moved_to = f"{server.url}/{WEIGHTS.filename}"
    with pytest.raises(DownloadError, match="answered 302") as error:
        _get(server, tmp_path)
    assert str(error.value).isprintable()


def test_a_password_is_for_the_server_alone(server: Server, tmp_path: Path):
    address = server.url.replace("//", "//me:s%40cret@")
    parity.download(WEIGHTS, folder=tmp_path, url=address)
    assert server.secrets == ["Basic bWU6c0BjcmV0"]
    server.status = 404
    for url in (address, "http://me:s%40cret@127.0.0.1:9", "http://me:s%40cret@[x"):
        with pytest.raises(DownloadError) as error:
            parity.download(WEIGHTS, folder=tmp_path / "other", url=url)
        assert "cret" not in str(error.value)
        assert "me:" not in str(error.value)


@pytest.mark.parametrize("suffix", ["", ".part"])
def test_what_is_no_regular_file_in_the_cache_is_refused(
    server: Server, tmp_path: Path, suffix: str
):
    odd = tmp_path / f"{WEIGHTS.filename}{suffix}"
    os.mkfifo(odd)
    with pytest.raises(DownloadError, match=r"No such device|is no regular file"):
        _get(server, tmp_path)
    reader = os.open(odd, os.O_RDONLY | os.O_NONBLOCK)  # writing to it would work now
    try:
        with pytest.raises(DownloadError, match=r"is no regular file\. Remove it"):
            _get(server, tmp_path)
    finally:
        os.close(reader)
    assert odd.is_fifo()
