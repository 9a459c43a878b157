"""The predict endpoint: the envelope, its addresses, webhooks, not waiting, idempotency."""

from __future__ import annotations

import asyncio
import base64
import struct
import uuid

import pytest

from safelight.deployments import Defaults, Deployment, DeploymentStatus, Limits
from safelight.envelope import ACCEPTED_MESSAGE
from safelight.errors import TryLater
from safelight.runs import Outcome, RunStatus

from .house import EXAMPLE_BODY, solid_png


async def test_the_answer_is_exactly_the_envelope_of_the_page(house):
    async with house.working():
        answer = await house.client.post("/pinhole/predict", json=EXAMPLE_BODY | {"seed": 40})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    envelope = answer.json()
    assert list(envelope) == ["run_id", "run_time_ms", "message", "result"]
    assert str(uuid.UUID(envelope["run_id"])) == envelope["run_id"] == answer.headers["x-safelight-run-id"]
    assert envelope["run_time_ms"] == 12.5 and type(envelope["run_time_ms"]) is float
    assert envelope["message"] == "Successfully generated images"
    files = [base64.b64decode(text, validate=True) for text in envelope["result"]]
    assert files == [solid_png(512, 768, 40), solid_png(512, 768, 41)]
    assert struct.unpack(">II", files[0][16:24]) == (512, 768)
    assert answer.headers["x-safelight-seed"] == "40, 41"
    assert "warning" not in answer.headers


async def test_every_address_of_the_era_is_the_same_run(house):
    async with house.working():
        for path in ("/pinhole", "/p-1a2b/pinhole", "/v1/p/pinhole", "/v2/p/pinhole", "/v3/p/pinhole"):
            answer = await house.client.post(f"{path}/predict", json={"prompt": "x", "width": 64, "height": 64})
            assert answer.status_code == 200
            record = (await house.client.get(f"/runs/{answer.json()['run_id']}")).json()
            assert (record["deployment"], record["version"]) == ("pinhole", 1)


async def test_the_pages_own_address_works_for_the_pages_own_model(house):
    assert (await house.client.post("/dreambooth-webhook/predict", json={"prompt": "x"})).status_code == 404
    await house.store.deployments.deploy(Deployment(name="sd", version=0, model="stable-diffusion"))
    answer = await house.client.post(
        "/dreambooth-webhook/predict", json={"prompt": "x"}, headers={"Prefer": "respond-async"}
    )
    assert (await house.client.get(answer.headers["location"])).json()["deployment"] == "sd"


async def test_a_deployments_defaults_and_limits_are_its_own(house):
    defaults = Defaults(height=256, width=128, num_inference_steps=4)
    await house.store.deployments.deploy(Deployment(name="small", version=0, model="pinhole", defaults=defaults))
    answer = await house.client.post("/small/predict", json={"prompt": "x"}, headers={"Prefer": "respond-async"})
    params = (await house.client.get(answer.headers["location"])).json()["params"]
    assert (params["height"], params["width"], params["num_inference_steps"]) == (256, 128, 4)


async def test_with_a_webhook_the_answer_comes_at_once_in_the_pages_words(house):
    answer = await house.predict(webhook_endpoint="https://your_url.com")
    assert answer.status_code == 200
    assert answer.json() == {
        "run_id": answer.headers["x-safelight-run-id"],
        "message": ACCEPTED_MESSAGE,
        "webhook_endpoint": "https://your_url.com",
    }
    run = await house.store.runs.get(answer.json()["run_id"])
    assert (run.status, run.webhook_endpoint) == (RunStatus.QUEUED, "https://your_url.com")


async def test_a_webhook_wins_over_not_waiting(house):
    headers = {"Prefer": "respond-async"}
    body = {"prompt": "x", "webhook_endpoint": "http://a.example"}
    assert (await house.client.post("/pinhole/predict", json=body, headers=headers)).status_code == 200


@pytest.mark.parametrize("header", ["respond-async", "wait=5, Respond-Async; foo"])
async def test_who_prefers_not_to_wait_gets_the_runs_address(house, header):
    answer = await house.client.post("/pinhole/predict", json={"prompt": "x"}, headers={"Prefer": header})
    assert answer.status_code == 202
    assert list(answer.json()) == ["run_id", "message"]
    assert answer.headers["location"] == f"/runs/{answer.json()['run_id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert (await house.client.get(answer.headers["location"])).json()["status"] == "queued"


async def test_warnings_of_the_run_are_headers_of_the_answer(house):
    warned = Outcome(status=RunStatus.SUCCEEDED, run_time_ms=1.0, warnings=("3 words were cut: “é”", "other"))
    async with house.working(outcome=warned):
        answer = await house.predict()
    assert answer.headers.get_list("warning") == ['299 safelight "3 words were cut: ???"', '299 safelight "other"']
    assert (await house.client.get(f"/runs/{answer.json()['run_id']}")).json()["warnings"][1] == "other"


async def test_another_format_is_stored_and_answered(house):
    async with house.working():
        answer = await house.predict(output_format="webp", width=64, height=64)
    image = await house.client.get(f"/runs/{answer.json()['run_id']}/images/0")
    assert image.headers["content-type"] == "image/webp"


