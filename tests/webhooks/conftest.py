"""The real store, and a deliverer at work on it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest

from safelight.config import WebhookSettings
from safelight.runs import ImageRecord, NewRun, Outcome, OutputFormat, Run, RunError, RunParams, RunStatus
from safelight.store import Store
from safelight.webhooks.deliverer import Deliverer
from safelight.webhooks.targets import TargetPolicy

LOOPBACK = TargetPolicy([ip_network("127.0.0.0/8")])

EndRun = Callable[..., Awaitable[Run]]


@pytest.fixture
def data() -> Iterator[Path]:
    # In memory where the machine has such a folder: power loss is not tested here, and syncing takes its time.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
async def store(data: Path) -> AsyncIterator[Store]:
    async with await Store.open(data) as opened:
        yield opened


@pytest.fixture
def end_run(store: Store) -> EndRun:
    """Takes a run with a webhook through its whole life."""

    async def end(
        url: str | None,
        status: RunStatus = RunStatus.SUCCEEDED,
        *,
        project: str = "default",
        num_images: int = 1,
        code: str = "out_of_memory",
    ) -> Run:
        params = RunParams(prompt="a lamp", seed=7, num_images_per_prompt=num_images)
        new = NewRun(
            id=str(uuid.uuid4()),
            project=project,
            key_id=None,
            deployment="pinhole",
            deployment_version=1,
            params=params,
            webhook_endpoint=url,
        )
        await store.runs.create(new, max_queued=10_000)
        if status is RunStatus.CANCELLED:
            return await store.runs.cancel(new.id)
        (claim,) = await store.runs.claim("worker", limit=1, lease_seconds=60)
        if status is RunStatus.FAILED:
            error = RunError(code, "the picture did not fit; ask for a smaller one")
            await store.runs.finish(claim, Outcome(status=status, run_time_ms=5.0, error=error))
            return await store.runs.get(new.id)
        for index in range(num_images):
            picture = f"picture {index} of {new.id}".encode()
            kept = await store.images.write(new.id, index, claim.fence, OutputFormat.PNG, picture)
            record = ImageRecord(
                index=index,
                seed=7 + index,
                output_format=OutputFormat.PNG,
                path=kept.path,
                num_bytes=len(picture),
                sha256=hashlib.sha256(picture).hexdigest(),
            )
            await store.runs.add_image(claim, record)
        await store.runs.finish(claim, Outcome(status=status, run_time_ms=1234.5))
        return await store.runs.get(new.id)

    return end


@contextlib.asynccontextmanager
async def delivering(store: Store, *, policy: TargetPolicy = LOOPBACK, **options: object) -> AsyncIterator[Deliverer]:
    """A running deliverer. `retry_seconds` and `timeout_seconds` are settings, the rest goes to the constructor."""
    names = ("retry_seconds", "timeout_seconds", "max_concurrent_per_host", "disable_after_days")
    chosen = {name: options.pop(name) for name in names if name in options}
    settings = WebhookSettings.model_validate({"retry_seconds": (0, 0.05, 0.05, 0.05), "timeout_seconds": 10} | chosen)
    options.setdefault("poll_seconds", 0.05)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    deliverer = Deliverer(store, settings, policy=policy, ssl_context=context, **options)  # type: ignore[arg-type]
    task = asyncio.create_task(deliverer.run())
    try:
        yield deliverer
    finally:
        await deliverer.close(grace_seconds=0.1)
        await asyncio.wait_for(task, 20)


async def until(condition: Callable[[], Awaitable[object] | object], seconds: float = 20.0) -> None:
    """Wait for `condition` to hold."""
    deadline = time.monotonic() + seconds
    while True:
        held = condition()
        if isinstance(held, Awaitable):
            held = await held
        if held:
            return
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)
