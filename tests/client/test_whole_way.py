"""The client against the real door over a real store, with a worker of a few lines, and deliveries back
to a receiver."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safelight import errors
from safelight.api import Service, create_app, make_server
from safelight.client import AsyncClient, Client, verify_webhook
from safelight.client.calls import Patience
from safelight.config import ServerSettings, WebhookSettings
from safelight.deployments import Deployment
from safelight.keys import Scope
from safelight.runs import Claim, ImageRecord, Outcome, Progress, RunStatus
from safelight.store import Store
from safelight.webhooks.deliverer import Deliverer
from safelight.webhooks.targets import TargetPolicy

from .conftest import MakeClient


@dataclass
class Server:
    url: str = ""
    key: str = ""
    webhook_secret: str = ""
    may_draw: threading.Event = field(default_factory=threading.Event)


async def work(store: Store, server: Server) -> None:
    """Draws pictures of one colour, once it may."""
    while True:
        for claim in await store.runs.claim("worker", limit=4, lease_seconds=60):
            await draw(store, server, claim)
        await asyncio.sleep(0.02)


async def draw(store: Store, server: Server, claim: Claim) -> None:
    params = claim.run.params
    while True:
        progress = Progress(
            run_id=claim.run.id, fence=claim.fence, steps_done=1, steps_total=params.num_inference_steps
        )
        pulse = await store.runs.pulse("worker", [progress], lease_seconds=60, renew=True)
        if pulse.cancel_requested:
            await store.runs.finish(claim, Outcome(status=RunStatus.CANCELLED, run_time_ms=1.0))
            return
        if server.may_draw.is_set():
            break
        await asyncio.sleep(0.02)
    for index, seed in enumerate(params.seeds):
        file = io.BytesIO()
        Image.new("L", (params.width, params.height), seed % 256).save(file, params.output_format.value)
        data = file.getvalue()
        path, num_bytes, sha256 = await store.images.write(claim.run.id, index, claim.fence, params.output_format, data)
        record = ImageRecord(
            index=index, seed=seed, output_format=params.output_format, path=path, num_bytes=num_bytes, sha256=sha256
        )
        await store.runs.add_image(claim, record)
    await store.runs.finish(claim, Outcome(status=RunStatus.SUCCEEDED, run_time_ms=12.5))


async def serve(server: Server, data: Path, door: socket.socket, is_up: threading.Event, stop: asyncio.Event) -> None:
    loopback = TargetPolicy([ip_network("127.0.0.0/8")])
    settings = ServerSettings(port=0, sync_timeout_seconds=0.5)
    async with await Store.open(data) as store:
        await store.deployments.deploy(Deployment(name="pinhole", version=0, model="pinhole"))
        _, server.key = await store.keys.create("client", scopes=frozenset({Scope.PREDICT}))
        server.webhook_secret = (await store.project_secrets.newest("default")).secret
        service = Service(store, settings, check_webhook=loopback.check_url)
        http = make_server(create_app(service, settings), service, settings)
        http.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        deliverer = Deliverer(store, WebhookSettings(), policy=loopback, ssl_context=context)
        beside = [asyncio.create_task(work(store, server)), asyncio.create_task(deliverer.run())]
        serving = asyncio.create_task(http.serve(sockets=[door]))
        is_up.set()
        await stop.wait()
        http.should_exit = True
        await serving
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server, is_up = Server(), threading.Event()
    door = socket.create_server(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{door.getsockname()[1]}"
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        whole = serve(server, Path(folder) / "data", door, is_up, stop)
        thread = threading.Thread(target=loop.run_until_complete, args=(whole,))
        thread.start()
        assert is_up.wait(20)
        yield server
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
    loop.close()


@pytest.fixture
def server(running: Server) -> Server:
    running.may_draw.set()
    return running


def test_predict_draws(server: Server, connect: MakeClient) -> None:
    result = connect(server.url, server.key).predict(
        "pinhole", "a lamp", width=64, height=128, num_images_per_prompt=2, seed=7
    )
    assert [image.size for image in result.images] == [(64, 128), (64, 128)]
    assert [image.getpixel((0, 0)) for image in result.images] == [7, 8]
    assert result.seeds == (7, 8)
    assert result.run_time_ms == 12.5


def test_a_call_longer_than_the_server_waits_is_waited_for(server: Server) -> None:
    server.may_draw.clear()
    threading.Timer(0.9, server.may_draw.set).start()
    with Client(server.url, server.key) as client:
        result = client.predict("pinhole", "slow", width=64, height=64, seed=1)
        assert result.seeds == (1,)
        assert client.get(result.run_id).status is RunStatus.SUCCEEDED


async def test_the_async_client_draws_and_follows_at_once(server: Server) -> None:
    async with AsyncClient(server.url, server.key) as client:
        handle = await client.submit("pinhole", "a lamp", width=64, height=64, seed=3)
        kinds = [event.kind.value async for event in handle.events()]
        assert kinds[0] == "queued"
        assert kinds[-1] == "succeeded"
        results = await asyncio.gather(*(client.predict("pinhole", "x", width=64, height=64, seed=n) for n in range(4)))
        assert [result.seeds for result in results] == [(0,), (1,), (2,), (3,)]


def test_submit_events_get_image_runs_and_delete(server: Server, connect: MakeClient) -> None:
    client = connect(server.url, server.key)
    handle = client.submit("pinhole", "a lamp", width=64, height=64, seed=9, output_format="webp")
    events = list(handle.events())
    assert [event.kind.value for event in events if event.sequence] == ["queued", "started", "image", "succeeded"]
    record = handle.get()
    assert (record.params.prompt, record.seeds, record.deployment) == ("a lamp", (9,), "pinhole")
    picture = client.image(handle.run_id, 0)
    assert hashlib.sha256(picture).hexdigest() == record.images[0].sha256
    assert handle.run_id in [run.id for run in client.runs(page_size=1)]
    client.delete(handle.run_id)
    with pytest.raises(errors.NotFound) as caught:
        handle.get()
    assert caught.value.code == "run_not_found"
    assert list(client.runs(created_after=datetime(2100, 1, 1, tzinfo=UTC))) == []


def test_cancelling_ends_a_run_and_whoever_waits_for_it(server: Server) -> None:
    server.may_draw.clear()
    with Client(server.url, server.key) as client:
        handle = client.submit("pinhole", "never", width=64, height=64)
        for event in handle.events():
            if event.kind.value == "started":
                handle.cancel()
        with pytest.raises(errors.Conflict) as caught:
            handle.wait()
    assert caught.value.code == "run_cancelled"
    server.may_draw.set()


def test_the_errors_of_the_server_arrive_as_themselves(server: Server, connect: MakeClient) -> None:
    client = connect(server.url, server.key)
    with pytest.raises(errors.InvalidFields) as caught:
        client.predict("pinhole", "a lamp", height=65, num_inference_steps=10_000)
    assert {wrong.field for wrong in caught.value.fields} == {"height", "num_inference_steps"}
    with pytest.raises(errors.NotFound) as missing:
        client.predict("nothing", "a lamp")
    assert missing.value.code == "deployment_not_found"
    with pytest.raises(errors.InvalidFields, match="webhook_endpoint"):
        client.submit("pinhole", "a lamp", webhook_endpoint="http://169.254.169.254/latest/meta-data/")
    with pytest.raises(errors.Unauthorized):
        connect(server.url, "sl_live_wrong").get("7b0d1c5e-9a1f-4c7e-8a55-6f2b8a3f9d10")
    client.predict("pinhole", "one", width=64, height=64, idempotency_key="the same")
    with pytest.raises(errors.IdempotencyMismatch):
        client.predict("pinhole", "two", width=64, height=64, idempotency_key="the same")


def test_one_idempotency_key_is_one_run(server: Server, connect: MakeClient) -> None:
    client = connect(server.url, server.key)
    first, second = (client.predict("pinhole", "a lamp", width=64, height=64, idempotency_key="once") for _ in range(2))
    assert first.run_id == second.run_id
    assert first.image_bytes == second.image_bytes


def test_a_webhook_of_the_server_is_verified_by_the_client(server: Server) -> None:
    told: list[Any] = []
    arrived = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            told.append(verify_webhook(server.webhook_secret, dict(self.headers), body))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, format: str, *args: object) -> None:
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    with Client(server.url, server.key, patience=Patience(max_retries=0)) as client:
        endpoint = f"http://127.0.0.1:{receiver.server_port}/hook"
        handle = client.submit("pinhole", "a lamp", webhook_endpoint=endpoint, width=64, height=64)
        assert arrived.wait(10)
        (message,) = told
        assert message.run_id == handle.run_id
        assert message.result.image_bytes == handle.wait().image_bytes
    receiver.shutdown()
    receiver.server_close()
