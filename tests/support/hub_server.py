"""A Hub on this machine: paths and headers of the real one, and all that goes wrong.

What ``huggingface_hub`` asks is answered as huggingface.co does: the description of a
repository, its files with ETag, X-Repo-Commit and X-Linked-Etag, ranges, and the four
steps of an upload.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import parity
from resnet_spec import Preprocessing

REPO = "owner/tiny"
HF = f"hf://{REPO}"
HOW = Preprocessing(resize=40, crop=36, interpolation="bicubic", mean=(0.5, 0.4, 0.3))
"""What is done to photographs for it."""

LARGE = (".safetensors", ".bin", ".msgpack")
"""What the Hub keeps by LFS, whose ETag is the sha256; others have git's own hash."""


@dataclass
class Repository:
    """Files by name, of each revision.

    Args:
        revisions: names of branches, tags and commits, to files.
        gated: who asks must be let in.
        past: files of commits that a branch has left behind.
    """

    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: bool = False
    past: list[dict[str, bytes]] = field(default_factory=list)


@dataclass
class Hub:
    """What the server has, what it shall do wrong, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_right"
    cut_after: int | None = None
    always_cut: bool = False
    instead: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    busy: dict[str, list[int]] = field(default_factory=dict)
    retry_after: str = ""
    described_slowly: bool = False
    without_commit: bool = False
    unending: int = 0
    drips: bool = False
    sent: int = 0
    closing: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    then: Callable[[], object] | None = None
    stored: dict[str, bytes] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)

    def add(
        self, name: str, files: Mapping[str, bytes] | Path, revision: str = "main"
    ) -> Repository:
        """Puts files, or those of a folder, into a repository."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        repository = self.repositories.setdefault(name, Repository())
        if revision in repository.revisions:
            repository.past.append(repository.revisions[revision])
        repository.revisions[revision] = dict(files)
        return repository

    def asked(self, method: str = "GET", part: str = "/resolve/") -> list[str]:
        """Returns the paths that were asked for, of files by default."""
        made = [one.partition(" ") for one in self.requests]
        return [path for verb, _, path in made if verb == method and part in path]


def commit_of(files: Mapping[str, bytes]) -> str:
    """Returns the commit that has these files."""
    text = json.dumps({name: etag_of(name, files[name]) for name in sorted(files)})
    return hashlib.sha1(text.encode()).hexdigest()


def etag_of(name: str, content: bytes) -> str:
    """Returns the hash that the Hub names a file's content by."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Runs a Hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{http.server_port}"
        yield hub
        hub.closing.set()
        http.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self._path()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._describe(found[1], unquote(found[2] or "main"))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(found[1], unquote(found[2]), found[3])
        else:
            self._refuse(404, "RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path = self._path()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            self.hub.cards.append(json.loads(body)["content"])
            return self._send_json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.hub.add(name, {})
            return self._send_json({"url": f"{self.hub.url}/{name}"})
        if found := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send_json({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {
                    **one,
                    "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}},
                }
                for one in json.loads(body)["objects"]
            ]
            return self._send_json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            return self._commit(found[1], unquote(found[2]), body)
        return self._refuse(404, "RepoNotFound")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        oid = self._path().rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != oid:
            return self._refuse(400, "BadOid")
        self.hub.stored[oid] = content
        return self._send(200, b"")

    def _path(self) -> str:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """Returns the files of a revision, or refuses as the Hub does."""
        repository = self.hub.repositories.get(name)
        kind = self.command if "/resolve/" in self.path else "description"
        if self.hub.busy.get(kind):
            return self._refuse(self.hub.busy[kind].pop(0), "")
        if self.hub.status != 200:
            return self._refuse(self.hub.status, "")
        if repository is None:  # who is not logged in shall not know
            return self._refuse(401, "RepoNotFound", "Repository not found")
        commits = {commit_of(files): files for files in repository.revisions.values()}
        commits |= {commit_of(files): files for files in repository.past}
        found = (commits | repository.revisions).get(revision)
        if found is None:
            return self._refuse(404, "RevisionNotFound")
        return found

    def _describe(self, name: str, revision: str) -> None:
        files = self._files(name, revision)
        if self.hub.described_slowly:
            self._go_on({})
        elif files is not None:
            siblings = [{"rfilename": one} for one in files]
            told = {"id": name, "modelId": name, "sha": commit_of(files)}
            self._send_json(told | {"siblings": siblings, "private": False, "tags": []})

    def _send_file(self, name: str, revision: str, file: str) -> None:
        files = self._files(name, revision)
        if files is None:
            return
        if self.hub.repositories[name].gated:
            right = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
            if not right:
                self._refuse(401 if revision == "main" else 403, "GatedRepo")
                return
        if file not in files:
            self._refuse(404, "EntryNotFound")
            return
        content, etag = files[file], etag_of(file, files[file])
        head = {"X-Repo-Commit": commit_of(files), "Accept-Ranges": "bytes"}
        if file.endswith(LARGE):
            head |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
            head |= {"ETag": '"of the storage"'}
        else:
            head |= {"ETag": f'"{etag}"'}
        if self.hub.without_commit:
            del head["X-Repo-Commit"]
        if self.command == "GET" and (self.hub.unending or self.hub.drips):
            self._go_on(head)
            return
        content = self.hub.instead.get(file, content)
        asked, start = self.headers.get("Range"), 0
        if asked and self.command == "GET":
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore
        self._send(206 if start else 200, content[start:], head)
        if self.command == "GET" and self.hub.then is not None:
            self.hub.then()

    def _go_on(self, head: Mapping[str, str]) -> None:
        """Sends many bytes at once, or one now and then, and says not how many."""
        self.send_response(200)
        for name, value in {**head, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        piece = b"a" if self.hub.drips else bytes(2**20)
        with suppress(OSError):  # nobody listens any more
            while self.hub.drips or self.hub.sent < self.hub.unending:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.hub.sent += len(piece)
                if self.hub.drips and self.hub.closing.wait(0.02):
                    break
        self.close_connection = True

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        files = self._files(name, revision)
        if files is None:
            return
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        oid = commit_of(files)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self._send_json({"commitOid": oid, "commitUrl": url, "success": True})

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        head = {"X-Error-Code": code} if code else {}
        head |= {"X-Error-Message": message} if message else {}
        head |= {"Retry-After": self.hub.retry_after} if self.hub.retry_after else {}
        self._send(status, json.dumps({"error": message or code}).encode(), head)

    def _send_json(self, value: Any) -> None:
        self._send(
            200, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )

    def _send(
        self, status: int, body: bytes, head: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (head or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        cut = self.hub.cut_after
        if self.command == "HEAD":
            body = b""
        elif cut is not None and "/resolve/" in self.path and len(body) > cut:
            body, self.close_connection = body[:cut], True
            if not self.hub.always_cut:
                self.hub.cut_after = None
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def refused(address: str = HF) -> str:
    """Loads what cannot be had; returns what is said of it."""
    with pytest.raises(parity.DownloadError) as error:
        parity.load(address)
    said = str(error.value)
    assert said.isprintable()
    assert said.startswith(address)
    assert re.search(r"\. [A-Z][\w ]", said), said
    return said


def cached(tmp_path: Path) -> list[str]:
    """Names of the files that are in the cache, whole or not."""
    blobs = tmp_path / "cache" / "models--owner--tiny" / "blobs"
    return sorted(path.name for path in blobs.iterdir()) if blobs.exists() else []
