"""Promise 8: SIGTERM in the middle of work, to the parts of a server and to the whole of it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from safelight.config import Settings
from safelight.runs import RunStatus

from .child import slow_model
from .crew import FORK, Crew, WholeCrew, furnish, in_child, opened, settings_for
from .figures import Figure, check
from .judge import all_runs, judge, settle
from .traffic import RETRY_SECONDS, Ledger, body_of, start_clients

SETTLE_SECONDS = 90.0
DRAIN_SECONDS = 5.0
START_SECONDS = 60.0
STOP_LEASE_SECONDS = 20.0
"""So long that a busy machine ends none: an attempt that is lost was lost by a stop. A successor asks
for no lease's end."""

NUM_CLIENTS = 8
PAUSE_SECONDS = 1.5
"""Of each client between two runs: they ask until the last stop, and are not refused for a full queue."""

LONG_STEPS = 50
"""A second: a stop meets this run on its way."""

NUM_ASKED_AGAIN = 5
WHOLE_SHARE = 0.1
"""Of the stops: a server takes its seconds to start."""


@dataclass
class Stops:
    """What came of some of them."""

    num_refused: int = 0
    num_late: int = 0
    num_runs: int = 0
    num_costly: int = 0
    num_given_back: int = 0
    slowest: float = 0.0
    slowest_refusal: float = 0.0
    faults: list[str] = field(default_factory=list)


