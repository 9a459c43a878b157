"""Which deployments' models the engine of this worker has, and how they come there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from safelight.deployments import Deployment, DeploymentStatus
from safelight.engine.host import EngineHost
from safelight.engine.tasks import ModelSpec
from safelight.errors import ModelError
from safelight.runs import Run
from safelight.store import Store

log = logging.getLogger("safelight.worker")


class Models:
    """Loads the models of deployments into one engine and says so in the store."""

    def __init__(
        self,
        store: Store,
        engine: EngineHost,
        *,
        worker_id: str,
        find_weights: Callable[[str], Path],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._engine = engine
        self._worker_id = worker_id
        self._find_weights = find_weights
        self._now = now
        self._deployments: dict[tuple[str, int], Deployment] = {}
        self._loads: dict[str, asyncio.Task[None]] = {}

    async def deployment_of(self, run: Run) -> Deployment:
        """A version never changes, so each is read once. Raises NotFound."""
        version = (run.deployment, run.deployment_version)
        if version not in self._deployments:
            self._deployments[version] = await self._store.deployments.get(*version)
        return self._deployments[version]

    async def load(self, deployment: Deployment) -> None:
        """Wait until the engine has the deployment's model; the first caller loads it for all. Raises ModelError."""
        key = model_key(deployment)
        if self._engine.is_loaded(key):
            return
        if key not in self._loads:
            self._loads[key] = asyncio.create_task(self._load_now(deployment, key))
            self._loads[key].add_done_callback(lambda _: self._loads.pop(key))
        await asyncio.shield(self._loads[key])

    async def _load_now(self, deployment: Deployment, key: str) -> None:
        async def report(status: DeploymentStatus, reason: str = "") -> None:
            await self._store.deployments.record_placement(
                self._worker_id, deployment.name, deployment.version, status, reason
            )

        await report(DeploymentStatus.STARTING)
        began = self._now()
        try:
            await self._engine.load(ModelSpec(key, self._find_weights(deployment.model)))
        except ModelError as error:
            log.error("a model cannot be loaded", extra={"deployment": deployment.name, "reason": error.message})
            await report(DeploymentStatus.FAILED, error.message)
            raise
        await report(DeploymentStatus.ACTIVE)
        log.info("model loaded", extra={"deployment": deployment.name, "seconds": round(self._now() - began, 2)})


def model_key(deployment: Deployment) -> str:
    """What assignments call the deployment's model by."""
    return f"{deployment.name}@{deployment.version}"
