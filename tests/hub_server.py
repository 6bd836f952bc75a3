"""A small hub on this machine: enough of its protocol for the real clients to load from it.

It answers as the hub does: small files directly, weights by a redirect to another host with their
hash and size in the headers, errors with their `X-Error-Code`. What the clients ask that it does
not know is kept in `unknown`, so that a test can tell that nothing was left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_someone_who_accepted"  # opens gated repositories
WEIGHTS = (".safetensors", ".npz")  # in large-file storage, behind a redirect
NOTHING = ("/api/agent-harnesses",)  # asked for in passing; a hub need not have it
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?")


@dataclass
class Repository:
    """A folder of files under one commit."""

    folder: Path
    commit: str
    gated: bool = False

    def files(self) -> list[str]:
        found = (f for f in self.folder.rglob("*") if f.is_file())
        return sorted(f.relative_to(self.folder).as_posix() for f in found)


@dataclass
class Hub:
    """What is served, and what was asked for.

    `cuts`: how often a download of a file of that name breaks off half way. `endless_cuts`: how
    much of a file is sent before the connection breaks, in this download and in every later one.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    endless_cuts: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, name: str, folder: Path, commit: str, *, gated: bool = False) -> Path:
        """Serve a folder, which is made if need be, as the repository of that name."""
        folder.mkdir(parents=True, exist_ok=True)
        self.repositories[name] = Repository(folder, commit, gated)
        return folder

    @contextmanager
    def running(self) -> Iterator[Hub]:
        """Serve until the end of the block."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """From now on the port refuses connections."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: Hub, *connection: Any) -> None:
        self.hub = hub
        super().__init__(*connection)

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            self._send_file(self.hub.repositories[match[1]], match[2])
        elif match := _RESOLVE.fullmatch(path):
            name, revision, file = match.groups()
            if repository := self._allowed(name, revision):
                self._resolve(name, repository, file)
        elif match := _API.fullmatch(path):
            name, what, revision, folder = match.groups()
            if repository := self._allowed(name, revision or "main"):
                self._describe(name, repository, what, folder or "")
        else:
            self.hub.unknown += [path] if path not in NOTHING else []
            self._fail(404, "")

    def _allowed(self, name: str, revision: str) -> Repository | None:
        """The repository, if it exists and this user may read that revision; else an error."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._fail(401, "RepoNotFound")  # so that nobody learns of private ones
        elif repository.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._fail(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif revision not in ("main", repository.commit):
            self._fail(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _describe(self, name: str, repository: Repository, what: str | None, folder: str) -> None:
        files = repository.files()
        if what != "tree":
            siblings = [{"rfilename": file} for file in files]
            shown = {"id": name, "sha": repository.commit, "private": False, "tags": []}
            return self._send_json({**shown, "siblings": siblings})
        inside = [file for file in files if not folder or file.startswith(f"{folder}/")]
        if folder and not inside:
            return self._fail(404, "EntryNotFound", repository.commit)
        sizes = {file: (repository.folder / file).stat().st_size for file in inside}
        kinds = [
            {"type": "file", "path": file, "size": size, "oid": "0" * 40}
            for file, size in sizes.items()
        ]
        return self._send_json(kinds)

    def _resolve(self, name: str, repository: Repository, file: str) -> None:
        path = repository.folder / file
        if not path.is_file():
            self._fail(404, "EntryNotFound", repository.commit)
        elif file.endswith(WEIGHTS):
            self.send_response(302)
            self._send_headers(repository.commit, path, linked=True)
            port = urlsplit(self.hub.url).port
            self.send_header("Location", f"http://localhost:{port}/storage/{name}/{file}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send_file(repository, file)

    def _send_headers(self, commit: str, path: Path, *, linked: bool) -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{digest}"')
        if linked:
            self.send_header("X-Linked-ETag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(path.stat().st_size))

    def _send_file(self, repository: Repository, file: str) -> None:
        path = repository.folder / file
        content = path.read_bytes()
        size, part = len(content), re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin = int(part[1]) if part else 0
        content = content[begin : int(part[2]) + 1 if part and part[2] else size]
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {begin}-{begin + len(content) - 1}/{size}")
        self._send_headers(repository.commit, path, linked=False)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cuts.get(path.name, 0):
            self.hub.cuts[path.name] -= 1
            content, self.close_connection = content[: len(content) // 2], True
        elif path.name in self.hub.endless_cuts:
            sent = max(self.hub.endless_cuts[path.name] - begin, 0)
            content, self.close_connection = content[:sent], True
        self.wfile.write(content)

    def _send_json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _fail(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Repo-Commit", commit)):
            if value:
                self.send_header(header, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
