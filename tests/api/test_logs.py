"""The log lines of the door: what they say, and what must never be in one."""

from __future__ import annotations

import logging

from safelight.config import ServerSettings

from .house import EXAMPLE_BODY, failing

MARKED = "hf_MARKEDtokenMARKEDtoken"


def lines_of(caplog, logger: str) -> list[dict[str, object]]:
    return [vars(record) for record in caplog.records if record.name == logger]


async def test_a_request_is_one_line_with_template_status_time_run_and_key(house, caplog):
    caplog.set_level(logging.INFO)
    async with house.working():
        answer = await house.client.post("/v1/p/pinhole/predict", json=EXAMPLE_BODY)
    run_id = answer.json()["run_id"]
    await house.client.get(f"/runs/{run_id}?x=secret")
    await house.client.get("/secret/not/there")
    first, second, third = lines_of(caplog, "safelight.access")
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/{project}/{deployment}/predict", 200)
    assert first["run_id"] == run_id and first["duration_ms"] > 0
    assert first["key_prefix"] == house.key[:16]
    assert (second["route"], second["run_id"]) == ("/runs/{run_id}", run_id)
    assert (third["route"], third["status"], "run_id" in third) == ("-", 404, False)


async def test_an_error_is_logged_with_its_status_and_its_run(house, caplog):
    caplog.set_level(logging.INFO)
    async with house.working(outcome=failing("out_of_memory")):
        answer = await house.predict()
    (line,) = lines_of(caplog, "safelight.access")
    assert (line["status"], line["run_id"]) == (500, answer.json()["run_id"])


async def test_ignored_keys_are_listed_with_the_run(house, caplog):
    caplog.set_level(logging.INFO)
    answer = await house.client.post(
        "/pinhole/predict",
        json={"prompt": "x", "scheduler": 1, "evil\nkey": 2, "k" * 500: 3, "hf_token": MARKED},
        headers={"Prefer": "respond-async"},
    )
    (line,) = lines_of(caplog, "safelight.runs")
    assert line["run_id"] == answer.json()["run_id"]
    assert '"scheduler"' in line["ignored"] and '"evil\\nkey"' in line["ignored"]
    assert "hf_token" not in line["ignored"] and len(line["ignored"]) < 200


async def test_neither_key_nor_token_nor_prompt_nor_query_is_ever_written(make_house, caplog):
    caplog.set_level(logging.DEBUG)
    secret_part = ""
    async with make_house(ServerSettings(max_body_bytes=1024)) as house:
        secret_part = house.key[16:]
        body = {"prompt": "PROMPTMARK", "hf_token": MARKED}
        answers = []
        async with house.working():
            answers.append(await house.client.post("/pinhole/predict", json=body | {"width": 64, "height": 64}))
        wrong = [
            body | {"height": 3},
            body | {"width": house.key},
            {"prompt": "PROMPTMARK" * 200},
            [house.key],
            body | {"seed": "x"},
        ]
        for each in wrong:
            answers.append(await house.client.post("/pinhole/predict", json=each))
        for path in (f"/{house.key}/predict", f"/runs/{house.key}", f"/runs?cursor={house.key}", f"/{house.key}"):
            answers.append(await house.client.get(path))
            answers.append(await house.client.post(path, json=body))

        async def explode(*args, **kwargs):
            raise ZeroDivisionError

        house.store.runs.create = explode
        answers.append(await house.client.post("/pinhole/predict", json=body))
        assert answers[-1].status_code == 500
    formatter = logging.Formatter()
    written = "\n".join(
        formatter.format(record) + repr(vars(record)) for record in caplog.records if "httpx" not in record.name
    )
    for mark in (secret_part, MARKED, "PROMPTMARK"):
        assert mark not in written
    for answer in answers:
        assert MARKED not in answer.text + repr(answer.headers)
