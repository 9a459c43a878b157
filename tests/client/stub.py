"""A server on loopback that answers as the test scripted it, and breaks connections on request."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from base64 import b64encode
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

RUN_ID = "7b0d1c5e-9a1f-4c7e-8a55-6f2b8a3f9d10"


@dataclass(frozen=True)
class Reply:
    """`cut` breaks the connection: before the answer, or (with a body) in the middle of it."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stub:
    """`script["GET /path"]` holds the replies in order; the last one stays."""

    script: dict[str, list[Reply]] = field(default_factory=lambda: defaultdict(list))
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    def on(self, what: str, *replies: Reply) -> None:
        self.script[what] = list(replies)

    def reply_to(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        replies = self.script.get(f"{seen.method} {seen.path.partition('?')[0]}") or [
            problem(404, "not_found", "nothing here")
        ]
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def __enter__(self) -> Self:
        stub = self

        class Answerer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one write: two would wait for each other under Nagle.
            wbufsize = -1

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = stub.reply_to(Seen(self.command, self.path, headers, body))
                time.sleep(reply.delay_seconds)
                if reply.cut and not reply.body:
                    self.reset()
                    return
                self.send_response_only(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                if not any(name.lower() == "content-type" and "event-stream" in value for name, value in reply.headers):
                    self.send_header("Content-Length", str(len(reply.body) + reply.cut))
                else:
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(reply.body)
                if reply.cut:
                    self.wfile.flush()
                    self.reset()

            def reset(self) -> None:
                self.close_connection = True
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answerer)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def answer(value: object, status: int = 200, **headers: str) -> Reply:
    named = tuple((name.replace("_", "-"), text) for name, text in headers.items())
    return Reply(status, json.dumps(value).encode(), (("Content-Type", "application/json"), *named))


def problem(status: int, code: str | None, message: str, *, run_id: str | None = None, **headers: str) -> Reply:
    members: dict[str, object] = {"type": "about:blank", "title": "t", "status": status, "detail": message}
    members |= {"message": message}
    if code:
        members["code"] = code
    if run_id:
        members["run_id"] = run_id
    return answer(members, status, **headers)


def wrong_fields(*fields: tuple[str, str]) -> Reply:
    errors = [{"field": name, "message": message} for name, message in fields]
    return answer({"code": "invalid_fields", "message": "wrong", "status": 422, "errors": errors}, 422)


def envelope(*pictures: bytes, **headers: str) -> Reply:
    result = [b64encode(picture).decode() for picture in pictures]
    members = {"run_id": RUN_ID, "run_time_ms": 12.5, "message": "Successfully generated images", "result": result}
    return answer(members, X_Safelight_Seed=", ".join(str(7 + i) for i in range(len(pictures))), **headers)


def run_json(status: str = "succeeded", **changes: object) -> dict[str, object]:
    params = {
        "prompt": "a lamp",
        "negative_prompt": "",
        "height": 512,
        "width": 512,
        "num_inference_steps": 50,
        "guidance_scale": 7.5,
        "num_images_per_prompt": 1,
        "seed": 7,
        "sampler": "euler",
        "output_format": "png",
        "added_by_a_later_version": True,
    }
    image = {"index": 0, "seed": 7, "format": "png", "url": f"/runs/{RUN_ID}/images/0", "bytes": 3, "sha256": "00"}
    members: dict[str, object] = {
        "id": RUN_ID,
        "run_id": RUN_ID,
        "deployment": "pinhole",
        "version": 1,
        "status": status,
        "params": params,
        "seeds": [7],
        "created_at": "2026-03-01T12:00:00.000Z",
        "started_at": None,
        "ended_at": "2026-03-01T12:00:01.500Z",
        "run_time_ms": 1234.5,
        "progress": {"steps_done": 10, "steps_total": 50, "fraction": 0.2, "eta_seconds": 0.2},
        "queue_position": None,
        "eta_seconds": None,
        "error": None,
        "warnings": ["the prompt was cut"],
        "images": [image] if status == "succeeded" else [],
        "webhook_endpoint": None,
    }
    return members | changes


def stream(*events: bytes, cut: bool = False) -> Reply:
    return Reply(200, b"".join(events), (("Content-Type", "text/event-stream"),), cut=cut)


def event(kind: str, sequence: int | None = None, **members: object) -> bytes:
    told = {"run_id": RUN_ID, "kind": kind, "at": "2026-03-01T12:00:00.250Z"} | members
    lines = [f"event: {kind}"] + ([f"id: {sequence}"] if sequence is not None else [])
    return ("\n".join([*lines, f"data: {json.dumps(told)}"]) + "\n\n").encode()
