"""Safelight: a self-hosted text-to-image endpoint. The public names are found when they are first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from safelight.version import __version__

if TYPE_CHECKING:
    from safelight.client import AsyncClient, Client, verify_webhook
    from safelight.engine.engine import Engine
    from safelight.engine.library import load
    from safelight.engine.tasks import Assignment
    from safelight.errors import SafelightError
    from safelight.runs import RunParams

__all__ = [
    "Assignment",
    "AsyncClient",
    "Client",
    "Engine",
    "RunParams",
    "SafelightError",
    "__version__",
    "load",
    "verify_webhook",
]

_HOMES = {
    "Assignment": "safelight.engine.tasks",
    "AsyncClient": "safelight.client",
    "Client": "safelight.client",
    "Engine": "safelight.engine.engine",
    "RunParams": "safelight.runs",
    "SafelightError": "safelight.errors",
    "load": "safelight.engine.library",
    "verify_webhook": "safelight.client",
}


def __getattr__(name: str) -> object:
    # A client imports neither torch nor a database; so nothing is imported before it is named.
    if name not in _HOMES:
        raise AttributeError(f"module 'safelight' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
