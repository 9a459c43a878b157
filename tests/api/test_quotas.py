"""What a key may use, seen from outside: refusals before anything is queued, and headers that say what is left."""

from __future__ import annotations

import re

import pytest

from safelight.errors import TryLater
from safelight.keys import Allowance, Scope

SMALL = {"width": 64, "height": 64, "num_inference_steps": 2}
LATER = {"Prefer": "respond-async"}


@pytest.fixture
def limited(house):
    """A client whose key has this allowance."""

    async def make(**allowance: float):
        secret = await house.make_key(Scope.PREDICT, Scope.READ, name="limited")
        await house.store.keys.allow("limited", Allowance(**allowance))
        return house.client_with(secret)

    return make


def ask(client, **body):
    return client.post("/pinhole/predict", json={"prompt": "x"} | SMALL | body, headers=LATER)


async def test_a_key_over_its_rate_is_told_when_to_come_back(house, limited):
    async with await limited(requests_per_minute=2, images_per_day=100) as client:
        first = await ask(client)
        assert first.headers["ratelimit-policy"] == '"requests";q=2;w=60, "images";q=100;qu="images";w=86400'
        assert re.fullmatch(r'"requests";r=1;t=(59|60), "images";r=99;t=\d+', first.headers["ratelimit"])
        await ask(client)
        refused = await ask(client)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 55 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert len((await house.store.runs.list())[0]) == 2


async def test_caps_and_days_have_codes_of_their_own(house, limited):
    async with await limited(max_queued_runs=1, images_per_day=2) as client:
        await ask(client)
        refused = await ask(client)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_runs")
        await house.store.keys.allow("limited", Allowance(images_per_day=2))
        refused = await ask(client, num_images_per_prompt=2)
        assert (refused.status_code, refused.json()["code"]) == (429, "quota_exhausted")


async def test_what_no_waiting_would_allow_is_a_wrong_field(limited):
    async with await limited(images_per_day=3, pixel_steps_per_minute=64 * 64 * 10) as client:
        for field, body in (
            ("num_images_per_prompt", {"num_images_per_prompt": 4}),
            ("num_inference_steps", {"num_inference_steps": 11}),
        ):
            answer = await ask(client, **body)
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
            assert "retry-after" not in answer.headers


async def test_an_answer_is_given_though_the_quotas_cannot_be_looked_up(house, limited, monkeypatch):
    async def away(key_id):
        raise TryLater("the database is away")

    async with await limited(requests_per_minute=2) as client:
        monkeypatch.setattr(house.store.ledger, "standings", away)
        answer = await ask(client)
    assert answer.status_code == 202
    assert "ratelimit" not in answer.headers


async def test_a_key_without_quotas_hears_nothing_of_them(house):
    answer = await house.predict(webhook_endpoint="http://a.example")
    assert "ratelimit" not in answer.headers


async def test_usage_is_told_by_key_and_deployment_of_ones_own_project(house):
    other = await house.make_key(Scope.PREDICT, Scope.READ, project="other", name="other")
    async with house.working():
        run_id = (await house.predict(**SMALL, num_images_per_prompt=3)).json()["run_id"]
    await house.client.delete(f"/runs/{run_id}")
    (usage,) = (await house.client.get("/usage")).json()["usage"]
    assert (usage["key"], usage["deployment"], usage["num_runs"], usage["num_images"]) == ("all", "pinhole", 1, 3)
    assert (await house.client.get("/usage?days=0")).status_code == 422
    async with house.client_with(other) as client:
        assert (await client.get("/usage")).json() == {"days": 30, "usage": []}
