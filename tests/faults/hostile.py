"""Promises 10 and 11: endpoints that are dead or hostile beside a good one, and a secret that rotates
under deliveries."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from ipaddress import ip_network
from pathlib import Path

import standardwebhooks

from safelight.config import WebhookSettings
from safelight.garbage import give_memory_back
from safelight.runs import NewRun, Outcome, RunParams, RunStatus
from safelight.store import Store
from safelight.webhooks.deliverer import Deliverer
from safelight.webhooks.targets import TargetPolicy
from tests.webhooks import receiver as behaviours
from tests.webhooks.receiver import Arrived, Receiver, receiving

from .figures import Figure, check
from .soak import sample

NUM_HOSTS = 28
"""A multiple of HOSTILE: each host has one way of being hostile."""

PER_HOST = 4
TRY_SECONDS = 20.0
MAX_P99_SECONDS = 1.0
MAX_MEGABYTES = 20.0
PAUSE_SECONDS = 0.02
HOSTILE = (behaviours.is_silent, behaviours.never_ends, behaviours.drips, behaviours.drips_its_body)


@contextlib.asynccontextmanager
async def at_work(folder: Path, *, timeout_seconds: float = TRY_SECONDS) -> AsyncIterator[Store]:
    """A store and a deliverer; every name is this machine."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    settings = WebhookSettings(timeout_seconds=timeout_seconds, retry_seconds=(0, 0.5, 1, 2, 4))
    policy = TargetPolicy([ip_network("127.0.0.0/8")])
    async with await Store.open(folder / "data") as store:
        deliverer = Deliverer(store, settings, policy=policy, resolve=resolve, poll_seconds=0.1)
        task = asyncio.create_task(deliverer.run())
        try:
            yield store
        finally:
            await deliverer.close(grace_seconds=0.1)
            await asyncio.wait_for(task, 20)


async def end_run(store: Store, url: str | None) -> str:
    new = NewRun(
        id=str(uuid.uuid4()),
        project="default",
        key_id=None,
        deployment="d",
        deployment_version=1,
        params=RunParams(prompt="x"),
        webhook_endpoint=url,
    )
    await store.runs.create(new, max_queued=100_000)
    (claim,) = await store.runs.claim("worker", limit=1, lease_seconds=60)
    # A run without pictures: what is measured is the delivery.
    await store.runs.finish(claim, Outcome(status=RunStatus.FAILED, run_time_ms=1.0))
    return "evt_" + new.id.replace("-", "")


def hostile_endpoints(folder: Path, *, num_good: int, max_p99_seconds: float = MAX_P99_SECONDS) -> Figure:
    """Hosts that hang, drip and never end, each with a backlog, while a good one is told.

    Who waits for one of them waits for TRY_SECONDS; that is what `max_p99_seconds` has to be far from.
    """
    waits, megabytes, num_bad = asyncio.run(_among_hostile(folder, num_good))
    p99 = sorted(waits)[int(0.99 * (len(waits) - 1))]
    faults = check(len(waits) == num_good, f"{num_good - len(waits)} were not delivered")
    faults += check(p99 <= max_p99_seconds, f"the good endpoint's p99 is {p99:.2f} s")
    faults += check(megabytes < MAX_MEGABYTES, f"memory grew by {megabytes:.0f} MB")
    figure = (
        f"good endpoint p50 {statistics.median(waits) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms;"
        f" memory + {megabytes:.0f} MB"
    )
    done = f"{NUM_HOSTS} hosts that hang, drip or never end, {num_bad} deliveries to them, {num_good} to a good one"
    return Figure("10", done, figure, faults)


