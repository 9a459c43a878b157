"""One marked key, one webhook secret and one token of the hub through everything, and then a search:
they are nowhere."""

from __future__ import annotations

import asyncio
import io
import logging
from ipaddress import ip_network
from pathlib import Path

import pytest

from safelight.config import LogSettings, WebhookSettings
from safelight.keys import Allowance, Scope
from safelight.logs import JsonFormatter, TextFormatter, redact
from safelight.runs import DeliveryStatus
from safelight.webhooks.deliverer import Deliverer
from safelight.webhooks.targets import TargetPolicy
from tests.webhooks.receiver import answers, receiving

from .house import failing

TOKEN = "hf_MARKEDtokenMARKEDtokenMARKED"
SMALL = {"prompt": "x", "width": 64, "height": 64, "hf_token": TOKEN}


@pytest.fixture
def lines():
    """Everything that is logged, at the lowest level, in both formats."""
    outputs = []
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    for formatter in (TextFormatter("test"), JsonFormatter("test")):
        handler = logging.StreamHandler(io.StringIO())
        handler.setFormatter(formatter)
        root.addHandler(handler)
        outputs.append(handler)
    root.setLevel(logging.DEBUG)
    yield lambda: "".join(handler.stream.getvalue() for handler in outputs)
    root.handlers[:], root.level = before, level


async def deliver(house, url: str) -> None:
    policy = TargetPolicy([ip_network("127.0.0.0/8")])
    deliverer = Deliverer(house.store, WebhookSettings(retry_seconds=(0, 0.1)), policy=policy, poll_seconds=0.05)
    task = asyncio.create_task(deliverer.run())
    for _ in range(200):
        deliveries = await house.store.deliveries.list()
        if deliveries and all(each.status is not DeliveryStatus.PENDING for each in deliveries):
            break
        await asyncio.sleep(0.05)
    await deliverer.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def use_everything(house, key: str, webhook_secret: str, url: str) -> list[str]:
    """Every road on which a secret could get out; what was answered."""
    answered = []

    async def ask(method: str, path: str, **extra) -> None:
        answer = await client.request(method, path, **extra)
        answered.append(f"{answer.status_code} {answer.headers} {answer.text}")

    async with house.client_with(key) as client, house.working() as worker:
        await ask("POST", "/pinhole/predict", json=SMALL)
        await ask("POST", "/pinhole/predict", json=SMALL | {"webhook_endpoint": url})
        worker.outcome = failing("engine_failed")
        await ask("POST", "/pinhole/predict", json=SMALL)
        for secret in (key, webhook_secret, TOKEN):
            for body in ({"prompt": 1, "hf_token": secret}, {"height": 1, **SMALL}, SMALL | {"seed": "?"}):
                await ask("POST", "/pinhole/predict", json=body)
            await ask("POST", "/pinhole/predict", content=f'{{"hf_token": "{secret}"')
        for run in (await client.get("/runs")).json()["runs"]:
            for path in ("", "/events", "/images/0"):
                await ask("GET", f"/runs/{run['id']}{path}")
        for path in ("/usage", "/metrics", "/deployments", "/openapi.json", "/nowhere", "/readyz"):
            await ask("GET", path)

        async def explode(*args, **kwargs):
            raise ZeroDivisionError

        house.store.runs.create = explode
        await ask("POST", "/pinhole/predict", json=SMALL)
        await ask("POST", "/pinhole/predict", json=SMALL, headers={"Authorization": key[:-1]})
        await ask("POST", "/pinhole/predict", json=SMALL, headers={"Authorization": f"Bearer {key} {key}"})
    return answered


def written_below(folder: Path) -> dict[str, bytes]:
    """Every file but the server's own secret, from which webhook secrets follow."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "secret.key"}


async def test_no_secret_is_in_logs_files_answers_or_records(house, lines, tmp_path, record_property):
    marked, key = await house.store.keys.create("marked", scopes=frozenset({Scope.PREDICT, Scope.READ}))
    await house.store.keys.allow("marked", Allowance(requests_per_minute=1000))
    webhook_secret = (await house.store.project_secrets.newest("default")).secret
    async with receiving(answers(500, b"no")) as receiver:
        answered = await use_everything(house, key, webhook_secret, receiver.url)
        await deliver(house, receiver.url)
    _, rotated = await house.store.keys.rotate("marked", overlap_seconds=60)
    assert len(receiver.arrived) == 2 and "webhook-signature" in receiver.arrived[0].headers
    records = [repr(run) + repr(await house.store.events.after(run.id)) for run in (await house.store.runs.list())[0]]
    records += [repr(await house.store.deliveries.list()), repr(await house.store.keys.list())]
    logged = lines()
    assert marked.prefix[:12] in logged and len(logged) > 5000, "there is something to search"
    marks = [key[len(marked.prefix) :], rotated[len(marked.prefix) :], webhook_secret.removeprefix("whsec_"), TOKEN[3:]]
    places = {"logs": logged, "answers": "\n".join(answered), "records": "\n".join(records)}
    places |= {"what was delivered": repr([(each.headers, each.body) for each in receiver.arrived])}
    found = [(where, mark[:4]) for where, text in places.items() for mark in marks if mark in text]
    files = written_below(tmp_path)
    assert any(name.endswith("safelight.db") for name in files)
    found += [(name, mark[:4]) for name, content in files.items() for mark in marks if mark.encode() in content]
    record_property("searched", sum(map(len, places.values())) + sum(map(len, files.values())))
    assert found == []


def test_the_last_line_of_defence_takes_out_what_looks_like_a_secret():
    text = f"sl_live_{'a' * 36} {TOKEN} whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert redact(text) == "sl_live_aaaa[redacted] hf_[redacted] whsec_[redacted]"
    assert LogSettings().format == "text"


@pytest.mark.parametrize("formatter", [TextFormatter("test"), JsonFormatter("test")])
def test_both_formats_of_the_log_have_that_defence(formatter):
    record = logging.LogRecord("safelight", logging.INFO, "here", 1, "token %s", (TOKEN,), None)
    assert "hf_[redacted]" in formatter.format(record) and TOKEN not in formatter.format(record)
