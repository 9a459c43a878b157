"""Templates to responses, and the files that pages need. Everything is read once, when this is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from safelight.api.dashboard import formats
from safelight.api.dashboard.charts import bars
from safelight.api.dashboard.sessions import Session
from safelight.errors import FieldError, InvalidFields, SafelightError
from safelight.version import __version__

ASSET_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

NOTES: Mapping[str, str] = {
    "deployed": "Deployed. A worker loads it with its first run.",
    "saved": "Saved as a new version. Runs already accepted end on the old one.",
    "activated": "This version answers from now on.",
    "undeployed": "Undeployed. Runs already accepted still end.",
    "cancelled": "Cancelled.",
    "cancelling": "Cancelling: the run stops within one step.",
    "deleted": "The run and its pictures are gone.",
    "replayed": "Started again with the same seeds.",
    "revoked": "The key is refused within seconds.",
    "allowed": "The key has these limits from its next request on.",
    "resent": "The delivery is due now.",
    "resent-failed": "What failed is due now, and can still be sent.",
    "enabled": "The endpoint is told of runs again. What failed meanwhile can be resent.",
    "disabled": "The endpoint is told of nothing any more.",
    "removed": "The endpoint is gone; its deliveries stay in the log.",
    "signed-out": "You are signed out.",
}
"""What a page says after a write; the address names it, so that no text of an address is ever shown."""


class Pages:
    """Renders pages and serves the files beside them."""

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._assets = {
            name: file.read_bytes()
            for file in (files(__package__) / "static").iterdir()
            if (name := file.name).endswith(tuple(ASSET_TYPES))
        }
        # The version is part of their address: browsers keep them for ever, and ask anew after an upgrade.
        self.assets_version = sha256(b"".join(self._assets[name] for name in sorted(self._assets))).hexdigest()[:12]
        self._templates = Environment(
            loader=PackageLoader(__package__ or "", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters |= formats.FILTERS
        self._templates.filters["since"] = self._since
        self._templates.globals |= {"version": __version__, "assets": f"/dashboard/static/{self.assets_version}"}
        self._templates.globals |= {"bars": bars, "time": self._time}

    def render(
        self,
        request: Request,
        template: str,
        *,
        session: Session | None,
        status: int = 200,
        error: SafelightError | None = None,
        **context: object,
    ) -> Response:
        """A page. `error` is shown on it, with its fields."""
        shown = {
            "session": session,
            "path": request.url.path,
            "host": request.url.netloc,
            "note": NOTES.get(request.query_params.get("note", "")),
            "error": error,
            "field_errors": _by_field(error),
            "server": f"{request.url.scheme}://{request.url.netloc}",
        }
        html = self._templates.get_template(template).render(shown | context)
        return HTMLResponse(html, status_code=status)

    def asset(self, name: str) -> Response | None:
        """A file of the pages; None when there is no such file."""
        body = self._assets.get(name)
        if body is None:
            return None
        kind = ASSET_TYPES[name[name.rindex(".") :]]
        return Response(body, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})

    def _since(self, seconds: float) -> str:
        return formats.age(self._now() - seconds)

    def _time(self, seconds: float | None) -> Markup | str:
        """A point in time: how long ago, and when exactly for machines and pointers."""
        if seconds is None:
            return formats.NOTHING
        exact = formats.moment(seconds)
        return Markup('<time datetime="{}" title="{}">{}</time>').format(
            formats.iso(seconds), exact, self._since(seconds)
        )


def _by_field(error: SafelightError | None) -> dict[str, str]:
    wrong: tuple[FieldError, ...] = error.fields if isinstance(error, InvalidFields) else ()
    return {each.field: each.message for each in wrong}
