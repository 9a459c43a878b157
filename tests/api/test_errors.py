"""Every row of the predict contract's error table, over HTTP: status, problem document, headers."""

from __future__ import annotations

import asyncio
import json

from safelight.api.errors import STATUSES
from safelight.config import ServerSettings
from safelight.runs import RunStatus

from .house import failing

JSON_TYPE = {"Content-Type": "application/json"}


def check_problem(answer, status: int, code: str) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:safelight:error:{code}"
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"] and problem["detail"] == problem["message"] != ""
    assert answer.headers["x-content-type-options"] == "nosniff"
    return problem


async def send(house, body: bytes, **headers: str):
    return await house.client.post("/pinhole/predict", content=body, headers=JSON_TYPE | headers)


async def test_a_body_that_is_no_json_object_is_400(house):
    for body in (b"", b"no", b"[1]", b'{"prompt": NaN}', b'{"prompt": "\xff"}', b"[" * 60_000):
        check_problem(await send(house, body), 400, "malformed_body")


async def test_a_body_that_is_not_declared_as_json_is_415(house):
    for declared in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = await send(house, b'{"prompt": "x"}', **{"Content-Type": declared})
        check_problem(answer, 415, "unsupported_media_type")


async def test_json_may_be_declared_in_other_words(house):
    for declared in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/ld+json"):
        answer = await send(house, b'{"prompt": "x"}', **{"Content-Type": declared, "Prefer": "respond-async"})
        assert answer.status_code == 202


async def test_a_compressed_body_is_415(house):
    check_problem(await send(house, b"\x1f\x8b", **{"Content-Encoding": "gzip"}), 415, "unsupported_media_type")


async def test_a_body_over_the_limit_is_413_whatever_length_it_declares(house):
    too_much = b'{"prompt": "' + b"x" * 65_536 + b'"}'
    check_problem(await send(house, too_much), 413, "body_too_large")

    async def drip():
        for _ in range(70):
            yield b" " * 1000

    check_problem(await house.client.post("/pinhole/predict", content=drip(), headers=JSON_TYPE), 413, "body_too_large")
    check_problem(await send(house, b"{}", **{"Content-Length": "9" * 5000}), 413, "body_too_large")


async def test_a_body_at_the_limit_is_read(house):
    body = b'{"prompt": "x", "padding": "'
    answer = await send(house, body + b"x" * (65_536 - len(body) - 2) + b'"}', Prefer="respond-async")
    assert answer.status_code == 202


async def test_wrong_fields_are_422_with_one_entry_each(house):
    answer = await house.predict(height=500, width="a", guidance_scale=51, webhook_endpoint="ftp://x", sampler="no")
    problem = check_problem(answer, 422, "invalid_fields")
    found = {error["field"]: error["message"] for error in problem["errors"]}
    assert sorted(found) == ["guidance_scale", "height", "sampler", "webhook_endpoint", "width"]
    assert found["height"] == "500 is not a multiple of 8 between 64 and 1024; the nearest is 504"
    assert (await house.store.runs.backlog()).num_queued == 0


async def test_a_prompt_that_is_missing_null_or_no_string_is_422(house):
    for body in ({}, {"prompt": None}, {"prompt": 5}):
        answer = await house.client.post("/pinhole/predict", json=body)
        assert [error["field"] for error in check_problem(answer, 422, "invalid_fields")["errors"]] == ["prompt"]


async def test_an_unknown_deployment_is_404_after_the_key(house):
    for name in ("nothing", "UPPER", "a" * 64, "%00", "sl_live_abc"):
        check_problem(await house.client.post(f"/{name}/predict", json={"prompt": "x"}), 404, "deployment_not_found")
        async with house.client_with(None) as stranger:
            check_problem(await stranger.post(f"/{name}/predict", json={"prompt": "x"}), 401, "unauthorized")


async def test_an_unknown_run_is_404(house):
    for run_id in ("0b6e3bd5-4a0c-4a3e-9c6b-6a1f6f0f8a55", "x", "%00", "9" * 5000, "%ff%fe"):
        for method, rest in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/events"),
            ("GET", "/images/0"),
        ):
            answer = await house.client.request(method, f"/runs/{run_id}{rest}")
            check_problem(answer, 404, "run_not_found")


async def test_a_run_of_another_project_does_not_exist(house):
    run_id = (await house.predict(webhook_endpoint="http://a.example")).json()["run_id"]
    async with house.client_with(await house.make_key("predict", "read", project="other")) as stranger:
        for method, rest in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/events"),
            ("GET", "/images/0"),
        ):
            check_problem(await stranger.request(method, f"/runs/{run_id}{rest}"), 404, "run_not_found")
        assert (await stranger.get("/runs")).json() == {"runs": [], "next_cursor": None}
    assert (await house.client.get(f"/runs/{run_id}")).json()["status"] == "queued"


async def test_unknown_paths_and_methods_are_problems_too(house):
    check_problem(await house.client.get("/no/where/at/all"), 404, "not_found")
    check_problem(await house.client.post("/pinhole/predict/"), 404, "not_found")
    check_problem(await house.client.post("/v4/a/pinhole/predict"), 404, "not_found")
    answer = await house.client.get("/pinhole/predict")
    check_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    check_problem(await house.client.put("/runs"), 405, "method_not_allowed")
    for path in ("/docs", "/redoc"):
        check_problem(await house.client.get(path), 404, "not_found")


