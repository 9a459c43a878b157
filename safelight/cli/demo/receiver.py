"""The other end of a webhook: takes deliveries and verifies their signatures, as a receiver of yours would."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from typing import Any

from safelight.errors import RunFailed, SafelightError


@dataclass(frozen=True, slots=True)
class Received:
    """One delivery. `flaw` says why its signature is not ours; None when it is."""

    event_id: str
    body: dict[str, Any]
    flaw: str | None


class Receiver:
    """Listens on loopback, on a free port. Answers 204 to what verifies and 400 to anything else."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._received: Queue[Received] = Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._request_class())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/finished"

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def take(self, run_id: str, *, timeout_seconds: float) -> Received:
        """The delivery of a run, when it comes. Raises RunFailed when none comes or it is not signed by our server."""
        try:
            while (received := self._received.get(timeout=timeout_seconds)).body.get("run_id") != run_id:
                pass
        except Empty:
            raise RunFailed(f"no webhook came for run {run_id} in {timeout_seconds:.0f} s", run_id=run_id) from None
        if received.flaw is not None:
            raise RunFailed(f"the webhook of run {run_id} does not verify: {received.flaw}", run_id=run_id)
        return received

    def _accept(self, headers: dict[str, str], body: bytes) -> bool:
        from safelight.client.webhooks import verify

        flaw = None
        try:
            verify(self._secret, headers, body)
        except (SafelightError, ValueError) as error:
            flaw = str(error)
        self._received.put(Received(headers.get("webhook-id", ""), json.loads(body), flaw))
        return flaw is None

    def _request_class(self) -> type[BaseHTTPRequestHandler]:
        accept = self._accept

        class Request(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", "0"))
                body = self.rfile.read(length)
                headers = {name.lower(): value for name, value in self.headers.items()}
                # A delivery that was cut off must not count as one.
                is_good = len(body) == length and accept(headers, body)
                self.send_response(204 if is_good else 400)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Silence: the demo tells what came."""

        return Request
