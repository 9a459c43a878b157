"""The secrets of projects: what is signed that goes to the URLs of requests, and how they are rotated."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from safelight.errors import Conflict
from safelight.store import Store
from safelight.store.database import now

from .making import HOOK, end_one, everything_in, on_sqlite


async def test_a_rotated_secret_signs_beside_its_successor_for_a_day(store: Store, neighbour: Store) -> None:
    first = await store.project_secrets.newest("shop")
    assert first.previous_ends_at is None and await store.project_secrets.signing("shop") == (first.secret,)
    second = await store.project_secrets.rotate("shop")
    at = await store._database.read(lambda connection: connection.execute(sa.select(now())).scalar_one())
    assert second.previous_ends_at is not None and 86380 < second.previous_ends_at - at < 86401
    assert await neighbour.project_secrets.signing("shop") == (second.secret, first.secret)
    assert await neighbour.project_secrets.newest("shop") == second
    third = await neighbour.project_secrets.rotate("shop")
    assert await store.project_secrets.signing("shop") == (third.secret, second.secret, first.secret)


async def test_a_secret_that_leaked_ends_at_once_and_never_comes_back(store: Store) -> None:
    first = await store.project_secrets.newest("shop")
    second = await store.project_secrets.rotate("shop", overlap_seconds=0)
    assert second.previous_ends_at is None and await store.project_secrets.signing("shop") == (second.secret,)
    third = await store.project_secrets.rotate("shop", overlap_seconds=0.05)
    await asyncio.sleep(0.1)
    assert await store.project_secrets.signing("shop") == (third.secret,)
    assert len({first.secret, second.secret, third.secret}) == 3


async def test_a_rotation_leaves_other_projects_and_endpoints_alone(store: Store) -> None:
    endpoint, secret = await store.webhook_endpoints.create(HOOK, project="shop")
    other = await store.project_secrets.newest("house")
    await store.project_secrets.rotate("shop", overlap_seconds=0)
    assert await store.project_secrets.signing("house") == (other.secret,)
    assert await store.webhook_endpoints.secrets(endpoint.id) == (secret,)


async def test_rotations_at_once_are_one_after_another_or_refused(store: Store, neighbour: Store) -> None:
    before = await store.project_secrets.newest("shop")
    both = await asyncio.gather(
        store.project_secrets.rotate("shop"), neighbour.project_secrets.rotate("shop"), return_exceptions=True
    )
    made = [each for each in both if not isinstance(each, BaseException)]
    assert made and all(isinstance(each, Conflict) for each in both if isinstance(each, BaseException))
    signing = await store.project_secrets.signing("shop")
    assert {each.secret for each in made} | {before.secret} == set(signing) and len(signing) == len(made) + 1


async def test_a_delivery_to_a_request_s_url_is_signed_with_all_that_sign_now(store: Store) -> None:
    run = await end_one(store, webhook_endpoint=HOOK, project="shop")
    await store.project_secrets.rotate("shop")
    [delivery] = await store.deliveries.list(run_id=run.id)
    assert await store.signing_secrets(delivery) == await store.project_secrets.signing("shop")
    assert len(await store.signing_secrets(delivery)) == 2


@on_sqlite
async def test_rotated_secrets_are_nowhere_in_the_database(store: Store, data: Path) -> None:
    rotated = await store.project_secrets.rotate("shop")
    kept = everything_in(data)
    assert b"shop" in kept and rotated.secret.removeprefix("whsec_").encode() not in kept
    assert rotated.secret not in repr(rotated), "a secret in a traceback is a secret in a log"


@pytest.mark.parametrize("project", ["2:shop", "shop:2", "webhook-project:2:shop"])
async def test_no_name_of_a_project_gives_another_s_secret(store: Store, project: str) -> None:
    rotated = await store.project_secrets.rotate("shop")
    assert (await store.project_secrets.newest(project)).secret not in {
        rotated.secret,
        (await store.project_secrets.rotate(project)).secret,
    }
