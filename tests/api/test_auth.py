"""Keys at the door: how they are sent, what they may do, and how soon a revoked one is refused."""

from __future__ import annotations

import time

import pytest

from safelight.api.auth import CACHE_SECONDS, KeyRing, read_secret
from safelight.errors import Unauthorized
from safelight.keys import Scope


async def status(house, header: str | None, path: str = "/runs", method: str = "GET") -> int:
    async with house.client_with(header) as client:
        return (await client.request(method, path)).status_code


async def test_the_bare_key_and_a_bearer_are_the_same(house):
    for header in (house.key, f"Bearer {house.key}", f"bearer   {house.key}", f"  {house.key} "):
        assert await status(house, header) == 200


async def test_without_a_valid_key_nothing_is_answered_but_how_to_send_one(house):
    wrong = house.key[:-1] + ("a" if house.key[-1] != "a" else "b")
    for header in (None, "", "Bearer", "Bearer ", wrong, f"Basic {house.key}", "sl_live_", "é", "x" * 5000):
        async with house.client_with(None) as client:
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            for path, method in (("/runs", "GET"), ("/deployments", "GET"), ("/pinhole/predict", "POST")):
                answer = await client.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert house.key[8:] not in answer.text


async def test_an_unknown_revoked_or_expired_key_is_refused(house):
    _, expired = await house.store.keys.create("e", scopes=frozenset({Scope.READ}), expires_at=time.time() - 1)
    revoked = await house.make_key(Scope.READ, name="r")
    await house.store.keys.revoke("r")
    for key in (expired, revoked):
        assert await status(house, key) == 401


async def test_each_scope_opens_what_it_names(house):
    predict = await house.make_key(Scope.PREDICT)
    read = await house.make_key(Scope.READ)
    admin = await house.make_key(Scope.ADMIN)
    run_id = (await house.predict(webhook_endpoint="http://a.example")).json()["run_id"]
    table = [
        ("GET", "/runs", (200, 200, 200)),
        ("GET", f"/runs/{run_id}", (200, 200, 200)),
        ("GET", "/deployments", (403, 200, 200)),
        ("POST", f"/runs/{run_id}/cancel", (200, 403, 200)),
        ("POST", "/pinhole/predict", (415, 403, 415)),
        ("POST", "/nothing/predict", (404, 403, 404)),
        ("DELETE", f"/runs/{run_id}", (204, 403, 404)),
    ]
    for method, path, expected in table:
        found = tuple([await status(house, key, path, method) for key in (predict, read, admin)])
        assert found == expected, path


async def test_a_key_without_the_scope_is_told_which_one_it_needs(house):
    async with house.client_with(await house.make_key(Scope.READ)) as client:
        answer = await client.post("/pinhole/predict", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "`predict`" in answer.json()["detail"]


class _Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def count_lookups(store) -> list[str]:
    """What the store is asked for from now on."""
    asked: list[str] = []
    authenticate = store.keys.authenticate

    async def count(secret: str):
        asked.append(secret)
        return await authenticate(secret)

    store.keys.authenticate = count
    return asked


async def test_a_revoked_key_is_refused_within_five_seconds(store):
    clock = _Clock()
    ring = KeyRing(store.keys, monotonic=clock)
    _, secret = await store.keys.create("k", scopes=frozenset({Scope.READ}))
    await ring.authenticate(secret)
    await store.keys.revoke("k")
    assert CACHE_SECONDS < 5
    await ring.authenticate(secret)
    clock.seconds += CACHE_SECONDS
    with pytest.raises(Unauthorized):
        await ring.authenticate(secret)
    await ring.close()


async def test_a_remembered_key_that_expires_is_looked_up_at_once(store):
    now, asked = _Clock(), count_lookups(store)
    now.seconds = time.time()
    ring = KeyRing(store.keys, now=now)
    _, secret = await store.keys.create("k", scopes=frozenset({Scope.READ}), expires_at=now.seconds + 600)
    for _ in range(2):
        await ring.authenticate(secret)
    assert len(asked) == 1
    now.seconds += 600
    await ring.authenticate(secret)
    assert len(asked) == 2, "the store judges it by its own clock"
    await ring.close()


async def test_a_key_is_looked_up_once_in_a_while_and_never_kept_in_clear(store):
    ring, asked = KeyRing(store.keys, monotonic=_Clock()), count_lookups(store)
    _, secret = await store.keys.create("k", scopes=frozenset({Scope.READ}))
    for _ in range(5):
        await ring.authenticate(f"Bearer {secret}")
    assert len(asked) == 1
    assert secret not in repr(vars(ring))
    await ring.close()


async def test_a_keys_last_use_is_written_beside_the_request_at_most_once_a_minute(store):
    clock, ring, touched = _Clock(), None, []
    ring = KeyRing(store.keys, monotonic=clock)
    touch = store.keys.touch

    async def count(key_id: str) -> None:
        touched.append(key_id)
        await touch(key_id)

    store.keys.touch = count
    key, secret = await store.keys.create("k", scopes=frozenset({Scope.READ}))
    for _ in range(4):
        await ring.authenticate(secret)
        clock.seconds += 20
    await ring.close()
    assert touched == [key.id, key.id]
    (stored,) = [each for each in await store.keys.list() if each.id == key.id]
    assert stored.last_used_at is not None


async def test_a_last_use_that_cannot_be_written_harms_nobody(store):
    async def fail(key_id: str) -> None:
        raise OSError("disk")

    store.keys.touch = fail
    _, secret = await store.keys.create("k", scopes=frozenset({Scope.READ}))
    ring = KeyRing(store.keys)
    assert (await ring.authenticate(secret)).name == "k"
    await ring.close()


def test_a_header_without_a_key_is_refused():
    for header in (None, "", "   ", "Bearer", "bearer  "):
        with pytest.raises(Unauthorized):
            read_secret(header)
