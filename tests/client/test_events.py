from __future__ import annotations

import pytest

from safelight import errors
from safelight.client import ServerUnreachable, UnexpectedAnswer
from safelight.client.calls import Patience
from safelight.runs import RunError, RunEventKind

from .conftest import MakeClient
from .stub import RUN_ID, Reply, Stub, event, problem, stream

EVENTS = f"GET /runs/{RUN_ID}/events"
END = event("succeeded", 5)


def kinds(events: object) -> list[str]:
    return [each.kind.value for each in events]  # type: ignore[attr-defined]


def test_events_come_in_order_with_what_they_say(stub: Stub, connect: MakeClient) -> None:
    said = [
        b"retry: 2000\n\n",
        event("queued", 1),
        b": still here\n\n",
        event("started", 2),
        event("progress", steps_done=10, steps_total=50, eta_seconds=1.5),
        event("preview"),
        event("image", 3, image_index=0, image_url=f"/runs/{RUN_ID}/images/0"),
        END,
    ]
    stub.on(EVENTS, stream(*said))
    events = list(connect(stub.url).events(RUN_ID))
    assert kinds(events) == ["queued", "started", "progress", "preview", "image", "succeeded"]
    assert [each.sequence for each in events] == [1, 2, None, None, 3, 5]
    assert (events[2].steps_done, events[2].steps_total, events[2].eta_seconds) == (10, 50, 1.5)
    assert events[4].image_index == 0
    assert events[0].at == 1772366400.25
    assert "last-event-id" not in stub.seen[0].headers


def test_a_dropped_connection_is_taken_up_behind_the_last_event(
    stub: Stub, connect: MakeClient, slept: list[float]
) -> None:
    stub.on(
        EVENTS,
        stream(event("queued", 1), event("started", 2), event("progress", steps_done=1), cut=True),
        Reply(cut=True),
        # In order, but before the run ended: a server that restarts.
        stream(event("started", 2), event("image", 3, image_index=0)),
        stream(END),
    )
    events = list(connect(stub.url).events(RUN_ID))
    assert kinds(events) == ["queued", "started", "progress", "image", "succeeded"]
    assert [request.headers.get("last-event-id") for request in stub.seen] == [None, "2", "2", "3"]
    assert len(slept) == 3


def test_a_run_that_ended_before_has_nothing_more_to_tell(stub: Stub, connect: MakeClient) -> None:
    stub.on(EVENTS, Reply(204))
    assert list(connect(stub.url).events(RUN_ID, after=9)) == []
    assert stub.seen[0].headers["last-event-id"] == "9"


def test_the_error_of_a_failed_run_is_in_its_last_event(stub: Stub, connect: MakeClient) -> None:
    stub.on(EVENTS, stream(event("failed", 4, error={"code": "worker_lost", "message": "m"})))
    (last,) = connect(stub.url).events(RUN_ID)
    assert last.kind is RunEventKind.FAILED
    assert last.error == RunError("worker_lost", "m")


def test_kinds_of_a_later_version_are_passed_over(stub: Stub, connect: MakeClient) -> None:
    stub.on(EVENTS, stream(event("dreamed", 1), END))
    assert kinds(connect(stub.url).events(RUN_ID)) == ["succeeded"]


def test_a_server_that_is_busy_is_asked_again(stub: Stub, connect: MakeClient, slept: list[float]) -> None:
    stub.on(EVENTS, problem(503, "stopping", "m", Retry_After="4"), stream(END))
    assert kinds(connect(stub.url).events(RUN_ID)) == ["succeeded"]
    assert 4 <= slept[0] <= 5


def test_an_unknown_run_is_an_error_at_once(stub: Stub, connect: MakeClient) -> None:
    stub.on(EVENTS, problem(404, "run_not_found", "no such run"))
    with pytest.raises(errors.NotFound, match="no such run"):
        list(connect(stub.url).events(RUN_ID))
    assert len(stub.seen) == 1


@pytest.mark.parametrize("reply", [Reply(cut=True), stream(), stream(b": nothing\n\n"), Reply(200, b"<html>")])
def test_following_gives_up_when_nothing_comes_any_more(stub: Stub, connect: MakeClient, reply: Reply) -> None:
    stub.on(EVENTS, reply)
    with pytest.raises(ServerUnreachable):
        list(connect(stub.url, patience=Patience(max_retries=2)).events(RUN_ID))
    assert len(stub.seen) == 3


def test_any_number_of_drops_is_outlived_while_events_come(stub: Stub, connect: MakeClient) -> None:
    drops = [stream(event("image", number, image_index=number), cut=True) for number in range(1, 11)]
    stub.on(EVENTS, *drops, stream(event("succeeded", 11)))
    assert len(list(connect(stub.url, patience=Patience(max_retries=1)).events(RUN_ID))) == 11


def test_an_event_that_cannot_be_read_is_an_error(stub: Stub, connect: MakeClient) -> None:
    stub.on(EVENTS, stream(b"event: queued\nid: 1\ndata: {\n\n"))
    with pytest.raises(UnexpectedAnswer):
        list(connect(stub.url).events(RUN_ID))


def test_a_stream_that_is_refused_for_longer_than_patience_is_told_at_once(
    stub: Stub, connect: MakeClient, slept: list[float]
) -> None:
    stub.on(EVENTS, problem(503, "overloaded", "down for the day", Retry_After="86400"))
    with pytest.raises(errors.TryLater, match="down for the day"):
        list(connect(stub.url).events(RUN_ID))
    assert slept == []
