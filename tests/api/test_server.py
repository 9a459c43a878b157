"""The door on a real socket: deadlines, clients that hang up or do not read, stopping."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import tracemalloc
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx2
import uvicorn

from safelight.config import ServerSettings
from safelight.runs import RunStatus

from .house import EXAMPLE_BODY

BIG = 8_000_000
DEADLINE = ServerSettings(port=0, receive_timeout_seconds=0.4, sync_timeout_seconds=20)


@asynccontextmanager
async def connected(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


def head(path: str, key: str = "", *, method: str = "GET", **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if key:
        lines += [f"Authorization: {key}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def predict_head(house, length: int, **headers: object) -> bytes:
    extra = {"Content_Type": "application/json", "Content_Length": length} | headers
    return head("/pinhole/predict", house.key, method="POST", **extra)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    lines = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
    body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", 0))), 5)
    return int(lines[0].split()[1]), headers, body


async def quiet(server: uvicorn.Server) -> None:
    """Wait until no request is under way, or too long."""
    for _ in range(100):
        if not server.server_state.tasks:
            return
        await asyncio.sleep(0.02)


async def test_a_body_that_drips_is_408_at_the_deadline_however_it_drips(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (_, port), connected(port) as (reader, writer):
        writer.write(predict_head(house, 1000))
        began = time.monotonic()

        async def drip() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.25)

        dripping = asyncio.create_task(drip())
        status, headers, body = await read_answer(reader)
        dripping.cancel()
        assert (status, json.loads(body)["code"]) == (408, "receive_timeout")
        assert headers["content-type"] == "application/problem+json"
        assert 0.3 < time.monotonic() - began < 3
        assert await asyncio.wait_for(reader.read(), 2) == b""


async def test_a_head_that_drips_is_408_and_silence_is_cut_off(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (_, port):
        async with connected(port) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: local")
            status, _, body = await read_answer(reader)
            assert (status, json.loads(body)["code"]) == (408, "receive_timeout")
        async with connected(port) as (reader, _):
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 3) == b""


async def test_head_and_body_share_one_deadline_however_both_drip(make_house):
    seconds = 2.0
    settings = ServerSettings(port=0, receive_timeout_seconds=seconds)
    async with make_house(settings) as house, house.serving() as (_, port), connected(port) as (reader, writer):
        began, request = time.monotonic(), predict_head(house, 1000)

        async def drip() -> None:
            for part in (request[:30], request[30:60], request[60:90], request[90:]):
                writer.write(part)
                await asyncio.sleep(seconds / 5)
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.2)

        dripping = asyncio.create_task(drip())
        status, _, body = await read_answer(reader)
        dripping.cancel()
        assert (status, json.loads(body)["code"]) == (408, "receive_timeout")
        # Each with a deadline of its own, they would be let drip for 3.2 s or more.
        assert 0.9 * seconds < time.monotonic() - began < 1.5 * seconds


async def test_a_request_has_all_its_time_however_long_its_connection_was_idle(make_house):
    settings = ServerSettings(port=0, receive_timeout_seconds=1.5)
    async with make_house(settings) as house, house.serving() as (_, port), connected(port) as (reader, writer):
        writer.write(head("/healthz"))
        assert (await read_answer(reader))[0] == 200
        await asyncio.sleep(1.2)
        writer.write(b"GET /heal")
        await asyncio.sleep(0.6)
        writer.write(head("/healthz")[len(b"GET /heal") :])
        assert (await read_answer(reader))[0] == 200


async def test_the_rest_of_a_refused_body_has_no_new_time_and_what_follows_it_has(make_house):
    settings = ServerSettings(port=0, receive_timeout_seconds=1.5)
    sent = {"Content_Type": "application/json", "Content_Length": 20}
    async with make_house(settings) as house, house.serving() as (_, port):
        for is_whole in (True, False):
            async with connected(port) as (reader, writer):
                began = time.monotonic()
                writer.write(head("/pinhole/predict", method="POST", **sent))
                assert (await read_answer(reader))[0] == 401
                await asyncio.sleep(1.0)
                writer.write(b" " * 10)
                if is_whole:
                    writer.write(b" " * 10 + head("/healthz")[:9])
                    await asyncio.sleep(1.0)
                    writer.write(head("/healthz")[9:])
                    assert (await read_answer(reader))[0] == 200
                else:
                    assert await asyncio.wait_for(reader.read(), 5) == b""
                    assert time.monotonic() - began < 2.3


async def test_the_second_request_of_a_connection_has_a_deadline_too(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (_, port), connected(port) as (reader, writer):
        for _ in range(2):
            writer.write(head("/healthz"))
            assert (await read_answer(reader))[0] == 200
        writer.write(b"GET /heal")
        assert (await read_answer(reader))[0] == 408


async def test_what_is_no_http_is_a_problem_too(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (_, port), connected(port) as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        status, headers, body = await read_answer(reader)
        assert (status, headers["content-type"]) == (400, "application/problem+json")
        assert json.loads(body)["code"] == "invalid_request"


async def test_a_body_that_stops_being_http_ends_the_connection_and_harms_nothing(make_house, caplog):
    async with make_house(DEADLINE) as house, house.serving() as (server, port):
        for content_type, expected in (("application/json", 400), ("text/plain", 415)):
            async with connected(port) as (reader, writer):
                extra = {"Content_Type": content_type, "Transfer_Encoding": "chunked"}
                writer.write(head("/pinhole/predict", house.key, method="POST", **extra) + b"1\r\n{\r\n")
                if expected == 415:
                    assert (await read_answer(reader))[0] == 415
                else:
                    await asyncio.sleep(0.1)
                writer.write(b"no chunk\r\n")
                if expected == 400:
                    assert (await read_answer(reader))[0] == 400
                with suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), 3) == b""
        await quiet(server)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_refused_body_is_answered_before_it_has_arrived(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (_, port):
        for length, headers, expected in ((10**9, {}, 413), (50, {"Content_Type": "text/plain"}, 415)):
            async with connected(port) as (reader, writer):
                writer.write(predict_head(house, length, **headers) + b" " * 10)
                assert (await read_answer(reader))[0] == expected


async def test_many_half_open_connections_do_not_keep_health_waiting(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (_, port):
        idle = []
        for number in range(200):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(b"POST /pinhole/predict HTTP/1.1\r\n"[: number % 30])
            idle.append(connection)
        began, worked = time.monotonic(), time.process_time()
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/healthz")).status_code == 200
        # The clock runs for whatever else the machine does: little work is the sharper bound.
        assert time.process_time() - worked < 1
        assert time.monotonic() - began < 3
        for connection in idle:
            connection.close()


@asynccontextmanager
async def with_big_image(house):
    """The path of an image of 8 MB, made anew for each reader."""
    async with house.working():
        answer = await house.predict(width=64, height=64)

    async def read(path: str) -> bytes:
        return bytes(BIG)

    house.store.images.read = read
    yield f"/runs/{answer.json()['run_id']}/images/0"


@asynccontextmanager
async def asking_without_reading(port: int, request: bytes):
    loop = asyncio.get_running_loop()
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        stuck.setblocking(False)
        await loop.sock_connect(stuck, ("127.0.0.1", port))
        await loop.sock_sendall(stuck, request)
        yield stuck


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.02)


def is_held(server: uvicorn.Server, connection: socket.socket) -> bool:
    """Whether the door still has this connection. Its client may not know: a kernel whose window is shut passes over a
    reset that does not fit into it, and learns the truth when it next has room."""
    address = connection.getsockname()
    return any(each.client == address for each in server.server_state.connections)


def is_kept_by_kernel(port: int, connection: socket.socket) -> bool:
    """Whether the kernel still has the door's end, with what its client did not take."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = f":{port:04X}", f":{connection.getsockname()[1]:04X}"
    return any((row[1][-5:], row[2][-5:]) == ends for row in rows)


