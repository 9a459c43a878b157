"""The dashboard: pages for administrators under /dashboard. Server-rendered; reads and writes go
through the service."""

from safelight.api.dashboard.building import build_desk, dashboard_router
from safelight.api.dashboard.desk import Desk

__all__ = ["Desk", "build_desk", "dashboard_router"]
