"""What every page needs, and the border that every request of the dashboard goes through."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, RedirectResponse, Response

from safelight.api.administration import Administration
from safelight.api.answers import respond
from safelight.api.dashboard.forms import Form, read_form
from safelight.api.dashboard.guard import add_page_headers, check_same_origin
from safelight.api.dashboard.health import Doctor
from safelight.api.dashboard.pages import Pages
from safelight.api.dashboard.sessions import Session, Sessions, SignInNeeded
from safelight.api.dashboard.thumbnails import Thumbnails
from safelight.api.errors import problem, problem_answer, status_of
from safelight.api.middleware import trace_of
from safelight.api.service import Service
from safelight.config import Settings
from safelight.errors import SafelightError, Unauthorized
from safelight.store.sign_in import SignInLinks

HOME = "/dashboard"
SIGN_IN = "/dashboard/sign-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Everything the pages are made with. `settings` are shown and nothing else."""

    service: Service
    administration: Administration
    pages: Pages
    sessions: Sessions
    sign_in_links: SignInLinks
    thumbnails: Thumbnails
    doctor: Doctor
    settings: Settings

    @property
    def data(self) -> Path:
        return self.settings.data


class DashboardRoute(APIRoute):
    """A route whose writes other sites cannot cause, and whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                check_same_origin(request.method, request.headers)
                response = await answer(request)
            except SignInNeeded:
                response = _ask_to_sign_in(request)
            except SafelightError as error:
                response = await _answer_error(request, error)
            add_page_headers(response)
            return response

        return guarded


def desk_of(request: Request) -> Desk:
    """The desk of the application."""
    found: Desk = request.app.state.desk
    return found


async def _desk(request: Request) -> Desk:
    return desk_of(request)


async def signed_in(request: Request) -> Session:
    """The session of a request. Raises SignInNeeded."""
    session = await desk_of(request).sessions.of(request)
    trace_of(request.scope).key_prefix = session.key.prefix
    return session


async def form_of(request: Request) -> Form:
    """The form in the body of a request."""
    return await read_form(request, timeout_seconds=desk_of(request).settings.server.receive_timeout_seconds)


DeskOf = Annotated[Desk, Depends(_desk)]
SessionOf = Annotated[Session, Depends(signed_in)]
FormOf = Annotated[Form, Depends(form_of)]


def show(request: Request, desk: Desk, session: Session, template: str, **context: Any) -> Response:
    """A page for whoever is signed in; keeps the session of someone who works alive."""
    response = desk.pages.render(request, template, session=session, **context)
    desk.sessions.renew(request, response, session)
    return response


def go(path: str, *, note: str = "") -> Response:
    """On to another page, which says what was done."""
    joint = "&" if "?" in path else "?"
    return RedirectResponse(path + (f"{joint}note={note}" if note else ""), status_code=303)


def is_script(request: Request) -> bool:
    """Whether a script of ours asks, which wants JSON, and no page."""
    return "application/json" in request.headers.get("accept", "") or "text/event-stream" in request.headers.get(
        "accept", ""
    )


def _ask_to_sign_in(request: Request) -> Response:
    if is_script(request):
        return respond(problem_answer(Unauthorized("the session has ended; sign in again")))
    wanted = request.url.path
    after = f"?next={quote(wanted)}" if request.method == "GET" and wanted != HOME else ""
    return RedirectResponse(SIGN_IN + after, status_code=303)


async def _answer_error(request: Request, error: SafelightError) -> Response:
    status = status_of(error)
    if is_script(request):
        return JSONResponse(problem(error), status_code=status)
    try:
        session = await desk_of(request).sessions.of(request)
    except SignInNeeded:
        session = None
    return desk_of(request).pages.render(request, "error.html", session=session, status=status, error=error)
