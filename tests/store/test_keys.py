"""API keys: made once, compared in constant time, ended."""

from __future__ import annotations

import hmac
import math
import time
from pathlib import Path

import pytest

from safelight.errors import Conflict, InvalidFields, NotFound, Unauthorized
from safelight.keys import Key, Scope
from safelight.store import Store

PREDICT = frozenset({Scope.PREDICT})


async def test_a_new_key_opens_the_door_and_its_secret_is_nowhere(store: Store, data: Path) -> None:
    key, secret = await store.keys.create("laptop", scopes=PREDICT, project="mine")
    assert secret.startswith("sl_live_") and len(secret) == 44 and secret.startswith(key.prefix)
    assert await store.keys.authenticate(secret) == key
    assert (key.project, key.scopes, key.last_used_at) == ("mine", PREDICT, None)
    rows = await store._database.read(lambda connection: connection.exec_driver_sql("SELECT * FROM keys").all())
    kept = str(rows).encode() + (data / "secret.key").read_bytes()
    assert secret.removeprefix(key.prefix).encode() not in kept
    assert key.prefix.encode() in kept


async def test_a_mistyped_key_costs_no_query(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = await store.keys.create("laptop", scopes=PREDICT)
    swapped = secret[:20] + ("a" if secret[20] != "a" else "b") + secret[21:]
    monkeypatch.delattr("safelight.store.database.Database.read")
    for wrong in (
        "",
        "sl_live_",
        secret[:-1],
        secret + "0",
        swapped,
        "sk" + secret[2:],
        "é" * 44,
        "sl_live_" + "é" * 36,
    ):
        with pytest.raises(Unauthorized, match="not a whole API key"):
            await store.keys.authenticate(wrong)


async def test_known_and_unknown_keys_take_the_same_path(
    store: Store, neighbour: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    same = hmac.compare_digest

    def compare(left: str, right: str) -> bool:
        compared.append((len(left), len(right)))
        return same(left, right)

    _, known = await store.keys.create("laptop", scopes=PREDICT)
    _, unknown = await neighbour.keys.create("other", scopes=PREDICT)
    await store._database.write(lambda connection: connection.exec_driver_sql("DELETE FROM keys WHERE name='other'"))
    monkeypatch.setattr("safelight.store.keys.hmac.compare_digest", compare)
    await store.keys.authenticate(known)
    with pytest.raises(Unauthorized, match="not known"):
        await store.keys.authenticate(unknown)
    assert compared == [(64, 64), (64, 64)]


async def test_a_revoked_key_is_refused_at_once_everywhere(store: Store, neighbour: Store) -> None:
    key, secret = await store.keys.create("laptop", scopes=PREDICT)
    await neighbour.keys.authenticate(secret)
    revoked = await store.keys.revoke("laptop")
    assert revoked.id == key.id and revoked.revoked_at is not None
    assert await store.keys.revoke(key.id) == revoked
    with pytest.raises(Unauthorized, match="revoked"):
        await neighbour.keys.authenticate(secret)
    with pytest.raises(NotFound) as raised:
        await store.keys.revoke("laptop")
    assert raised.value.code == "key_not_found"


async def test_an_expired_key_is_refused(store: Store) -> None:
    _, expired = await store.keys.create("old", scopes=PREDICT, expires_at=time.time() - 1)
    _, valid = await store.keys.create("new", scopes=PREDICT, expires_at=time.time() + 60)
    await store.keys.authenticate(valid)
    with pytest.raises(Unauthorized, match="expired"):
        await store.keys.authenticate(expired)


async def test_an_expired_key_is_not_rotated(store: Store) -> None:
    await store.keys.create("old", scopes=PREDICT, expires_at=time.time() - 1)
    with pytest.raises(Conflict, match="expired; make a new one"):
        await store.keys.rotate("old", overlap_seconds=60)


async def test_a_name_is_one_live_keys_at_a_time(store: Store) -> None:
    await store.keys.create("laptop", scopes=PREDICT)
    with pytest.raises(Conflict, match="laptop"):
        await store.keys.create("laptop", scopes=PREDICT)
    await store.keys.revoke("laptop")
    await store.keys.create("laptop", scopes=PREDICT)
    assert await store.keys.count() == len(await store.keys.list()) == 2


@pytest.mark.parametrize(("name", "scopes"), [("", PREDICT), ("  ", PREDICT), ("n" * 101, PREDICT), ("n", frozenset())])
async def test_a_key_needs_a_name_and_a_scope(store: Store, name: str, scopes: frozenset[Scope]) -> None:
    with pytest.raises(InvalidFields):
        await store.keys.create(name, scopes=scopes)


DAY = 86_400.0


@pytest.mark.parametrize("days", [36_501, 9_999_999, math.inf, math.nan, -math.inf, -40_000])
async def test_a_key_ends_within_a_hundred_years_or_never(store: Store, days: float) -> None:
    with pytest.raises(InvalidFields, match="at most 36500 days") as raised:
        await store.keys.create("laptop", scopes=PREDICT, expires_at=time.time() + days * DAY)
    assert [wrong.field for wrong in raised.value.fields] == ["expires_at"]
    key, _ = await store.keys.create("laptop", scopes=PREDICT, expires_at=time.time() + 36_500 * DAY)
    assert await store.keys.list() == [key]


@pytest.mark.parametrize("hours", [8_761, 1e9, math.inf, math.nan, -1])
async def test_an_old_key_goes_on_for_a_year_at_most(store: Store, hours: float) -> None:
    old, secret = await store.keys.create("laptop", scopes=PREDICT)
    with pytest.raises(InvalidFields, match="8760 hours at most") as raised:
        await store.keys.rotate("laptop", overlap_seconds=hours * 3_600)
    assert [wrong.field for wrong in raised.value.fields] == ["overlap_seconds"]
    assert await store.keys.authenticate(secret) == old
    await store.keys.rotate("laptop", overlap_seconds=8_760 * 3_600)
    ends_at = (await store.keys.authenticate(secret)).expires_at
    assert ends_at is not None and 364 * DAY < ends_at - time.time() < 366 * DAY


async def test_use_is_noted_at_most_once_a_minute(store: Store, neighbour: Store) -> None:
    key, secret = await store.keys.create("laptop", scopes=PREDICT)
    await store.keys.touch(key.id)
    first = (await store.keys.authenticate(secret)).last_used_at
    assert first is not None
    for one in (store, neighbour):
        await one.keys.touch(key.id)
    assert (await store.keys.authenticate(secret)).last_used_at == first


def test_admin_may_do_all_and_others_what_they_were_given() -> None:
    def key(*scopes: Scope) -> Key:
        return Key(id="i", name="n", prefix="p", project="d", scopes=frozenset(scopes), created_at=0.0)

    assert all(key(Scope.ADMIN).has_scope(scope) for scope in Scope)
    assert not key(Scope.PREDICT).has_scope(Scope.READ)
    assert not key(Scope.READ).has_scope(Scope.PREDICT)


async def test_webhook_secrets_differ_by_project_and_stay(store: Store, neighbour: Store, data: Path) -> None:
    ours, theirs = await store.project_secrets.newest("a"), await neighbour.project_secrets.newest("a")
    assert ours == theirs and ours.secret.startswith("whsec_")
    assert ours.secret != (await store.project_secrets.newest("b")).secret
    assert (data / "secret.key").stat().st_mode & 0o777 == 0o600
