"""Getting in and out, and the files that pages need before anybody is in."""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.api.dashboard.desk import HOME, SIGN_IN, Desk, DeskOf, FormOf, go
from safelight.api.dashboard.sessions import SignInNeeded, can_keep_secrets
from safelight.api.errors import status_of
from safelight.errors import Forbidden, NotFound, SafelightError, Unauthorized
from safelight.keys import Key

_OWN_PATH = re.compile(r"/dashboard(/[a-z0-9-]+)*")


def add_routes(router: APIRouter) -> None:
    router.add_api_route("/sign-in", ask, methods=["GET"])
    router.add_api_route("/sign-in", sign_in, methods=["POST"])
    router.add_api_route("/sign-out", sign_out, methods=["POST"])
    router.add_api_route("/static/{assets_version}/{name}", asset, methods=["GET"])


async def ask(request: Request, desk: DeskOf) -> Response:
    """The page that asks for a key; or, for a sign-in link, for a click, so that who only looks at a
    link uses up nothing."""
    if "token" not in request.query_params:
        try:
            await desk.sessions.of(request)
            return go(_own_path(request.query_params.get("next", "")))
        except SignInNeeded:
            pass
    return _page(request, desk, token=request.query_params.get("token", ""), after=request.query_params.get("next", ""))


async def sign_in(request: Request, desk: DeskOf, form: FormOf) -> Response:
    """Start a session with an admin key or a sign-in link."""
    try:
        key = await _key_of(request, desk, form.word("key"), form.word("token"))
    except (Unauthorized, Forbidden) as error:
        return _page(request, desk, after=form.word("next"), error=error)
    response = go(_own_path(form.word("next")))
    desk.sessions.start(request, response, key)
    return response


async def sign_out(request: Request, desk: DeskOf) -> Response:
    """End the session of this browser."""
    response = go(SIGN_IN, note="signed-out")
    desk.sessions.end(request, response)
    return response


async def asset(desk: DeskOf, assets_version: str, name: str) -> Response:
    """A stylesheet, script or icon."""
    found = desk.pages.asset(name) if assets_version == desk.pages.assets_version else None
    if found is None:
        raise NotFound("there is no such file; reload the page")
    return found


async def _key_of(request: Request, desk: Desk, secret: str, token: str) -> Key:
    if not can_keep_secrets(request.url):
        raise Forbidden(
            "this page came over plain http, where others can read along; use https, or a tunnel to this machine"
        )
    if token:
        return await desk.sessions.sign_in_by_id(await desk.sign_in_links.redeem(token))
    return await desk.sessions.sign_in(secret)


def _page(
    request: Request, desk: Desk, *, token: str = "", after: str = "", error: SafelightError | None = None
) -> Response:
    return desk.pages.render(
        request,
        "sign_in.html",
        session=None,
        status=status_of(error) if error else 200,
        error=error,
        token=token,
        after=_own_path(after),
        is_private=can_keep_secrets(request.url),
    )


def _own_path(path: str) -> str:
    """`path` where it is one of ours, else the home page: nobody is sent elsewhere from here."""
    return path if _OWN_PATH.fullmatch(path) and path != SIGN_IN else HOME