@dataclass
class Caller:
    """Asks for runs of its own. What is accepted goes into the ledger, to be looked for like any other."""

    url: str
    key: str
    ledger: Ledger
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1_000_000))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)

    def ask(self, connection: http.client.HTTPConnection) -> tuple[http.client.HTTPResponse, dict[str, object]]:
        number = next(self.numbers)
        body = body_of(number, None) | {"num_inference_steps": LONG_STEPS}
        headers = {"Authorization": self.key, "Content-Type": "application/json", "Prefer": "respond-async"}
        connection.request("POST", "/pinhole/predict", json.dumps(body), headers)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        if answer.status < 300:
            self.ledger.note(number, found["run_id"])
        return answer, found

    def draw(self) -> http.client.HTTPConnection:
        """Wait until a run of its own is being drawn; the connection that it was asked for on."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            connection = self.connect()
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer, found = self.ask(connection)
                if answer.status < 300:
                    self._until_drawn(connection, found["run_id"], deadline)
                    return connection
            connection.close()
            time.sleep(RETRY_SECONDS)
        raise AssertionError("no run was accepted")

    def _until_drawn(self, connection: http.client.HTTPConnection, run_id: object, deadline: float) -> None:
        while time.monotonic() < deadline:
            connection.request("GET", f"/runs/{run_id}", headers={"Authorization": self.key})
            run = json.loads(connection.getresponse().read())
            if run["progress"]["steps_done"]:
                return
            time.sleep(0.01)

    def look_for_refusal(self, kept: http.client.HTTPConnection, stops: Stops) -> None:
        """After a signal: how soon the door refuses, on a connection from before and on new ones, and that it goes on
        to."""
        begun = time.monotonic()
        answer, found = self.ask(kept)
        while answer.status < 300 and time.monotonic() < begun + DRAIN_SECONDS:
            stops.num_late += 1
            answer, found = self.ask(kept)
        stops.slowest_refusal = max(stops.slowest_refusal, time.monotonic() - begun)
        stops.faults += _wrong_refusal(answer, found)
        for _ in range(NUM_ASKED_AGAIN):
            with contextlib.closing(self.connect()) as fresh:
                stops.faults += _wrong_refusal(*self.ask(fresh))
        stops.num_refused += 1 + NUM_ASKED_AGAIN


def _wrong_refusal(answer: http.client.HTTPResponse, found: dict[str, object]) -> list[str]:
    told = (answer.status, answer.headers["Content-Type"], found.get("code"))
    return check(told == (503, "application/problem+json", "stopping"), f"after a signal it answers {told}") + check(
        int(answer.headers["Retry-After"] or 0) >= 1, "a refusal does not say when to come again"
    )


def sigterm(folder: Path, *, num_times: int, refused_within: float = 1.0) -> Figure:
    """API and worker by turns told to stop under load, and some times the supervisor of a whole server."""
    num_whole = max(1, round(WHOLE_SHARE * num_times))
    both = (
        _stop(folder / "parts", Crew, ("w0", "api"), num_times - num_whole),
        _stop(folder / "whole", WholeCrew, ("serve",), num_whole),
    )
    slowest, refusal = max(each.slowest for each in both), max(each.slowest_refusal for each in both)
    costly, num_runs = sum(each.num_costly for each in both), sum(each.num_runs for each in both)
    faults = (
        [fault for each in both for fault in each.faults]
        + check(slowest < DRAIN_SECONDS + 5, f"one took {slowest:.1f} s")
        + check(refusal < refused_within, f"the first refusal came after {refusal:.1f} s")
        + check(costly == 0, f"{costly} runs lost an attempt")
    )
    figure = (
        f"{num_times} exits with 0, the slowest after {slowest:.1f} s; {sum(each.num_refused for each in both)} new"
        f" runs refused, the first within {1000 * refusal:.0f} ms of the signal, {sum(each.num_late for each in both)}"
        f" accepted before that; {num_runs} runs, {costly} lost an attempt,"
        f" {sum(each.num_given_back for each in both)} given back unfinished"
    )
    done = f"SIGTERM {num_times} times while runs are drawn and asked for, {num_whole} of them to a whole server"
    return Figure("8", done, figure, faults)


def _stop(folder: Path, kind: type[Crew], names: tuple[str, ...], num_times: int) -> Stops:
    folder.mkdir()
    settings = settings_for(
        folder, drain_seconds=DRAIN_SECONDS, lease_seconds=STOP_LEASE_SECONDS, heartbeat_seconds=STOP_LEASE_SECONDS / 4
    )
    key = in_child(furnish, settings)
    accepted, stops, is_over = Ledger(folder / "accepted"), Stops(), FORK.Event()
    with kind(settings, folder, num_workers=1, model=slow_model).working() as crew:
        clients = start_clients(
            crew,
            key,
            accepted,
            lambda lane: itertools.takewhile(lambda _: not is_over.is_set(), itertools.count(lane, NUM_CLIENTS)),
            num_clients=NUM_CLIENTS,
            webhook=None,
            pause_seconds=PAUSE_SECONDS,
        )
        caller = Caller(crew.url, key, accepted)
        for number in range(num_times):
            _stop_once(crew, names[number % len(names)], caller, stops)
        is_over.set()
        clients.join()
        stops.faults += crew.own_deaths + check(in_child(settle, settings, SETTLE_SECONDS), "not all runs ended")
    found = in_child(judge, settings, [(int(number), run_id) for number, run_id in accepted.lines()], None)
    stops.num_runs = found.num_runs
    stops.num_costly, stops.num_given_back = in_child(_num_costly, settings)
    stops.faults += found.faults
    return stops


def _stop_once(crew: Crew, name: str, caller: Caller, stops: Stops) -> None:
    crew.wait_until_it_listens(name)
    with contextlib.closing(caller.draw()) as kept:

        def look() -> None:
            if name != "w0":
                caller.look_for_refusal(kept, stops)

        status, seconds = crew.terminate(name, within=DRAIN_SECONDS + 10, meanwhile=look)
    stops.faults += check(status == 0, f"{name} ended with {status}")
    stops.slowest = max(stops.slowest, seconds)
    if name == "serve":
        try:
            caller.connect().connect()
            stops.faults.append("something listens where a server was stopped")
        except ConnectionRefusedError:
            pass
    crew.start(name)


async def _num_costly(settings: Settings) -> tuple[int, int]:
    """How many runs lost an attempt, and how many did not end within the grace."""
    async with await opened(settings) as store:
        ended = [run for run in await all_runs(store) if run.status is RunStatus.SUCCEEDED]
    return sum(run.num_attempts > 1 for run in ended), sum(run.fence > 1 for run in ended)
