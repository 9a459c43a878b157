"""What routes are given: the service, the settings of the door, and a caller whose key has the scope they need."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from safelight.api.auth import KeyRing, check_scope
from safelight.api.middleware import trace_of
from safelight.api.service import Service
from safelight.config import ServerSettings
from safelight.keys import Key, Scope


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _settings(request: Request) -> ServerSettings:
    settings: ServerSettings = request.app.state.settings
    return settings


async def authenticated(request: Request) -> Key:
    """The key of the caller, whatever it may do. Raises Unauthorized."""
    keyring: KeyRing = request.app.state.keyring
    key = await keyring.authenticate(request.headers.get("authorization"))
    trace_of(request.scope).key_prefix = key.prefix
    return key


async def _predictor(request: Request, key: Annotated[Key, Depends(authenticated)]) -> Key:
    check_scope(key, Scope.PREDICT)
    if key.allowance.has_quotas:
        trace_of(request.scope).metered_key = key
    return key


async def _run_reader(key: Annotated[Key, Depends(authenticated)]) -> Key:
    check_scope(key, Scope.READ, Scope.PREDICT)
    return key


async def _reader(key: Annotated[Key, Depends(authenticated)]) -> Key:
    check_scope(key, Scope.READ)
    return key


async def _administrator(key: Annotated[Key, Depends(authenticated)]) -> Key:
    check_scope(key, Scope.ADMIN)
    return key


# All of these are coroutines: the framework sends plain functions through a thread pool.
ServiceOf = Annotated[Service, Depends(_service)]
SettingsOf = Annotated[ServerSettings, Depends(_settings)]
Predictor = Annotated[Key, Depends(_predictor)]
RunReader = Annotated[Key, Depends(_run_reader)]
Reader = Annotated[Key, Depends(_reader)]
Administrator = Annotated[Key, Depends(_administrator)]