async def test_readers_that_stop_reading_are_dropped_and_their_answers_forgotten(make_house):
    async with (
        make_house(DEADLINE) as house,
        house.serving() as (server, port),
        with_big_image(house) as image,
        AsyncExitStack() as stack,
    ):
        tracemalloc.start()
        request = head(image, house.key)
        stuck = [await stack.enter_async_context(asking_without_reading(port, request)) for _ in range(10)]
        # At the most; on a busy machine the first are dropped before the last have asked.
        await until(lambda: tracemalloc.get_traced_memory()[1] > 2 * BIG)
        await until(lambda: not server.server_state.connections)
        await quiet(server)
        left = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert left < BIG
        assert not any(is_kept_by_kernel(port, each) for each in stuck)


async def test_a_reader_of_drops_is_dropped_and_a_slow_one_is_not(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (server, port), with_big_image(house) as image:
        async with asking_without_reading(port, head(image, house.key)) as dripping:
            loop, began = asyncio.get_running_loop(), time.monotonic()
            assert await loop.sock_recv(dripping, 100)
            while is_held(server, dripping):
                assert await loop.sock_recv(dripping, 100)
                assert time.monotonic() - began < 5
                await asyncio.sleep(0.05)
        async with connected(port) as (reader, writer):
            writer.write(head(image, house.key, Connection="close"))
            taken, began = 0, time.monotonic()
            while chunk := await reader.read(1_000_000):
                taken += len(chunk)
                if time.monotonic() - began < 1:
                    await asyncio.sleep(0.1)
            assert taken > BIG


async def test_a_client_that_hangs_up_loses_only_its_connection(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (server, port):
        async with connected(port) as (_, writer):
            body = json.dumps(EXAMPLE_BODY).encode()
            writer.write(predict_head(house, len(body)) + body)
            (run,) = await house.queued(1)
        await quiet(server)
        assert not server.server_state.tasks, "nobody waits for a client that is gone"
        async with house.working():
            record = await house.ended(run.id)
        assert record["status"] == "succeeded"
        assert len(record["images"]) == 2


async def test_a_client_that_hangs_up_within_its_body_leaves_nothing(make_house, caplog):
    async with make_house(DEADLINE) as house, house.serving() as (server, port):
        async with connected(port) as (_, writer):
            writer.write(predict_head(house, 1000) + b'{"prompt"')
            await writer.drain()
            await asyncio.sleep(0.1)
        await quiet(server)
        assert (await house.store.runs.list())[0] == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_stopping_answers_who_waits_and_ends_streams(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (server, port):
        headers = {"Authorization": house.key}
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10) as client:
            waiting = asyncio.create_task(client.post("/pinhole/predict", json={"prompt": "x"}))
            (run,) = await house.queued(1)
            following = asyncio.create_task(client.get(f"/runs/{run.id}/events"))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            server.should_exit = True
            answer, stream = await asyncio.gather(waiting, following)
        assert time.monotonic() - began < 3
        assert (answer.status_code, answer.json()["code"]) == (503, "stopping")
        assert answer.json()["run_id"] == run.id and int(answer.headers["retry-after"]) >= 1
        assert "event: queued" in stream.text
        assert (await house.store.runs.get(run.id)).status is RunStatus.QUEUED


async def test_events_arrive_as_they_happen(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (_, port):
        run_id = (await house.predict(webhook_endpoint="http://a.example", width=64, height=64)).json()["run_id"]
        async with connected(port) as (reader, writer):
            writer.write(head(f"/runs/{run_id}/events", house.key))
            await asyncio.wait_for(reader.readuntil(b"event: queued"), 3)
            async with house.working(held=True) as worker:
                await asyncio.wait_for(reader.readuntil(b"event: started"), 3)
                await asyncio.wait_for(reader.readuntil(b"event: progress"), 3)
                worker.hold.set()
                await asyncio.wait_for(reader.readuntil(b"event: succeeded"), 3)
                await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 3)


async def test_a_follower_that_hangs_up_is_forgotten(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (server, port):
        listeners_before = set(house.store.notifications._listeners)
        run_id = (await house.predict(webhook_endpoint="http://a.example")).json()["run_id"]
        async with connected(port) as (reader, writer):
            writer.write(head(f"/runs/{run_id}/events", house.key))
            await asyncio.wait_for(reader.readuntil(b"event: queued"), 3)
        await quiet(server)
        assert not server.server_state.tasks
        assert house.store.notifications._listeners.keys() == listeners_before


async def test_the_server_does_not_say_what_it_is_made_of(make_house):
    async with make_house(DEADLINE) as house, house.serving() as (_, port), httpx2.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/healthz")
    assert "server" not in answer.headers
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
