"""Five hundred clients that take their time, in every way there is, and one that asks whether the door is well.

With FULL_SIZE in the environment, as `make faults` has it, with the deadline that servers have, and judged by the
clock; else with a short one, and with the patience that a machine needs which does other work meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Sequence

import httpx2

from safelight.config import ServerSettings

from .test_server import head, is_held, predict_head

NUM_SLOW = 500
IS_FULL = "FULL_SIZE" in os.environ
DEADLINE_SECONDS = ServerSettings().receive_timeout_seconds if IS_FULL else 2.5
SETTINGS = ServerSettings(port=0, receive_timeout_seconds=DEADLINE_SECONDS, sync_timeout_seconds=20)
PAUSE_SECONDS = 0.5
"""Between one drop and the next."""

MARGIN_SECONDS = PAUSE_SECONDS + 0.5
"""A reader looks only so often whether it was let go; the rest is for 500 clients that share one thread with the door.
"""

HEALTH_SECONDS = 1.0


async def send_drop_by_drop(loop, connection, data: bytes, num_bytes: int = 1) -> None:
    """So many bytes at a time, until the door has had enough. Whoever only holds the line sends none."""
    with contextlib.suppress(OSError):
        for position in range(0, len(data), num_bytes):
            await loop.sock_sendall(connection, data[position : position + num_bytes])
            await asyncio.sleep(PAUSE_SECONDS)


async def send_head_and_body_drop_by_drop(loop, connection, request: bytes) -> None:
    """A head that takes most of the deadline, and a body that would take most of another."""
    num_drops = max(1, int(0.8 * DEADLINE_SECONDS / PAUSE_SECONDS))
    await send_drop_by_drop(loop, connection, request, -(-len(request) // num_drops))
    await send_drop_by_drop(loop, connection, b" " * 400)


async def until_closed(loop, connection) -> None:
    with contextlib.suppress(OSError):
        while await loop.sock_recv(connection, 65536):
            pass


async def read_drop_by_drop(loop, connection, server) -> None:
    """Takes 100 bytes at a time of an answer that is larger than what the kernel holds, until the door
    lets go."""
    with contextlib.suppress(OSError):
        while await loop.sock_recv(connection, 100) and is_held(server, connection):  # noqa: ASYNC110 - it is the slowness
            await asyncio.sleep(PAUSE_SECONDS)


async def be_slow(server, port: int, number: int, house, image: str) -> float:
    """One slow client; how long it was let be slow."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(number / 200)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        began = time.monotonic()
        match number % 10:
            case 0 | 5 | 6:
                await until_closed(loop, connection)
            case 1 | 7:
                await loop.sock_sendall(connection, b"POST /pinhole/predict HTTP/1.1\r\nHost: loc")
                await until_closed(loop, connection)
            case 2:
                dripping = asyncio.create_task(send_drop_by_drop(loop, connection, head("/healthz")))
                await until_closed(loop, connection)
                dripping.cancel()
            case 8:
                sending = send_head_and_body_drop_by_drop(loop, connection, predict_head(house, 500))
                dripping = asyncio.create_task(sending)
                await until_closed(loop, connection)
                dripping.cancel()
            case 3:
                await loop.sock_sendall(connection, predict_head(house, 500) + b'{"prompt": "')
                dripping = asyncio.create_task(send_drop_by_drop(loop, connection, b"x" * 400))
                await until_closed(loop, connection)
                dripping.cancel()
            case _:
                await loop.sock_sendall(connection, head(image, house.key, Connection="close"))
                # What the door takes to answer is no slowness of the reader's.
                await loop.sock_recv(connection, 1)
                began = time.monotonic()
                await read_drop_by_drop(loop, connection, server)
        return time.monotonic() - began


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


async def test_five_hundred_slow_clients_do_not_keep_health_waiting_and_are_sent_away(make_house, record_property):
    async with make_house(SETTINGS) as house, house.serving() as (server, port):
        async with house.working():
            run_id = (await house.predict(width=64, height=64)).json()["run_id"]
        big = b"x" * 6_000_000

        async def read(path: str) -> bytes:
            return big

        house.store.images.read = read
        image = f"/runs/{run_id}/images/0"
        slow = [asyncio.create_task(be_slow(server, port, number, house, image)) for number in range(NUM_SLOW)]
        crowd = asyncio.gather(*slow)
        waits, work = [], []
        # A connection for each: one that is kept is closed in the door's own time.
        limits = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits) as client:
            while not crowd.done():
                began, worked = time.monotonic(), time.process_time()
                assert (await client.get("/healthz")).status_code == 200
                waits.append(time.monotonic() - began)
                work.append(time.process_time() - worked)
                await asyncio.sleep(0.02)
        stayed = await crowd
        told = f"health p99 {1000 * p99(waits):.0f} ms, {1000 * p99(work):.0f} ms of work, of {len(waits)}"
        print(f"\n{NUM_SLOW} slow clients: {told}; the last closed after {max(stayed):.1f} of {DEADLINE_SECONDS:g} s")
        record_property("health_p99_ms", round(1000 * p99(waits)))
        record_property("last", round(max(stayed), 1))
        record_property("deadline", round(DEADLINE_SECONDS))
        # Processor time of door and clients together: what the wait is on a machine that has nothing else to do.
        assert p99(work) < HEALTH_SECONDS
        assert p99(waits) < HEALTH_SECONDS or not IS_FULL
        # How long the machine was busy with other things: the health client saw it.
        busy = 0.0 if IS_FULL else max(waits)
        assert max(stayed) < DEADLINE_SECONDS + MARGIN_SECONDS + busy
        assert (await house.store.runs.list())[0][0].id == run_id, "nobody's half request became a run"