async def test_a_full_queue_is_429_with_a_time_to_come_back(make_house):
    async with make_house(ServerSettings(max_queued_runs=2)) as house:
        for _ in range(2):
            assert (await house.predict(webhook_endpoint="http://a.example")).status_code == 200
        answer = await house.predict()
        check_problem(answer, 429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_failed_run_is_500_with_its_code_and_reason(house):
    async with house.working(outcome=failing("non_finite_latent", "draw it with another seed")):
        answer = await house.predict()
    problem = check_problem(answer, 500, "non_finite_latent")
    assert problem["detail"] == "draw it with another seed"
    assert problem["run_id"] == answer.headers["x-safelight-run-id"]
    record = (await house.client.get(f"/runs/{problem['run_id']}")).json()
    assert record["error"] == {"code": "non_finite_latent", "message": "draw it with another seed"}


async def test_a_run_that_failed_with_a_code_of_the_door_is_still_500(house):
    async with house.working(outcome=failing("storage_full")):
        check_problem(await house.predict(), 500, "storage_full")


async def test_a_model_that_cannot_be_loaded_is_503_with_a_time_to_come_back(house):
    async with house.working(outcome=failing("model_unavailable", "fetch the weights")):
        answer = await house.predict()
    problem = check_problem(answer, 503, "model_unavailable")
    assert int(answer.headers["retry-after"]) >= 1 and problem["run_id"]


async def test_a_run_cancelled_under_a_waiting_caller_is_409(house):
    waiting = asyncio.create_task(house.predict())
    runs = await house.queued(1)
    await house.client.post(f"/runs/{runs[0].id}/cancel")
    problem = check_problem(await waiting, 409, "run_cancelled")
    assert problem["run_id"] == runs[0].id


async def test_waiting_longer_than_the_timeout_is_504_and_the_run_goes_on(make_house):
    async with make_house(ServerSettings(sync_timeout_seconds=0.2)) as house:
        answer = await house.predict()
        run_id = check_problem(answer, 504, "wait_timeout")["run_id"]
        async with house.working():
            record = await house.ended(run_id)
        assert len(record["images"]) == 1


async def test_a_stopping_server_answers_waiting_callers_and_refuses_new_ones(house):
    waiting = asyncio.create_task(house.predict())
    runs = await house.queued(1)
    house.service.refuse_new_runs()
    answer = await house.predict()
    check_problem(answer, 503, "stopping")
    check_problem(await house.client.get("/readyz"), 503, "stopping")
    assert not waiting.done()
    house.service.stop_waiting()
    answer = await asyncio.wait_for(waiting, 1)
    assert check_problem(answer, 503, "stopping")["run_id"] == runs[0].id
    assert int(answer.headers["retry-after"]) >= 1
    assert (await house.store.runs.get(runs[0].id)).status is RunStatus.QUEUED


async def test_a_surprise_is_a_problem_that_says_nothing_about_the_inside(house, caplog):
    async def explode(*args, **kwargs):
        raise ZeroDivisionError("secret inside")

    house.store.runs.get = explode
    answer = await house.client.get("/runs/0b6e3bd5-4a0c-4a3e-9c6b-6a1f6f0f8a55")
    problem = check_problem(answer, 500, "internal_error")
    assert "secret" not in json.dumps(problem)
    (record,) = (record for record in caplog.records if record.message == "unexpected error")
    assert "secret inside" in str(record.exc_info[1]) and record.where == "/runs/{run_id}"


WRONG_QUERIES = ["limit=0", "limit=201", "limit=x", "limit=" + "9" * 5000, "status=done", "deployment=" + "a" * 64]
WRONG_QUERIES += [
    "cursor=%00",
    "cursor=bm9wZQ==",
    "cursor=" + "a" * 501,
    "cursor=MS4wIDk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OQ==",
]
WRONG_QUERIES += ["created_after=yesterday", "created_before=", "created_after=99999-01-01"]


async def test_a_wrong_query_is_422_and_names_the_parameter(house):
    for query in WRONG_QUERIES:
        answer = await house.client.get(f"/runs?{query}")
        problem = check_problem(answer, 422, "invalid_fields")
        assert [error["field"] for error in problem["errors"]] == [query.partition("=")[0]]


async def test_an_image_that_is_not_there_is_404(house):
    async with house.working():
        run_id = (await house.predict(width=64, height=64)).json()["run_id"]
    for index in ("1", "-1", "x", "9" * 5000, "00000", "%00"):
        check_problem(await house.client.get(f"/runs/{run_id}/images/{index}"), 404, "image_not_found")


async def test_another_host_is_421(house):
    for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.nip.io", "[::2]", "10.0.0.1"):
        check_problem(await house.client.get("/healthz", headers={"Host": host}), 421, "wrong_host")


async def test_loopback_names_are_answered(house):
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:80", "[::1]", "localhost."):
        assert (await house.client.get("/healthz", headers={"Host": host})).status_code == 200


async def test_hosts_of_the_settings_are_answered(make_house):
    async with make_house(ServerSettings(allowed_hosts=("pics.example:8000",))) as house:
        assert (await house.client.get("/healthz", headers={"Host": "Pics.example"})).status_code == 200
        assert (await house.client.get("/healthz", headers={"Host": "other.example"})).status_code == 421


async def test_a_star_answers_every_host(make_house):
    async with make_house(ServerSettings(allowed_hosts=("*",))) as house:
        assert (await house.client.get("/healthz", headers={"Host": "any.example"})).status_code == 200


def test_every_status_of_the_table_is_an_error():
    assert all(400 <= status <= 599 and title for status, title in STATUSES.values())
