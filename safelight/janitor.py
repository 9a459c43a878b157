"""The janitor: re-queues runs whose lease ran out (it never executes them), prunes what has expired,
sweeps orphan files."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from safelight.config import StoreSettings, WorkerSettings
from safelight.errors import SafelightError
from safelight.garbage import give_memory_back
from safelight.store import Store
from safelight.store.retention import Expiry

log = logging.getLogger("safelight.janitor")

_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What one round removed, and by how much the images are still over their budget."""

    num_runs: int = 0
    num_runs_without_images: int = 0
    num_deliveries: int = 0
    num_orphan_files: int = 0
    bytes_over_budget: int = 0


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
            _every(requeue_seconds, self.requeue), _every(self._settings.prune_interval_seconds, self._tidy_up)
        )

    async def run_beside_worker(self) -> None:
        """Sweep the checkpoints of this machine until cancelled: no janitor beside an API elsewhere reaches them."""
        await _every(self._settings.prune_interval_seconds, self._tidy_up_beside_worker)

    async def requeue(self) -> None:
        """End the runs that wait past their deadline; give those whose worker fell silent to the next worker, or end
        them after too many attempts."""
        for run in await self._store.runs.end_overdue():
            log.info("deadline missed", extra={"run_id": run.id})
        for run in await self._store.runs.requeue_lost(max_attempts=self._worker_settings.max_attempts):
            log.warning("lease ran out", extra={"run_id": run.id, "status": run.status, "attempts": run.num_attempts})

    async def _tidy_up(self) -> None:
        await self.prune()
        await self._give_memory_back()

    async def _tidy_up_beside_worker(self) -> None:
        # Both lie on this machine, where there may be no API.
        await self._store.sweep_checkpoints()
        await self._store.previews.sweep()
        await self._give_memory_back()

    async def _give_memory_back(self) -> None:
        """What was read of a large store stays in page caches, and what was drawn leaves holes and cycles behind."""
        await self._store.release_memory()
        gc.collect()
        give_memory_back()

    async def prune(self) -> Pruned:
        """Remove what has expired by age, images over the budget, and files that no run names or needs."""
        began = time.monotonic()
        budget = self._settings.max_image_bytes
        num_runs = await self._store.runs.prune(older_than_seconds=self._retention_seconds)
        num_deliveries = await self._store.retention.expire_deliveries(older_than_seconds=self._retention_seconds)
        expiry = Expiry() if budget is None else await self._store.retention.expire_images(max_bytes=budget)
        await self._store.previews.sweep()
        pruned = Pruned(
            num_runs=num_runs,
            num_runs_without_images=expiry.num_runs_without_images,
            num_deliveries=num_deliveries,
            num_orphan_files=await self._store.sweep_images() + await self._store.sweep_checkpoints(),
            bytes_over_budget=expiry.bytes_over_budget,
        )
        if pruned != Pruned(bytes_over_budget=pruned.bytes_over_budget):
            log.info("pruned", extra=asdict(pruned) | {"seconds": round(time.monotonic() - began, 2)})
        if pruned.bytes_over_budget:
            log.warning(
                "the images of runs that have not ended or been told of are over store.max_image_bytes",
                extra={"bytes_over_budget": pruned.bytes_over_budget},
            )
        return pruned

    async def preview(self) -> tuple[Expiry, list[int]]:
        """What `prune` would remove now, and the sizes of the images that no run names. Removes nothing."""
        expiry = await self._store.retention.preview(
            older_than_seconds=self._retention_seconds, max_bytes=self._settings.max_image_bytes
        )
        return expiry, await self._store.find_orphans()

    @property
    def _retention_seconds(self) -> float:
        return self._settings.retention_days * _SECONDS_PER_DAY


async def _every(seconds: float, action: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await action()
        except SafelightError as error:
            log.error("could not tidy up; trying again", extra={"reason": error.message})
        except Exception:
            # What is left lying about is no reason to end the process, and the runs it has.
            log.exception("could not tidy up; trying again")
        await asyncio.sleep(seconds)
