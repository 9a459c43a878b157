"""Names to deployments: what a request is judged by, remembered for seconds only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from safelight.deployments import Deployment
from safelight.store.deployments import DeploymentTable
from safelight.store.notifications import Notifications

CACHE_SECONDS = 4.0
"""How long a deployment is not looked up again, should the hint of a change be lost."""


class Resolver:
    """Which deployment answers under a name. Forgets all of them as soon as it hears that any has changed."""

    def __init__(self, table: DeploymentTable, notifications: Notifications, *, monotonic: Callable[[], float]) -> None:
        self._table = table
        self._monotonic = monotonic
        self._known: dict[str, tuple[Deployment, float]] = {}
        self._listening = ExitStack()
        self._changes = self._listening.enter_context(notifications.listen("deployments"))

    async def resolve(self, name: str) -> Deployment:
        """Raises NotFound, which is not remembered: a new name answers at once."""
        # A hint that came while the table was read is taken by the next request: what was read is forgotten then.
        if self._changes.take():
            self._known.clear()
        known, until = self._known.get(name, (None, 0.0))
        if known is not None and self._monotonic() < until:
            return known
        asked_at = self._monotonic()
        found = await self._table.resolve(name)
        self._known[name] = (found, asked_at + CACHE_SECONDS)
        return found
