"""A whole server in a thread: the door with its dashboard, a worker that draws gradients, the deliverer, a receiver."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import io
import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from PIL import Image

from safelight.api import Service, build_desk, create_app, make_server
from safelight.config import ServerSettings, Settings, WebhookSettings
from safelight.deployments import Deployment, DeploymentStatus
from safelight.keys import Scope
from safelight.runs import Claim, ImageRecord, NewRun, Outcome, Progress, RunError, RunParams, RunStatus
from safelight.store import Store
from safelight.webhooks.deliverer import Deliverer
from safelight.webhooks.targets import TargetPolicy

T = TypeVar("T")

LOOPBACK: Any = ("127.0.0.0/8",)


def picture(width: int, height: int, seed: int) -> bytes:
    """A gradient that its seed tells apart."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    tint = Image.new("RGB", (width, height), (seed * 37 % 256, seed * 91 % 256, seed * 53 % 256))
    buffer = io.BytesIO()
    Image.blend(image, tint, 0.5).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Worker:
    """Draws what is queued, one run at a time, a step every `step_seconds`; fails prompts that say so."""

    store: Store
    step_seconds: float = 0.01
    desk: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def work(self) -> None:
        with self.store.notifications.listen("queue") as listener:
            while True:
                async with self.desk:
                    for claim in await self.store.runs.claim("test", limit=1, lease_seconds=60):
                        await self._draw(claim)
                await listener.wait(0.1)

    async def _draw(self, claim: Claim) -> None:
        run = claim.run
        await self.store.deployments.record_placement(
            "test", run.deployment, run.deployment_version, DeploymentStatus.ACTIVE
        )
        total = run.params.num_inference_steps * run.params.num_images_per_prompt
        for done in range(1, total + 1):
            await asyncio.sleep(self.step_seconds)
            if done % 5 and done < total:
                continue
            left = (total - done) * self.step_seconds
            progress = Progress(run_id=run.id, fence=claim.fence, steps_done=done, steps_total=total, eta_seconds=left)
            await self.store.previews.write(run.id, picture(8, 8, done))
            pulse = await self.store.runs.pulse("test", [progress], lease_seconds=60, renew=True)
            if pulse.cancel_requested:
                await self.store.runs.finish(claim, Outcome(status=RunStatus.CANCELLED, run_time_ms=1.0))
                return
        await self._end(claim)

    async def _end(self, claim: Claim) -> None:
        await self.store.previews.remove(claim.run.id)
        if "fail" in claim.run.params.prompt:
            error = RunError("engine_error", "the model gave no numbers; try fewer steps")
            await self.store.runs.finish(claim, Outcome(status=RunStatus.FAILED, run_time_ms=5.0, error=error))
            return
        for index, seed in enumerate(claim.run.params.seeds):
            await self.add_picture(claim, index, seed)
        await self.store.runs.finish(claim, Outcome(status=RunStatus.SUCCEEDED, run_time_ms=321.0))

    async def add_picture(self, claim: Claim, index: int, seed: int) -> None:
        params = claim.run.params
        stored = await self.store.images.write(
            claim.run.id, index, claim.fence, params.output_format, picture(params.width, params.height, seed)
        )
        record = ImageRecord(
            index=index,
            seed=seed,
            output_format=params.output_format,
            path=stored.path,
            num_bytes=stored.num_bytes,
            sha256=stored.sha256,
        )
        await self.store.runs.add_image(claim, record)


@dataclass
class Receiver:
    """What arrived at a webhook endpoint on loopback."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A webhook endpoint that takes everything."""
    received = Receiver("")

    class Take(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.bodies.append(json.loads(body))
            received.ids.append(self.headers["webhook-id"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    with answering(Take) as url:
        received.url = f"{url}/hook"
        yield received


@contextlib.contextmanager
def answering(kind: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A small server of this kind on loopback; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Site:
    """The server, seen from the test's thread."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(self._live(),), daemon=True)
        self.url = self.key = self.link = ""
        self.store: Store
        self.worker: Worker

    def __enter__(self) -> Site:
        self._thread.start()
        assert self._ready.wait(30), "the server did not start"
        return self

    def __exit__(self, *exception: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def call(self, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Do something with the store, on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work(self.store), self.loop).result(20)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """What is queued stays queued meanwhile."""
        self.call(lambda store: self.worker.desk.acquire())
        try:
            yield
        finally:
            self.loop.call_soon_threadsafe(self.worker.desk.release)

    def session(self) -> str:
        """A cookie of an administrator, as signing in gives it."""
        form, headers = {"key": self.key}, {"Origin": self.url}
        answer = httpx2.post(f"{self.url}/dashboard/sign-in", data=form, headers=headers, trust_env=False, verify=False)
        return answer.cookies["safelight"]

    def make_key(self, name: str, *scopes: Scope, project: str = "default") -> str:
        return self.call(lambda store: store.keys.create(name, project=project, scopes=frozenset(scopes)))[1]

    def submit(self, prompt: str, **params: Any) -> str:
        """A run of this prompt; its id."""
        values = {"width": 64, "height": 64, "num_inference_steps": 5, "seed": 7} | params
        hook = values.pop("webhook_endpoint", None)

        async def create(store: Store) -> str:
            new = NewRun(
                id=str(uuid.uuid4()),
                project="default",
                key_id=None,
                deployment="pinhole",
                deployment_version=1,
                params=RunParams(prompt=prompt, **values),
                webhook_endpoint=hook,
            )
            return (await store.runs.create(new, max_queued=1000))[0].id

        return self.call(create)

    def drawn(self, prompt: str, **params: Any) -> str:
        """A run of this prompt that has ended; its id."""
        run_id = self.submit(prompt, **params)

        async def wait(store: Store) -> None:
            with store.notifications.listen(f"run:{run_id}") as listener:
                while not (await store.runs.get(run_id)).status.has_ended:
                    await listener.wait(0.2)

        self.call(wait)
        return run_id

    async def _live(self) -> None:
        webhooks = WebhookSettings(allowed_networks=LOOPBACK)
        weights = self.data.parent / "weights"
        weights.mkdir()
        (weights / "model_index.json").write_text("{}")
        settings = Settings(
            data=self.data, models={"pinhole": weights}, server=ServerSettings(port=0), webhooks=webhooks
        )
        async with await Store.open(self.data) as self.store:
            made, self.key = await self.store.keys.create("admin", scopes=frozenset({Scope.ADMIN}))
            self.link = await self.store.sign_in_links.create(made.id)
            await self.store.deployments.deploy(Deployment(name="pinhole", version=0, model="pinhole"))
            policy = TargetPolicy(webhooks.allowed_networks)
            service = Service(self.store, settings.server, check_webhook=policy.check_url)
            app = create_app(service, settings.server, desk=build_desk(self.store, service, settings))
            server = make_server(app, service, settings.server)
            self.worker = Worker(self.store)
            deliverer = Deliverer(self.store, webhooks, policy=policy)
            async with _beside(server._serve(), self.worker.work(), deliverer.run()):
                while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                    await asyncio.sleep(0.01)
                self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
                self._ready.set()
                await self._stop.wait()
                server.should_exit = True
                await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