async def test_a_seed_is_drawn_for_each_run_that_names_none(house):
    seeds = set()
    for _ in range(5):
        answer = await house.client.post(
            "/pinhole/predict", json={"prompt": "x", "seed": -1}, headers={"Prefer": "respond-async"}
        )
        seeds.add((await house.store.runs.get(answer.json()["run_id"])).params.seed)
    assert len(seeds) == 5 and all(0 <= seed < 2**32 for seed in seeds)


async def test_who_waits_is_answered_when_the_database_is_back(house, monkeypatch):
    look_again, looks = house.store.runs.look_again, []

    async def away_at_first(run_id):
        looks.append(run_id)
        if len(looks) < 3:
            raise TryLater("the database is away")
        return await look_again(run_id)

    monkeypatch.setattr(house.store.runs, "look_again", away_at_first)
    async with house.working():
        answer = await house.predict(width=64, height=64)
    assert answer.status_code == 200
    assert answer.json()["run_id"] == looks[-1]


async def test_pictures_that_cannot_be_read_are_told_with_the_runs_id(house, monkeypatch):
    async def away(path):
        raise TryLater("the pictures cannot be reached")

    monkeypatch.setattr(house.store.images, "read", away)
    async with house.working():
        answer = await house.predict(width=64, height=64)
    assert answer.status_code == 503
    (run,) = (await house.client.get("/runs")).json()["runs"]
    assert answer.json()["run_id"] == answer.headers["x-safelight-run-id"] == run["id"]


async def test_one_idempotency_key_is_one_run_however_often_it_is_sent(house):
    headers = {"Idempotency-Key": "k1"}
    async with house.working() as worker:
        answers = await asyncio.gather(
            *(house.client.post("/pinhole/predict", json={"prompt": "x"}, headers=headers) for _ in range(8))
        )
        later = await house.client.post(
            "/pinhole/predict", content=b'{"prompt":"x"}', headers=headers | {"Content-Type": "application/json"}
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in (*answers, later)}) == 1
    assert worker.num_started == 1


async def test_one_idempotency_key_with_another_body_or_deployment_is_refused(house):
    await house.store.deployments.deploy(Deployment(name="other", version=0, model="pinhole"))
    headers = {"Idempotency-Key": "k1", "Prefer": "respond-async"}
    first = await house.client.post("/pinhole/predict", json={"prompt": "x"}, headers=headers)
    for path, prompt in (("/pinhole", "y"), ("/other", "x")):
        answer = await house.client.post(f"{path}/predict", json={"prompt": prompt}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_mismatch")
        assert answer.json()["run_id"] == first.json()["run_id"]


async def test_a_request_sent_again_is_not_judged_anew(house):
    headers = {"Idempotency-Key": "k1", "Prefer": "respond-async"}
    body = {"prompt": "x", "num_inference_steps": 100}
    first = await house.client.post("/pinhole/predict", json=body, headers=headers)
    await house.store.deployments.deploy(
        Deployment(name="pinhole", version=0, model="pinhole", limits=Limits(max_steps=50))
    )
    again = await house.client.post("/pinhole/predict", json=body, headers=headers)
    assert again.json() == first.json()
    assert (await house.client.post("/pinhole/predict", json=body)).status_code == 422


async def test_an_idempotency_key_has_1_to_255_characters(house):
    for key in ("", "k" * 256):
        headers = {"Idempotency-Key": key, "Prefer": "respond-async"}
        answer = await house.client.post("/pinhole/predict", json={"prompt": "x"}, headers=headers)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "Idempotency-Key"


async def test_keys_of_two_projects_do_not_share_idempotency(house):
    other = await house.make_key("predict", project="other")
    headers = {"Idempotency-Key": "k1", "Prefer": "respond-async"}
    mine = await house.client.post("/pinhole/predict", json={"prompt": "x"}, headers=headers)
    async with house.client_with(other) as client:
        theirs = await client.post("/pinhole/predict", json={"prompt": "y"}, headers=headers)
    assert theirs.status_code == 202 and theirs.json()["run_id"] != mine.json()["run_id"]


async def test_a_deadline_out_of_reach_is_refused_before_anything_is_queued(house):
    async with house.working():
        assert (await house.predict(width=64, height=64)).status_code == 200
    answer = await house.predict(deadline_ms=1, width=1024, height=1024, num_inference_steps=150)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "deadline_ms")
    for _ in range(10):
        await house.client.post("/pinhole/predict", json={"prompt": "x"}, headers={"Prefer": "respond-async"})
    busy = await house.predict(deadline_ms=100, width=64, height=64)
    assert (busy.status_code, busy.json()["code"]) == (429, "deadline_unreachable")
    assert int(busy.headers["retry-after"]) >= 1
    wrong = await house.predict(deadline_ms=0)
    assert "the nearest is 1" in wrong.json()["errors"][0]["message"]
    assert len((await house.client.get("/runs")).json()["runs"]) == 11


async def test_a_picture_that_no_worker_has_memory_for_is_refused(house):
    await house.store.deployments.record_placement("w", "pinhole", 1, DeploymentStatus.ACTIVE, max_pixels=512 * 512)
    answer = await house.predict(height=768, width=512)
    assert answer.status_code == 422
    found = {error["field"]: error["message"] for error in answer.json()["errors"]}
    assert list(found) == ["height", "width"]
    assert found["height"].endswith("with the other side as it is 512 does")
    assert found["width"].endswith("with the other side as it is 336 does")
    async with house.working():
        assert (await house.predict(height=512, width=512)).status_code == 200
