"""How the server is set up, and how it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import Desk, DeskOf, SessionOf, show
from safelight.api.dashboard.health import Finding, disk_of
from safelight.api.dashboard.sessions import Session
from safelight.config import Settings


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/settings", settings, methods=["GET"])
    router.add_api_route("/settings/doctor", examine, methods=["POST"])


async def settings(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """Settings, versions, workers and disk."""
    return await _page(request, desk, session)


async def examine(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """The same page with what the doctor says now."""
    return await _page(request, desk, session, findings=await desk.doctor.examine())


async def _page(
    request: Request, desk: Desk, session: Session, *, findings: Sequence[Finding] | None = None
) -> Response:
    return show(
        request,
        desk,
        session,
        "settings.html",
        sections=_sections(desk.settings),
        installed=await desk.doctor.installed(),
        disk=await asyncio.to_thread(disk_of, desk.data),
        placements=await desk.administration.placements(),
        findings=findings,
    )


def _sections(settings: Settings) -> dict[str, list[tuple[str, str, str]]]:
    """Name, value and meaning of every setting, by section. Secrets are masked by the settings themselves."""
    tree = settings.model_dump(mode="json")
    sections: dict[str, list[tuple[str, str, str]]] = {"general": []}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        described = getattr(type(value), "model_fields", None)
        if described is None:
            sections["general"].append((name, _shown(tree[name]), field.description or ""))
        else:
            sections[name] = [
                (f"{name}.{each}", _shown(tree[name][each]), about.description or "")
                for each, about in described.items()
            ]
    return sections


def _shown(value: object) -> str:
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value)
