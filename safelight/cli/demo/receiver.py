"""The other end of a webhook: takes deliveries and verifies their signatures, as a receiver of yours would."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from typing import Any

from safelight.client import InvalidWebhook, WebhookMessage, verify_webhook
from safelight.errors import RunFailed


class Receiver:
    """Listens on loopback, on a free port. Answers 204 to what verifies and 400 to anything else."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._received: Queue[WebhookMessage | InvalidWebhook] = Queue()
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

    def take(self, run_id: str, *, timeout_seconds: float) -> WebhookMessage:
        """The delivery of a run, when it comes. Raises RunFailed when none comes or one does not verify."""
        while True:
            try:
                received = self._received.get(timeout=timeout_seconds)
            except Empty:
                message = f"no webhook came for run {run_id} in {timeout_seconds:.0f} s"
                raise RunFailed(message, run_id=run_id) from None
            if isinstance(received, InvalidWebhook):
                raise RunFailed(f"a webhook came that does not verify: {received.message}", run_id=run_id)
            if received.run_id == run_id:
                return received

    def _accept(self, headers: Mapping[str, str], body: bytes) -> bool:
        try:
            message = verify_webhook(self._secret, headers, body)
        except InvalidWebhook as flaw:
            self._received.put(flaw)
            return False
        self._received.put(message)
        return True

    def _request_class(self) -> type[BaseHTTPRequestHandler]:
        accept = self._accept

        class Request(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", "0"))
                body = self.rfile.read(length)
                # A delivery that was cut off must not count as one.
                is_good = len(body) == length and accept(dict(self.headers.items()), body)
                self.send_response(204 if is_good else 400)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Silence: the demo tells what came."""

        return Request
