"""What keeps other sites out: which writes are refused, and the headers every page has. Pure."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response

from safelight.errors import Forbidden

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "object-src 'none'",
        # No string may become HTML or code, whatever a script of ours tries.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    # With `no-referrer` browsers send `Origin: null` with our own forms, which is what we refuse.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def check_same_origin(method: str, headers: Headers) -> None:
    """Raises Forbidden for a write that a page of this very server did not send."""
    if method in SAFE_METHODS:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        raise _refusal()
    if origin is not None and not _is_host(origin, headers.get("host", "")):
        raise _refusal()
    # Every browser says at least one of the two with a write; who says neither is none.
    if site is None and origin is None:
        raise _refusal()


def add_page_headers(response: Response) -> None:
    """The headers of a page, where the response has not its own."""
    for name, value in PAGE_HEADERS.items():
        response.headers.setdefault(name, value)


def _is_host(origin: str, host: str) -> bool:
    """Whether `origin` is this server. Behind a proxy that ends TLS only the host is known, so the scheme is free."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.strip().lower() != ""


def _refusal() -> Forbidden:
    return Forbidden("this request did not come from a page of this dashboard; open the page and try again there")