async def _among_hostile(folder: Path, num_good: int) -> tuple[list[float], float, int]:
    arrived_at: dict[str, float] = {}

    async def note(writer: asyncio.StreamWriter, request: Arrived) -> None:
        arrived_at[request.headers["webhook-id"]] = time.monotonic()
        await behaviours.answers(200)(writer, request)

    # Connections that are cut off at the end are what the endpoints were made for.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with contextlib.AsyncExitStack() as stack:
        bad = [await stack.enter_async_context(receiving(behave)) for behave in HOSTILE]
        good = await stack.enter_async_context(receiving(note))
        store = await stack.enter_async_context(at_work(folder))
        url = good.url.replace("127.0.0.1", "good.example")
        ended_at = {await end_run(store, url): 0.0}
        await _until(lambda: len(arrived_at) == 1)
        grown = await stack.enter_async_context(watching_memory())
        for number in range(NUM_HOSTS * PER_HOST):
            host = f"bad{number % NUM_HOSTS}.example"
            await end_run(store, bad[number % len(bad)].url.replace("127.0.0.1", host))
        ended_at = {}
        for _ in range(num_good):
            ended_at[await end_run(store, url)] = time.monotonic()
            await asyncio.sleep(PAUSE_SECONDS)
        with contextlib.suppress(TimeoutError):
            await _until(lambda: ended_at.keys() <= arrived_at.keys())
    return (
        [arrived_at[event] - at for event, at in ended_at.items() if event in arrived_at],
        max(grown),
        NUM_HOSTS * PER_HOST,
    )


@contextlib.asynccontextmanager
async def watching_memory() -> AsyncIterator[list[float]]:
    """How much more this process holds than at the beginning, ten times a second, in megabytes. What it held once
    and gave back before does not hide anything, as the kernel's own peak would."""
    # What earlier work left free would take in what is to be seen.
    give_memory_back()
    before, grown = sample(os.getpid()).megabytes, [0.0]

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.1)
            grown.append(sample(os.getpid()).megabytes - before)

    watcher = asyncio.create_task(watch())
    try:
        yield grown
    finally:
        watcher.cancel()


def rotation(folder: Path, *, num_deliveries: int) -> Figure:
    """The secrets of a registered endpoint and of the project are rotated in the middle; the receiver, which half of
    the deliveries reach by each way, changes over some time later."""
    accepted, by_old, num = asyncio.run(_rotate_among(folder, num_deliveries))
    faults = check(num == num_deliveries, f"{num_deliveries - num} were not delivered")
    faults += check(accepted == num_deliveries, f"{num_deliveries - accepted} were not accepted")
    figure = f"{accepted} of {num_deliveries} verified by the official library, {by_old} of them with the secret before"
    return Figure("11", f"{num_deliveries} deliveries, their secrets rotated in the middle", figure, faults)


async def _rotate_among(folder: Path, num_deliveries: int) -> tuple[int, int, int]:
    receiver: Receiver
    async with receiving() as receiver, at_work(folder) as store:
        endpoint, old = await store.webhook_endpoints.create(receiver.url)
        known_before = (old, (await store.project_secrets.newest("default")).secret)
        for number in range(num_deliveries // 2):
            if number == num_deliveries // 6:
                _, new = await store.webhook_endpoints.rotate(endpoint.id)
                known_after = (new, (await store.project_secrets.rotate("default")).secret)
            await end_run(store, receiver.url)
        await _until(lambda: len(receiver.arrived) >= num_deliveries)
    # The receiver goes on with what it knows until two thirds are in, and knows only the new ones from then on.
    changes_over = 2 * num_deliveries // 3
    known = [known_before if number < changes_over else known_after for number in range(len(receiver.arrived))]
    accepted = [
        any(_verifies(secret, request) for secret in secrets)
        for secrets, request in zip(known, receiver.arrived, strict=True)
    ]
    return sum(accepted), sum(accepted[:changes_over]), len(receiver.arrived)


def _verifies(secret: str, request: Arrived) -> bool:
    try:
        standardwebhooks.Webhook(secret).verify(request.body, request.headers)
    except standardwebhooks.WebhookVerificationError:
        return False
    return True


async def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.02)
