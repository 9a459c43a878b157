"""How the dashboard is put together: its desk from the store and the settings, its router from the rooms' routes."""

from __future__ import annotations

from fastapi import APIRouter

from safelight.api.administration import Administration
from safelight.api.dashboard.desk import DashboardRoute, Desk
from safelight.api.dashboard.health import Doctor
from safelight.api.dashboard.pages import Pages
from safelight.api.dashboard.routes import (
    deployments,
    endpoints,
    gallery,
    home,
    keys,
    models,
    playground,
    runs,
    settings,
    sign_in,
    webhooks,
)
from safelight.api.dashboard.sessions import Sessions
from safelight.api.dashboard.thumbnails import Thumbnails
from safelight.api.service import Service
from safelight.catalog_file import load_catalog, weights_finder
from safelight.config import Settings
from safelight.store import Store

_ROOMS = (sign_in, home, playground, runs, gallery, models, deployments, keys, webhooks, endpoints, settings)


def build_desk(store: Store, service: Service, settings: Settings) -> Desk:
    """Everything the pages need, over an open store."""
    return Desk(
        service=service,
        administration=Administration(
            store,
            service,
            find_weights=weights_finder(settings),
            own_models=tuple(settings.models),
            catalog=load_catalog(settings.catalog),
            hf_home=settings.hf_home,
        ),
        pages=Pages(),
        sessions=Sessions(store.keys, store.derive_secret("dashboard session")),
        sign_in_links=store.sign_in_links,
        thumbnails=Thumbnails(settings.data / "thumbnails", service.read_image),
        doctor=Doctor(settings),
        settings=settings,
    )


def dashboard_router() -> APIRouter:
    """Everything below /dashboard."""
    router = APIRouter(prefix="/dashboard", route_class=DashboardRoute, include_in_schema=False)
    for room in _ROOMS:
        room.add_routes(router)
    router.add_api_route("/{rest:path}", home.nothing_here, methods=["GET"])
    return router
