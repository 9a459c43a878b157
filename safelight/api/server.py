"""uvicorn with deadlines it does not have: a request must arrive in time, and an answer must be taken."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from safelight.api.answers import PROBLEM
from safelight.api.errors import problem_answer
from safelight.api.receiving import RECEIVE_DEADLINE
from safelight.api.service import Service
from safelight.config import ServerSettings
from safelight.errors import InvalidRequest, ReceiveTimeout, SafelightError

DRAIN_SECONDS = 5.0
"""How long answers may take to be sent after waiting has been stopped."""

MIN_BYTES_PER_SECOND = 8192
"""A reader that takes a waiting answer more slowly than this, over the length of a deadline, is cut off."""

LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 2**20
"""What a refused client may still send, so that it comes to read why it was refused."""

_DROP_AT_ONCE = struct.pack("ii", 1, 0)


class DoorTransport:
    """A connection as uvicorn sees it. `close` asks `linger` first whether it does the closing, once."""

    def __init__(self, transport: asyncio.Transport, linger: Callable[[], bool]) -> None:
        self._transport = transport
        self._linger = linger
        self._is_lingering = False

    def close(self) -> None:
        if self._is_lingering or not self._linger():
            self._transport.close()
        else:
            self._is_lingering = True

    def is_closing(self) -> bool:
        return self._is_lingering or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class DeadlineProtocol(H11Protocol):
    """HTTP/1.1 with one deadline: for each request to arrive whole, and for progress of a blocked answer.

    It is kept here for the head, and for what comes of a body after its answer; whoever reads a body finds the same
    deadline in the request's state, and answers what is late. A connection that is closed while its client still sends
    is closed in two steps: the kernel would reset it over unread bytes, and the client might lose its answer.
    """

    def __init__(self, *args: Any, deadline_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline_seconds = deadline_seconds
        self._receive_deadline = 0.0
        self._receive_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._num_lingering_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = DoorTransport(transport, self._linger)  # type: ignore[assignment]
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The end of an answer lies in the kernel only, where no timer of ours sees it. Later than ours, which tell
            # the client; the kernel's does not.
            patience_ms = int(self._deadline_seconds * 1000) + 1000
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._receive_timer)
        _cancel(self._write_timer)
        _cancel(self._linger_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is None:
            super().data_received(data)
            return
        self._num_lingering_bytes += len(data)
        if self._num_lingering_bytes > LINGER_BYTES:
            self._drop()

    def handle_events(self) -> None:
        before, was_sending = self.cycle, self.conn.their_state is h11.SEND_BODY
        super().handle_events()
        if self.cycle is not before:
            if self._receive_timer is None or was_sending:
                # The whole head came at once.
                self._expect_request()
            self._stop_receive_timer()
            self.scope["state"][RECEIVE_DEADLINE] = self._receive_deadline
        elif self.cycle is None or self.cycle.response_complete:
            self._watch_sender(was_sending)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        _cancel(self._write_timer)
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            # The end of an answer can be too short to be called blocked, and still never be taken.
            self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP at all, with a problem document as everywhere."""
        self._refuse(InvalidRequest("this is not an HTTP request that can be read"))

    def _watch_sender(self, was_sending: bool) -> None:
        """Between two requests. uvicorn stops its own timer for idle connections on any byte."""
        is_idle = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        if self.conn.their_state is h11.SEND_BODY:
            if self._receive_timer is None:
                # The rest of a body that was answered already: no new time for that.
                self._start_receive_timer()
        elif was_sending or (self._receive_timer is None and not is_idle):
            self._expect_request()

    def _expect_request(self) -> None:
        """From now on a request has its time to arrive."""
        self._receive_deadline = self.loop.time() + self._deadline_seconds
        self._start_receive_timer()

    def _start_receive_timer(self) -> None:
        _cancel(self._receive_timer)
        self._receive_timer = self.loop.call_at(self._receive_deadline, self._refuse_slow_request)

    def _stop_receive_timer(self) -> None:
        _cancel(self._receive_timer)
        self._receive_timer = None

    def _refuse_slow_request(self) -> None:
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(ReceiveTimeout(f"the request did not arrive within {self._deadline_seconds:g} s"))
        elif self.conn.their_state is h11.SEND_BODY:
            # It was answered, but may come to read that only now.
            self.transport.close()
        else:
            self._drop()

    def _refuse(self, error: SafelightError) -> None:
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            # An answer is under way or given: there is no place for another.
            self._drop()
            return
        answer = problem_answer(error)
        headers = [("content-type", PROBLEM), ("content-length", str(len(answer.body))), ("connection", "close")]
        response = h11.Response(status_code=answer.status, headers=headers)
        for event in (response, h11.Data(data=answer.body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _linger(self) -> bool:
        """Read and forget for a while what the client still sends. False where it has sent all."""
        if self.conn.their_state in {h11.DONE, h11.MUST_CLOSE, h11.CLOSED} or self.transport.is_closing():
            return False
        _cancel(self._receive_timer)
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
        self.flow.resume_reading()
        with contextlib.suppress(OSError):
            # A client that has gone meanwhile reads no more anyway.
            self.transport.write_eof()
        return True

    def _watch_reader(self) -> None:
        check = partial(self._check_reader, self._num_waiting_bytes())
        _cancel(self._write_timer)
        self._write_timer = self.loop.call_later(self._deadline_seconds, check)

    def _check_reader(self, left_before: int) -> None:
        if not self.transport.get_write_buffer_size():
            return
        if left_before - self._num_waiting_bytes() < min(left_before, MIN_BYTES_PER_SECOND * self._deadline_seconds):
            self._drop()
        else:
            self._watch_reader()

    def _drop(self) -> None:
        """End the connection now: what the client did not take is forgotten here and in the kernel."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_AT_ONCE)
        self.transport.abort()

    @property
    def _socket(self) -> socket.socket:
        connection: socket.socket = self.transport.get_extra_info("socket")
        return connection

    def _num_waiting_bytes(self) -> int:
        """What the client's machine has not taken yet, here and in the kernel, which asks for more only
        in megabytes."""
        (in_kernel,) = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4)))
        return self.transport.get_write_buffer_size() + int(in_kernel)


class DoorServer(uvicorn.Server):
    """Stops waiting callers before it waits for them: each is told where its run is, and nobody is dropped."""

    def __init__(self, config: uvicorn.Config, *, stop_waiting: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop_waiting = stop_waiting

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop_waiting()
        await super().shutdown(sockets)


def make_server(app: ASGIApp, service: Service, settings: ServerSettings) -> DoorServer:
    """A server for `app`, not yet started. Logging is left to the process; `serve(sockets=[...])` starts it."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(DeadlineProtocol, deadline_seconds=settings.receive_timeout_seconds),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(DRAIN_SECONDS),
    )
    return DoorServer(config, stop_waiting=service.stop_waiting)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
