"""A client that still sends when it is refused: it learns why, and cannot go on for ever."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest

from safelight.api import server
from safelight.config import ServerSettings

from .test_server import head, predict_head

BLOCK = b" " * 50_000
NUM_BYTES = 80 * len(BLOCK)
SETTINGS = ServerSettings(port=0, receive_timeout_seconds=5)


def send_all_then_read(port: int, request: bytes, num_bytes: int) -> tuple[int, str]:
    """As simple clients do. Status and code."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        for _ in range(num_bytes // len(BLOCK)):
            connection.sendall(BLOCK)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    start, _, body = answer.partition(b"\r\n\r\n")
    return int(start.split()[1]), json.loads(body)["code"]


async def test_a_client_that_sends_all_before_it_reads_learns_why_it_was_refused(make_house):
    sent = {"Content_Type": "application/json", "Content_Length": NUM_BYTES, "Connection": "close"}
    async with make_house(SETTINGS) as house, house.serving() as (_, port):
        for request, expected in (
            (head("/pinhole/predict", method="POST", **sent), (401, "unauthorized")),
            (predict_head(house, 10**9, Connection="close"), (413, "body_too_large")),
            (b"\x16\x03\x01 hello\r\n\r\n", (400, "invalid_request")),
        ):
            assert await asyncio.to_thread(send_all_then_read, port, request, NUM_BYTES) == expected


@pytest.mark.parametrize(("limit", "value"), [("LINGER_SECONDS", 0.2), ("LINGER_BYTES", 100_000)])
async def test_a_refused_client_that_never_ends_is_cut_off(make_house, monkeypatch, limit, value):
    monkeypatch.setattr(server, limit, value)
    async with make_house(SETTINGS) as house, house.serving() as (door, port):
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(send_all_then_read, port, predict_head(house, 10**9, Connection="close"), 10**9)
        assert time.monotonic() - began < 1.5
        assert not door.server_state.connections
