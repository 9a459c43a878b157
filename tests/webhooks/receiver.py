"""A webhook endpoint on loopback that keeps what arrived whole, and can behave as badly as the test likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

Behaviour = Callable[[asyncio.StreamWriter, "Arrived"], Awaitable[None]]


@dataclass(frozen=True)
class Arrived:
    """One request whose body came in to its last byte."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    port: int = 0
    behaviour: Behaviour | None = None
    arrived: list[Arrived] = field(default_factory=list)
    num_connections: int = 0
    num_open: int = 0
    most_open: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                request = await read_request(reader)
                self.arrived.append(request)
                await (self.behaviour or answers(200))(writer, request)
        finally:
            self.num_open -= 1
            writer.close()


async def read_request(reader: asyncio.StreamReader) -> Arrived:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.strip().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Arrived(first.split(" ")[1], headers, body)


@contextlib.asynccontextmanager
async def receiving(behaviour: Behaviour | None = None, *, port: int = 0) -> AsyncIterator[Receiver]:
    receiver = Receiver(behaviour=behaviour)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", port)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None


def answers(status: int, body: bytes = b"ok", **headers: str) -> Behaviour:
    async def behave(writer: asyncio.StreamWriter, _: Arrived) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return behave


def one_after_the_other(*behaviours: Behaviour) -> Behaviour:
    """The first request meets the first behaviour, and so on; the last one stays."""
    remaining = list(behaviours)

    async def behave(writer: asyncio.StreamWriter, request: Arrived) -> None:
        current = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        await current(writer, request)

    return behave


async def drips(writer: asyncio.StreamWriter, _: Arrived) -> None:
    """A status line that never ends."""
    writer.write(b"HTTP/1.1 200 O")
    while True:
        writer.write(b"K")
        await writer.drain()
        await asyncio.sleep(0.05)


async def drips_its_body(writer: asyncio.StreamWriter, _: Arrived) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def never_ends(writer: asyncio.StreamWriter, _: Arrived) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"4000\r\n" + b"y" * 0x4000 + b"\r\n")
        await writer.drain()


async def is_silent(writer: asyncio.StreamWriter, _: Arrived) -> None:
    await asyncio.sleep(60)


async def hangs_up(writer: asyncio.StreamWriter, _: Arrived) -> None:
    pass


async def resets(writer: asyncio.StreamWriter, _: Arrived) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def breaks_off_after_the_status(writer: asyncio.StreamWriter, _: Arrived) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf")
    await writer.drain()


async def talks_nonsense(writer: asyncio.StreamWriter, _: Arrived) -> None:
    writer.write(b"\x00\x01\x02 this is not HTTP \r\n\r\n")
    await writer.drain()
