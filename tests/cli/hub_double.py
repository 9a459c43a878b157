"""A server that answers as the hub does, as far as its library asks: repositories, files by range, refusals."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

COMMIT = "c" * 40


@dataclass
class HubDouble:
    """`repositories` by name: their files, all at one `commit`. After `bytes_left` of files the line is dead. `asked`
    lists downloads; `before_body` is told of each before its bytes are sent."""

    repositories: Mapping[str, Mapping[str, bytes]]
    gated: frozenset[str] = frozenset()
    bytes_left: int | None = None
    claimed_bytes: int | None = None
    commit: str = COMMIT
    before_body: Callable[[str], None] = lambda name: None
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def __enter__(self) -> Self:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                double.answer(self, has_body=False)

            def do_GET(self) -> None:
                double.answer(self, has_body=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, *, has_body: bool) -> None:
        path = request.path.partition("?")[0]
        if about := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            if self._is_refused(request, about[1]):
                return
            if about[2] not in (None, self.commit):
                self._send(request, 404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
                return
            self._send(request, 200, json.dumps(self._about(about[1])).encode())
        elif asked := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(request, self.repositories[asked[1]][asked[3]], asked[3], has_body=has_body)
        else:
            self._send(request, 404, b"")

    def _is_refused(self, request: BaseHTTPRequestHandler, repository: str) -> bool:
        if repository in self.gated:
            self._send(request, 403, b"{}", **{"X-Error-Code": "GatedRepo"})
        elif repository not in self.repositories:
            self._send(request, 401, b"{}", **{"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    def _about(self, repository: str) -> dict[str, object]:
        files = self.repositories[repository].items()
        siblings = [
            {
                "rfilename": name,
                "size": self.claimed_bytes or len(content),
                "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1},
            }
            for name, content in files
        ]
        return {
            "id": repository,
            "sha": self.commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
        }

    def _send_file(self, request: BaseHTTPRequestHandler, content: bytes, name: str, *, has_body: bool) -> None:
        span = request.headers.get("Range")
        if has_body:
            self.asked.append((name, span))
        start = int(span.removeprefix("bytes=").partition("-")[0]) if span else 0
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": self.commit,
            "Content-Length": str(len(content) - start),
        }
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        request.send_response(206 if start else 200)
        for key, value in headers.items():
            request.send_header(key, value)
        if self.bytes_left is not None:
            request.send_header("Connection", "close")
        request.end_headers()
        if has_body:
            self.before_body(name)
        body = content[start:][: self.bytes_left] if has_body else b""
        request.wfile.write(body)
        if self.bytes_left is not None:
            self.bytes_left -= len(body)
            request.close_connection = True

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
