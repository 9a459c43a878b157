"""Which deployments' models the engine of this worker has, how they come there, and when they go."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from safelight.deployments import Deployment, DeploymentStatus
from safelight.engine.host import EngineHost
from safelight.engine.models.base import Reading
from safelight.engine.residents import ModelState
from safelight.engine.tasks import ModelSpec
from safelight.errors import ModelError, TryLater
from safelight.runs import Run
from safelight.store import Store

log = logging.getLogger("safelight.worker")

TIDY_SECONDS = 5.0
"""How often idle models are looked at; a cooldown may last so much longer."""

SERVED_SECONDS = 60.0
"""How often it is looked up what is still deployed, should the hint of a change be lost."""


class Models:
    """Brings the models of deployments into one engine and says in the store what became of them.

    `find_weights` is asked with a model's name, and with `revision` where the deployment has one.
    """

    def __init__(
        self,
        store: Store,
        engine: EngineHost,
        *,
        worker_id: str,
        find_weights: Callable[..., Path],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._engine = engine
        self._worker_id = worker_id
        self._find_weights = find_weights
        self._now = now
        self._deployments: dict[tuple[str, int], Deployment] = {}
        self._folders: dict[str, Path] = {}
        self._without_weights: set[str] = set()
        engine.watch_models(self._report)

    async def deployment_of(self, run: Run) -> Deployment:
        """A version never changes, so each is read once. Raises NotFound."""
        version = (run.deployment, run.deployment_version)
        if version not in self._deployments:
            self._deployments[version] = await self._store.deployments.get(*version)
        return self._deployments[version]

    @contextlib.asynccontextmanager
    async def hold(self, deployment: Deployment, *, wait_compiled: bool) -> AsyncIterator[None]:
        """Keep the deployment's model on the device for the length of the block; wait until it is compiled unless that
        may come later. Raises ModelError with the remedy."""
        serving = deployment.serving
        spec = ModelSpec(
            model_key(deployment),
            await self._folder_of(deployment),
            loras={name: Path(file) for name, file in serving.lora_files},
            reading=Reading(is_long=serving.long_prompts, is_weighted=serving.prompt_weights),
            is_pinned=serving.pin,
            cooldown_seconds=serving.cooldown_seconds,
        )
        async with self._engine.models.hold(spec, wait_compiled=wait_compiled):
            yield

    async def tidy_for_ever(self) -> None:
        """Unload what has cooled down and what is no longer deployed."""
        looked_at = self._now()
        with self._store.notifications.listen("deployments") as listener:
            while True:
                is_changed = await listener.wait(TIDY_SECONDS)
                if is_changed or self._now() - looked_at >= SERVED_SECONDS:
                    looked_at = self._now()
                    await self._retire_undeployed()
                await self._engine.models.tidy()

    async def _retire_undeployed(self) -> None:
        with contextlib.suppress(TryLater):
            served = {model_key(deployment) for deployment in await self._store.deployments.list()}
            for key in self._engine.models.keys - served:
                self._engine.models.retire(key)

    async def _folder_of(self, deployment: Deployment) -> Path:
        """Looked for as long as the model is not there: weights may have come meanwhile."""
        key = model_key(deployment)
        if key in self._folders and self._engine.models.is_loaded(key):
            return self._folders[key]
        try:
            folder = self._find(deployment)
        except ModelError as error:
            if key not in self._without_weights:
                self._without_weights.add(key)
                await self._report(ModelState(key, DeploymentStatus.FAILED, error.message))
            raise
        self._without_weights.discard(key)
        self._folders[key] = folder
        return folder

    def _find(self, deployment: Deployment) -> Path:
        """Of a revision that was deployed exactly that one. Raises ModelError with the remedy."""
        if deployment.revision is None:
            return self._find_weights(deployment.model)
        return self._find_weights(deployment.model, revision=deployment.revision)

    async def _report(self, state: ModelState) -> None:
        """A store that is away is told later, by the next change."""
        name, _, version = state.key.rpartition("@")
        log.log(
            logging.ERROR if state.status is DeploymentStatus.FAILED else logging.INFO,
            "model %s",
            state.status.value,
            extra={"deployment": name, "version": version}
            | ({"reason": state.reason} if state.reason else {})
            | ({} if state.load_seconds is None else {"seconds": round(state.load_seconds, 2)}),
        )
        try:
            await self._store.deployments.record_placement(
                self._worker_id,
                name,
                int(version),
                state.status,
                state.reason,
                load_seconds=state.load_seconds,
                max_pixels=self._engine.max_pixels,
            )
        except TryLater as error:
            log.warning("a model's state cannot be written", extra={"deployment": name, "reason": error.message})


def model_key(deployment: Deployment) -> str:
    """What assignments call the deployment's model by."""
    return f"{deployment.name}@{deployment.version}"
