"""Names to deployments, remembered: a change is seen at once, or within seconds where its hint was lost."""

from __future__ import annotations

import asyncio

import pytest

from safelight.api.resolving import CACHE_SECONDS, Resolver
from safelight.deployments import Deployment
from safelight.errors import NotFound
from safelight.store import Store

RED = Deployment(name="red", version=0, model="pinhole")


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def resolver(store: Store, clock: _Clock) -> Resolver:
    return Resolver(store.deployments, store.notifications, monotonic=clock)


async def test_a_new_version_and_a_new_name_answer_from_the_next_request_on(store: Store, resolver: Resolver) -> None:
    with pytest.raises(NotFound):
        await resolver.resolve("red")
    for version in (1, 2):
        await store.deployments.deploy(RED)
        assert (await resolver.resolve("red")).version == version


async def test_what_is_no_longer_deployed_is_not_found_from_the_next_request_on(
    store: Store, resolver: Resolver
) -> None:
    await store.deployments.deploy(RED)
    await resolver.resolve("red")
    await store.deployments.undeploy("red")
    with pytest.raises(NotFound):
        await resolver.resolve("red")


async def test_a_change_whose_hint_was_lost_is_seen_within_seconds(
    store: Store, resolver: Resolver, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.deployments.deploy(RED)
    await resolver.resolve("red")
    with monkeypatch.context() as deaf:
        deaf.setattr(store.notifications, "_wake_all", lambda topics: None)
        await store.deployments.deploy(RED)
    assert (await resolver.resolve("red")).version == 1
    clock.now = CACHE_SECONDS
    assert (await resolver.resolve("red")).version == 2


async def test_what_was_read_before_a_change_is_not_remembered_after_it(
    store: Store, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.deployments.deploy(RED)
    resolve, has_read, may_go_on = store.deployments.resolve, asyncio.Event(), asyncio.Event()

    async def resolve_slowly(name: str) -> Deployment:
        found = await resolve(name)
        has_read.set()
        await may_go_on.wait()
        return found

    with monkeypatch.context() as slow:
        slow.setattr(store.deployments, "resolve", resolve_slowly)
        early = asyncio.create_task(resolver.resolve("red"))
        await has_read.wait()
    await store.deployments.deploy(RED)
    assert (await resolver.resolve("red")).version == 2, "the hint is this one's"
    may_go_on.set()
    assert (await early).version == 1
    assert (await resolver.resolve("red")).version == 2
