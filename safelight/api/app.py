"""The composition of the door: routes, what every request goes through, how errors are answered. No
torch, no globals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from safelight.api.auth import KeyRing
from safelight.api.dashboard import Desk, dashboard_router
from safelight.api.errors import answer_error, answer_framework_error, answer_validation_error
from safelight.api.metering import Meter
from safelight.api.middleware import AccessLog, ErrorBorder, HostGuard, QuotaHeaders, SafeHeaders
from safelight.api.openapi import complete_document
from safelight.api.routes.predict import add_predict_routes
from safelight.api.routes.runs import add_runs_routes
from safelight.api.routes.server import add_server_routes
from safelight.api.routes.webhooks import add_webhook_routes
from safelight.api.service import Service
from safelight.api.traces import TracedRequests
from safelight.config import ServerSettings
from safelight.errors import SafelightError
from safelight.tracing import OFF, Tracing
from safelight.version import __version__

Lifespan = Callable[[], AbstractAsyncContextManager[None]]


class Door(FastAPI):
    """FastAPI with a description that is complete."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = complete_document(super().openapi())
        return self.openapi_schema


def create_app(
    service: Service,
    settings: ServerSettings,
    *,
    desk: Desk | None = None,
    lifespan: Lifespan | None = None,
    meter: Meter | None = None,
    tracing: Tracing = OFF,
) -> FastAPI:
    """The application over `service`, with a dashboard where there is a `desk`.

    `lifespan` is entered before the first request and left after the last. `meter` counts, for /metrics.
    """
    meter = meter or Meter()
    keyring = KeyRing(service.keys)

    @asynccontextmanager
    async def live(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan() if lifespan is not None else nullcontext():
            yield
            service.stop_waiting()
            await keyring.close()

    app = Door(
        title="Safelight",
        summary="A self-hosted text-to-image endpoint",
        version=__version__,
        lifespan=live,
        middleware=_middleware(service, settings, meter, tracing),
        exception_handlers={
            SafelightError: answer_error,
            HTTPException: answer_framework_error,
            RequestValidationError: answer_validation_error,
        },
        # The pages of both load scripts from elsewhere; a machine without network has only the document.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service, app.state.settings, app.state.keyring = service, settings, keyring
    app.state.desk, app.state.meter = desk, meter
    # First: routes are tried in order, and this one is asked for most.
    add_predict_routes(app)
    add_server_routes(app)
    add_runs_routes(app)
    add_webhook_routes(app)
    if desk is not None:
        app.include_router(dashboard_router())
    return app


def _middleware(service: Service, settings: ServerSettings, meter: Meter, tracing: Tracing) -> list[Middleware]:
    """Outermost first."""
    return [
        *([Middleware(TracedRequests, tracing=tracing)] if tracing.is_on else []),
        Middleware(AccessLog, count=meter.count_request, count_open=meter.count_open),
        Middleware(SafeHeaders),
        Middleware(QuotaHeaders, standings=service.standings),
        Middleware(ErrorBorder),
        Middleware(HostGuard, allowed_hosts=settings.allowed_hosts),
    ]
