"""A model hub on loopback: as much of the Hugging Face hub and of ModelScope as a fetch needs, and their misfortunes.

with FakeHub({"model.safetensors": b"..."}) as hub:
    hub.cut["model.safetensors"] = [1000]   # the first answer ends after 1000 bytes
    ... fetch from hub.url ...
    hub.ranges_of("model.safetensors")      # what was asked for
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

REPO = "owner/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".gguf", ".bin")  # what a repository keeps in LFS
PIECE = 16384
QUIET_ENVIRONMENT = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_SYMLINKS_WARNING": "1"}


@dataclass
class Request:
    """What a client asked: method, path, the Range it wanted, its Authorization, and the body bytes that it got."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    sent: int = 0


@dataclass
class FakeHub:
    """The server; its fields may be changed between requests, those that are lists lose an entry a request."""

    files: dict[str, bytes]
    repo: str = REPO
    commit: str = COMMIT
    revisions: tuple[str, ...] = ("main", "master")
    cut: dict[str, list[int]] = field(default_factory=dict)  # name -> after how many bytes answers end
    flipped: dict[str, int] = field(default_factory=dict)  # name -> how many answers have a wrong byte
    short: dict[str, int] = field(default_factory=dict)  # name -> how many answers lack the last byte, and say so
    statuses: dict[str, list[int]] = field(default_factory=dict)  # name, or "list" -> answers with these statuses first
    gated: bool = False
    slow: float = 0.0  # seconds a piece of 16 KiB
    knows_ranges: bool = True
    lists_hashes: bool = True
    cdn: str | None = None  # another FakeHub's url: large files are redirected to it
    log: list[Request] = field(default_factory=list)

    def __enter__(self) -> FakeHub:
        handler = type("Bound", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *gone: None  # type: ignore[method-assign]  # clients that were killed
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def got(self, name: str) -> list[Request]:
        """The GET requests for a file, in order; those that were only redirected left out."""
        return [r for r in self.log if r.method == "GET" and _asked_file(r.path) == name and r.sent >= 0]

    def ranges_of(self, name: str) -> list[str | None]:
        return [request.range for request in self.got(name)]

    def sent(self, name: str) -> int:
        """How many bytes of a file went out, in all answers."""
        return sum(request.sent for request in self.got(name))


def hash_of(name: str, body: bytes) -> str:
    """What the hub knows a file by: SHA-256 of large files, git's hash of a blob of others."""
    return hashlib.sha256(body).hexdigest() if name.endswith(LARGE) else git_hash(body)


def git_hash(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _asked_file(path: str) -> str:
    """The file that a path is about, whatever the hub; "" for others."""
    parts = urlsplit(path)
    if "FilePath" in (query := parse_qs(parts.query)):
        return query["FilePath"][0]
    for mark in ("/resolve/", "/cdn/"):
        if mark in parts.path:
            return unquote(parts.path.partition(mark)[2].partition("/")[2])
    return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        self.request_seen = Request(
            self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"), -1
        )
        hub.log.append(self.request_seen)
        name = _asked_file(self.path)
        api = f"/api/models/{hub.repo}"
        if waiting := hub.statuses.get(name or "list", []):
            self.answer(waiting.pop(0), b"{}", {"Retry-After": "0"})
        elif path in (api, f"{api}/revision/{hub.commit}") or path.startswith(f"{api}/revision/"):
            self.model(path)
        elif path == f"{api}/tree/{hub.commit}":
            self.json([self.entry(name) for name in hub.files])
        elif path == f"/api/v1/models/{hub.repo}/repo/files":
            listed = [
                {"Path": n, "Name": n, "Type": "blob", "Size": len(b), "Sha256": hashlib.sha256(b).hexdigest()}
                for n, b in hub.files.items()
            ]
            self.json({"Code": 200, "Success": True, "Data": {"Files": listed}})
        elif name in hub.files and (f"/{hub.repo}/" in path or path.startswith("/cdn/")):
            self.file(name, path)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    do_HEAD = do_GET  # noqa: N815

    def model(self, path: str) -> None:
        hub, revision = self.hub, path.rpartition("/revision/")[2]
        if hub.gated:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif "/revision/" in path and revision not in (*hub.revisions, hub.commit):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        else:
            siblings = []
            for entry in map(self.entry, hub.files):
                sibling = {"rfilename": entry["path"]}
                if hub.lists_hashes:
                    sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                    if lfs := entry.get("lfs"):
                        sibling["lfs"] = {**lfs, "sha256": lfs["oid"]}
                siblings.append(sibling)
            self.json({"id": hub.repo, "modelId": hub.repo, "sha": hub.commit, "siblings": siblings, "tags": []})

    def entry(self, name: str) -> dict[str, Any]:
        body = self.hub.files[name]
        entry = {"type": "file", "path": name, "size": len(body), "oid": git_hash(body)}
        if name.endswith(LARGE):
            lfs = {"oid": hash_of(name, body), "size": len(body), "pointerSize": 130}
            entry |= {"oid": git_hash(json.dumps(lfs).encode()), "lfs": lfs}
        return entry

    def file(self, name: str, path: str) -> None:
        """The bytes of a file, or the way to them."""
        hub, body = self.hub, self.hub.files[name]
        about = {"X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            about |= {"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{hash_of(name, body)}"'}
        if hub.cdn and name.endswith(LARGE) and "/resolve/" in path:
            self.answer(302, b"", {**about, "Location": f"{hub.cdn}/cdn/signed/{quote(name)}"})
            return
        about["ETag"] = f'"{hash_of(name, body)}"'
        if self.command == "HEAD":
            self.answer(200, body, about)
            return
        if hub.flipped.get(name, 0) > 0:
            hub.flipped[name] -= 1
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if hub.short.get(name, 0) > 0:
            hub.short[name] -= 1
            body = body[:-1]
        first = int(self.request_seen.range.removeprefix("bytes=").split("-")[0]) if self.request_seen.range else 0
        if self.request_seen.range is None or not hub.knows_ranges:
            self.send(name, 200, body, 0, about)
        elif first >= len(body) > 0:
            self.answer(416, b"", about)
        else:
            self.send(name, 206, body, first, {**about, "Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"})

    def send(self, name: str, status: int, body: bytes, first: int, headers: Mapping[str, str]) -> None:
        """The bytes from `first` on, as slowly and as far as is asked for."""
        hub = self.hub
        ends = cuts.pop(0) if (cuts := hub.cut.get(name)) else None
        self.start(status, len(body) - first, headers)
        self.request_seen.sent = 0
        for at in range(first, len(body), PIECE):
            piece = body[at : at + PIECE]
            if ends is not None and self.request_seen.sent + len(piece) > ends:
                piece = piece[: ends - self.request_seen.sent]
            self.wfile.write(piece)
            self.request_seen.sent += len(piece)
            if ends is not None and self.request_seen.sent >= ends:
                self.close_connection = True
                return
            time.sleep(hub.slow)

    def start(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(header, value)
        self.end_headers()

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.start(status, len(body), headers)
        if self.command == "GET":
            self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
