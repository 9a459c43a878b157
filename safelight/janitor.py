"""The janitor: re-queues runs whose lease ran out (it never executes them), prunes what has expired, sweeps orphan files."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from safelight.config import StoreSettings, WorkerSettings
from safelight.errors import SafelightError
from safelight.store import Store

log = logging.getLogger("safelight.janitor")

_SECONDS_PER_DAY = 86_400


class Janitor:
    """Runs beside the API. Any number of janitors may run on one store: every round is idempotent."""

    def __init__(self, store: Store, settings: StoreSettings, worker_settings: WorkerSettings) -> None:
        self._store = store
        self._settings = settings
        self._worker_settings = worker_settings

    async def run(self) -> None:
        """Tidy up until cancelled."""
        requeue_seconds = self._worker_settings.lease_seconds / 4
        await asyncio.gather(
            _every(requeue_seconds, self.requeue), _every(self._settings.prune_interval_seconds, self.prune)
        )

    async def requeue(self) -> None:
        """Give runs whose worker fell silent to the next worker, or end them after too many attempts."""
        for run in await self._store.runs.requeue_lost(max_attempts=self._worker_settings.max_attempts):
            log.warning("lease ran out", extra={"run_id": run.id, "status": run.status, "attempts": run.num_attempts})

    async def prune(self) -> None:
        """Remove expired runs, image files that no run names, and checkpoints of runs that have ended."""
        began = time.monotonic()
        num_runs = await self._store.runs.prune(older_than_seconds=self._settings.retention_days * _SECONDS_PER_DAY)
        num_files = await self._store.sweep_images() + await self._store.sweep_checkpoints()
        if num_runs or num_files:
            seconds = round(time.monotonic() - began, 2)
            log.info("pruned", extra={"runs": num_runs, "orphan_files": num_files, "seconds": seconds})


async def _every(seconds: float, action: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await action()
        except SafelightError as error:
            log.error("could not tidy up; trying again", extra={"reason": error.message})
        await asyncio.sleep(seconds)
