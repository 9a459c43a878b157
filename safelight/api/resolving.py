"""Names to deployments: what a request is judged by, remembered for seconds only."""

from __future__ import annotations

from collections.abc import Callable

from safelight.deployments import Deployment
from safelight.store.deployments import DeploymentTable
from safelight.store.notifications import Notifications

CACHE_SECONDS = 4.0
"""How long a deployment is not looked up again, should the hint of a change be lost."""


class Resolver:
    """Which deployment answers under a name. Forgets all of them as soon as it hears that any was deployed or
    undeployed. How far workers are with one, `status` and `max_pixels`, is told by no hint, and may be as old as what
    is remembered."""

    def __init__(self, table: DeploymentTable, notifications: Notifications, *, monotonic: Callable[[], float]) -> None:
        self._table = table
        self._monotonic = monotonic
        self._known: dict[str, tuple[Deployment, float]] = {}
        self._changes = notifications.listener("deployments")

    async def resolve(self, name: str) -> Deployment:
        """Raises NotFound, which is not remembered: a new name answers at once."""
        if self._changes.take():
            # Not cleared: who still reads the table may have read it before the change, and writes into the old one.
            self._known = {}
        known = self._known
        deployment, until = known.get(name, (None, 0.0))
        if deployment is not None and self._monotonic() < until:
            return deployment
        asked_at = self._monotonic()
        found = await self._table.resolve(name)
        known[name] = (found, asked_at + CACHE_SECONDS)
        return found
