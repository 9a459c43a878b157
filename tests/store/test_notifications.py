"""Hints within a process and between processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from safelight.errors import NotFound
from safelight.store import Listener, Notifications, Store
from safelight.store.database import open_engine, open_wire
from safelight.store.hint_sockets import MAX_ADDRESS_BYTES, HintSockets
from safelight.store.late import add_hint
from safelight.store.notifications import Wire
from tests.postgres import Postgres

from .making import claim_one, submit

Join = Callable[[], AbstractContextManager[Notifications]]


@pytest.fixture
def join(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Join:
    """Each call is as another process that joins."""
    url: str | None = None
    if kind == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.url()
    return lambda: joined(open_wire(open_engine(tmp_path, url), tmp_path))


def started(data: Path) -> AbstractContextManager[Notifications]:
    return joined(HintSockets(data))


@contextlib.contextmanager
def joined(wire: Wire) -> Iterator[Notifications]:
    notifications = Notifications(wire)
    notifications.start()
    try:
        yield notifications
    finally:
        notifications.close()


async def hinted(listener: Listener) -> bool:
    return await listener.wait(2.0)


async def test_a_hint_wakes_listeners_here_and_elsewhere(join: Join) -> None:
    with (
        join() as here,
        join() as there,
        here.listen("queue") as near,
        there.listen("cancel", "queue") as far,
        there.listen("cancel") as deaf,
    ):
        here.publish("queue")
        assert await hinted(near) and await hinted(far)
        assert not await deaf.wait(0.01)


async def test_a_hint_between_two_waits_is_not_lost_and_counts_once(join: Join) -> None:
    with join() as here, here.listen("queue") as listener:
        here.publish("queue")
        here.publish("queue")
        assert await listener.wait(0)
        assert not await listener.wait(0.01)


async def test_a_waiting_listener_is_woken_at_once(join: Join) -> None:
    with join() as here, join() as there, there.listen("queue") as listener:
        waiting = asyncio.create_task(listener.wait(30.0))
        await asyncio.sleep(0.01)
        here.publish("queue")
        assert await asyncio.wait_for(waiting, 2.0)


async def test_many_hints_of_one_moment_all_arrive(join: Join) -> None:
    with join() as here, join() as there, contextlib.ExitStack() as listening:
        listeners = [listening.enter_context(there.listen(f"run:{number}")) for number in range(300)]
        for number in range(300):
            here.publish(f"run:{number}")
        assert all([await hinted(listener) for listener in listeners])


async def test_a_hint_of_a_process_that_then_ends_arrives(join: Join) -> None:
    with join() as there, there.listen("queue") as listener:
        with join() as here:
            here.publish("queue")
        assert await hinted(listener)


async def test_sockets_of_dead_processes_are_removed(tmp_path: Path) -> None:
    with started(tmp_path) as here:
        dead = tmp_path / "hints" / "1-dead"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(str(dead))
        (tmp_path / "hints" / "no-socket").touch()
        here.publish("queue")
        await asyncio.sleep(0.01)
        assert not dead.exists()
    assert not [path for path in (tmp_path / "hints").iterdir() if path.is_socket()]


async def test_an_ear_that_is_full_blocks_nobody(tmp_path: Path) -> None:
    with started(tmp_path) as here, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "hints" / "deaf"))
        with here.listen("queue") as listener:
            for _ in range(2000):
                here.publish("queue")
                await asyncio.sleep(0)
            assert await hinted(listener)


async def test_a_long_data_path_gets_a_short_one_for_hints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / ("d" * MAX_ADDRESS_BYTES)
    data.mkdir()
    with started(data) as here, started(data) as there, there.listen("queue") as listener:
        here.publish("queue")
        assert await hinted(listener)


async def test_without_any_folder_for_sockets_hints_stay_within_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hints").touch()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "missing"))
    with started(tmp_path) as here, here.listen("queue") as listener:
        here.publish("queue")
        assert await hinted(listener)


async def test_what_happens_to_runs_is_hinted(store: Store, neighbour: Store) -> None:
    with neighbour.notifications.listen("queue") as queue, neighbour.notifications.listen("cancel") as cancels:
        run = await submit(store)
        assert await hinted(queue)
        with neighbour.notifications.listen(f"run:{run.id}") as changes:
            await claim_one(store)
            assert await hinted(changes)
            await store.runs.cancel(run.id)
            assert await hinted(changes) and await hinted(cancels)


async def test_what_is_committed_is_hinted_also_where_nobody_waits_for_it_any_more(
    store: Store, neighbour: Store
) -> None:
    has_begun, may_end = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        has_begun.set()
        assert may_end.wait(10)
        add_hint(connection, "queue")

    with neighbour.notifications.listen("queue") as far, store.notifications.listen("queue") as near:
        asking = asyncio.create_task(store._database.write(hold))
        assert await asyncio.to_thread(has_begun.wait, 10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        may_end.set()
        assert await hinted(far) and await hinted(near)


async def test_what_is_undone_is_not_hinted(store: Store, neighbour: Store) -> None:
    def fail(connection: Connection) -> None:
        add_hint(connection, "queue")
        raise NotFound("on purpose")

    with neighbour.notifications.listen("queue", "cancel") as far:
        with pytest.raises(NotFound):
            await store._database.write(fail)
        await store._database.write(lambda connection: None)
        assert not await far.wait(0.1)


async def test_the_first_hint_of_a_moment_goes_at_once_and_the_others_of_it_together() -> None:
    sent: list[list[str]] = []

    class Wire:
        def open(self, receive: Callable[[Sequence[str]], None]) -> None: ...

        def send(self, topics: Sequence[str]) -> None:
            sent.append(list(topics))

        def close(self) -> None: ...

    with joined(Wire()) as notifications:
        notifications.publish("run:a", "end:a")
        assert sent == [["run:a", "end:a"]]
        for topic in ("queue", "run:b", "queue"):
            notifications.publish(topic)
        assert len(sent) == 1
        await asyncio.sleep(0.01)
        assert sent[1:] == [["queue", "run:b"]]
        notifications.publish("cancel")
        assert sent[2:] == [["cancel"]]
