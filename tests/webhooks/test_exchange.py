from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from safelight.webhooks.exchange import Answer, Poster, parse_retry_after
from safelight.webhooks.targets import GuardedBackend, TargetPolicy

from . import receiver as behaviours
from .receiver import Behaviour, answers, receiving

SHORT_SECONDS = 0.4
"""For endpoints that would never end; the others have time enough on a busy machine."""


@contextlib.asynccontextmanager
async def poster(timeout_seconds: float = 10) -> AsyncIterator[Poster]:
    guarded = GuardedBackend(TargetPolicy([ip_network("127.0.0.0/8")]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made = Poster(guarded, timeout_seconds=timeout_seconds, now=time.time, ssl_context=context)
    try:
        yield made
    finally:
        await made.close()


async def meet(behaviour: Behaviour, timeout_seconds: float = 10) -> Answer:
    async with poster(timeout_seconds) as made, receiving(behaviour) as receiver:
        answer = await made.post(receiver.url, {"webhook-id": "evt_1"}, b'{"a": 1}')
        assert receiver.num_connections == 1
        return answer


async def test_the_body_arrives_whole_with_its_headers() -> None:
    body = b"x" * 3_000_000
    async with poster() as made, receiving() as receiver:
        answer = await made.post(receiver.url, {"webhook-id": "evt_1", "content-type": "application/json"}, body)
    assert answer.is_success
    (request,) = receiver.arrived
    assert request.body == body
    assert request.headers["webhook-id"] == "evt_1"
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert request.headers["connection"] == "close"


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_success(status: int) -> None:
    assert (await meet(answers(status))).is_success


@pytest.mark.parametrize("status", [300, 304, 400, 401, 404, 410, 418, 429, 500, 503])
async def test_anything_else_is_not(status: int) -> None:
    answer = await meet(answers(status))
    assert not answer.is_success
    assert answer.status_code == status


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with receiving() as elsewhere:
        answer = await meet(answers(status, location=elsewhere.url))
        assert elsewhere.num_connections == 0
    assert answer.status_code == status
    assert "redirects are not followed" in (answer.error or "")


@pytest.mark.parametrize("behaviour", [behaviours.drips, behaviours.is_silent])
async def test_an_answer_that_does_not_come_ends_at_the_time_limit(behaviour: Behaviour) -> None:
    started = time.monotonic()
    answer = await meet(behaviour, SHORT_SECONDS)
    assert time.monotonic() - started < 5
    assert answer.status_code is None
    assert answer.error == "no complete answer within 0.4 s"


async def test_a_body_that_drips_after_a_2xx_is_an_acknowledgement_all_the_same() -> None:
    answer = await meet(behaviours.drips_its_body, SHORT_SECONDS)
    assert answer.is_success
    assert answer.error == "no complete answer within 0.4 s"
    assert answer.excerpt.startswith("xx")


async def test_an_endless_body_is_cut_off_and_only_its_beginning_kept() -> None:
    started = time.monotonic()
    answer = await meet(behaviours.never_ends)
    assert time.monotonic() - started < 5
    assert answer.is_success
    assert answer.excerpt == "y" * 1024


@pytest.mark.parametrize("behaviour", [behaviours.hangs_up, behaviours.resets, behaviours.talks_nonsense])
async def test_a_connection_that_breaks_is_an_error_sentence(behaviour: Behaviour) -> None:
    answer = await meet(behaviour)
    assert answer.status_code is None
    assert answer.error


async def test_a_2xx_that_breaks_off_in_its_body_has_acknowledged() -> None:
    answer = await meet(behaviours.breaks_off_after_the_status)
    assert answer.is_success
    assert answer.excerpt == "half"


async def test_a_closed_port_is_refused_without_naming_the_address() -> None:
    async with receiving() as receiver:
        url = receiver.url
    async with poster() as made:
        answer = await made.post(url, {}, b"")
    assert answer.error is not None
    assert "127.0.0.1" not in answer.error


async def test_https_to_a_port_that_speaks_http_is_an_error_sentence() -> None:
    async def speaks_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(speaks_first, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with poster() as made:
        answer = await made.post(f"https://127.0.0.1:{port}/", {}, b"")
    server.close()
    assert (answer.error or "").startswith("TLS failed") or "closed" in (answer.error or "")


async def test_the_excerpt_is_always_storable_text() -> None:
    answer = await meet(answers(500, b"\xff\x00\xe4" + "ü".encode() * 600))
    assert "\0" not in answer.excerpt
    answer.excerpt.encode()


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_read_where_it_has_a_meaning(status: int) -> None:
    assert (await meet(answers(status, Retry_After="120"))).retry_after_seconds == 120
    assert (await meet(answers(500, Retry_After="120"))).retry_after_seconds is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("9" * 5000, 999999999.0),
        ("Thu, 99 Jan 1970 00:00:00 GMT", None),
        ("Thu, 01 Jan 1970 00:00:00 +99999999999999", None),
        ("Thu, 01 Jan 19700000000000 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, expected: float | None) -> None:
    assert parse_retry_after(text, now=100.0) == expected


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_socket_is_left_behind_by_hostile_endpoints() -> None:
    async with (
        poster(SHORT_SECONDS) as made,
        receiving(behaviours.never_ends) as endless,
        receiving(behaviours.drips) as dripping,
    ):
        before = num_open_files()
        await asyncio.gather(*(made.post(endless.url, {}, b"") for _ in range(10)))
        await asyncio.gather(*(made.post(dripping.url, {}, b"") for _ in range(10)))
        await asyncio.sleep(0.1)
        assert num_open_files() <= before + 1
