"""The door over a real store, with a worker of a few lines that draws one-colour pictures."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx2
import uvicorn
from fastapi import FastAPI

from safelight.api import Service, make_server
from safelight.config import ServerSettings
from safelight.errors import FieldError, InvalidFields
from safelight.keys import Scope
from safelight.runs import Claim, ImageRecord, Outcome, Progress, Run, RunError, RunStatus
from safelight.store import Store

from .documented import check_documented

EXAMPLE_BODY = {
    "prompt": "a photo of an astronaut riding a horse on mars.",
    "height": 768,
    "width": 512,
    "num_inference_steps": 60,
    "guidance_scale": 8,
    "num_images_per_prompt": 2,
    "negative_prompt": "no sky",
}


def solid_png(width: int, height: int, grey: int) -> bytes:
    """A whole PNG file of one shade."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + bytes([grey]) * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def check_webhook(url: str) -> None:
    """Stands in for the policy of the webhooks' room."""
    if not url.startswith(("http://", "https://")):
        raise InvalidFields([FieldError("webhook_endpoint", f"{url!r} is not an http or https URL")])


@dataclass
class FakeWorker:
    """Claims runs and ends them as `outcome` says; `hold` keeps it from ending any."""

    store: Store
    outcome: Outcome = field(default_factory=lambda: Outcome(status=RunStatus.SUCCEEDED, run_time_ms=12.5))
    hold: asyncio.Event = field(default_factory=asyncio.Event)
    num_started: int = 0

    async def work(self) -> None:
        with self.store.notifications.listen("queue") as listener:
            while True:
                for claim in await self.store.runs.claim("fake", limit=8, lease_seconds=60):
                    self.num_started += 1
                    await self.draw(claim)
                await listener.wait(0.2)

    async def draw(self, claim: Claim) -> None:
        total = claim.run.params.num_inference_steps * claim.run.params.num_images_per_prompt
        with self.store.notifications.listen("cancel") as listener:
            while True:
                is_held = not self.hold.is_set()
                progress = Progress(run_id=claim.run.id, fence=claim.fence, steps_done=total // 2, steps_total=total)
                pulse = await self.store.runs.pulse("fake", [progress], lease_seconds=60, renew=True)
                if pulse.cancel_requested:
                    await self.store.runs.finish(claim, Outcome(status=RunStatus.CANCELLED, run_time_ms=1.0))
                    return
                if not is_held:
                    break
                await listener.wait(0.05)
        if self.outcome.status is RunStatus.SUCCEEDED:
            await self.add_images(claim)
        await self.store.runs.finish(claim, self.outcome)

    async def add_images(self, claim: Claim) -> None:
        params = claim.run.params
        for index, seed in enumerate(params.seeds):
            data = solid_png(params.width, params.height, seed % 256)
            path, num_bytes, sha256 = await self.store.images.write(
                claim.run.id, index, claim.fence, params.output_format, data
            )
            assert sha256 == hashlib.sha256(data).hexdigest()
            record = ImageRecord(
                index=index,
                seed=seed,
                output_format=params.output_format,
                path=path,
                num_bytes=num_bytes,
                sha256=sha256,
            )
            await self.store.runs.add_image(claim, record)


def failing(code: str, message: str = "it broke") -> Outcome:
    return Outcome(status=RunStatus.FAILED, run_time_ms=3.0, error=RunError(code, message))


def open_client(app: FastAPI, key: str | None) -> httpx2.AsyncClient:
    """A client of `app` that holds every answer against the OpenAPI document."""

    async def check(answer: httpx2.Response) -> None:
        await answer.aread()
        check_documented(answer)

    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app),
        base_url="http://localhost",
        headers={"Authorization": key} if key else {},
        event_hooks={"response": [check]},
        timeout=20,
    )


@dataclass
class House:
    """Everything a test may want to touch."""

    store: Store
    service: Service
    app: FastAPI
    client: httpx2.AsyncClient
    key: str
    settings: ServerSettings
    worker: FakeWorker

    async def make_key(self, *scopes: Scope, project: str = "default", name: str = "") -> str:
        name = name or f"{project}-{'-'.join(scopes)}"
        _, secret = await self.store.keys.create(name, project=project, scopes=frozenset(scopes))
        return secret

    def client_with(self, key: str | None) -> httpx2.AsyncClient:
        return open_client(self.app, key)

    async def predict(self, **body: object) -> httpx2.Response:
        return await self.client.post("/pinhole/predict", json={"prompt": "a red house"} | body)

    async def queued(self, num_runs: int) -> list[Run]:
        """Wait until that many runs are stored."""
        while len(runs := (await self.store.runs.list())[0]) < num_runs:  # noqa: ASYNC110 - polling is the truth
            await asyncio.sleep(0.01)
        return runs

    async def started(self, run_id: str) -> None:
        """Wait until a run is under way and has reported progress."""
        while (await self.store.runs.get(run_id)).steps_done == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def ended(self, run_id: str) -> dict[str, object]:
        """Wait until a run has ended; its record."""
        while (record := (await self.client.get(f"/runs/{run_id}")).json())["ended_at"] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        return record

    @contextlib.asynccontextmanager
    async def working(self, *, outcome: Outcome | None = None, held: bool = False) -> AsyncIterator[FakeWorker]:
        if outcome is not None:
            self.worker.outcome = outcome
        if held:
            self.worker.hold.clear()
        else:
            self.worker.hold.set()
        task = asyncio.create_task(self.worker.work())
        try:
            yield self.worker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[tuple[uvicorn.Server, int]]:
        """A real server on loopback, and its port."""
        server = make_server(self.app, self.service, self.settings)
        task = asyncio.create_task(server._serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        try:
            yield server, server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, 10)
