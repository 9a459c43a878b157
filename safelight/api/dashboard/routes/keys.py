"""API keys: made, shown once, rotated, revoked."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import SIGN_IN, Desk, DeskOf, FormOf, SessionOf, go, show
from safelight.api.dashboard.forms import OVERLAPS, read_allowance
from safelight.api.dashboard.sessions import Session
from safelight.api.dashboard.snippets import EXAMPLE_PROMPT, curl
from safelight.api.errors import status_of
from safelight.errors import Conflict, FieldError, InvalidFields, SafelightError
from safelight.keys import Key, Scope

LIFETIMES = {"": None, "7": 7, "30": 30, "90": 90, "365": 365}
"""What the form offers, in days."""


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/keys", keys, methods=["GET"])
    router.add_api_route("/keys", create, methods=["POST"])
    router.add_api_route("/keys/{key_id}/limits", allow, methods=["POST"])
    router.add_api_route("/keys/{key_id}/rotate", rotate, methods=["POST"])
    router.add_api_route("/keys/{key_id}/revoke", revoke, methods=["POST"])


async def keys(request: Request, desk: DeskOf, session: SessionOf) -> Response:
    """All keys, and a form for another."""
    return await _page(request, desk, session)


async def create(request: Request, desk: DeskOf, session: SessionOf, form: FormOf) -> Response:
    """Make a key. Its secret is on the answer and nowhere else."""
    try:
        made, secret = await desk.administration.create_key(
            form.word("name"),
            project=_project(form.word("project")),
            scopes=frozenset(Scope(scope) for scope in form.all("scope") if scope in set(Scope)),
            expires_at=_end(form.word("days")),
            allowance=read_allowance(form),
        )
    except (InvalidFields, Conflict) as error:
        return await _page(request, desk, session, error=error, name=form.word("name"))
    return await _page(request, desk, session, made=made, secret=secret)


async def allow(request: Request, desk: DeskOf, session: SessionOf, form: FormOf, key_id: str) -> Response:
    """Other limits for a key."""
    try:
        await desk.administration.allow(key_id, read_allowance(form))
    except InvalidFields as error:
        return await _page(request, desk, session, error=error)
    return go("/dashboard/keys", note="allowed")


async def rotate(request: Request, desk: DeskOf, session: SessionOf, form: FormOf, key_id: str) -> Response:
    """A new secret for what a key stands for. Whoever rotates the key they came with stays signed in
    with the new one."""
    overlap = OVERLAPS.get(form.word("overlap"), 0.0)
    made, secret = await desk.administration.rotate_key(key_id, overlap_seconds=overlap)
    desk.sessions.forget(key_id)
    is_own = key_id == session.key.id
    page = await _page(request, desk, Session(made, session.issued_at) if is_own else session, made=made, secret=secret)
    if is_own:
        desk.sessions.start(request, page, made)
    return page


async def revoke(request: Request, desk: DeskOf, session: SessionOf, key_id: str) -> Response:
    """Make a key useless."""
    await desk.administration.revoke_key(key_id, by=session.key)
    desk.sessions.forget(key_id)
    if key_id != session.key.id:
        return go("/dashboard/keys", note="revoked")
    response = go(SIGN_IN, note="signed-out")
    desk.sessions.end(request, response)
    return response


async def _page(
    request: Request,
    desk: Desk,
    session: Session,
    *,
    error: SafelightError | None = None,
    name: str = "",
    made: Key | None = None,
    secret: str = "",
) -> Response:
    found = await desk.administration.keys()
    deployments = await desk.administration.deployments()
    address = f"{request.url.scheme}://{request.url.netloc}/{deployments[0].name if deployments else 'NAME'}/predict"
    at = time.time()
    return show(
        request,
        desk,
        session,
        "keys.html",
        status=status_of(error) if error else 200,
        error=error,
        valid=[key for key in found if _is_valid(key, at)],
        ended=[key for key in found if not _is_valid(key, at)][::-1],
        usage=await desk.administration.runs_by_key(),
        # One form of limits at a time: a page of many keys stays light.
        limited=request.query_params.get("limits", ""),
        name=name,
        made=made,
        secret=secret,
        curl=curl(address, {"prompt": EXAMPLE_PROMPT}, key=secret) if secret else "",
        scopes=list(Scope),
    )


def _is_valid(key: Key, at: float) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > at)


def _project(name: str) -> str:
    if len(name) > 63:
        raise InvalidFields([FieldError("project", "a project has a name of at most 63 characters")])
    return name or "default"


def _end(days: str) -> float | None:
    lifetime = LIFETIMES.get(days)
    return None if lifetime is None else time.time() + lifetime * 86400.0
