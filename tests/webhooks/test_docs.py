"""The receiver in docs/webhooks.md does what it says, as it stands there."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from pathlib import Path

from safelight.runs import DeliveryStatus
from safelight.store import Store

from .conftest import EndRun, delivering, until

DOC = Path(__file__).parents[2] / "docs" / "webhooks.md"


async def test_the_receiver_of_the_page_verifies_what_is_delivered(store: Store, end_run: EndRun) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (source,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    for told, ours in (("whsec_...", (await store.project_secrets.newest("default")).secret), ("8001", str(port))):
        assert source.count(told) == 1
        source = source.replace(told, ours)
    receiver = await asyncio.create_subprocess_exec(sys.executable, "-c", source, stdout=asyncio.subprocess.PIPE)
    try:
        run = await end_run(f"http://127.0.0.1:{port}/", num_images=2)
        other = await end_run(f"http://127.0.0.1:{port}/", project="theirs")
        async with delivering(store, retry_seconds=(0, *[0.2] * 50)):
            assert receiver.stdout is not None
            line = await asyncio.wait_for(receiver.stdout.readline(), 20)
            assert line.decode().split() == [run.id, "200", "2"]

            async def has_refused() -> bool:
                (delivery,) = await store.deliveries.list(run_id=other.id)
                return any(attempt.status_code == 401 for attempt in delivery.attempts)

            async def is_delivered() -> bool:
                (delivery,) = await store.deliveries.list(run_id=run.id)
                return delivery.status is DeliveryStatus.DELIVERED

            await until(has_refused)
            await until(is_delivered)
    finally:
        receiver.kill()
        await receiver.wait()
