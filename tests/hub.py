"""A small HTTP server on loopback, shaped like the Hugging Face hub as far as reading datasets goes."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from tests.loopback import answering


@dataclass(frozen=True)
class Repository:
    """A dataset repository: its files a commit, newest last. ``gate`` is the token that opens it."""

    commits: dict[str, dict[str, bytes]]
    gate: str | None = None

    def commit(self, revision: str) -> str | None:
        """The commit that a branch or a commit's id names."""
        return list(self.commits)[-1] if revision == "main" else revision if revision in self.commits else None


@dataclass
class Hub:
    """What the server serves and what it was asked.

    ``failures`` counts down, for each path: so many times it answers 503 before it answers well. ``limits`` holds,
    for each path, the headers of the 429s that come first. ``served`` counts the bytes of each file that went out.
    """

    repositories: dict[str, Repository]
    failures: Counter[str] = field(default_factory=Counter)
    limits: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    url: str = ""

    @contextmanager
    def serve(self) -> Iterator["Hub"]:
        """Answer requests until the block ends; ``url`` says where."""
        handler = type("Handler", (_Handler,), {"hub": self})
        with answering(handler) as self.url:
            yield self


class _Handler(BaseHTTPRequestHandler):
    """Routes: dataset info, tree, paths-info, and the files themselves."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
        self.hub.times.append(time.monotonic())
        if self.hub.limits.get(path):
            self._send(429, b"slow down", self.hub.limits[path].pop(0))
            return
        if self.hub.failures[path] > 0:
            self.hub.failures[path] -= 1
            self._send(503, b"try again")
            return
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            self._api("/".join(parts[2:4]), parts[4:], body)
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self._send(404, b"")

    def _repository(self, name: str, revision: str, contents: bool) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; an error is answered where there are none to be had."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._refuse(401, "RepoNotFound")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if contents and repository.gate not in (None, token):
            return self._refuse(403, "GatedRepo")
        commit = repository.commit(revision)
        return (commit, repository.commits[commit]) if commit else self._refuse(404, "RevisionNotFound")

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        action = rest[0] if rest else "revision"
        snapshot = self._repository(name, rest[1] if len(rest) > 1 else "main", contents=action != "revision")
        if snapshot is None:
            return
        commit, files = snapshot
        if action == "revision":
            siblings = [_sibling(path, content) for path, content in files.items()]
            gated = "auto" if self.hub.repositories[name].gate else False
            info = {"id": name, "sha": commit, "private": False, "gated": gated, "tags": [], "siblings": siblings}
            self._json(info | {"cardData": _card_data(files)})
        elif action == "tree":
            recursive = "recursive=true" in self.path.lower()
            self._json(_tree(files, "/".join(rest[2:]), recursive))
        elif action == "paths-info":
            wanted = json.loads(body)["paths"]
            self._json([_entry(path, files[path]) for path in wanted if path in files])
        else:
            self._send(404, b"")

    def _file(self, name: str, revision: str, path: str) -> None:
        snapshot = self._repository(name, revision, contents=True)
        if snapshot is None:
            return
        commit, files = snapshot
        if path not in files:
            self._refuse(404, "EntryNotFound", commit)
            return
        content = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(content)}"', "Accept-Ranges": "bytes"}
        wanted = self.headers.get("Range")
        if wanted is None:
            self.hub.served[path] += len(content) * (self.command == "GET")
            self._send(200, content, headers)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(content)) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.hub.served[path] += stop - start
        self._send(206, content[start:stop], headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} | ({"X-Repo-Commit": commit} if commit else {})
        self._send(status, b"", headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """What lies in a folder: its files and its folders, and with ``recursive`` the files in those."""
    prefix = f"{folder}/" if folder else ""
    inside = {path.removeprefix(prefix): content for path, content in files.items() if path.startswith(prefix)}
    folders = {path.split("/")[0] for path in inside if "/" in path}
    return [
        *({"type": "directory", "path": f"{prefix}{name}", "oid": _digest(name.encode())} for name in sorted(folders)),
        *(_entry(f"{prefix}{path}", content) for path, content in inside.items() if recursive or "/" not in path),
    ]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    """A file as the dataset's info lists it; Parquet files are kept as large files are."""
    large = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
    return {"rfilename": path, "size": len(content), "blobId": _digest(content)} | (
        {"lfs": large} if path.endswith(".parquet") else {}
    )


def _card_data(files: dict[str, bytes]) -> dict[str, Any] | None:
    """The front matter of the card, which the real hub parses, too."""
    parts = files.get("README.md", b"").decode().split("---\n")
    return yaml.safe_load(parts[1]) if len(parts) > 2 else None


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
